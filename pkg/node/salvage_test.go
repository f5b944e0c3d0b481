package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

const salvageName = "2026-02-01T00:00:00Z-000000"

// survivor is the last node of three, with a write that no backup has.
func survivor(t *testing.T) *node {
	t.Helper()
	a := newNode(t, "a")
	same := func(s *setup) { s.Store = a.s.Store }
	b, c := newNode(t, "b", same), newNode(t, "c", same)
	found("OLD", a, b, c)
	a.put("/data/a", "before")
	a.do(backupAction(backupName, "periodic"))
	a.refused(salvageAction("op1", "OLD", salvageName, "survivor"), "quorum", "take a backup instead")
	a.put("/data/a", "after")
	eventually(t, "the survivor has every write", func() bool {
		return a.status().Etcd.Revision == b.status().Etcd.Revision && a.status().Etcd.Revision == c.status().Etcd.Revision
	})
	for _, n := range []*node{b, c} {
		n.crash()
		n.killEtcd()
	}
	return a
}

// restored restores a backup on a node of its own and reads a key there.
func restored(t *testing.T, from *node, name, key string) string {
	t.Helper()
	n := newNode(t, "r", func(s *setup) { s.Store = from.s.Store })
	n.do(proveAction("op9", name))
	n.do(stageAction("op9", name, n.state("RESTORED")))
	n.do(switchAction("op9", n.state("RESTORED")))
	n.healthy()
	if f := n.do(verifyAction("op9")).GetFacts(); f.GetHash() == 0 || f.GetHash() != n.staged().Hash {
		t.Errorf("verify: %+v", f)
	}
	return n.get(key)
}

func TestSalvageTheSurvivor(t *testing.T) {
	testutil.Long(t)
	a := survivor(t)
	// Killed while etcd is stopped for the copy: the next manager starts it again by itself.
	go func() {
		req := salvageAction("op1", "OLD", salvageName, "survivor")
		req.Term, req.Leader = a.term, "leader"
		stream, err := a.api.Perform(context.WithoutCancel(t.Context()), req)
		for err == nil {
			_, err = stream.Recv()
		}
	}()
	before := a.etcdPID()
	eventually(t, "etcd is stopped for the copy", func() bool { return a.etcdPID() == 0 })
	a.crash()
	a.start()
	eventually(t, "etcd runs again", func() bool { return a.etcdPID() != 0 })
	if a.etcdPID() == before {
		t.Fatal("etcd wasn't stopped")
	}

	e := a.do(salvageAction("op1", "OLD", salvageName, "survivor"))
	m, err := a.cat.Manifest(t.Context(), salvageName)
	must(t, err)
	if f := e.GetFacts(); e.GetBackup() != salvageName || f.GetRevision() != m.Revision || m.Revision != 3 || m.Reason != "survivor" || m.ClusterName != "test" ||
		m.Node != "a" || m.ClusterID == 0 || m.MemberID == 0 || m.EtcdVersion != etcd.CompiledVersion || m.Keys != 1 {
		t.Errorf("salvaged %+v, manifest %+v", e, m)
	}
	eventually(t, "etcd runs again after the copy", func() bool { s := a.status(); return s.Etcd.Running && a.etcdPID() != 0 })
	pid := a.etcdPID()
	if again := a.do(salvageAction("op1", "OLD", salvageName, "survivor")); again.GetFacts().GetRevision() != e.GetFacts().GetRevision() || a.etcdPID() != pid {
		t.Errorf("salvaged again: %+v; etcd %d, before %d", again, a.etcdPID(), pid)
	}
	a.refused(salvageAction("op1", "OLD", backupName, "survivor"), backupName, "another one")
	a.refused(salvageAction("op2", "NOBODYS", "2026-02-02T00:00:00Z-000000", "survivor"), "NOBODYS")
	if exists(a.l.salvage("op1")) {
		t.Error("the copy is still there")
	}
	if got := restored(t, a, salvageName, "/data/a"); got != "after" {
		t.Errorf("the restored survivor has %q", got)
	}
}

