package relay

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/blob/file"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/peer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	clusterName = "etcd"
	name        = "2026-01-30T01:02:03Z-000009"
	dataKey     = name + "/" + catalog.DataFile
	manifestKey = name + "/_etcd_manager_manifest.json"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// world is a store with a backup, as a node sees it that may not reach it, and managers that do.
type world struct {
	t *testing.T
	// files is the store, primary the node's broken way to it.
	files   blob.Store
	primary *blobtest.Faulty
	raw     []byte
	// store is what the node reads through: the fallback with the decorators that cmd puts around it.
	store    blob.Store
	fallback *fallback

	mu sync.Mutex
	// leader is who leads, leaderErr why nobody is known to.
	leader    *manager
	leaderErr error
	now       time.Time
	said      []string
}

// manager is another node with a gRPC server of its own.
type manager struct {
	id     cluster.NodeID
	store  *blobtest.Faulty
	server *grpc.Server
	conn   *grpc.ClientConn
}

func newWorld(t *testing.T, pages int) *world {
	files, err := file.New(t.TempDir())
	must(t, err)
	w := &world{t: t, files: files, primary: blobtest.NewFaulty(files), raw: snapshot(pages), now: time.Now()}
	facts := backup.Facts{ClusterName: clusterName, ClusterID: 1, MemberID: 2, Node: "a", EtcdVersion: "3.6.16",
		Spec: cluster.Spec{MemberCount: 3, EtcdVersion: "3.6.16"}, Revision: 42, Reason: "periodic"}
	_, err = backup.NewWriter(catalog.New(files), backup.Options{ToolVersion: "test"}).Write(t.Context(), name, facts,
		io.NopCloser(bytes.NewReader(w.raw)), nil)
	must(t, err)
	w.leader = w.manager("b", clusterName)
	w.use(w.primary)
	return w
}

// use puts the fallback, and around it what cmd puts there, on a primary.
func (w *world) use(primary blob.Store) {
	w.fallback = newFallback(blob.WithTimeouts(primary, blob.Timeouts{}), clusterName, w.lookup)
	w.fallback.memory.now = func() time.Time {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.now
	}
	w.fallback.memory.say = func(format string, args ...any) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.said = append(w.said, fmt.Sprintf(format, args...))
	}
	w.store = blob.Retry(w.fallback, blob.RetryPolicy{Base: 20 * time.Millisecond})
}

// snapshot makes what etcd sends: pages that are half random and half zeros, and the SHA-256 over them.
func snapshot(pages int) []byte {
	r := rand.NewChaCha8([32]byte{7})
	db := make([]byte, pages*4096, pages*4096+sha256.Size)
	for page := range slices.Chunk(db, 4096) {
		_, _ = r.Read(page[:2048]) // it never fails
	}
	sum := sha256.Sum256(db)
	return append(db, sum[:]...)
}

// manager starts another node that reaches the store.
func (w *world) manager(id cluster.NodeID, cluster string) *manager {
	w.t.Helper()
	m := &manager{id: id, store: blobtest.NewFaulty(w.files)}
	m.serve(w.t, cluster, m.store)
	return m
}

// serve starts the server; without a store it lacks the service, as an older manager does.
func (m *manager) serve(t *testing.T, cluster string, store blob.Store) {
	t.Helper()
	m.server, m.conn = serve(t, cluster, func(r grpc.ServiceRegistrar) {
		if store != nil {
			NewServer(store).Register(r)
		}
	})
}

// serve runs a gRPC server as managers do, and connects to it.
func serve(t *testing.T, cluster string, register func(grpc.ServiceRegistrar)) (*grpc.Server, *grpc.ClientConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	server := peer.NewServer(cluster, nil)
	register(server)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l) // it ends with Stop
	}()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
	must(t, err)
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
		<-done
	})
	return server, conn
}

// lookup is what the fallback asks for the leader.
func (w *world) lookup() (Leader, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.leaderErr != nil {
		return Leader{}, w.leaderErr
	}
	return Leader{Node: w.leader.id, Conn: w.leader.conn}, nil
}

// lead makes another manager the leader, or nobody for a reason.
func (w *world) lead(m *manager, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.leader, w.leaderErr = m, err
}

// pass lets time go by for what the fallback remembers.
func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

// fetch reads the whole backup into a file and compares it.
func (w *world) fetch() {
	w.t.Helper()
	must(w.t, w.fetchErr())
}

func (w *world) fetchErr() error {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), "snapshot.db")
	if _, err := backup.FetchFile(w.t.Context(), catalog.New(w.store), name, path, backup.FileOptions{}); err != nil {
		return err
	}
	got, err := os.ReadFile(path)
	must(w.t, err)
	if !bytes.Equal(got, w.raw) {
		w.t.Errorf("the snapshot has %d bytes, other ones than the %d that were backed up", len(got), len(w.raw))
	}
	return nil
}

// checkSaid checks what the operator has been told: each of the texts, in this order, and nothing else.
func (w *world) checkSaid(want ...string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.EqualFunc(w.said, want, strings.Contains) {
		w.t.Errorf("the log has %q; want lines with %q", w.said, want)
	}
}

// count is how many operations of a kind a store has seen.
func count(f *blobtest.Faulty, op string) int {
	n := 0
	for _, c := range f.Calls() {
		if c.Op == op {
			n++
		}
	}
	return n
}

// all reads an object to its end.
func all(t *testing.T, s blob.Store, key string, r blob.Range) ([]byte, blob.Info, error) {
	t.Helper()
	rc, info, err := s.Get(t.Context(), key, r)
	if err != nil {
		return nil, info, err
	}
	defer rc.Close()
	data, err := io.ReadAll(rc)
	return data, info, err
}

var (
	errNobody = errors.New("no leader is known")
	noMount   = func(op, key string) error {
		return &blob.Error{Op: op, Key: key, Kind: blob.ErrInvalid, Err: errors.New("is the file system mounted?")}
	}
	strange = func(op, key string) error {
		return &blob.Error{Op: op, Key: key, Err: errors.New("too many levels of symbolic links")}
	}
	denied = func(op, key string) error { return blobtest.Denied(op, key, "s3:GetObject") }
)
