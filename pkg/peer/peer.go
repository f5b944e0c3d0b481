// Package peer knows the other managers: it finds them, stays connected to them, and elects a leader among them.
//
// Sources (pkg/discovery) say at which endpoints managers may be found. To each one that is found a connection is kept; managers
// tell each other whom they know, so that it is enough if each knows one. The same calls carry the messages of
// pkg/election, whose driver this package is: it measures time, persists votes, and turns a leadership into a context that ends when the
// leadership does.
//
// The package decides nothing about etcd, and never takes a node's word for whom it is if a certificate can say it.
package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/election"
	"github.com/etcd-manager/etcd-manager/pkg/repeat"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// Source is one way of finding the others. Its methods are called one at a time, with a deadline, and again and again.
type Source interface {
	// Name says in logs what it is.
	Name() string
	// Publish makes the own endpoints (host:port) known to others that use the same source. It does nothing where there is
	// nothing to publish. It is repeated until it succeeds.
	Publish(ctx context.Context, endpoints []string) error
	// Find returns the endpoints of all nodes that it knows, possibly the own ones too. Nodes and an error may be returned
	// together: then the nodes are good, and those that are missing aren't forgotten.
	Find(ctx context.Context) (map[cluster.NodeID][]string, error)
}

// intervaler is what a Source also is if it is to be polled at a rate of its own, whatever the state of the cluster.
type intervaler interface {
	Interval() time.Duration
}

// refresher is what a Source also is if what is published there counts for a time only.
type refresher interface {
	// Refresh is the time after which the own endpoints are published again.
	Refresh() time.Duration
}

// VoteStore keeps what the election must not forget. Its methods are called one at a time.
type VoteStore interface {
	// Load returns what was saved last, or the zero value if nothing ever was. What can't be read is an error, never absent.
	Load() (election.Hard, error)
	// Save returns once the state would survive a power cut. After an error it is called again with the same state.
	Save(election.Hard) error
}

// Config is how a Peers is set up.
type Config struct {
	// ClusterName is part of every request; other clusters' are refused.
	ClusterName string
	// Self is the own node. ID and Endpoints are required.
	Self Info
	// Instance changes whenever the process starts.
	Instance string
	// Wanted is the spec's member count, of which a majority elects. Zero means that it isn't known yet; see SetWanted.
	Wanted int
	// TLS returns the client configuration by which that peer is reached. Nil means that managers talk in the clear.
	TLS func(peer cluster.NodeID) (*tls.Config, error)
	// Sources are asked for other managers.
	Sources []Source
	// PollFast is the time between polls of a source at first, while managers are missing; 500 ms if zero. It grows up to PollSlow.
	PollFast time.Duration
	// PollSlow is the time between polls once as many managers as wanted are connected; one minute if zero. A manager that follows a
	// leader takes ten times as long.
	PollSlow time.Duration
	// Votes keeps term and vote.
	Votes VoteStore
	// Lead does the leader's work. It is called when the node is elected, with a context that ends when the leadership does, and
	// must return soon after that. It is never called while it runs. If it returns earlier, the leadership is given up.
	Lead func(ctx context.Context, term cluster.Term)
	// HostNames, if not nil, returns the DNS names of a node. They follow from its id alone: what nodes say of names is not believed.
	HostNames func(cluster.NodeID) []string
	// Loopback is the host:port at which the node reaches its own server; if empty, its own endpoints are used.
	Loopback string
	// Rand spreads elections and polls; nil means the system's randomness.
	Rand rand.Source
	// Dial, if not nil, connects to a host:port in place of the system's TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// KeepAlive is the time after which managers exchange a few bytes if they had nothing to say to each other; 20 s if zero.
	KeepAlive time.Duration
}

