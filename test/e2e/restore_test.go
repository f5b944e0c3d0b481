package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// TestRestoreOnRestart is the main job: a backup is queued while the cluster runs, nothing happens,
// the masters are stopped and started, and the data of the backup are there.
func TestRestoreOnRestart(t *testing.T) {
	testutil.Long(t)
	needDocker(t)
	t.Parallel()
	for _, v := range []struct {
		name, version string
		store         func(*world)
		image         func() (string, error)
		// patient waits until the leader itself has found the command, which takes up to a minute as it lists the queue that rarely.
		patient bool
	}{
		{"s3", "", func(w *world) { w.startS3("example.com/backups/etcd/main") }, managerImage, true},
		{"file", "", (*world).startFiles, managerImage, false},
		{"s3-etcd-3.5", etcd35, func(w *world) { w.startS3("example.com/backups/etcd/main") }, etcd35Image, false},
	} {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			v.store(w)
			w.configure(v.version)
			for _, name := range []string{"a", "b", "c"} {
				w.addMaster(name, masterOptions{image: must(t, v.image), args: []string{"--backup-interval=10s"}})
			}
			each(w.masters, (*master).start)
			w.waitServing(2 * time.Minute)
			restoreOnRestart(w, v.version, v.patient)
		})
	}
}

// written is what the test has put into the cluster before the backup.
type written struct {
	keys     int
	lease    clientv3.LeaseID
	revision int64
}

func restoreOnRestart(w *world, version string, patient bool) {
	t := w.t
	oldToken := w.oneCluster(0)
	if mark := w.marker(); mark.Token != oldToken {
		t.Errorf("the marker names token %s, the state files %s", mark.Token, oldToken)
	}
	w.checkVersion(version)
	c := w.client(t, w.masters...)
	before := writeBefore(t, c)
	backup := w.backupAfter(time.Now())
	highest := writeAfter(t, c)

	said := w.ctl("restore-backup", backup)
	if !strings.Contains(said, "until the managers are restarted") {
		t.Errorf("restore-backup doesn't say that it waits: %s", said)
	}
	w.waitQueued(backup, patient)
	if r, err := get(t, c, "after/99"); err != nil || r.Count != 1 {
		t.Fatalf("a restore that only waits has changed the data: %v", err)
	}
	if token := w.oneCluster(0); token != oldToken {
		t.Fatalf("a restore that only waits has made cluster %s out of %s", token, oldToken)
	}
	highest = max(highest, put(t, c, "last", "written before the masters were stopped"))

	each(w.masters, (*master).stop)
	for _, m := range w.masters {
		if !strings.Contains(m.log(), "ends gracefully") {
			t.Errorf("the log of %s doesn't say that it ended in order", m.name)
		}
	}
	each(w.masters, (*master).start)
	waitFor(t, "the restore is done", 3*time.Minute, func() string {
		list := w.commands()
		i := slices.IndexFunc(list, func(c command) bool { return c.Backup == backup })
		switch {
		case i < 0:
			return fmt.Sprintf("list-commands doesn't know it: %v", list)
		case list[i].State == "done":
			return ""
		case list[i].State == "waiting", list[i].State == "running":
			return fmt.Sprintf("%+v", list[i])
		}
		t.Fatalf("the restore ended as %+v", list[i])
		return ""
	})
	w.waitServing(2 * time.Minute)

	newToken := w.oneCluster(0)
	if newToken == oldToken {
		t.Errorf("the token is still %s", oldToken)
	}
	for _, m := range w.masters {
		if kept := containerDir(t, m.container, "/data/data-trashcan"); !slices.Contains(kept, oldToken) {
			t.Errorf("the trash can of %s has %v, want the old data %s", m.name, kept, oldToken)
		}
	}
	for _, c := range w.commands() {
		if c.State == "waiting" || c.State == "running" {
			t.Errorf("still queued: %+v", c)
		}
	}
	w.checkVersion(version)
	for _, m := range w.masters {
		checkRestored(t, w.client(t, m), m.name, before, highest)
	}
}

