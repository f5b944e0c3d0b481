package disaster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

const tasksDir = "../tasks/"

// taskPages are the pages below docs/tasks.
func taskPages(t testing.TB) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(docsDir, tasksDir, "*.md"))
	must(t, err)
	var list []string
	for _, n := range names {
		list = append(list, tasksDir+filepath.Base(n))
	}
	return list
}

// TestTasks follows the pages of docs/tasks on a cluster of one member that has lost a namespace.
func TestTasks(t *testing.T) {
	testutil.Long(t) // each command is seen by the leader after half a minute only
	t.Parallel()
	if n := len(taskPages(t)); n != 7 {
		t.Errorf("docs/tasks has %d pages; this test follows seven", n)
	}
	for name, follow := range map[string]func(*testing.T, *desk, *page){
		"look.md":          followAll,
		"backups.md":       followAll,
		"look-back.md":     followAll,
		"bring-back.md":    followBringBack,
		"restore.md":       followRestore,
		"from-cron.md":     followCron,
		"from-gardener.md": followGardener,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := harness.Start(t, harness.Options{Nodes: 1, BackupInterval: 20 * time.Second})
			d := newDesk(t, c)
			d.values["ETCD_MANAGER_BACKUP_STORE"] = c.StoreURL
			d.values["NEW"] = filepath.Join(d.dir, "new-store")
			fill(t, c, "shop", 2)
			c.Put("/registry/namespaces/shop", "a namespace")
			backupOf(t, c, read(c))
			_, err := c.Client().Txn(t.Context()).Then(clientv3.OpDelete("/registry/deployments/shop/", clientv3.WithPrefix()),
				clientv3.OpDelete("/registry/namespaces/shop")).Commit()
			must(t, err)
			stored(t, c)
			follow(t, d, readPage(t, tasksDir+name))
		})
	}
}

// stored waits until the store has every change.
func stored(t *testing.T, c *harness.Cluster) {
	t.Helper()
	c.WaitFor("the changes in the store", time.Minute, func() string {
		out, errOut, code := c.Ctl("history", "--from-revision=1")
		if code == 0 && strings.Contains(out, "delete") {
			return ""
		}
		return out + errOut
	})
}

func followAll(_ *testing.T, d *desk, p *page) { d.follow(p, p.blocks) }

// followBringBack sees that the namespace is there after the page's third step, and gone after the fourth.
func followBringBack(t *testing.T, d *desk, p *page) {
	undo := index(t, p.blocks, "undo-put-back")
	d.follow(p, p.blocks[:undo])
	if keys := read(d.c).keys; keys["/registry/namespaces/shop"] != "a namespace" || keys["/registry/deployments/shop/000"] == "" {
		t.Errorf("the namespace isn't back: %d keys", len(keys))
	}
	d.follow(p, p.blocks[undo:])
	if _, ok := read(d.c).keys["/registry/namespaces/shop"]; ok {
		t.Error("the namespace is there although it was taken back")
	}
}

// followRestore sees that what was written after the backup is gone after the restore, and back after its undo.
func followRestore(t *testing.T, d *desk, p *page) {
	const late = "/registry/late"
	undo := index(t, p.blocks, "undo-restore")
	restore := index(t, p.blocks, "--now --wait")
	d.follow(p, p.blocks[:restore])
	d.c.Put(late, "after the backup")
	d.follow(p, p.blocks[restore:undo])
	after := read(d.c)
	d.follow(p, p.blocks[undo:])
	if back := read(d.c); back.keys[late] == "" && after.keys[late] == "" {
		t.Errorf("%s is lost for good", late)
	} else if back.revision <= after.revision {
		t.Errorf("the revision went back from %d to %d", after.revision, back.revision)
	}
}

// followCron imports what a cron job has saved.
func followCron(t *testing.T, d *desk, p *page) {
	out, errOut, code := d.c.Ctl("download-backup", "latest", filepath.Join(d.dir, "snapshot.db"))
	if code != 0 {
		t.Fatal(out, errOut)
	}
	before := len(d.c.Backups())
	d.follow(p, p.blocks)
	if after := len(d.c.Backups()); after <= before {
		t.Errorf("there were %d backups, and are %d", before, after)
	}
}

// followGardener takes this cluster for the old one.
func followGardener(t *testing.T, d *desk, p *page) {
	d.follow(p, p.blocks)
	if info, err := os.Stat(filepath.Join(d.dir, "last.db")); err != nil || info.Size() == 0 {
		t.Errorf("the last snapshot: %v", err)
	}
}
