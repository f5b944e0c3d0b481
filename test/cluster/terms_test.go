package cluster

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/pki"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// restartFrom has a node's manager restart its etcd, in the name of another node's leadership, and says what came of it.
func restartFrom(t *testing.T, c *harness.Cluster, leader *harness.Node, term uint64, n *harness.Node) error {
	t.Helper()
	keeper, err := pki.NewKeeper(pki.Config{Dir: c.PKI, NodeID: leader.ID(), Managers: true, Policy: pki.DefaultPolicy()})
	must(t, err)
	conn, err := grpc.NewClient(fmt.Sprintf("%s:%d", n.Address, c.Ports.GRPC),
		grpc.WithTransportCredentials(credentials.NewTLS(keeper.ManagerClient(n.ID()))))
	must(t, err)
	defer conn.Close()
	state, err := n.State()
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	stream, err := protosv1.NewNodeServiceClient(conn).Perform(ctx, &protosv1.PerformRequest{
		ClusterName: "test", Term: term, Leader: leader.ID(),
		Action: &protosv1.PerformRequest_StartEtcd{StartEtcd: &protosv1.StartEtcd{State: state, Restart: true}},
	})
	must(t, err)
	for {
		e, err := stream.Recv()
		if err != nil || e.GetDone() {
			return err
		}
	}
}

// TestAStalledLeader stops the leading manager in the middle. What it had on its way arrives after
// another one leads: it must be refused by every node, also by those of which the new leader has
// asked nothing yet, or two members are down at once. The leader itself sends nothing when it goes
// on.
func TestAStalledLeader(t *testing.T) {
	testutil.Long(t)
	c := harness.Start(t, harness.Options{})
	stalled := c.WaitLeader()
	v, err := stalled.Status(t.Context())
	must(t, err)
	term := uint64(v.Term)
	stalled.Pause()
	resumed := false
	defer func() {
		if !resumed {
			stalled.Resume()
		}
	}()
	c.WaitFor("another leader", 20*time.Second, func() string {
		for _, n := range c.Nodes {
			if n == stalled {
				continue
			}
			if v, err := n.Status(t.Context()); err == nil && v.Leading {
				return ""
			}
		}
		return "nobody else leads"
	})
	check := c.Untouched()
	for _, n := range c.Nodes {
		if n == stalled {
			continue
		}
		if err := restartFrom(t, c, stalled, term, n); status.Code(err) != codes.Aborted {
			t.Errorf("node %s, asked by the leader of term %d, which is over: %v", n.Name, term, err)
		}
	}
	resumed = true
	stalled.Resume()
	if err := restartFrom(t, c, stalled, term, stalled); status.Code(err) != codes.Aborted {
		t.Errorf("the leader of term %d, which is over, obeys itself: %v", term, err)
	}
	c.WaitHealthy(3)
	check()
}
