package chaos

import (
	"net/http"
	"path"
	"sync/atomic"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/test/harness"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// gatedWorld is a cluster with clients whose store is behind a gate.
func gatedWorld(t *testing.T) (*world, *clients, *servers.Gate) {
	t.Helper()
	t.Parallel() // it mostly waits
	srv := servers.StartVersityGW(t, servers.InMemory())
	g := servers.NewGate(t, srv)
	c := harness.Start(t, harness.Options{StoreURL: srv.URL("test/backups/etcd/main"), StoreEnv: g.Env(srv),
		Args: []string{"--change-log-interval=500ms", "--queue-poll-interval=300ms"}})
	w := &world{t: t, c: c, h: newHistory()}
	c.WaitBackups(1)
	w.eras = []era{{Cluster: w.cluster()}}
	cl := startClients(c, w.h, 1)
	t.Cleanup(cl.end)
	w.load()
	return w, cl, g
}

// restore has a restore done and notes its era.
func (w *world) restore(what string, args ...string) {
	w.t.Helper()
	promised := w.h.now()
	op := w.ended(w.queue(args))
	if op.State != catalog.StateDone {
		w.t.Fatalf("%v ended as %s: %s", args, op.State, op.Reason)
	}
	w.c.WaitHealthy(3)
	w.note(op, what, promised)
	w.load()
}

// ofThisLife waits for a backup of the cluster that serves.
func (w *world) ofThisLife() {
	w.t.Helper()
	id := w.eras[len(w.eras)-1].Cluster
	w.c.WaitFor("a backup of the cluster that serves", 2*time.Minute, func() string {
		for _, b := range w.c.Backups() {
			if m, err := w.c.Catalog.Manifest(w.t.Context(), b.Name); err == nil && uint64(m.ClusterID) == id {
				return ""
			}
		}
		return "there is none"
	})
}

// TestLatestAfterAWithdrawnUndo restores, lets clients write, and asks for an undo that is
// withdrawn once its salvage has put a backup of the replaced cluster into the store. That backup
// is the newest by its name, and of another life: the latest state is that of the cluster that
// serves.
func TestLatestAfterAWithdrawnUndo(t *testing.T) {
	testutil.Long(t)
	w, cl, _ := gatedWorld(t)
	first := w.c.Backups()[0].Name
	w.restore("name "+first, "restore-backup", first, "--now")
	w.ofThisLife()
	taken := len(w.c.Backups())

	id := w.queue([]string{"undo-restore", "--now", "--yes"})
	if !w.reaches(id, string(catalog.StateSalvaging)) {
		t.Fatal("the undo was over before it was withdrawn")
	}
	if out, errOut, code := w.c.Ctl("delete-command", id); code != 0 {
		t.Fatalf("delete-command: exit code %d\n%s%s", code, out, errOut)
	}
	op := w.ended(id)
	if op.State != catalog.StateFailed {
		t.Fatalf("the undo ended as %s: %s", op.State, op.Reason)
	}
	if n := len(w.c.Backups()); n <= taken {
		t.Fatalf("the undo has salvaged nothing: %d backups, %d before", n, taken)
	}
	w.note(op, "undo", 0)
	w.load()
	w.restore("latest", latestNow...)
	w.judged(cl)
}

// TestLatestWhileBackupsAreRefused restores, and from then on the store refuses backups while
// changes go through: no backup of the cluster that serves is there. The latest state is refused,
// or all of it; never that of the cluster that was replaced. Once backups go through it is
// restored.
func TestLatestWhileBackupsAreRefused(t *testing.T) {
	testutil.Long(t)
	w, cl, gate := gatedWorld(t)
	first := w.c.Backups()[0].Name
	var uploads atomic.Int64
	gate.Set(func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut || path.Base(r.URL.Path) != catalog.DataFile || uploads.Add(1) == 1 {
			return false // the first one is the backup of what is to be replaced
		}
		http.Error(rw, "busy", http.StatusServiceUnavailable)
		return true
	})
	promised := w.h.now()
	op := w.ended(w.queue([]string{"restore-backup", first, "--now"}))
	if op.State != catalog.StateDone {
		t.Fatalf("the restore ended as %s: %s", op.State, op.Reason)
	}
	w.c.WaitHealthy(3)
	w.note(op, "name "+first, promised)
	w.load()

	promised = w.h.now()
	known := map[string]bool{}
	for _, x := range w.ops {
		known[x.ID] = true
	}
	out, errOut, code := w.c.Ctl(latestNow...)
	t.Logf("while there is no backup of the cluster that serves: code %d\n%s%s", code, out, errOut)
	if code == 0 {
		id := w.newest(known)
		op := w.ended(id)
		t.Logf("it ended as %s: %s", op.State, op.Reason)
		w.note(op, "latest", promised)
	}
	w.load()
	gate.Set(nil)
	w.ofThisLife()
	w.restore("latest", latestNow...)
	w.judged(cl)
}
