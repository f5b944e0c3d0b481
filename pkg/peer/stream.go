package peer

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// ExchangeStream answers another manager as Exchange does, as long as it asks. See protos/v1/peer.proto.
func (p *Peers) ExchangeStream(s protosv1.PeerService_ExchangeStreamServer) error {
	for {
		req, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		resp, err := p.Exchange(s.Context(), req)
		if err != nil {
			return err
		}
		if err := s.Send(resp); err != nil {
			return err
		}
	}
}

// caller makes the exchanges with one node: on a stream that lives as long as the connection, since a call of its own for each costs several times
// as much. Each exchange has its own deadline. One that isn't answered in time takes the stream out of use: those that come after it get
// a new one, so that they don't wait behind it.
type caller struct {
	client protosv1.PeerServiceClient
	// spawn runs what reads a stream; it returns false if nothing is started any more.
	spawn func(func(context.Context)) bool
	// unary is set once the node has said that it knows no streams. See reset.
	unary atomic.Bool

	// turn is held by who opens a stream or sends on it, both of which may wait; the place in it is free if turn is empty.
	turn chan struct{}

	mu     sync.Mutex // never held while anything waits
	stream *stream    // for new exchanges; nil if there is none
}

func newCaller(client protosv1.PeerServiceClient, spawn func(func(context.Context)) bool) *caller {
	return &caller{client: client, spawn: spawn, turn: make(chan struct{}, 1)}
}

// stream is one stream. caller.mu guards waiting.
type stream struct {
	protosv1.PeerService_ExchangeStreamClient
	cancel context.CancelFunc
	// late is set when cancel is called because an exchange's time has ended.
	late atomic.Bool
	// waiting are the exchanges that have no answer yet, in the order of their requests. The link bounds how many there are.
	waiting []*waiter
}

type waiter struct {
	answer chan answer // has room for one
	gone   bool        // its time has ended; its answer, if it comes, is dropped
}

type answer struct {
	resp *protosv1.ExchangeResponse
	err  error
}

// reset is for a connection that is new: another version may answer there.
func (c *caller) reset() {
	c.unary.Store(false)
	c.renew()
}

// renew takes the stream out of use. gRPC keeps a connection that it has left, to an endpoint that
// the node doesn't have any more, for as long as a stream is open there.
func (c *caller) renew() {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stream
	c.stream = nil
	if s != nil && len(s.waiting) == 0 {
		s.cancel() // else receive ends it with the last answer
	}
}

// exchange sends a request and returns its answer, or an error with a gRPC status. ctx has the deadline; run ends when the manager does.
func (c *caller) exchange(run, ctx context.Context, req *protosv1.ExchangeRequest) (*protosv1.ExchangeResponse, error) {
	if !c.unary.Load() {
		resp, err := c.onStream(run, ctx, req)
		if status.Code(err) != codes.Unimplemented {
			return resp, err
		}
		c.unary.Store(true)
	}
	return c.client.Exchange(ctx, req)
}

func (c *caller) onStream(run, ctx context.Context, req *protosv1.ExchangeRequest) (*protosv1.ExchangeResponse, error) {
	s, w, err := c.send(run, ctx, req)
	if err != nil {
		return nil, err
	}
	select {
	case a := <-w.answer:
		return a.resp, a.err
	case <-ctx.Done():
		c.giveUp(s, w)
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

// send sends a request on the stream, which it opens if there is none.
func (c *caller) send(run, ctx context.Context, req *protosv1.ExchangeRequest) (*stream, *waiter, error) {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return nil, nil, status.FromContextError(ctx.Err()).Err()
	}
	w := &waiter{answer: make(chan answer, 1)}
	c.mu.Lock()
	s := c.stream
	if s != nil {
		s.waiting = append(s.waiting, w)
	}
	c.mu.Unlock()
	if s == nil {
		var err error
		if s, err = c.open(run, ctx, w); err != nil {
			return nil, nil, err
		}
	}
	// Sending waits where a connection doesn't take any more.
	stop := context.AfterFunc(ctx, s.timeout)
	_ = s.Send(req) // why it fails, the reader is told
	stop()
	return s, w, nil
}

// timeout ends the stream because an exchange's time has ended.
func (s *stream) timeout() {
	s.late.Store(true)
	s.cancel()
}

// open opens a stream on which w waits. The turn is held.
func (c *caller) open(run, ctx context.Context, w *waiter) (*stream, error) {
	sctx, cancel := context.WithCancel(run)
	stop := context.AfterFunc(ctx, cancel)
	client, err := c.client.ExchangeStream(sctx)
	if !stop() {
		err = status.FromContextError(ctx.Err()).Err()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	s := &stream{PeerService_ExchangeStreamClient: client, cancel: cancel, waiting: []*waiter{w}}
	c.mu.Lock()
	c.stream = s
	c.mu.Unlock()
	if !c.spawn(func(context.Context) { c.receive(s) }) {
		c.mu.Lock()
		c.abandon(s)
		c.mu.Unlock()
		cancel()
		return nil, status.Error(codes.Unavailable, errNotRunning.Error())
	}
	return s, nil
}

// receive hands out the answers until the stream ends, or nobody waits for it any more who could use it again.
func (c *caller) receive(s *stream) {
	defer s.cancel()
	for {
		resp, err := s.Recv()
		switch {
		case errors.Is(err, io.EOF):
			err = status.Error(codes.Unavailable, "the other manager has ended the stream")
		case err != nil && s.late.Load():
			err = status.FromContextError(context.DeadlineExceeded).Err()
		}
		c.mu.Lock()
		if err == nil && len(s.waiting) == 0 {
			err = status.Error(codes.Internal, "an answer came that nobody has asked for")
		}
		if err != nil {
			c.abandon(s)
			waiting := s.waiting
			s.waiting = nil
			c.mu.Unlock()
			for _, w := range waiting {
				w.answer <- answer{err: err}
			}
			return
		}
		w := s.waiting[0]
		s.waiting = s.waiting[1:]
		over := c.stream != s && len(s.waiting) == 0
		c.mu.Unlock()
		w.answer <- answer{resp: resp}
		if over {
			return
		}
	}
}

// giveUp is for an exchange whose time has ended. Those that were sent on the same stream may still be answered, each in its own time.
func (c *caller) giveUp(s *stream, w *waiter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.abandon(s)
	w.gone = true
	if !slices.ContainsFunc(s.waiting, func(w *waiter) bool { return !w.gone }) {
		s.cancel()
	}
}

// abandon takes a stream out of use. mu is held.
func (c *caller) abandon(s *stream) {
	if c.stream == s {
		c.stream = nil
	}
}
