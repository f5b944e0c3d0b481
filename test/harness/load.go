package harness

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Load is a number of clients that write and read all the time, and remember every write that etcd has acknowledged. Every write has a
// key of its own, so that one which failed without an answer can't be taken for anything else.
type Load struct {
	c      *Cluster
	prefix string
	stop   context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	acked    map[string]int64 // key to revision
	ackedAt  map[string]time.Time
	failures []Failure
	reads    int
	last     time.Time
	gap      time.Duration
	slowest  time.Duration
}

// Failure is one request that wasn't answered as it should be.
type Failure struct {
	At   time.Time
	Took time.Duration
	// Endpoint is whom the client had asked; empty if it could ask any.
	Endpoint string
	Op       string
	Err      error
}

// LoadOptions say how the clients work.
type LoadOptions struct {
	// Prefix begins the keys; default "/load/".
	Prefix string
	// Pause lies between two requests of a client; default 20 ms.
	Pause time.Duration
	// Timeout ends a request; default 5 s.
	Timeout time.Duration
	// Any uses one client that knows all endpoints, as an API server does. The default is a client for each node, which
	// notices when that node's etcd alone doesn't serve.
	Any bool
	// Fresh makes a new connection, with a new TLS handshake, every that many requests; 0 means never.
	Fresh int
}

// LoadReport sums a Load up.
type LoadReport struct {
	Acked, Reads int
	Failures     []Failure
	// LongestGap is the longest time in which no write at all was acknowledged, Slowest the slowest request that was answered.
	LongestGap, Slowest time.Duration
}

// String is for logs.
func (r LoadReport) String() string {
	s := fmt.Sprintf("%d writes acknowledged, %d reads, %d requests failed, longest gap %s, slowest answer %s", r.Acked,
		r.Reads, len(r.Failures),
		r.LongestGap.Round(time.Millisecond), r.Slowest.Round(time.Millisecond))
	for i, f := range r.Failures {
		if i == 5 {
			s += fmt.Sprintf("\n  and %d more", len(r.Failures)-i)
			break
		}
		s += fmt.Sprintf("\n  %s %s %s after %s: %v", f.At.Format("15:04:05.000"), f.Op, f.Endpoint, f.Took.Round(time.Millisecond), f.Err)
	}
	return s
}

// StartLoad starts the clients. They end with Stop, or with the test.
func (c *Cluster) StartLoad(o LoadOptions) *Load {
	c.t.Helper()
	if o.Prefix == "" {
		o.Prefix = "/load/"
	}
	if o.Pause == 0 {
		o.Pause = 20 * time.Millisecond
	}
	if o.Timeout == 0 {
		o.Timeout = 5 * time.Second
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &Load{c: c, prefix: o.Prefix, stop: cancel, acked: map[string]int64{}, ackedAt: map[string]time.Time{}, last: time.Now()}
	c.t.Cleanup(func() { cancel(); l.wg.Wait() })
	if o.Any {
		l.wg.Go(func() { l.work(ctx, o, "any", c.ClientURLs()) })
		return l
	}
	for _, n := range c.Nodes {
		l.wg.Go(func() { l.work(ctx, o, n.Name, []string{n.ClientURL()}) })
	}
	return l
}

func (l *Load) dial(urls []string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: urls, TLS: l.c.TLS(), Logger: zap.NewNop(),
		DialTimeout: 5 * time.Second, DialKeepAliveTime: 2 * time.Second, DialKeepAliveTimeout: 2 * time.Second})
}

// work is one client: a write, a linearizable read of it, a pause.
func (l *Load) work(ctx context.Context, o LoadOptions, name string, urls []string) {
	client, err := l.dial(urls)
	for i := 0; ctx.Err() == nil; i++ {
		if err != nil {
			l.note(ctx, o.Timeout, name, "dial", func(context.Context) error { return err })
		}
		if o.Fresh > 0 && i%o.Fresh == o.Fresh-1 || err != nil {
			if client != nil {
				client.Close()
			}
			if client, err = l.dial(urls); err != nil {
				continue
			}
		}
		key := fmt.Sprintf("%s%s-%08d", o.Prefix, name, i)
		ok := l.note(ctx, o.Timeout, name, "put", func(ctx context.Context) error {
			r, err := client.Put(ctx, key, "value of "+key)
			if err == nil {
				l.ack(key, r.Header.Revision)
			}
			return err
		})
		if ok {
			l.note(ctx, o.Timeout, name, "get", func(ctx context.Context) error {
				r, err := client.Get(ctx, key)
				switch {
				case err != nil:
					return err
				case len(r.Kvs) != 1 || string(r.Kvs[0].Value) != "value of "+key:
					return fmt.Errorf("the write of %s was acknowledged, but reading it gives %v", key, r.Kvs)
				}
				return nil
			})
		}
		select {
		case <-ctx.Done():
		case <-time.After(o.Pause):
		}
	}
	if client != nil {
		client.Close()
	}
}

