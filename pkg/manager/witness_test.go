package manager

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// witnessPeer is the other node, which sees a store of its own.
type witnessPeer struct {
	noPeers
	mu    sync.Mutex
	store blob.Store
	err   error // what it answers instead
	hangs bool
	asked int
}

func (p *witnessPeer) Conn(cluster.NodeID) (grpc.ClientConnInterface, error) { return p, nil }

func (p *witnessPeer) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "no streams")
}

func (p *witnessPeer) Invoke(ctx context.Context, _ string, req, resp any, _ ...grpc.CallOption) error {
	p.mu.Lock()
	p.asked++
	store, err, hangs := p.store, p.err, p.hangs
	p.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return status.FromContextError(ctx.Err()).Err()
	}
	if err != nil {
		return err
	}
	q := req.(*protosv1.WitnessRequest)
	t := blob.Witness(ctx, store, blob.Question{Key: q.GetKey(), Value: q.GetValue(), Reply: q.GetReply(), Lock: q.GetLock()})
	r := resp.(*protosv1.WitnessResponse)
	r.Store, r.Problem, r.Found, r.Held, r.Replaced = "/mnt/b", t.Problem, t.Found, t.Held, t.Replaced
	return nil
}

func (p *witnessPeer) set(store blob.Store, err error, hangs bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.store, p.err, p.hangs = store, err, hangs
}

func (p *witnessPeer) times() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

// witnessed is a leader a beside a node b.
type witnessed struct {
	t    *testing.T
	l    *leadership
	ctx  context.Context
	peer *witnessPeer
	own  *blobtest.Memory
	node cluster.NodeStatus
}

// withWitness runs f with time that passes by itself.
func withWitness(t *testing.T, f func(w *witnessed)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &witnessed{t: t, own: blobtest.NewMemory(), node: cluster.NodeStatus{ID: "b", Instance: "1"}}
		w.peer = &witnessPeer{store: w.own}
		m, err := New(Config{ClusterName: "test", Self: "a", Instance: "i", Peers: w.peer, Catalog: catalog.New(w.own), StoreName: "/mnt/a",
			Policy: model.DefaultPolicy("3.6.0"), Probe: func(context.Context) (bool, error) { return true, nil }})
		must(t, err)
		w.l = newLeadership(m, 4)
		ctx, cancel := context.WithCancel(t.Context())
		w.ctx = ctx
		f(w)
		cancel()
		w.l.wg.Wait()
		for e, err := range w.own.List(t.Context(), "", blob.ListOptions{}) {
			must(t, err)
			t.Errorf("%s is left in the store", e.Key)
		}
	})
}

// look is what the leader sees after a while. Without nodes b is missing.
func (w *witnessed) look(after time.Duration, nodes ...cluster.NodeStatus) model.Store {
	time.Sleep(after)
	synctest.Wait()
	o := &model.Observation{Self: "a", Nodes: nodes, Store: model.Store{Fences: true}}
	if len(nodes) == 0 {
		o.Missing = []model.MissingNode{{ID: "b"}}
	}
	w.l.witnesses.ask(w.ctx, o)
	return o.Store
}

func (w *witnessed) want(s model.Store, fences bool, apart, unsure string) {
	w.t.Helper()
	why := ""
	if len(s.Apart) > 0 {
		why = s.Apart[0].Why
	}
	if s.Fences != fences || !strings.Contains(why, apart) || (apart == "") != (why == "") || !strings.Contains(s.Unsure, unsure) || (unsure == "") != (s.Unsure == "") {
		w.t.Errorf("fences %t, apart %q, unsure %q; want %t, %q, %q", s.Fences, why, s.Unsure, fences, apart, unsure)
	}
}

// TestWitnessInOrder: the first answer settles it, and a node isn't asked again for an hour, or until its manager is another process.
func TestWitnessInOrder(t *testing.T) {
	withWitness(t, func(w *witnessed) {
		w.want(w.look(0, w.node), true, "", "node b hasn't answered yet")
		w.want(w.look(0, w.node), true, "", "")
		w.want(w.look(50*time.Minute, w.node), true, "", "")
		if n := w.peer.times(); n != 1 {
			t.Errorf("it was asked %d times", n)
		}
		w.node.Instance = "2"
		w.want(w.look(0, w.node), true, "", "node b hasn't answered yet")
		w.want(w.look(0, w.node), true, "", "")
	})
}

