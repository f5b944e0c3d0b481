package operator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/kube"
	"github.com/etcd-manager/etcd-manager/pkg/operator/database"
	"github.com/etcd-manager/etcd-manager/pkg/putback"
)

// Bounds of a put-back: its plan is made in memory, and stored.
const (
	MaxPutBackKeys  = 200_000
	MaxPutBackBytes = 512 << 20
)

// PutBackRequest says which keys are put back, as they were when, and what happens to those that are there.
type PutBackRequest struct {
	// Key is a key, or with Prefix what keys begin with. Namespace, instead of it, is a Kubernetes namespace with all that is in it.
	Key       string
	Prefix    bool
	Namespace string
	// At is the moment, Revision the revision, Before a key: the revision before its newest deletion. At most one is set. With none of
	// them it is before the newest deletion of what is put back.
	At       time.Time
	Revision int64
	Before   string
	// Overwrite also resets keys that have another value now. Exact also removes keys that came later.
	Overwrite, Exact bool
	// WithLeases also takes keys that have, or had, a lease. One whose lease has ended comes back without, and never expires.
	WithLeases bool
	// Rate is how many keys are written in a second; 0 means catalog.DefaultPutBackRate.
	Rate int
	// Reason is the operator's own note.
	Reason string
	VerifyOptions
}

func (r PutBackRequest) check() error {
	points := 0
	for _, given := range []bool{!r.At.IsZero(), r.Revision != 0, r.Before != ""} {
		if given {
			points++
		}
	}
	switch {
	case r.Namespace != "" && r.Key != "", r.Namespace == "" && r.Key == "":
		return invalidf("a put-back needs a key or a namespace, not both")
	case points > 1 || r.Revision < 0:
		return invalidf("a put-back goes to one point: a time, a positive revision, or before a deletion")
	case r.Rate < 0 || r.Rate > catalog.MaxPutBackRate:
		return invalidf("the rate must be 1 to %d keys a second, not %d", catalog.MaxPutBackRate, r.Rate)
	}
	return nil
}

// what names in words what is put back.
func (r PutBackRequest) what() string {
	switch {
	case r.Namespace != "":
		return "namespace " + r.Namespace
	case r.Prefix:
		return "prefix " + r.Key
	}
	return r.Key
}

// deletion is whose deletion says where to go to.
func (r PutBackRequest) deletion() BeforeRequest {
	switch {
	case r.Before != "":
		return BeforeRequest{Key: r.Before}
	case r.Namespace != "":
		return BeforeRequest{Key: kube.NamespacesPrefix + r.Namespace}
	}
	return BeforeRequest{Key: r.Key, Prefix: r.Prefix}
}

func (r PutBackRequest) wanted() changelog.Wanted {
	own := func(key []byte) bool { return !bytes.HasPrefix(key, []byte(putback.PositionPrefix)) }
	w := ExtractRequest{Key: r.Key, Prefix: r.Prefix, Namespace: r.Namespace}.wanted()
	if match := w.Match; match != nil {
		w.Match = func(key []byte) bool { return own(key) && match(key) }
	} else {
		w.Match = own
	}
	return w
}

// PutBackRow counts the keys of one kind in one namespace, or below one prefix.
type PutBackRow struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	// Missing aren't there now, Changed have another value, Later came since.
	Missing int `json:"missing,omitempty"`
	Changed int `json:"changed,omitempty"`
	Later   int `json:"later,omitempty"`
}

// PutBackPlan is what a put-back would do, by what the archive knows. The leader looks again before it writes anything.
type PutBackPlan struct {
	Request PutBackRequest
	What    string
	// Then is the point, Now what the archive has last.
	Then, Now *changelog.Plan
	// Rows are sorted by kind and namespace. The rest counts all: Same need nothing, Leased are left out because of their leases,
	// Unmarked come back as they were before they were marked for deletion.
	Rows                    []PutBackRow
	Missing, Changed, Later int
	Same, Leased, Unmarked  int
	// Marked are keys that are left out: they were being deleted at the point, and the archive has nothing from before.
	Marked []string
	// Entries is what would be done, in this order, and Bytes how much is written.
	Entries []putback.Entry
	Bytes   int64
	// Undoes is the put-back that is taken back.
	Undoes *catalog.Operation

	clusterID catalog.HexID
	at        string
	manifest  *catalog.Manifest
	strict    bool
}

