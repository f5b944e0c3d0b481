package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/envelope"
)

const (
	putBackFile     = "_put-back.json"
	putBacksPrefix  = "put-back/"
	putBackVersion  = 1
	maxPutBackPart  = 64 << 20 // bytes, as stored
	maxPutBackParts = 10_000
)

// PutBack is a queued put-back: keys that the leader writes again, or removes, while the cluster serves. What to do with which
// key stands in the parts of a set; this says how.
type PutBack struct {
	// Set is the directory of the parts, made before the command. Parts is how many of kind PutBackPlan there are.
	Set   string `json:"set"`
	Parts int    `json:"parts"`
	// Entries counts the keys, Bytes their values.
	Entries int   `json:"entries"`
	Bytes   int64 `json:"bytes"`
	// ClusterID is the etcd cluster whose revisions the plan names. In another one they mean nothing.
	ClusterID HexID `json:"clusterId"`
	// What is put back, and At of when, in words for the operator.
	What string `json:"what"`
	At   string `json:"at"`
	// Overwrite resets what has another value now. Strict leaves out keys whose lease has ended: they would have ended with it.
	Overwrite bool `json:"overwrite,omitempty"`
	Strict    bool `json:"strict,omitempty"`
	// Rate is how many keys are written in a second; 0 means DefaultPutBackRate.
	Rate int `json:"rate,omitempty"`
	// Undoes is the operation that this one takes back; empty if it takes back none.
	Undoes string `json:"undoes,omitempty"`
	// Reason is the operator's own note.
	Reason string `json:"reason,omitempty"`
	// Canceled has the leader end it where it is.
	Canceled bool `json:"canceled,omitempty"`
	// Progress is nil until a leader has begun.
	Progress *PutBackProgress `json:"-"`
}

// Bounds of a put-back. The rate is in keys a second.
const (
	DefaultPutBackRate = 500
	MaxPutBackRate     = 10_000
)

// PutBackCounts counts keys by what became of them.
type PutBackCounts struct {
	// Created were missing, Replaced had another value, Removed are gone now.
	Created  int `json:"created,omitempty"`
	Replaced int `json:"replaced,omitempty"`
	Removed  int `json:"removed,omitempty"`
	// Same were already as wanted.
	Same int `json:"same,omitempty"`
	// Left were left alone: somebody has changed them since.
	Left int `json:"left,omitempty"`
}

// Written counts what was changed.
func (c PutBackCounts) Written() int { return c.Created + c.Replaced + c.Removed }

// Done counts all.
func (c PutBackCounts) Done() int { return c.Written() + c.Same + c.Left }

// PutBackProgress is how far a leader is with a put-back.
type PutBackProgress struct {
	At time.Time `json:"at"`
	// Begun is when the first leader began, by its clock.
	Begun time.Time      `json:"begun,omitzero"`
	Node  cluster.NodeID `json:"node,omitempty"`
	Term  cluster.Term   `json:"term,omitempty"`
	PutBackCounts
	// Waiting says what it waits for, or why the last attempt has failed; it goes on by itself.
	Waiting string `json:"waiting,omitempty"`
}

// PutBackRecord is what the record of an ended put-back says.
type PutBackRecord struct {
	PutBack
	PutBackCounts
}

type putBackJSON struct {
	Version   int   `json:"version"`
	Timestamp nanos `json:"timestamp"`
	PutBack
}

type putBackProgressJSON struct {
	Version int `json:"version"`
	PutBackProgress
}

func (p *PutBack) check() error {
	switch {
	case validName("set", p.Set) != nil:
		return fmt.Errorf("its set %q is not a valid name", p.Set)
	case p.Parts < 0 || p.Parts > maxPutBackParts || p.Entries < 0:
		return fmt.Errorf("it names %d parts with %d keys", p.Parts, p.Entries)
	case p.Rate < 0 || p.Rate > MaxPutBackRate:
		return fmt.Errorf("its rate is %d keys a second, and must be 0 to %d", p.Rate, MaxPutBackRate)
	case p.ClusterID == 0:
		return errors.New("it names no etcd cluster")
	}
	return nil
}

// QueuePutBack queues a put-back whose parts are stored. The leader begins as soon as it sees the command.
func (c *Catalog) QueuePutBack(ctx context.Context, p PutBack) (Command, error) {
	if err := p.check(); err != nil {
		return Command{}, invalidf("queue put-back: %v", err)
	}
	now := c.now().UTC()
	cmd := Command{Time: time.Unix(0, now.UnixNano()).UTC(), PutBack: &p}
	data, err := encodeOwn(putBackJSON{Version: putBackVersion, Timestamp: nanos(now.UnixNano()), PutBack: p})
	if err != nil {
		return Command{}, err
	}
	return c.queue(ctx, cmd, now, func(cmd Command) (string, error) {
		return c.writeOwn(ctx, controlPrefix+cmd.Name+"/"+putBackFile, data, blob.PutOptions{IfAbsent: true}, nil)
	})
}

