package changelog

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
)

var outage = flag.Duration("outage", 5*time.Second, "how long the store is away in the longest of the fault tests")

// writer changes etcd all the time.
type writer struct {
	mu   sync.Mutex
	last int64
	stop func()
}

func (w *world) write(pause time.Duration) *writer {
	ctx, cancel := context.WithCancel(w.t.Context())
	x := &writer{}
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			r, err := w.client.Put(ctx, fmt.Sprintf("/load/%d", i%50), strings.Repeat("x", 100+i%900))
			if err == nil {
				x.mu.Lock()
				x.last = r.Header.Revision
				x.mu.Unlock()
			}
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	})
	x.stop = func() { cancel(); wg.Wait() }
	w.t.Cleanup(x.stop)
	return x
}

func (x *writer) revision() int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.last
}

// whole makes sure that everything from the newest backup on is kept, and that replaying it gives what etcd has.
func (w *world) whole(r *Recorder) {
	w.t.Helper()
	for { // a write whose client has gone away may still come
		h, err := w.own.HashKV(w.t.Context(), 0)
		must(w.t, err)
		w.archived(r, h.Revision)
		p := w.plan(Target{Latest: true})
		if p.Revision == h.Revision {
			w.wantHash(p, h)
			return
		}
	}
}

// backUpAfterGaps takes a backup whenever the recorder asks for one, as the leader does.
func (w *world) backUpAfterGaps() (taken func() []string) {
	ctx, cancel := context.WithCancel(w.t.Context())
	var mu sync.Mutex
	var reasons []string
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case why := <-w.gaps:
				w.backup()
				mu.Lock()
				reasons = append(reasons, why)
				mu.Unlock()
			}
		}
	})
	w.t.Cleanup(func() { cancel(); wg.Wait() })
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string(nil), reasons...)
	}
}

// TestStoreFaults has the store fail in many ways while etcd is written to and compacted every two
// seconds: nothing is lost, as segments wait on the disk.
func TestStoreFaults(t *testing.T) {
	testutil.Long(t)
	w := newWorld(t, "etcd-3.6", "3.6.16")
	taken := w.backUpAfterGaps()
	dir := t.TempDir()
	r, _ := w.record(func(c *Config) { c.Dir = dir })
	eventually(t, "the first backup", func() bool { return len(taken()) == 1 })
	x := w.write(2 * time.Millisecond)
	defer x.stop()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(2 * time.Second):
				_ = w.own.Compact(ctx, x.revision(), false)
			}
		}
	}()
	segment := func(key string) bool { return strings.HasPrefix(key, "changes/") }
	for _, f := range []struct {
		name  string
		fault blobtest.Fault
		lasts time.Duration
	}{
		{"away for a second", blobtest.Fault{Match: segment, Err: blobtest.Transient("put", "x")}, time.Second},
		{"away for long", blobtest.Fault{Match: segment, Err: blobtest.Transient("put", "x")}, *outage},
		{"a storm of refusals", blobtest.Fault{Op: "put", Match: segment, Err: blobtest.Transient("put", "x"), Times: 9}, 3 * time.Second},
		{"answers are lost", blobtest.Fault{Op: "put", Match: segment, Err: blobtest.Transient("put", "x"), After: true, Times: 4},
			2 * time.Second},
		{"slow", blobtest.Fault{Op: "put", Match: segment, Latency: 800 * time.Millisecond}, 4 * time.Second},
		{"denied", blobtest.Fault{Op: "put", Match: segment, Err: blobtest.Denied("put", "x", "s3:PutObject")}, 2 * time.Second},
	} {
		remove := w.store.Add(f.fault)
		until := time.After(f.lasts)
		said := false
		for waiting := true; waiting; {
			select {
			case <-until:
				waiting = false
			case <-time.After(20 * time.Millisecond):
				said = said || r.Status().Error != ""
			}
		}
		if f.fault.Err != nil && f.fault.Times == 0 && !said { // a machine that is busy may not have come to it yet
			eventually(t, f.name+": the status says it", func() bool { return r.Status().Error != "" })
		}
		remove()
		w.archived(r, x.revision())
	}
	x.stop()
	w.whole(r)
	if s := r.Status(); s.Gaps != 0 || s.Spilled != 0 || s.Waiting != 0 || s.Error != "" {
		t.Errorf("%+v", s)
	}
	if n := len(taken()); n != 1 {
		t.Errorf("%d backups had to be taken: %v", n, taken())
	}
}

