package peer

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/election"
	"github.com/etcd-manager/etcd-manager/pkg/pki"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// fort is node a's server with all services of a manager, behind which nothing refuses anything.
type fort struct {
	protosv1.UnimplementedNodeServiceServer
	protosv1.UnimplementedPeerServiceServer
	protosv1.UnimplementedRelayServiceServer
	keys, addr string
	server     *grpc.Server
}

func newFort(t *testing.T, keys string) *fort {
	f := &fort{keys: keys}
	var serverTLS *tls.Config
	if keys != "" {
		serverTLS = keeperOf(t, keys, "a").ManagerServer()
	}
	f.server = NewServer("etcd", serverTLS)
	protosv1.RegisterNodeServiceServer(f.server, f)
	protosv1.RegisterPeerServiceServer(f.server, f)
	protosv1.RegisterRelayServiceServer(f.server, f)
	grpc_health_v1.RegisterHealthServer(f.server, health.NewServer())
	f.server.RegisterService(&grpc.ServiceDesc{ServiceName: "extra.Service", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{MethodName: "Call",
		Handler: func(srv any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
			var in protosv1.ObserveRequest
			if err := decode(&in); err != nil {
				return nil, err
			}
			return interceptor(ctx, &in, &grpc.UnaryServerInfo{FullMethod: "/extra.Service/Call"},
				func(context.Context, any) (any, error) { return &protosv1.NodeStatus{}, nil })
		}}}}, f)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testutil.Must(t, err)
	f.addr = l.Addr().String()
	served := make(chan struct{})
	go func() { defer close(served); _ = f.server.Serve(Limit(l)) }()
	t.Cleanup(func() { f.server.Stop(); <-served })
	return f
}

// ExchangeStream is like the other methods, which read their request.
func (f *fort) ExchangeStream(s protosv1.PeerService_ExchangeStreamServer) error {
	if _, err := s.Recv(); err != nil {
		return err
	}
	return status.Error(codes.Unimplemented, "it came through")
}

func keeperOf(t *testing.T, keys, node string) *pki.Keeper {
	k, err := pki.NewKeeper(pki.Config{Dir: keys, NodeID: node, Managers: true, Etcd: true, Policy: pki.DefaultPolicy()})
	testutil.Must(t, err)
	return k
}

