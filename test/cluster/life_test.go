package cluster

import (
	"maps"
	"syscall"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// TestFormAndRestart forms three members, ends all managers with SIGTERM, and starts them again with the data.
func TestFormAndRestart(t *testing.T) {
	c := harness.New(t, harness.Options{})
	start := time.Now()
	c.StartAll()
	c.WaitHealthy(3)
	t.Logf("three members serve %s after the start of the managers", time.Since(start).Round(10*time.Millisecond))
	before := c.Put("/greeting", "hello")
	token := c.OneToken()
	var pids []int
	for _, n := range c.Nodes {
		pids = append(pids, n.EtcdPID())
	}
	c.TermAll()
	for i, n := range c.Nodes {
		if syscall.Kill(pids[i], 0) == nil {
			t.Errorf("the etcd of %s (pid %d) still runs after its manager ended in order", n.Name, pids[i])
		}
	}
	c.StartAll()
	c.WaitHealthy(3)
	got, after := c.ReadAll("/greeting")
	if want := map[string]string{"/greeting": "hello"}; !maps.Equal(got, want) || after < before {
		t.Errorf("after the restart there is %v at revision %d; want %v at %d or more", got, after, want, before)
	}
	if again := c.OneToken(); again != token {
		t.Errorf("the token was %s and is %s", token, again)
	}
}

// TestSizes forms one member by one manager, and one member where three managers are.
func TestSizes(t *testing.T) {
	testutil.Long(t)
	for _, o := range []harness.Options{
		{Nodes: 1},
		{Nodes: 3, Spec: &cluster.Spec{MemberCount: 1}},
	} {
		c := harness.Start(t, o)
		c.Put("/a", "b")
		c.OneToken()
		members := 0
		for _, n := range c.Nodes {
			if n.EtcdPID() != 0 {
				members++
			}
		}
		if members != 1 {
			t.Errorf("%d managers form %d members; want 1", o.Nodes, members)
		}
		c.TermAll()
	}
}

// TestManagerKilled kills managers with SIGKILL under load: etcd goes on, and the next manager takes it over.
func TestManagerKilled(t *testing.T) {
	c := harness.Start(t, harness.Options{})
	load := c.StartLoad(harness.LoadOptions{})
	for _, n := range []*harness.Node{c.WaitLeader(), c.Nodes[0], c.Nodes[1], c.Nodes[2]} {
		pid := n.EtcdPID()
		n.Kill()
		if n.EtcdPID() != pid {
			t.Errorf("the etcd of %s ended with its manager", n.Name)
		}
		n.Start()
		c.WaitHealthy(3)
		if n.EtcdPID() != pid {
			t.Errorf("the manager of %s runs etcd with pid %d; it should have adopted %d", n.Name, n.EtcdPID(), pid)
		}
	}
	// All at once: nobody is left to lead, and etcd goes on all the same.
	for _, n := range c.Nodes {
		n.Kill()
	}
	acked := load.Acked()
	c.WaitFor("writes without any manager", 10*time.Second, func() string {
		if load.Acked() < acked+20 {
			return "too few are acknowledged"
		}
		return ""
	})
	c.StartAll()
	c.WaitHealthy(3)
	r := load.Stop()
	t.Log(r)
	if len(r.Failures) > 0 {
		t.Errorf("%d requests failed", len(r.Failures))
	}
	load.Verify()
}

// TestEtcdKilled kills each etcd with SIGKILL, then all at once: they serve again, and nothing acknowledged is lost.
func TestEtcdKilled(t *testing.T) {
	testutil.Long(t)
	c := harness.Start(t, harness.Options{})
	load := c.StartLoad(harness.LoadOptions{})
	for _, n := range c.Nodes {
		old := n.KillEtcd()
		start := time.Now()
		c.WaitFor("another etcd on "+n.Name, 20*time.Second, func() string {
			if pid := n.EtcdPID(); pid == 0 || pid == old {
				return "there is none"
			}
			return ""
		})
		c.WaitHealthy(3)
		t.Logf("etcd of %s killed; all are healthy again after %s", n.Name, time.Since(start).Round(10*time.Millisecond))
	}
	for _, n := range c.Nodes {
		n.KillEtcd()
	}
	start, acked := time.Now(), load.Acked()
	c.WaitFor("a write after all etcds were killed", 30*time.Second, func() string {
		if load.Acked() <= acked+3 { // one by each client may have been on its way
			return "nothing is acknowledged"
		}
		return ""
	})
	t.Logf("all etcds killed; they serve again after %s", time.Since(start).Round(10*time.Millisecond))
	c.WaitHealthy(3)
	t.Log(load.Stop())
	load.Verify()
}
