package restore

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// contentHash is the same for the same keys and values.
func contentHash(data map[string]string) string {
	h := sha256.New()
	for _, k := range slices.Sorted(maps.Keys(data)) {
		fmt.Fprintf(h, "%q=%q\n", k, data[k])
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}

// TestUndo restores under load, undoes that, and undoes the undo. Every write that was acknowledged before etcd was stopped for the restore
// is there again, also those that were made after its safety backup.
func TestUndo(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, harness.Options{Args: []string{"--queue-poll-interval=200ms"}})
	backup := c.WaitBackups(1)[0].Name
	for i := range 100 {
		c.Put(fmt.Sprintf("/data/%03d", i), fmt.Sprint("value ", i))
	}
	before, _ := c.ReadAll("/data/")
	load := c.StartLoad(harness.LoadOptions{Pause: 5 * time.Millisecond, Timeout: time.Second, Any: true})
	run := func(args ...string) catalog.Operation {
		t.Helper()
		out, errOut, code := c.Ctl(append(args, "--now", "--wait")...)
		if code != 0 {
			t.Fatalf("etcd-manager-ctl %s: exit code %d: %s%s", strings.Join(args, " "), code, out, errOut)
		}
		ops, _, err := c.Catalog.Operations(t.Context())
		must(t, err)
		op := ops[len(ops)-1]
		c.CheckEnded(op, catalog.StateDone)
		c.WaitHealthy(3)
		return op
	}
	op := run("restore-backup", backup)
	load.Stop()
	if op.SafetyPoint == nil {
		t.Errorf("a full backup %s was taken before it; the changes have everything", op.SafetyBackup)
	}
	if got, _ := c.ReadAll("/data/"); len(got) != 0 {
		t.Fatalf("after the restore there are %d keys; the backup has none", len(got))
	}
	c.Put("/data/after", "written after the restore")
	after, _ := c.ReadAll("/data/")

	undo := run("undo-restore", "--yes")
	load.VerifyBetween(0, op.StagedRevision)
	got, _ := c.ReadAll("/data/")
	if contentHash(got) != contentHash(before) {
		t.Errorf("after the undo there are %d keys with hash %s; before the restore %d with %s", len(got),
			contentHash(got), len(before), contentHash(before))
	}
	t.Logf("undone: %d keys with hash %s; from %v, revision %d after %d", len(got), contentHash(got), *undo.Source,
		undo.StagedRevision, op.StagedRevision)
	if undo.StagedRevision <= op.StagedRevision {
		t.Errorf("the undo has revision %d, the restore before it %d", undo.StagedRevision, op.StagedRevision)
	}

	again := run("undo-restore", "--yes")
	if got, _ := c.ReadAll("/data/"); contentHash(got) != contentHash(after) {
		t.Errorf("after the undo of the undo there is %v; want %v", got, after)
	}

	// Without the old data dirs the backup from before is what is left to go back to.
	for _, n := range c.Nodes {
		n.Kill()
		n.EmptyTrash()
		n.Start()
	}
	c.WaitHealthy(3)
	last := run("undo-restore", "--yes")
	saved, revision := again.Saved()
	if last.Backup != saved || revision > 0 && (last.Target == nil || last.Target.Revision != revision) {
		t.Errorf("backup %s was restored, to %v; the state from before was %s, revision %d", last.Backup, last.Target, saved, revision)
	}
	got, _ = c.ReadAll("/data/")
	if contentHash(got) != contentHash(before) {
		t.Errorf("after the last undo there are %d keys with hash %s; want %s", len(got), contentHash(got), contentHash(before))
	}
}
