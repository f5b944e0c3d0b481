package changelog

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/child"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// TestMain makes the test binary what the manager is: able to work on databases in a process of its own.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if code, ok := child.Dispatch(os.Args[1:], database.CheckCommand(), database.ValuesCommand(), ReplayCommand()); ok {
			os.Exit(code)
		}
		if os.Args[1] == readerCommand {
			os.Exit(readerMain(os.Args[2]))
		}
	}
	os.Exit(m.Run())
}

func members(dial ...Dialer) func() []Dialer { return func() []Dialer { return dial } }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func self(t testing.TB) string {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	return exe
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// freePort is below the range from which the kernel takes ports for connections.
func freePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := 12000 + rand.Intn(20000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			must(t, l.Close())
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// world is one etcd of some version, a store, and a recorder between them.
type world struct {
	t       testing.TB
	url     string
	version string
	proc    *process.Process
	cmd     process.CommandLine
	dir     string
	client  *clientv3.Client
	own     *client.Client
	store   *blobtest.Faulty
	catalog *catalog.Catalog
	archive *Archive
	gaps    chan string
	running atomic.Int32 // recorders
}

// newWorld starts an etcd. version is a name of servers.Binary with the full version behind a colon.
func newWorld(t testing.TB, binary, version string) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), version: version, gaps: make(chan string, 100)}
	w.store = blobtest.NewFaulty(blobtest.NewMemory())
	w.catalog = catalog.New(w.store)
	w.archive = &Archive{Catalog: w.catalog}
	w.url = fmt.Sprintf("http://127.0.0.1:%d", freePort(t))
	peer := fmt.Sprintf("http://127.0.0.1:%d", freePort(t))
	var err error
	w.cmd, err = process.Command(etcd.Config{
		Name: "m", Token: "t", NewCluster: true, DataDir: filepath.Join(w.dir, "data"), PeerURLs: []string{peer},
		ListenPeerURLs: []string{peer},
		ClientURLs:     []string{w.url}, ListenClientURLs: []string{w.url}, InitialCluster: []etcd.Peer{{Name: "m", PeerURLs: []string{peer}}},
		Heartbeat: 50 * time.Millisecond, ElectionTimeout: 500 * time.Millisecond,
	}, process.Binary{Version: version, Path: servers.Binary(t, binary)})
	must(t, err)
	w.start()
	t.Cleanup(func() { w.kill() })
	w.client, err = clientv3.New(clientv3.Config{Endpoints: []string{w.url}, Logger: zap.NewNop(), DialTimeout: 10 * time.Second})
	must(t, err)
	t.Cleanup(func() { w.client.Close() })
	w.own, err = client.Dial([]string{w.url}, nil)
	must(t, err)
	t.Cleanup(func() { w.own.Close() })
	w.serves()
	return w
}

