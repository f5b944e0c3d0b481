package archive

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/status"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// writer writes one key after another, and knows what it was told of.
type writer struct {
	acked chan int
	stop  context.CancelFunc
	// times are when the writes were acknowledged; read them after the end.
	times []time.Time
	last  int64
}

func write(t *testing.T, c *harness.Cluster) *writer {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &writer{acked: make(chan int, 1), stop: cancel}
	client := c.Client()
	go func() {
		for n := 0; ; n++ {
			r, err := client.Put(ctx, fmt.Sprintf("/w/%06d", n), "x")
			if err != nil {
				w.acked <- n
				return
			}
			w.times, w.last = append(w.times, time.Now()), r.Header.Revision
		}
	}()
	return w
}

// standbyOf is how far a node's copy is.
func standbyOf(t *testing.T, n *harness.Node) (status.Standby, string) {
	t.Helper()
	v, err := n.Status(t.Context())
	switch {
	case err != nil:
		return status.Standby{}, err.Error()
	case v.Standby == nil:
		return status.Standby{}, "it is no standby"
	}
	return *v.Standby, ""
}

// TestStandby follows docs/standby.md: three nodes follow a cluster over a kill and a restore of it, and take over when it dies under load.
func TestStandby(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	const interval = time.Second
	args := []string{"--change-log-interval=" + interval.String(), "--queue-poll-interval=1s"}
	old := harness.Start(t, harness.Options{Nodes: 1, Args: args})
	old.WaitBackups(1)
	c := harness.New(t, harness.Options{NoSpec: true, Args: args})
	must(t, os.MkdirAll(c.StoreURL, 0o700))
	for _, n := range c.Nodes {
		n.Args = []string{"--standby-of=" + old.StoreURL}
	}
	c.StartAll()
	reach := func(revision int64) {
		t.Helper()
		for _, n := range c.Nodes {
			c.WaitFor(fmt.Sprintf("revision %d on node %s", revision, n.Name), 60*time.Second, func() string {
				s, why := standbyOf(t, n)
				if why == "" && s.Revision < revision {
					why = fmt.Sprintf("%+v", s)
				}
				return why
			})
		}
	}
	reach(old.Put("/first", "1"))
	c.WaitFor("status says that all is well", 60*time.Second, func() string {
		out, errOut, code := c.Ctl("status")
		if code != 0 || !strings.Contains(out, "3 nodes follow "+old.StoreURL) {
			return out + errOut
		}
		return ""
	})
	if out, errOut, code := old.Ctl("status"); code != 0 {
		t.Errorf("the other cluster: exit code %d\n%s%s", code, out, errOut)
	}
	before, _ := standbyOf(t, c.Node("a"))

	// Killed, and started again.
	c.Node("a").Kill()
	last := old.Put("/second", "2")
	c.Node("a").Start()
	reach(last)
	if s, _ := standbyOf(t, c.Node("a")); s.Base != before.Base || strings.Contains(c.Node("a").LogText(), "is fetched") {
		t.Errorf("after a kill it began anew: %+v, before %+v", s, before)
	}

	// The other cluster is restored.
	if out, errOut, code := old.Ctl("restore-backup", "--latest", "--now", "--wait"); code != 0 {
		t.Fatalf("exit code %d\n%s%s", code, out, errOut)
	}
	old.WaitHealthy(1)
	reach(old.Put("/third", "3"))
	if s, _ := standbyOf(t, c.Node("b")); s.Incarnation == before.Incarnation {
		t.Errorf("it is still of incarnation %s", s.Incarnation)
	}

	// It dies under load.
	w := write(t, old)
	reach(old.Put("/fourth", "4") + 200)
	killed := time.Now()
	old.Nodes[0].KillWhole()
	w.stop()
	acked := <-w.acked
	takeOver(t, c, old)
	keys, _ := c.ReadAll("/w/")
	n := 0
	for ; keys[fmt.Sprintf("/w/%06d", n)] != ""; n++ {
	}
	lag := time.Duration(0)
	if n < acked {
		lag = killed.Sub(w.times[n])
	}
	t.Logf("of %d acknowledged writes %d are lost, the oldest %s before the kill", acked, max(acked-n, 0), lag.Round(time.Millisecond))
	if n != len(keys) || lag > 2*interval+2*time.Second {
		t.Errorf("%d keys, the first %d without a gap; %s are lost", len(keys), n, lag)
	}
	if all, _ := c.ReadAll("/"); all["/first"] != "1" || all["/second"] != "2" || all["/third"] != "3" || all["/fourth"] != "4" {
		t.Errorf("keys are missing: %v", all)
	}
	refused(t, c, old)
	superseded(t, c, old)
}

