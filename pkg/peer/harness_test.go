package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/test/bufconn"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/election"
	"github.com/etcd-manager/etcd-manager/pkg/pki"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

// world is a set of managers that the test starts, kills and parts. With keys they talk over TCP and mTLS, else through memory, so that
// time can be virtual.
type world struct {
	t    *testing.T
	keys string // directory with CAs; empty: memory
	seed uint64

	mu        sync.Mutex
	listeners map[string]*bufconn.Listener // by address, memory only
	owners    map[string]cluster.NodeID    // of addresses
	parted    map[[2]cluster.NodeID]bool
	gates     []*gatedConn
	leading   map[cluster.NodeID]cluster.Term
	strict    bool   // no two may lead at the same time, whatever the terms: no more nodes run than are wanted
	lax       bool   // even two of one term may: more nodes run than are wanted, or one of them twice
	overlap   string // set if two led that may not
	live      []*manager
	ports     int
	calls     atomic.Int64 // requests that were answered, on all servers
	streams   atomic.Int64 // HTTP/2 streams that were opened for them
	old       bool         // managers that start now know no streams, as those of earlier versions
}

func newWorld(t *testing.T, keys string) *world {
	w := &world{
		t: t, keys: keys, seed: 1, listeners: map[string]*bufconn.Listener{}, owners: map[string]cluster.NodeID{},
		parted: map[[2]cluster.NodeID]bool{}, leading: map[cluster.NodeID]cluster.Term{},
	}
	t.Cleanup(func() {
		w.heal()
		for _, m := range slices.Clone(w.live) {
			m.kill()
		}
		if w.keys == "" {
			time.Sleep(10 * time.Second) // connections that were cut off take their time to end
		}
		if w.overlap != "" {
			t.Error(w.overlap)
		}
	})
	return w
}

// makeKeys returns a directory with CAs.
func makeKeys(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := pki.CreateCAs(dir, time.Now()); err != nil {
		t.Fatal(err)
	}
	return dir
}

// memVotes keeps votes in memory, over restarts of a manager.
type memVotes struct {
	mu    sync.Mutex
	hard  election.Hard
	saves int
	fail  error
}

func (v *memVotes) Load() (election.Hard, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.hard, v.fail
}

func (v *memVotes) Save(h election.Hard) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.fail != nil {
		return v.fail
	}
	if h.Term < v.hard.Term || h.Term == v.hard.Term && v.hard.VotedFor != "" && h.VotedFor != v.hard.VotedFor {
		return fmt.Errorf("vote taken back: %+v after %+v", h, v.hard)
	}
	v.hard = h
	v.saves++
	return nil
}

// fakeSource finds what the test says.
type fakeSource struct {
	mu        sync.Mutex
	name      string
	found     map[cluster.NodeID][]string
	err       error
	finds     int
	published []string
}

func (s *fakeSource) Name() string { return s.name }

func (s *fakeSource) Publish(_ context.Context, endpoints []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	s.published = endpoints
	return nil
}

func (s *fakeSource) Find(context.Context) (map[cluster.NodeID][]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finds++
	found := map[cluster.NodeID][]string{}
	for id, e := range s.found {
		found[id] = slices.Clone(e)
	}
	return found, s.err
}

func (s *fakeSource) set(id cluster.NodeID, endpoints ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.found == nil {
		s.found = map[cluster.NodeID][]string{}
	}
	s.found[id] = endpoints
}

func (s *fakeSource) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.finds
}

// sharedStore is a store where managers publish themselves.
type sharedStore struct {
	mu       sync.Mutex
	records  map[cluster.NodeID][]string
	requests int
	err      error
}

func (s *sharedStore) source(id cluster.NodeID) Source { return &storeSource{s, id} }

type storeSource struct {
	s  *sharedStore
	id cluster.NodeID
}

func (s *storeSource) Name() string { return "store" }

func (s *storeSource) Publish(_ context.Context, endpoints []string) error {
	s.s.mu.Lock()
	defer s.s.mu.Unlock()
	s.s.requests++
	if s.s.err != nil {
		return s.s.err
	}
	if s.s.records == nil {
		s.s.records = map[cluster.NodeID][]string{}
	}
	s.s.records[s.id] = endpoints
	return nil
}

func (s *storeSource) Find(context.Context) (map[cluster.NodeID][]string, error) {
	s.s.mu.Lock()
	defer s.s.mu.Unlock()
	s.s.requests++
	if s.s.err != nil {
		return nil, s.s.err
	}
	found := map[cluster.NodeID][]string{}
	for id, e := range s.s.records {
		found[id] = slices.Clone(e)
	}
	return found, nil
}