func TestSalvageFromTheTrashCan(t *testing.T) {
	testutil.Long(t)
	n := newNode(t, "a")
	found("OLD", n)
	n.put("/data/a", "old")
	n.do(asideAction("OLD"))
	found("NEW", n)
	n.put("/data/a", "new")
	pid := n.etcdPID()
	e := n.do(salvageAction("op1", "OLD", salvageName, "undo"))
	if e.GetFacts().GetRevision() != 2 || e.GetBackup() != salvageName {
		t.Errorf("salvaged %+v", e)
	}
	// Half an upload of the same name is in the way of none.
	const other = "2026-02-01T00:00:00Z-000001"
	_, err := n.cat.PutBackupData(t.Context(), other, catalog.DataFile, strings.NewReader("half"))
	must(t, err)
	// Another tool's entry says nothing of its version.
	must(t, os.Remove(n.l.trashNote("OLD")))
	if e := n.do(salvageAction("op1", "OLD", other, "undo")); e.GetFacts().GetRevision() != 2 {
		t.Errorf("salvaged without a note %+v", e)
	}
	if n.etcdPID() != pid || n.get("/data/a") != "new" {
		t.Error("the running etcd was touched")
	}
	if !exists(filepath.Join(n.l.trash("OLD"), "member", "wal")) {
		t.Error("the trash can's data are gone")
	}
	for _, name := range []string{salvageName, other} {
		if got := restored(t, n, name, "/data/a"); got != "old" {
			t.Errorf("%s has %q", name, got)
		}
	}
}

// TestSalvageNeedsRoom: a copy for which the disk is too small isn't begun, and etcd isn't stopped for it.
func TestSalvageNeedsRoom(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", headroom+200<<20)); err != nil {
		t.Skipf("a small file system is needed, and can't be mounted here: %v", err)
	}
	n := newNode(t, "a", func(s *setup) { s.Dir = dir })
	t.Cleanup(func() { n.clear(); must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	found("OLD", n)
	pid := n.etcdPID()
	n.refused(salvageAction("op1", "OLD", salvageName, "survivor"), "MiB", dir)
	if n.etcdPID() != pid {
		t.Error("etcd was stopped")
	}
}

// TestHungStoreHoldsNothingUp: while the store takes nothing, etcd is kept alive and other actions are done.
func TestHungStoreHoldsNothingUp(t *testing.T) {
	store := blobtest.NewFaulty(blobtest.NewMemory())
	a, n := agentHere(t, store)
	n.do(asideAction("OLD"))
	found("NEW", n)
	release := make(chan struct{})
	store.Add(blobtest.Fault{Op: "put", Hang: release})
	put := func() bool {
		for _, c := range store.Calls() {
			if c.Op == "put" {
				return true
			}
		}
		return false
	}
	done := make(chan error, 1)
	go func() {
		_, _, err := n.try(salvageAction("op1", "OLD", salvageName, "undo"))
		done <- err
	}()
	eventually(t, "the upload hangs", put)
	pid := n.etcdPID()
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	eventually(t, "etcd runs again", func() bool { p := n.etcdPID(); return p != 0 && p != pid })
	n.healthy()
	n.do(startAction(n.state("NEW")))
	select {
	case err := <-done:
		t.Fatalf("the upload has ended: %v", err)
	default:
	}
	close(release)
	must(t, <-done)
	// A restore that is given up doesn't wait for the store either.
	store.Heal()
	never := make(chan struct{})
	defer close(never)
	store.Add(blobtest.Fault{Op: "get", Match: func(key string) bool { return strings.HasSuffix(key, catalog.DataFile) }, Hang: never})
	go func() {
		_, _, err := n.try(proveAction("op2", salvageName))
		done <- err
	}()
	eventually(t, "the fetch is under way", func() bool { return n.status().Busy == "prove" && exists(n.l.staging("op2")) })
	n.do(discardAction("op2"))
	if err := <-done; err == nil || exists(n.l.staging("op2")) {
		t.Errorf("the fetch ended with %v", err)
	}
	// A trash can that can't be emptied for want of an answer stops nobody either.
	store.Heal()
	hang := make(chan struct{})
	defer close(hang)
	store.Add(blobtest.Fault{Op: "list", Hang: hang})
	a.trash.kick()
	n.do(asideAction("NEW"))
	if s := n.status(); s.State != nil {
		t.Errorf("status %+v", s)
	}
}

// agentHere runs an agent in the process of the test, on a store of the test's, with a cluster OLD.
func agentHere(t *testing.T, store blob.Store) (*Agent, *node) {
	t.Helper()
	n := newNode(t, "a")
	n.crash()
	n.cat = catalog.New(store)
	a := n.serveHere()
	found("OLD", n)
	return a, n
}
