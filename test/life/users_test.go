package life

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// advice is what must never be said of an etcd that only refuses.
var advice = regexp.MustCompile(`no quorum|recover --|restore-backup`)

// TestUsers enables users in etcd (auth enable), first without the managers' own: etcd serves,
// backups fail with the reason, and no restore is advised. The users are made as the managers say,
// while everything runs, and all works again: backups, a member that lost its disk, and managers
// and etcds that start with users.
func TestUsers(t *testing.T) {
	testutil.Long(t)
	c := harness.Start(t, harness.Options{BackupInterval: 5 * time.Second, Args: args()})
	c.WaitBackups(1)
	admin := c.Client()
	_, err := admin.UserAdd(t.Context(), "root", "secret")
	must(t, err)
	_, err = admin.UserGrantRole(t.Context(), "root", "root")
	must(t, err)
	_, err = admin.AuthEnable(t.Context())
	must(t, err)
	root, err := clientv3.New(clientv3.Config{Endpoints: c.ClientURLs(), TLS: c.TLS(), Logger: zap.NewNop(),
		Username: "root", Password: "secret"})
	must(t, err)
	defer root.Close()

	waitRefused(t, c)
	_, err = root.Put(t.Context(), "/served", "yes")
	must(t, err)
	for _, n := range c.Nodes {
		if found := advice.FindString(n.LogText()); found != "" {
			t.Errorf("node %s speaks of %q", n.Name, found)
		}
	}

	taken := len(c.Backups())
	for _, n := range c.Nodes {
		v, err := n.Status(t.Context())
		must(t, err)
		user := "etcd-manager-client-" + n.ID()
		add := regexp.MustCompile(`etcdctl user add (\S+) --no-password; etcdctl user grant-role (\S+) root`).FindStringSubmatch(v.Etcd.Error)
		if len(add) != 3 || add[1] != user || add[2] != user {
			t.Fatalf("node %s doesn't say how its user is made: %s", n.Name, v.Etcd.Error)
		}
		_, err = root.UserAddWithOptions(t.Context(), add[1], "", &clientv3.UserAddOptions{NoPassword: true})
		must(t, err)
		_, err = root.UserGrantRole(t.Context(), add[2], "root")
		must(t, err)
	}
	c.WaitHealthy(3)
	c.WaitBackups(taken + 1)
	n := c.Nodes[2]
	n.KillWhole()
	n.Wipe(true)
	n.Start()
	c.WaitHealthy(3)
	c.TermAll()
	c.StartAll()
	c.WaitHealthy(3)
	got, err := root.Get(t.Context(), "/served")
	must(t, err)
	if len(got.Kvs) != 1 {
		t.Error("what was written is gone")
	}
}

// waitRefused waits until all nodes say that etcd refuses them, and the leader that a backup has failed for it.
func waitRefused(t *testing.T, c *harness.Cluster) {
	t.Helper()
	c.WaitFor("etcd to refuse, and backups to fail for it", time.Minute, func() string {
		failing := "no backup has failed"
		for _, n := range c.Nodes {
			v, err := n.Status(t.Context())
			if err != nil {
				return err.Error()
			}
			if found := advice.FindString(v.Doing); found != "" {
				t.Fatalf("node %s speaks of %q: %s", n.Name, found, v.Doing)
			}
			if e := v.Etcd; !e.Votes() || !e.Denied || !strings.Contains(e.Error, "needs the role root") {
				return fmt.Sprintf("%s: votes %t, denied %t, %s", n.Name, e.Votes(), e.Denied, e.Error)
			}
			if v.Leading && v.Alarm && strings.Contains(v.Doing, "refuses the manager") &&
				strings.Contains(v.BackupError, "needs the role root") {
				failing = ""
			} else if v.Leading {
				failing += ": " + v.Doing + ", " + v.BackupError
			}
		}
		return failing
	})
}