func (l *Load) ack(key string, revision int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked[key] = revision
	now := time.Now()
	l.ackedAt[key] = now
	l.gap = max(l.gap, now.Sub(l.last))
	l.last = now
}

// note does a request and remembers how it went. One that the end of the load interrupts doesn't count.
func (l *Load) note(ctx context.Context, limit time.Duration, endpoint, op string, f func(context.Context) error) bool {
	req, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	start := time.Now()
	err := f(req)
	took := time.Since(start)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err != nil && ctx.Err() == nil:
		l.failures = append(l.failures, Failure{At: start, Took: took, Endpoint: endpoint, Op: op, Err: err})
	case err == nil:
		l.slowest = max(l.slowest, took)
		if op == "get" {
			l.reads++
		}
	}
	return err == nil
}

// Report is the state of the moment.
func (l *Load) Report() LoadReport {
	l.mu.Lock()
	defer l.mu.Unlock()
	return LoadReport{Acked: len(l.acked), Reads: l.reads, Failures: slices.Clone(l.failures), LongestGap: l.gap, Slowest: l.slowest}
}

// Acked is the number of acknowledged writes.
func (l *Load) Acked() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// Stop ends the clients and sums up. It may be called again.
func (l *Load) Stop() LoadReport {
	l.stop()
	l.wg.Wait()
	return l.Report()
}

// Verify reads everything back, linearizably, and fails the test for every acknowledged write that isn't there. Call it after Stop.
func (l *Load) Verify() { l.VerifyFrom(0) }

// VerifyFrom is Verify for the writes that were acknowledged with at least that revision: after a restore those from before are gone.
func (l *Load) VerifyFrom(revision int64) { l.t().Helper(); l.VerifyBetween(revision, math.MaxInt64) }

func (l *Load) t() testing.TB { return l.c.t }

// VerifyBetween is Verify for the writes that were acknowledged with a revision from the first to below the second.
func (l *Load) VerifyBetween(from, to int64) {
	l.c.t.Helper()
	got, _ := l.c.ReadAll(l.prefix)
	l.mu.Lock()
	defer l.mu.Unlock()
	var lost []string
	for key, at := range l.acked {
		if at >= from && at < to && got[key] != "value of "+key {
			lost = append(lost, key)
		}
	}
	slices.Sort(lost)
	if len(lost) > 0 {
		l.c.t.Errorf("%d of %d acknowledged writes are lost: %s", len(lost), len(l.acked), strings.Join(lost[:min(len(lost), 10)], " "))
	}
}

// Behind counts the writes that were acknowledged with a revision above this one, and tells when the first of them was.
func (l *Load) Behind(revision int64) (n int, oldest time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, at := range l.acked {
		if at <= revision {
			continue
		}
		n++
		if when := l.ackedAt[key]; oldest.IsZero() || when.Before(oldest) {
			oldest = when
		}
	}
	return n, oldest
}

// Unacknowledged are the keys that are there though no client was told so, or only with a revision
// above this one. A write whose answer was lost may be among them, but no more than one of each
// client.
func (l *Load) Unacknowledged(revision int64) []string {
	l.c.t.Helper()
	got, _ := l.c.ReadAll(l.prefix)
	l.mu.Lock()
	defer l.mu.Unlock()
	var extra []string
	for key := range got {
		if at, ok := l.acked[key]; !ok || at > revision {
			extra = append(extra, key)
		}
	}
	slices.Sort(extra)
	return extra
}

// ReadAll reads every key with the prefix, linearizably, and the revision at which that was.
func (c *Cluster) ReadAll(prefix string) (map[string]string, int64) {
	c.t.Helper()
	client := c.Client()
	got := map[string]string{}
	var revision int64
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for key, end := prefix, clientv3.GetPrefixRangeEnd(prefix); ; {
		opts := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(5000)}
		if revision != 0 {
			opts = append(opts, clientv3.WithRev(revision))
		}
		r, err := client.Get(ctx, key, opts...)
		if err != nil {
			c.t.Fatalf("read everything below %q: %v", prefix, err)
		}
		if revision == 0 {
			revision = r.Header.Revision
		}
		for _, kv := range r.Kvs {
			got[string(kv.Key)] = string(kv.Value)
		}
		if !r.More {
			return got, revision
		}
		key = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
}

// Put writes a key and returns the revision. It tries for a while, as the cluster may be between two leaders.
func (c *Cluster) Put(key, value string) int64 {
	c.t.Helper()
	client := c.Client()
	var revision int64
	c.WaitFor("a write of "+key, 30*time.Second, func() string {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		r, err := client.Put(ctx, key, value)
		if err != nil {
			return err.Error()
		}
		revision = r.Header.Revision
		return ""
	})
	return revision
}
