package cluster

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// TestReload: a manager reads its configuration file again on SIGHUP. What may change is in force at once, the rest is named, and a broken
// file changes nothing. Its etcd goes on.
func TestReload(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	path := filepath.Join(t.TempDir(), "config.yaml")
	put := func(text string) {
		t.Helper()
		must(t, os.WriteFile(path+".new", []byte(text), 0o600))
		must(t, os.Rename(path+".new", path))
	}
	etcdLog := filepath.Join(t.TempDir(), "etcd.log")
	put("backup-interval: 1h\nform-grace: 1s\n")
	c := harness.Start(t, harness.Options{Nodes: 1, BackupInterval: -1, Args: []string{"--config=" + path, "--logging-format=json",
		"--etcd-log-file=" + etcdLog}})
	n := c.Nodes[0]
	c.WaitBackups(1)
	pid, etcd := n.PID(), n.EtcdPID()
	put("backup-interval: 1s\nform-grace: 2s\n")
	n.Signal(syscall.SIGHUP)
	c.WaitLog(10*time.Second, "was read again; changed: backup-interval")
	c.WaitLog(10*time.Second, "these changes are only in force after a restart: form-grace")
	c.WaitBackups(3)
	put("backup-interval: 1h\nform-grac")
	n.Signal(syscall.SIGHUP)
	c.WaitLog(10*time.Second, "config.yaml could not be read again, so everything stays as it is")
	c.WaitBackups(len(c.Backups()) + 2)
	put("form-grace: 1s\n") // the default: a quarter of an hour
	n.Signal(syscall.SIGHUP)
	c.WaitFor("the last change in the log", 10*time.Second, func() string {
		if text := n.LogText(); strings.Count(text, "was read again; changed: backup-interval") == 2 {
			return ""
		}
		return "it isn't there"
	})
	said, err := os.ReadFile(etcdLog)
	must(t, err)
	const version = `"caller":"etcdserver/server.go`
	if !strings.Contains(string(said), version) || strings.Contains(n.LogText(), version) {
		t.Errorf("the log of etcd isn't where it belongs; the file has %d bytes", len(said))
	}
	for l := range strings.Lines(n.LogText()) {
		var line struct{ TS, Level, Msg string }
		if err := json.Unmarshal([]byte(l), &line); err != nil || line.TS == "" || line.Level == "" || line.Msg == "" {
			t.Errorf("a line is no JSON: %v: %s", err, l)
		}
	}
	if n.PID() != pid || !n.Running() || n.EtcdPID() != etcd {
		t.Errorf("the manager was %d, etcd %d; now %d (running: %v) and %d", pid, etcd, n.PID(), n.Running(), n.EtcdPID())
	}
}
