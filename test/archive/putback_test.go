package archive

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// object is what Kubernetes stores of a custom resource: JSON with what all objects have in common.
func object(kind, name string, i int, extra string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":%q,"metadata":{"name":%q,"uid":"uid-%s-%d"%s},"data":{"value":"%d"}}`, kind, name, kind, i, extra, i)
}

// dying marks an object for deletion.
const dying = `,"deletionTimestamp":"2026-01-30T01:02:03Z"`

// putMany writes keys, many at once.
func putMany(t *testing.T, client *clientv3.Client, keys map[string]string) {
	t.Helper()
	var ops []clientv3.Op
	flush := func() {
		_, err := client.Txn(t.Context()).Then(ops...).Commit()
		must(t, err)
		ops = nil
	}
	for k, v := range keys {
		if ops = append(ops, clientv3.OpPut(k, v)); len(ops) == 100 {
			flush()
		}
	}
	if len(ops) > 0 {
		flush()
	}
}

// putBackDone waits for the end of the newest put-back, and returns what the tool says.
func putBackDone(t *testing.T, c *harness.Cluster, name string) string {
	t.Helper()
	var out string
	c.WaitFor("put-back "+name+" to end", 2*time.Minute, func() string {
		text, errOut, code := c.Ctl("describe-command", name)
		if out = text; code != 0 || !strings.Contains(text, "state:") || !strings.Contains(text, "ended:") {
			return text + errOut
		}
		return ""
	})
	return out
}

// queuedName is the name of the command that the tool has queued.
func queuedName(t *testing.T, out string) string {
	t.Helper()
	_, rest, ok := strings.Cut(out, "queued: ")
	name, _, ok2 := strings.Cut(rest, " ")
	if !ok || !ok2 {
		t.Fatalf("nothing was queued:\n%s", out)
	}
	return name
}

// TestPutBack deletes a namespace as Kubernetes does, brings it back while clients write to it and the leader is killed, and takes that
// back.
// Nothing is restarted, and no client sees a failed request.
func TestPutBack(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	const n, prefix = 2000, "/registry/configmaps/shop/"
	const theirs = prefix + "001500" // in the second part of the plan
	c := harness.Start(t, harness.Options{Args: []string{"--change-log-interval=1s", "--queue-poll-interval=1s"}})
	c.WaitBackups(1)
	client := c.Client()
	keys := map[string]string{"/registry/namespaces/shop": object("Namespace", "shop", 0, "")}
	marked := map[string]string{"/registry/namespaces/shop": object("Namespace", "shop", 0, dying)}
	for i := range n {
		name := fmt.Sprintf("%06d", i)
		keys[prefix+name] = object("ConfigMap", name, i, "")
	}
	putMany(t, client, keys)
	putMany(t, client, map[string]string{"/registry/configmaps/other/1": "not in it"})
	lease, err := client.Grant(t.Context(), 3600)
	must(t, err)
	_, err = client.Put(t.Context(), "/registry/events/shop/1", object("Event", "1", 1, ""), clientv3.WithLease(lease.ID))
	must(t, err)
	putMany(t, client, marked)
	before, _ := c.ReadAll("/registry/")
	for _, gone := range []string{prefix, "/registry/events/shop/", "/registry/namespaces/shop"} {
		_, err = client.Delete(t.Context(), gone, clientv3.WithPrefix())
		must(t, err)
	}
	deleted, revision := c.ReadAll("/registry/")
	kept(t, c, revision)

	out, errOut, code := c.Ctl("put-back", "--namespace=shop", "--dry-run")
	t.Logf("%s%s", errOut, out)
	if code != 0 || !strings.Contains(errOut, fmt.Sprintf("missing: %d keys", n+1)) || !strings.Contains(errOut, "leases:  1 key left out") {
		t.Errorf("the preview: exit code %d\n%s%s", code, errOut, out)
	}
	untouched := c.Untouched()
	out, errOut, code = c.Ctl("put-back", "--namespace=shop", "--yes", "--rate=300")
	if code != 0 {
		t.Fatalf("put-back: exit code %d\n%s%s", code, errOut, out)
	}
	name := queuedName(t, out)
	c.Put(theirs, "somebody's")
	c.WaitFor("some keys to be back", time.Minute, func() string {
		if got, _ := c.ReadAll(prefix); len(got) < 100 {
			return fmt.Sprintf("%d are", len(got))
		}
		return ""
	})
	leader := c.WaitLeader()
	leader.Kill()
	done := putBackDone(t, c, name)
	t.Log(done)
	if !strings.Contains(done, fmt.Sprintf("%d created, 1 left alone, of %d", n, n+1)) || !strings.Contains(done, theirs+": exists with another value") {
		t.Errorf("the record says\n%s", done)
	}
	leader.Start()
	want := maps.Clone(before)
	delete(want, "/registry/events/shop/1")
	want["/registry/namespaces/shop"], want[theirs] = keys["/registry/namespaces/shop"], "somebody's"
	got, now := c.ReadAll("/registry/")
	if !maps.Equal(got, want) {
		t.Errorf("there are %d keys after the put-back, want %d", len(got), len(want))
	}
	if now > revision+100_000 {
		t.Errorf("the revision has jumped from %d to %d", revision, now)
	}
	if left, _ := c.ReadAll("etcd-manager/"); len(left) > 0 {
		t.Errorf("left in etcd: %v", left)
	}

	out, errOut, code = c.Ctl("undo-put-back", "--yes", "--rate=10000")
	if code != 0 {
		t.Fatalf("undo-put-back: exit code %d\n%s%s", code, errOut, out)
	}
	t.Log(putBackDone(t, c, queuedName(t, out)))
	deleted[theirs] = "somebody's"
	if got, _ := c.ReadAll("/registry/"); !maps.Equal(got, deleted) {
		t.Errorf("there are %d keys after the undo, want %d", len(got), len(deleted))
	}
	untouched()
}
