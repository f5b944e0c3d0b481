package life

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// database is the path of a node's database.
func database(t *testing.T, n *harness.Node) string {
	t.Helper()
	s, err := n.State()
	must(t, err)
	return filepath.Join(n.DataDir, "data", s.GetCluster().GetClusterToken(), "member", "snap", "db")
}

// TestFaults breaks one thing after the other, under load; the cluster is whole again by itself.
func TestFaults(t *testing.T) {
	testutil.Long(t)
	c := harness.Start(t, harness.Options{Args: args()})
	for _, tc := range []struct {
		what  string
		spoil func(n *harness.Node)
	}{
		{"fault: empty disk", func(n *harness.Node) { n.KillWhole(); n.Wipe(true); n.Start() }},
		{"fault: empty disk, new name", func(n *harness.Node) { n.KillWhole(); n.Wipe(false); n.Start() }},
		{"fault: database that etcd refuses", func(n *harness.Node) {
			db := database(t, n)
			n.KillWhole()
			f, err := os.OpenFile(db, os.O_WRONLY, 0)
			must(t, err)
			_, err = f.WriteAt(bytes.Repeat([]byte{0xde}, 8192), 0) // both of its meta pages
			must(t, err)
			must(t, f.Close())
			n.Start()
		}},
		{"fault: database gone", func(n *harness.Node) {
			db := database(t, n)
			n.KillWhole()
			must(t, os.Remove(db))
			n.Start()
		}},
		{"fault: log torn in the middle", func(n *harness.Node) {
			wal, err := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(database(t, n))), "wal", "*.wal"))
			must(t, err)
			n.KillWhole()
			f, err := os.OpenFile(wal[len(wal)-1], os.O_WRONLY, 0)
			must(t, err)
			_, err = f.WriteAt(bytes.Repeat([]byte{0x5a}, 512), 2048)
			must(t, err)
			must(t, f.Close())
			n.Start()
		}},
		{"fault: changed address", func(n *harness.Node) {
			n.KillWhole()
			n.Address = strings.TrimSuffix(n.Address, ".2") + ".22"
			n.Start()
		}},
	} {
		n := c.Nodes[1]
		measured(t, c, tc.what, func() {
			tc.spoil(n)
			c.WaitHealthy(3)
		})
	}
}

// TestTwoOfFive empties two disks of five at once; and one more, while the etcd of another member is slow.
func TestTwoOfFive(t *testing.T) {
	testutil.Long(t)
	c := harness.Start(t, harness.Options{Nodes: 5, Args: args()})
	measured(t, c, "fault: two disks of five at once", func() {
		for _, n := range c.Nodes[1:3] {
			n.KillWhole()
		}
		for _, n := range c.Nodes[1:3] {
			n.Wipe(true)
			n.Start()
		}
		c.WaitHealthy(5)
	})
	slow := c.Nodes[4]
	pid := slow.EtcdPID()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { // it gets every other 300 ms
		for ctx.Err() == nil {
			_ = syscall.Kill(pid, syscall.SIGSTOP)
			time.Sleep(300 * time.Millisecond)
			_ = syscall.Kill(pid, syscall.SIGCONT)
			time.Sleep(300 * time.Millisecond)
		}
	})
	measured(t, c, "fault: empty disk while another is slow", func() {
		n := c.Nodes[0]
		n.KillWhole()
		n.Wipe(true)
		n.Start()
		c.WaitFor("the member to be back", 2*time.Minute, func() string {
			v, err := n.Status(t.Context())
			if err != nil || !v.Etcd.Healthy || v.Etcd.Learner {
				return "it isn't"
			}
			return ""
		})
		cancel()
		wg.Wait()
		c.WaitHealthy(5)
	})
	if slow.EtcdPID() != pid {
		t.Errorf("the slow etcd was restarted")
	}
}