// call calls a method with a request, as any client can, and returns the code of what comes back.
func (f *fort) call(t *testing.T, c *tls.Config, method string, req proto.Message) codes.Code {
	t.Helper()
	conn, err := grpc.NewClient(f.addr, grpc.WithTransportCredentials(credentials.NewTLS(c)))
	testutil.Must(t, err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err == nil {
		if err = s.SendMsg(req); err == nil || errors.Is(err, io.EOF) {
			_ = s.CloseSend() // what went wrong comes with the answer
			err = s.RecvMsg(&protosv1.NodeStatus{})
		}
	}
	return status.Code(err)
}

// requests has one for every method that names a cluster and says that it comes from a node.
func requests(cluster, from string) map[string]proto.Message {
	return map[string]proto.Message{
		protosv1.PeerService_Exchange_FullMethodName:       &protosv1.ExchangeRequest{ClusterName: cluster, From: from, To: "a", Instance: "x"},
		protosv1.PeerService_ExchangeStream_FullMethodName: &protosv1.ExchangeRequest{ClusterName: cluster, From: from, To: "a", Instance: "x"},
		protosv1.NodeService_Perform_FullMethodName:        &protosv1.PerformRequest{ClusterName: cluster, Leader: from, Term: 7},
		protosv1.NodeService_Observe_FullMethodName:        &protosv1.ObserveRequest{ClusterName: cluster, Leader: from, Term: 7},
		protosv1.NodeService_Watch_FullMethodName:          &protosv1.WatchRequest{ClusterName: cluster},
		protosv1.NodeService_Reach_FullMethodName:          &protosv1.ReachRequest{ClusterName: cluster},
		protosv1.NodeService_Witness_FullMethodName:        &protosv1.WitnessRequest{ClusterName: cluster},
		protosv1.RelayService_Get_FullMethodName:           &protosv1.RelayGetRequest{ClusterName: cluster},
		protosv1.RelayService_Stat_FullMethodName:          &protosv1.RelayStatRequest{ClusterName: cluster},
		protosv1.RelayService_List_FullMethodName:          &protosv1.RelayListRequest{ClusterName: cluster},
	}
}

// TestEveryMethodHasARule: what this package lists is what is served, and nothing else can be called.
func TestEveryMethodHasARule(t *testing.T) {
	f := newFort(t, makeKeys(t))
	served := map[string]bool{}
	for service, info := range f.server.GetServiceInfo() {
		for _, m := range info.Methods {
			served["/"+service+"/"+m.Name] = true
		}
	}
	extra := "/extra.Service/Call"
	for m := range served {
		if _, ok := methods[m]; !ok && m != extra && m != "/grpc.health.v1.Health/List" {
			t.Errorf("%s has no rule", m)
		}
	}
	for m, a := range methods {
		if !served[m] {
			t.Errorf("%s has a rule and isn't served", m)
		}
		if _, ok := requests("", "")[m]; a != open && !ok {
			t.Errorf("%s isn't tried by these tests", m)
		}
	}
	b := keeperOf(t, f.keys, "b").ManagerClient("a")
	for _, m := range []string{extra, "/grpc.health.v1.Health/List"} {
		if code := f.call(t, b, m, &protosv1.ObserveRequest{ClusterName: "etcd"}); code != codes.PermissionDenied {
			t.Errorf("%s: %s", m, code)
		}
	}
}

// TestWhoMayCallWhat: a client with each kind of certificate tries every method.
func TestWhoMayCallWhat(t *testing.T) {
	f := newFort(t, makeKeys(t))
	b := keeperOf(t, f.keys, "b")
	with := func(change func(*tls.Config)) *tls.Config {
		c := b.ManagerClient("a")
		change(c)
		return c
	}
	// The certificates that somebody on a master, or with another CA, can come by.
	present := func(certificate func(*tls.CertificateRequestInfo) (*tls.Certificate, error)) *tls.Config {
		return with(func(c *tls.Config) { c.GetClientCertificate = certificate })
	}
	strangers := map[string]*tls.Config{
		"no certificate":              present(func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }),
		"a certificate of another CA": present(keeperOf(t, makeKeys(t), "b").ManagerClient("a").GetClientCertificate),
		"etcd's client certificate":   present(b.EtcdClient("a").GetClientCertificate),
		"a manager's server certificate": present(func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return b.ManagerServer().GetCertificate(nil)
		}),
		"an expired certificate": present(func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return expired(t, f.keys), nil }),
	}
	for method, req := range requests("etcd", "b") {
		for who, c := range strangers {
			if code := f.call(t, c, method, req); code != codes.Unavailable { // the handshake fails
				t.Errorf("%s with %s: %s", method, who, code)
			}
		}
		if code := f.call(t, b.ManagerClient("a"), method, req); code != codes.Unimplemented {
			t.Errorf("%s by manager b: %s, it should come to what is behind the gate", method, code)
		}
		if code := f.call(t, b.ManagerClient("a"), method, requests("other", "b")[method]); code != codes.FailedPrecondition {
			t.Errorf("%s of another cluster: %s", method, code)
		}
		if code := f.call(t, b.ManagerClient("a"), method, requests("etcd", "c")[method]); methods[method] == sender && code != codes.PermissionDenied {
			t.Errorf("%s by b in the name of c: %s", method, code)
		}
	}
	summary := &protosv1.ObserveRequest{ClusterName: "etcd", Leader: "c", Summary: []byte("{}")}
	if code := f.call(t, b.ManagerClient("a"), protosv1.NodeService_Observe_FullMethodName, summary); code != codes.PermissionDenied {
		t.Errorf("what b tells of the cluster in the name of c: %s", code)
	}
}

// expired is a certificate of manager b that ended yesterday.
func expired(t *testing.T, keys string) *tls.Certificate {
	t.Helper()
	dir := t.TempDir()
	names, err := filepath.Glob(filepath.Join(keys, "*"))
	testutil.Must(t, err)
	for _, name := range names {
		data, err := os.ReadFile(name)
		testutil.Must(t, err)
		testutil.Must(t, os.WriteFile(filepath.Join(dir, filepath.Base(name)), data, 0o600))
	}
	k, err := pki.NewKeeper(pki.Config{Dir: dir, NodeID: "b", Managers: true, Policy: pki.Policy{Duration: time.Minute, Backdate: time.Hour},
		Now: func() time.Time { return time.Now().Add(-5 * time.Minute) }})
	testutil.Must(t, err)
	c, err := k.ManagerClient("a").GetClientCertificate(nil)
	testutil.Must(t, err)
	if c.Leaf != nil && c.Leaf.NotAfter.After(time.Now()) {
		t.Fatalf("it ends only at %s", c.Leaf.NotAfter)
	}
	return c
}

// TestSizesAreBounded: a request, its head and the number of connections have a limit, also for who has a certificate.
func TestSizesAreBounded(t *testing.T) {
	f := newFort(t, makeKeys(t))
	b := keeperOf(t, f.keys, "b").ManagerClient("a")
	big := &protosv1.ExchangeRequest{ClusterName: "etcd", From: "b", To: "a", Instance: strings.Repeat("x", maxRequest+1)}
	if code := f.call(t, b, protosv1.PeerService_Exchange_FullMethodName, big); code != codes.ResourceExhausted {
		t.Errorf("a request of more than %d bytes: %s", maxRequest, code)
	}
	conn, err := grpc.NewClient(f.addr, grpc.WithTransportCredentials(credentials.NewTLS(b)))
	testutil.Must(t, err)
	defer conn.Close()
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x", strings.Repeat("x", 2*maxHead))
	_, err = protosv1.NewNodeServiceClient(conn).Observe(ctx, &protosv1.ObserveRequest{ClusterName: "etcd"})
	if status.Code(err) == codes.Unimplemented || err == nil {
		t.Errorf("a head of more than %d bytes: %v", maxHead, err)
	}
}