func (c *Config) validate() error {
	switch {
	case c.ClusterName == "":
		return errors.New("peer: no cluster name")
	case c.Self.ID == "":
		return errors.New("peer: no node id")
	case c.Instance == "":
		return errors.New("peer: no instance")
	case c.Votes == nil:
		return errors.New("peer: nowhere to keep votes")
	case c.Lead == nil:
		return errors.New("peer: nothing to do for a leader")
	case c.Wanted < 0:
		return fmt.Errorf("peer: wanted member count %d", c.Wanted)
	case c.PollFast < 0 || c.PollSlow < 0 || c.KeepAlive < 0:
		return errors.New("peer: negative interval")
	}
	if c.Loopback != "" {
		if err := checkEndpoint(c.Loopback); err != nil {
			return fmt.Errorf("peer: loopback: %w", err)
		}
	}
	return checkSelf(c.Self)
}

func checkSelf(i Info) error {
	if len(i.Endpoints) == 0 {
		return errors.New("peer: the node has no endpoint")
	}
	for _, e := range i.Endpoints {
		if err := checkEndpoint(e); err != nil {
			return fmt.Errorf("peer: %w", err)
		}
	}
	for _, a := range i.Addresses {
		if _, err := netip.ParseAddr(a); err != nil {
			return fmt.Errorf("peer: address of the node: %w", err)
		}
	}
	return nil
}

func checkEndpoint(e string) error {
	host, port, err := net.SplitHostPort(e)
	if err != nil {
		return fmt.Errorf("endpoint %q is not host:port: %w", e, err)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 || host == "" {
		return fmt.Errorf("endpoint %q is not host:port", e)
	}
	return nil
}

// Peers is the set of managers as one of them sees it. Its methods may be called concurrently.
// Many methods, since connections, the election and what is known of a node change under one lock: a vote and the peer that it is for must not differ.
type Peers struct {
	protosv1.UnimplementedPeerServiceServer

	said repeat.Limiter // of discovery that fails
	cfg  Config
	rand *lockedRand
	// elect and lead have locks of their own; elect's is taken before mu where both are needed, never after.
	elect *elector
	lead  *leadership

	mu      sync.Mutex
	running context.Context // nil before Run; nothing is started after it has ended
	group   sync.WaitGroup  // goroutines of links and probes; added to under mu while running lives
	self    Info
	view    *view
	nodes   map[cluster.NodeID]*node // the others
	loop    *link                    // to the own server; nil until it is needed
	wanted  int
	leader  cluster.NodeID
	term    cluster.Term
	resigns bool
	// rivalUntil is how long the last evidence counts that another process has our node id; zero if there is none.
	rivalUntil time.Time
	// probed are endpoints that a source gives for our own id and that were found to be ourselves.
	probed    map[string]bool
	changedCh chan struct{}
	publishCh chan struct{} // closed when the own endpoints have changed
}

// New checks the configuration. It starts nothing and reads no vote.
func New(cfg Config) (*Peers, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	setDefault(&cfg.PollFast, 500*time.Millisecond)
	setDefault(&cfg.PollSlow, time.Minute)
	setDefault(&cfg.KeepAlive, 20*time.Second)
	cfg.PollFast = min(cfg.PollFast, cfg.PollSlow)
	p := &Peers{
		cfg: cfg, rand: newLockedRand(cfg.Rand), view: newView(), nodes: map[cluster.NodeID]*node{}, wanted: cfg.Wanted,
		probed: map[string]bool{}, changedCh: make(chan struct{}), publishCh: make(chan struct{}),
	}
	p.setSelf(cfg.Self)
	p.lead = newLeadership(cfg.Lead)
	p.elect = newElector(cfg.Self.ID, cfg.Votes, p.rand.IntN)
	p.elect.send = p.sendElection
	p.elect.revoke = p.lead.revoke
	p.elect.publish = p.elected
	return p, nil
}

func setDefault(d *time.Duration, v time.Duration) {
	if *d == 0 {
		*d = v
	}
}

// Register makes the server answer the other managers. They are told to wait until Run has started.
func (p *Peers) Register(s grpc.ServiceRegistrar) { protosv1.RegisterPeerServiceServer(s, p) }

// Run finds, connects and elects until ctx ends, and then returns nil once everything that it has started, Lead included, has ended. A leader whose
// Run ends hands nothing over; see Resign. An error means that there was no way to begin: the votes can't be loaded. It is called once.
func (p *Peers) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.mu.Lock()
	if p.running != nil {
		p.mu.Unlock()
		return errors.New("peer: Run is called twice")
	}
	p.running = ctx
	p.mu.Unlock()

	if err := p.elect.open(p.cfg.Wanted); err != nil {
		return err
	}
	p.mu.Lock()
	for _, n := range p.nodes {
		p.startLink(n.link)
	}
	p.mu.Unlock()
	p.electorate()

	var wg sync.WaitGroup
	for _, s := range p.cfg.Sources {
		wg.Go(func() { p.poll(ctx, s) })
	}
	wg.Go(func() { p.elect.run(ctx) })
	wg.Go(func() { p.lead.run(ctx, p.abdicate) })

	<-ctx.Done()
	p.elect.close()
	wg.Wait()
	p.mu.Lock()
	links := make([]*link, 0, len(p.nodes)+1)
	for _, n := range p.nodes {
		links = append(links, n.link)
	}
	if p.loop != nil {
		links = append(links, p.loop)
	}
	p.mu.Unlock()
	for _, l := range links {
		l.close()
	}
	p.group.Wait()
	return nil
}