// takeOver does what the page says.
func takeOver(t *testing.T, c, old *harness.Cluster) {
	t.Helper()
	best := status.Standby{}
	c.WaitFor("nothing that is stored is missing", 30*time.Second, func() string {
		for _, n := range c.Nodes {
			s, why := standbyOf(t, n)
			if why != "" || s.BehindRevisions > 0 {
				return fmt.Sprintf("%s %+v", why, s)
			}
			if s.Revision > best.Revision {
				best = s
			}
		}
		return ""
	})
	c.TermAll()
	for _, args := range [][]string{
		{"configure-cluster", "--member-count=3"}, {"import-backup", "--skip-hash-check", best.File}, {"restore-backup", "latest"},
	} {
		if out, errOut, code := c.Ctl(args...); code != 0 {
			t.Fatalf("%v: exit code %d\n%s%s", args, code, out, errOut)
		}
	}
	for _, n := range c.Nodes {
		n.Args = nil
	}
	c.StartAll()
	c.WaitHealthy(3)
	if spec := c.Spec(); spec != (cluster.Spec{MemberCount: 3}) {
		t.Errorf("spec %+v", spec)
	}
	if l, err := filepath.Glob(filepath.Join(old.StoreURL, "control", "status", "*")); err != nil || len(l) > 0 {
		t.Errorf("a standby has written to the other cluster's store: %v %v", l, err)
	}
}

// refused: no node becomes a standby that belongs to a cluster, or whose store has one.
func refused(t *testing.T, c, old *harness.Cluster) {
	t.Helper()
	member := c.Node("a")
	if code := member.Term(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for n, want := range map[*harness.Node]string{member: "belongs to a cluster already", c.AddNode("d"): "this store has a cluster already"} {
		n.Args = []string{"--standby-of=" + old.StoreURL}
		n.Start()
		if code := n.WaitExit(30 * time.Second); code != 1 || !strings.Contains(n.LogText(), want) {
			t.Errorf("node %s: exit code %d, want 1 and %q in\n%s", n.Name, code, want, n.LogText())
		}
	}
}

// superseded: the old cluster's machine comes back, and serves only once the operator says so.
func superseded(t *testing.T, c, old *harness.Cluster) {
	t.Helper()
	run := func(want string, wantCode int, args ...string) {
		t.Helper()
		if out, errOut, code := old.Ctl(args...); wantCode >= 0 && code != wantCode || !strings.Contains(out+errOut, want) {
			t.Errorf("%v: exit code %d, want %d and %q\n%s%s", args, code, wantCode, want, out, errOut)
		}
	}
	run("superseded by "+c.StoreURL, 0, "supersede", "--by="+c.StoreURL, "--yes", "--force")
	run("is superseded already", 1, "supersede", "--by=another", "--yes", "--force")
	run("This cluster was superseded by", -1, "status") // the code depends on when its leader last wrote
	n := old.Nodes[0]
	n.Start()
	if code := n.WaitExit(30 * time.Second); code != 1 || n.EtcdPID() != 0 || !strings.Contains(n.LogText(), "undo-supersede") {
		t.Errorf("exit code %d, etcd %d\n%s", code, n.EtcdPID(), n.LogText())
	}
	run("taken back", 0, "undo-supersede", "--yes")
	n.Start()
	old.WaitHealthy(1)
	run("may still run: its leader, node a", 1, "supersede", "--by=x", "--yes")
}