func writeBefore(t *testing.T, c *clientv3.Client) written {
	t.Helper()
	w := written{keys: 100}
	for i := range w.keys {
		put(t, c, fmt.Sprintf("before/%02d", i), fmt.Sprint(i))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	lease, err := c.Grant(ctx, 3600)
	if err != nil {
		t.Fatal(err)
	}
	w.lease = lease.ID
	w.revision = put(t, c, "leased", "with a lease", clientv3.WithLease(w.lease))
	return w
}

// writeAfter changes, deletes and adds, and returns the revision that the cluster has then.
func writeAfter(t *testing.T, c *clientv3.Client) int64 {
	t.Helper()
	for i := range 100 {
		put(t, c, fmt.Sprintf("after/%02d", i), fmt.Sprint(i))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if _, err := c.Delete(ctx, "before/01"); err != nil {
		t.Fatal(err)
	}
	return put(t, c, "before/00", "changed")
}

func put(t *testing.T, c *clientv3.Client, key, value string, opts ...clientv3.OpOption) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	r, err := c.Put(ctx, key, value, opts...)
	if err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
	return r.Header.Revision
}

func get(t *testing.T, c *clientv3.Client, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return c.Get(ctx, key, opts...)
}

// backupAfter waits until the tool lists a backup that was begun after that moment.
func (w *world) backupAfter(moment time.Time) (name string) {
	w.t.Helper()
	waitFor(w.t, "a backup of the data is listed outside of the masters", time.Minute, func() string {
		names := strings.Fields(w.ctl("list-backups"))
		if !slices.IsSortedFunc(names, func(a, b string) int { return catalog.BackupTime(a).Compare(catalog.BackupTime(b)) }) {
			w.t.Fatalf("not oldest first: %v", names)
		}
		if len(names) == 0 || !catalog.BackupTime(names[len(names)-1]).After(moment) {
			return fmt.Sprintf("the list is %v", names)
		}
		name = names[len(names)-1]
		return ""
	})
	return name
}

// waitQueued waits until the leader has worked on with the restore in the queue, as a backup taken
// after it shows, and has left it there; if patient, also until it says that it knows of the
// restore and waits with it.
func (w *world) waitQueued(backup string, patient bool) {
	t := w.t
	t.Helper()
	if patient {
		waitFor(t, "the leader says that the restore waits", 2*time.Minute, func() string {
			l, problem := w.leader(w.masters)
			if problem != "" {
				return problem
			}
			if !slices.ContainsFunc(l.Waiting, func(s string) bool { return strings.Contains(s, backup) }) {
				return fmt.Sprintf("%s waits for %v", l.Node, l.Waiting)
			}
			return ""
		})
		waitFor(t, "a log says so too", time.Minute, func() string {
			if slices.ContainsFunc(w.masters, func(m *master) bool {
				return strings.Contains(m.log(),
					"waits until the managers are restarted")
			}) {
				return ""
			}
			return "no log does"
		})
	}
	w.backupAfter(time.Now())
	for _, c := range w.commands() {
		if c.Backup == backup && c.State != "waiting" {
			t.Errorf("without a restart the command is %+v", c)
		}
	}
}

func (w *world) checkVersion(want string) {
	w.t.Helper()
	for _, m := range w.masters {
		v, err := m.status()
		if err != nil {
			w.t.Errorf("%s: %v", m.name, err)
			continue
		}
		if want != "" && v.Etcd.Version != want {
			w.t.Errorf("%s runs etcd %s, want %s", m.name, v.Etcd.Version, want)
		}
		w.t.Logf("%s runs etcd %s", m.name, v.Etcd.Version)
	}
}

// checkRestored asks one member.
func checkRestored(t *testing.T, c *clientv3.Client, member string, before written, highest int64) {
	t.Helper()
	r, err := get(t, c, "before/", clientv3.WithPrefix())
	if err != nil {
		t.Fatalf("%s: %v", member, err)
	}
	if len(r.Kvs) != before.keys {
		t.Errorf("%s has %d keys of the backup, want %d", member, len(r.Kvs), before.keys)
	}
	for i, kv := range r.Kvs {
		if string(kv.Key) != fmt.Sprintf("before/%02d", i) || string(kv.Value) != fmt.Sprint(i) {
			t.Errorf("%s has %s=%s, want before/%02d=%d", member, kv.Key, kv.Value, i, i)
		}
	}
	if r.Header.Revision <= highest {
		t.Errorf("%s is at revision %d, want more than %d", member, r.Header.Revision, highest)
	}
	for _, key := range []string{"after/", "last"} {
		if r, err := get(t, c, key, clientv3.WithPrefix()); err != nil || r.Count != 0 {
			t.Errorf("%s has %v of what was written after the backup (%s): %v", member, r, key, err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	kv, err := c.Get(ctx, "leased")
	if err != nil || len(kv.Kvs) != 1 || clientv3.LeaseID(kv.Kvs[0].Lease) != before.lease {
		t.Errorf("%s: the leased key is %v, %v; want lease %x", member, kv, err, before.lease)
	}
	left, err := c.TimeToLive(ctx, before.lease, clientv3.WithAttachedKeys())
	if err != nil || left.TTL <= 0 || len(left.Keys) != 1 || string(left.Keys[0]) != "leased" {
		t.Errorf("%s: the lease is %+v, %v; want it alive with its key", member, left, err)
	}
	for _, revision := range []int64{before.revision, highest} {
		var watched error
		for e := range c.Watch(ctx, "before/", clientv3.WithPrefix(), clientv3.WithRev(revision)) {
			watched = e.Err()
			break
		}
		if !errors.Is(watched, rpctypes.ErrCompacted) {
			t.Errorf("%s: a watch from the old revision %d got %v, want %v", member, revision, watched, rpctypes.ErrCompacted)
		}
	}
}
