package archive

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// state is what was there at a moment.
type state struct {
	at       time.Time
	revision int64
	data     map[string]string
}

// now remembers what is there. Nothing else may write.
func now(c *harness.Cluster) state {
	data, revision := c.ReadAll("/data/")
	time.Sleep(300 * time.Millisecond) // a change is dated when it comes to the leader
	return state{time.Now(), revision, data}
}

// kept waits until the store has everything up to a revision.
func kept(t *testing.T, c *harness.Cluster, revision int64) {
	t.Helper()
	c.WaitFor(fmt.Sprintf("revision %d to be kept", revision), 60*time.Second, func() string {
		leader := c.Leader()
		if leader == nil {
			return "nobody leads"
		}
		v, err := leader.Status(t.Context())
		switch {
		case err != nil:
			return err.Error()
		case v.Changes == nil:
			return "no changes are kept"
		case v.Changes.Archived < revision:
			return fmt.Sprintf("%+v", *v.Changes)
		}
		return ""
	})
}

// restored runs a restore through the operator's tool to its end, and returns the record.
func restored(t *testing.T, c *harness.Cluster, args ...string) catalog.Operation {
	t.Helper()
	out, errOut, code := c.Ctl(append([]string{"restore-backup", "--now", "--wait"}, args...)...)
	t.Logf("%s\n%s%s", strings.Join(args, " "), errOut, out)
	if code != 0 {
		t.Fatalf("restore-backup %s: exit code %d", strings.Join(args, " "), code)
	}
	ops, _, err := c.Catalog.Operations(t.Context())
	must(t, err)
	op := ops[len(ops)-1]
	c.CheckEnded(op, catalog.StateDone)
	c.WaitHealthy(len(c.Nodes))
	return op
}

func (s state) check(t *testing.T, c *harness.Cluster, op catalog.Operation) {
	t.Helper()
	if op.Target == nil || op.Target.Revision != s.revision {
		t.Errorf("the restore went to %+v, want revision %d", op.Target, s.revision)
	}
	got, revision := c.ReadAll("/data/")
	if !maps.Equal(got, s.data) {
		t.Errorf("there are %d keys after the restore, %d at that time", len(got), len(s.data))
	}
	if revision <= op.RevisionBefore {
		t.Errorf("the revision after the restore is %d; before it was %d", revision, op.RevisionBefore)
	}
}

// TestToAnyPoint goes back to a second, to a revision of before that restore, and forward to the last change of what that one has replaced.
func TestToAnyPoint(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, harness.Options{Args: []string{"--change-log-interval=1s", "--queue-poll-interval=1s"}})
	c.WaitBackups(1)
	client := c.Client()
	early := c.Put("/data/first", "1")
	lease, err := client.Grant(t.Context(), 3600)
	must(t, err)
	_, err = client.Put(t.Context(), "/data/leased", "x", clientv3.WithLease(lease.ID))
	must(t, err)
	for i := range 100 {
		c.Put(fmt.Sprintf("/data/%03d", i), strings.Repeat("v", i*10))
	}
	a := now(c)
	_, err = client.Delete(t.Context(), "/data/0", clientv3.WithPrefix())
	must(t, err)
	_, err = client.Revoke(t.Context(), lease.ID)
	must(t, err)
	b := now(c)
	c.Put("/data/late", "1")
	last := now(c)
	kept(t, c, last.revision)

	out, errOut, code := c.Ctl("restore-backup", "--dry-run", "--to-time="+a.at.UTC().Format(time.RFC3339Nano))
	if code != 0 || !strings.Contains(out, fmt.Sprintf("revision %d,", a.revision)) ||
		!strings.Contains(out, fmt.Sprintf("at least %d revisions", last.revision-a.revision)) {
		t.Fatalf("exit code %d\n%s%s", code, out, errOut)
	}
	t.Log(out)
	op := restored(t, c, "--to-time="+a.at.UTC().Format(time.RFC3339Nano))
	a.check(t, c, op)
	for _, n := range c.Nodes {
		client := c.Client(n.ClientURL())
		l, err := client.TimeToLive(t.Context(), lease.ID, clientv3.WithAttachedKeys())
		must(t, err)
		if l.TTL <= 0 || l.GrantedTTL != 3600 || len(l.Keys) != 1 {
			t.Errorf("node %s: the lease has TTL %d of %d and keys %q", n.Name, l.TTL, l.GrantedTTL, l.Keys)
		}
		if r := <-client.Watch(t.Context(), "/data/", clientv3.WithPrefix(),
			clientv3.WithRev(early)); !errors.Is(r.Err(), rpctypes.ErrCompacted) {
			t.Errorf("node %s: a watch from revision %d gets %v", n.Name, early, r.Err())
		}
	}
	// A life of its own began; the one before is still to be had, by revision and by time.
	c.Put("/data/second-life", "1")
	op = restored(t, c, fmt.Sprintf("--to-revision=%d", b.revision))
	b.check(t, c, op)
	op = restored(t, c, "--to-time="+last.at.UTC().Format(time.RFC3339Nano))
	last.check(t, c, op)
	// The newest is brought in first, though the interval isn't over.
	c.WaitFor("a backup of the newest life", 60*time.Second, func() string {
		list := c.Backups() // once: another one may come meanwhile
		if m, err := c.Catalog.Manifest(t.Context(), list[len(list)-1].Name); err != nil || m.Revision <= op.RevisionBefore {
			return fmt.Sprint(m, err)
		}
		return ""
	})
	c.Put("/data/newest", "1")
	newest := now(c)
	op = restored(t, c, "--latest")
	newest.check(t, c, op)

	incarnations, problems, err := c.Catalog.Incarnations(t.Context())
	must(t, err)
	if len(incarnations) < 4 || len(problems) > 0 {
		t.Errorf("%d incarnations: %+v %v", len(incarnations), incarnations, problems)
	}
	for i, x := range incarnations {
		if (x.Origin == nil) != (i == 0) || i > 0 && (x.Origin.Incarnation == "" || x.Origin.Operation == "" || x.Origin.Reached == 0) {
			t.Errorf("incarnation %d: %+v", i, x.Origin)
		}
	}
}

// TestImpossiblePoints are refused before anything is queued, with what is possible.
func TestImpossiblePoints(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	c := harness.Start(t, harness.Options{Nodes: 1, Args: []string{"--change-log-interval=1s"}})
	c.WaitBackups(1)
	last := c.Put("/data/x", "1")
	kept(t, c, last)
	untouched := c.Untouched()
	for _, x := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--to-revision=999999999"}, 1, "the nearest point is --to-revision="},
		{[]string{"--to-time=2h"}, 1, "is newer"},
		{[]string{"--to-time=2999-01-01T00:00:00Z"}, 2, "is in the future"},
		{[]string{"--to-time=yesterday"}, 2, "is not a time"},
		{[]string{"--to-time=1m", "--latest"}, 2, "give one of them"},
		{[]string{"--to-revision=0"}, 2, "revisions begin with 1"},
		{[]string{"2000-01-01T00:00:00Z-000000", "--latest"}, 3, "there is no backup"},
		{nil, 2, "needs the name of a backup"},
	} {
		out, errOut, code := c.Ctl(append([]string{"restore-backup"}, x.args...)...)
		if code != x.code || !strings.Contains(errOut, x.want) {
			t.Errorf("%v: exit code %d\n%s%s", x.args, code, out, errOut)
		}
	}
	if cmds, _, err := c.Catalog.Commands(t.Context()); err != nil || len(cmds) > 0 {
		t.Errorf("%v is queued, %v", cmds, err)
	}
	untouched()
}
