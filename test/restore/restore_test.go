package restore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// restoreWorld is what a restore must bring back.
type restoreWorld struct {
	c      *harness.Cluster
	data   map[string]string
	lease  clientv3.LeaseID
	backup string
	// early is a revision from before the backup, highest the highest one ever seen.
	early, highest int64
}

func newRestoreWorld(t *testing.T, c *harness.Cluster) *restoreWorld {
	t.Helper()
	w := &restoreWorld{c: c, early: c.Put("/data/first", "1")}
	for i := range 50 {
		c.Put(fmt.Sprintf("/data/%03d", i), fmt.Sprint("value ", i))
	}
	client := c.Client()
	l, err := client.Grant(t.Context(), 3600)
	must(t, err)
	w.lease = l.ID
	_, err = client.Put(t.Context(), "/data/leased", "x", clientv3.WithLease(l.ID))
	must(t, err)
	_, err = client.Put(t.Context(), "/registry/masterleases/10.0.0.1", "an API server", clientv3.WithLease(l.ID))
	must(t, err)
	w.data, w.highest = c.ReadAll("/data/")
	w.backup = c.BackupWith(w.highest)
	t.Logf("backup %s has %d keys at revision %d", w.backup, len(w.data), w.highest)
	return w
}

// spoil changes everything that was backed up.
func (w *restoreWorld) spoil(t *testing.T) {
	t.Helper()
	client := w.c.Client()
	_, err := client.Delete(t.Context(), "/data/0", clientv3.WithPrefix())
	must(t, err)
	_, err = client.Revoke(t.Context(), w.lease)
	if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		t.Fatal(err)
	}
	w.c.Put("/data/first", "spoiled")
	w.highest = max(w.highest, w.c.Put("/data/new", "not in the backup"))
}

