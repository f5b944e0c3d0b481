package minio

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// TestClusterUnderDefaultRetention: in a bucket that locks all that is written, a cluster forms, makes backups, comes back after a
// restart, takes commands, restores, and needs nobody.
func TestClusterUnderDefaultRetention(t *testing.T) {
	testutil.Long(t)
	server := lockedBucket(t)
	lockAll(t, server)
	c := harness.Start(t, harness.Options{Nodes: 1, S3: server,
		Args: []string{"--change-log-interval=1s", "--queue-poll-interval=1s"}})
	c.WaitBackups(1)
	ctl := func(args ...string) {
		t.Helper()
		if out, errOut, code := c.Ctl(args...); code != 0 {
			t.Fatalf("%v: exit code %d: %s%s", args, code, out, errOut)
		}
	}
	calm := func() string {
		v, err := c.Nodes[0].Status(t.Context())
		switch {
		case err != nil:
			return err.Error()
		case len(v.Attention) > 0 || v.StoreError != "":
			return fmt.Sprintf("%+v %s", v.Attention, v.StoreError)
		}
		return ""
	}

	revision := c.Put("/k", "1")
	ctl("create-backup", "--wait")
	name := c.BackupWith(revision)
	ctl("pin-backup", name, "--reason=a test")
	ctl("unpin-backup", name)
	c.RestartAll()
	c.WaitHealthy(1)
	c.WaitFor("nobody is needed after a restart", time.Minute, calm)

	c.Put("/k", "2")
	ctl("restore-backup", name, "--now", "--wait")
	if got, _ := c.ReadAll("/k"); got["/k"] != "1" {
		t.Errorf("after the restore: %v", got)
	}
	ctl("undo-restore", "--now", "--wait", "--yes")
	if got, _ := c.ReadAll("/k"); got["/k"] != "2" {
		t.Errorf("after the undo: %v", got)
	}
	// One that waits for a restart.
	ctl("restore-backup", name)
	c.RestartAll()
	c.WaitFor("the restore at start", 2*time.Minute, func() string {
		c.WaitHealthy(1)
		if got, _ := c.ReadAll("/k"); got["/k"] != "1" {
			return "it isn't restored"
		}
		return ""
	})
	c.WaitFor("nobody is needed", time.Minute, calm)
	c.WaitFor("the status in the store", 2*time.Minute, func() string {
		out, errOut, code := c.Ctl("status")
		if code != 0 {
			return fmt.Sprintf("exit code %d: %s%s", code, out, errOut)
		}
		return ""
	})
}
