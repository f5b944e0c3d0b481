package changelog

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/lease/leasepb"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
)

var (
	leaseCount  = flag.Int("leases", 240, "how many leases TestLeasesUnderFire grants")
	leaderKills = flag.Int("leader-kills", 2, "how often TestLeasesUnderFire kills etcd's leader")
)

const (
	year    = 365 * 24 * 3600
	unknown = database.UnknownLeaseTTL
)

// leased is what a database has: the lease of each key that has one, its value, and for how long each of these leases is granted.
type leased struct {
	keys map[string]*mvccpb.KeyValue
	ttls map[int64]int64
}

// leasesAt replays to a point and reads what comes out.
func (w *world) leasesAt(p *Plan) leased {
	w.t.Helper()
	ctx := w.t.Context()
	path := filepath.Join(w.t.TempDir(), "db")
	_, err := backup.FetchFile(ctx, w.catalog, p.Base, path, backup.FileOptions{})
	must(w.t, err)
	_, err = w.archive.Replay(ctx, self(w.t), path, p.Chain, p.Revision, nil)
	must(w.t, err)
	x := leased{keys: map[string]*mvccpb.KeyValue{}, ttls: map[int64]int64{}}
	must(w.t, database.Values(ctx, self(w.t), path, database.ValuesOptions{}, func(kv *mvccpb.KeyValue) error {
		if kv.Lease != 0 {
			x.keys[string(kv.Key)] = kv
		}
		return nil
	}))
	db, err := bolt.Open(path, 0o400, &bolt.Options{ReadOnly: true})
	must(w.t, err)
	defer db.Close()
	must(w.t, db.View(func(tx *bolt.Tx) error {
		return tx.Bucket([]byte("lease")).ForEach(func(k, v []byte) error {
			var l leasepb.Lease
			if err := l.Unmarshal(v); err != nil {
				return err
			}
			x.ttls[int64(binary.BigEndian.Uint64(k))] = l.TTL
			return nil
		})
	}))
	return x
}

// wrong lists the keys whose lease isn't granted for as long as their value says. A TTL that is marked as unknown is counted, not listed.
func (x leased) wrong() (list []string, unknowns int) {
	for _, k := range slices.Sorted(maps.Keys(x.keys)) {
		kv := x.keys[k]
		switch have := x.ttls[kv.Lease]; {
		case have == unknown:
			unknowns++
		case strconv.FormatInt(have, 10) != string(kv.Value):
			list = append(list, fmt.Sprintf("%s: lease %x is granted for %d s, not %s", k, kv.Lease, have, kv.Value))
		}
	}
	return list, unknowns
}

// lease grants a lease and attaches a key to it whose value is the TTL.
func (w *world) lease(id, ttl int64, key string) int64 {
	w.t.Helper()
	must(w.t, w.grant(w.t.Context(), id, ttl))
	return w.put(key, strconv.FormatInt(ttl, 10), clientv3.WithLease(clientv3.LeaseID(id)))
}

// grant grants a lease with an id of the caller's.
func (w *world) grant(ctx context.Context, id, ttl int64) error {
	_, err := etcdserverpb.NewLeaseClient(w.client.ActiveConnection()).LeaseGrant(ctx, &etcdserverpb.LeaseGrantRequest{ID: id, TTL: ttl})
	return err
}

func (w *world) revoke(id int64) {
	w.t.Helper()
	_, err := w.client.Revoke(w.t.Context(), clientv3.LeaseID(id))
	must(w.t, err)
}

// flush brings everything into the store, leases included.
func (w *world) flush(r *Recorder) int64 {
	w.t.Helper()
	eventually(w.t, "all leases are known", func() bool { return r.Status().UnknownLeases == 0 })
	to, err := r.Flush(w.t.Context())
	must(w.t, err)
	return to
}

// unsure is an etcd whose answers about leases fail for a while.
type unsure struct {
	Source
	fails *atomic.Bool
}

func (u unsure) LeaseTTL(ctx context.Context, id int64) (int64, error) {
	if u.fails.Load() {
		return 0, errors.New("no leader")
	}
	return u.Source.LeaseTTL(ctx, id)
}

// withUnsure has a recorder ask through fails.
func withUnsure(fails *atomic.Bool) func(*Config) {
	return func(c *Config) {
		dial := c.Members()[0]
		c.Members = members(func(ctx context.Context) (Source, error) {
			s, err := dial(ctx)
			return unsure{s, fails}, err
		})
	}
}