// check compares with what the backup had, and returns the revision.
func (w *restoreWorld) check(t *testing.T) {
	t.Helper()
	got, revision := w.c.ReadAll("/data/")
	if !maps.Equal(got, w.data) {
		t.Errorf("there are %d keys after the restore, want the backup's %d; first %q", len(got), len(w.data), got["/data/first"])
	}
	if revision <= w.highest {
		t.Errorf("the revision after the restore is %d; before it was %d", revision, w.highest)
	}
	if got, _ := w.c.ReadAll("/registry/masterleases/"); len(got) != 0 {
		t.Errorf("leases of API servers came back: %v", got)
	}
	for _, n := range w.c.Nodes {
		client := w.c.Client(n.ClientURL())
		l, err := client.TimeToLive(t.Context(), w.lease, clientv3.WithAttachedKeys())
		must(t, err)
		if l.TTL <= 0 || len(l.Keys) != 1 || string(l.Keys[0]) != "/data/leased" {
			t.Errorf("node %s: the lease has TTL %d and keys %q; want /data/leased", n.Name, l.TTL, l.Keys)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		r, ok := <-client.Watch(ctx, "/data/", clientv3.WithPrefix(), clientv3.WithRev(w.early))
		cancel()
		if !ok || !errors.Is(r.Err(), rpctypes.ErrCompacted) {
			t.Errorf("node %s: a watch from revision %d gets %v; want %v", n.Name, w.early, r.Err(), rpctypes.ErrCompacted)
		}
	}
	t.Logf("the backup's %d keys are back; revision %d before, %d after", len(got), w.highest, revision)
	w.highest = revision
}

// TestRestoreOnRestart restores the same backup twice. Nothing may happen before the managers are restarted.
func TestRestoreOnRestart(t *testing.T) {
	t.Parallel() // it mostly waits
	c := harness.Start(t, harness.Options{BackupInterval: 2 * time.Second})
	w := newRestoreWorld(t, c)
	token := c.OneToken()
	w.spoil(t)
	out, errOut, code := c.Ctl("restore-backup", w.backup)
	if code != 0 {
		t.Fatalf("etcd-manager-ctl restore-backup: exit code %d: %s%s", code, out, errOut)
	}
	cmds, _, err := c.Catalog.Commands(t.Context())
	must(t, err)
	if len(cmds) != 1 {
		t.Fatalf("%d commands are queued; want 1", len(cmds))
	}
	c.WaitFor("the leader to show the waiting command", 90*time.Second, func() string {
		v, err := c.WaitLeader().Status(t.Context())
		if err != nil || len(v.Waiting) == 0 {
			return "its status shows none"
		}
		return ""
	})
	if _, _, err := c.Catalog.Operation(t.Context(), cmds[0].Name); !errors.Is(err, catalog.ErrNotFound) {
		t.Errorf("the restore began without a restart: %v", err)
	}
	if got, _ := c.ReadAll("/data/new"); len(got) != 1 {
		t.Errorf("before the restart there is %v; want the new key", got)
	}
	c.RestartAll()
	op := c.WaitOperation(cmds[0].Name, 2*time.Minute)
	c.CheckEnded(op, catalog.StateDone)
	c.WaitHealthy(3)
	t.Logf("restored; the leader says that nobody was served for %s", op.Outage)
	w.check(t)
	second := c.OneToken()
	if second == token {
		t.Errorf("the restored cluster has the old token %s", token)
	}
	for _, n := range c.Nodes {
		if _, err := os.Stat(filepath.Join(n.DataDir, "data-trashcan", token)); err != nil {
			t.Errorf("the old data of %s aren't kept: %v", n.Name, err)
		}
	}

	w.spoil(t)
	cmd, err := c.Catalog.QueueRestore(t.Context(), w.backup, op.Spec, catalog.RestoreOptions{})
	must(t, err)
	c.RestartAll()
	c.CheckEnded(c.WaitOperation(cmd.Name, 2*time.Minute), catalog.StateDone)
	c.WaitHealthy(3)
	w.check(t)
	if third := c.OneToken(); third == second {
		t.Errorf("the second restore has the token of the first, %s", third)
	}
}

// TestBadRestores queues restores that can't succeed, and restarts the managers without their etcds. No client may notice.
func TestBadRestores(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	c := harness.Start(t, harness.Options{BackupInterval: 2 * time.Second})
	w := newRestoreWorld(t, c)
	list := c.WaitBackups(3)
	list = slices.DeleteFunc(list, func(b catalog.Backup) bool { return b.Name == w.backup })
	path := func(name, file string) string { return filepath.Join(c.StoreURL, name, file) }
	good, err := os.ReadFile(path(w.backup, catalog.DataFile))
	must(t, err)
	meta, err := os.ReadFile(path(w.backup, "_etcd_backup.meta"))
	must(t, err)
	flipped := append([]byte(nil), good...)
	flipped[len(flipped)/2] ^= 1
	// foreign makes a backup as other tools do, without a manifest, so that only its own checksums can tell.
	foreign := func(data []byte) func(string) string {
		return func(name string) string {
			must(t, os.MkdirAll(filepath.Join(c.StoreURL, name), 0o755))
			must(t, os.WriteFile(path(name, catalog.DataFile), data, 0o644))
			must(t, os.WriteFile(path(name, "_etcd_backup.meta"), meta, 0o644))
			return name
		}
	}
	// tampered overwrites the data of a real backup.
	tampered := func(i int, change func([]byte) []byte) func(string) string {
		return func(string) string {
			p := path(list[i].Name, catalog.DataFile)
			data, err := os.ReadFile(p)
			must(t, err)
			must(t, os.WriteFile(p, change(data), 0o644))
			return list[i].Name
		}
	}
	token := c.OneToken()
	var pids []int
	for _, n := range c.Nodes {
		pids = append(pids, n.EtcdPID())
	}
	load := c.StartLoad(harness.LoadOptions{})
	for i, tc := range []struct {
		what   string
		make   func(name string) string
		reason string
	}{
		{"missing", func(name string) string { return name }, "missing"},
		{"truncated", foreign(good[:len(good)/2]), "cut short"},
		{"bit flipped", foreign(flipped), "corrupt"},
		{"no database", foreign(harness.Gzipped(t, []byte(strings.Repeat("this is not a database\n", 5000)))), ""},
		{"empty", foreign(nil), ""},
		{"truncated, with manifest", tampered(0, func(b []byte) []byte { return b[:len(b)-100] }), ""},
		{"bit flipped, with manifest", tampered(1, func(b []byte) []byte { b[len(b)/3] ^= 0x10; return b }), ""},
	} {
		name := tc.make(fmt.Sprintf("2026-01-%02dT01:02:03Z-000000", i+1))
		cmd, err := c.Catalog.QueueRestore(t.Context(), name, c.Spec(), catalog.RestoreOptions{})
		must(t, err)
		for _, n := range c.Nodes {
			n.Kill()
			n.Start()
		}
		op := c.WaitOperation(cmd.Name, time.Minute)
		c.CheckEnded(op, catalog.StateFailed)
		if !strings.Contains(op.Reason, tc.reason) || !strings.Contains(op.Reason, name) {
			t.Errorf("%s: the reason is %q; it should name %s and say %q", tc.what, op.Reason, name, tc.reason)
		}
		t.Logf("%s: %s", tc.what, op.Reason)
	}
	// One that needn't wait for a restart.
	cmd, err := c.Catalog.QueueRestore(t.Context(), "2026-01-02T01:02:03Z-000000", c.Spec(), catalog.RestoreOptions{Now: true})
	must(t, err)
	c.CheckEnded(c.WaitOperation(cmd.Name, 2*time.Minute), catalog.StateFailed)
	c.WaitHealthy(3)
	r := load.Stop()
	t.Log(r)
	if len(r.Failures) > 0 {
		t.Errorf("clients saw %d failed requests", len(r.Failures))
	}
	load.Verify()
	for i, n := range c.Nodes {
		if n.EtcdPID() != pids[i] {
			t.Errorf("the etcd of %s was restarted", n.Name)
		}
	}
	if again := c.OneToken(); again != token {
		t.Errorf("the token was %s and is %s", token, again)
	}
	// And a good one is still possible.
	cmd, err = c.Catalog.QueueRestore(t.Context(), w.backup, c.Spec(), catalog.RestoreOptions{})
	must(t, err)
	w.spoil(t)
	c.RestartAll()
	c.CheckEnded(c.WaitOperation(cmd.Name, 2*time.Minute), catalog.StateDone)
	c.WaitHealthy(3)
	w.check(t)
}
