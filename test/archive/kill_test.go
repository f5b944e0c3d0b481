package archive

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// TestEverythingLost kills all masters with SIGKILL at a random moment under load, and takes their
// disks. What the store has is a clean prefix of what clients were told, and no older than the
// interval.
func TestEverythingLost(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	const interval = 2 * time.Second
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed=%d", s)
	r := rand.New(rand.NewPCG(s, 2))
	c := harness.Start(t, harness.Options{Args: []string{"--change-log-interval=" + interval.String(), "--queue-poll-interval=1s"}})
	c.WaitBackups(1)
	for round := range *rounds {
		kept(t, c, c.Put("/data/begin", fmt.Sprint(round)))
		load := c.StartLoad(harness.LoadOptions{Prefix: fmt.Sprintf("/load/%d/", round), Pause: 5 * time.Millisecond})
		time.Sleep(time.Duration(3+r.IntN(5))*time.Second + time.Duration(r.IntN(1000))*time.Millisecond)
		killed := time.Now()
		for _, i := range r.Perm(len(c.Nodes)) {
			c.Nodes[i].KillWhole()
		}
		report := load.Stop()
		for _, n := range c.Nodes {
			n.Wipe(true)
		}
		out, errOut, code := c.Ctl("restore-backup", "--latest")
		if code != 0 {
			t.Fatalf("exit code %d\n%s%s", code, out, errOut)
		}
		cmds, _, err := c.Catalog.Commands(t.Context())
		must(t, err)
		c.StartAll()
		op := c.WaitOperation(cmds[0].Name, 4*time.Minute)
		c.CheckEnded(op, catalog.StateDone)
		c.WaitHealthy(len(c.Nodes))
		load.VerifyBetween(0, op.Target.Revision+1)
		lost, oldest := load.Behind(op.Target.Revision)
		age := time.Duration(0)
		if lost > 0 {
			age = killed.Sub(oldest)
		}
		t.Logf("round %d: of %d acknowledged writes %d are lost, the oldest %s before the kill", round, report.Acked,
			lost, age.Round(time.Millisecond))
		if age > interval {
			t.Errorf("writes of up to %s are lost; the interval is %s", age, interval)
		}
		if extra := load.Unacknowledged(op.Target.Revision); len(extra) > len(c.Nodes) {
			t.Errorf("%d keys were restored that no client was told of: %s", len(extra), strings.Join(extra[:3], " "))
		}
	}
}

// TestLeadersCome has leading managers die and go in order under load: the chain has no gap, and proves itself.
func TestLeadersCome(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	c := harness.Start(t, harness.Options{Args: []string{"--change-log-interval=1s", "--queue-poll-interval=1s"}})
	c.WaitBackups(1)
	load := c.StartLoad(harness.LoadOptions{})
	for i := range 4 {
		leader := c.WaitLeader()
		kept(t, c, c.Put("/data/leader", fmt.Sprint(i)))
		if i%2 == 0 {
			leader.Kill()
		} else if code := leader.Term(); code != 0 {
			t.Errorf("exit code %d", code)
		}
		c.WaitFor("another leader", 60*time.Second, func() string {
			if l := c.Leader(); l == nil || l == leader {
				return "none yet"
			}
			return ""
		})
		leader.Start()
		c.WaitHealthy(len(c.Nodes))
	}
	load.Stop()
	last := c.Put("/data/leader", "last")
	kept(t, c, last)
	first := c.Backups()[0].Name
	out, errOut, code := c.Ctl("restore-backup", first, fmt.Sprintf("--to-revision=%d", last), "--dry-run")
	if code != 0 {
		t.Fatalf("the chain from the first backup is broken: exit code %d\n%s%s", code, out, errOut)
	}
	t.Log(out)
	v, err := c.WaitLeader().Status(t.Context())
	must(t, err)
	if v.Changes == nil || v.Changes.Gaps != 0 {
		t.Errorf("%+v", v.Changes)
	}
}
