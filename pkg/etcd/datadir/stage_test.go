package datadir

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/verify"
	"go.uber.org/zap"

	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
)

// stage stages all members from one snapshot and returns the result of the first.
func stage(t testing.TB, ms []*testMember, cfg StageConfig) database.StageResult {
	t.Helper()
	var first database.StageResult
	for i, m := range ms {
		c := cfg
		c.DataDir, c.Name, c.InitialCluster, c.Token = m.Cfg.DataDir, m.Cfg.Name, m.Cfg.InitialCluster, m.Cfg.Token
		if i == 1 {
			c.SelfExe = self(t) // the same must come out of a process of its own
		}
		res, err := Stage(t.Context(), c)
		must(t, err)
		id := res.MemberID
		if i == 0 {
			first = res
		}
		res.MemberID = first.MemberID
		if res != first {
			t.Errorf("member %d: %+v, member 0: %+v", i, res, first)
		}
		info, err := Inspect(m.Cfg.DataDir)
		if err != nil || info.State != Member || !info.Staged || info.MemberID != id || info.ClusterID != res.ClusterID || info.DBSize != res.SizeBytes {
			t.Errorf("data dir: %+v %v", info, err)
		}
	}
	return first
}

func TestStageThreeMembersFromASnapshot(t *testing.T) {
	pki := newPKI(t)
	old := makeMembers(t, 1, builtin(t), "old", &pki, "127.0.0.1")
	startAll(t, old)
	leaseID := fillStore(t, old[0], 300)
	path := t.TempDir() + "/snap.db"
	save(t, old[0], path)
	before, err := old[0].Client.Status(ctxOf(t))
	must(t, err)
	had, err := old[0].Client.Raw().Get(ctxOf(t), "/registry/", clientv3.WithPrefix())
	must(t, err)

	ms := makeMembers(t, 3, builtin(t), "new", &pki, "127.0.0.1")
	res := stage(t, ms, StageConfig{
		SnapshotPath: path, BumpRevision: bump, AtLeastRevision: before.Revision, MarkCompacted: true,
		DropPrefixes: [][]byte{[]byte("/registry/masterleases/")}, TargetVersion: etcd.CompiledVersion,
	})
	if res.Dropped != 2 || res.Revision <= before.Revision+bump || res.SnapshotRevision != before.Revision || res.Keys != had.Count-2 {
		t.Errorf("staged %+v", res)
	}
	must(t, verifyDir(ms[0].Cfg.DataDir))
	proven, err := database.Check(t.Context(), self(t), etcd.DBPath(ms[0].Cfg.DataDir), database.CheckOptions{})
	if err != nil || proven.Hash != res.Hash || proven.Keys != res.Keys || proven.Revision != res.Revision {
		t.Errorf("proof of the staged database: %+v %v, staged %+v", proven, err, res)
	}
	startAll(t, ms)
	for _, m := range ms {
		if _, staged, err := Staged(m.Cfg.DataDir); staged || err != nil {
			t.Errorf("a data dir in use counts as staged: %v", err)
		}
		if h := liveHash(t, m, res.Revision); h != res.Hash {
			t.Errorf("%s: HashKV %+v, staging said %+v", m.Cfg.Name, h, res.Hash)
		}
		st, err := m.Client.Status(ctxOf(t))
		must(t, err)
		if st.ClusterID != res.ClusterID || st.Revision != res.Revision {
			t.Errorf("%s: %+v", m.Cfg.Name, st)
		}
	}
	checkRestored(t, ms[1], had, leaseID, before.Revision)

	// Once more from what was restored: still upwards.
	again := t.TempDir() + "/again.db"
	eventually(t, "the follower has caught up", ms[2].Healthy) // by a linearizable read
	save(t, ms[2], again)
	m2 := makeMembers(t, 1, builtin(t), "third", nil, "127.0.0.1")
	res2 := stage(t, m2, StageConfig{SnapshotPath: again, BumpRevision: bump, MarkCompacted: true})
	if res2.Revision < res.Revision+bump || res2.Keys != res.Keys+1 {
		t.Errorf("second restore: %+v after %+v", res2, res)
	}
	startAll(t, m2)
	if h := liveHash(t, m2[0], 0); h != res2.Hash {
		t.Errorf("second restore: HashKV %+v, staging said %+v", h, res2.Hash)
	}
}

