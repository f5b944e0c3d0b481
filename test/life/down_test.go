package life

import (
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// TestDownByRestore goes from 3.5 to 3.4, which etcd can't while it runs, by the command that the refusal names.
func TestDownByRestore(t *testing.T) {
	testutil.Long(t)
	dir := installed(t, "etcd-3.4", "etcd-3.5")
	c := harness.Start(t, harness.Options{Spec: &cluster.Spec{MemberCount: 3, EtcdVersion: "3.5.35"},
		Args: args("--etcd-binaries=" + dir), BackupInterval: 2 * time.Second})
	waitVersion(t, c, 3, "3.5.35")
	c.BackupWith(c.Put("/before", "kept"))
	configure(t, c, "--etcd-version=3.4.23")
	c.WaitFor("the refusal", time.Minute, func() string {
		v, err := c.WaitLeader().Status(t.Context())
		if err != nil || !strings.Contains(v.Doing, "configure-cluster --etcd-version=3.4.23 --allow-outage") {
			return v.Doing
		}
		return ""
	})
	c.Put("/last", "kept too")
	out, errOut, code := c.Ctl("configure-cluster", "--etcd-version=3.4.23", "--allow-outage", "--wait")
	if code != 0 || !strings.Contains(errOut, "can't be changed to 3.4.23 while it serves") || !strings.Contains(errOut, "without etcd") {
		t.Fatalf("configure-cluster: exit code %d: %s%s", code, out, errOut)
	}
	t.Logf("configure-cluster said:\n%s%s", errOut, out)
	var op catalog.Operation
	c.WaitFor("the restore to be done", 2*time.Minute, func() string {
		ops, err := c.Catalog.ControlListing(t.Context())
		must(t, err)
		for _, o := range ops.Operations {
			if op, _, err = c.Catalog.Operation(t.Context(), o.Name); err == nil && op.Kind == catalog.KindRestore &&
				!op.Finished.IsZero() {
				return ""
			}
		}
		return "it isn't"
	})
	c.CheckEnded(op, catalog.StateDone)
	waitVersion(t, c, 3, "3.4.23")
	if got, _ := c.ReadAll("/"); got["/before"] != "kept" || got["/last"] != "kept too" {
		t.Errorf("after the restore there is %v", got)
	}
	t.Logf("etcd served nobody for %s", op.Outage.Round(time.Millisecond))
}
