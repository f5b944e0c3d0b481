package putback

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/internal/testutil/etcdtest"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/child"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
)

// TestMain makes the test binary able to run as etcd.
func TestMain(m *testing.M) {
	if code, ok := child.Dispatch(os.Args[1:], process.EtcdCommand()); ok {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

var must = testutil.Must

// bench is an etcd, and a store that can be made to fail.
type bench struct {
	t     *testing.T
	etcd  *clientv3.Client
	store *blobtest.Faulty
	cat   *catalog.Catalog
	id    catalog.HexID
	sets  int
}

func newBench(t *testing.T) *bench {
	m := etcdtest.StartOne(t, "t")
	store := blobtest.NewFaulty(blobtest.NewMemory())
	b := &bench{t: t, etcd: m.Client.Raw(), store: store, cat: catalog.New(store)}
	resp, err := b.etcd.Get(t.Context(), "x")
	must(t, err)
	b.id = catalog.HexID(resp.Header.ClusterId)
	return b
}

func (b *bench) put(key, value string, opts ...clientv3.OpOption) int64 {
	b.t.Helper()
	resp, err := b.etcd.Put(b.t.Context(), key, value, opts...)
	must(b.t, err)
	return resp.Header.Revision
}

// fill writes n keys, many at once.
func (b *bench) fill(prefix string, n int, value func(i int) string) {
	b.t.Helper()
	for i := 0; i < n; i += 100 {
		var ops []clientv3.Op
		for j := i; j < min(n, i+100); j++ {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("%s%06d", prefix, j), value(j)))
		}
		_, err := b.etcd.Txn(b.t.Context()).Then(ops...).Commit()
		must(b.t, err)
	}
}

func (b *bench) all(prefix string) []*mvccpb.KeyValue {
	b.t.Helper()
	resp, err := b.etcd.Get(b.t.Context(), prefix, clientv3.WithPrefix())
	must(b.t, err)
	return resp.Kvs
}

// hash is over keys, values and leases below a prefix.
func (b *bench) hash(prefix string) uint64 {
	h := fnv.New64a()
	for _, kv := range b.all(prefix) {
		fmt.Fprintf(h, "%q %q %d\n", kv.Key, kv.Value, kv.Lease)
	}
	return h.Sum64()
}

// plan stores the parts of a plan.
func (b *bench) plan(entries []Entry, overwrite, strict bool) catalog.PutBack {
	b.t.Helper()
	b.sets++
	p := catalog.PutBack{Set: fmt.Sprintf("set-%d", b.sets), Entries: len(entries), ClusterID: b.id, Overwrite: overwrite, Strict: strict, Rate: catalog.MaxPutBackRate}
	for _, part := range Split(entries) {
		data, err := Encode(part)
		must(b.t, err)
		p.Parts++
		must(b.t, b.cat.PutPutBackPart(b.t.Context(), p.Set, catalog.PutBackPlan, p.Parts, data))
	}
	return p
}

func (b *bench) runner(p catalog.PutBack) *Runner {
	return &Runner{Etcd: b.etcd, Store: b.cat, Name: p.Set, Plan: p, May: func() error { return nil }, Show: func(catalog.PutBackCounts) {}}
}

func (b *bench) run(p catalog.PutBack) catalog.PutBackCounts {
	b.t.Helper()
	counts, err := b.runner(p).Run(b.t.Context())
	must(b.t, err)
	return counts
}

// undo makes the plan that takes one back.
func (b *bench) undo(p catalog.PutBack) catalog.PutBack {
	b.t.Helper()
	var entries []Entry
	for n := p.Parts; n >= 1; n-- {
		e, before, results, err := ReadPart(b.t.Context(), b.cat, p.Set, n)
		must(b.t, err)
		u, err := Undo(e, before, results)
		must(b.t, err)
		entries = append(entries, u...)
	}
	return b.plan(entries, true, true)
}

// outcomes are those of a put-back, by key.
func (b *bench) outcomes(p catalog.PutBack) map[string]Outcome {
	b.t.Helper()
	out := map[string]Outcome{}
	for n := 1; n <= p.Parts; n++ {
		_, _, results, err := ReadPart(b.t.Context(), b.cat, p.Set, n)
		must(b.t, err)
		for _, r := range results {
			out[string(r.Key)] = r.Outcome
		}
	}
	return out
}

