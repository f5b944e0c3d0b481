package disaster

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/test/harness"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// TestNewClusterElsewhere makes a copy of a cluster that lives, which mustn't notice.
func TestNewClusterElsewhere(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	old := harness.Start(t, harness.Options{Nodes: 1, BackupInterval: 2 * time.Second})
	want := fill(t, old, "shop", 20)
	backup := backupOf(t, old, want)
	load := old.StartLoad(harness.LoadOptions{})
	oldToken := token(t, old)

	c := harness.New(t, harness.Options{NoSpec: true})
	d := newDesk(t, c)
	d.groups["new-masters"] = c.Nodes
	d.values["OLD_STORE"], d.values["BACKUP"] = old.StoreURL, backup
	p := readPage(t, "new-cluster-elsewhere.md")
	d.follow(p, p.in("Do this"))
	agree(t, c, 3)
	same(t, c, want, want.revision)
	leased(t, c, "shop")
	done(t, c)

	r := load.Stop()
	t.Log(r)
	if len(r.Failures) > 0 {
		t.Errorf("clients of the old cluster saw %d failed requests", len(r.Failures))
	}
	load.Verify()
	if again := token(t, old); again != oldToken || token(t, c) == oldToken {
		t.Errorf("the old cluster's token was %s and is %s, the copy's is %s", oldToken, again, token(t, c))
	}
	if ops, _, err := old.Catalog.Operations(t.Context()); err != nil || len(ops) > 0 {
		t.Errorf("the old store has operations: %v, %v", ops, err)
	}
}

// TestOtherSize makes one member out of three, and three out of one again.
func TestOtherSize(t *testing.T) {
	testutil.Long(t) // each command is seen by the leader after half a minute only
	t.Parallel()
	c := harness.Start(t, harness.Options{BackupInterval: 2 * time.Second})
	d := newDesk(t, c)
	want := fill(t, c, "shop", 20)
	d.values["BACKUP"] = backupOf(t, c, want)
	seen := c.Put("/registry/late", "after the backup")
	p := readPage(t, "other-size-or-version.md")
	blocks := p.in("Another size")
	back := index(t, blocks, "configure-cluster")
	d.follow(p, blocks[:back])
	c.WaitHealthy(1)
	got := same(t, c, want, seen)
	done(t, c)
	d.follow(p, blocks[back:])
	agree(t, c, 3)
	same(t, c, want, got.revision-1)
	leased(t, c, "shop")
}

const etcd35 = "3.5.35"

// TestOtherVersion restores what etcd 3.5 has written into 3.6, and back down. Every master gets an /opt of its own.
func TestOtherVersion(t *testing.T) {
	testutil.Long(t) // it needs another etcd, which has to be built
	binary := servers.Binary(t, "etcd-3.5")
	t.Parallel()
	enter := namespace(t)
	c := harness.New(t, harness.Options{BackupInterval: 2 * time.Second, Spec: &cluster.Spec{MemberCount: 3, EtcdVersion: etcd35}})
	opt := filepath.Join(c.Dir, "opt")
	must(t, os.MkdirAll(filepath.Join(opt, "etcd-v"+etcd35), 0o755))
	must(t, os.Link(binary, filepath.Join(opt, "etcd-v"+etcd35, "etcd")))
	own := fmt.Sprintf("mount --bind %s /opt && exec \"$@\"", opt)
	wrapper := filepath.Join(c.Dir, "manager")
	must(t, os.WriteFile(wrapper, fmt.Appendf(nil, "#!/bin/sh\nexec %s sh -c '%s' - %s \"$@\"\n", enter, own, c.Programs.Manager), 0o755))
	real := c.Programs.Manager
	c.Programs.Manager = wrapper
	d := newDesk(t, c)
	must(t, os.Remove(filepath.Join(d.dir, "bin", "etcd-manager")))
	must(t, os.Symlink(real, filepath.Join(d.dir, "bin", "etcd-manager")))
	for _, n := range c.Nodes {
		d.wrap[n.Name] = append(strings.Fields(enter), "sh", "-c", own, "-")
	}
	c.StartAll()
	c.WaitHealthy(3)
	runs(t, c, etcd35)
	want := fill(t, c, "shop", 20)
	p := readPage(t, "other-size-or-version.md")
	d.values["BACKUP"] = backupOf(t, c, want)
	seen := c.Put("/registry/late", "after the backup")

	// Up first: the page's commands, with the other version in them.
	up := p.in("Another version")
	for i := range up {
		up[i].text = strings.ReplaceAll(up[i].text, etcd35, etcd.CompiledVersion)
	}
	d.follow(p, up[index(t, up, "restore-backup"):])
	agree(t, c, 3)
	runs(t, c, etcd.CompiledVersion)
	seen = same(t, c, want, seen).revision
	done(t, c)

	want = fill(t, c, "newer", 20)
	d.values["BACKUP"] = backupOf(t, c, want)
	seen = max(seen, c.Put("/registry/late", "after the backup"))
	d.follow(p, p.in("Another version"))
	agree(t, c, 3)
	runs(t, c, etcd35)
	same(t, c, want, seen)
	leased(t, c, "newer")
	done(t, c)
}

// namespace is the command that gives a process mounts of its own.
func namespace(t *testing.T) string {
	t.Helper()
	for _, enter := range []string{"unshare -m", "unshare -U -r -m"} {
		if exec.Command("sh", "-c", enter+" mount --bind /tmp /opt").Run() == nil {
			return enter
		}
	}
	skipped.Store(true)
	t.Skip("masters with an /opt of their own need mount namespaces, which aren't permitted here")
	return ""
}

// runs fails unless every member runs that version of etcd.
func runs(t *testing.T, c *harness.Cluster, version string) {
	t.Helper()
	for _, n := range c.Nodes {
		v, err := n.Status(t.Context())
		must(t, err)
		if v.Etcd.Version != version {
			t.Errorf("%s runs etcd %s, want %s", n.Name, v.Etcd.Version, version)
		}
	}
}
