package prune

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/retention"
)

const clusterID = 0xabc

// world is a store with backups and changes whose clock the test sets.
type world struct {
	t     *testing.T
	store *counting
	c     *catalog.Catalog
	now   time.Time
	rev   int64
	last  catalog.SegmentSum
}

// counting counts requests, and refuses to delete what it is told to.
type counting struct {
	blob.Store
	gets, purges int
	refuse       func(key string) error
	tried        map[string]int
}

func (c *counting) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	c.gets++
	return c.Store.Get(ctx, key, r)
}

func (c *counting) Purge(ctx context.Context, prefix string, match func(string) bool) (int, error) {
	c.purges++
	var refused error
	n, err := c.Store.Purge(ctx, prefix, func(key string) bool {
		if !match(key) {
			return false
		}
		if c.tried != nil {
			c.tried[key]++
		}
		if c.refuse != nil {
			if err := c.refuse(key); err != nil {
				refused = errors.Join(refused, err)
				return false
			}
		}
		return true
	})
	return n, errors.Join(err, refused)
}

func newWorld(t *testing.T, start string) *world {
	at, err := time.Parse(time.RFC3339, start)
	if err != nil {
		t.Fatal(err)
	}
	s := &counting{Store: blobtest.NewMemory()}
	return &world{t: t, store: s, c: catalog.New(s), now: at, rev: 1, last: catalog.NoSegment}
}

// backup writes one whose revision is the newest.
func (w *world) backup() string {
	w.t.Helper()
	name := catalog.NewBackupName(w.now, nil)
	ctx := w.t.Context()
	put, err := w.c.PutBackupData(ctx, name, catalog.DataFile, strings.NewReader("data"))
	if err != nil {
		w.t.Fatal(err)
	}
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte("data")))
	m := catalog.Manifest{Backup: name, ClusterName: "c", ClusterID: clusterID, EtcdVersion: "3.6.0", Revision: w.rev,
		Reason: "periodic", Compression: "gzip",
		Raw: catalog.Digest{Size: put.Size, SHA256: sum}, Stored: catalog.Digest{Size: put.Size, SHA256: sum},
		Started: w.now, Finished: w.now}
	if err := w.c.PutManifest(ctx, &m); err != nil {
		w.t.Fatal(err)
	}
	if err := w.c.CommitBackup(ctx, name, catalog.BackupInfo{EtcdVersion: "3.6.0", Time: w.now}); err != nil {
		w.t.Fatal(err)
	}
	return name
}

// segment writes one with so many changes, which end now.
func (w *world) segment(n int64) catalog.SegmentName {
	w.t.Helper()
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s", w.rev, w.now))
	s := catalog.SegmentName{First: w.rev + 1, Last: w.rev + n, Ended: w.now, Previous: w.last, Sum: catalog.NewSegmentSum(sum[:])}
	if err := w.c.PutSegment(w.t.Context(), catalog.IncarnationOf(clusterID), s, []byte("x")); err != nil {
		w.t.Fatal(err)
	}
	w.rev, w.last = s.Last, s.Sum
	return s
}

// run writes a backup each quarter of an hour and a segment each minute, for so many hours.
func (w *world) run(hours int) {
	for i := range hours * 60 {
		if i%15 == 0 {
			w.backup()
		}
		w.now = w.now.Add(time.Minute)
		w.segment(3)
	}
}

func (w *world) pruner() *Pruner {
	return New(w.c, Policy{Backups: retention.Default(), Changes: 24 * time.Hour})
}

// all prunes until nothing is left to do, on a clock that the world's backups can't be ahead of.
func (w *world) all(p *Pruner, clock time.Time) (backups, segments int) {
	w.t.Helper()
	for range 50 {
		r, err := p.Run(w.t.Context(), clock, Exempt{})
		if err != nil {
			w.t.Fatal(err)
		}
		backups, segments = backups+r.Backups, segments+r.Segments
		if !r.More {
			return backups, segments
		}
	}
	w.t.Fatal("it never comes to an end")
	return 0, 0
}

