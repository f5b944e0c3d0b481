package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/blob/file"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	etcdchild "github.com/etcd-manager/etcd-manager/pkg/etcd/child"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
	"github.com/etcd-manager/etcd-manager/pkg/prune"
	"github.com/etcd-manager/etcd-manager/pkg/retention"
)

// instance is what the test binary is called with to be this program, with shorter waits.
const instance = "instance"

// TestMain makes the test binary able to run as the etcd that is compiled in, and as this program.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if os.Args[1] == instance {
			os.Exit(instanceMain(os.Args[2:]))
		}
		if code, ok := etcdchild.Dispatch(os.Args[1:], append(children(), process.EtcdCommand())...); ok {
			os.Exit(code)
		}
	}
	os.Exit(m.Run())
}

func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		port := 12000 + rand.IntN(20000)
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// startEtcd runs a cluster of n members on loopback until the test ends, and returns their client URLs.
func startEtcd(t *testing.T, n int) []string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin, err := (&process.Binaries{Roots: []string{t.TempDir()}, Self: exe}).Find(etcd.CompiledVersion)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if urls := tryEtcd(t, bin, n); urls != nil {
			return urls
		}
	}
	t.Fatal("no etcd can be started, whatever the ports")
	return nil
}

// tryEtcd starts n members and waits until they serve. It returns nil if one of them ends: a port that was free may be taken meanwhile.
func tryEtcd(t *testing.T, bin process.Binary, n int) []string {
	t.Helper()
	var peers []etcd.Peer
	for i := range n {
		peers = append(peers, etcd.Peer{Name: fmt.Sprintf("m%d", i), PeerURLs: []string{fmt.Sprintf("http://127.0.0.1:%d", freePort(t))}})
	}
	var urls []string
	var procs []*process.Process
	for i, p := range peers {
		url := fmt.Sprintf("http://127.0.0.1:%d", freePort(t))
		dir := t.TempDir()
		cmd, err := process.Command(etcd.Config{Name: p.Name, DataDir: filepath.Join(dir, "data"), Token: "test",
			PeerURLs: p.PeerURLs, ListenPeerURLs: p.PeerURLs,
			ClientURLs: []string{url}, ListenClientURLs: []string{url}, InitialCluster: peers, NewCluster: true, LogLevel: "error"}, bin)
		if err != nil {
			t.Fatal(err)
		}
		proc, err := process.Start(cmd, process.StartOptions{PIDFile: filepath.Join(dir, "pid")})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if _, err := proc.Stop(context.Background(), 5*time.Second); err != nil {
				t.Errorf("stop member %d: %v", i, err)
			}
		})
		urls, procs = append(urls, url), append(procs, proc)
	}
	ended := false
	for _, url := range urls {
		c := dial(t, url)
		eventually(t, url+" is healthy", func() bool {
			for _, p := range procs {
				select {
				case <-p.Done():
					ended = true
				default:
				}
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			return ended || c.Health(ctx).Healthy
		})
	}
	if ended {
		return nil
	}
	return urls
}

func dial(t *testing.T, url string) *client.Client {
	t.Helper()
	c, err := client.Dial([]string{url}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
	}
}

func putKeys(t *testing.T, url string, n int) {
	t.Helper()
	c := dial(t, url)
	for i := range n {
		if _, err := c.Raw().Put(context.Background(), fmt.Sprintf("key%d", i), strings.Repeat("v", 1000)); err != nil {
			t.Fatal(err)
		}
	}
}

func openStore(t *testing.T, dir string) *catalog.Catalog {
	t.Helper()
	s, err := file.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	return catalog.New(s)
}

