package archive

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// copied waits until the copy of the store has everything up to a revision, by the word of the leader's status.
func copied(t *testing.T, c *harness.Cluster, revision int64) {
	t.Helper()
	c.WaitFor(fmt.Sprintf("revision %d to be copied", revision), 60*time.Second, func() string {
		leader := c.Leader()
		if leader == nil {
			return "nobody leads"
		}
		v, err := leader.Status(t.Context())
		switch {
		case err != nil:
			return err.Error()
		case len(v.Copies) != 1:
			return "no copy is shown"
		case v.Copies[0].Archived < revision || v.Copies[0].NewestBackup.IsZero():
			return fmt.Sprintf("%+v", v.Copies[0])
		}
		return ""
	})
}

// TestStoreCopy deletes the first store while clients write, loses all masters, and brings everything back from the copy.
func TestStoreCopy(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "copy")
	c := harness.Start(t, harness.Options{Args: []string{"--backup-store-copy=file://" + dir, "--change-log-interval=1s",
		"--queue-poll-interval=1s"}})
	for i := range 20 {
		c.Put(fmt.Sprintf("/data/%d", i), "before")
	}
	copied(t, c, c.Put("/data/first", "x"))

	// Another leader goes on with it.
	leader := c.Leader()
	leader.Kill()
	c.WaitFor("another leader", time.Minute, func() string {
		if l := c.Leader(); l == nil || l == leader {
			return "there is none"
		}
		return ""
	})
	copied(t, c, c.Put("/data/second", "x"))
	leader.Start()
	c.WaitHealthy(3)

	load := c.StartLoad(harness.LoadOptions{})
	c.WaitFor("writes", 30*time.Second, func() string {
		if load.Acked() < 50 {
			return fmt.Sprint(load.Acked(), " writes")
		}
		return ""
	})
	must(t, os.RemoveAll(c.StoreURL))
	at := load.Acked()
	c.WaitFor("writes without the first store", 30*time.Second, func() string {
		if load.Acked() < at+50 {
			return fmt.Sprint(load.Acked()-at, " writes")
		}
		return ""
	})
	if r := load.Stop(); len(r.Failures) > 0 {
		t.Errorf("clients saw %d failed requests: %s", len(r.Failures), r)
	}
	want, revision := c.ReadAll("/")
	copied(t, c, revision)

	// An empty store in its place: the running cluster is restored from the copy.
	must(t, os.Mkdir(c.StoreURL, 0o700))
	if out, errOut, code := c.Ctl("configure-cluster", "--member-count=3"); code != 0 {
		t.Fatalf("configure-cluster: exit code %d: %s%s", code, out, errOut)
	}
	c.RestartAll()
	c.WaitHealthy(3)
	c.Put("/data/wrong", "x")
	restored(t, c, "--from="+dir, fmt.Sprintf("--to-revision=%d", revision))
	if have, _ := c.ReadAll("/"); !maps.Equal(want, have) {
		t.Errorf("there are %d keys after the restore into the running cluster, %d were there", len(have), len(want))
	}
	revision = c.Put("/data/after", "x")
	copied(t, c, revision)
	want, _ = c.ReadAll("/")
	for _, n := range c.Nodes {
		n.KillWhole()
	}
	must(t, os.RemoveAll(c.StoreURL))

	// New masters, with the copy. No manager runs on it before somebody says so.
	d := harness.New(t, harness.Options{StoreURL: dir, NoSpec: true})
	d.StartAll()
	d.WaitLog(time.Minute, "no manager runs on a copy")
	ctl := func(code int, text string, args ...string) {
		t.Helper()
		out, errOut, have := d.Ctl(args...)
		if have != code || !strings.Contains(out+errOut, text) {
			t.Errorf("%s: exit code %d, want %d and %q:\n%s%s", strings.Join(args, " "), have, code, text, out, errOut)
		}
	}
	ctl(1, "is a copy of", "restore-backup", "--latest", "--now")
	ctl(3, "is a copy of", "status")
	ctl(0, "is a store of its own now", "use-copy", "--yes")
	restored(t, d, "--latest")
	have, _ := d.ReadAll("/")
	if !maps.Equal(want, have) {
		t.Errorf("there are %d keys after the restore, %d were there", len(have), len(want))
	}
}