// TestWitnessApart: a node with another store isn't called that before it has had time to see what was written. Then it is named, also while
// it is silent, until it has said otherwise.
func TestWitnessApart(t *testing.T) {
	withWitness(t, func(w *witnessed) {
		w.peer.set(blobtest.NewMemory(), nil, false)
		w.look(0, w.node)
		w.want(w.look(0, w.node), true, "", "node b doesn't see yet")
		w.want(w.look(time.Minute, w.node), true, "", "node b doesn't see yet")
		const why = "node b has another store (/mnt/b) than node a (/mnt/a)"
		w.want(w.look(15*time.Second, w.node), false, why, "")
		w.want(w.look(time.Second), false, why, "")
		w.node.Instance = "2"
		w.want(w.look(time.Second, w.node), false, why, "")
		before := w.peer.times()
		w.want(w.look(20*time.Minute, w.node), false, why, "")
		if n := w.peer.times() - before; n > 15 {
			t.Errorf("it was asked %d times in 20 minutes", n)
		}
		w.peer.set(w.own, nil, false)
		w.want(w.look(2*time.Minute, w.node), true, "", "")
	})
}

// late is a store that shows what was written only after a while, as NFS may.
type late struct {
	blob.Store
	from time.Time
}

func (s late) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	if time.Now().Before(s.from) {
		return nil, blob.Info{}, &blob.Error{Op: "get", Key: key, Kind: blob.ErrNotFound}
	}
	return s.Store.Get(ctx, key, r)
}

// TestWitnessLate: a file system that remembers for a minute what a directory holds alarms nobody.
func TestWitnessLate(t *testing.T) {
	withWitness(t, func(w *witnessed) {
		w.peer.set(late{w.own, time.Now().Add(time.Minute)}, nil, false)
		w.look(0, w.node)
		w.want(w.look(59*time.Second, w.node), true, "", "node b doesn't see yet")
		w.want(w.look(3*time.Second, w.node), true, "", "")
	})
}

// TestWitnessPuts: conditional puts that don't know of each other need no long patience, and each question is a new one.
func TestWitnessPuts(t *testing.T) {
	withWitness(t, func(w *witnessed) {
		copied := blobtest.NewMemory()
		w.peer.set(copying{copied, w.own}, nil, false)
		w.look(0, w.node)
		w.want(w.look(time.Second, w.node), true, "", "node b doesn't see yet")
		w.want(w.look(6*time.Second, w.node), false, "a conditional put of node b isn't heeded", "")
	})
}

// copying shows what the other store has, and keeps what is put for itself.
type copying struct {
	*blobtest.Memory
	other *blobtest.Memory
}

func (c copying) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	if data, _, err := blob.ReadAll(ctx, c.other, key, 1<<10); err == nil {
		if _, err := c.Put(ctx, key, strings.NewReader(string(data)), blob.PutOptions{}); err != nil {
			return nil, blob.Info{}, err
		}
	}
	return c.Memory.Get(ctx, key, r)
}

// TestWitnessWhoCannotTell: a node that can't tell counts as before there was the question, and holds nothing up for long.
func TestWitnessWhoCannotTell(t *testing.T) {
	for name, x := range map[string]struct {
		err   error
		hangs bool
		most  int // questions in an hour
	}{
		"an older version":         {status.Error(codes.Unimplemented, "unknown method Witness"), false, 2},
		"a node that hangs":        {nil, true, 15},
		"a node without the store": {status.Error(codes.Unavailable, "no route"), false, 15},
	} {
		t.Run(name, func(t *testing.T) {
			withWitness(t, func(w *witnessed) {
				w.peer.set(nil, x.err, x.hangs)
				w.look(0, w.node)
				w.want(w.look(observeTimeout, w.node), true, "", "")
				w.want(w.look(time.Hour, w.node), true, "", "")
				if n := w.peer.times(); n > x.most {
					t.Errorf("it was asked %d times in an hour", n)
				}
				// What was found before still counts.
				w.peer.set(blobtest.NewMemory(), nil, false)
				w.want(w.look(2*time.Hour+2*time.Minute, w.node), false, "another store", "")
				w.peer.set(nil, x.err, x.hangs)
				w.want(w.look(time.Hour, w.node), false, "another store", "")
			})
		})
	}
}

// TestWitnessWords: each finding names both nodes, the store and a way out.
func TestWitnessWords(t *testing.T) {
	l := newLeadership(&Manager{cfg: Config{Self: "a", StoreName: "/mnt/a", Peers: noPeers{}}}, 4)
	for _, f := range []catalog.Finding{catalog.OtherStore, catalog.LocksApart, catalog.PutsApart} {
		for _, store := range []string{"/mnt/a", "/mnt/b"} {
			why, way := l.witnesses.words("b", f, store)
			if !strings.Contains(why, "node a") || !strings.Contains(why, "node b") || !strings.Contains(why, "/mnt/a") || way == "" {
				t.Errorf("%v: %q, %q", fmt.Sprint(f), why, way)
			}
		}
	}
}
