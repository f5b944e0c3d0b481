package manager

import (
	"context"
	"fmt"
	"io"
	"iter"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil/logtest"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// grumbling is a store that fails in other words each time.
type grumbling struct {
	blob.Store
	fails func(op, key string) bool
	kind  error

	mu    sync.Mutex
	tries map[string]int // by operation
}

func (g *grumbling) refuse(op, key string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tries[op]++
	if !g.fails(op, key) {
		return nil
	}
	return &blob.Error{Op: op, Key: key, Kind: g.kind, Err: fmt.Errorf("request %d was refused", g.tries[op])}
}

func (g *grumbling) Put(ctx context.Context, key string, body io.Reader, o blob.PutOptions) (blob.Info, error) {
	if err := g.refuse("put", key); err != nil {
		return blob.Info{}, err
	}
	return g.Store.Put(ctx, key, body, o)
}

func (g *grumbling) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	if err := g.refuse("get", key); err != nil {
		return nil, blob.Info{}, err
	}
	return g.Store.Get(ctx, key, r)
}

func (g *grumbling) Stat(ctx context.Context, key string) (blob.Info, error) {
	if err := g.refuse("stat", key); err != nil {
		return blob.Info{}, err
	}
	return g.Store.Stat(ctx, key)
}

func (g *grumbling) List(ctx context.Context, prefix string, o blob.ListOptions) iter.Seq2[blob.Entry, error] {
	if err := g.refuse("list", prefix); err != nil {
		return func(yield func(blob.Entry, error) bool) { yield(blob.Entry{}, err) }
	}
	return g.Store.List(ctx, prefix, o)
}

func (g *grumbling) Purge(ctx context.Context, prefix string, match func(string) bool) (int, error) {
	if err := g.refuse("purge", prefix); err != nil {
		return 0, err
	}
	return g.Store.Purge(ctx, prefix, match)
}

// TestFailingLoops has a leader live through half an hour of a store of which something fails, in other words each time, and that wakes it
// all the while. Whatever loop it is that fails, it logs at most ten lines a minute, and the store isn't asked more often than the back-offs
// say.
func TestFailingLoops(t *testing.T) {
	const minutes = 30
	kinds := map[string]error{"away": blob.ErrTransient, "denied": blob.ErrDenied, "odd": nil}
	for what, fails := range map[string]func(op, key string) bool{
		"everything":      func(string, string) bool { return true },
		"writing":         func(op, _ string) bool { return op == "put" },
		"reading":         func(op, _ string) bool { return op == "get" },
		"listing":         func(op, _ string) bool { return op == "list" },
		"deleting":        func(op, _ string) bool { return op == "purge" },
		"listing backups": func(op, key string) bool { return op == "list" && !strings.HasPrefix(key, "control") },
		"the marker":      func(_, key string) bool { return strings.HasSuffix(key, "etcd-cluster-created") },
		"the spec":        func(_, key string) bool { return strings.HasSuffix(key, "etcd-cluster-spec") },
		"the leader":      func(_, key string) bool { return strings.HasSuffix(key, "control/leader") },
		"commands":        func(op, key string) bool { return op == "get" && strings.Contains(key, "_command") },
		"operations":      func(op, key string) bool { return op == "get" && strings.Contains(key, "operations/") },
		"settings":        func(op, key string) bool { return op == "get" && strings.Contains(key, "settings") },
	} {
		for how, kind := range kinds {
			t.Run(what+" "+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := blobtest.NewMemory()
					fill(t, m)
					g := &grumbling{Store: m, fails: fails, kind: kind, tries: map[string]int{}}
					mgr, err := New(Config{ClusterName: "test", Self: "a", Instance: "i", Peers: noPeers{}, Catalog: catalog.New(g),
						VerifyInterval: time.Minute,
						Policy:         model.DefaultPolicy("3.6.0"), Probe: func(context.Context) (bool, error) { return true, nil }})
					must(t, err)
					must(t, mgr.probe(t.Context()))
					ctx, cancel := context.WithTimeout(t.Context(), minutes*time.Minute)
					defer cancel()
					l := newLeadership(mgr, 4)
					lines := logtest.Lines(t, func() {
						var wg sync.WaitGroup
						wg.Go(func() { // whatever wakes the loop doesn't have it try again
							for ctx.Err() == nil {
								l.poke()
								time.Sleep(100 * time.Millisecond)
							}
						})
						l.run(ctx)
						wg.Wait()
					})
					if len(lines) > 10*minutes {
						t.Errorf("%d lines in %d minutes, the last ones:\n%s", len(lines), minutes, strings.Join(lines[max(0, len(lines)-20):], "\n"))
					}
					for op, n := range g.tries {
						if n > 60*minutes {
							t.Errorf("%s was tried %d times in %d minutes", op, n, minutes)
						}
					}
				})
			})
		}
	}
}
