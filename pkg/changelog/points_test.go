package changelog

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

var seed = flag.Uint64("seed", 0, "repeats a run of the random tests")

func newRand(t testing.TB) *rand.Rand {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed=%d", s)
	return rand.New(rand.NewPCG(s, 1))
}

// point is a state of the live etcd.
type point struct {
	at   time.Time
	hash etcd.HashKV
}

// workload changes etcd at random: puts, deletions, transactions of several keys, leases that end, compactions.
type workload struct {
	w      *world
	r      *rand.Rand
	leases []clientv3.LeaseID
	last   int64
	// compacted is up to where it has compacted.
	compacted int64
	// keep leaves out compactions, which can overtake those that follow.
	keep bool
	// kept, if set, is the newest revision that may be compacted: on a busy machine a compaction overtakes the recorder else.
	kept func() int64
}

func (l *workload) step(ctx context.Context) error {
	c, r := l.w.client, l.r
	key := func() string { return fmt.Sprintf("/key/%03d", r.IntN(300)) }
	value := func() string { return fmt.Sprintf("%0*d", 1+r.IntN(2000), r.IntN(1e9)) }
	var opts []clientv3.OpOption
	if len(l.leases) > 0 && r.IntN(4) == 0 {
		opts = append(opts, clientv3.WithLease(l.leases[r.IntN(len(l.leases))]))
	}
	switch n := r.IntN(100); {
	case n < 55:
		p, err := c.Put(ctx, key(), value(), opts...)
		if err != nil {
			l.leases = nil // one of them has ended
			return nil
		}
		l.last = p.Header.Revision
	case n < 65:
		p, err := c.Delete(ctx, key())
		if err != nil {
			return err
		}
		l.last = p.Header.Revision
	case n < 70:
		p, err := c.Delete(ctx, fmt.Sprintf("/key/%02d", r.IntN(30)), clientv3.WithPrefix())
		if err != nil {
			return err
		}
		l.last = p.Header.Revision
	case n < 85:
		var ops []clientv3.Op
		seen := map[string]bool{}
		for range 1 + r.IntN(20) {
			k := key()
			if seen[k] {
				continue
			}
			seen[k] = true
			if r.IntN(3) == 0 {
				ops = append(ops, clientv3.OpDelete(k))
			} else {
				ops = append(ops, clientv3.OpPut(k, value()))
			}
		}
		p, err := c.Txn(ctx).Then(ops...).Commit()
		if err != nil {
			return err
		}
		l.last = p.Header.Revision
	case n < 93:
		g, err := c.Grant(ctx, int64(1+r.IntN(100)))
		if err != nil {
			return err
		}
		l.leases = append(l.leases, g.ID)
	case n < 96 && len(l.leases) > 0:
		if _, err := c.Revoke(ctx, l.leases[0]); err != nil {
			return nil // it has ended by itself
		}
		l.leases = l.leases[1:]
	case n < 98 && l.last > 20 && !l.keep:
		to, physical := l.last-int64(r.IntN(20)), r.IntN(2) == 0
		if l.kept != nil {
			to = min(to, l.kept())
		}
		if to <= l.compacted {
			return nil
		}
		l.compacted = to
		return l.w.own.Compact(ctx, to, physical)
	}
	return nil
}

