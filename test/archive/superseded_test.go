package archive

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// changer puts and deletes keys until it is stopped or refused for good, and knows the last revision of which it was told.
func changer(t *testing.T, client *clientv3.Client) (stop func() (revision int64, keys map[string]bool)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	type result struct {
		revision int64
		keys     map[string]bool
	}
	ended := make(chan result, 1)
	go func() {
		r := result{keys: map[string]bool{}}
		for n := 0; ctx.Err() == nil; n++ {
			rctx, done := context.WithTimeout(ctx, time.Second)
			key := fmt.Sprintf("/c/%06d", n)
			if p, err := client.Put(rctx, key, "x"); err == nil {
				r.revision, r.keys[key] = p.Header.Revision, true
			}
			if old := fmt.Sprintf("/c/%06d", n-10); r.keys[old] && n%2 == 0 {
				if d, err := client.Delete(rctx, old); err == nil {
					r.revision = d.Header.Revision
					delete(r.keys, old)
				}
			}
			done()
		}
		ended <- r
	}()
	return func() (int64, map[string]bool) {
		cancel()
		r := <-ended
		return r.revision, r.keys
	}
}

// TestSupersededWhileItServes: running managers end the writes, store the last changes and stop etcd, over the loss of their leader, and go
// back only when the operator says so.
func TestSupersededWhileItServes(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	c := harness.Start(t, harness.Options{Nodes: 3, Args: []string{"--change-log-interval=1s", "--queue-poll-interval=1s"}})
	c.WaitHealthy(3)
	c.WaitBackups(1)
	run := func(want string, wantCode int, args ...string) string {
		t.Helper()
		out, errOut, code := c.Ctl(args...)
		if wantCode >= 0 && code != wantCode || !strings.Contains(out+errOut, want) {
			t.Fatalf("%v: exit code %d, want %d and %q\n%s%s", args, code, wantCode, want, out, errOut)
		}
		return out + errOut
	}
	stop := changer(t, c.Client())
	c.Put("/before", "1")
	run("--wait", 1, "supersede", "--by=elsewhere", "--yes")
	out := run("etcd is stopped on all members", 0, "supersede", "--by=elsewhere", "--yes", "--wait")
	last, keys := stop()
	if m := regexp.MustCompile(`archive has everything, up to revision (\d+)`).FindStringSubmatch(out); m == nil {
		t.Errorf("it isn't said up to where the archive has everything:\n%s", out)
	} else if stored, _ := strconv.ParseInt(m[1], 10, 64); stored != last || last == 0 {
		t.Errorf("the archive has everything up to revision %d, a client was told of %d", stored, last)
	}
	for _, n := range c.Nodes {
		if n.EtcdPID() != 0 || !n.Running() {
			t.Errorf("node %s: etcd is process %d, the manager runs: %t", n.Name, n.EtcdPID(), n.Running())
		}
	}
	run("the archive has everything", -1, "status")

	// A manager that starts doesn't start etcd.
	a := c.Node("a")
	a.Kill()
	a.Start()
	if code := a.WaitExit(30 * time.Second); code != 1 || a.EtcdPID() != 0 || !strings.Contains(a.LogText(), "undo-supersede") {
		t.Errorf("exit code %d, etcd %d\n%s", code, a.EtcdPID(), a.LogText())
	}

	// Only the operator brings it back, with all that was acknowledged.
	run("taken back", 0, "undo-supersede", "--yes")
	a.Start()
	c.WaitHealthy(3)
	c.WaitFor("etcd takes writes again", 30*time.Second, func() string {
		if _, err := c.Client().Put(t.Context(), "/after", "2"); err != nil {
			return err.Error()
		}
		return ""
	})
	all, _ := c.ReadAll("/c/")
	for k := range keys {
		if all[k] == "" {
			t.Errorf("%s is lost", k)
		}
	}
	if len(all) > len(keys)+1 { // one put whose answer was lost
		t.Errorf("%d keys, %d were acknowledged and not deleted", len(all), len(keys))
	}

	// The leader ends in the middle, with its etcd left running: the others go on, and its own is stopped when it is back.
	leader := c.WaitLeader()
	run("superseded by again", 0, "supersede", "--by=again", "--yes", "--force")
	c.WaitLog(30*time.Second, "etcd takes no more writes", leader)
	leader.Kill()
	run("a quorum of the members; no answer from "+leader.Name, 0, "supersede", "--by=again", "--yes", "--wait", "--wait-timeout=8s")
	if pid := leader.EtcdPID(); pid == 0 || syscall.Kill(pid, 0) != nil {
		t.Logf("the etcd of the leader that was killed has ended (%d)", pid)
	}
	leader.Start()
	run("etcd is stopped on all members", 0, "supersede", "--by=again", "--yes", "--wait")
	if pid := leader.EtcdPID(); pid != 0 {
		t.Errorf("etcd still runs on node %s", leader.Name)
	}
}
