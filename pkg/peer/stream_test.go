package peer

import (
	"context"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// TestManagersWithoutStreams: managers of earlier versions and new ones elect together, and a new one in an old one's place is spoken to by streams.
func TestManagersWithoutStreams(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		s := &sharedStore{}
		w.old = true
		a := w.start("a", 3, nil, withSource(s.source("a")))
		w.old = false
		b, c := w.start("b", 3, nil, withSource(s.source("b"))), w.start("c", 3, nil, withSource(s.source("c")))
		w.eventually(10*time.Second, "everyone connected", func() bool { return allConnected(a, b, c) })
		w.awaitLeader(10*time.Second, a, b, c)
		time.Sleep(time.Minute) // by then each has asked each
		unary := func(m *manager, id cluster.NodeID) bool {
			m.peers.mu.Lock()
			defer m.peers.mu.Unlock()
			return m.peers.nodes[id].link.call.unary.Load()
		}
		if !unary(b, "a") || !unary(c, "a") || unary(b, "c") || unary(c, "b") {
			t.Errorf("to a: %v %v, to each other: %v %v", unary(b, "a"), unary(c, "a"), unary(b, "c"), unary(c, "b"))
		}
		a.kill()
		a = w.startAt("a", a.addr, 3, a.votes, withSource(s.source("a")))
		w.eventually(10*time.Second, "everyone connected", func() bool { return allConnected(a, b, c) })
		w.awaitLeader(10*time.Second, a, b, c)
		time.Sleep(time.Minute)
		if unary(b, "a") || unary(c, "a") {
			t.Error("the new manager is asked as an old one")
		}
	})
}

// script is a node whose streams do what the test says with the n-th request of the n-th stream, both from 1.
type script struct {
	protosv1.PeerServiceClient
	do func(stream, request int) (wait time.Duration, err error) // a negative wait never ends

	mu      sync.Mutex
	streams int
	unary   int
}

func (s *script) Exchange(_ context.Context, req *protosv1.ExchangeRequest, _ ...grpc.CallOption) (*protosv1.ExchangeResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unary++
	return &protosv1.ExchangeResponse{View: req.GetView()}, nil
}

func (s *script) ExchangeStream(ctx context.Context, _ ...grpc.CallOption) (protosv1.PeerService_ExchangeStreamClient, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams++
	return &scriptedStream{ctx: ctx, s: s, number: s.streams, requests: make(chan *protosv1.ExchangeRequest, 10)}, nil
}

type scriptedStream struct {
	grpc.ClientStream
	ctx             context.Context
	s               *script
	number, request int
	requests        chan *protosv1.ExchangeRequest
}

func (s *scriptedStream) Context() context.Context { return s.ctx }

func (s *scriptedStream) Send(req *protosv1.ExchangeRequest) error {
	select {
	case s.requests <- req:
		return nil
	case <-s.ctx.Done():
		return io.EOF
	}
}

func (s *scriptedStream) Recv() (*protosv1.ExchangeResponse, error) {
	var req *protosv1.ExchangeRequest
	select {
	case req = <-s.requests:
	case <-s.ctx.Done():
		return nil, status.FromContextError(s.ctx.Err()).Err()
	}
	s.request++
	wait, err := s.s.do(s.number, s.request)
	if wait < 0 {
		wait = 1000 * time.Hour
	}
	select {
	case <-time.After(wait):
	case <-s.ctx.Done():
		return nil, status.FromContextError(s.ctx.Err()).Err()
	}
	return &protosv1.ExchangeResponse{View: req.GetView()}, err
}

// scripted runs f with a caller of such a node. ask makes an exchange and returns how long it took.
func scripted(t *testing.T, s *script, f func(c *caller, ask func(view uint64) (time.Duration, error))) {
	synctest.Test(t, func(t *testing.T) {
		run, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		c := newCaller(s, func(f func(context.Context)) bool { wg.Go(func() { f(run) }); return true })
		f(c, func(view uint64) (time.Duration, error) {
			ctx, cancel := context.WithTimeout(run, callTimeout)
			defer cancel()
			from := time.Now()
			resp, err := c.exchange(run, ctx, &protosv1.ExchangeRequest{View: view})
			if err == nil && resp.GetView() != view {
				t.Errorf("the answer to %d is that to %d", view, resp.GetView())
			}
			return time.Since(from), err
		})
		stop()
		wg.Wait()
	})
}

