package storecopy

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/prune"
	"github.com/etcd-manager/etcd-manager/pkg/retention"
)

const (
	clusterID = 0xabc
	life      = catalog.Incarnation("0000000000000abc")
	firstURL  = "file:///first"
)

var (
	errKilled   = errors.New("killed")
	errTooLarge = errors.New("EntityTooLarge")
)

// gate is a store that counts what is asked of it, and fails when it is shut, or from its n-th change on.
type gate struct {
	blob.Store
	mu       sync.Mutex
	shut     bool
	left     int // changes that still succeed; negative means all
	requests map[string]int
	bodies   int    // puts of data of backups
	denied   string // an object that may not be read
	large    string // an object that isn't stored
	full     bool   // no backup's data are stored
	tried    int    // puts of what isn't stored
}

func newGate(s blob.Store) *gate { return &gate{Store: s, left: -1, requests: map[string]int{}} }

func (g *gate) pass(op, key string, change bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.requests[op]++
	if op == "put" && strings.Contains(key, catalog.DataFile) {
		g.bodies++
	}
	if op == "get" && key == g.denied && key != "" {
		return blobtest.Denied(op, key, "s3:GetObject")
	}
	if change && g.left == 0 {
		g.shut = true
	}
	if g.shut {
		return &blob.Error{Op: op, Key: key, Kind: blob.ErrTransient, Err: errKilled}
	}
	if change && g.left > 0 {
		g.left--
	}
	return nil
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut, g.left = shut, -1
}

// count resets what was counted, and returns it.
func (g *gate) count() (requests, bodies int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, n := range g.requests {
		requests += n
	}
	bodies = g.bodies
	g.requests, g.bodies = map[string]int{}, 0
	return requests, bodies
}

func (g *gate) Put(ctx context.Context, key string, body io.Reader, o blob.PutOptions) (blob.Info, error) {
	if err := g.pass("put", key, true); err != nil {
		return blob.Info{}, err
	}
	g.mu.Lock()
	large := key == g.large && key != "" || g.full && strings.HasSuffix(key, "/"+catalog.DataFile)
	if large {
		g.tried++
	}
	g.mu.Unlock()
	if large {
		_, _ = io.Copy(io.Discard, body)
		return blob.Info{}, &blob.Error{Op: "put", Key: key, Kind: blob.ErrInvalid, Err: errTooLarge}
	}
	return g.Store.Put(ctx, key, body, o)
}

func (g *gate) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	if err := g.pass("get", key, false); err != nil {
		return nil, blob.Info{}, err
	}
	return g.Store.Get(ctx, key, r)
}

func (g *gate) Stat(ctx context.Context, key string) (blob.Info, error) {
	if err := g.pass("stat", key, false); err != nil {
		return blob.Info{}, err
	}
	return g.Store.Stat(ctx, key)
}

func (g *gate) List(ctx context.Context, prefix string, o blob.ListOptions) iter.Seq2[blob.Entry, error] {
	if err := g.pass("list", prefix, false); err != nil {
		return func(yield func(blob.Entry, error) bool) { yield(blob.Entry{}, err) }
	}
	return g.Store.List(ctx, prefix, o)
}

func (g *gate) Purge(ctx context.Context, prefix string, match func(string) bool) (int, error) {
	if err := g.pass("purge", prefix, true); err != nil {
		return 0, err
	}
	return g.Store.Purge(ctx, prefix, match)
}

// world is a first store with backups and changes, and a place for a copy.
type world struct {
	t        *testing.T
	from, to *gate
	c        *catalog.Catalog
	now      time.Time
	rev      int64
	last     catalog.SegmentSum
	policy   prune.Policy
	term     cluster.Term
}

func newWorld(t *testing.T, from, to blob.Store) *world {
	w := &world{t: t, from: newGate(from), to: newGate(to), now: time.Now().Add(-4 * time.Hour), rev: 1, last: catalog.NoSegment, term: 7,
		policy: prune.Policy{Backups: retention.Default(), Changes: 7 * 24 * time.Hour}}
	w.c = catalog.New(w.from)
	return w
}

func memoryWorld(t *testing.T) *world { return newWorld(t, blobtest.NewMemory(), blobtest.NewMemory()) }

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) put(key, content string) {
	w.t.Helper()
	_, err := w.from.Put(w.t.Context(), key, strings.NewReader(content), blob.PutOptions{})
	w.must(err)
}

// backup writes one that is dated now.
func (w *world) backup() string {
	w.t.Helper()
	name := catalog.NewBackupName(w.now, nil)
	ctx := w.t.Context()
	data := "snapshot " + name
	stored, err := w.c.PutBackupData(ctx, name, catalog.DataFile, strings.NewReader(data))
	w.must(err)
	d := catalog.Digest{Size: stored.Size, SHA256: fmt.Sprintf("%x", sha256.Sum256([]byte(data)))}
	w.must(w.c.PutManifest(ctx, &catalog.Manifest{Backup: name, ClusterName: "c", ClusterID: clusterID, EtcdVersion: "3.6.0", Revision: w.rev,
		Reason: "periodic", Compression: "gzip", Raw: d, Stored: d, Started: w.now, Finished: w.now}))
	w.must(w.c.CommitBackup(ctx, name, catalog.BackupInfo{EtcdVersion: "3.6.0", Time: w.now}))
	return name
}

