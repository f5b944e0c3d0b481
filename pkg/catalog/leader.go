package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// LeaderRecord is what the store knows of the leadership. Its term only ever rises and the object is never deleted.
type LeaderRecord struct {
	Term cluster.Term
	Node cluster.NodeID
	// Instance tells one run of the leader's process from another.
	Instance string
	// Time is when the leader last said so, by its own clock.
	Time time.Time
}

type leaderJSON struct {
	Version  int            `json:"version"`
	Term     cluster.Term   `json:"term"`
	Node     cluster.NodeID `json:"node"`
	Instance string         `json:"instance"`
	Time     time.Time      `json:"timestamp"`
	// Status is for LeaderStatus. Nothing about it may make the record unreadable, which fences.
	Status json.RawMessage `json:"status,omitempty"`
}

const (
	leaderVersion = 1
	leaderWay     = "stop the managers on all nodes (etcd runs on), delete the object, start the managers"
)

// ErrFenced: another leadership has taken this term or a higher one in the store.
var ErrFenced = errors.New("fenced by another leadership")

// FencedError is the answer to one who may not have the term. errors.Is(err, ErrFenced) holds.
type FencedError struct {
	// Stored is the record that stands in the way.
	Stored LeaderRecord
}

// Error says who holds which term.
func (e *FencedError) Error() string {
	return fmt.Sprintf("%s: term %d is held by node %s since %s", ErrFenced, e.Stored.Term, e.Stored.Node,
		e.Stored.Time.UTC().Format(time.RFC3339))
}

// Is makes errors.Is(err, ErrFenced) true.
func (e *FencedError) Is(target error) bool { return target == ErrFenced }

// Leader reads the leader record and its version; ErrNotFound if nobody ever took a term.
func (c *Catalog) Leader(ctx context.Context) (LeaderRecord, string, error) {
	data, info, err := c.read(ctx, leaderKey, leaderWay)
	if err != nil {
		return LeaderRecord{}, info.Version, err
	}
	r, err := parseLeader(data)
	return r, info.Version, err
}

func parseLeader(data []byte) (LeaderRecord, error) {
	var j leaderJSON
	if err := decodeOwn(leaderKey, leaderWay, data, leaderVersion, &j); err != nil {
		return LeaderRecord{}, err
	}
	if j.Term == 0 || j.Node == "" {
		return LeaderRecord{}, corrupt(leaderKey, leaderWay, errors.New("it names no term or no node"))
	}
	if j.Term > cluster.MaxTerm {
		return LeaderRecord{}, corrupt(leaderKey, leaderWay, fmt.Errorf("term %d is too high to be real", j.Term))
	}
	return LeaderRecord{Term: j.Term, Node: j.Node, Instance: j.Instance, Time: j.Time}, nil
}

// CheckTerm tells whether the record can be of a cluster that is in this term now. The error is of the kind of a corrupt object.
func (r LeaderRecord) CheckTerm(now cluster.Term) error {
	if now.TakesOver(r.Term) {
		return nil
	}
	return corrupt(leaderKey, leaderWay, fmt.Errorf("term %d is too far above term %d, which the managers are in", r.Term, now))
}

// Hold is a term that was taken in the store. It is safe for concurrent use.
type Hold struct {
	c      *Catalog
	fenced bool

	mu      sync.Mutex
	record  LeaderRecord
	version string
	// status is stored with the record; nil for none.
	status json.RawMessage
}

// Record returns what was last written.
func (h *Hold) Record() LeaderRecord {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.record
}

// Fenced is false for a term that was taken in a store that can't compare and swap.
func (h *Hold) Fenced() bool { return h.fenced }

// TakeTerm raises the term in the store to this one. It succeeds if the stored term is lower, or is this very one by the same
// node and instance (taking it twice is taking it once); otherwise the error is a *FencedError with what is stored.
func (c *Catalog) TakeTerm(ctx context.Context, term cluster.Term, node cluster.NodeID, instance string) (*Hold, error) {
	return c.takeTerm(ctx, LeaderRecord{Term: term, Node: node, Instance: instance}, true)
}

