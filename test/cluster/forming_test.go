package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// TestKillWhileForming kills managers, etcds and whole nodes at random moments while a cluster forms, and starts them again as a kubelet
// would. In the end there is always exactly one cluster, and it has every write that anybody's etcd has ever acknowledged.
func TestKillWhileForming(t *testing.T) {
	testutil.Long(t)
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("seed %d (again: -run TestKillWhileForming -seed=%d -rounds=%d)", s, s, *rounds)
	for i := range *rounds {
		ok := t.Run(fmt.Sprintf("round=%d", i), func(t *testing.T) {
			killRound(t, rand.New(rand.NewPCG(s, uint64(i))))
		})
		if !ok {
			t.Fatalf("round %d of seed %d failed", i, s)
		}
	}
}

func killRound(t *testing.T, r *rand.Rand) {
	c := harness.New(t, harness.Options{})
	load := c.StartLoad(harness.LoadOptions{Timeout: time.Second})
	start := time.Now()
	for _, n := range c.Nodes {
		n.Start()
		time.Sleep(time.Duration(r.Int64N(int64(200 * time.Millisecond))))
	}
	var story []string
	for range 2 + r.IntN(3) {
		time.Sleep(time.Duration(r.Int64N(int64(1500 * time.Millisecond)))) // the moment is what is random here
		n, what := c.Nodes[r.IntN(3)], r.IntN(3)
		pause := time.Duration(r.Int64N(int64(500 * time.Millisecond)))
		word := ""
		switch what {
		case 0:
			if l := c.Leader(); l != nil {
				n = l
			}
			n.Kill()
			word = "manager"
		case 1:
			word = "etcd"
			if n.KillEtcd() == 0 {
				word = "no etcd"
			}
		case 2:
			n.KillWhole()
			word = "whole node"
		}
		story = append(story, fmt.Sprintf("%s %s after %s", word, n.Name, time.Since(start).Round(time.Millisecond)))
		if what != 1 {
			time.Sleep(pause)
			n.Start()
		}
	}
	t.Logf("killed: %s", strings.Join(story, "; "))
	c.WaitHealthy(3)
	acked := load.Acked()
	c.WaitFor("writes in the end", 20*time.Second, func() string {
		if load.Acked() < acked+10 {
			return "too few"
		}
		return ""
	})
	c.OneToken()
	rep := load.Stop()
	t.Logf("healthy after %s; %d writes acknowledged", time.Since(start).Round(10*time.Millisecond), rep.Acked)
	load.Verify()
}

// TestFounderLosesItsDisk: while a cluster is formed founders have begun, one of them loses its disk, and everything restarts. No etcd
// answers for a while that could tell it that its id is in use. It must not come back under that id: it has acknowledged what it
// doesn't know any more.
func TestFounderLosesItsDisk(t *testing.T) {
	testutil.Long(t)
	c := harness.New(t, harness.Options{})
	lost, keeps, third := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	c.StartAll()
	for _, n := range []*harness.Node{lost, keeps} {
		c.WaitFor("a log on "+n.Name, time.Minute, func() string { return begun(t, n) })
	}
	third.KillWhole() // so that the forming isn't over yet
	var id uint64
	c.WaitFor("etcd leads", 10*time.Second, func() string {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		members, err := c.Client(lost.QuarantineURL()).MemberList(ctx)
		if err != nil {
			return err.Error()
		}
		for _, m := range members.Members {
			if m.Name == lost.Name && len(m.ClientURLs) > 0 { // it has acknowledged entries of the log
				id = m.ID
				return ""
			}
		}
		return fmt.Sprintf("node %s isn't among %v", lost.Name, members.Members)
	})
	for _, n := range c.Nodes {
		if n != third {
			n.KillWhole()
		}
	}
	if m, _, err := c.Catalog.Marker(t.Context()); err != nil || m.Phase != catalog.PhaseForming {
		t.Fatalf("the marker says %q (%v), too early for this test", m.Phase, err)
	}
	lost.Wipe(true)
	c.StartAll()
	var stopped []int
	for _, n := range []*harness.Node{keeps, third} {
		if begun(t, n) != "" {
			continue
		}
		c.WaitFor("etcd of "+n.Name, 10*time.Second, func() string {
			if n.EtcdPID() == 0 {
				return "it doesn't run"
			}
			return ""
		})
		pid := n.EtcdPID()
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		stopped = append(stopped, pid)
	}
	c.WaitFor("a leader that sees the empty disk", 30*time.Second, func() string {
		if begun(t, lost) == "" {
			t.Fatalf("node %s lost its disk, and its etcd is started as the founder that it was", lost.Name)
		}
		for _, n := range c.Nodes {
			if strings.Contains(n.LogText(), "no data on "+lost.Name) {
				return ""
			}
		}
		return "nothing in the logs"
	})
	for _, pid := range stopped {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	c.WaitHealthy(3)
	c.OneToken()
	members, err := c.Client().MemberList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range members.Members {
		if m.ID == id {
			t.Errorf("node %s lost its disk and is member %x again", m.Name, m.ID)
		}
	}
}

// begun says that a node's etcd hasn't begun a log yet, or nothing.
func begun(t *testing.T, n *harness.Node) string {
	logs, err := filepath.Glob(filepath.Join(n.DataDir, "data", "*", "member", "wal", "*.wal"))
	if err != nil {
		t.Fatal(err)
	}
	if len(logs) == 0 {
		return "there is none"
	}
	return ""
}