// TestSpillBound has the store away until no more can be kept here, while etcd compacts: changes
// are lost, which is said, and a full backup heals the chain.
func TestSpillBound(t *testing.T) {
	w := newWorld(t, "etcd-3.6", "3.6.16")
	taken := w.backUpAfterGaps()
	r, _ := w.record(func(c *Config) { c.Dir, c.SpillBytes, c.Interval = t.TempDir(), 4<<10, 100*time.Millisecond })
	eventually(t, "the first backup", func() bool { return len(taken()) == 1 })
	x := w.write(time.Millisecond)
	defer x.stop()
	remove := w.store.Add(blobtest.Fault{Op: "put",
		Match: func(key string) bool { return strings.HasPrefix(key, "changes/") }, Err: blobtest.Transient("put", "x")})
	eventually(t, "no more is kept", func() bool { return strings.Contains(r.Status().Error, "no more changes can be kept") })
	if s := r.Status(); s.Spilled > 4<<10 {
		t.Errorf("%d bytes are on the disk", s.Spilled)
	}
	at := x.revision()
	eventually(t, "more is written", func() bool { return x.revision() > at+20 })
	must(t, w.own.Compact(t.Context(), x.revision(), true))
	remove()
	eventually(t, "the gap is found", func() bool { return r.Status().Gaps == 1 })
	eventually(t, "a backup is taken", func() bool { return len(taken()) == 2 })
	if s := r.Status(); !strings.Contains(s.LastGap, "compacted") {
		t.Errorf("%+v", s)
	}
	at2 := x.revision()
	eventually(t, "more is written", func() bool { return x.revision() > at2 })
	x.stop()
	w.whole(r)
	// Before the gap everything is still there, in it nothing is, and that is said.
	if _, err := w.archive.Plan(t.Context(), Target{Revision: at + 10}); err == nil ||
		!strings.Contains(err.Error(), "compacted by etcd before they could be kept") {
		t.Errorf("a point in the gap: %v", err)
	}
}

