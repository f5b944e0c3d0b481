package changelog

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
)

// write puts keys through members that answer, and returns the newest revision that was acknowledged.
func (w *trio) writeTo(n int, through *trioMember) int64 {
	w.t.Helper()
	var last int64
	for i := range n {
		eventually(w.t, "a write is acknowledged", func() bool {
			ctx, cancel := context.WithTimeout(w.t.Context(), 2*time.Second)
			defer cancel()
			r, err := through.own.Raw().Put(ctx, fmt.Sprintf("/w/%d", i), "x")
			if err == nil {
				last = r.Header.Revision
			}
			return err == nil
		})
	}
	return last
}

// TestFlushAsksItsOwnCluster: at the addresses of the members a member of another cluster answers too, and faster. What it says isn't taken
// for what this cluster has acknowledged.
func TestFlushAsksItsOwnCluster(t *testing.T) {
	w, other := newWorld(t, "etcd-3.6", "3.6.16"), newWorld(t, "etcd-3.6", "3.6.16")
	var both atomic.Bool
	r, _ := w.record(func(c *Config) {
		own, foreign := c.Members()[0], func(context.Context) (Source, error) { return new(client.Streams).Dial([]string{other.url}, nil) }
		slow := func(ctx context.Context) (Source, error) { // the other one is faster
			select {
			case <-ctx.Done():
			case <-time.After(300 * time.Millisecond):
			}
			return own(ctx)
		}
		c.Members = func() []Dialer {
			if both.Load() {
				return []Dialer{slow, foreign}
			}
			return []Dialer{own}
		}
	})
	w.began(r)
	both.Store(true)
	last := w.writeMany(20)
	if low := other.put("/x", "1"); low >= last {
		t.Fatalf("the other cluster has revision %d, this one %d", low, last)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	if got, err := r.Flush(ctx); err != nil || got < last || r.Status().Archived < last {
		t.Errorf("flushed up to revision %d of %d, archived %d: %v", got, last, r.Status().Archived, err)
	}
}

// writeMany puts keys and returns the revision of the last one.
func (w *world) writeMany(n int) (last int64) {
	for i := range n {
		last = w.put("/many", fmt.Sprint(i))
	}
	return last
}

// TestFlushWhileAMemberHangs: whichever member hangs, and it is the one that changes are recorded
// from, a flush has everything within seconds that the others have acknowledged.
func TestFlushWhileAMemberHangs(t *testing.T) {
	testutil.Long(t)
	for _, which := range []string{"follower", "leader"} {
		t.Run(which, func(t *testing.T) {
			w := newTrio(t)
			leader, hung := w.leader()
			other := leader
			if which == "leader" {
				hung, other = leader, hung
			}
			r, _ := w.record(func(c *Config) { c.Members = w.first(hung) })
			w.began(r)
			w.backup()
			w.archived(r, w.writeTo(1, other))
			hung.hang()
			last := w.writeTo(50, other)
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
			defer cancel()
			to, err := r.Flush(ctx)
			if err != nil {
				t.Fatal(err)
			}
			took := time.Since(began)
			t.Logf("flushed up to revision %d in %s", to, took)
			if to < last {
				t.Errorf("the flush says that it went up to revision %d, and %d was acknowledged", to, last)
			}
			if p := w.plan(Target{Latest: true}); p.Revision < last {
				t.Errorf("the newest point in the store is revision %d, and %d was acknowledged", p.Revision, last)
			}
			if s := r.Status(); s.Gaps > 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestFlushWithoutQuorum: nobody can say whether the store lacks anything, and the error says up to where it surely lacks nothing.
func TestFlushWithoutQuorum(t *testing.T) {
	w := newTrio(t)
	leader, follower := w.leader()
	r, _ := w.record(func(c *Config) { c.Members = w.first(follower) })
	w.began(r)
	last := w.writeTo(3, leader)
	w.archived(r, last)
	for _, m := range w.members {
		if m != follower {
			m.kill()
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := r.Flush(ctx)
	var lacks *FlushError
	if !errors.As(err, &lacks) || lacks.Newest != 0 || lacks.Stored < last {
		t.Errorf("%v, want a FlushError that knows revision %d and no newest one", err, last)
	}
}

// TestFlushWithoutStore: the newest revision is known, and that the store lacks it.
func TestFlushWithoutStore(t *testing.T) {
	w := newWorld(t, "etcd-3.6", "3.6.16")
	r, _ := w.record(nil)
	w.began(r)
	stored := w.put("/a", "1")
	w.archived(r, stored)
	defer w.store.Add(storeAway())()
	last := w.put("/a", "2")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := r.Flush(ctx)
	var lacks *FlushError
	if !errors.As(err, &lacks) || lacks.Newest != last || lacks.Stored != stored {
		t.Errorf("%v, want a FlushError of revisions %d and %d", err, stored, last)
	}
}

// forgetful stands before an etcd and leaves revisions out of what it sends, as some versions of etcd do.
type forgetful struct {
	etcdserverpb.UnimplementedKVServer
	etcdserverpb.UnimplementedWatchServer
	etcdserverpb.UnimplementedLeaseServer
	conn *grpc.ClientConn
	// from and to are the revisions that are left out.
	from, to int64
}

func (f *forgetful) Range(ctx context.Context, r *etcdserverpb.RangeRequest) (*etcdserverpb.RangeResponse, error) {
	return etcdserverpb.NewKVClient(f.conn).Range(ctx, r)
}

func (f *forgetful) LeaseTimeToLive(ctx context.Context,
	r *etcdserverpb.LeaseTimeToLiveRequest) (*etcdserverpb.LeaseTimeToLiveResponse, error) {
	return etcdserverpb.NewLeaseClient(f.conn).LeaseTimeToLive(ctx, r)
}

func (f *forgetful) Watch(down etcdserverpb.Watch_WatchServer) error {
	up, err := etcdserverpb.NewWatchClient(f.conn).Watch(down.Context())
	if err != nil {
		return err
	}
	go func() {
		for {
			m, err := down.Recv()
			if err != nil || up.Send(m) != nil {
				return
			}
		}
	}()
	for {
		m, err := up.Recv()
		if err != nil {
			return err
		}
		var kept []*mvccpb.Event
		for _, e := range m.Events {
			if e.Kv.ModRevision < f.from || e.Kv.ModRevision > f.to {
				kept = append(kept, e)
			}
		}
		if len(m.Events) > 0 && len(kept) == 0 {
			continue
		}
		m.Events = kept
		if err := down.Send(m); err != nil {
			return err
		}
	}
}

// before starts f before an etcd.
func (f *forgetful) before(t *testing.T, w *world) (url string) {
	t.Helper()
	f.conn = w.client.ActiveConnection()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s := grpc.NewServer()
	etcdserverpb.RegisterKVServer(s, f)
	etcdserverpb.RegisterWatchServer(s, f)
	etcdserverpb.RegisterLeaseServer(s, f)
	go func() { _ = s.Serve(l) }() // it ends when it is stopped
	t.Cleanup(s.Stop)
	return "http://" + l.Addr().String()
}

// TestRevisionsLeftOut: whatever etcd leaves out of its stream is a gap, which is reported and asks
// for a backup, and recording goes on after it.
func TestRevisionsLeftOut(t *testing.T) {
	for name, c := range map[string]struct {
		skip, n int64
		// late leaves out what was made before the watch began.
		late bool
	}{"one": {1, 1, false}, "several": {2, 5, false}, "before the watch": {1, 2, true}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "etcd-3.6", "3.6.16")
			rev := w.put("/first", "1")
			w.backup()
			f := &forgetful{from: rev + c.skip, to: rev + c.skip + c.n - 1}
			url := f.before(t, w)
			begin := func() *Recorder {
				r, _ := w.record(func(cfg *Config) {
					cfg.Members = members(func(context.Context) (Source, error) { return new(client.Streams).Dial([]string{url}, nil) })
				})
				return r
			}
			var r *Recorder
			if !c.late {
				r = begin()
				w.began(r)
			}
			for i := range 9 {
				if i%2 == 0 {
					w.put(fmt.Sprintf("/k/%d", i/2), "x")
				} else {
					_, err := w.client.Delete(t.Context(), fmt.Sprintf("/k/%d", i/2), clientv3.WithPrefix())
					must(t, err)
				}
			}
			if c.late {
				r = begin()
			}
			why := <-w.gaps
			if want := fmt.Sprintf("from revision %d to %d were left out", f.from, f.to); !strings.Contains(why, want) {
				t.Errorf("gap %q, want %q", why, want)
			}
			w.backup()
			w.archived(r, w.put("/last", "1"))
			w.whole(r)
			if s := r.Status(); s.Gaps != 1 || s.Error != "" {
				t.Errorf("%+v", s)
			}
		})
	}
}

// storeAway has no segment stored.
func storeAway() blobtest.Fault {
	return blobtest.Fault{Op: "put", Match: func(key string) bool {
		return strings.HasPrefix(key, "changes/") &&
			!strings.HasSuffix(key, ".json")
	}, Err: blobtest.Transient("put", "x")}
}
