package life

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// compiled is the version that is part of the manager.
const compiled = "3.6.16"

// TestResize goes 1, 3, 5, 3, 1, and the last time a member is down. Before each change there is a backup.
func TestResize(t *testing.T) {
	testutil.Long(t)
	c := harness.Start(t, harness.Options{Nodes: 5, Spec: &cluster.Spec{MemberCount: 1}, Args: args()})
	c.WaitHealthy(1)
	token := c.OneToken()
	before := 1
	for _, size := range []int{3, 5, 3, 1} {
		began := time.Now()
		measured(t, c, fmt.Sprintf("resize %d to %d", before, size), func() {
			configure(t, c, fmt.Sprintf("--member-count=%d", size))
			waitVersion(t, c, size, compiled)
		})
		c.WaitHealthy(size)
		list := c.Backups()
		// one that is less than a minute old will do
		if len(list) == 0 || list[len(list)-1].Time.Before(began.Add(-time.Minute-time.Second)) {
			t.Errorf("no backup was taken before the change to %d; there are %v", size, list)
		}
		before = size
	}
	if again := c.OneToken(); again != token {
		t.Errorf("the token was %s and is %s", token, again)
	}
}

// TestResizeWhileDown grows and shrinks a cluster of which a member is dead: the dead one goes before a live one comes, or goes.
func TestResizeWhileDown(t *testing.T) {
	testutil.Long(t)
	c := harness.Start(t, harness.Options{Nodes: 5, Spec: &cluster.Spec{MemberCount: 3}, Args: args()})
	c.WaitHealthy(3)
	victim := member(t, c, 1)
	victim.KillWhole()
	measured(t, c, "resize 3 to 5 with a dead member", func() {
		configure(t, c, "--member-count=5")
		c.WaitFor("the dead member to be gone and four to be there", 2*time.Minute, func() string { return running(c, t, 4, compiled) })
	})
	victim.Wipe(true)
	victim.Start()
	waitVersion(t, c, 5, compiled)
	another := member(t, c, 2)
	another.KillWhole()
	measured(t, c, "resize 5 to 3 with a dead member", func() {
		configure(t, c, "--member-count=3")
		c.WaitFor("three members", 2*time.Minute, func() string { return running(c, t, 3, compiled) })
	})
}

// member is the i-th node that has a member.
func member(t *testing.T, c *harness.Cluster, i int) *harness.Node {
	t.Helper()
	for _, n := range c.Nodes {
		if n.EtcdPID() == 0 {
			continue
		}
		if i--; i == 0 {
			return n
		}
	}
	t.Fatal("there are not that many members")
	return nil
}

// TestKilledAtEveryStepOfResize grows and shrinks, and the leader is killed at every step.
func TestKilledAtEveryStepOfResize(t *testing.T) {
	testutil.Long(t)
	c := harness.Start(t, harness.Options{Nodes: 3, Spec: &cluster.Spec{MemberCount: 1}, Args: args("--member-unhealthy-deadline=30s")})
	c.WaitHealthy(1)
	for _, size := range []int{3, 1} {
		measured(t, c, fmt.Sprintf("killed at every step to %d members", size), func() {
			steps := killAtEveryStep(t, c, 4*time.Minute, func() { configure(t, c, fmt.Sprintf("--member-count=%d", size)) },
				func() string { return running(c, t, size, compiled) })
			t.Logf("killed at %d steps: %s", len(steps), strings.Join(steps, "; "))
			if least := map[int]int{3: 6, 1: 2}[size]; len(steps) < least {
				t.Errorf("only %d steps were seen; at least %d make the change", len(steps), least)
			}
		})
	}
	c.WaitHealthy(1)
	c.OneToken()
}