// PlanPutBack finds out what a put-back would do, and changes nothing. It reads the archive twice: the point, and what it has last.
func (c *Client) PlanPutBack(ctx context.Context, r PutBackRequest) (*PutBackPlan, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	t := Target{Time: r.At, Revision: r.Revision}
	if t.Time.IsZero() && t.Revision == 0 {
		d, err := c.Before(ctx, r.deletion())
		if err != nil {
			return nil, err
		}
		t.Revision = d.Revision
	}
	f, done, err := c.fetching(r.VerifyOptions)
	if err != nil {
		return nil, err
	}
	defer done()
	then, err := c.state(ctx, t, r.wanted(), f)
	if err != nil {
		return nil, err
	}
	p := &PutBackPlan{Request: r, What: r.what(), Then: then.Plan}
	if err := c.unmark(ctx, p, then, r.wanted(), f); err != nil {
		return nil, err
	}
	now, err := c.state(ctx, Target{Latest: true}, r.wanted(), f)
	if err != nil {
		return nil, err
	}
	p.Now, p.manifest = now.Plan, now.Plan.Manifest
	if p.manifest == nil || p.manifest.ClusterID == 0 {
		return nil, fmt.Errorf("backup %s doesn't say of which etcd cluster it is, so revisions can't be compared: take a backup first (create-backup)", now.Plan.Base)
	}
	p.clusterID, p.at = p.manifest.ClusterID, pointWords(then.Plan)
	if err := p.compare(then.Values, now.Values); err != nil {
		return nil, err
	}
	return p, nil
}

// pointWords names a point for records.
func pointWords(p *changelog.Plan) string {
	s := fmt.Sprintf("revision %d", p.Revision)
	if !p.Time.IsZero() {
		s += " (" + p.Time.UTC().Format(time.RFC3339) + ")"
	}
	return s
}

// fetching reads backups, each at most once.
func (c *Client) fetching(o VerifyOptions) (changelog.Fetching, func(), error) {
	exe, err := executable()
	if err != nil {
		return changelog.Fetching{}, nil, fmt.Errorf("put back: %w", err)
	}
	dir, remove, err := database.Scratch(o.TempDir)
	if err != nil {
		return changelog.Fetching{}, nil, err
	}
	have := map[string]string{}
	return changelog.Fetching{Executable: exe, Dir: dir, Fetch: func(ctx context.Context, name, path string) error {
		if have[name] == "" {
			b, _, err := c.backup(ctx, name)
			if err != nil {
				return err
			}
			kept := filepath.Join(dir, fmt.Sprintf("backup-%d.db", len(have)))
			if _, err := c.fetchFile(ctx, b, kept, o.Transfers); err != nil {
				return err
			}
			have[name] = kept
		}
		if err := os.Link(have[name], path); err != nil {
			return fmt.Errorf("put back: %w", err)
		}
		return nil
	}}, remove, nil
}

// state is what there was at a point; nothing for a single key that wasn't there.
func (c *Client) state(ctx context.Context, t Target, w changelog.Wanted, f changelog.Fetching) (*Extracted, error) {
	x, err := c.archive.Extract(ctx, t, w, f)
	var absent *changelog.AbsentError
	if errors.As(err, &absent) {
		p, err := c.archive.Plan(ctx, t)
		return &Extracted{Plan: p}, err
	}
	return x, err
}

// unmarkRounds is in how many older backups a value is looked for that wasn't marked for deletion yet.
const unmarkRounds = 4

// unmark replaces what was being deleted at the point by what it was before that: who gets it marked goes on deleting it.
func (c *Client) unmark(ctx context.Context, p *PutBackPlan, x *Extracted, w changelog.Wanted, f changelog.Fetching) error {
	isMarked := func(kv *mvccpb.KeyValue) bool { _, is := kube.DeletionAsked(kv.Value); return is }
	marked := map[string]bool{}
	for _, kv := range x.Values {
		if isMarked(kv) {
			marked[string(kv.Key)] = true
		}
	}
	good := map[string]*mvccpb.KeyValue{}
	only := changelog.Wanted{Key: w.Key, Prefix: true, Dying: kube.DeletionAsked,
		Match: func(key []byte) bool { return marked[string(key)] }}
	for t, round := (Target{Revision: x.Plan.Revision, Life: x.Plan.Incarnation}), 0; len(marked) > 0 && round < unmarkRounds; round++ {
		y, err := c.archive.Extract(ctx, t, only, f)
		if err != nil && round > 0 && ctx.Err() == nil {
			break // nothing older can be read: these are left out, and listed
		}
		if err != nil {
			return err
		}
		there := map[string]*mvccpb.KeyValue{}
		for _, kv := range y.Values {
			there[string(kv.Key)] = kv
		}
		for key := range marked {
			switch kv := there[key]; {
			case y.Before[key] != nil:
				good[key] = y.Before[key]
			case kv != nil && !isMarked(kv):
				good[key] = kv
			case kv != nil:
				continue // look further back
			}
			delete(marked, key)
		}
		if y.Plan.Manifest == nil || y.Plan.Manifest.Revision <= 1 {
			break
		}
		t.Revision = y.Plan.Manifest.Revision - 1
	}
	var left []*mvccpb.KeyValue
	for _, kv := range x.Values {
		switch {
		case !isMarked(kv):
			left = append(left, kv)
		case good[string(kv.Key)] != nil:
			left = append(left, good[string(kv.Key)])
			p.Unmarked++
		default:
			p.Marked = append(p.Marked, string(kv.Key))
		}
	}
	x.Values = left
	return nil
}

