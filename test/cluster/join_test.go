package cluster

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// TestFailingJoiner wants five members, of which one ends at each start. The other one joins, a
// member that lost its disk is replaced meanwhile, the status names the one that fails, and it
// joins once it is repaired.
func TestFailingJoiner(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	c := harness.Start(t, harness.Options{Args: []string{"--queue-poll-interval=1s", "--member-unhealthy-deadline=10s"}})
	bad := c.AddNode("d")
	bad.Env = append(bad.Env, "ETCD_LISTEN_METRICS_URLS=http://203.0.113.1:8081") // no address of this machine
	bad.Start()
	good := c.AddNode("e")
	c.WaitFor("node d to be known", time.Minute, func() string {
		v, err := c.WaitLeader().Status(t.Context())
		if err != nil || len(v.Peers) < 3 {
			return fmt.Sprintf("%+v, %v", v, err)
		}
		return ""
	})
	if out, errOut, code := c.Ctl("configure-cluster", "--member-count=5"); code != 0 {
		t.Fatalf("configure-cluster: %d\n%s%s", code, out, errOut)
	}
	c.WaitLog(time.Minute, "added node d as learner")
	good.Start() // it comes when the other one has been tried already
	voters := func(want ...*harness.Node) {
		t.Helper()
		c.WaitFor(fmt.Sprintf("%d voters", len(want)), 2*time.Minute, func() string {
			for _, n := range want {
				v, err := n.Status(t.Context())
				if err != nil || !v.Etcd.Votes() {
					return fmt.Sprintf("%s: %+v, %v", n.Name, v, err)
				}
			}
			return ""
		})
	}
	voters(good)
	lost := c.Nodes[0]
	if c.WaitLeader() == lost {
		lost = c.Nodes[1]
	}
	lost.KillWhole()
	lost.Wipe(true)
	lost.Start()
	voters(c.Nodes[0], c.Nodes[1], c.Nodes[2], good)
	c.WaitFor("the status to name node d", time.Minute, func() string {
		v, err := c.WaitLeader().Status(t.Context())
		if err != nil {
			return err.Error()
		}
		for _, a := range v.Attention {
			if a.Kind == cluster.AttentionMember && a.Node == "d" && strings.Contains(a.Text, "node d has failed to join") {
				t.Log(a)
				return ""
			}
		}
		return fmt.Sprintf("%v; it does: %s", v.Attention, v.Doing)
	})
	if n := strings.Count(logsOf(c), "added node d as learner"); n > 6 {
		t.Errorf("node d was tried %d times", n)
	}
	bad.KillWhole()
	bad.Env = nil
	bad.Start()
	c.WaitFor("five members", 4*time.Minute, func() string {
		v, err := bad.Status(t.Context())
		if err != nil || !v.Etcd.Votes() {
			return fmt.Sprintf("%+v, %v", v, err)
		}
		return ""
	})
	c.WaitHealthy(5)
}

// logsOf is all that the managers have said since their last starts.
func logsOf(c *harness.Cluster) string {
	var b strings.Builder
	for _, n := range c.Nodes {
		b.WriteString(n.LogText())
	}
	return b.String()
}