// TestEachKind: what is missing comes back, what was changed is reset and what came later removed if that is asked for, and what somebody
// changes between the plan and its execution is left alone. The undo brings exactly the state before, and leaves alone what was
// changed since.
func TestEachKind(t *testing.T) {
	b := newBench(t)
	changed, touched := b.put("/a/changed", "now"), b.put("/a/touched", "now")
	later, laterTouched := b.put("/a/later", "l"), b.put("/a/later-touched", "l")
	b.put("/a/same", "then")
	entries := []Entry{
		{Key: []byte("/a/missing"), Value: []byte("then")}, {Key: []byte("/a/empty")},
		{Key: []byte("/a/appeared"), Value: []byte("then")},
		{Key: []byte("/a/changed"), Value: []byte("then"), Seen: changed}, {Key: []byte("/a/touched"), Value: []byte("then"), Seen: touched},
		{Key: []byte("/a/same"), Value: []byte("then")},
		{Key: []byte("/a/later"), Delete: true, Seen: later}, {Key: []byte("/a/later-touched"), Delete: true, Seen: laterTouched},
		{Key: []byte("/a/later-gone"), Delete: true, Seen: 2},
	}
	careful, p := b.plan(entries[:6], false, false), b.plan(entries, true, false)
	for _, key := range []string{"/a/appeared", "/a/touched", "/a/later-touched"} {
		b.put(key, "somebody's")
	}
	before := b.hash("/a/")
	if got, want := b.run(careful), (catalog.PutBackCounts{Created: 2, Same: 1, Left: 3}); got != want {
		t.Errorf("what is missing: %+v, want %+v", got, want)
	}
	b.run(b.undo(careful))
	if b.hash("/a/") != before {
		t.Errorf("after the undo there is %v", b.all("/a/"))
	}
	if got, want := b.run(p), (catalog.PutBackCounts{Created: 2, Replaced: 1, Removed: 1, Same: 2, Left: 3}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	for key, want := range map[string]Outcome{"/a/appeared": Changed, "/a/touched": Changed, "/a/later-touched": Changed, "/a/changed": Replaced,
		"/a/later": Removed, "/a/missing": Created, "/a/empty": Created} {
		if got := b.outcomes(p)[key]; got != want {
			t.Errorf("%s: %s, want %s", key, got, want)
		}
	}
	if got := b.run(p); got.Done() != len(entries) {
		t.Errorf("a run after the end counts %+v", got)
	}
	b.put("/a/missing", "somebody's")
	u := b.undo(p)
	if got := b.run(u); got.Left != 1 || got.Written() != 3 {
		t.Errorf("the undo: %+v; %v", got, b.outcomes(u))
	}
	b.etcd.Delete(t.Context(), "/a/missing")
	if b.hash("/a/") != before {
		t.Errorf("after the undo there is %v", b.all("/a/"))
	}
	if left := b.all(PositionPrefix); len(left) > 0 {
		t.Errorf("positions are left: %v", left)
	}
}

// errKilled ends a run like a leader that is killed.
var errKilled = errors.New("killed")

// TestKilledAtAnyStep puts thousands of keys back while clients write to the same ones, and ends the run again and again: before a
// transaction,
// after it with the answer lost, around each write to the store. Each key is written at most once, nobody's write is written over, and the
// undo, which is killed too, brings back the same hash.
func TestKilledAtAnyStep(t *testing.T) {
	n := 2_500
	if testutil.IsLong() {
		n = 10_000
	}
	b := newBench(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	b.fill("/k/", n, func(i int) string { return fmt.Sprint("now ", i) })
	var entries []Entry
	for i, kv := range b.all("/k/") {
		switch i % 4 {
		case 0: // missing
			entries = append(entries, Entry{Key: kv.Key, Value: fmt.Appendf(nil, "then %d", i)})
			_, err := b.etcd.Delete(t.Context(), string(kv.Key))
			must(t, err)
		case 1: // came later
			entries = append(entries, Entry{Key: kv.Key, Delete: true, Seen: kv.ModRevision})
		default:
			entries = append(entries, Entry{Key: kv.Key, Value: fmt.Appendf(nil, "then %d", i), Seen: kv.ModRevision})
		}
	}
	before := map[string]string{}
	for _, kv := range b.all("/k/") {
		before[string(kv.Key)] = string(kv.Value)
	}
	begin := b.put("/begin", "x")
	p := b.plan(entries, true, false)

	var mu sync.Mutex
	theirs := map[string]bool{}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for w := range 2 {
		r := rand.New(rand.NewPCG(seed, uint64(w)+2))
		wg.Go(func() {
			for ctx.Err() == nil {
				key := fmt.Sprintf("/k/%06d", r.IntN(n))
				mu.Lock()
				theirs[key] = true
				mu.Unlock()
				if r.IntN(3) == 0 {
					_, _ = b.etcd.Delete(ctx, key)
				} else {
					_, _ = b.etcd.Put(ctx, key, "somebody's")
				}
			}
		})
	}
	kills := b.killing(p, r)
	stop()
	wg.Wait()
	t.Logf("%d runs, clients wrote to %d keys", kills, len(theirs))
	if kills < 8 {
		t.Errorf("it was killed %d times only", kills)
	}
	b.atMostOnce(begin, theirs)

	// Nobody writes to what the undo takes back, apart from what was theirs already.
	u := b.undo(p)
	b.killing(u, r)
	after := map[string]string{}
	for _, kv := range b.all("/k/") {
		after[string(kv.Key)] = string(kv.Value)
	}
	differ := 0
	for i := range n {
		key := fmt.Sprintf("/k/%06d", i)
		if theirs[key] {
			continue
		}
		was, had := before[key]
		is, has := after[key]
		if was != is || had != has {
			differ++
		}
	}
	if differ > 0 {
		t.Errorf("%d keys that nobody else has touched differ after the undo", differ)
	}
}

// killing runs a put-back to its end, ending it at random, and returns how often it was begun.
func (b *bench) killing(p catalog.PutBack, r *rand.Rand) int {
	b.t.Helper()
	for runs := 1; ; runs++ {
		ctx, cancel := context.WithCancel(b.t.Context())
		x := b.runner(p)
		left := r.IntN(2 + p.Entries/250)
		switch how := r.IntN(5); {
		case runs > 60:
			left = 1 << 30
		case how == 1: // around a write to the store
			b.store.Add(blobtest.Fault{Op: "put", Skip: r.IntN(3), Times: 1, After: r.IntN(2) == 0, Err: blobtest.Transient("put", "x")})
		case how == 2: // in the middle of a transaction
			lost := r.IntN(2 + p.Entries/250)
			x.Show = func(catalog.PutBackCounts) {
				if lost--; lost == 0 {
					go cancel()
				}
			}
		}
		x.May = func() error {
			if left--; left < 0 {
				return errKilled
			}
			return nil
		}
		counts, err := x.Run(ctx)
		cancel()
		b.store.Heal()
		if err == nil {
			if counts.Done() != p.Entries {
				b.t.Errorf("it has done %+v of %d", counts, p.Entries)
			}
			b.t.Logf("%+v", counts)
			return runs
		}
		if errors.Is(err, ErrRefused) || errors.Is(err, ErrCanceled) {
			b.t.Fatal(err)
		}
	}
}

// atMostOnce reads the history: of keys that no client has touched each was changed exactly once, and no client's write was written over.
func (b *bench) atMostOnce(begin int64, theirs map[string]bool) {
	b.t.Helper()
	end := b.put("/end", "x")
	ctx, cancel := context.WithCancel(b.t.Context())
	defer cancel()
	changes := map[string]int{}
	last := map[string]string{}
	for w := range b.etcd.Watch(ctx, "/", clientv3.WithPrefix(), clientv3.WithRev(begin+1)) {
		must(b.t, w.Err())
		for _, e := range w.Events {
			key := string(e.Kv.Key)
			value := string(e.Kv.Value)
			if e.Type == mvccpb.DELETE {
				value = "deleted"
			}
			var i int
			_, _ = fmt.Sscanf(key, "/k/%d", &i)
			missing := i%4 == 0 // when it was planned
			if strings.HasPrefix(value, "then") && last[key] != "" && (!missing || last[key] != "deleted") {
				b.t.Errorf("%s was written over after somebody had it: %s", key, last[key])
			}
			if strings.HasPrefix(value, "then") || e.Type == mvccpb.DELETE && !theirs[key] {
				changes[key]++
			}
			last[key] = value
		}
		if w.Header.Revision >= end {
			break
		}
	}
	for key, k := range changes {
		if k > 1 {
			b.t.Errorf("%s was written %d times", key, k)
		}
	}
	if len(changes) == 0 {
		b.t.Error("nothing was written")
	}
}

// TestEndedByTheOperator: what was done until then is recorded, the rest is skipped, and the undo takes back what was done.
func TestEndedByTheOperator(t *testing.T) {
	b := newBench(t)
	var entries []Entry
	for i := range 2500 {
		entries = append(entries, Entry{Key: fmt.Appendf(nil, "/k/%06d", i), Value: []byte("then")})
	}
	p := b.plan(entries, false, false)
	x, left := b.runner(p), 60
	x.May = func() error {
		if left--; left < 0 {
			return ErrCanceled
		}
		return nil
	}
	counts, err := x.Run(t.Context())
	if !errors.Is(err, ErrCanceled) || counts.Created == 0 || counts.Created == len(entries) || counts.Created != len(b.all("/k/")) {
		t.Fatalf("%+v, %v; there are %d keys", counts, err, len(b.all("/k/")))
	}
	if left := b.all(PositionPrefix); len(left) > 0 {
		t.Errorf("positions are left: %v", left)
	}
	p.Parts = 2
	if got := b.run(b.undo(p)); got.Removed != counts.Created || len(b.all("/k/")) != 0 {
		t.Errorf("the undo: %+v; %d keys are left", got, len(b.all("/k/")))
	}
}

// TestLeases: a key comes back with its lease if that is alive, and without if not; an undo doesn't bring back what would have ended.
func TestLeases(t *testing.T) {
	b := newBench(t)
	alive, err := b.etcd.Grant(t.Context(), 3600)
	must(t, err)
	dead, err := b.etcd.Grant(t.Context(), 3600)
	must(t, err)
	one, two := b.put("/l/1", "x", clientv3.WithLease(alive.ID)), b.put("/l/2", "x", clientv3.WithLease(dead.ID))
	removing := b.plan([]Entry{{Key: []byte("/l/1"), Delete: true, Seen: one}, {Key: []byte("/l/2"), Delete: true, Seen: two}}, true, false)
	b.run(removing)
	_, err = b.etcd.Revoke(t.Context(), dead.ID)
	must(t, err)
	u := b.undo(removing)
	if got := b.run(u); got.Created != 1 || got.Left != 1 || b.outcomes(u)["/l/2"] != Expired {
		t.Errorf("the undo: %+v, %v", got, b.outcomes(u))
	}
	b.run(b.plan([]Entry{{Key: []byte("/l/2"), Value: []byte("x"), Lease: int64(dead.ID)}}, false, false))
	kvs := b.all("/l/")
	if len(kvs) != 2 || kvs[0].Lease != int64(alive.ID) || kvs[1].Lease != 0 {
		t.Errorf("%v", kvs)
	}
}

// TestRefused: nothing is written into a full database, into another cluster, or where the position is gone.
func TestRefused(t *testing.T) {
	b := newBench(t)
	entries := []Entry{{Key: []byte("/r/1"), Value: []byte("x")}}
	refused := func(p catalog.PutBack, why string) {
		t.Helper()
		if _, err := b.runner(p).Run(t.Context()); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), why) {
			t.Errorf("%v, want %q", err, why)
		}
		if len(b.all("/r/"))+len(b.all(PositionPrefix)) > 0 {
			t.Errorf("something was written: %v", b.all("/r/"))
		}
	}
	other := b.plan(entries, false, false)
	other.ClusterID++
	refused(other, "it was restored since")
	short := b.plan(entries, false, false)
	short.Parts++
	refused(short, "isn't in the store")
	gone := b.plan(entries, false, false)
	x := b.runner(gone)
	calls := 0
	x.May = func() error {
		if calls++; calls == 3 {
			return errKilled
		}
		return nil
	}
	if _, err := x.Run(t.Context()); !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	_, err := b.etcd.Delete(t.Context(), PositionPrefix, clientv3.WithPrefix())
	must(t, err)
	refused(gone, "is gone from etcd")
	_, err = etcdserverpb.NewMaintenanceClient(b.etcd.ActiveConnection()).Alarm(t.Context(), &etcdserverpb.AlarmRequest{
		Action: etcdserverpb.AlarmRequest_ACTIVATE, Alarm: etcdserverpb.AlarmType_NOSPACE})
	must(t, err)
	refused(b.plan(entries, false, false), "NOSPACE")
}