// putBack reads a queued put-back.
func (c *Catalog) putBack(ctx context.Context, name, way string) (Command, error) {
	dir := controlPrefix + name + "/"
	data, info, err := c.read(ctx, dir+putBackFile, way)
	if err != nil {
		return Command{}, err
	}
	var j putBackJSON
	if err := decodeOwn(dir+putBackFile, way, data, putBackVersion, &j); err != nil {
		return Command{}, err
	}
	if err := j.check(); err != nil {
		return Command{}, corrupt(dir+putBackFile, way, err)
	}
	cmd := Command{Name: name, Time: time.Unix(0, int64(j.Timestamp)).UTC(), PutBack: &j.PutBack, Stamp: stamp(info)}
	data, _, err = c.read(ctx, dir+progressFile, way)
	if errors.Is(err, ErrNotFound) || unreadable(err) {
		return cmd, nil
	}
	if err != nil {
		return Command{}, err
	}
	var p putBackProgressJSON
	if err := decodeOwn(dir+progressFile, way, data, progressVersion, &p); err == nil {
		cmd.PutBack.Progress = &p.PutBackProgress
	}
	return cmd, nil // the progress is only shown: where to go on stands elsewhere
}

// CancelPutBack has the leader end a queued put-back where it is. ErrNotFound if it isn't queued any more.
func (c *Catalog) CancelPutBack(ctx context.Context, name string) error {
	if err := validName("command", name); err != nil {
		return err
	}
	key := controlPrefix + name + "/" + putBackFile
	for range ownAttempts {
		data, info, err := c.read(ctx, key, "")
		if err != nil {
			return err
		}
		var j putBackJSON
		if err := decodeOwn(key, "", data, putBackVersion, &j); err != nil {
			return err
		}
		if j.Canceled {
			return nil
		}
		j.Canceled = true
		if data, err = encodeOwn(j); err != nil {
			return err
		}
		opts, err := ifVersion(key, info.Version)
		if err != nil {
			return err
		}
		if _, err = c.writeOwn(ctx, key, data, opts, nil); !errors.Is(err, ErrConflict) {
			return err
		}
	}
	return fmt.Errorf("write %s: it changes all the time: %w", key, ErrConflict)
}

// PutPutBackProgress shows beside a queued put-back how far a leader is with it.
func (c *Catalog) PutPutBackProgress(ctx context.Context, name string, p PutBackProgress) error {
	if err := validName("command", name); err != nil {
		return fmt.Errorf("write progress: %w", err)
	}
	data, err := encodeOwn(putBackProgressJSON{Version: progressVersion, PutBackProgress: p})
	if err != nil {
		return err
	}
	_, err = c.write(ctx, controlPrefix+name+"/"+progressFile, data, blob.PutOptions{})
	return err
}

// PutBackKind is what a part of a set holds.
type PutBackKind string

// The kinds. PutBackPlan is what to do, PutBackBefore what was there before, stored before anything is written, and PutBackResult
// what became of each key. A part has the same number in all three.
const (
	PutBackPlan   PutBackKind = "plan"
	PutBackBefore PutBackKind = "before"
	PutBackResult PutBackKind = "result"
)

func putBackPart(set string, kind PutBackKind, n int) string {
	return fmt.Sprintf("%s%s/%s-%06d", putBacksPrefix, set, kind, n)
}

// PutPutBackPart stores a part, sealed where the catalog has a key. It never replaces one: ErrConflict.
func (c *Catalog) PutPutBackPart(ctx context.Context, set string, kind PutBackKind, n int, data []byte) error {
	return c.putPutBackPart(ctx, c.sealer, set, kind, n, data)
}

// PutPutBackPartFor does the same with the keys of a sealer.
func (c *Catalog) PutPutBackPartFor(ctx context.Context, s envelope.Sealer, set string, kind PutBackKind, n int, data []byte) error {
	return c.putPutBackPart(ctx, s, set, kind, n, data)
}

func (c *Catalog) putPutBackPart(ctx context.Context, s envelope.Sealer, set string, kind PutBackKind, n int, data []byte) error {
	if err := validName("set", set); err != nil {
		return err
	}
	key := putBackPart(set, kind, n)
	if s != nil {
		sealed, err := envelope.SealBytes(ctx, s, data, key)
		if err != nil {
			return fmt.Errorf("write %s: %w", key, err)
		}
		data = sealed
	}
	_, err := c.write(ctx, key, data, blob.PutOptions{IfAbsent: true})
	return err
}

