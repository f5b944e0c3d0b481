package restore

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// views gives every node a way of its own to the store: a link, as a mount point would be.
func views(t *testing.T, c *harness.Cluster) {
	t.Helper()
	for _, n := range c.Nodes {
		must(t, os.Symlink(c.StoreURL, view(c, n)))
		n.Args = append(n.Args, "--backup-store="+view(c, n))
	}
}

func view(c *harness.Cluster, n *harness.Node) string { return filepath.Join(c.Dir, "view-"+n.Name) }

// unmount takes a node's way to the store away.
func unmount(t *testing.T, c *harness.Cluster, n *harness.Node) {
	t.Helper()
	tmp := view(c, n) + ".new"
	must(t, os.Symlink(filepath.Join(c.Dir, "not-mounted"), tmp))
	must(t, os.Rename(tmp, view(c, n)))
}

// TestRestoreThroughTheLeader restores while one follower can't reach the store.
func TestRestoreThroughTheLeader(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	c := harness.New(t, harness.Options{BackupInterval: 2 * time.Second, Args: []string{"--change-log-interval=500ms"}})
	views(t, c)
	c.StartAll()
	c.WaitHealthy(3)
	w := newRestoreWorld(t, c)
	w.spoil(t)
	// The node that can't reach the store is neither the leader nor, by its name, ever the one that backs up.
	far := c.Node("c")
	if c.WaitLeader() == far {
		far.Kill()
		c.WaitLeader()
		far.Start()
		c.WaitHealthy(3)
	}
	leader := c.WaitLeader()
	unmount(t, c, far)
	cmd, err := c.Catalog.QueueRestore(t.Context(), w.backup, c.Spec(), catalog.RestoreOptions{Now: true})
	must(t, err)
	op := c.WaitOperation(cmd.Name, 2*time.Minute)
	c.CheckEnded(op, catalog.StateDone)
	c.WaitHealthy(3)
	w.check(t)
	// The same to a point: the segments are listed and read through the leader, too.
	at := c.Put("/data/later", "kept")
	last := c.Put("/data/later", "too late")
	c.WaitFor("the changes to be kept", time.Minute, func() string {
		if v, err := c.WaitLeader().Status(t.Context()); err != nil || v.Changes == nil || v.Changes.Archived < last {
			return fmt.Sprintf("%+v, %v", v, err)
		}
		return ""
	})
	out, errOut, code := c.Ctl("restore-backup", fmt.Sprintf("--to-revision=%d", at), "--now", "--wait")
	if code != 0 {
		t.Fatalf("restore to a point: exit code %d\n%s%s", code, out, errOut)
	}
	c.WaitHealthy(3)
	if got, _ := c.ReadAll("/data/later"); got["/data/later"] != "kept" {
		t.Errorf("after the restore to revision %d: %v", at, got)
	}
	const told = "backups are read through the leader, node "
	if log := far.LogText(); strings.Count(log, told) != 1 || !strings.Contains(log, told+leader.Name) ||
		!strings.Contains(log, "is the file system mounted?") {
		t.Errorf("the log of node %s says %d times that it reads through the leader; want once, through node %s, and why",
			far.Name, strings.Count(log, told), leader.Name)
	}
	for _, n := range c.Nodes {
		if n != far && strings.Contains(n.LogText(), told) {
			t.Errorf("node %s reads through the leader too", n.Name)
		}
	}
}
