package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// dial makes a client that tries again at once when nobody listens: how patient a client is must not show in the figures.
func (b *bench) dial(conf *tls.Config, urls ...string) *clientv3.Client {
	c, err := clientv3.New(clientv3.Config{
		Endpoints: urls, TLS: conf, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1, MaxDelay: 10 * time.Millisecond},
			MinConnectTimeout: time.Second,
		})},
	})
	b.must(err)
	return c
}

// request is something that a client does.
type request func(context.Context, *clientv3.Client) error

func write(ctx context.Context, c *clientv3.Client) error {
	_, err := c.Put(ctx, "/bench/first", "value")
	return err
}

// read is linearizable.
func read(ctx context.Context, c *clientv3.Client) error {
	_, err := c.Get(ctx, "/bench/first")
	return err
}

// firstAnswer waits until one of the members, each asked by a client of its own, has answered.
func (b *bench) firstAnswer(conf *tls.Config, urls []string, r request, within time.Duration) time.Time {
	ctx, cancel := context.WithTimeout(b.ctx, within)
	defer cancel()
	answered := make(chan time.Time, len(urls))
	var wg sync.WaitGroup
	for _, u := range urls {
		c := b.dial(conf, u)
		wg.Go(func() {
			defer c.Close()
			for ctx.Err() == nil {
				try, stop := context.WithTimeout(ctx, time.Second)
				err := r(try, c)
				stop()
				if err == nil {
					answered <- time.Now()
					return
				}
				time.Sleep(2 * time.Millisecond) // asked again soon, but not at the cost of the CPU
			}
		})
	}
	defer wg.Wait()
	defer cancel()
	select {
	case t := <-answered:
		return t
	case <-ctx.Done():
		b.Fatalf("no answer within %s", within)
		return time.Time{}
	}
}

// answer is one answered request.
type answer struct {
	asked time.Time
	took  time.Duration
}

// flow is a client that writes at a constant pace, whether the answers keep up or not.
type flow struct {
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	mu       sync.Mutex
	answers  []answer
	failures int
}

// startFlow writes 256 bytes, to one of a thousand keys, perSecond times a second, until end.
func (b *bench) startFlow(conf *tls.Config, urls []string, perSecond int) *flow {
	ctx, cancel := context.WithCancel(b.ctx)
	f := &flow{cancel: cancel}
	c := b.dial(conf, urls...)
	value := string(make([]byte, 256))
	f.wg.Go(func() {
		defer c.Close()
		var writes sync.WaitGroup
		defer writes.Wait()
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		for i := 0; ; i++ {
			var due time.Time
			select {
			case <-ctx.Done():
				return
			case due = <-tick.C:
			}
			writes.Go(func() {
				try, stop := context.WithTimeout(ctx, 10*time.Second)
				defer stop()
				_, err := c.Put(try, fmt.Sprintf("/bench/flow/%03d", i%1000), value)
				f.mu.Lock()
				defer f.mu.Unlock()
				switch {
				case err == nil:
					f.answers = append(f.answers, answer{due, time.Since(due)})
				case ctx.Err() == nil:
					f.failures++
				}
			})
		}
	})
	b.Cleanup(f.end)
	return f
}

func (f *flow) end() {
	f.cancel()
	f.wg.Wait()
}

// p99 of the writes that were due between two moments, and how many there were.
func (f *flow) p99(from, to time.Time) (time.Duration, int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return p99(f.answers, from, to)
}

func p99(answers []answer, from, to time.Time) (time.Duration, int) {
	var list []time.Duration
	for _, a := range answers {
		if !a.asked.Before(from) && a.asked.Before(to) {
			list = append(list, a.took)
		}
	}
	return percentile(list, 99), len(list)
}

// gap finds the longest time in which nobody was served: a client for each member writes all the time.
type gap struct {
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	mu      sync.Mutex
	last    time.Time
	longest time.Duration
	answers []answer
}

func (b *bench) startGap(conf *tls.Config, urls []string) *gap {
	ctx, cancel := context.WithCancel(b.ctx)
	g := &gap{cancel: cancel, last: time.Now()}
	for _, u := range urls {
		c := b.dial(conf, u)
		g.wg.Go(func() {
			defer c.Close()
			for ctx.Err() == nil {
				try, stop := context.WithTimeout(ctx, time.Second)
				asked := time.Now()
				if write(try, c) == nil {
					g.mu.Lock()
					now := time.Now()
					g.answers = append(g.answers, answer{asked, now.Sub(asked)})
					g.longest, g.last = max(g.longest, now.Sub(g.last)), now
					g.mu.Unlock()
				}
				stop()
				time.Sleep(10 * time.Millisecond) // the pace of the clients
			}
		})
	}
	b.Cleanup(func() { g.end() })
	return g
}

func (g *gap) end() time.Duration {
	g.cancel()
	g.wg.Wait()
	return g.longest
}

// p99 of the writes that were asked for between two moments; after end.
func (g *gap) p99(from, to time.Time) time.Duration {
	d, _ := p99(g.answers, from, to)
	return d
}