// ageMark begins every envelope.
const ageMark = "age-encryption.org/"

// PutBackPart reads a part; ErrNotFound if there is none.
func (c *Catalog) PutBackPart(ctx context.Context, set string, kind PutBackKind, n int) ([]byte, error) {
	if err := validName("set", set); err != nil {
		return nil, err
	}
	key := putBackPart(set, kind, n)
	r, _, err := c.store.Get(ctx, key, blob.Range{})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxPutBackPart+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", key, err)
	case len(data) > maxPutBackPart:
		return nil, corrupt(key, "", fmt.Errorf("it is larger than %d bytes", maxPutBackPart))
	case !bytes.HasPrefix(data, []byte(ageMark)):
		return data, nil
	case c.opener == nil:
		return nil, fmt.Errorf("read %s: %w", key, &envelope.Error{Op: "open", Binding: key, Kind: envelope.ErrNoKey})
	}
	plain, err := envelope.OpenBytes(ctx, c.opener, data, key)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	return plain, nil
}

// PutBackSet says which parts of a set are stored.
type PutBackSet map[PutBackKind]map[int]bool

// PutBackSet lists a set; an empty one has no parts.
func (c *Catalog) PutBackSet(ctx context.Context, set string) (PutBackSet, error) {
	if err := validName("set", set); err != nil {
		return nil, err
	}
	out := PutBackSet{PutBackPlan: {}, PutBackBefore: {}, PutBackResult: {}}
	prefix := putBacksPrefix + set + "/"
	for e, err := range c.store.List(ctx, prefix, blob.ListOptions{}) {
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", prefix, err)
		}
		kind, number, _ := strings.Cut(strings.TrimPrefix(e.Key, prefix), "-")
		if n, err := strconv.Atoi(number); err == nil && out[PutBackKind(kind)] != nil {
			out[PutBackKind(kind)][n] = true
		}
	}
	return out, nil
}

// RemovePutBackSet deletes all parts of a set. Removing one that is gone is a success.
func (c *Catalog) RemovePutBackSet(ctx context.Context, set string) error {
	if err := validName("set", set); err != nil {
		return err
	}
	if _, err := c.remove(ctx, putBacksPrefix+set+"/", func(string) bool { return true }); err != nil {
		return fmt.Errorf("remove put-back set %s: %w", set, err)
	}
	return nil
}

const (
	// PutBackKept is for how long the parts of an ended put-back are kept, so that it can be undone.
	PutBackKept = 14 * 24 * time.Hour
	// putBackOrphan is for how long parts are kept that no command and no record names.
	putBackOrphan = 24 * time.Hour
)

// PrunePutBacks deletes the parts of put-backs that ended more than PutBackKept ago, and of those that nothing names, and returns
// how many sets. What can't be read keeps all.
func (c *Catalog) PrunePutBacks(ctx context.Context) (int, error) {
	last := map[string]time.Time{}
	for e, err := range c.store.List(ctx, putBacksPrefix, blob.ListOptions{}) {
		if err != nil {
			return 0, fmt.Errorf("list %s: %w", putBacksPrefix, err)
		}
		if set, _, ok := strings.Cut(strings.TrimPrefix(e.Key, putBacksPrefix), "/"); ok && e.Modified.After(last[set]) {
			last[set] = e.Modified
		}
	}
	if len(last) == 0 {
		return 0, nil
	}
	keep, err := c.putBackSetsInUse(ctx)
	if err != nil {
		return 0, err
	}
	n := 0
	for set, at := range last {
		until, used := keep[set]
		if used && until.IsZero() || used && c.now().Before(until) || !used && c.now().Sub(at) < putBackOrphan {
			continue
		}
		if err := c.RemovePutBackSet(ctx, set); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// putBackSetsInUse are the sets that something names, with the end of their time; zero for what is queued.
func (c *Catalog) putBackSetsInUse(ctx context.Context) (map[string]time.Time, error) {
	cmds, bad, err := c.Commands(ctx)
	if err != nil {
		return nil, err
	}
	ops, badOps, err := c.Operations(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range append(bad, badOps...) {
		return nil, fmt.Errorf("no parts of put-backs are removed while %s can't be read: %w", p.Object, p.Err)
	}
	keep := map[string]time.Time{}
	for _, op := range ops {
		if op.PutBack != nil {
			keep[op.PutBack.Set] = op.Finished.Add(PutBackKept)
		}
	}
	for _, cmd := range cmds {
		if cmd.PutBack != nil {
			keep[cmd.PutBack.Set] = time.Time{}
		}
	}
	return keep, nil
}
