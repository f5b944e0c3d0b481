package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// brokenAfter is how long a caller waits for who isn't reached.
const brokenAfter = time.Second

// call carries a question from a process to a machine and the answer back. f is called there, at one moment, without any lock; it may wait.
func (p *proc) call(ctx context.Context, to *node, what string, f func() error) error {
	if err := p.step(); err != nil {
		return err
	}
	w, key := p.n.w, []string{string(p.n.id), string(to.id), what}
	travel := func(from, to *node) error {
		w.mu.Lock()
		d := w.transit(append(key, string(from.id))...)
		w.mu.Unlock()
		if !sleep(ctx, d) {
			return ctx.Err()
		}
		w.mu.Lock()
		ok := w.linked(from, to)
		w.mu.Unlock()
		if ok {
			return nil
		}
		if !sleep(ctx, brokenAfter) {
			return ctx.Err()
		}
		return errGone
	}
	if err := travel(p.n, to); err != nil {
		return err
	}
	err := f()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if back := travel(to, p.n); back != nil {
		return back
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.dead {
		return errDead
	}
	return err
}

// conn is a process's connection to the manager of a node.
type conn struct {
	p  *proc
	to *node
}

func unavailable(err error) error {
	if _, ok := status.FromError(err); ok || err == nil {
		return err
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return status.FromContextError(err).Err()
	}
	return status.Error(codes.Unavailable, err.Error())
}

// target is the process that answers on a node, once it doesn't stand still any more.
func (c *conn) target(ctx context.Context) (*proc, error) {
	w := c.to.w
	for {
		w.mu.Lock()
		p := c.to.proc
		var wait time.Duration
		if p != nil {
			wait = time.Until(p.paused)
		}
		w.mu.Unlock()
		switch {
		case p == nil:
			return nil, errGone
		case wait <= 0:
			return p, nil
		case !sleep(ctx, wait):
			return nil, ctx.Err()
		}
	}
}

func (c *conn) Invoke(ctx context.Context, method string, req, resp any, _ ...grpc.CallOption) error {
	name := method[strings.LastIndexByte(method, '/')+1:]
	var answer proto.Message
	err := c.p.call(ctx, c.to, name, func() error {
		t, err := c.target(ctx)
		if err != nil {
			return err
		}
		answer, err = t.answer(ctx, name, req)
		return err
	})
	if err != nil {
		return unavailable(err)
	}
	proto.Merge(resp.(proto.Message), answer)
	return nil
}

// answer is what a node says to a question.
func (p *proc) answer(ctx context.Context, name string, req any) (proto.Message, error) {
	w := p.n.w
	switch name {
	case "Observe":
		w.mu.Lock()
		defer w.mu.Unlock()
		if p.dead {
			return nil, errGone
		}
		w.did["observed"]++
		q := req.(*protosv1.ObserveRequest)
		if err := p.heed(cluster.Term(q.GetTerm()), cluster.NodeID(q.GetLeader())); err != nil {
			return nil, toStatus(err)
		}
		return wire.StatusToProto(p.status()), nil
	case "Reach":
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, u := range req.(*protosv1.ReachRequest).GetUrls() {
			if to := w.node(cluster.NodeID(hostOf(u))); to == nil || !w.linked(p.n, to) {
				return &protosv1.ReachResponse{Problem: u + " can't be reached"}, nil
			}
		}
		return &protosv1.ReachResponse{}, nil
	case "Witness":
		q := req.(*protosv1.WitnessRequest)
		t := blob.Witness(ctx, &store{p: p}, blob.Question{Key: q.GetKey(), Value: q.GetValue(), Reply: q.GetReply(), Lock: q.GetLock()})
		return &protosv1.WitnessResponse{Store: "sim", Problem: t.Problem, Found: t.Found, Held: t.Held, Replaced: t.Replaced}, nil
	}
	return nil, status.Error(codes.Unimplemented, name)
}

func hostOf(url string) string {
	host, _, _ := strings.Cut(strings.TrimPrefix(url, "http://"), ":")
	return host
}

func (c *conn) NewStream(ctx context.Context, _ *grpc.StreamDesc, method string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	return &stream{c: c, ctx: ctx, watch: strings.HasSuffix(method, "/Watch")}, nil
}

// stream answers Perform with its end, and Watch with each change.
type stream struct {
	c     *conn
	ctx   context.Context //nolint:containedctx // it is one call
	watch bool
	req   *protosv1.PerformRequest
	on    *proc
	next  chan struct{}
}

func (s *stream) Header() (metadata.MD, error) { return nil, nil }
func (s *stream) Trailer() metadata.MD         { return nil }
func (s *stream) CloseSend() error             { return nil }
func (s *stream) Context() context.Context     { return s.ctx }

func (s *stream) SendMsg(m any) error {
	if r, ok := m.(*protosv1.PerformRequest); ok {
		s.req = proto.Clone(r).(*protosv1.PerformRequest)
	}
	return nil
}

func (s *stream) RecvMsg(m any) error {
	if s.watch {
		return unavailable(s.recvChange())
	}
	if s.req == nil {
		return io.EOF
	}
	req := s.req
	s.req = nil
	var event *protosv1.PerformEvent
	late := s.astray(req)
	err := s.c.p.call(s.ctx, s.c.to, actionName(req), func() error {
		if late {
			return errGone // the connection is lost, and the request comes through later
		}
		t, err := s.c.target(s.ctx)
		if err != nil {
			return err
		}
		event, err = t.perform(s.ctx, req)
		return err
	})
	if err != nil {
		return unavailable(err)
	}
	proto.Merge(m.(proto.Message), event)
	return nil
}

// astray has a request now and then come late, after its caller has given up, or a second time.
func (s *stream) astray(req *protosv1.PerformRequest) (late bool) {
	p := s.c.p
	w := p.n.w
	w.mu.Lock()
	defer w.mu.Unlock()
	what := []string{string(p.n.id), string(s.c.to.id), actionName(req), "astray"}
	p.sent[s.c.to.id]++
	number := p.sent[s.c.to.id]
	if !w.faulty || p.dead {
		return false
	}
	x := w.draw(40, what...)
	if x > 1 {
		return false
	}
	w.did["request astray"]++
	again := proto.Clone(req).(*protosv1.PerformRequest)
	time.AfterFunc(w.drawn(30*time.Second, what...), func() {
		w.mu.Lock()
		t := s.c.to.proc
		// What one process sends to another stays in its order: gRPC has one connection. Beside others' requests it may be late.
		ok := t != nil && !w.closing && w.linked(p.n, s.c.to) && p.sent[s.c.to.id] == number
		w.mu.Unlock()
		if ok {
			_, _ = t.perform(t.ctx, again)
		}
	})
	return x == 0
}

func (s *stream) recvChange() error {
	w := s.c.to.w
	if s.on == nil {
		err := s.c.p.call(s.ctx, s.c.to, "Watch", func() error {
			t, err := s.c.target(s.ctx)
			if err != nil {
				return err
			}
			w.mu.Lock()
			s.on, s.next = t, t.watch
			w.mu.Unlock()
			return nil
		})
		return err
	}
	select {
	case <-s.ctx.Done():
		return s.ctx.Err()
	case <-s.on.ctx.Done():
		return errGone
	case <-s.next:
	}
	w.mu.Lock()
	s.next = s.on.watch
	d := w.transit(string(s.c.p.n.id), string(s.c.to.id), "event")
	w.mu.Unlock()
	if !sleep(s.ctx, d) {
		return s.ctx.Err()
	}
	w.mu.Lock()
	ok := w.linked(s.c.to, s.c.p.n)
	w.mu.Unlock()
	if !ok {
		if !sleep(s.ctx, 5*time.Second) {
			return s.ctx.Err()
		}
		return errGone
	}
	return nil
}

func toStatus(err error) error {
	switch {
	case errors.Is(err, cluster.ErrLowerTerm):
		return status.Error(codes.Aborted, err.Error())
	case errors.Is(err, cluster.ErrPermanent):
		return status.Error(codes.DataLoss, err.Error())
	}
	return status.Error(codes.Unavailable, err.Error())
}

func actionName(req *protosv1.PerformRequest) string {
	m := req.ProtoReflect()
	if f := m.WhichOneof(m.Descriptor().Oneofs().ByName("action")); f != nil {
		return string(f.Name())
	}
	return fmt.Sprintf("%T", req)
}
