package cluster

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// onlyALearner makes a cluster of three of which both voters lose their disks while the third node
// is a learner that has caught up. A learner can't vote, knows raft's last leader for good, and
// answers: it must not be taken for a cluster that serves, or starts.
func onlyALearner(t *testing.T) *harness.Cluster {
	t.Helper()
	c := harness.Start(t, harness.Options{Args: []string{"--queue-poll-interval=1s", "--member-unhealthy-deadline=10s"}})
	c.WaitBackups(1)
	c.Put("/kept", "yes")
	a, b, learner := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	for attempt := 1; ; attempt++ {
		learner.KillWhole()
		learner.Wipe(true)
		learner.Start()
		c.WaitFor("an etcd on node c", time.Minute, func() string {
			if learner.EtcdPID() == 0 {
				return "there is none"
			}
			return ""
		})
		a.Pause() // nobody promotes it now
		b.Pause()
		caught := isLearner(t, c, learner)
		if caught {
			break
		}
		a.Resume()
		b.Resume()
		if attempt == 5 {
			t.Fatal("it was promoted each time before the managers were stopped")
		}
		c.WaitHealthy(3)
	}
	for _, n := range []*harness.Node{a, b} {
		n.KillWhole()
	}
	for _, n := range []*harness.Node{a, b} {
		n.Wipe(true)
		n.Start()
	}
	return c
}

// isLearner waits until the node's etcd has the data, and tells whether it is a learner.
func isLearner(t *testing.T, c *harness.Cluster, n *harness.Node) bool {
	t.Helper()
	client, learner := c.Client(n.ClientURL()), false
	c.WaitFor("the learner to catch up", time.Minute, func() string {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		st, err := client.Status(ctx, n.ClientURL())
		if err != nil {
			return err.Error()
		}
		if learner = st.IsLearner; st.Leader == 0 || st.RaftAppliedIndex+10 < st.RaftIndex || st.Header.Revision < 2 {
			return fmt.Sprintf("%+v", st)
		}
		return ""
	})
	return learner
}

// lostWithLearner waits until the leader says that the quorum is lost, and names the way without loss.
func lostWithLearner(t *testing.T, c *harness.Cluster) {
	t.Helper()
	c.WaitFor("the leader to say that the quorum is lost", 2*time.Minute, func() string {
		lead := c.Leader()
		if lead == nil {
			return "nobody leads"
		}
		v, err := lead.Status(t.Context())
		if err != nil {
			return err.Error()
		}
		for _, a := range v.Attention {
			if a.Kind == cluster.AttentionQuorum && strings.Contains(a.Text, "c: a learner, which has no vote") &&
				strings.Contains(a.Command, "recover --from-survivor") {
				t.Log(a)
				return ""
			}
		}
		return fmt.Sprintf("%v; it does: %s", v.Attention, v.Doing)
	})
}

// TestQuorumLostWithALearner recovers from what the learner has.
func TestQuorumLostWithALearner(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	c := onlyALearner(t)
	lostWithLearner(t, c)
	c.WaitFor("the command to be obeyed", time.Minute, func() string {
		if out, errOut, code := c.Ctl("recover", "--from-survivor", "--yes"); code != 0 {
			return out + errOut
		}
		return ""
	})
	c.WaitHealthy(3)
	if got, _ := c.ReadAll("/kept"); got["/kept"] != "yes" {
		t.Errorf("after the recovery: %v", got)
	}
}

// TestRestoreWithALearner restores a backup. It doesn't wait for a cluster that never serves again.
func TestRestoreWithALearner(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	c := onlyALearner(t)
	lostWithLearner(t, c)
	cmd, err := c.Catalog.QueueRestore(t.Context(), c.Backups()[0].Name, c.Spec(), catalog.RestoreOptions{Now: true})
	must(t, err)
	c.CheckEnded(c.WaitOperation(cmd.Name, 5*time.Minute), catalog.StateDone)
	c.WaitHealthy(3)
}
