package restore

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// TestTwoClusters runs main and events on the same three nodes, as API servers have them, with one
// hosts file for each node. Each is restored while clients of the other see no failed request; then
// the managers of both are restarted, and both serve what they had.
func TestTwoClusters(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	dir := t.TempDir()
	hostsFile := func(n *harness.Node) string { return filepath.Join(dir, "hosts-"+n.Name) }
	world := func(name string, beside *harness.Cluster) *restoreWorld {
		c := harness.New(t, harness.Options{Name: name, Beside: beside, BackupInterval: 2 * time.Second,
			Args: []string{"--dns-suffix=." + name + ".example.com"}})
		for _, n := range c.Nodes {
			n.Args = append(n.Args, "--hosts-file="+hostsFile(n))
		}
		c.StartAll()
		return &restoreWorld{c: c}
	}
	mainOne := world("main", nil)
	events := world("events", mainOne.c)
	both := []*restoreWorld{mainOne, events}
	for _, w := range both {
		w.c.WaitHealthy(3)
		*w = *newRestoreWorld(t, w.c)
	}
	if a, b := mainOne.c.OneToken(), events.c.OneToken(); a == b {
		t.Fatalf("both clusters have the token %s", a)
	}
	for i, w := range both {
		other := both[1-i]
		token := other.c.OneToken()
		untouched := other.c.Untouched()
		w.spoil(t)
		out, errOut, code := w.c.Ctl("restore-backup", w.backup, "--now")
		if code != 0 {
			t.Fatalf("restore-backup: exit code %d: %s%s", code, out, errOut)
		}
		op := w.c.WaitOperation(onlyOperation(t, w.c), 2*time.Minute)
		w.c.CheckEnded(op, catalog.StateDone)
		w.c.WaitHealthy(3)
		untouched()
		w.check(t)
		if again := other.c.OneToken(); again != token {
			t.Errorf("the other cluster's token was %s and is %s", token, again)
		}
	}
	for _, w := range both {
		w.c.RestartAll()
	}
	for _, w := range both {
		w.c.WaitHealthy(3)
		if got, _ := w.c.ReadAll("/data/"); len(got) != len(w.data) {
			t.Errorf("%d keys after the restart, want %d", len(got), len(w.data))
		}
	}
	for _, n := range mainOne.c.Nodes {
		mainOne.c.WaitFor("both clusters in the hosts file of node "+n.Name, 30*time.Second, func() string {
			data, err := os.ReadFile(hostsFile(n))
			must(t, err)
			for _, name := range []string{"main", "events"} {
				for _, m := range mainOne.c.Nodes {
					if line := fmt.Sprintf("%s\t%s.%s.example.com\n", m.Address, m.Name, name); strings.Count(string(data), line) != 1 {
						return fmt.Sprintf("want %q once in\n%s", line, data)
					}
				}
			}
			return ""
		})
	}
}

// onlyOperation waits until a restore has begun and returns its id.
func onlyOperation(t *testing.T, c *harness.Cluster) string {
	t.Helper()
	id := ""
	c.WaitFor("the restore to begin", time.Minute, func() string {
		ops, _, err := c.Catalog.Operations(t.Context())
		must(t, err)
		if len(ops) != 1 {
			return fmt.Sprintf("there are %d operations", len(ops))
		}
		id = ops[0].ID
		return ""
	})
	return id
}
