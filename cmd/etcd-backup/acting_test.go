package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
)

// instanceMain is this program, but that it takes another instance for gone after a second.
func instanceMain(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	o, err := parse(args, os.Getenv, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitUsage
	}
	s, code, err := open(ctx, o, os.Getenv)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return code
	}
	s.beatEvery, s.fence.patience = 300*time.Millisecond, 2*time.Second
	if err := errors.Join(s.run(ctx), s.close()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitFailure
	}
	return exitOK
}

// child is an instance in a process of its own. Only the goroutine that has started it waits for it.
type child struct {
	process *os.Process
	ended   chan struct{} // Closed when it has ended.
	err     error         // How, once it has ended.
}

// wait waits until the instance has ended and says how.
func (c *child) wait() error {
	<-c.ended
	return c.err
}

// startInstance runs this program beside a member until the test ends. It ends without a word when it is killed.
func startInstance(t *testing.T, url, store string, args ...string) *child {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, append([]string{instance, "--cluster-name=test", "--backup-store=" + store,
		"--client-url=" + url, "--data-dir=" + t.TempDir(), "--change-log-interval=200ms", "--interval=1h"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	c, started := &child{ended: make(chan struct{})}, make(chan error)
	go func() { // The kernel takes the end of the thread that has started it for that of its parent.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			c.err = cmd.Wait()
			close(c.ended)
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	c.process = cmd.Process
	t.Cleanup(func() {
		_ = c.process.Kill()
		_ = c.wait()
		if data, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("the instance beside %s:\n%s", url, data)
		}
		_ = log.Close()
	})
	return c
}

// put writes a key and returns its revision.
func put(t *testing.T, url, key string) int64 {
	t.Helper()
	r, err := dial(t, url).Raw().Put(t.Context(), key, "value of "+key)
	if err != nil {
		t.Fatal(err)
	}
	return r.Header.Revision
}

// planned waits until a revision can be reached.
func planned(t *testing.T, c *catalog.Catalog, revision int64) *changelog.Plan {
	t.Helper()
	archive := changelog.Archive{Catalog: c}
	var p *changelog.Plan
	eventually(t, fmt.Sprintf("revision %d can be reached", revision), func() (ok bool) {
		var err error
		p, err = archive.Plan(t.Context(), changelog.Target{Revision: revision})
		return err == nil
	})
	return p
}

// reach replays to a revision and returns what a proof says of the data.
func reach(t *testing.T, c *catalog.Catalog, revision int64) database.Facts {
	t.Helper()
	p := planned(t, c, revision)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "db")
	if _, err := backup.FetchFile(t.Context(), c, p.Base, path, backup.FileOptions{}); err != nil {
		t.Fatal(err)
	}
	archive := changelog.Archive{Catalog: c}
	if _, err := archive.Replay(t.Context(), exe, path, p.Chain, p.Revision, nil); err != nil {
		t.Fatal(err)
	}
	f, err := database.Check(t.Context(), exe, path, database.CheckOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestChangesAreArchived runs the program beside a real etcd: what is written after the backup can
// be reached, a proof is written, the status page answers, and what came last is stored when it is
// asked to stop.
func TestChangesAreArchived(t *testing.T) {
	url := startEtcd(t, 1)[0]
	putKeys(t, url, 20)
	dir, port := t.TempDir(), freePort(t)
	c := openStore(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	code := make(chan int, 1)
	args := []string{"--cluster-name=a/b", "--backup-store=" + dir, "--client-url=" + url, "--data-dir=" + t.TempDir(),
		"--change-log-interval=200ms", "--verify-interval=1s",
		"--address=127.0.0.1", fmt.Sprintf("--metrics-port=%d", port)}
	go func() { code <- run(ctx, args, func(string) string { return "" }, io.Discard) }()
	eventually(t, "the first backup", func() bool { return len(backups(t, c).Backups) > 0 })
	middle := put(t, url, "one")
	last := put(t, url, "two")
	for revision, keys := range map[int64]int64{middle: 21, last: 22} {
		if f := reach(t, c, revision); f.Keys != keys || f.Revision != revision {
			t.Errorf("at revision %d there are %+v, want %d keys", revision, f, keys)
		}
	}
	if n := len(backups(t, c).Backups); n != 1 {
		t.Errorf("%d backups: the first one is enough to put the changes on", n)
	}
	name := backups(t, c).Backups[0].Name
	eventually(t, "the backup is verified", func() bool {
		p, err := c.Proof(t.Context(), name)
		return err == nil && p.Outcome == catalog.Proven && p.Revision == 21 && p.Hash != 0
	})
	get := func(path string) string {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return string(body)
	}
	for path, want := range map[string]string{
		"/healthz": "ok", "/status": "this node, term 1", "/status?": name + " is verified",
		"/status.json": fmt.Sprintf(`"archivedRevision": %d`, last),
		"/metrics":     "etcd_manager_backup_proof_failing", "/metrics?": "etcd_manager_backups 1",
	} {
		eventually(t, path+" says "+want, func() bool { return strings.Contains(get(path), want) })
	}
	final := put(t, url, "three")
	cancel()
	select {
	case got := <-code:
		if got != exitOK {
			t.Fatalf("exit code %d", got)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it doesn't stop")
	}
	archive := changelog.Archive{Catalog: c}
	p, err := archive.Plan(t.Context(), changelog.Target{Latest: true})
	if err != nil || p.Revision < last {
		t.Fatalf("after the stop revision %d can be reached, %v; want %d or %d", p.Revision, err, last, final)
	}
	r, _, err := c.Leader(t.Context())
	if err != nil || r.Term != 2 || !strings.HasSuffix(r.Instance, instanceEnded) {
		t.Errorf("the record says %+v, %v; want that nobody acts, with the number raised", r, err)
	}
}

// TestAnotherGoesOn kills the instance that acts, beside the leader of two members. The other one
// goes on where it has ended, without a gap, until one is beside the leader again.
func TestAnotherGoesOn(t *testing.T) {
	testutil.Long(t)
	urls := startEtcd(t, 2)
	dir := t.TempDir()
	c := openStore(t, dir)
	leader, follower := urls[0], urls[1]
	st, err := dial(t, leader).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if st.Leader != st.MemberID {
		leader, follower = follower, leader
	}
	holder := func() (catalog.LeaderRecord, cluster.MemberID) {
		r, _, err := c.Leader(t.Context())
		if err != nil {
			return r, 0
		}
		var m cluster.MemberID
		if _, err := fmt.Sscanf(r.Instance, instanceKind+"%x/", (*uint64)(&m)); err != nil {
			t.Fatal(err)
		}
		return r, m
	}
	member := func(url string) cluster.MemberID {
		st, err := dial(t, url).Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return st.MemberID
	}
	first := startInstance(t, leader, dir)
	eventually(t, "the leader's instance acts", func() bool { _, m := holder(); return m == member(leader) })
	startInstance(t, follower, dir)
	eventually(t, "a backup", func() bool { return len(backups(t, c).Backups) > 0 })
	planned(t, c, put(t, leader, "before"))
	if r, m := holder(); r.Term != 1 || m != member(leader) {
		t.Errorf("the record says %+v; want the first term beside the leader", r)
	}
	if err := first.process.Kill(); err != nil {
		t.Fatal(err)
	}
	between := put(t, leader, "between")
	eventually(t, "the other instance acts", func() bool { _, m := holder(); return m == member(follower) })
	last := put(t, leader, "after")
	for revision, keys := range map[int64]int64{between: 2, last: 3} {
		if f := reach(t, c, revision); f.Keys != keys {
			t.Errorf("at revision %d there are %d keys, want %d", revision, f.Keys, keys)
		}
	}
	if n := len(backups(t, c).Backups); n != 1 {
		t.Errorf("%d backups: there was a gap", n)
	}
	before, _ := holder()
	second := startInstance(t, leader, dir)
	eventually(t, "the leader's instance acts again", func() bool {
		r, m := holder()
		return m == member(leader) && r.Term == before.Term+1
	})
	last = put(t, leader, "again")
	planned(t, c, last)
	if err := second.process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := second.wait(); err != nil {
		t.Errorf("the instance that was asked to stop: %v", err)
	}
	eventually(t, "the other instance acts again", func() bool { _, m := holder(); return m == member(follower) })
	planned(t, c, put(t, leader, "at the end"))
	if n := len(backups(t, c).Backups); n != 2 {
		t.Errorf("%d backups; want the first one, and that of the instance that was started anew", n)
	}
}

// TestFence says who may act, by the record and for how long it has been standing still.
func TestFence(t *testing.T) {
	record := func(instance string) catalog.LeaderRecord {
		return catalog.LeaderRecord{Term: 5, Node: "n", Instance: instance}
	}
	for _, c := range []struct {
		what   string
		stored catalog.LeaderRecord
		leads  bool
		still  time.Duration
		want   role
	}{
		{"nobody ever", catalog.LeaderRecord{}, true, 0, acts},
		{"nobody ever, beside a follower", catalog.LeaderRecord{}, false, 0, standsBy},
		{"nobody ever, beside a follower, for a while", catalog.LeaderRecord{}, false, instancePatience, acts},
		{"beside another member", record(instanceKind + "b/x"), true, 0, acts},
		{"beside another member, and this is a follower", record(instanceKind + "b/x"), false, 0, standsBy},
		{"gone, and this is a follower", record(instanceKind + "b/x"), false, instancePatience, acts},
		{"beside the same member", record(instanceKind + "a/x"), true, 0, standsBy},
		{"beside one whose number begins alike", record(instanceKind + "a1/x"), true, 0, acts},
		{"gone, beside the same member", record(instanceKind + "a/x"), true, instancePatience, acts},
		{"stopped in order", record(instanceKind + "a/x" + instanceEnded), true, 0, acts},
		{"a manager", record("manager"), true, instancePatience, onlyBacksUp},
		{"a manager, beside a follower", record("manager"), false, instancePatience, standsBy},
		{"a manager that is gone", record("manager"), true, managerPatience, acts},
	} {
		f := fence{patience: instancePatience}
		if got, why := f.judge(c.stored, 0xa, c.leads, c.still); got != c.want || (got == acts) != (why == "") {
			t.Errorf("%s: role %d (%q), want %d", c.what, got, why, c.want)
		}
	}
}

// TestBesideAManager has a manager's record in the store: it is left alone, and backups are taken as ever.
func TestBesideAManager(t *testing.T) {
	url := startEtcd(t, 1)[0]
	dir := t.TempDir()
	c := openStore(t, dir)
	if _, err := c.TakeTerm(t.Context(), 7, "node-a", "manager"); err != nil {
		t.Fatal(err)
	}
	s := testSidecar(t, url, dir, time.Hour)
	s.o.changes = 200 * time.Millisecond
	s.step(t.Context())
	if n := len(backups(t, c).Backups); n != 1 || s.acting != nil {
		t.Errorf("%d backups, acting %t; want one, and the rest left to the manager", n, s.acting != nil)
	}
	if r, _, err := c.Leader(t.Context()); err != nil || r.Term != 7 || r.Node != "node-a" {
		t.Errorf("the record says %+v, %v", r, err)
	}
	if v := s.view(); !strings.Contains(v.Doing, "the manager on node node-a") {
		t.Errorf("the status page says %q", v.Doing)
	}
}