func (w *world) start() {
	w.t.Helper()
	log, err := os.OpenFile(filepath.Join(w.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(w.t, err)
	defer log.Close()
	w.proc, err = process.Start(w.cmd, process.StartOptions{PIDFile: filepath.Join(w.dir, "pid"), Stdout: log, Stderr: log})
	must(w.t, err)
}

func (w *world) kill() {
	_ = w.proc.Signal(syscall.SIGKILL) // it may have ended
	<-w.proc.Done()
}

func (w *world) serves() {
	w.t.Helper()
	eventually(w.t, "etcd serves", func() bool {
		ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
		defer cancel()
		return w.own.Health(ctx).Healthy
	})
}

// record starts a recorder; the function that is returned ends it and waits for it.
func (w *world) record(change func(*Config)) (*Recorder, func()) {
	w.t.Helper()
	cfg := Config{
		ClusterName: "test", Node: "a", Term: 1, Catalog: w.catalog, Interval: 300 * time.Millisecond, SegmentBytes: 256 << 10,
		Members: members(func(context.Context) (Source, error) { return new(client.Streams).Dial([]string{w.url}, nil) }),
		Gap: func(reason string) {
			w.gaps <- reason
		},
	}
	if change != nil {
		change(&cfg)
	}
	r, err := NewRecorder(cfg)
	must(w.t, err)
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	w.running.Add(1)
	go func() {
		err := r.Run(ctx)
		w.running.Add(-1)
		done <- err
	}()
	ended := false
	stop := func() {
		if !ended {
			ended = true
			cancel()
			if err := <-done; err != nil && !errors.Is(err, errLost) {
				w.t.Error(err)
			}
		}
	}
	w.t.Cleanup(stop)
	return r, stop
}

// backup takes one, as a node does; meanwhile is what happens between the question for the revision and the snapshot.
func (w *world) backup(meanwhile ...func()) *catalog.Manifest {
	w.t.Helper()
	ctx := w.t.Context()
	asked := time.Now()
	st, err := w.own.Status(ctx)
	must(w.t, err)
	for _, do := range meanwhile {
		do()
	}
	snap, err := w.own.Snapshot(ctx)
	must(w.t, err)
	after, err := w.own.Status(ctx)
	must(w.t, err)
	l, err := w.catalog.Backups(ctx)
	must(w.t, err)
	m, err := backup.NewWriter(w.catalog, backup.Options{}).Write(ctx, catalog.NewBackupName(time.Now(), l.Names()), backup.Facts{
		ClusterName: "test", ClusterID: st.ClusterID, MemberID: st.MemberID, EtcdVersion: st.Version, Spec: cluster.Spec{MemberCount: 1},
		Revision: st.Revision, RevisionAtMost: after.Revision, RevisionAt: asked, Reason: "test",
	}, snap.Unverified(), nil)
	must(w.t, err)
	return m
}

// archived waits until the store has a revision.
func (w *world) archived(r *Recorder, rev int64) {
	w.t.Helper()
	eventually(w.t, fmt.Sprintf("revision %d is archived", rev), func() bool { return r.Status().Archived >= rev })
}

func (w *world) put(key, value string, opts ...clientv3.OpOption) int64 {
	w.t.Helper()
	r, err := w.client.Put(w.t.Context(), key, value, opts...)
	must(w.t, err)
	return r.Header.Revision
}

// replay carries out a plan, and returns what a proof finds in the snapshot that comes out, with
// the hash of an etcd that has compacted so far.
func (w *world) replay(p *Plan, compact int64) database.Facts {
	w.t.Helper()
	ctx := w.t.Context()
	path := filepath.Join(w.t.TempDir(), "db")
	_, err := backup.FetchFile(ctx, w.catalog, p.Base, path, backup.FileOptions{})
	must(w.t, err)
	_, err = w.archive.Replay(ctx, self(w.t), path, p.Chain, p.Revision, nil)
	must(w.t, err)
	f, err := database.Check(ctx, self(w.t), path, database.CheckOptions{HashCompact: compact})
	must(w.t, err)
	if f.Revision != p.Revision || !f.TrailingHash {
		w.t.Errorf("%+v, want revision %d", f, p.Revision)
	}
	return f
}

func (w *world) plan(t Target) *Plan {
	w.t.Helper()
	p, err := w.archive.Plan(w.t.Context(), t)
	must(w.t, err)
	return p
}

// tryReplay goes to a target from the oldest backup that does, as a node would.
func (w *world) tryReplay(t Target) error {
	w.t.Helper()
	p, err := w.archive.Plan(w.t.Context(), t)
	if err != nil {
		return err
	}
	path := filepath.Join(w.t.TempDir(), "db")
	if _, err := backup.FetchFile(w.t.Context(), w.catalog, p.Base, path, backup.FileOptions{}); err != nil {
		return err
	}
	_, err = w.archive.Replay(w.t.Context(), self(w.t), path, p.Chain, p.Revision, nil)
	return err
}
