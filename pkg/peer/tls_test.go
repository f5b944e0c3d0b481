package peer

import (
	"context"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/pki"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// TestOverTLS takes three managers through their life on real sockets, with the certificates that they have in the field.
func TestOverTLS(t *testing.T) {
	w := newWorld(t, makeKeys(t))
	w.strict = true
	s := &sharedStore{}
	start := time.Now()
	ms := w.startAll(s, 3, "a", "b", "c")
	leader := w.awaitLeader(10*time.Second, ms...)
	t.Logf("leader after %v", time.Since(start))

	// Every node reaches every node's services, its own too.
	w.eventually(5*time.Second, "everyone connected", func() bool { return allConnected(ms...) })
	for _, m := range ms {
		for _, to := range ms {
			conn, err := m.peers.Conn(to.id)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := protosv1.NewPeerServiceClient(conn).Exchange(t.Context(), &protosv1.ExchangeRequest{
				ClusterName: "etcd", From: string(m.id), To: string(to.id), Instance: m.peers.cfg.Instance,
			})
			if err != nil || resp.GetFrom() != string(to.id) {
				t.Errorf("%s to %s: %v, %v", m.id, to.id, resp, err)
			}
		}
		if _, err := m.peers.Conn("nobody"); err == nil {
			t.Error("a connection to a node that nobody knows")
		}
	}

	// It hands over when it is told to end.
	start = time.Now()
	if err := leader.peers.Resign(t.Context()); err != nil {
		t.Fatal(err)
	}
	next := w.awaitLeader(2*time.Second, ms...)
	t.Logf("handed over after %v", time.Since(start))
	if next == leader {
		t.Fatal("it leads on")
	}
	leader.kill()
	ms = append(others(ms, leader), w.startAt(leader.id, leader.addr, 3, leader.votes, withSource(s.source(leader.id))))
	w.eventually(5*time.Second, "everyone connected", func() bool { return allConnected(ms...) })

	// Its process ends without a word.
	start = time.Now()
	next.kill()
	last := w.awaitLeader(5*time.Second, others(ms, next)...)
	t.Logf("process ended: another leads after %v", time.Since(start))

	// It is cut off.
	back := w.startAt(next.id, next.addr, 3, next.votes, withSource(s.source(next.id)))
	ms = append(others(ms, next), back)
	w.eventually(5*time.Second, "everyone connected", func() bool { return allConnected(ms...) })
	rest := others(ms, last)
	start = time.Now()
	w.part([]*manager{last}, rest)
	w.awaitLeader(6*time.Second, rest...)
	t.Logf("cut off: another leads after %v", time.Since(start))
	w.heal()
	w.awaitLeader(15*time.Second, ms...)
}

// TestIdleCPU shows what a cluster at rest costs in CPU time. Three managers and their servers share the process.
func TestIdleCPU(t *testing.T) {
	testutil.Long(t) // takes 6 s
	w := newWorld(t, makeKeys(t))
	ms := w.startAll(&sharedStore{}, 3, "a", "b", "c")
	w.awaitLeader(10*time.Second, ms...)
	time.Sleep(time.Second)
	calls, cpu, start := w.calls.Load(), cpuTime(t), time.Now()
	time.Sleep(5 * time.Second)
	perMinute := time.Minute.Seconds() / time.Since(start).Seconds()
	used := time.Duration(float64(cpuTime(t)-cpu) * perMinute)
	t.Logf("%.0f calls and %v of CPU time a minute for all three", float64(w.calls.Load()-calls)*perMinute, used)
	// 0.15 s a minute is what one manager may use for everything. The machine that runs this may be slow and busy,
	// so only what is wrong by its nature, as a loop that spins, is an error.
	if used > 3*time.Second {
		t.Errorf("three managers use %v of CPU time a minute", used)
	}
}

func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestNames: endpoints may be names, and IPv6 addresses; those that lead nowhere are passed over.
func TestNames(t *testing.T) {
	keys := makeKeys(t)
	w := newWorld(t, keys)
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skipf("this machine has no IPv6: %v", err)
	}
	six := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	seedA, seedB := &fakeSource{name: "seed"}, &fakeSource{name: "seed"}
	a := w.startAt("a", six, 2, nil, withSource(seedA))
	b := w.start("b", 2, nil, withSource(seedB), func(c *Config) {
		_, port, _ := net.SplitHostPort(c.Self.Endpoints[0])
		c.Self.Endpoints = []string{"127.0.0.1:1", "nowhere.invalid:" + port, "localhost:" + port}
	})
	seedB.set("a", six)
	seedA.set("b", b.peers.Self().Endpoints...)
	w.eventually(10*time.Second, "both connected", func() bool { return allConnected(a, b) })
	w.awaitLeader(10*time.Second, a, b)
}