// TestLeaseKnownLate: a lease that can't be asked for at first is unknown, which never makes it
// short, and is what it was once the answer has come, though nothing else is written, and by
// whichever recorder.
func TestLeaseKnownLate(t *testing.T) {
	for name, another := range map[string]bool{"the same recorder": false, "another recorder": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "etcd-3.6", "3.6.16")
			w.put("/first", "1")
			w.backup()
			var fails atomic.Bool
			fails.Store(true)
			r, stop := w.record(withUnsure(&fails))
			w.began(r)
			rev := w.lease(7, 360000, "/late")
			w.archived(r, rev)
			x := w.leasesAt(w.plan(Target{Revision: rev}))
			if x.ttls[7] != unknown {
				t.Errorf("before the answer the lease is granted for %d s", x.ttls[7])
			}
			if another {
				stop()
				r, _ = w.record(withUnsure(&fails))
				w.began(r)
				if n := r.Status().UnknownLeases; n != 1 {
					eventually(t, "the next recorder knows what is unknown", func() bool { return r.Status().UnknownLeases == 1 })
				}
			}
			fails.Store(false)
			w.flush(r)
			for _, target := range []Target{{Latest: true}, {Revision: rev}} {
				if x := w.leasesAt(w.plan(target)); x.ttls[7] != 360000 {
					t.Errorf("%s: the lease is granted for %d s", target, x.ttls[7])
				}
			}
		})
	}
}

// TestLeaseGoneUnknown: a lease that was gone before it could be asked for lives long where its keys are there.
func TestLeaseGoneUnknown(t *testing.T) {
	w := newWorld(t, "etcd-3.6", "3.6.16")
	w.put("/first", "1")
	w.backup()
	var fails atomic.Bool
	fails.Store(true)
	r, _ := w.record(withUnsure(&fails))
	w.began(r)
	rev := w.lease(7, 360000, "/gone")
	w.archived(r, rev)
	w.revoke(7)
	fails.Store(false)
	w.flush(r)
	x := w.leasesAt(w.plan(Target{Revision: rev}))
	if x.ttls[7] != unknown || len(x.keys) != 1 {
		t.Errorf("%d keys, and the lease is granted for %d s", len(x.keys), x.ttls[7])
	}
}

// TestLeaseIDReused: an id that is granted again has the TTL of the newest grant from then on, and that of the one before until then.
func TestLeaseIDReused(t *testing.T) {
	testutil.Long(t)
	type step struct {
		ttl int64
		key string
		// release detaches the key before the lease is revoked, so that no deletion tells of its end.
		release bool
	}
	for name, c := range map[string]struct {
		before []step // the backup
		after  []step
	}{
		"short, then long":      {nil, []step{{60, "/a", false}, {3 * year, "/a", false}}},
		"long, then short":      {nil, []step{{3 * year, "/a", false}, {60, "/b", false}}},
		"the backup's is older": {[]step{{3600, "/a", false}}, []step{{3 * year, "/a", false}}},
		"the backup's, hidden":  {[]step{{3 * year, "/a", true}}, []step{{3600, "/b", false}}},
		"hidden":                {nil, []step{{60, "/a", true}, {3 * year, "/b", true}, {600, "/a", false}}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "etcd-3.6", "3.6.16")
			w.put("/first", "1")
			do := func(steps []step, at func(rev int64, s step)) {
				for _, s := range steps {
					w.client.Revoke(t.Context(), 7) // it may not be there
					at(w.lease(7, s.ttl, s.key), s)
					if s.release {
						w.put(s.key, "free")
					}
				}
			}
			do(c.before, func(int64, step) {})
			w.backup()
			r, _ := w.record(nil)
			w.began(r)
			want := map[int64]int64{}
			do(c.after, func(rev int64, s step) {
				w.flush(r)
				want[rev] = s.ttl
			})
			w.flush(r)
			for rev, ttl := range want {
				if x := w.leasesAt(w.plan(Target{Revision: rev})); x.ttls[7] != ttl {
					t.Errorf("revision %d: the lease is granted for %d s, want %d", rev, x.ttls[7], ttl)
				}
			}
		})
	}
}

