package restore

import (
	"crypto/tls"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// otherManager is a gRPC server on the managers' port of a node that answers UNIMPLEMENTED to everything, with a certificate of
// etcd-manager-ca or, if ca is nil, in the clear. It returns what ends it.
func otherManager(t *testing.T, c *harness.Cluster, n *harness.Node, ca *authority) (stop func()) {
	t.Helper()
	var options []grpc.ServerOption
	if ca != nil {
		dir := filepath.Join(c.Dir, "other-"+n.Name)
		crt, key := filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key")
		certificate(t, crt, key, "etcd-manager-server-"+n.Name, ca, net.ParseIP(n.Address))
		pair, err := tls.LoadX509KeyPair(crt, key)
		must(t, err)
		options = append(options, grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{pair},
			ClientAuth: tls.RequireAnyClientCert})))
	}
	l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", n.Address, c.Ports.GRPC))
	must(t, err)
	s := grpc.NewServer(options...)
	served := make(chan struct{})
	go func() { defer close(served); _ = s.Serve(l) }()
	stop = func() { s.Stop(); <-served }
	t.Cleanup(stop)
	return stop
}

// TestTakeOverNodeByNode replaces another etcd-manager one node after the other. While it runs on two of three nodes nobody leads, and the
// own etcd is kept running; while it runs on one, that one is not taken for dead although its etcd is, and a master without work stands by.
func TestTakeOverNodeByNode(t *testing.T) {
	testutil.Long(t)
	var managers, peers, clients *authority
	c := harness.New(t, harness.Options{NoSpec: true,
		Args: []string{"--member-unhealthy-deadline=2s", "--form-grace=1s", "--queue-poll-interval=1s"}, CAs: func(dir string) {
			pair := func(name string) *authority {
				return certificate(t, filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key"), name, nil)
			}
			managers, peers, clients = pair("etcd-manager-ca"), pair("etcd-peers-ca"), pair("etcd-clients-ca")
		}})
	control := filepath.Join(c.StoreURL, "control")
	harness.WriteFile(t, filepath.Join(control, "etcd-cluster-spec"), `{"memberCount":3}`)
	harness.WriteFile(t, filepath.Join(control, "etcd-cluster-created"), `{"timestamp":1516000000000000000}`)
	kill := map[string]func(){}
	for _, n := range c.Nodes {
		kill[n.Name] = leaveBehind(t, c, n, peers, clients)
	}
	ids := members(t, c)
	load := c.StartLoad(harness.LoadOptions{Any: true})
	a, b, last := c.Node("a"), c.Node("b"), c.Node("c")
	stopB, stopC := otherManager(t, c, b, managers), otherManager(t, c, last, nil)

	a.Start()
	waits := func() string {
		v, err := a.Status(t.Context())
		switch {
		case err != nil:
			return err.Error()
		case v.Leader != "":
			t.Fatalf("%s leads, with other software on two of three nodes", v.Leader)
		case !strings.Contains(v.Doing, "2 of 3 managers are other software, on b, c") || !v.Etcd.Healthy:
			return fmt.Sprintf("doing %q, peers %+v, etcd healthy %t", v.Doing, v.Peers, v.Etcd.Healthy)
		}
		return ""
	}
	c.WaitFor("a manager that waits for the others to be replaced", 30*time.Second, waits)
	c.WaitLog(30*time.Second, "2 of 3 managers are other software, on b, c", a)
	kill["a"]()
	c.WaitFor("the etcd of a to be started again", 30*time.Second, func() string {
		if a.EtcdPID() == 0 {
			return "none runs"
		}
		return waits()
	})
	sameMembers(t, c, ids)

	stopB()
	b.Start()
	c.WaitFor("a leader", 30*time.Second, func() string {
		v, err := b.Status(t.Context())
		if err != nil || v.Leader == "" || !v.Etcd.Healthy {
			return fmt.Sprintf("%+v, %v", v, err)
		}
		return ""
	})
	spare := c.AddNode("d")
	spare.Start()
	kill["c"]()
	// That nothing happens can only be seen by looking for a while, several times as long as it takes until a dead member is replaced.
	for until := time.Now().Add(12 * time.Second); time.Now().Before(until); time.Sleep(300 * time.Millisecond) {
		sameMembers(t, c, ids)
	}

	stopC()
	last.Start()
	c.WaitHealthy(3)
	sameMembers(t, c, ids)
	r := load.Stop()
	t.Logf("another etcd-manager was replaced node by node: %s", r)
	load.Verify()
}

// sameMembers fails the test unless members and cluster id are these.
func sameMembers(t *testing.T, c *harness.Cluster, want map[string]uint64) {
	t.Helper()
	if got := members(t, c); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("the members are %x; want %x", got, want)
	}
}