// spawn runs f in a goroutine that Run waits for, unless Run hasn't begun or is ending. mu is held.
func (p *Peers) spawn(f func(ctx context.Context)) bool {
	if p.running == nil || p.running.Err() != nil {
		return false
	}
	ctx := p.running
	p.group.Go(func() { f(ctx) })
	return true
}

// Self returns what the others are told about the own node.
func (p *Peers) Self() Info {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.self.clone()
}

// SetSelf tells everyone that the own node is found elsewhere, or has other addresses or names. The id can't change.
func (p *Peers) SetSelf(i Info) error {
	if i.ID != p.cfg.Self.ID {
		return fmt.Errorf("peer: node %s can't become node %s", p.cfg.Self.ID, i.ID)
	}
	if err := checkSelf(i); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.self.same(i) {
		return nil
	}
	p.setSelf(i)
	close(p.publishCh)
	p.publishCh = make(chan struct{})
	if p.loop != nil && p.cfg.Loopback == "" {
		p.loop.setEndpoints(p.self.Endpoints)
	}
	p.gossip(nil)
	p.notify()
	return nil
}

// setSelf makes the own info the newest there is about this node. mu is held, or nobody else has p yet.
func (p *Peers) setSelf(i Info) {
	i = i.clone()
	i.Incarnation = max(time.Now().UnixNano(), p.view.infos[i.ID].Incarnation+1)
	p.self = i
	p.view.put(i)
}

// SetWanted sets the wanted member count, of which a majority elects. Numbers below 1 are ignored.
func (p *Peers) SetWanted(n int) {
	if n < 1 {
		return
	}
	p.mu.Lock()
	changed := p.wanted != n
	p.wanted = n
	p.mu.Unlock()
	if changed {
		p.elect.do(func(m *election.Machine) { _ = m.SetWanted(n) }) // fails for n < 1 only
	}
}

// Peers returns the other managers, sorted by id.
func (p *Peers) Peers() []Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	peers := make([]Peer, 0, len(p.nodes))
	for _, id := range slices.Sorted(maps.Keys(p.nodes)) {
		peers = append(peers, p.nodes[id].peer(p.view.infos[id]))
	}
	return peers
}

// Conn returns the connection to a node's manager, the own one included, for calls of any service. It is shared, stays
// valid while Run runs, follows the node to new endpoints, and must not be closed. A call on it fails at once with Unavailable
// if the node can't be reached.
func (p *Peers) Conn(id cluster.NodeID) (grpc.ClientConnInterface, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if id == p.cfg.Self.ID {
		if p.loop == nil {
			endpoints := p.self.Endpoints
			if p.cfg.Loopback != "" {
				endpoints = []string{p.cfg.Loopback}
			}
			l, err := newLink(p, id, endpoints)
			if err != nil {
				return nil, err
			}
			p.loop = l
		}
		return p.loop.conn, nil
	}
	n := p.nodes[id]
	if n == nil {
		return nil, fmt.Errorf("connect to %s: no such node is known", id)
	}
	return n.link.conn, nil
}