func (w *world) segments() []catalog.Segment {
	w.t.Helper()
	var out []catalog.Segment
	for s, err := range w.c.Segments(w.t.Context(), catalog.IncarnationOf(clusterID), 0) {
		if err != nil {
			w.t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

// TestEverySecondKept: after pruning, everything of the last day is reached from a backup that is
// left, over a gap too, and what is older is gone.
func TestEverySecondKept(t *testing.T) {
	w := newWorld(t, "2026-03-01T00:00:00Z")
	w.run(36)
	w.now = w.now.Add(7 * time.Minute)
	w.rev, w.last = w.rev+10, catalog.NoSegment // changes are lost, and the chain begins anew behind a backup
	behindGap := w.backup()
	w.now = w.now.Add(time.Minute)
	w.segment(3)
	w.now = time.Date(2026, 3, 2, 12, 15, 0, 0, time.UTC)
	w.run(10)
	clock := w.now
	backups, segments := w.all(w.pruner(), clock)
	if backups == 0 || segments == 0 {
		t.Fatalf("%d backups and %d segments were removed", backups, segments)
	}
	list, err := w.c.Backups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	reach := map[catalog.SegmentSum]bool{}
	left := w.segments()
	foundGap := false
	for _, b := range list.Backups {
		foundGap = foundGap || b.Name == behindGap
		m, err := w.c.Manifest(t.Context(), b.Name)
		if err != nil {
			t.Fatal(err)
		}
		last := map[catalog.SegmentSum]int64{}
		for _, s := range left {
			if p, ok := last[s.Previous]; s.First <= m.Revision+1 && s.Last >= m.Revision || ok && p == s.First-1 {
				last[s.Sum], reach[s.Sum] = s.Last, true
			}
		}
	}
	if !foundGap {
		t.Error("the only backup behind a gap is gone")
	}
	for _, s := range left {
		if !reach[s.Sum] {
			t.Errorf("segment %s of %s can't be reached from any backup that is left", s.SegmentName, s.Ended)
		}
		if s.Ended.Before(clock.Add(-25*time.Hour - 15*time.Minute)) {
			t.Errorf("segment of %s is still there at %s", s.Ended, clock)
		}
	}
	if n := len(left); n < 24*60-10 {
		t.Errorf("%d segments are left of a day", n)
	}
	if b, s := w.all(w.pruner(), clock); b+s != 0 {
		t.Errorf("a second pruner removes %d backups and %d segments more", b, s)
	}
}

// TestOnlyWay: of the backups that the policy gives up just that one stays by which alone kept changes are reached.
func TestOnlyWay(t *testing.T) {
	w := newWorld(t, "2026-03-01T00:00:00Z")
	w.run(5)
	w.backup() // the first of its hour
	w.now = w.now.Add(20 * time.Minute)
	w.rev, w.last = w.rev+10, catalog.NoSegment // changes are lost, and the chain begins anew behind a backup
	behindGap := w.backup()
	w.now = w.now.Add(time.Minute)
	w.segment(3)
	w.run(5)
	pl, err := w.pruner().Plan(t.Context(), w.now, Exempt{})
	if err != nil {
		t.Fatal(err)
	}
	found, gone := false, 0
	for _, d := range pl.Decisions {
		const why = "base of kept changes"
		if only := d.Keep && d.Reason == why; d.Backup != "" && only != (d.Backup == behindGap) {
			t.Errorf("%s: kept %t, %s", d.Backup, d.Keep, d.Reason)
		}
		found = found || d.Backup == behindGap
		if d.Backup != "" && !d.Keep {
			gone++
		}
	}
	if !found || gone < 20 {
		t.Errorf("%d backups go; the one behind the gap is there: %t", gone, found)
	}
}

// TestSteadyState: an hour's pruning reads few objects.
func TestSteadyState(t *testing.T) {
	w := newWorld(t, "2026-03-01T00:00:00Z")
	w.run(30)
	p := w.pruner()
	w.all(p, w.now)
	w.run(1)
	w.all(p, w.now)
	w.run(1)
	w.store.gets = 0
	r, err := p.Run(t.Context(), w.now, Exempt{})
	if err != nil || r.Segments < 40 || r.Backups < 2 {
		t.Fatalf("the run did %+v, %v", r, err)
	}
	if w.store.gets > 10 {
		t.Errorf("%d objects were read", w.store.gets)
	}
}

// TestKept: what is pinned, proven, queued or begun from stays, whatever its age.
func TestKept(t *testing.T) {
	w := newWorld(t, "2021-03-01T00:10:00Z")
	ctx := t.Context()
	w.backup()
	w.now = w.now.Add(10 * time.Minute)
	pinned := w.backup()
	base := pinned
	w.now = w.now.Add(time.Minute)
	first := w.segment(5)
	w.now = w.now.Add(10 * time.Minute)
	proven := w.backup()
	proof := catalog.Proof{At: w.now, Outcome: catalog.Proven, Base: base,
		Incarnation: catalog.IncarnationOf(clusterID), Revision: w.rev, Segments: 1}
	w.now = w.now.Add(time.Minute)
	w.segment(5)
	w.now = w.now.Add(10 * time.Minute)
	queued := w.backup()
	w.now = time.Date(2023, 3, 1, 0, 0, 0, 0, time.UTC)
	w.backup()
	w.segment(1)
	if err := errors.Join(w.c.PinBackup(ctx, pinned, "before the upgrade"), w.c.PutProof(ctx, proven, proof)); err != nil {
		t.Fatal(err)
	}
	clock := w.now.Add(time.Hour)
	p := w.pruner()
	pl, err := p.Plan(ctx, clock, Exempt{Backups: map[string]string{queued: "a queued restore names it"}})
	if err != nil {
		t.Fatal(err)
	}
	kept := map[string]string{}
	for _, d := range pl.Decisions {
		if d.Backup != "" && d.Keep {
			kept[d.Backup] = d.Reason
		}
		if d.Backup == "" && d.First == first.First && !d.Keep {
			t.Errorf("a segment of the proven chain goes: %s", d.Reason)
		}
	}
	if kept[pinned] != "pinned" {
		t.Errorf("the pinned backup: %q", kept[pinned])
	}
	if kept[proven] == "" {
		t.Errorf("the newest proven backup goes; kept are %v", kept)
	}
	if kept[queued] == "" {
		t.Errorf("the backup that a queued restore names goes; kept are %v", kept)
	}
}

// TestDenied: a store that lets nothing be deleted is asked again after an hour, then two, at most a day, and that is news once.
func TestDenied(t *testing.T) {
	w := newWorld(t, "2026-03-01T00:00:00Z")
	w.run(30)
	w.store.refuse = func(key string) error {
		return &blob.Error{Op: "purge", Key: key, Kind: blob.ErrDenied, Action: "s3:DeleteObject"}
	}
	p := w.pruner()
	clock, news := w.now, 0
	var waits []time.Duration
	for range 7 {
		r, err := p.Run(t.Context(), clock, Exempt{})
		if err != nil || r.Denied == "" {
			t.Fatalf("%+v, %v", r, err)
		}
		if r.News {
			news++
		}
		waits = append(waits, r.RetryAt.Sub(clock))
		w.store.purges = 0
		if _, err := p.Run(t.Context(), r.RetryAt.Add(-time.Second), Exempt{}); err != nil || w.store.purges != 0 {
			t.Fatalf("it is tried again too early: %d times, %v", w.store.purges, err)
		}
		clock = r.RetryAt
	}
	if got := fmt.Sprint(waits); got != "[1h0m0s 2h0m0s 4h0m0s 8h0m0s 16h0m0s 24h0m0s 24h0m0s]" || news != 1 {
		t.Errorf("the waits are %s, and it was news %d times", got, news)
	}
	w.store.refuse = nil
	if r, err := p.Run(t.Context(), clock, Exempt{}); err != nil || r.Segments == 0 || !r.RetryAt.IsZero() {
		t.Errorf("after the permission came: %+v, %v", r, err)
	}
}

// TestLocked: what the store has under lock is no error, isn't tried again before the lock ends, and goes then.
func TestLocked(t *testing.T) {
	w := newWorld(t, "2026-03-01T00:00:00Z")
	w.run(30)
	until, tried := w.now.Add(5*time.Hour), map[string]int{}
	w.store.refuse = func(key string) error {
		tried[key]++
		return &blob.Error{Op: "purge", Key: key, Kind: blob.ErrLocked, Err: &blob.LockedError{Keys: []string{key}, Until: until}}
	}
	p := w.pruner()
	r, err := p.Run(t.Context(), w.now, Exempt{})
	if err != nil || r.Locked == 0 || !r.Until.Equal(until) || r.Denied != "" {
		t.Fatalf("%+v, %v", r, err)
	}
	for i := range 10 {
		if r, err = p.Run(t.Context(), w.now.Add(time.Duration(i)*time.Minute), Exempt{}); err != nil {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	for key, n := range tried {
		if n > 1 {
			t.Fatalf("%s, which is locked, was tried %d times", key, n)
		}
	}
	w.store.refuse = nil
	if r, err = p.Run(t.Context(), until, Exempt{}); err != nil || r.Segments == 0 {
		t.Errorf("after the lock: %+v, %v", r, err)
	}
}
