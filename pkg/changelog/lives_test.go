package changelog

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
)

// began waits until a recorder has found out where it goes on: what is changed from then on comes to it.
func (w *world) began(r *Recorder) {
	w.t.Helper()
	eventually(w.t, "the recorder has begun", func() bool { return r.Status().Incarnation != "" })
}

// storeSegment puts a segment of one revision into the store, as somebody else's.
func (w *world) storeSegment(i catalog.Incarnation, revision int64) catalog.SegmentName {
	w.t.Helper()
	b := newBuilder(revision - 1)
	must(w.t, b.add(client.Transaction{Revision: revision}))
	must(w.t, b.mark(time.Now(), time.Time{}))
	s, err := b.seal(w.t.Context(), origin{incarnation: i}, nil, "a test", nil)
	must(w.t, err)
	must(w.t, w.catalog.PutSegment(w.t.Context(), i, s.name, s.data))
	return s.name
}

// TestSecondLife goes on with the second life of a cluster when its revisions have passed those of the first one.
func TestSecondLife(t *testing.T) {
	w := newWorld(t, "etcd-3.6", "3.6.16")
	ctx := t.Context()
	_, id, err := w.own.Revision(ctx)
	must(t, err)
	first := catalog.IncarnationOf(id)
	began := time.Now()
	must(t, w.catalog.CreateIncarnation(ctx, catalog.IncarnationRecord{ID: first, Began: began.Add(-time.Hour)}))
	w.storeSegment(first, 30)
	r, stop := w.record(nil)
	w.began(r)
	w.archived(r, w.put("/a", "1"))
	stop()
	w.backup()
	for i := range 40 {
		w.put("/b", fmt.Sprint(i))
	}
	r, _ = w.record(nil)
	w.began(r)
	w.archived(r, w.put("/a", "2"))
	if got := r.Status().Incarnation; got != first+"-2" {
		t.Errorf("incarnation %s", got)
	}
	w.whole(r)
	for at, want := range map[time.Time]catalog.Incarnation{began.Add(-30 * time.Minute): first, began.Add(time.Minute): first + "-2"} {
		if got, err := lifeAt(ctx, w.catalog, id, at); err != nil || got != want {
			t.Errorf("at %s: %s, %v, want %s", at, got, err, want)
		}
	}
}

// behind is a source that was asked before somebody else has stored a little more.
type behind struct {
	Source
	asked atomic.Int64
}

func (b *behind) Revision(ctx context.Context) (int64, uint64, error) {
	rev, id, err := b.Source.Revision(ctx)
	if b.asked.Add(1) == 1 {
		rev--
	}
	return rev, id, err
}

// TestStoreIsAhead begins no second life where another writer was a little faster.
func TestStoreIsAhead(t *testing.T) {
	w := newWorld(t, "etcd-3.6", "3.6.16")
	rev := w.put("/a", "1")
	_, id, err := w.own.Revision(t.Context())
	must(t, err)
	first := catalog.IncarnationOf(id)
	w.storeSegment(first, rev)
	r, _ := w.record(func(c *Config) {
		dial := c.Members()[0]
		c.Members = members(func(ctx context.Context) (Source, error) {
			s, err := dial(ctx)
			return &behind{Source: s}, err
		})
	})
	w.began(r)
	w.archived(r, w.put("/a", "2"))
	if got := r.Status().Incarnation; got != first {
		t.Errorf("incarnation %s", got)
	}
}

// TestDamagedEnd begins a new chain, and asks for a backup, where the last segment before can't be read any more.
func TestDamagedEnd(t *testing.T) {
	w := newWorld(t, "etcd-3.6", "3.6.16")
	rev := w.put("/a", "1")
	_, id, err := w.own.Revision(t.Context())
	must(t, err)
	first := catalog.IncarnationOf(id)
	n := w.storeSegment(first, rev)
	must(t, func() error {
		_, err := w.catalog.DeleteSegments(t.Context(), first, []catalog.SegmentName{n})
		return err
	}())
	must(t, w.catalog.PutSegment(t.Context(), first, n, []byte("not what it was")))
	r, _ := w.record(nil)
	w.began(r)
	w.archived(r, w.put("/a", "2"))
	eventually(t, "a backup is asked for", func() bool { return len(w.gaps) > 0 })
	if why := <-w.gaps; !strings.Contains(why, "is damaged") {
		t.Errorf("gap: %s", why)
	}
	w.backup()
	w.archived(r, w.put("/a", "3"))
	w.whole(r)
}

// mute is an etcd that says nothing of its leases.
type mute struct {
	Source
	asked atomic.Int64
}

func (m *mute) LeaseTTL(ctx context.Context, _ int64) (int64, error) {
	m.asked.Add(1)
	<-ctx.Done()
	return 0, context.Cause(ctx)
}

