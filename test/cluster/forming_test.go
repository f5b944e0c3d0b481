package cluster

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
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