// TestWrongIdentity: nobody passes as another node, on either side of a connection.
func TestWrongIdentity(t *testing.T) {
	keys := makeKeys(t)
	w := newWorld(t, keys)
	seed := &fakeSource{name: "seed"}
	a := w.start("a", 3, nil, withSource(seed))
	b := w.start("b", 3, nil)
	seed.set("b", b.addr)
	seed.set("c", b.addr) // where b answers, not c
	strange := newWorld(t, makeKeys(t))
	d := strange.start("d", 3, nil)
	w.mu.Lock() // a and b are dialing already
	w.owners[d.addr] = "d"
	w.mu.Unlock()
	seed.set("d", d.addr) // certificates of another CA
	a.peers.SetWanted(3)
	w.eventually(10*time.Second, "b connected, c and d not", func() bool {
		state := map[cluster.NodeID]Peer{}
		for _, p := range a.peers.Peers() {
			state[p.ID] = p
		}
		return state["b"].Connected && !state["c"].Connected && !state["d"].Connected &&
			strings.Contains(state["c"].Problem, "etcd-manager-server-c") && strings.Contains(state["d"].Problem, "etcd-manager-ca")
	})

	keeper, err := pki.NewKeeper(pki.Config{Dir: keys, NodeID: "b", Managers: true, Policy: pki.DefaultPolicy()})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(a.addr, grpc.WithTransportCredentials(credentials.NewTLS(keeper.ManagerClient("a"))))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := protosv1.NewPeerServiceClient(conn)
	_, err = client.Exchange(t.Context(), &protosv1.ExchangeRequest{ClusterName: "etcd", From: "c", To: "a", Instance: "x"})
	if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), `"b"`) || !strings.Contains(err.Error(), `"c"`) {
		t.Errorf("b as c: %v", err)
	}
	_, err = client.Exchange(t.Context(), &protosv1.ExchangeRequest{ClusterName: "etcd", From: "b", To: "c", Instance: "x"})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("to c at a: %v", err)
	}
	_, err = client.Exchange(t.Context(), &protosv1.ExchangeRequest{ClusterName: "other", From: "b", To: "a", Instance: "x"})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), `"other"`) || !strings.Contains(err.Error(), `"etcd"`) {
		t.Errorf("to another cluster: %v", err)
	}
}

// TestForgedGossipOverTLS: a node with a good certificate makes up others, and names, in a real call. It can speak for itself alone: no other
// node's names or addresses change, what is no name is left out, and the node that was called keeps its own word.
func TestForgedGossipOverTLS(t *testing.T) {
	keys := makeKeys(t)
	w := newWorld(t, keys)
	hostNames := func(c *Config) {
		c.HostNames = func(id cluster.NodeID) []string { return []string{string(id) + ".example.com"} }
	}
	a := w.start("a", 3, nil, hostNames)
	keeper, err := pki.NewKeeper(pki.Config{Dir: keys, NodeID: "b", Managers: true, Policy: pki.DefaultPolicy()})
	testutil.Must(t, err)
	conn, err := grpc.NewClient(a.addr, grpc.WithTransportCredentials(credentials.NewTLS(keeper.ManagerClient("a"))))
	testutil.Must(t, err)
	defer conn.Close()
	now := time.Now().Add(time.Hour).UnixNano()
	own := &protosv1.PeerInfo{NodeId: "b", Endpoints: []string{"127.0.0.1:9"}, Addresses: []string{"10.0.0.2"}, Incarnation: now,
		HostNames: []string{"registry.example.org", "a.example.com"}}
	req := &protosv1.ExchangeRequest{ClusterName: "etcd", From: "b", To: "a", Instance: "x", Known: []*protosv1.PeerInfo{own,
		{NodeId: "a", Endpoints: []string{"10.9.9.9:1"}, Addresses: []string{"10.0.0.2"}, HostNames: []string{"a.example.com"}, Incarnation: now},
		{NodeId: "c\n10.0.0.2 registry.example.org", Endpoints: []string{"127.0.0.1:9"}, Addresses: []string{"10.0.0.2"}, Incarnation: now},
		{NodeId: "../d", Endpoints: []string{"127.0.0.1:9"}, Addresses: []string{"10.0.0.2"}, Incarnation: now},
		{NodeId: "e", Endpoints: []string{"127.0.0.1:9"}, Addresses: []string{"0.0.0.0", "nowhere", "10.0.0.2 registry.example.org"}, Incarnation: now},
	}}
	for range 3 {
		_, err = protosv1.NewPeerServiceClient(conn).Exchange(t.Context(), req)
		testutil.Must(t, err)
	}
	for name, addresses := range a.peers.HostEntries() {
		// Its own is what it said itself.
		want := map[string]string{"a.example.com": "127.0.0.1", "b.example.com": "10.0.0.2"}[name]
		if len(addresses) != 1 || addresses[0] != want {
			t.Errorf("the hosts file gets %q for %v", name, addresses)
		}
	}
	if self := a.peers.Self(); len(self.Endpoints) != 1 || self.Endpoints[0] != a.addr {
		t.Errorf("the node itself is known as %+v, and listens at %s", self, a.addr)
	}
	for _, p := range a.peers.Peers() {
		if p.ID != "b" && p.ID != "e" {
			t.Errorf("node %q is known", p.ID)
		}
	}
	// Nor can it bring in what it makes up as somebody else.
	req.From = "c"
	if _, err := protosv1.NewPeerServiceClient(conn).Exchange(t.Context(), req); status.Code(err) != codes.PermissionDenied {
		t.Errorf("b as c: %v", err)
	}
}

