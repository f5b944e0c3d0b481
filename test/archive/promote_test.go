package archive

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// standbyFor starts a standby of a cluster, and waits until it has a revision.
func standbyFor(t *testing.T, old *harness.Cluster, nodes int, args []string, revision int64) *harness.Cluster {
	t.Helper()
	c := harness.New(t, harness.Options{Nodes: nodes, NoSpec: true, Args: args})
	must(t, os.MkdirAll(c.StoreURL, 0o700))
	for _, n := range c.Nodes {
		n.Args = []string{"--standby-of=" + old.StoreURL}
	}
	c.StartAll()
	for _, n := range c.Nodes {
		c.WaitFor(fmt.Sprintf("revision %d on node %s", revision, n.Name), 60*time.Second, func() string {
			s, why := standbyOf(t, n)
			if why == "" && s.Revision < revision {
				why = fmt.Sprintf("%+v", s)
			}
			return why
		})
	}
	c.WaitFor("the standby is seen", 60*time.Second, func() string {
		if out, errOut, code := c.Ctl("status"); code != 0 {
			return out + errOut
		}
		return ""
	})
	return c
}

// said runs the tool and wants an exit code and words.
func said(t *testing.T, c *harness.Cluster, want string, wantCode int, args ...string) string {
	t.Helper()
	out, errOut, code := c.Ctl(args...)
	if code != wantCode || !strings.Contains(out+errOut, want) {
		t.Fatalf("%v: exit code %d, want %d and %q\n%s%s", args, code, wantCode, want, out, errOut)
	}
	return out + errOut
}

// TestPromote: a standby takes the place of a cluster that serves, without a lost write; what can't be is refused.
func TestPromote(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	args := []string{"--change-log-interval=1s", "--queue-poll-interval=1s"}
	// The old cluster hears of it late, so that one who doesn't wait for it loses what is written meanwhile.
	old := harness.Start(t, harness.Options{Nodes: 3, Args: []string{args[0], "--queue-poll-interval=8s"}})
	old.WaitHealthy(3)
	old.WaitBackups(1)
	first := old.Put("/before", "1")
	c := standbyFor(t, old, 3, args, first)
	other := standbyFor(t, old, 1, args, first)

	said(t, old, "has a cluster already", 1, "promote", "--yes")
	said(t, c, "not /elsewhere", 1, "promote", "--yes", "--standby-of=/elsewhere")
	stop := changer(t, old.Client())
	began := time.Now()
	out := said(t, c, "the cluster serves", 0, "promote", "--yes", "--wait")
	t.Logf("promoted in %s: %s", time.Since(began).Round(100*time.Millisecond), out)
	last, keys := stop()
	c.WaitHealthy(3)
	all, revision := c.ReadAll("/c/")
	for k := range keys {
		if all[k] == "" {
			t.Errorf("%s is lost", k)
		}
	}
	if len(all) > len(keys)+1 || last == 0 || revision < last+1e9 { // one put whose answer was lost
		t.Errorf("%d keys, %d were acknowledged and not deleted; revision %d, before %d", len(all), len(keys), revision, last)
	}
	t.Logf("the last acknowledged revision was %d, and the cluster begins at %d", last, revision)
	for _, n := range old.Nodes {
		if n.EtcdPID() != 0 {
			t.Errorf("etcd still runs on node %s of the old cluster", n.Name)
		}
	}

	said(t, c, "promote was asked for already", 1, "promote", "--yes")
	said(t, other, "--member-count=1", 1, "promote", "--yes", "--force")
	said(t, other, "another standby has taken the place", 1, "promote", "--yes", "--force", "--member-count=1")

	// Flags that still say that it is a standby do no harm.
	a := c.Node("a")
	a.Term()
	a.Start()
	c.WaitHealthy(3)
	if !strings.Contains(a.LogText(), "isn't obeyed: remove it") {
		t.Errorf("it doesn't say that the flag isn't obeyed:\n%s", a.LogTail(20))
	}
	if keys, _ := c.ReadAll("/before"); keys["/before"] != "1" {
		t.Errorf("keys are missing: %v", keys)
	}
}

// TestPromoteAfterALoss: without an answer of the other cluster nothing is done, unless the operator is sure.
func TestPromoteAfterALoss(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	args := []string{"--change-log-interval=1s", "--queue-poll-interval=1s"}
	old := harness.Start(t, harness.Options{Nodes: 1, Args: args})
	old.WaitHealthy(1)
	old.WaitBackups(1)
	c := standbyFor(t, old, 1, args, old.Put("/before", "1"))
	w := write(t, old)
	c.WaitFor("the copy has some of the writes", 30*time.Second, func() string {
		s, why := standbyOf(t, c.Nodes[0])
		if why == "" && s.Revision < 300 {
			why = fmt.Sprintf("%+v", s)
		}
		return why
	})
	killed := time.Now()
	old.Nodes[0].KillWhole()
	w.stop()
	acked := <-w.acked
	said(t, c, "--force", 1, "promote", "--yes", "--wait-timeout=3s")
	if l := c.Backups(); len(l) > 0 {
		t.Errorf("something was made of the copy: %v", l)
	}
	said(t, c, "the cluster serves", 0, "promote", "--yes", "--wait", "--wait-timeout=1s", "--force")
	c.WaitHealthy(1)
	keys, _ := c.ReadAll("/w/")
	n := 0
	for ; keys[fmt.Sprintf("/w/%06d", n)] != ""; n++ {
	}
	lag := time.Duration(0)
	if n < acked {
		lag = killed.Sub(w.times[n])
	}
	t.Logf("of %d acknowledged writes %d are lost, the oldest %s before the kill", acked, max(acked-n, 0), lag.Round(time.Millisecond))
	if n != len(keys) || n == 0 || lag > 4*time.Second {
		t.Errorf("%d keys, the first %d without a gap; %s are lost", len(keys), n, lag)
	}

	// Its machine comes back, and doesn't serve.
	old.Nodes[0].Start()
	if code := old.Nodes[0].WaitExit(30 * time.Second); code != 1 || old.Nodes[0].EtcdPID() != 0 {
		t.Errorf("exit code %d, etcd %d\n%s", code, old.Nodes[0].EtcdPID(), old.Nodes[0].LogTail(20))
	}
}
