package restore

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// writing is a client that writes all the time and remembers for how long it could not.
type writing struct {
	mu   sync.Mutex
	last time.Time
	lost time.Duration
	// longest is the longest stretch of it.
	longest time.Duration
}

// leastGap is how long a write may take before the client counts as one that isn't served.
const leastGap = 500 * time.Millisecond

// startWriting has a client write until the test ends. It connects again quickly, so that what it misses is etcd and not its own patience.
func startWriting(t *testing.T, c *harness.Cluster) *writing {
	t.Helper()
	quick := backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1, MaxDelay: 50 * time.Millisecond}
	client, err := clientv3.New(clientv3.Config{Endpoints: c.ClientURLs(), TLS: c.TLS(), Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{Backoff: quick, MinConnectTimeout: time.Second})}})
	must(t, err)
	w := &writing{last: time.Now()}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	t.Cleanup(func() {
		cancel()
		<-done
		_ = client.Close()
	})
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i++ {
			req, cancel := context.WithTimeout(ctx, leastGap)
			_, err := client.Put(req, "/writing", fmt.Sprint(i))
			cancel()
			if err != nil {
				continue
			}
			w.mu.Lock()
			if gap := time.Since(w.last); gap >= leastGap {
				w.lost, w.longest = w.lost+gap, max(w.longest, gap)
			}
			w.last = time.Now()
			w.mu.Unlock()
			time.Sleep(10 * time.Millisecond)
		}
	}()
	return w
}

// took is for how long the client was not served since it was last asked, in all and at a stretch.
// It waits until the client is served again.
func (w *writing) took(c *harness.Cluster) (lost, longest time.Duration) {
	asked := time.Now()
	c.WaitFor("the client to be served", time.Minute, func() string {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.last.Before(asked) {
			return "it isn't"
		}
		lost, longest = w.lost, w.longest
		w.lost, w.longest = 0, 0
		return ""
	})
	return lost, longest
}

// TestOutageAsClientsFeelIt: the time without etcd that the record of a restore has is what a
// client that writes has missed, whether the managers were restarted one after the other, all at
// once, or not at all.
func TestOutageAsClientsFeelIt(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	oneByOne := func(c *harness.Cluster) {
		for _, n := range c.Nodes {
			n.Term()
			n.Start()
			c.WaitHealthy(len(c.Nodes))
		}
	}
	for _, tc := range []struct {
		nodes   int
		how     string
		restart func(*harness.Cluster)
		// before is true if clients miss etcd before the commit too.
		before bool
	}{
		{1, "restarted", (*harness.Cluster).RestartAll, true},
		{1, "restarted after a while", func(c *harness.Cluster) {
			c.TermAll()
			time.Sleep(5 * time.Second) // what an operator does meanwhile
			c.StartAll()
		}, true},
		{1, "with --now", nil, false},
		{3, "one after the other", oneByOne, false},
		{3, "all at once", (*harness.Cluster).RestartAll, true},
		{3, "with --now", nil, false},
	} {
		t.Run(fmt.Sprintf("%d, %s", tc.nodes, tc.how), func(t *testing.T) {
			c := harness.Start(t, harness.Options{Nodes: tc.nodes})
			c.WaitBackups(1)
			w := startWriting(t, c)
			w.took(c)
			args := []string{"restore-backup", "latest"}
			if tc.restart == nil {
				args = append(args, "--now")
			}
			if out, errOut, code := c.Ctl(args...); code != 0 {
				t.Fatalf("%q: code %d\n%s%s", args, code, out, errOut)
			}
			id := ""
			c.WaitFor("the command", time.Minute, func() string {
				ops, _, err := c.Catalog.Operations(t.Context())
				must(t, err)
				commands, _, err := c.Catalog.Commands(t.Context())
				must(t, err)
				switch {
				case len(ops) > 0:
					id = ops[0].ID
				case len(commands) > 0:
					id = commands[0].Name
				default:
					return "there is none"
				}
				return ""
			})
			if tc.restart != nil {
				tc.restart(c)
			}
			op := c.WaitOperation(id, 3*time.Minute)
			c.CheckEnded(op, catalog.StateDone)
			lost, longest := w.took(c)
			if !tc.before {
				lost = longest // it is one stretch; on a busy machine there are slow writes beside it
			}
			t.Logf("the client missed etcd for %s, the record says %s, of it %s before the commit",
				lost.Round(time.Millisecond), op.Outage.Round(time.Millisecond),
				op.RestartOutage.Round(time.Millisecond))
			if diff := (lost - op.Outage).Abs(); diff > max(2*time.Second, lost/2) {
				t.Errorf("they differ by %s", diff)
			}
			if got := op.RestartOutage > 0; got != tc.before {
				t.Errorf("before the commit it was %s", op.RestartOutage)
			}
		})
	}
}