// A stream that hangs is noticed after the time of a call, and who asks after that doesn't wait behind it.
func TestStreamThatHangs(t *testing.T) {
	s := &script{do: func(stream, request int) (time.Duration, error) {
		if stream == 1 && request > 1 {
			return -1, nil
		}
		return 0, nil
	}}
	scripted(t, s, func(_ *caller, ask func(uint64) (time.Duration, error)) {
		if d, err := ask(1); err != nil || d != 0 {
			t.Fatalf("the first answer: %v after %v", err, d)
		}
		var wg sync.WaitGroup
		for i := range 3 { // at different times, each with its own deadline
			wg.Go(func() {
				if d, err := ask(uint64(10 + i)); status.Code(err) != codes.DeadlineExceeded || d != callTimeout {
					t.Errorf("an exchange on a stream that hangs: %v after %v", err, d)
				}
			})
			time.Sleep(500 * time.Millisecond)
		}
		time.Sleep(600 * time.Millisecond) // the first of them has given up, two haven't
		if d, err := ask(20); err != nil || d != 0 {
			t.Errorf("the exchange after that: %v after %v", err, d)
		}
		wg.Wait()
	})
	if s.streams != 2 || s.unary != 0 {
		t.Errorf("%d streams and %d calls", s.streams, s.unary)
	}
}

// Answers that are slow, but not too slow, find those who have asked, also behind one that nobody waits for any more.
func TestStreamThatIsSlow(t *testing.T) {
	s := &script{do: func(stream, _ int) (time.Duration, error) {
		if stream == 1 {
			return 1500 * time.Millisecond, nil
		}
		return 0, nil
	}}
	scripted(t, s, func(_ *caller, ask func(uint64) (time.Duration, error)) {
		var wg sync.WaitGroup
		ask3 := func(view uint64, want codes.Code) {
			wg.Go(func() {
				if _, err := ask(view); status.Code(err) != want {
					t.Errorf("exchange %d: %v, not %v", view, err, want)
				}
			})
		}
		ask3(1, codes.OK)
		time.Sleep(time.Millisecond)
		ask3(2, codes.DeadlineExceeded) // its answer would come after 3 s
		time.Sleep(1400 * time.Millisecond)
		ask3(3, codes.DeadlineExceeded)
		wg.Wait()
		if _, err := ask(4); err != nil {
			t.Error(err)
		}
	})
}

// What ends a stream is told to all who wait for it, and the next exchange opens another one.
func TestStreamThatEnds(t *testing.T) {
	s := &script{do: func(stream, _ int) (time.Duration, error) {
		if stream == 1 {
			return time.Second, status.Error(codes.FailedPrecondition, "another cluster")
		}
		return 0, nil
	}}
	scripted(t, s, func(_ *caller, ask func(uint64) (time.Duration, error)) {
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				if d, err := ask(uint64(i)); status.Code(err) != codes.FailedPrecondition || d != time.Second {
					t.Errorf("an exchange on a stream that ends: %v after %v", err, d)
				}
			})
		}
		wg.Wait()
		if _, err := ask(4); err != nil {
			t.Error(err)
		}
	})
}

// TestStreamIsRenewed: with another connection or other endpoints the stream to the old one ends, with the last answer that is still to come there.
func TestStreamIsRenewed(t *testing.T) {
	s := &script{do: func(stream, _ int) (time.Duration, error) {
		if stream == 2 {
			return time.Second, nil
		}
		return 0, nil
	}}
	scripted(t, s, func(c *caller, ask func(uint64) (time.Duration, error)) {
		streamOf := func() *stream {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.stream
		}
		next := func(view uint64) *stream {
			if _, err := ask(view); err != nil {
				t.Error(err)
			}
			return streamOf()
		}
		first := next(1)
		c.renew() // nobody waits
		synctest.Wait()
		if first.Context().Err() == nil {
			t.Error("the first stream is still open")
		}
		var wg sync.WaitGroup
		wg.Go(func() { next(2) })
		synctest.Wait()
		second := streamOf()
		c.reset() // somebody waits
		third := next(3)
		if second == nil || third == second || second.Context().Err() != nil {
			t.Error("the second stream is used further, or has ended before its answer")
		}
		wg.Wait()
		synctest.Wait()
		if second.Context().Err() == nil {
			t.Error("the second stream is still open")
		}
	})
	if s.streams != 3 || s.unary != 0 {
		t.Errorf("%d streams and %d calls", s.streams, s.unary)
	}
}