// TestNotTwice: a key that was created, and that somebody has deleted since, isn't created again by the run that goes on.
func TestNotTwice(t *testing.T) {
	b := newBench(t)
	p := b.plan([]Entry{{Key: []byte("/n/1"), Value: []byte("x")}}, false, false)
	b.store.Add(blobtest.Fault{Op: "put", Match: func(key string) bool { return strings.Contains(key, "result") }, Times: 1, Err: blobtest.Transient("put", "x")})
	if _, err := b.runner(p).Run(t.Context()); err == nil {
		t.Fatal("the store has failed")
	}
	b.store.Heal()
	_, err := b.etcd.Delete(t.Context(), "/n/1")
	must(t, err)
	if got := b.run(p); got.Created != 1 || len(b.all("/n/")) != 0 {
		t.Errorf("%+v; there is %v", got, b.all("/n/"))
	}
	if got := b.run(b.undo(p)); got.Written() != 0 || got.Same != 1 {
		t.Errorf("the undo: %+v", got)
	}
}

// TestDamagedParts: what can't be read is refused, and a part of few bytes can't fill the memory.
func TestDamagedParts(t *testing.T) {
	good, err := Encode([]Entry{{Key: []byte("k")}})
	must(t, err)
	many, err := Encode(make([]Entry, PartEntries+1))
	must(t, err)
	large, err := Encode([]Entry{{Value: make([]byte, maxContent)}})
	must(t, err)
	none, err := Encode([]Entry{})
	must(t, err)
	for name, data := range map[string][]byte{"empty": nil, "no entries": none, "text": []byte("{}"), "cut": good[:len(good)-3], "many": many, "large": large} {
		if got, err := Decode[Entry](data); err == nil {
			t.Errorf("%s: %d entries and no error", name, len(got))
		}
	}
}