func backups(t *testing.T, c *catalog.Catalog) catalog.BackupList {
	t.Helper()
	l, err := c.Backups(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestSidecar runs the program beside a real etcd: a backup at the start, one an interval, retention, and a clean end.
func TestSidecar(t *testing.T) {
	url := startEtcd(t, 1)[0]
	putKeys(t, url, 50)
	dir, data := t.TempDir(), t.TempDir()
	for _, old := range []string{"2020-01-01T00:00:00Z-000000", "2021-01-01T00:00:00Z-000000"} {
		for _, f := range []string{"etcd.backup.gz", "_etcd_backup.meta"} {
			if err := os.MkdirAll(filepath.Join(dir, old), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, old, f), []byte("{}"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	c := openStore(t, dir)
	ctx, cancel := context.WithCancel(context.Background())
	code := make(chan int, 1)
	var errOut bytes.Buffer
	go func() {
		code <- run(ctx, []string{"-cluster-name=test", "--backup-store", dir, "--client-url=" + url, "--interval=1s",
			"--data-dir=" + data}, func(string) string { return "" }, &errOut)
	}()
	eventually(t, "three backups are there, and the old ones gone", func() bool {
		l := backups(t, c)
		return len(l.Backups) >= 3 && !slices.Contains(l.Names(), "2020-01-01T00:00:00Z-000000") &&
			!slices.Contains(l.Names(), "2021-01-01T00:00:00Z-000000")
	})
	cancel()
	select {
	case got := <-code:
		if got != exitOK {
			t.Fatalf("exit code %d: %s", got, errOut.String())
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it doesn't stop")
	}
	newest, _ := backups(t, c).NewestAny()
	path := filepath.Join(t.TempDir(), "snapshot.db")
	res, err := backup.FetchFile(context.Background(), c, newest.Name, path, backup.FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if m := res.Manifest; m == nil || m.ClusterName != "test" || m.EtcdVersion != etcd.CompiledVersion ||
		m.Revision != 51 || m.ClusterID == 0 || m.MemberID == 0 || m.RevisionAtMost != 51 || m.Reason != "periodic" {
		t.Errorf("manifest %+v", m)
	}
	if res.Info.Spec.MemberCount != 1 || res.Info.Spec.EtcdVersion != etcd.CompiledVersion {
		t.Errorf("meta %+v", res.Info)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	facts, err := database.Check(context.Background(), exe, path, database.CheckOptions{})
	if err != nil || facts.Keys != 50 || facts.Revision != 51 {
		t.Errorf("the snapshot holds %+v, %v", facts, err)
	}
}

func testSidecar(t *testing.T, url, dir string, interval time.Duration) *sidecar {
	t.Helper()
	store, err := file.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSidecar(options{clusterName: "test", store: dir, clientURLs: []string{url}, interval: interval,
		retention: prune.Policy{Backups: retention.Default()}}, store, openStore(t, dir), "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// TestOnlyBesideTheLeader runs two instances beside two members.
func TestOnlyBesideTheLeader(t *testing.T) {
	urls := startEtcd(t, 2)
	dir := t.TempDir()
	c := openStore(t, dir)
	ctx := context.Background()
	var leader, follower *sidecar
	for _, u := range urls {
		s := testSidecar(t, u, dir, time.Hour)
		st, err := s.status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if st.Leader == st.MemberID {
			leader = s
		} else {
			follower = s
		}
	}
	if wait := follower.step(ctx); wait != beatInterval || len(backups(t, c).Backups) != 0 {
		t.Fatalf("beside a follower: waits %s, %v", wait, backups(t, c).Names())
	}
	if wait := leader.step(ctx); wait != beatInterval || len(backups(t, c).Backups) != 1 {
		t.Fatalf("beside the leader: waits %s, %v", wait, backups(t, c).Names())
	}
	leader.step(ctx)
	if n := len(backups(t, c).Backups); n != 1 {
		t.Fatalf("%d backups before the interval is over", n)
	}
	st, err := follower.status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := leader.client.MoveLeader(ctx, st.MemberID); err != nil {
		t.Fatal(err)
	}
	follower.step(ctx)
	if n := len(backups(t, c).Backups); n != 1 {
		t.Fatalf("%d backups: a change of leader repeats a backup", n)
	}
	later := time.Now().Add(61 * time.Minute)
	follower.now = func() time.Time { return later }
	follower.step(ctx)
	leader.now = follower.now
	leader.step(ctx)
	if n := len(backups(t, c).Backups); n != 2 {
		t.Fatalf("%d backups after the interval", n)
	}
}

// TestFailuresAreTriedAgain has no etcd, and then a store that can't be written.
func TestFailuresAreTriedAgain(t *testing.T) {
	ctx := context.Background()
	s := testSidecar(t, fmt.Sprintf("http://127.0.0.1:%d", freePort(t)), t.TempDir(), 10*time.Second)
	short, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	waits := []time.Duration{s.step(short)}
	if waits[0] != firstRetry || s.failures != 1 {
		t.Fatalf("waits %v", waits)
	}
	for s.failures = range 30 {
		if w := min(firstRetry<<min(s.failures, 16), longestRetry, s.o.interval); w > s.o.interval || w <= 0 {
			t.Fatalf("waits %s after %d failures", w, s.failures)
		}
	}
	canceled, stop := context.WithCancel(ctx)
	stop()
	if err := s.run(canceled); err != nil {
		t.Fatalf("a stop in the middle of a failure: %v", err)
	}
}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		env  map[string]string
		want string
	}{
		{nil, nil, "--cluster-name is required"},
		{[]string{"--cluster-name=x", "extra"}, nil, `"extra"`},
		{[]string{"--cluster-name=x", "--interval=0s"}, nil, "--interval"},
		{[]string{"--cluster-name=x", "--client-cert-file=x"}, nil, "belong together"},
		{[]string{"--cluster-name=x", "--change-log-interval=1ms"}, nil, "--change-log-interval"},
		{[]string{"--cluster-name=x", "--verify-interval=-1s"}, nil, "--verify-interval"},
		{[]string{"--cluster-name=x", "--metrics-port=70000"}, nil, "--metrics-port"},
		{[]string{"--cluster-name=x", "--nonsense"}, nil, "nonsense"},
		{[]string{"--cluster-name=x", "--backup-store=relative"}, nil, "absolute"},
		{[]string{"--cluster-name=x"}, map[string]string{"ETCD_MANAGER_DAILY_BACKUPS_RETENTION": "1 year"},
			"ETCD_MANAGER_DAILY_BACKUPS_RETENTION"},
		{[]string{"--cluster-name=x", "--backup-store=/x", "--client-url=127.0.0.1:4001"}, nil, "--client-url"},
		{[]string{"--cluster-name=x", "--backup-store=/x", "--client-url=https://127.0.0.1:4001", "--client-ca-file=/does/not/exist"},
			nil, "/does/not/exist"},
		{[]string{"--cluster-name=x", "--backup-store=/x", "--client-ca-file=/x"}, nil, "without TLS"},
		{[]string{"--cluster-name=x", "--backup-store=/x", "--client-url=unix://x"}, nil, "unix:///path"},
		{[]string{"--cluster-name=x", "--backup-store=/x", "--client-url=http://127.0.0.1:1,https://127.0.0.1:2"}, nil, "all use TLS"},
		{[]string{"--cluster-name=x", "--backup-store=/x", "--client-user=x"}, nil, "--client-password-file"},
		{[]string{"--cluster-name=x", "--env-file=/does/not/exist"}, nil, "/does/not/exist"},
	} {
		var errOut bytes.Buffer
		code := run(context.Background(), c.args, func(k string) string { return c.env[k] }, &errOut)
		if code == exitOK || !strings.Contains(errOut.String(), c.want) {
			t.Errorf("%v: code %d, %q, want %q", c.args, code, errOut.String(), c.want)
		}
	}
	o, err := parse([]string{"-cluster-name", "x"}, func(k string) string {
		return map[string]string{"ETCD_MANAGER_HOURLY_BACKUPS_RETENTION": "2d", "ETCD_MANAGER_DAILY_BACKUPS_RETENTION": "1y"}[k]
	}, io.Discard)
	if err != nil || o.retention.Backups != (retention.Policy{Hourly: 48 * time.Hour, Daily: 8760 * time.Hour}) ||
		o.retention.Changes != 7*24*time.Hour || o.store != "/backups" || !slices.Equal(o.clientURLs, []string{"http://127.0.0.1:4001"}) ||
		o.interval != 15*time.Minute {
		t.Errorf("got %+v, %v", o, err)
	}
	if code := run(context.Background(), []string{"-h"}, func(string) string { return "" }, io.Discard); code != exitOK {
		t.Errorf("-h: code %d", code)
	}
}

// TestDatedAhead: a backup that a wrong clock has dated ahead, in a store whose clock was as wrong,
// costs one more backup and not one at each look.
func TestDatedAhead(t *testing.T) {
	url := startEtcd(t, 1)[0]
	putKeys(t, url, 1)
	for _, ahead := range []time.Duration{time.Minute, time.Hour, 365 * 24 * time.Hour} {
		dir := t.TempDir()
		later := time.Now().Add(ahead)
		wrong := testSidecar(t, url, dir, time.Hour)
		wrong.now = func() time.Time { return later }
		wrong.step(t.Context())
		wrong.rest(context.Canceled)
		name := backups(t, wrong.catalog).Names()[0]
		files, err := os.ReadDir(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if err := os.Chtimes(filepath.Join(dir, name, f.Name()), later, later); err != nil {
				t.Fatal(err)
			}
		}
		right := testSidecar(t, url, dir, time.Hour)
		right.begun = true // an instance that has looked before
		for range 5 {
			right.step(t.Context())
		}
		if got := backups(t, right.catalog).Names(); len(got) > 2 {
			t.Errorf("%s ahead: %v", ahead, got)
		}
		right.rest(context.Canceled)
	}
}