// TestWriters has recorders follow on each other, killed and in order, and two at the same time: the chain has no gap.
func TestWriters(t *testing.T) {
	w := newWorld(t, "etcd-3.6", "3.6.16")
	taken := w.backUpAfterGaps()
	r, stop := w.record(nil)
	eventually(t, "the first backup", func() bool { return len(taken()) == 1 })
	x := w.write(2 * time.Millisecond)
	defer x.stop()
	for i := range 6 {
		w.archived(r, x.revision())
		var next *Recorder
		var stopNext func()
		if i%2 == 0 { // both at once for a while
			next, stopNext = w.record(func(c *Config) { c.Node, c.Term = "b", 2 })
			w.archived(next, x.revision())
			w.archived(r, x.revision())
			stop()
		} else {
			stop()
			at := x.revision()
			eventually(t, "something is written between the two", func() bool { return x.revision() > at+10 })
			next, stopNext = w.record(func(c *Config) { c.Node, c.Term = "c", 3 })
		}
		r, stop = next, stopNext
	}
	x.stop()
	w.whole(r)
	if s := r.Status(); s.Gaps != 0 || len(taken()) != 1 {
		t.Errorf("%+v, backups because of %v", s, taken())
	}
	v, err := w.archive.Verify(t.Context(), w.backup().Backup, VerifyOptions{Executable: self(t), Dir: t.TempDir() + "/verify"})
	if err != nil || v.ChainProblem != "" {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestEtcdDies has etcd killed again and again: every acknowledged write is kept.
func TestEtcdDies(t *testing.T) {
	w := newWorld(t, "etcd-3.6", "3.6.16")
	taken := w.backUpAfterGaps()
	r, _ := w.record(nil)
	eventually(t, "the first backup", func() bool { return len(taken()) == 1 })
	x := w.write(2 * time.Millisecond)
	for range 3 {
		at := x.revision()
		eventually(t, "etcd is written to", func() bool { return x.revision() > at+50 })
		w.kill()
		w.start()
		w.serves()
	}
	at := x.revision()
	eventually(t, "etcd is written to", func() bool { return x.revision() > at+50 })
	x.stop()
	w.whole(r)
	if s := r.Status(); s.Gaps != 0 {
		t.Errorf("%+v", s)
	}
}

// TestEtcdStops has etcd stop while it is recorded from: it doesn't have to wait for the stream until its requests time out.
func TestEtcdStops(t *testing.T) {
	w := newWorld(t, "etcd-3.6", "3.6.16")
	taken := w.backUpAfterGaps()
	r, _ := w.record(nil)
	eventually(t, "the first backup", func() bool { return len(taken()) == 1 })
	w.archived(r, w.put("/a", "1"))
	must(t, w.proc.Signal(syscall.SIGTERM))
	select {
	case <-w.proc.Done():
	case <-time.After(4 * time.Second): // etcd waits for 6 s with this election timeout
		t.Error("etcd waits for the stream of changes")
		w.kill()
	}
	w.start()
	w.serves()
	w.archived(r, w.put("/a", "2"))
	w.whole(r)
}

// TestSpillSurvives has a recorder die while the store is away: its successor on the same node
// stores what was spilled, although etcd doesn't have it any more.
func TestSpillSurvives(t *testing.T) {
	w := newWorld(t, "etcd-3.6", "3.6.16")
	taken := w.backUpAfterGaps()
	dir := t.TempDir()
	r, stop := w.record(func(c *Config) { c.Dir, c.Interval = dir, 100*time.Millisecond })
	eventually(t, "the first backup", func() bool { return len(taken()) == 1 })
	w.archived(r, w.put("/a", "1"))
	remove := w.store.Add(blobtest.Fault{Op: "put",
		Match: func(key string) bool { return strings.HasPrefix(key, "changes/") }, Err: blobtest.Transient("put", "x")})
	var last int64
	eventually(t, "segments are on the disk", func() bool {
		last = w.put("/b", fmt.Sprint(last))
		time.Sleep(20 * time.Millisecond)
		return r.Status().Spilled > 1000
	})
	stop()
	remove()
	must(t, w.own.Compact(t.Context(), last, true))
	r, _ = w.record(func(c *Config) { c.Dir = dir })
	w.whole(r)
	if s := r.Status(); s.Gaps != 0 || len(taken()) != 1 {
		t.Errorf("%+v, %v", s, taken())
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*", "*")); err != nil || len(left) > 0 {
		t.Errorf("%v lie there still, %v", left, err)
	}
}

// TestSpillLost has what waits on the disk for the store deleted or damaged: nothing false is stored, and what is lost is asked for again.
func TestSpillLost(t *testing.T) {
	for name, hurt := range map[string]func(path string) error{
		"deleted": os.Remove,
		"damaged": func(path string) error { return os.WriteFile(path, []byte("not what was written"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "etcd-3.6", "3.6.16")
			taken := w.backUpAfterGaps()
			dir := t.TempDir()
			r, stop := w.record(func(c *Config) { c.Dir, c.Interval = dir, 100*time.Millisecond })
			eventually(t, "the first backup", func() bool { return len(taken()) == 1 })
			w.archived(r, w.put("/a", "1"))
			remove := w.store.Add(blobtest.Fault{Op: "put",
				Match: func(key string) bool { return strings.HasPrefix(key, "changes/") }, Err: blobtest.Transient("put", "x")})
			var last int64
			eventually(t, "segments are on the disk", func() bool {
				last = w.put("/b", fmt.Sprint(last))
				time.Sleep(20 * time.Millisecond)
				return r.Status().Spilled > 1000
			})
			files, err := filepath.Glob(filepath.Join(dir, "*", "*"))
			must(t, err)
			must(t, hurt(files[len(files)/2]))
			remove()
			eventually(t, "the recorder ends and says why", func() bool {
				return w.running.Load() == 0 && strings.Contains(r.Status().Error, errLost.Error())
			})
			stop()
			r, _ = w.record(func(c *Config) { c.Dir = dir })
			w.archived(r, last)
			w.whole(r)
			if s := r.Status(); s.Gaps != 0 || len(taken()) != 1 {
				t.Errorf("%+v, %v", s, taken())
			}
		})
	}
}

// TestLateChanges looks at what is known of times when a recorder comes late: a change that it didn't see being made is dated to a span.
func TestLateChanges(t *testing.T) {
	w := newWorld(t, "etcd-3.6", "3.6.16")
	r, stop := w.record(nil)
	<-w.gaps
	w.backup()
	w.archived(r, w.put("/seen", "1"))
	stop()
	before := time.Now()
	unseen := w.put("/unseen", "1")
	time.Sleep(100 * time.Millisecond)
	after := time.Now()
	r, _ = w.record(nil)
	eventually(t, "the change has come", func() bool { return r.Status().Seen >= unseen })
	w.archived(r, w.put("/seen", "2"))
	p := w.plan(Target{Revision: unseen})
	if p.Uncertain.IsZero() || p.Uncertain.After(before) || p.Time.Before(after) {
		t.Errorf("revision %d was made at some time from %s to %s, want from before %s to after %s", unseen,
			p.Uncertain, p.Time, before, after)
	}
	if p := w.plan(Target{Revision: unseen + 1}); !p.Uncertain.IsZero() {
		t.Errorf("the next one is uncertain too: %+v", p)
	}
}

// TestLeases has leases come back with the time that they were granted for.
func TestLeases(t *testing.T) {
	w := newWorld(t, "etcd-3.6", "3.6.16")
	r, stop := w.record(nil)
	<-w.gaps
	w.backup()
	g, err := w.client.Grant(t.Context(), 4321)
	must(t, err)
	rev := w.put("/leased", "1", clientv3.WithLease(g.ID))
	w.archived(r, rev)
	stop()
	f := w.replay(w.plan(Target{Revision: rev}), 0)
	if f.Leases != 1 || f.LeasedKeys != 1 {
		t.Errorf("%+v", f)
	}
	var ttl int64
	for s, err := range w.catalog.Segments(t.Context(), r.Status().Incarnation, 0) {
		must(t, err)
		c, err := w.archive.read(t.Context(), s)
		must(t, err)
		must(t, c.Walk(t.Context(), nil, func(e Entry) error {
			if e.Lease.GetId() == int64(g.ID) {
				ttl = e.Lease.GetGrantedTtlSeconds()
			}
			return nil
		}))
	}
	if ttl != 4321 {
		t.Errorf("it was granted for %d seconds", ttl)
	}
}

// TestRewound has etcd begin an earlier life again, as somebody's tools can make it: it gets an incarnation of its own.
func TestRewound(t *testing.T) {
	w := newWorld(t, "etcd-3.6", "3.6.16")
	ctx := t.Context()
	_, id, err := w.own.Revision(ctx)
	must(t, err)
	b := newBuilder(999)
	must(t, b.add(client.Transaction{Revision: 1000}))
	must(t, b.mark(time.Now(), time.Time{}))
	first := catalog.IncarnationOf(id)
	must(t, w.catalog.CreateIncarnation(ctx, catalog.IncarnationRecord{ID: first, Began: time.Now()}))
	s, err := b.seal(ctx, origin{incarnation: first}, nil, "a test", nil)
	must(t, err)
	must(t, w.catalog.PutSegment(ctx, first, s.name, s.data))
	r, _ := w.record(nil)
	w.began(r)
	w.archived(r, w.put("/a", "1"))
	if got := r.Status().Incarnation; got != first+"-2" {
		t.Errorf("incarnation %s", got)
	}
	list, problems, err := w.catalog.Incarnations(ctx)
	if err != nil || len(problems) > 0 || len(list) != 2 {
		t.Errorf("%+v, %v, %v", list, problems, err)
	}
	w.backup()
	w.archived(r, w.put("/a", "2"))
	w.whole(r)
}