// manager is one running manager.
type manager struct {
	w      *world
	id     cluster.NodeID
	addr   string
	votes  *memVotes
	peers  *Peers
	server *grpc.Server
	cancel context.CancelFunc
	done   chan struct{}
	served chan struct{}
	terms  []cluster.Term // that it has led; guarded by w.mu
}

type option func(*Config)

// start starts a manager with a fresh instance. Votes may be nil.
func (w *world) start(id cluster.NodeID, wanted int, votes *memVotes, opts ...option) *manager {
	return w.startAt(id, "", wanted, votes, opts...)
}

// startAt starts it at a given address.
func (w *world) startAt(id cluster.NodeID, addr string, wanted int, votes *memVotes, opts ...option) *manager {
	w.t.Helper()
	if votes == nil {
		votes = &memVotes{}
	}
	listener, addr := w.listen(id, addr)
	m := &manager{w: w, id: id, addr: addr, votes: votes, done: make(chan struct{}), served: make(chan struct{})}
	w.mu.Lock()
	w.seed++
	cfg := Config{
		ClusterName: "etcd", Self: Info{ID: id, Endpoints: []string{addr}, Addresses: []string{"127.0.0.1"}, HostNames: []string{string(id) + ".example.com"}},
		Instance: fmt.Sprintf("%s-%d", id, w.seed), Wanted: wanted, Votes: votes, Rand: rand.NewPCG(w.seed, 7), Lead: m.lead,
		HostNames: func(id cluster.NodeID) []string { return []string{string(id) + ".example.com"} },
		Dial:      func(ctx context.Context, to string) (net.Conn, error) { return w.dial(ctx, id, to) },
	}
	w.mu.Unlock()
	var serverTLS *tls.Config
	if w.keys != "" {
		keeper, err := pki.NewKeeper(pki.Config{Dir: w.keys, NodeID: string(id), Managers: true, Policy: pki.DefaultPolicy()})
		if err != nil {
			w.t.Fatal(err)
		}
		serverTLS = keeper.ManagerServer()
		cfg.TLS = func(peer cluster.NodeID) (*tls.Config, error) { return keeper.ManagerClient(string(peer)), nil }
	}
	for _, o := range opts {
		o(&cfg)
	}
	var err error
	if m.peers, err = New(cfg); err != nil {
		w.t.Fatal(err)
	}
	m.server = NewServer(cfg.ClusterName, serverTLS, grpc.StatsHandler(counter{&w.calls, &w.streams}))
	if w.old {
		protosv1.RegisterPeerServiceServer(m.server, oldService{peers: m.peers})
	} else {
		m.peers.Register(m.server)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	go func() {
		defer close(m.served)
		_ = m.server.Serve(listener) // ends with the server
	}()
	go func() {
		defer close(m.done)
		if err := m.peers.Run(ctx); err != nil {
			w.t.Errorf("Run of %s: %v", id, err)
		}
	}()
	w.mu.Lock()
	w.live = append(w.live, m)
	w.mu.Unlock()
	return m
}

// kill ends a manager without a word to the others, as a crash does.
func (m *manager) kill() {
	m.w.mu.Lock()
	m.w.live = slices.DeleteFunc(m.w.live, func(o *manager) bool { return o == m })
	m.w.mu.Unlock()
	m.server.Stop()
	m.cancel()
	<-m.done
	<-m.served
}

func (m *manager) lead(ctx context.Context, term cluster.Term) {
	w := m.w
	w.mu.Lock()
	for id, other := range w.leading {
		if !w.lax && (other == term || w.strict) {
			w.overlap = fmt.Sprintf("%s (term %d) and %s (term %d) lead at the same time", id, other, m.id, term)
		}
	}
	if len(m.terms) > 0 && term < m.terms[len(m.terms)-1] {
		w.overlap = fmt.Sprintf("%s leads in term %d after %v", m.id, term, m.terms)
	}
	w.leading[m.id] = term
	m.terms = append(m.terms, term)
	w.mu.Unlock()
	<-ctx.Done()
	w.mu.Lock()
	delete(w.leading, m.id)
	w.mu.Unlock()
}

func (w *world) leaders() []cluster.NodeID {
	w.mu.Lock()
	defer w.mu.Unlock()
	var ids []cluster.NodeID
	for id := range w.leading {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// agreed returns the leader if exactly one leads among these, and all of them know it.
func (w *world) agreed(ms ...*manager) *manager {
	var leader *manager
	for _, m := range ms {
		if slices.Contains(w.leaders(), m.id) {
			if leader != nil {
				return nil
			}
			leader = m
		}
	}
	if leader == nil {
		return nil
	}
	for _, m := range ms {
		if id, _ := m.peers.Leader(); id != leader.id {
			return nil
		}
	}
	return leader
}

// awaitLeader waits until these managers agree on a leader among them.
func (w *world) awaitLeader(within time.Duration, ms ...*manager) *manager {
	w.t.Helper()
	var leader *manager
	w.eventually(within, "one leader", func() bool { leader = w.agreed(ms...); return leader != nil })
	return leader
}

// eventually waits until the condition holds.
func (w *world) eventually(within time.Duration, what string, ok func() bool) time.Duration {
	w.t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > within {
			w.dump()
			w.t.Fatalf("not within %v: %s", within, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(start)
}

func (w *world) dump() {
	for _, m := range w.live {
		leader, term := m.peers.Leader()
		w.t.Logf("%s: leader %q term %d", m.id, leader, term)
		for _, p := range m.peers.Peers() {
			w.t.Logf("  %+v", p)
		}
	}
}

// allConnected tells whether each of the managers is connected to all others.
func allConnected(ms ...*manager) bool {
	for _, m := range ms {
		n := 0
		for _, p := range m.peers.Peers() {
			if p.Connected {
				n++
			}
		}
		if n < len(ms)-1 {
			return false
		}
	}
	return true
}

// others returns all but one.
func others(ms []*manager, but *manager) []*manager {
	return slices.DeleteFunc(slices.Clone(ms), func(m *manager) bool { return m == but })
}

// ---- network

func (w *world) listen(id cluster.NodeID, addr string) (net.Listener, string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.keys != "" {
		if addr == "" {
			addr = "127.0.0.1:0"
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			w.t.Fatal(err)
		}
		w.owners[l.Addr().String()] = id
		return l, l.Addr().String()
	}
	if addr == "" {
		w.ports++
		addr = fmt.Sprintf("10.0.0.%d:8000", w.ports)
	}
	l := bufconn.Listen(64 << 10)
	w.listeners[addr] = l
	w.owners[addr] = id
	return l, addr
}

var errRefused = errors.New("connection refused")

func (w *world) dial(ctx context.Context, from cluster.NodeID, addr string) (net.Conn, error) {
	w.mu.Lock()
	l, to := w.listeners[addr], w.owners[addr]
	w.mu.Unlock()
	for w.isParted(from, to) {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	var conn net.Conn
	var err error
	switch {
	case w.keys != "":
		conn, err = new(net.Dialer).DialContext(ctx, "tcp", addr)
	case l == nil:
		err = errRefused
	default:
		conn, err = l.DialContext(ctx)
	}
	if err != nil {
		return nil, err
	}
	g := &gatedConn{Conn: conn, closed: make(chan struct{}), parted: func() bool { return w.isParted(from, to) }}
	w.mu.Lock()
	w.gates = append(w.gates, g)
	w.mu.Unlock()
	return g, nil
}

func (w *world) isParted(a, b cluster.NodeID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.parted[[2]cluster.NodeID{a, b}] || w.parted[[2]cluster.NodeID{b, a}]
}

// part makes two groups unreachable for each other: packets vanish, nobody is told.
func (w *world) part(as, bs []*manager) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range as {
		for _, b := range bs {
			w.parted[[2]cluster.NodeID{a.id, b.id}] = true
		}
	}
}

func (w *world) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.parted)
}

// gatedConn delivers nothing, in either direction, while its ends are parted.
type gatedConn struct {
	net.Conn
	parted func() bool
	once   sync.Once
	closed chan struct{}
}

func (c *gatedConn) pass() error {
	for c.parted() {
		select {
		case <-c.closed:
			return net.ErrClosed
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

func (c *gatedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if gateErr := c.pass(); gateErr != nil {
		return 0, gateErr
	}
	return n, err
}

func (c *gatedConn) Write(b []byte) (int, error) {
	if err := c.pass(); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

func (c *gatedConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// counter counts the RPCs of a server.
type counter struct{ n, streams *atomic.Int64 }

func (c counter) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }
func (c counter) HandleRPC(_ context.Context, s stats.RPCStats) {
	switch s.(type) {
	case *stats.OutPayload: // an answer, on a stream or not
		c.n.Add(1)
	case *stats.Begin:
		c.streams.Add(1)
	}
}
func (c counter) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (c counter) HandleConn(context.Context, stats.ConnStats)                       {}

// oldService is what a manager of an earlier version registers.
type oldService struct {
	protosv1.UnimplementedPeerServiceServer
	peers *Peers
}

func (o oldService) Exchange(ctx context.Context, req *protosv1.ExchangeRequest) (*protosv1.ExchangeResponse, error) {
	return o.peers.Exchange(ctx, req)
}