// TestConnectionsAreBounded: who opens connections and says nothing gets no more than the limit, and others are served as soon as one ends.
func TestConnectionsAreBounded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testutil.Must(t, err)
	limited := Limit(l)
	defer limited.Close()
	accepted := make(chan net.Conn, 2*maxPerHost)
	go func() {
		for {
			c, err := limited.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		testutil.Must(t, err)
		t.Cleanup(func() { c.Close() })
		return c
	}
	var first net.Conn
	for range maxPerHost {
		dial()
		if c := <-accepted; first == nil {
			first = c
		}
	}
	one := make([]byte, 1)
	if _, err := dial().Read(one); !errors.Is(err, io.EOF) && !bytes.Contains([]byte(err.Error()), []byte("reset")) {
		t.Errorf("connection %d: %v", maxPerHost+1, err)
	}
	testutil.Must(t, first.Close())
	dial()
	<-accepted
}

// TestGossipCantBury: what a peer makes up of others, and of the node itself, is bounded, and the node's own word stays the newest.
func TestGossipCantBury(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		a := w.start("a", 3, nil)
		var forged []*protosv1.PeerInfo
		for i := range 10 * maxNodes {
			forged = append(forged, &protosv1.PeerInfo{NodeId: "x" + strings.Repeat("y", i%150) + string(rune('a'+i%26)) + time.Duration(i).String(),
				Endpoints: []string{"10.9.9.9:1"}, Incarnation: time.Now().UnixNano()})
		}
		forged = append(forged,
			&protosv1.PeerInfo{NodeId: "a", Endpoints: []string{"10.9.9.9:1"}, Incarnation: math.MaxInt64},
			&protosv1.PeerInfo{NodeId: "b", Incarnation: math.MaxInt64},
			&protosv1.PeerInfo{NodeId: "../b", Endpoints: []string{"10.9.9.9:1"}, Incarnation: 5},
			&protosv1.PeerInfo{NodeId: "c", Endpoints: []string{strings.Repeat("x", 1<<20) + ":1"}, Incarnation: 5})
		a.peers.mu.Lock()
		a.peers.merge(forged, "b")
		a.peers.mu.Unlock()
		checkBounds(t, a.peers)
		// The node that was said to be gone says itself that it isn't.
		a.peers.mu.Lock()
		a.peers.merge([]*protosv1.PeerInfo{{NodeId: "b", Endpoints: []string{"10.0.0.2:1"}, Incarnation: time.Now().UnixNano()}}, "b")
		known := a.peers.view.infos["b"]
		a.peers.mu.Unlock()
		if len(known.Endpoints) != 0 && known.Endpoints[0] != "10.0.0.2:1" {
			t.Errorf("b is known as %+v", known)
		}
		// An instance that is another each time is not remembered for good.
		n := &node{id: "b", former: map[string]time.Time{}}
		a.peers.mu.Lock()
		for i := range 10 * maxFormer {
			a.peers.observe(n, time.Duration(i).String())
		}
		a.peers.mu.Unlock()
		if len(n.former) > maxFormer {
			t.Errorf("%d former instances", len(n.former))
		}
	})
}

// TestInflatedTerms: a peer that campaigns with a term that no history reaches raises nobody's term.
func TestInflatedTerms(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		a := w.start("a", 1, nil)
		w.awaitLeader(time.Minute, a)
		for _, term := range []cluster.Term{math.MaxUint64, cluster.MaxTerm, cluster.MaxTerm + 1, cluster.MaxTermJump + 2} {
			for _, kind := range []election.Kind{election.MsgVote, election.MsgHeartbeat, election.MsgTimeoutNow} {
				_, err := a.peers.Exchange(t.Context(), &protosv1.ExchangeRequest{ClusterName: "etcd", From: "b", To: "a", Instance: "x",
					Election: electionProto(election.Message{Kind: kind, From: "b", To: "a", Term: term})})
				if err != nil {
					t.Errorf("%s of term %d: %v", kind, term, err)
				}
			}
		}
		if _, term := a.peers.Leader(); term > 1000 {
			t.Errorf("it is in term %d", term)
		}
		if h, err := a.votes.Load(); err != nil || h.Term > 1000 {
			t.Errorf("it has promised %+v, %v", h, err)
		}
	})
}