// TestCorruptMember flips bytes in the database of a member. etcd finds it at the next compaction;
// the member is replaced, and from the moment of the finding on nobody reads what is wrong.
func TestCorruptMember(t *testing.T) {
	testutil.Long(t)
	c := harness.Start(t, harness.Options{Args: args(), Env: []string{"ETCD_COMPACT_HASH_CHECK_TIME=1s"}})
	const key, right = "/precious", "this-is-the-right-value-0123456789"
	rev := c.Put(key, right)
	n := follower(t, c)
	db := database(t, n)
	c.WaitFor("the value in the database's file", 20*time.Second, func() string {
		data, err := os.ReadFile(db)
		if err != nil || !bytes.Contains(data, []byte(right)) {
			return "it isn't there"
		}
		return ""
	})
	n.KillWhole()
	flip(t, db, right)
	n.Start()
	c.WaitHealthy(3)
	client := c.Client(n.ClientURL())
	// Somebody reads from that member all the time.
	var mu sync.Mutex
	var wrong []time.Time
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, opts := range [][]clientv3.OpOption{nil, {clientv3.WithSerializable()}} {
		wg.Go(func() {
			for ctx.Err() == nil {
				begun := time.Now()
				rctx, cancel := context.WithTimeout(ctx, time.Second)
				r, err := client.Get(rctx, key, opts...)
				cancel()
				if err == nil && len(r.Kvs) == 1 && string(r.Kvs[0].Value) != right {
					mu.Lock()
					wrong = append(wrong, begun)
					mu.Unlock()
				}
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	c.WaitFor("the wrong value to be read, so that the test means something", 20*time.Second, func() string {
		mu.Lock()
		defer mu.Unlock()
		if len(wrong) == 0 {
			return "it isn't"
		}
		return ""
	})
	other := c.Client(c.Nodes[0].ClientURL(), c.Nodes[1].ClientURL(), c.Nodes[2].ClientURL())
	for range 20 {
		c.Put("/more", "x")
	}
	_, err := other.Compact(t.Context(), rev+10)
	must(t, err)
	var raised, found time.Time
	c.WaitFor("the manager to find it", time.Minute, func() string {
		actx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if r, err := other.AlarmList(actx); err == nil && len(r.Alarms) > 0 && raised.IsZero() {
			raised = time.Now()
		}
		if n.EtcdPID() == 0 || strings.Contains(logs(t, c), "-> stop-member") && strings.Contains(n.LogText(), "its data are corrupt") {
			found = time.Now()
			return ""
		}
		return "it goes on"
	})
	c.WaitFor("the member to be removed", time.Minute, func() string {
		if !strings.Contains(logs(t, c), "took back etcd's alarm CORRUPT") {
			return "the alarm stands"
		}
		return ""
	})
	c.WaitHealthy(3)
	back := time.Now()
	c.WaitFor("the right value from the member that came back", 20*time.Second, func() string {
		rctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r, err := client.Get(rctx, key, clientv3.WithSerializable())
		if err != nil || len(r.Kvs) != 1 || string(r.Kvs[0].Value) != right {
			return fmt.Sprint(r, err)
		}
		return ""
	})
	stop()
	wg.Wait()
	after := 0
	for _, at := range wrong {
		if at.After(found) {
			after++
		}
	}
	t.Logf("%d wrong reads before it was found, %d after; %s from etcd's alarm to the end of that etcd, whole again %s after that",
		len(wrong)-after, after,
		found.Sub(raised).Round(time.Millisecond), back.Sub(found).Round(time.Millisecond))
	if after > 0 {
		t.Errorf("%d wrong reads were served after the corruption was found", after)
	}
}

// follower is a node whose etcd doesn't lead.
func follower(t *testing.T, c *harness.Cluster) *harness.Node {
	t.Helper()
	for _, n := range c.Nodes {
		if v, err := n.Status(t.Context()); err == nil && v.Etcd.MemberID != v.Etcd.LeaderID && !v.Leading {
			return n
		}
	}
	t.Fatal("there is no follower")
	return nil
}

// flip changes a value in a file wherever it stands.
func flip(t *testing.T, path, value string) {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	bad := bytes.ReplaceAll(data, []byte(value), []byte(strings.Replace(value, "right", "wrong", 1)))
	if bytes.Equal(data, bad) {
		t.Fatalf("%s doesn't hold the value", path)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	defer f.Close()
	_, err = f.WriteAt(bad, 0)
	must(t, err)
}

// logs is everything that the managers have said.
func logs(t *testing.T, c *harness.Cluster) string {
	t.Helper()
	var b strings.Builder
	for _, n := range c.Nodes {
		b.WriteString(n.LogText())
	}
	return b.String()
}

// TestQuorumLost says precisely which command a person has to give.
func TestQuorumLost(t *testing.T) {
	testutil.Long(t)
	c := harness.Start(t, harness.Options{Spec: &cluster.Spec{MemberCount: 3}, Args: args()})
	c.WaitBackups(1)
	for _, n := range c.Nodes[1:] {
		n.KillWhole()
		n.Wipe(true)
		n.Start()
	}
	c.WaitFor("the way out in the status", time.Minute, func() string {
		v, err := c.WaitLeader().Status(t.Context())
		if err != nil || !v.Alarm || !strings.Contains(v.Doing, "recover --from-survivor") || !strings.Contains(v.Doing, "restore-backup") {
			return v.Doing
		}
		t.Log(v.Doing)
		return ""
	})
	c.WaitLog(10*time.Second, "recover --from-survivor")
}