// compare makes the entries of what was then and what is now. Both are sorted by key.
func (p *PutBackPlan) compare(then, now []*mvccpb.KeyValue) error {
	r, rows := p.Request, map[PutBackRow]*PutBackRow{}
	here := map[string]*mvccpb.KeyValue{}
	for _, kv := range now {
		here[string(kv.Key)] = kv
	}
	var puts, deletes []putback.Entry
	was := map[string]bool{}
	for _, kv := range then {
		was[string(kv.Key)] = true
		cur, row := here[string(kv.Key)], rowOf(rows, kv.Key)
		if !r.WithLeases && (kv.Lease != 0 || cur != nil && cur.Lease != 0) {
			p.Leased++
			continue
		}
		e := putback.Entry{Key: kv.Key, Value: kv.Value, Lease: kv.Lease}
		switch {
		case cur == nil:
			row.Missing++
			p.Missing++
		case bytes.Equal(cur.Value, kv.Value):
			p.Same++
			continue
		default:
			row.Changed++
			p.Changed++
			if err := p.terminating(cur); err != nil {
				return err
			}
			if !r.Overwrite {
				continue
			}
			e.Seen, e.Old = cur.ModRevision, len(cur.Value)
		}
		puts = append(puts, e)
		p.Bytes += int64(len(e.Key) + len(e.Value))
	}
	for _, m := range p.Marked {
		was[m] = true
	}
	for _, kv := range now {
		switch {
		case was[string(kv.Key)]:
		case !r.WithLeases && kv.Lease != 0:
			p.Leased++
		default:
			rowOf(rows, kv.Key).Later++
			p.Later++
			if r.Exact {
				deletes = append(deletes, putback.Entry{Key: kv.Key, Value: kv.Value, Delete: true, Seen: kv.ModRevision,
					Old: len(kv.Value)})
			}
		}
	}
	sortOwnersFirst(puts)
	sortOwnersFirst(deletes)
	slices.Reverse(deletes)
	for i := range deletes {
		deletes[i].Value = nil
	}
	p.Entries = append(puts, deletes...)
	for _, row := range rows {
		if row.Missing+row.Changed+row.Later > 0 {
			p.Rows = append(p.Rows, *row)
		}
	}
	slices.SortFunc(p.Rows, func(a, b PutBackRow) int {
		return strings.Compare(a.Kind+"\x00"+a.Namespace, b.Kind+"\x00"+b.Namespace)
	})
	return p.bounded()
}

// terminating refuses to bring objects back into a namespace that is being deleted: they would be deleted with it.
func (p *PutBackPlan) terminating(now *mvccpb.KeyValue) error {
	name, ok := strings.CutPrefix(string(now.Key), kube.NamespacesPrefix)
	if _, marked := kube.DeletionAsked(now.Value); !ok || !marked || p.Request.Overwrite {
		return nil
	}
	return &TerminatingError{Namespace: name}
}

// TerminatingError says that a namespace is being deleted now, so that whatever comes back in it would be deleted again.
type TerminatingError struct{ Namespace string }

func (e *TerminatingError) Error() string {
	return fmt.Sprintf("namespace %s is being deleted now (Terminating): what comes back in it would be deleted again, unless the namespace itself is reset too", e.Namespace)
}

func (p *PutBackPlan) bounded() error {
	if len(p.Entries) > MaxPutBackKeys || p.Bytes > MaxPutBackBytes {
		return invalidf("it would write %d keys with %d bytes; a put-back takes at most %d keys and %d bytes: name a part of it, such as a longer prefix, or restore a backup",
			len(p.Entries), p.Bytes, MaxPutBackKeys, MaxPutBackBytes)
	}
	return nil
}
