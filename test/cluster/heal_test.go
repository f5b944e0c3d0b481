package cluster

import (
	"fmt"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// TestWipedDisk takes a node's power and its disk away. It is a healthy member again by itself, whether it kept its name or not.
func TestWipedDisk(t *testing.T) {
	testutil.Long(t)
	c := harness.Start(t, harness.Options{Args: []string{"--member-unhealthy-deadline=5s"}})
	load := c.StartLoad(harness.LoadOptions{Any: true})
	token := c.OneToken()
	for _, tc := range []struct {
		what string
		node *harness.Node
		keep bool
	}{
		{"name kept", c.Nodes[0], true},
		{"name lost", c.Nodes[1], false},
		{"leader, name kept", nil, true},
	} {
		n := tc.node
		if n == nil {
			n = c.WaitLeader()
		}
		before := n.ID()
		n.KillWhole()
		n.Wipe(tc.keep)
		start := time.Now()
		n.Start()
		c.WaitHealthy(3)
		t.Logf("%s: the disk of %s was wiped; it is a healthy member again after %s", tc.what, n.Name,
			time.Since(start).Round(10*time.Millisecond))
		if (n.ID() == before) != tc.keep {
			t.Errorf("%s: the node's id was %s and is %s", tc.what, before, n.ID())
		}
		if again := c.OneToken(); again != token {
			t.Errorf("the token was %s and is %s", token, again)
		}
	}
	t.Log(load.Stop())
	load.Verify()
}

// TestNodeAway leaves a dead node dead: nothing is changed as long as nobody can take its place, backups are taken and verified all the
// same, and it goes on where it was.
func TestNodeAway(t *testing.T) {
	testutil.Long(t)
	c := harness.Start(t, harness.Options{BackupInterval: 5 * time.Second,
		Args: []string{"--member-unhealthy-deadline=2s", "--verify-interval=3s"}})
	load := c.StartLoad(harness.LoadOptions{Any: true})
	n := c.Nodes[2]
	n.KillWhole()
	c.WaitFor("writes with two members", 20*time.Second, func() string {
		if load.Acked() < 100 {
			return "too few"
		}
		return ""
	})
	gone := time.Now()
	c.WaitFor("two backups without it, the later one verified", 90*time.Second, func() string {
		taken, verified := 0, 0
		for _, b := range c.Backups() {
			if b.At().After(gone) {
				taken++
			}
			if b.At().After(gone) && b.Sound() && !b.ProofAt.IsZero() && taken > 1 {
				verified++
			}
		}
		if taken < 2 || verified < 1 {
			return fmt.Sprintf("%d were taken, %d of the later ones verified", taken, verified)
		}
		return ""
	})
	if l := c.WaitLeader(); l != nil {
		v, err := l.Status(t.Context())
		if err != nil || v.BackupError != "" || v.Healthy != 2 {
			t.Errorf("the leader says %+v, %v", v, err)
		}
	}
	n.Start()
	c.WaitHealthy(3)
	t.Log(load.Stop())
	load.Verify()
}