// made is a segment that isn't in any store.
func (w *world) made() (catalog.SegmentName, []byte) {
	data := fmt.Appendf(nil, "changes after %d", w.rev)
	sum := sha256.Sum256(data)
	n := catalog.SegmentName{First: w.rev + 1, Last: w.rev + 3, Ended: w.now.UTC().Truncate(time.Millisecond), Previous: w.last,
		Sum: catalog.NewSegmentSum(sum[:])}
	w.rev, w.last = n.Last, n.Sum
	return n, data
}

func (w *world) segment() catalog.SegmentName {
	w.t.Helper()
	n, data := w.made()
	w.must(w.c.PutSegment(w.t.Context(), life, n, data))
	return n
}

// run writes a backup each half hour and a segment each minute.
func (w *world) run(minutes int) {
	for i := range minutes {
		if i%30 == 0 {
			w.backup()
		}
		w.now = w.now.Add(time.Minute)
		w.segment()
	}
}

// control writes all that lies beside backups and changes, whether it is copied or not.
func (w *world) control() {
	w.t.Helper()
	ctx := w.t.Context()
	_, err := w.c.CreateSpec(ctx, cluster.Spec{MemberCount: 3, EtcdVersion: "3.6.0"})
	w.must(err)
	_, err = w.c.CreateMarker(ctx, catalog.Marker{Phase: catalog.PhaseFormed, Token: "T1", Term: 5, Leader: "a"})
	w.must(err)
	w.must(w.c.PutServing(ctx, catalog.Serving{Incarnation: life, ClusterID: clusterID, Token: "T1", Term: 5, Node: "a"}))
	w.must(w.c.CreateIncarnation(ctx, catalog.IncarnationRecord{ID: life, ClusterName: "c", ClusterID: clusterID}))
	w.must(w.c.PutSettings(ctx, cluster.Settings{"quota-backend-bytes": "8589934592"}, ""))
	for id, state := range map[string]catalog.OperationState{"2026-01-01T00:00:00Z-000000": catalog.StateDone,
		"2026-01-02T00:00:00Z-000000": catalog.StateStaging} {
		_, err := w.c.PutOperation(ctx, catalog.Operation{ID: id, Kind: catalog.KindRestore, State: state, Backup: "x",
			Spec: cluster.Spec{MemberCount: 3}, Created: w.now, Updated: w.now}, "")
		w.must(err)
	}
	w.put("control/leader", `{"version":1,"term":5,"node":"a","instance":"i"}`)
	w.put("control/2026-01-03T00:00:00Z-000000/_command.json", "{}")
	w.put("control/status/a.json", "{}")
	w.put("control/survivors.json", "{}")
	w.put("discovery/a", "{}")
	w.put("volumes/a", "{}")
	w.put("put-back/s/plan-100001", "x")
}

func (w *world) copier() *Copier {
	w.t.Helper()
	c, err := New(Config{From: w.c, FromName: firstURL, To: catalog.New(w.to), ToName: "file:///copy", ClusterName: "c", Node: "a",
		Term: w.term, Retention: w.policy, Now: func() time.Time { return w.now }})
	w.must(err)
	c.begun = w.now
	return c
}

// pass works once; what isn't copied is an error too.
func (c *Copier) pass(ctx context.Context) error {
	return cmp.Or(c.work(ctx), c.later.lacks(c.bad))
}

func all(t *testing.T, s blob.Store) map[string]string {
	t.Helper()
	out := map[string]string{}
	for e, err := range s.List(context.Background(), "", blob.ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		r, _, err := s.Get(context.Background(), e.Key, blob.Range{})
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		_ = r.Close()
		if err != nil {
			t.Fatal(err)
		}
		out[e.Key] = string(data)
	}
	return out
}

// neverCopied are what a copy must not have.
func neverCopied(key string) bool {
	for _, p := range []string{"control/leader", "control/copies.json", "control/2026-01-03", "control/status/", "control/survivors.json",
		"discovery/", "volumes/",
		"put-back/", "control/operations/2026-01-02"} {
		if strings.HasPrefix(key, p) {
			return true
		}
	}
	return false
}

// same fails unless the copy has exactly what it must have of the first store.
func (w *world) same() {
	w.t.Helper()
	want, have := all(w.t, w.from.Store), all(w.t, w.to.Store)
	maps.DeleteFunc(want, func(k, _ string) bool { return neverCopied(k) })
	delete(have, "control/copy.json")
	if s, ok := have["control/serving.json"]; ok {
		if !strings.Contains(s, `"term": 0`) {
			w.t.Errorf("the serving record of the copy has a term: %s", s)
		}
		have["control/serving.json"] = want["control/serving.json"]
	}
	for k, v := range want {
		if have[k] != v {
			w.t.Errorf("the copy has %q at %s, the first store %q", have[k], k, v)
		}
	}
	for k := range have {
		if _, ok := want[k]; !ok {
			w.t.Errorf("the copy has %s, which it must not have", k)
		}
	}
}

// sound fails if the copy shows anything that isn't there.
func (w *world) sound() {
	w.t.Helper()
	objects := all(w.t, w.to.Store)
	for key := range objects {
		name, ok := strings.CutSuffix(key, "/_etcd_backup.meta")
		if ok && (objects[name+"/"+catalog.DataFile] != "snapshot "+name || objects[name+"/_etcd_manager_manifest.json"] == "") {
			w.t.Errorf("the copy shows backup %s, which isn't whole there", name)
		}
		if neverCopied(key) {
			w.t.Errorf("the copy has %s", key)
		}
	}
}