func verifyDir(dir string) error {
	return verify.Verify(verify.Config{DataDir: dir, ExactIndex: true, Logger: zap.NewNop()})
}

// checkRestored looks with a client's eyes, and leaves one more key.
func checkRestored(t *testing.T, m *testMember, had *clientv3.GetResponse, id clientv3.LeaseID, oldRev int64) {
	t.Helper()
	ctx, c := ctxOf(t), m.Client.Raw()
	now, err := c.Get(ctx, "/registry/", clientv3.WithPrefix())
	must(t, err)
	rest := map[string]string{}
	for _, kv := range had.Kvs {
		if !strings.HasPrefix(string(kv.Key), "/registry/masterleases/") {
			rest[string(kv.Key)] = fmt.Sprint(string(kv.Value), kv.ModRevision, kv.CreateRevision, kv.Version, kv.Lease)
		}
	}
	for _, kv := range now.Kvs {
		if rest[string(kv.Key)] != fmt.Sprint(string(kv.Value), kv.ModRevision, kv.CreateRevision, kv.Version, kv.Lease) {
			t.Errorf("key %s differs", kv.Key)
		}
		delete(rest, string(kv.Key))
	}
	if len(rest) > 0 {
		t.Errorf("lost: %v", rest)
	}
	if r := <-c.Watch(ctx, "/registry/", clientv3.WithPrefix(), clientv3.WithRev(oldRev)); !errors.Is(r.Err(), rpctypes.ErrCompacted) {
		t.Errorf("old watch got %v", r.Err())
	}
	ttl, err := c.TimeToLive(ctx, id, clientv3.WithAttachedKeys())
	must(t, err)
	if ttl.TTL <= 0 || len(ttl.Keys) != 1 || string(ttl.Keys[0]) != "/registry/leases/alive" {
		t.Errorf("lease: %+v", ttl)
	}
	_, err = c.Revoke(ctx, id)
	must(t, err)
	if g, err := c.Get(ctx, "/registry/leases/alive"); err != nil || g.Count != 0 {
		t.Errorf("key of a revoked lease: %v %v", g, err)
	}
	for _, k := range []string{"/registry/leases/alive", "/registry/after"} {
		_, err = c.Put(ctx, k, "new")
		must(t, err)
	}
}

func TestStageWithoutRaising(t *testing.T) {
	m := startOne(t, "plain-old")
	fillStore(t, m, 100)
	path := t.TempDir() + "/snap.db"
	save(t, m, path)
	want := liveHash(t, m, 0)
	ms := makeMembers(t, 1, builtin(t), "plain", nil, "127.0.0.1")
	res := stage(t, ms, StageConfig{SnapshotPath: path})
	if res.Hash != want {
		t.Errorf("hash %+v, source has %+v", res.Hash, want)
	}
	startAll(t, ms)
	if h := liveHash(t, ms[0], 0); h != want {
		t.Errorf("restored etcd's hash %+v, source has %+v", h, want)
	}
}