// TestLeasesUnderFire grants many leases from 5 s to 3 years, uses ids again, and kills etcd's
// leader meanwhile. A replay to the end, and to any point between, gives every lease the TTL that
// it was granted for, and its keys. Between, some may be unknown.
func TestLeasesUnderFire(t *testing.T) {
	testutil.Long(t)
	w := newTrio(t)
	w.lease(1, 3*year, "/first")
	load := &leaseLoad{w: w}
	load.run(t.Context(), *leaseCount/6, nil)
	w.backup()
	r, _ := w.record(func(c *Config) { c.Members = w.first(w.members[1]); c.Interval = time.Second })
	w.began(r)
	killed := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(killed)
		for i := range *leaderKills {
			at := int64(*leaseCount/6 + (i+1)*(*leaseCount)*4/6/(*leaderKills+1))
			for load.granted.Load() < at && ctx.Err() == nil {
				time.Sleep(10 * time.Millisecond)
			}
			leader, _ := w.leader()
			leader.kill()
			leader.start()
			leader.serves()
		}
	})
	load.run(t.Context(), *leaseCount*5/6, killed)
	wg.Wait()
	to := w.flush(r)
	x := w.leasesAt(w.plan(Target{Latest: true}))
	w.compareLeases(to, x, 0)
	between := 0
	for range 10 {
		rev := to - 1 - rand.Int63n(to/2)
		x := w.leasesAt(w.plan(Target{Revision: rev}))
		w.compareLeases(rev, x, -1)
		_, n := x.wrong()
		between += n
	}
	t.Logf("%d leases granted with %d ids, %d used again, %d kills of the leader, %d revisions; %d keys with %d leases in the end, all right; "+
		"at 10 points between %d keys had a lease of unknown TTL", load.granted.Load(), len(load.ids), load.reused,
		*leaderKills, to, len(x.keys), len(x.ttls), between)
}

// compareLeases compares what a replay gave with what etcd had; most is how many may be unknown, -1 any number.
func (w *trio) compareLeases(revision int64, x leased, most int) {
	w.t.Helper()
	all, err := w.client.Get(w.t.Context(), "/", clientv3.WithPrefix(), clientv3.WithRev(revision))
	must(w.t, err)
	have := map[string]int64{}
	for _, kv := range all.Kvs {
		if kv.Lease != 0 {
			have[string(kv.Key)] = kv.Lease
		}
	}
	got := map[string]int64{}
	for k, kv := range x.keys {
		got[k] = kv.Lease
	}
	if !maps.Equal(have, got) {
		w.t.Errorf("revision %d: %d keys with a lease, etcd had %d, or others", revision, len(got), len(have))
	}
	wrong, n := x.wrong()
	if len(wrong) > 0 {
		w.t.Errorf("revision %d: %d of %d keys: %s", revision, len(wrong), len(x.keys), wrong[0])
	}
	if most >= 0 && n > most {
		w.t.Errorf("revision %d: the leases of %d of %d keys are unknown", revision, n, len(x.keys))
	}
}

// leaseLoad grants leases, some of them with ids that had been granted before.
type leaseLoad struct {
	w       *trio
	granted atomic.Int64
	mu      sync.Mutex
	ids     []int64
	reused  int
}

// run grants so many more, and goes on until the channel is closed.
func (l *leaseLoad) run(ctx context.Context, n int, until <-chan struct{}) {
	var left atomic.Int64
	left.Store(int64(n))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for left.Add(-1) >= 0 || until != nil && !isClosed(until) {
				l.one(ctx)
			}
		})
	}
	wg.Wait()
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// ttl is from 5 s to 3 years.
func randomTTL() int64 {
	return []int64{5, 5 + rand.Int63n(60), 60 + rand.Int63n(3600), 3600 + rand.Int63n(100*24*3600),
		3*year - rand.Int63n(year)}[rand.Intn(5)]
}

// one grants one lease, attaches keys, and perhaps ends it. What fails while there is no leader isn't tried again.
func (l *leaseLoad) one(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	id, again := 1+rand.Int63n(1<<40), false
	l.mu.Lock()
	if n := len(l.ids); n > 0 && rand.Intn(4) == 0 {
		i := rand.Intn(n) // nobody else takes it meanwhile
		id, again = l.ids[i], true
		l.ids = slices.Delete(l.ids, i, i+1)
	}
	l.mu.Unlock()
	if again {
		if rand.Intn(3) == 0 { // the keys that tell of its end are released before
			_, _ = l.w.client.Put(ctx, fmt.Sprintf("/l/%x/0", id), "free")
		}
		_, _ = l.w.client.Revoke(ctx, clientv3.LeaseID(id)) // it may have ended by itself
	}
	ttl := randomTTL()
	if err := l.w.grant(ctx, id, ttl); err != nil {
		return // whether it was granted isn't known: the id is not used again
	}
	l.granted.Add(1)
	for i := range 1 + rand.Intn(3) {
		_, err := l.w.client.Put(ctx, fmt.Sprintf("/l/%x/%d", id, i), strconv.FormatInt(ttl, 10), clientv3.WithLease(clientv3.LeaseID(id)))
		if err != nil {
			return // it may still come, and must not meet another grant
		}
	}
	l.mu.Lock()
	l.ids = append(l.ids, id)
	if again {
		l.reused++
	}
	l.mu.Unlock()
}