// TestLeasesWithoutAnswer: changes are kept in time though no question for their many leases is answered.
func TestLeasesWithoutAnswer(t *testing.T) {
	w := newWorld(t, "etcd-3.6", "3.6.16")
	silent := &mute{}
	r, _ := w.record(func(c *Config) {
		dial := c.Members()[0]
		c.Members = members(func(ctx context.Context) (Source, error) {
			s, err := dial(ctx)
			silent.Source = s
			return silent, err
		})
	})
	w.began(r)
	var last int64
	for i := range 30 {
		l, err := w.client.Grant(t.Context(), 600)
		must(t, err)
		p, err := w.client.Put(t.Context(), fmt.Sprintf("/leased/%d", i), "x", clientv3.WithLease(l.ID))
		must(t, err)
		last = p.Header.Revision
	}
	w.archived(r, last)
	if n := silent.asked.Load(); n == 0 || n > 2*30 {
		t.Errorf("%d questions", n)
	}
}

// frozen forwards connections until it is frozen: from then on nothing passes, and nothing ends, as when a machine loses its power.
type frozen struct {
	url    string
	mu     sync.Mutex
	passed atomic.Int64
}

func (f *frozen) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.passed.Add(int64(len(p)))
	return len(p), nil
}

func (f *frozen) pipe(to, from net.Conn) {
	_, _ = io.Copy(to, io.TeeReader(from, f)) // until either side is closed
}

func freezable(t *testing.T, target string) *frozen {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	f := &frozen{url: "http://" + l.Addr().String()}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", strings.TrimPrefix(target, "http://"))
			if err != nil {
				in.Close()
				continue
			}
			t.Cleanup(func() { in.Close(); out.Close() })
			go f.pipe(in, out)
			go f.pipe(out, in)
		}
	}()
	return f
}

// TestSilence goes on with another connection when one has fallen silent.
func TestSilence(t *testing.T) {
	testutil.Long(t)
	w := newWorld(t, "etcd-3.6", "3.6.16")
	f := freezable(t, w.url)
	var dials atomic.Int64
	r, _ := w.record(func(c *Config) {
		c.Members = members(func(context.Context) (Source, error) {
			if dials.Add(1) == 1 {
				return client.Dial([]string{f.url}, nil)
			}
			return client.Dial([]string{w.url}, nil)
		})
	})
	w.began(r)
	w.archived(r, w.put("/a", "1"))
	if f.passed.Load() == 0 {
		t.Fatal("nothing came by the connection that is to fall silent")
	}
	f.mu.Lock() // until the end: whoever pipes waits
	t.Cleanup(f.mu.Unlock)
	w.archived(r, w.put("/a", "2"))
}

// TestUnusableRecord: the record of the incarnation that serves was damaged, or is of a newer version, before a change of leader. The first
// incarnation of a cluster is gone on with; a later one, whose backups only its record tells, is followed by another one. In both cases
// changes are kept, and after a backup the latest state and the points since can be reached.
func TestUnusableRecord(t *testing.T) {
	for what, text := range map[string]string{"damaged": "{", "of a newer version": `{"version":1000000}`} {
		for n := 1; n <= 2; n++ {
			t.Run(fmt.Sprintf("%s, incarnation %d", what, n), func(t *testing.T) {
				w := newWorld(t, "etcd-3.6", "3.6.16")
				ctx := t.Context()
				_, id, err := w.own.Revision(ctx)
				must(t, err)
				if n == 2 {
					first := catalog.IncarnationRecord{ID: catalog.IncarnationOf(id), Began: time.Now().Add(-time.Hour)}
					must(t, w.catalog.CreateIncarnation(ctx, first))
					w.storeSegment(first.ID, 30)
				}
				r, stop := w.record(nil)
				w.began(r)
				w.archived(r, w.put("/a", "1"))
				stop()
				before := w.backup()
				bad := r.Status().Incarnation
				_, err = w.store.Put(ctx, "changes/"+string(bad)+"/_incarnation.json", strings.NewReader(text), blob.PutOptions{})
				must(t, err)

				r, _ = w.record(nil)
				w.began(r)
				if got := r.Status().Incarnation; (got == bad) != (n == 1) {
					t.Errorf("incarnation %s after %s", got, bad)
				}
				if n == 2 {
					w.backup()
				}
				last := w.put("/a", "2")
				w.archived(r, last)
				a := &Archive{Catalog: w.catalog}
				for _, target := range []Target{{Latest: true}, {Revision: last}} {
					if _, err := a.Plan(ctx, target); err != nil {
						t.Errorf("plan %s: %v", target, err)
					}
				}
				if p, err := a.Plan(ctx, Target{Backup: before.Backup}); err != nil || p.Revision != before.Revision {
					t.Errorf("the backup from before can't be reached: %+v, %v", p, err)
				}
			})
		}
	}
}