func TestStageIsIdempotentAndRefuses(t *testing.T) {
	m := startOne(t, "src")
	fillStore(t, m, 100)
	dir := t.TempDir()
	path := dir + "/snap.db"
	save(t, m, path)
	ms := makeMembers(t, 1, builtin(t), "dst", nil, "127.0.0.1")
	cfg := StageConfig{
		SnapshotPath: path, DataDir: ms[0].Cfg.DataDir, Name: ms[0].Cfg.Name, InitialCluster: ms[0].Cfg.InitialCluster,
		Token: ms[0].Cfg.Token, BumpRevision: bump, MarkCompacted: true,
	}
	good, err := os.ReadFile(path)
	must(t, err)
	refused := func(name string, want error, change func(c *StageConfig)) {
		t.Helper()
		c := cfg
		change(&c)
		_, err := Stage(t.Context(), c)
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
		if left, _ := filepath.Glob(filepath.Dir(cfg.DataDir) + "/*"); len(left) != 0 {
			t.Errorf("%s: left behind %v", name, left)
		}
	}
	bad := dir + "/bad.db"
	write := func(b []byte) func(c *StageConfig) {
		return func(c *StageConfig) { must(t, os.WriteFile(bad, b, 0o600)); c.SnapshotPath = bad }
	}
	flipped := bytes.Clone(good)
	flipped[len(flipped)/3] ^= 4
	refused("flipped", etcd.ErrBadSnapshot, write(flipped))
	refused("short", etcd.ErrBadSnapshot, write(good[:len(good)-100]))
	refused("empty", etcd.ErrBadSnapshot, write(nil))
	refused("without hash", etcd.ErrBadSnapshot, write(good[:len(good)-etcd.HashSize]))
	refused("cut, hash not asked for", etcd.ErrBadDatabase, func(c *StageConfig) { write(good[:8192])(c); c.SkipHash = true })
	refused("cut, in a process of its own", etcd.ErrBadDatabase, func(c *StageConfig) { write(good[:8192])(c); c.SkipHash = true; c.SelfExe = self(t) })
	refused("absent", os.ErrNotExist, func(c *StageConfig) { c.SnapshotPath = dir + "/absent" })
	refused("version", etcd.ErrVersion, func(c *StageConfig) { c.TargetVersion = "3.5.1" })
	refused("raised but not marked", etcd.ErrConfig, func(c *StageConfig) { c.MarkCompacted = false })
	refused("not a member", etcd.ErrConfig, func(c *StageConfig) { c.Name = "stranger" })
	refused("drops everything", etcd.ErrConfig, func(c *StageConfig) { c.DropPrefixes = [][]byte{{}} })
	slow := errors.New("throttled for good")
	refused("throttle", slow, func(c *StageConfig) { c.Throttle = func(context.Context, int) error { return slow } })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Stage(ctx, cfg); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}

	must(t, os.MkdirAll(cfg.DataDir+stagingSuffix+"/member/snap", 0o700)) // an attempt that crashed
	total := 0
	cfg.Throttle = func(_ context.Context, n int) error { total += n; return nil }
	first, err := Stage(t.Context(), cfg)
	must(t, err)
	if total != len(good) {
		t.Errorf("throttled %d of %d bytes", total, len(good))
	}
	cfg.SnapshotPath = dir + "/absent" // not needed any more
	if again, err := Stage(t.Context(), cfg); err != nil || again != first {
		t.Errorf("again: %+v %v", again, err)
	}
	other := cfg
	other.BumpRevision++
	if _, err := Stage(t.Context(), other); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("something else in the same place: %v", err)
	}
	// From a stream, and by moving the file: the same.
	cfg.DataDir, cfg.SnapshotPath, cfg.Snapshot = dir+"/streamed", "", bytes.NewReader(good)
	if res, err := Stage(t.Context(), cfg); err != nil || res != first {
		t.Errorf("from a stream: %+v %v", res, err)
	}
	cfg.DataDir, cfg.SnapshotPath, cfg.Snapshot, cfg.Consume = dir+"/moved", path, nil, true
	if res, err := Stage(t.Context(), cfg); err != nil || res != first {
		t.Errorf("moved: %+v %v", res, err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the consumed file is still there: %v", err)
	}
}

func TestDataDirStates(t *testing.T) {
	m := makeMembers(t, 1, builtin(t), "dirs", nil, "127.0.0.1")[0]
	want := func(s State) Info {
		t.Helper()
		info, err := Inspect(m.Cfg.DataDir)
		must(t, err)
		if info.State != s {
			t.Errorf("%v (%s), want %v", info.State, info.Reason, s)
		}
		return info
	}
	want(Absent)
	must(t, os.Mkdir(m.Cfg.DataDir, 0o700))
	want(Empty)
	must(t, os.MkdirAll(m.Cfg.DataDir+"/member/snap", 0o700))
	want(Empty)
	startAll(t, []*testMember{m})
	st, err := m.Client.Status(ctxOf(t))
	must(t, err)
	if info := want(Member); info.MemberID != st.MemberID || info.ClusterID != st.ClusterID || info.Staged {
		t.Errorf("%+v, etcd says %+v", info, st)
	}
	m.Stop(t)
	must(t, os.Rename(etcd.DBPath(m.Cfg.DataDir), m.Dir+"/db"))
	want(Broken)
	must(t, os.Rename(m.Dir+"/db", etcd.DBPath(m.Cfg.DataDir)))
	must(t, os.Truncate(etcd.DBPath(m.Cfg.DataDir), 1<<20))
	must(t, os.Rename(m.Cfg.DataDir+"/member/wal", m.Dir+"/wal"))
	want(Broken)
	must(t, os.Mkdir(m.Cfg.DataDir+"/member/wal", 0o700))
	must(t, os.WriteFile(m.Cfg.DataDir+"/member/wal/0.wal", []byte("garbage, long enough to be read"), 0o600))
	want(Broken)
}