// TestOneBadPart: a part that can't be used ends a put-back with its name before anything of it is written, and one that must not be read
// is waited for. What was written before stays as it is recorded.
func TestOneBadPart(t *testing.T) {
	b := newBench(t)
	entries := make([]Entry, 0, PartEntries+1)
	for i := range cap(entries) {
		entries = append(entries, Entry{Key: fmt.Appendf(nil, "/p/%06d", i), Value: []byte("x")})
	}
	one, err := Encode([]Entry{{Key: []byte("/other"), Value: []byte("x")}})
	must(t, err)
	for kind, content := range map[string][]byte{"empty": {}, "damaged": []byte("{\"version\":1,"), "cut": one[:len(one)-1],
		"too large": make([]byte, 80<<20), "newer": []byte(`{"version":99}`), "denied": nil} {
		p := b.plan(entries, false, false)
		key := fmt.Sprintf("put-back/%s/plan-000002", p.Set)
		good, _, err := blob.ReadAll(t.Context(), b.store, key, 1<<20)
		must(t, err)
		if content == nil {
			b.store.Add(blobtest.Fault{Op: "get", Match: func(k string) bool { return k == key }, Err: blobtest.Denied("get", key, "s3:GetObject")})
		} else {
			_, err := b.store.Put(t.Context(), key, bytes.NewReader(content), blob.PutOptions{})
			must(t, err)
		}
		counts, err := b.runner(p).Run(t.Context())
		var object *catalog.ObjectError
		switch permanent := errors.Is(err, ErrRefused) || errors.As(err, &object); {
		case err == nil || permanent != (content != nil):
			t.Errorf("%s: %v", kind, err)
		case !strings.Contains(err.Error(), p.Set) || !strings.Contains(err.Error(), "plan-000002"):
			t.Errorf("%s: the object isn't named: %v", kind, err)
		case counts.Created != PartEntries || len(b.all("/p/")) != PartEntries || len(b.all("/other")) > 0:
			t.Errorf("%s: %+v, and %d keys are there", kind, counts, len(b.all("/p/")))
		}
		b.store.Heal()
		_, err = b.store.Put(t.Context(), key, bytes.NewReader(good), blob.PutOptions{})
		must(t, err)
		if got := b.run(p); got.Created != len(entries) || len(b.all("/p/")) != len(entries) {
			t.Errorf("%s, and right again: %+v", kind, got)
		}
		_, err = b.etcd.Delete(t.Context(), "/p/", clientv3.WithPrefix())
		must(t, err)
	}
}
