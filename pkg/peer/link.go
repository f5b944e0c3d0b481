package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/attributes"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/election"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

const (
	// dialTimeout bounds one attempt to connect, maxBackoff the time between two.
	dialTimeout = 2 * time.Second
	minBackoff  = 100 * time.Millisecond
	maxBackoff  = time.Second
	// minRetry is the time after which a failed exchange is tried again; it doubles up to Config.KeepAlive.
	minRetry = 250 * time.Millisecond
	// callTimeout bounds an exchange. The other side may have to save a vote on a slow disk before it answers.
	callTimeout = 2 * time.Second
	// maxInflight bounds the election messages that wait for one node's answer.
	maxInflight = 4
	// brokenGrace is how long a connection that broke may take to come back before the process behind it is taken for dead.
	brokenGrace = 250 * time.Millisecond
)

// link is the connection to one node's manager.
type link struct {
	p    *Peers
	id   cluster.NodeID
	conn *grpc.ClientConn
	call *caller
	res  *manual.Resolver
	// last are the endpoints as they were set last, retried when retry last did something; guarded by Peers.mu.
	last    []string
	retried time.Time
	// kick asks for an exchange now.
	kick chan struct{}
	done chan struct{} // closed by close
	once sync.Once
	// spoke is when an exchange last succeeded, in unix nanoseconds.
	spoke    atomic.Int64
	inflight atomic.Int32
}

// newLink makes a link that doesn't connect yet. Peers.mu is held.
func newLink(p *Peers, id cluster.NodeID, endpoints []string) (*link, error) {
	creds := insecure.NewCredentials()
	if p.cfg.TLS != nil {
		cfg, err := p.cfg.TLS(id)
		if err != nil {
			return nil, fmt.Errorf("connect to %s: %w", id, err)
		}
		creds = credentials.NewTLS(cfg)
	}
	dial := p.cfg.Dial
	if dial == nil {
		d := net.Dialer{Timeout: dialTimeout}
		dial = func(ctx context.Context, addr string) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) }
	}
	l := &link{p: p, id: id, kick: make(chan struct{}, 1), done: make(chan struct{}), res: manual.NewBuilderWithScheme("etcd-manager")}
	l.setEndpoints(endpoints)
	conn, err := grpc.NewClient("etcd-manager:///manager",
		grpc.WithResolvers(l.res),
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(dial),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		// That leaves gRPC's transparent retries, which try again without a pause while a dying connection is still the one that is
		// picked. What has been sent once is not sent again by gRPC.
		grpc.WithDefaultCallOptions(grpc.MaxRetryRPCBufferSize(0)),
		grpc.WithIdleTimeout(0),
		grpc.WithStaticStreamWindowSize(window),
		grpc.WithStaticConnWindowSize(window),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: minBackoff, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxBackoff},
			MinConnectTimeout: dialTimeout,
		}),
		// The timeout also becomes the connection's TCP_USER_TIMEOUT: a connection that leads nowhere is given up in seconds.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingInterval, Timeout: pingTimeout, PermitWithoutStream: true}),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", id, err)
	}
	l.conn = conn
	l.call = newCaller(protosv1.NewPeerServiceClient(conn), func(f func(context.Context)) bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.spawn(f)
	})
	return l, nil
}

// setEndpoints makes the link use these endpoints, in this order. A connection to one that stays is kept. Peers.mu is held.
func (l *link) setEndpoints(endpoints []string) {
	if slices.Equal(l.last, endpoints) {
		return
	}
	l.last = slices.Clone(endpoints)
	l.connect()
	if l.call != nil {
		l.call.renew()
	}
}

// connect hands the endpoints to gRPC. Ones that differ in anything, an attribute too, from those that it has are connected to at once.
func (l *link) connect() {
	var state resolver.State
	for _, e := range l.last {
		a := resolver.Address{Addr: e}
		if !l.retried.IsZero() {
			a.Attributes = attributes.New(retryKey{}, l.retried.UnixNano())
		}
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{a}})
		state.Addresses = append(state.Addresses, a)
	}
	l.res.UpdateState(state)
}