// BenchmarkLarge measures proof and staging of a database of ETCD_TEST_MIB (default 64) mebibytes.
func BenchmarkLarge(b *testing.B) {
	mib := 64
	if v := os.Getenv("ETCD_TEST_MIB"); v != "" {
		var err error
		mib, err = strconv.Atoi(v)
		must(b, err)
	}
	path := filepath.Join(b.TempDir(), "db")
	largeStore(b, path, mib)
	for b.Loop() {
		start := time.Now()
		f, err := database.Check(b.Context(), self(b), path, database.CheckOptions{})
		must(b, err)
		b.ReportMetric(float64(time.Since(start).Milliseconds()), "prove-ms")
		dir := b.TempDir()
		cfg := StageConfig{
			SnapshotPath: path, DataDir: dir + "/d", Name: "a", InitialCluster: []etcd.Peer{{Name: "a", PeerURLs: []string{"http://127.0.0.1:1"}}}, Token: "t",
			BumpRevision: bump, MarkCompacted: true, SelfExe: self(b), DropPrefixes: [][]byte{[]byte("/registry/masterleases/")},
		}
		start = time.Now()
		res, err := Stage(b.Context(), cfg)
		must(b, err)
		b.ReportMetric(float64(time.Since(start).Milliseconds()), "stage-ms")
		if res.Keys != f.Keys {
			b.Errorf("staged %d keys, proved %d", res.Keys, f.Keys)
		}
		b.Logf("%d MiB, %d records, %d keys", f.SizeBytes>>20, f.Records, f.Keys)
		must(b, os.RemoveAll(cfg.DataDir))
	}
}

// largeStore writes a snapshot of about that size: 1 KiB values, three quarters of them the newest of their key.
func largeStore(b *testing.B, path string, mib int) {
	b.Helper()
	be := backend.New(backend.BackendConfig{Path: path, BatchInterval: time.Second, BatchLimit: 1000, UnsafeNoFsync: true, MmapSize: 1 << 32, Logger: zap.NewNop()})
	s := mvcc.NewStore(zap.NewNop(), be, &lease.FakeLessor{}, mvcc.StoreConfig{})
	value := make([]byte, 1024)
	n := mib * 840
	for i := range n {
		copy(value, fmt.Sprint(i))
		s.Put(fmt.Appendf(nil, "/registry/pods/namespace/pod-%08d", i%(n*3/4)), value, lease.NoLease)
	}
	must(b, s.Close())
	must(b, be.Close())
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(b, err)
	h := sha256.New()
	size, err := io.Copy(h, f)
	must(b, err)
	_, err = f.WriteAt(h.Sum(nil), size)
	must(b, err)
	must(b, f.Close())
}

// TestStagingDropsAlarms: what is made of a snapshot with an alarm in it has none.
func TestStagingDropsAlarms(t *testing.T) {
	m := makeMembers(t, 1, builtin(t), "alarm", nil, "127.0.0.1")[0]
	m.Cfg.QuotaBytes = 4 << 20
	startAll(t, []*testMember{m})
	value := string(make([]byte, 100<<10))
	eventually(t, "out of space", func() bool {
		_, err := m.Client.Raw().Put(ctxOf(t), "k", value)
		return err != nil
	})
	path := t.TempDir() + "/alarm.db"
	save(t, m, path)
	f, err := database.CheckFile(t.Context(), path, database.CheckOptions{})
	if err != nil || f.Alarms != 1 {
		t.Errorf("%+v %v", f, err)
	}
	staged := makeMembers(t, 1, builtin(t), "noalarm", nil, "127.0.0.1")
	stage(t, staged, StageConfig{SnapshotPath: path, BumpRevision: bump, MarkCompacted: true})
	startAll(t, staged)
	if alarms, err := staged[0].Client.Alarms(ctxOf(t)); err != nil || len(alarms) != 0 {
		t.Errorf("alarms after staging: %v %v", alarms, err)
	}
}