// Leader returns the leader, as far as it is known, and the highest term that this node has seen. The id is empty while nobody is known to lead.
func (p *Peers) Leader() (cluster.NodeID, cluster.Term) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.leader, p.term
}

// Leads tells whether this node holds the lease of that term at this moment. A leader asks before each request that changes something:
// its context ends only once this process has run again after it was held up.
func (p *Peers) Leads(term cluster.Term) bool { return p.elect.leads(term) }

// Stalled says what of this has made no progress for so long; empty if all does. While something holds a lock that elections or peers
// need, it doesn't return: that is for a watchdog.
func (p *Peers) Stalled(patience time.Duration) string {
	if p.elect.stalled(patience) {
		return "the election among managers stands still"
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return ""
}

// Changed returns a channel that is closed at the next change of what Peers (LastSeen aside), Leader or HostEntries return. Take it before you look.
func (p *Peers) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changedCh
}

// notify wakes those who wait for a change. mu is held.
func (p *Peers) notify() {
	close(p.changedCh)
	p.changedCh = make(chan struct{})
}

// Exceed tells that the store shows the term as taken. The node leads only in a higher one from now on.
func (p *Peers) Exceed(term cluster.Term) {
	p.elect.do(func(m *election.Machine) { m.Exceed(term) })
}

// Resign ends the own leadership, if there is one, hands it over, and never leads again. It returns nil when Lead has returned and another node leads, or when there is nobody
// to take over. It returns the context's error if that takes too long.
func (p *Peers) Resign(ctx context.Context) error {
	p.mu.Lock()
	p.resigns = true
	p.mu.Unlock()
	// The lease is still held while Lead comes to its end, so that two leaders don't work side by side if that can be had at no price.
	// If it takes long, the successor shouldn't wait for it: its higher term fences whatever goes on here.
	p.lead.end(errResigned)
	patience, cancel := context.WithTimeout(ctx, resignPatience)
	err := p.lead.wait(patience)
	cancel()
	successor := make(chan cluster.NodeID, 1)
	ran := p.elect.do(func(m *election.Machine) {
		successor <- m.Resign()
		m.SetEligible(false)
	})
	if err != nil {
		if err := p.lead.wait(ctx); err != nil {
			return fmt.Errorf("resign: the leader's work has not ended: %w", err)
		}
	}
	if !ran {
		return nil // it doesn't lead, and won't
	}
	id := <-successor
	for id != "" {
		changed := p.Changed()
		if leader, _ := p.Leader(); leader != "" && leader != p.cfg.Self.ID {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("resign: %s has not taken over: %w", id, ctx.Err())
		case <-p.stopped():
			return nil
		}
	}
	return nil
}

// stopped returns a channel that is closed when Run ends; nil if it hasn't begun.
func (p *Peers) stopped() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running == nil {
		return nil
	}
	return p.running.Done()
}

// abdicate gives up a leadership whose work has ended by itself.
func (p *Peers) abdicate(term cluster.Term) {
	klog.Warningf("The leader's work of term %d ended although this node still leads; the leadership is given up", term)
	p.elect.do(func(m *election.Machine) {
		if s := m.State(); s.Role == election.Leader && s.Term == term {
			m.Resign()
		}
	})
}

// lockedRand is a source of randomness for several goroutines.
type lockedRand struct {
	mu sync.Mutex
	r  *rand.Rand
}

func newLockedRand(src rand.Source) *lockedRand {
	if src == nil {
		src = rand.NewPCG(rand.Uint64(), rand.Uint64())
	}
	return &lockedRand{r: rand.New(src)}
}

// IntN returns a number from 0 to n-1.
func (l *lockedRand) IntN(n int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.IntN(n)
}

// jitter returns the duration, up to a tenth longer or shorter.
func (l *lockedRand) jitter(d time.Duration) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Duration(float64(d) * (0.9 + 0.2*l.r.Float64()))
}