// looker is a node service that answers everything.
type looker struct {
	protosv1.UnimplementedNodeServiceServer
}

func (looker) Observe(context.Context, *protosv1.ObserveRequest) (*protosv1.NodeStatus, error) {
	return &protosv1.NodeStatus{NodeId: "a"}, nil
}

func (looker) Perform(*protosv1.PerformRequest, grpc.ServerStreamingServer[protosv1.PerformEvent]) error {
	return nil
}

// TestServerRefuses: the server's gate stands before the node service too, and streams pass it as well.
func TestServerRefuses(t *testing.T) {
	keys := makeKeys(t)
	keeper, err := pki.NewKeeper(pki.Config{Dir: keys, NodeID: "a", Managers: true, Policy: pki.DefaultPolicy()})
	if err != nil {
		t.Fatal(err)
	}
	server := NewServer("etcd", keeper.ManagerServer())
	protosv1.RegisterNodeServiceServer(server, looker{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(l) }()
	defer func() { server.Stop(); <-served }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(keeper.ManagerClient("a"))))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := protosv1.NewNodeServiceClient(conn)
	if _, err := client.Observe(t.Context(), &protosv1.ObserveRequest{ClusterName: "etcd"}); err != nil {
		t.Error(err)
	}
	if _, err := client.Observe(t.Context(), &protosv1.ObserveRequest{ClusterName: "x"}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("observe of another cluster: %v", err)
	}
	perform := func(cluster, leader string) codes.Code {
		stream, err := client.Perform(t.Context(), &protosv1.PerformRequest{ClusterName: cluster, Leader: leader})
		if err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		return status.Code(err)
	}
	for _, c := range []struct {
		cluster, leader string
		want            codes.Code
	}{
		{"etcd", "a", codes.Unknown}, // passed: the stream ends with EOF
		{"etcd", "b", codes.PermissionDenied},
		{"x", "a", codes.FailedPrecondition},
	} {
		if got := perform(c.cluster, c.leader); got != c.want {
			t.Errorf("perform of %s for cluster %s: %v, want %v", c.leader, c.cluster, got, c.want)
		}
	}
}

func TestConfig(t *testing.T) {
	good := Config{ClusterName: "x", Self: Info{ID: "a", Endpoints: []string{"[::1]:8000"}}, Instance: "i", Votes: &memVotes{},
		Lead: func(context.Context, cluster.Term) {}}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Config){
		"cluster name": func(c *Config) { c.ClusterName = "" },
		"node id":      func(c *Config) { c.Self.ID = "" },
		"endpoint":     func(c *Config) { c.Self.Endpoints = nil },
		"host:port":    func(c *Config) { c.Self.Endpoints = []string{"10.0.0.1"} },
		"address":      func(c *Config) { c.Self.Addresses = []string{"example.com"} },
		"instance":     func(c *Config) { c.Instance = "" },
		"votes":        func(c *Config) { c.Votes = nil },
		"leader":       func(c *Config) { c.Lead = nil },
		"wanted":       func(c *Config) { c.Wanted = -1 },
		"interval":     func(c *Config) { c.PollSlow = -1 },
		"loopback":     func(c *Config) { c.Loopback = "here" },
	} {
		c := good
		spoil(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
