package disaster

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// TestWrongBackupRestored restores the older of two backups by mistake.
func TestWrongBackupRestored(t *testing.T) {
	testutil.Long(t) // each command is seen by the leader after half a minute only
	t.Parallel()
	c := harness.Start(t, harness.Options{BackupInterval: 2 * time.Second})
	d := newDesk(t, c)
	wrong := backupOf(t, c, fill(t, c, "first", 5))
	second := fill(t, c, "second", 5)
	right := backupOf(t, c, second)
	c.Put("/registry/third", "as it is now")
	now := read(c)
	out, errOut, code := c.Ctl("restore-backup", wrong, "--now", "--wait", "--timeout=50s")
	if code != 0 {
		t.Fatalf("restore the wrong backup: exit code %d\n%s%s", code, out, errOut)
	}
	c.WaitHealthy(3)
	seen := c.Put("/registry/meanwhile", "written on the wrong data")

	p := readPage(t, "wrong-backup-restored.md")
	d.follow(p, p.in("You see"))
	d.values["BACKUP"] = right
	blocks := p.in("Do this")
	undone := index(t, blocks, "inspect")
	d.follow(p, blocks[:undone])
	agree(t, c, 3)
	undo := same(t, c, now, seen)
	// What was written on the wrong data is kept too.
	op := done(t, c)
	safety, revision := op.Saved()
	if revision == 0 && safety != "" {
		m, err := c.Catalog.Manifest(t.Context(), safety)
		if err != nil {
			t.Fatal(err)
		}
		revision = m.Revision
	}
	if revision < seen {
		t.Errorf("the undo has kept the state before it up to revision %d (backup %q); the last write was %d", revision, safety, seen)
	}
	d.follow(p, blocks[undone:])
	agree(t, c, 3)
	same(t, c, second, undo.revision)
	leased(t, c, "second")
	done(t, c)
}

// TestAccidentalDeletion brings back what is missing, while clients write, and then everything.
func TestAccidentalDeletion(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	need(t, "base64", "comm", "sed", "sort")
	c := harness.Start(t, harness.Options{BackupInterval: 2 * time.Second})
	d := newDesk(t, c)
	fill(t, c, "other", 10)
	then := fill(t, c, "shop", 10)
	backup := backupOf(t, c, then)
	client := c.Client()
	_, err := client.Delete(t.Context(), "/registry/deployments/shop/", clientv3.WithPrefix())
	must(t, err)
	_, err = client.Delete(t.Context(), "/registry/pods/shop/", clientv3.WithPrefix())
	must(t, err)
	c.Put("/registry/deployments/other/000", "changed since")
	c.Put("/registry/deployments/other/new", "made since")
	now := read(c)
	load := c.StartLoad(harness.LoadOptions{Prefix: "/load/"})

	p := readPage(t, "accidental-deletion.md")
	d.values["BACKUP"], d.values["LIVE"], d.values["PREFIX"] = backup, c.Nodes[0].ClientURL(), "/registry/"
	d.values["SCRATCH"] = strings.TrimSuffix(c.Nodes[0].Address, ".1") + ".200"
	const one = "/registry/deployments/shop/000"
	d.values["DELETED"] = one
	c.WaitFor("the deletion is archived", time.Minute, func() string {
		_, errOut, code := c.Ctl("before", one)
		if code != 0 {
			return errOut
		}
		return ""
	})
	d.follow(p, p.in("One object, or a namespace"))
	now.keys[one] = then.keys[one]
	if got := read(c).keys[one]; got != then.keys[one] {
		t.Errorf("%s is %q, it was %q", one, got, then.keys[one])
	}
	d.follow(p, p.in("Find the backup"))
	d.follow(p, p.in("Only what is missing"))
	r := load.Stop()
	t.Log(r)
	if len(r.Failures) > 0 {
		t.Errorf("clients saw %d failed requests", len(r.Failures))
	}
	load.Verify()
	want := content{maps.Clone(now.keys), now.revision}
	for k, v := range then.keys {
		if strings.HasPrefix(k, "/registry/deployments/shop/") {
			want.keys[k] = v
		}
	}
	got := read(c)
	maps.DeleteFunc(got.keys, func(k, _ string) bool { return strings.HasPrefix(k, "/load/") })
	if !maps.Equal(got.keys, want.keys) {
		t.Errorf("there are %d keys, want %d: what was, and the deployments that were deleted", len(got.keys), len(want.keys))
	}

	d.follow(p, p.in("Everything back to then"))
	agree(t, c, 3)
	same(t, c, then, got.revision)
	leased(t, c, "shop")
	done(t, c)
}

// TestBucketLost deletes the store under a cluster that runs.
func TestBucketLost(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	c := harness.Start(t, harness.Options{})
	d := newDesk(t, c)
	fill(t, c, "shop", 10)
	backupOf(t, c, content{revision: 1})
	load := c.StartLoad(harness.LoadOptions{Any: true})
	before := token(t, c)
	d.mark()
	must(t, os.RemoveAll(c.StoreURL))
	p := readPage(t, "bucket-lost.md")
	d.follow(p, p.in("You see"))
	d.values["STORE"] = filepath.Join(c.Dir, "new-store")
	d.follow(p, p.in("Do this"))
	agree(t, c, 3)
	t.Log(load.Stop())
	load.Verify()
	leased(t, c, "shop")
	if after := token(t, c); after != before {
		t.Errorf("the token was %s and is %s: something was formed or restored", before, after)
	}
}