// TakeTermUnfenced is TakeTerm for a store that ignores conditional puts: it reads, compares, writes and reads again. Two leaders
// at the same moment can both believe that they hold the term, so it may only be used where the operator has allowed it.
func (c *Catalog) TakeTermUnfenced(ctx context.Context, term cluster.Term, node cluster.NodeID, instance string) (*Hold, error) {
	return c.takeTerm(ctx, LeaderRecord{Term: term, Node: node, Instance: instance}, false)
}

// takeAttempts bounds how often a race for the record is run anew; each loss means that somebody else has written.
const takeAttempts = 8

func (c *Catalog) takeTerm(ctx context.Context, want LeaderRecord, fenced bool) (*Hold, error) {
	if want.Term == 0 || want.Node == "" || want.Instance == "" {
		return nil, invalidf("take term %d for node %q instance %q: all three are needed", want.Term, want.Node, want.Instance)
	}
	for range takeAttempts {
		stored, version, err := c.Leader(ctx)
		opts := blob.PutOptions{IfAbsent: true}
		switch {
		case errors.Is(err, ErrNotFound):
		case err != nil:
			return nil, fmt.Errorf("take term %d: %w", want.Term, err)
		case same(stored, want):
			return &Hold{c: c, fenced: fenced, record: stored, version: version}, nil
		case stored.CheckTerm(want.Term) != nil:
			return nil, fmt.Errorf("take term %d: %w", want.Term, stored.CheckTerm(want.Term))
		case stored.Term >= want.Term:
			return nil, &FencedError{Stored: stored}
		default:
			if opts, err = ifVersion(leaderKey, version); err != nil {
				return nil, err
			}
		}
		if !fenced {
			opts = blob.PutOptions{}
		}
		want.Time = c.now()
		version, err = c.putLeader(ctx, want, nil, opts)
		switch {
		case errors.Is(err, ErrConflict):
			continue
		case err != nil:
			return nil, fmt.Errorf("take term %d: %w", want.Term, err)
		case !fenced:
			if stored, version, err = c.Leader(ctx); err != nil {
				return nil, fmt.Errorf("take term %d: %w", want.Term, err)
			}
			if !same(stored, want) {
				return nil, &FencedError{Stored: stored}
			}
		}
		return &Hold{c: c, fenced: fenced, record: want, version: version}, nil
	}
	return nil, fmt.Errorf("take term %d: lost %d races for %s: %w", want.Term, takeAttempts, leaderKey, ErrTransient)
}

// Show sets what the leader knows, as EncodeStatus has encoded it. It is stored with the next heartbeat.
func (h *Hold) Show(status []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.status = status
}

// Heartbeat writes the record anew with the time of now, if it is still ours. A *FencedError means that the leadership is over;
// any other error says nothing about that.
func (h *Hold) Heartbeat(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	next := h.record
	next.Time = h.c.now()
	opts, err := ifVersion(leaderKey, h.version)
	if err != nil {
		return err
	}
	if !h.fenced {
		stored, _, err := h.c.Leader(ctx)
		if err != nil {
			return fmt.Errorf("refresh term %d: %w", next.Term, err)
		}
		if !same(stored, next) {
			return &FencedError{Stored: stored}
		}
		opts = blob.PutOptions{}
	}
	version, err := h.c.putLeader(ctx, next, h.status, opts)
	if err == nil {
		h.record, h.version = next, version
		return nil
	}
	if errors.Is(err, ErrConflict) || errors.Is(err, ErrNotFound) {
		if stored, _, rerr := h.c.Leader(ctx); rerr == nil && !same(stored, next) {
			return &FencedError{Stored: stored}
		}
	}
	return fmt.Errorf("refresh term %d: %w", next.Term, err)
}

func same(a, b LeaderRecord) bool {
	return a.Term == b.Term && a.Node == b.Node && a.Instance == b.Instance
}

func (c *Catalog) putLeader(ctx context.Context, r LeaderRecord, status json.RawMessage, opts blob.PutOptions) (string, error) {
	data, err := encodeOwn(leaderJSON{Version: leaderVersion, Term: r.Term, Node: r.Node, Instance: r.Instance,
		Time: r.Time.UTC(), Status: status})
	if err != nil {
		return "", err
	}
	return c.writeOwn(ctx, leaderKey, data, opts, func(stored []byte) bool {
		was, err := parseLeader(stored)
		return err == nil && same(was, r)
	})
}