// retryKey is the attribute that makes an endpoint a new one.
type retryKey struct{}

// retry connects at once if the link waits between two attempts. (gRPC's own ResetConnectBackoff races with its balancer.) Peers.mu is held.
func (l *link) retry() {
	if l.conn.GetState() != connectivity.TransientFailure || time.Since(l.retried) < dialTimeout {
		return
	}
	l.retried = time.Now()
	l.connect()
}

func (l *link) close() {
	l.once.Do(func() {
		close(l.done)
		_ = l.conn.Close() // fails only if it is closed already
	})
}

// poke asks for an exchange soon.
func (l *link) poke() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// startLink begins to keep a link alive. mu is held.
func (p *Peers) startLink(l *link) {
	if p.spawn(l.watch) {
		p.spawn(l.talk)
		l.poke()
	}
}

// watch keeps the link connected, and notices at once when it breaks.
func (l *link) watch(ctx context.Context) {
	ready := false
	var broken time.Time // when it broke; zero once it is back or its loss was reported
	for {
		state := l.conn.GetState()
		switch state {
		case connectivity.Shutdown:
			return
		case connectivity.Idle:
			l.conn.Connect()
		case connectivity.Ready:
			if !ready {
				l.call.reset()
			}
			ready, broken = true, time.Time{}
			l.poke()
		}
		if ready && state != connectivity.Ready {
			ready, broken = false, time.Now()
			l.p.lost(l)
		}
		if broken.IsZero() {
			if !l.conn.WaitForStateChange(ctx, state) {
				return
			}
			continue
		}
		if state != connectivity.TransientFailure {
			grace, cancel := context.WithDeadline(ctx, broken.Add(brokenGrace))
			changed := l.conn.WaitForStateChange(grace, state)
			cancel()
			if changed {
				continue
			}
		}
		if ctx.Err() != nil {
			return
		}
		broken = time.Time{}
		l.p.elect.do(func(m *election.Machine) { m.PeerDown(l.id) })
	}
}

// talk exchanges when it is asked to, and after a while of silence.
func (l *link) talk(ctx context.Context) {
	timer := time.NewTimer(l.p.rand.jitter(l.p.cfg.KeepAlive))
	defer timer.Stop()
	retry := minRetry
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.done:
			return
		case <-l.kick:
		case <-timer.C:
			silence := time.Since(time.Unix(0, l.spoke.Load()))
			if silence < l.p.cfg.KeepAlive*8/10 {
				timer.Reset(l.p.cfg.KeepAlive - silence)
				continue
			}
		}
		next := l.p.cfg.KeepAlive
		if _, err := l.exchange(ctx, nil); err != nil {
			next, retry = min(retry, next), min(2*retry, next)
		} else {
			retry = minRetry
		}
		timer.Reset(l.p.rand.jitter(next))
	}
}

// sendElection sends an election message in an exchange of its own. It is called with the elector's lock held. Messages to a node that doesn't answer are dropped:
// elections live with that.
func (p *Peers) sendElection(msg election.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.nodes[msg.To]
	if n == nil || n.isRival() {
		return
	}
	l := n.link
	if l.inflight.Add(1) > maxInflight {
		l.inflight.Add(-1)
		return
	}
	ok := p.spawn(func(ctx context.Context) {
		defer l.inflight.Add(-1)
		answer, err := l.exchange(ctx, &msg)
		if err != nil || answer == nil {
			return
		}
		// A response has no response, and one that comes too late is of no interest.
		if _, err := p.elect.step(*answer); errors.Is(err, election.ErrTerm) {
			p.corruptTerm(l.id, err)
		}
	})
	if !ok {
		l.inflight.Add(-1)
	}
}