// TestPoints records a random workload on each version of etcd, with backups in between, and goes
// back to twenty points of it by revision and by time.
func TestPoints(t *testing.T) {
	testutil.Long(t)
	for _, v := range []struct{ binary, version string }{{"etcd-3.5", "3.5.35"}, {"etcd-3.6", "3.6.16"}, {"etcd-3.7", "3.7.3"}} {
		t.Run(v.version, func(t *testing.T) {
			w := newWorld(t, v.binary, v.version)
			ctx := t.Context()
			r, stop := w.record(nil)
			w.put("/first", "1")
			w.backup()
			load := &workload{w: w, r: newRand(t), kept: func() int64 { return r.Status().Seen }}
			var points []point
			for len(points) < 20 {
				for range 40 + load.r.IntN(80) {
					must(t, load.step(ctx))
				}
				if len(points)%7 == 3 {
					w.backup()
				}
				points = append(points, w.point(r))
			}
			last := w.put("/last", "1") // so that something is known of the time behind the last point
			w.archived(r, last)
			stop()
			for i, p := range points {
				byRevision := w.plan(Target{Revision: p.hash.Revision})
				byTime := w.plan(Target{Time: p.at})
				if byRevision.Revision != p.hash.Revision || byTime.Revision != p.hash.Revision {
					t.Errorf("point %d: revision %d is planned as %d, and as %d by its time %s", i, p.hash.Revision,
						byRevision.Revision, byTime.Revision, p.at)
				}
				w.wantHash(byTime, p.hash)
			}
			latest := w.plan(Target{Latest: true})
			if latest.Revision < last { // a lease may have ended since
				t.Errorf("the newest is revision %d, want %d", latest.Revision, last)
			}
		})
	}
}

// point remembers the state of now. Nothing may be written meanwhile; a lease may still end, so it
// looks until it is the same before and after. A change is kept with the time at which it came, so
// it waits until the last one has come.
func (w *world) point(r *Recorder) point {
	w.t.Helper()
	for {
		h, err := w.own.HashKV(w.t.Context(), 0)
		must(w.t, err)
		eventually(w.t, fmt.Sprintf("revision %d has come", h.Revision), func() bool { return r.Status().Seen >= h.Revision })
		at := time.Now()
		time.Sleep(5 * time.Millisecond)
		again, err := w.own.HashKV(w.t.Context(), 0)
		must(w.t, err)
		if again == h {
			return point{at: at, hash: h}
		}
	}
}

// wantHash replays a plan and compares what comes out with what the live server said.
func (w *world) wantHash(p *Plan, want etcd.HashKV) {
	w.t.Helper()
	have := w.replay(p, want.CompactRevision).Hash
	if have.Revision != want.Revision || have.Hash != want.Hash {
		w.t.Errorf("replayed to revision %d with hash %d, the live etcd had %d with %d", have.Revision, have.Hash, want.Revision, want.Hash)
	}
}

// TestUnchanged asks for a time behind the last change that was kept: a backup tells whether anything has changed since.
func TestUnchanged(t *testing.T) {
	w := newWorld(t, "etcd-3.6", "3.6.16")
	r, stop := w.record(nil)
	w.put("/first", "1")
	w.backup()
	last := w.put("/last", "1")
	w.archived(r, last)
	stop()
	at := time.Now()
	_, err := w.archive.Plan(t.Context(), Target{Time: at})
	var no *UnreachableError
	if !errors.As(err, &no) {
		t.Fatalf("without a later backup: %v", err)
	}
	w.backup()
	if p := w.plan(Target{Time: at}); p.Revision != last || p.Until.Before(at) {
		t.Errorf("planned as revision %d until %s, want %d until after %s", p.Revision, p.Until, last, at)
	}
	w.put("/lost", "1")
	at = time.Now()
	w.backup()
	if _, err := w.archive.Plan(t.Context(), Target{Time: at}); !errors.As(err, &no) {
		t.Errorf("after a change that wasn't kept: %v", err)
	}
}

// TestSnapshotAhead goes back to the revision that a manifest names, of a snapshot that has more: it begins with the backup before.
func TestSnapshotAhead(t *testing.T) {
	w := newWorld(t, "etcd-3.6", "3.6.16")
	r, stop := w.record(nil)
	w.put("/first", "1")
	before := w.backup()
	at := w.put("/last", "1")
	want, err := w.own.HashKV(t.Context(), 0)
	must(t, err)
	var ahead int64
	w.backup(func() { ahead = w.put("/ahead", "1") })
	w.archived(r, ahead)
	stop()
	p := w.plan(Target{Revision: at})
	if p.Base != before.Backup {
		t.Errorf("it begins with %s", p.Base)
	}
	w.wantHash(p, want)
}
