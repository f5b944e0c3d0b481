package disaster

import (
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// newMaster adds a machine under a new name and address, on which nothing runs yet.
func (d *desk) newMaster(name string) *harness.Node {
	d.t.Helper()
	n := d.c.AddNode(name)
	d.unit(n)
	return n
}

// TestOneMasterLost first looks at a cluster that is well, as the index says.
func TestOneMasterLost(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	need(t, "curl")
	c := harness.Start(t, harness.Options{Args: []string{"--member-unhealthy-deadline=3s", "--form-grace=2s"}})
	d := newDesk(t, c)
	index := readPage(t, "README.md")
	d.follow(index, index.blocks)

	load := c.StartLoad(harness.LoadOptions{Any: true})
	before := token(t, c)
	d.mark()
	c.Node("c").KillWhole()
	p := readPage(t, "one-master-lost.md")
	d.follow(p, p.in("You see"))
	d.groups["new-masters"] = []*harness.Node{d.newMaster("d")}
	d.follow(p, p.in("Do this"))
	agree(t, c, 3)
	r := load.Stop()
	t.Log(r)
	load.Verify()
	if after := token(t, c); after != before {
		t.Errorf("the token was %s and is %s: something was restored", before, after)
	}
}

// TestAllMastersLost takes all disks.
func TestAllMastersLost(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	allMastersLost(t, true)
}

// allMastersLost sees what a cluster without data says on new masters, which somebody else has started already.
func allMastersLost(t *testing.T, sameNames bool) {
	c := harness.Start(t, harness.Options{BackupInterval: 20 * time.Second, Args: []string{"--form-grace=2s"}})
	d := newDesk(t, c)
	want := fill(t, c, "shop", 20)
	backup := backupOf(t, c, want)
	late := c.Put("/registry/late", "after the backup")
	d.mark()
	for _, n := range c.Nodes {
		n.KillWhole()
	}
	if list := c.Backups(); list[len(list)-1].Name != backup {
		t.Fatalf("a backup was taken between the last write and the disaster: %s", list[len(list)-1].Name)
	}
	for _, n := range c.Nodes {
		n.Wipe(sameNames)
	}
	d.groups["new-masters"] = c.Nodes
	c.StartAll()
	p := readPage(t, "all-masters-lost.md")
	if sameNames { // with others this is said after three minutes, which the restore waits for anyway
		d.follow(p, p.in("You see"))
	}
	d.follow(p, p.in("Do this"))
	agree(t, c, 3)
	same(t, c, want, late)
	leased(t, c, "shop")
	done(t, c)
}

// TestQuorumLost leaves one master, which has writes that no backup has, and gets new ones for the others.
func TestQuorumLost(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	p := readPage(t, "quorum-lost.md")
	d, want := quorumLost(t, p)
	d.groups["new-masters"] = d.c.Nodes[:2]
	d.follow(p, p.in("With new masters"))
	recovered(t, d.c, want, 3)
}

// quorumLost makes a cluster lose two of three masters, and sees what the page says.
func quorumLost(t *testing.T, p *page) (*desk, content) {
	t.Helper()
	c := harness.Start(t, harness.Options{Args: []string{"--form-grace=2s"}})
	d := newDesk(t, c)
	backup := backupOf(t, c, content{revision: 1})
	want := fill(t, c, "shop", 20)
	if m, err := c.Catalog.Manifest(t.Context(), backup); err != nil || m.Revision >= want.revision || len(c.Backups()) != 1 {
		t.Fatalf("a backup has the writes already: %+v, %v", m, err)
	}
	d.mark()
	for _, n := range c.Nodes[:2] {
		n.KillWhole()
		n.Wipe(true)
	}
	d.follow(p, p.in("You see"))
	return d, want
}

// recovered checks what a recovery promises: everything that the survivor had, which here is everything.
func recovered(t *testing.T, c *harness.Cluster, want content, members int) {
	t.Helper()
	agree(t, c, members)
	same(t, c, want, want.revision)
	leased(t, c, "shop")
	done(t, c)
}
