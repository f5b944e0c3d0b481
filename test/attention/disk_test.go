package attention

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// TestDiskFull fills the disk of one of three masters up to its last byte. The node is named with
// what is free, on every node; what is logged stays within bounds; and a database that reaches its
// quota meanwhile is made room in on the other two, so that clients can write again. With room on
// the disk all is well again by itself.
func TestDiskFull(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	if os.Geteuid() != 0 {
		t.Skip("to mount a file system takes root")
	}
	c := harness.New(t, harness.Options{Args: quick()})
	s := &scene{t: t, c: c}
	full := c.Node("c")
	must(t, syscall.Mount("tmpfs", full.DataDir, "tmpfs", 0, "size=320m,mode=700"))
	t.Cleanup(func() {
		full.KillWhole()
		_ = syscall.Unmount(full.DataDir, syscall.MNT_DETACH)
	})
	must(t, os.WriteFile(filepath.Join(full.DataDir, "myid"), []byte(full.Name), 0o600))
	c.StartAll()
	c.WaitHealthy(3)
	c.WaitBackups(1)
	s.ctl("configure-cluster", "--set=quota-backend-bytes=32MiB")
	for _, n := range c.Nodes {
		c.WaitFor("the quota on node "+n.Name, 2*time.Minute, func() string {
			v, err := n.Status(t.Context())
			if err != nil || !v.Etcd.Healthy || v.Etcd.DBQuota != 32<<20 {
				return fmt.Sprintf("%+v, %v", v, err)
			}
			return ""
		})
	}
	c.WaitHealthy(3)

	ballast := filepath.Join(full.DataDir, "ballast")
	fill(t, ballast)
	for _, n := range c.Nodes {
		a := raised(t, c, n, cluster.AttentionDisk)
		if a.Node != "c" || !strings.Contains(a.Text, "node c") || !strings.Contains(a.Text, "MiB") ||
			!strings.Contains(a.NoCommand, "free some disk space on that node") {
			t.Errorf("node %s: %+v", n.Name, a)
		}
	}

	began, from := time.Now(), lines(t, c)
	client, refused := c.Client(c.Nodes[0].ClientURL(), c.Nodes[1].ClientURL()), 0
	for i := 0; refused == 0 && i < 1000; i++ {
		if i%8 == 0 {
			fill(t, ballast) // what etcd's end has freed
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		_, err := client.Put(ctx, fmt.Sprintf("/big/%d", i%4), noise(256<<10))
		cancel()
		if err != nil && strings.Contains(err.Error(), "database space exceeded") {
			refused = i
		}
	}
	if refused == 0 {
		t.Fatal("etcd never refused a write")
	}
	c.WaitFor("writes again, with the disk of node c still full", 2*time.Minute, func() string {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := client.Put(ctx, "/after", "room"); err != nil {
			return err.Error()
		}
		return ""
	})
	t.Logf("etcd refused writes after %d of 256 KiB; it takes them again %s after the disk was full", refused,
		time.Since(began).Round(time.Second))
	raised(t, c, c.WaitLeader(), cluster.AttentionDisk)
	bounded(t, c, began, from)

	must(t, os.Remove(ballast))
	c.WaitHealthy(3)
	// As API servers do every five minutes: where etcd ended in the middle of a compaction, the history of before may still be there.
	c.WaitFor("a write and a compaction", 2*time.Minute, func() string {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		put, err := client.Put(ctx, "/after", "more")
		if err == nil {
			_, err = client.Compact(ctx, put.Header.Revision)
		}
		if err != nil {
			return err.Error()
		}
		return ""
	})
	ended(t, c)
}

// fill makes a file as large as what is left of its file system.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(t, err)
	defer f.Close()
	for chunk := make([]byte, 1<<20); len(chunk) > 0; {
		if _, err := f.Write(chunk); err != nil {
			chunk = chunk[:len(chunk)/2]
		}
	}
}

// lines counts what the managers have logged, without what their etcds have.
func lines(t *testing.T, c *harness.Cluster) map[string]int {
	t.Helper()
	n := map[string]int{}
	for _, node := range c.Nodes {
		data, err := os.ReadFile(node.Log)
		must(t, err)
		for line := range strings.Lines(string(data)) {
			if !strings.HasPrefix(line, `{"level":"`) {
				n[node.Name]++
			}
		}
	}
	return n
}

// bounded fails the test if a manager has logged more than is of use. The leader says each step of making room; what goes on being wrong
// is said at most ten times a minute.
func bounded(t *testing.T, c *harness.Cluster, began time.Time, from map[string]int) {
	t.Helper()
	const steps = 60
	minutes := time.Since(began).Minutes()
	for name, n := range lines(t, c) {
		said := n - from[name]
		t.Logf("node %s has logged %d lines in %.1f minutes", name, said, minutes)
		if float64(said) > steps+2*10*minutes {
			t.Errorf("node %s has logged %d lines in %.1f minutes\n%s", name, said, minutes, c.Node(name).LogTail(40))
		}
	}
}
