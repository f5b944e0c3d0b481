package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"

	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/child"
	etcdclient "github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

// TestMain makes the test binary what the tool is, able to check databases as a child of itself; and an etcd.
func TestMain(m *testing.M) {
	if code, ok := operator.ChildMain(os.Args[1:]); ok {
		os.Exit(code)
	}
	tool := child.Command{Name: openToolCommand, Main: openTool}
	if code, ok := child.Dispatch(os.Args[1:], process.EtcdCommand(), tool); ok {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// real is a snapshot of a real etcd, made once for all tests, and what etcd says of it.
type real struct {
	data     []byte
	revision int64
	keys     int64
}

var snapshotOnce = sync.OnceValues(makeSnapshot)

func realSnapshot(t testing.TB) real {
	t.Helper()
	r, err := snapshotOnce()
	must(t, err)
	return r
}

// makeSnapshot runs an etcd, fills it and takes its snapshot.
func makeSnapshot() (r real, err error) {
	dir, err := os.MkdirTemp("", "ctl-etcd-")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	exe, err := os.Executable()
	if err != nil {
		return r, err
	}
	bin, err := (&process.Binaries{Roots: []string{dir}, Self: exe}).Find(etcd.CompiledVersion)
	if err != nil {
		return r, err
	}
	peer, client, err := freeURLs()
	if err != nil {
		return r, err
	}
	cmd, err := process.Command(etcd.Config{
		Name: "m", Token: "t", NewCluster: true, DataDir: filepath.Join(dir, "data"),
		InitialCluster: []etcd.Peer{{Name: "m", PeerURLs: []string{peer}}},
		PeerURLs:       []string{peer}, ListenPeerURLs: []string{peer}, ClientURLs: []string{client}, ListenClientURLs: []string{client},
		Heartbeat: 50 * time.Millisecond, ElectionTimeout: 500 * time.Millisecond,
	}, bin)
	if err != nil {
		return r, err
	}
	p, err := process.Start(cmd, process.StartOptions{PIDFile: filepath.Join(dir, "pid")})
	if err != nil {
		return r, err
	}
	defer func() { _, serr := p.Stop(context.Background(), 10*time.Second); err = errors.Join(err, serr) }()
	c, err := etcdclient.Dial([]string{client}, nil)
	if err != nil {
		return r, err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for !c.Health(ctx).Healthy {
		if ctx.Err() != nil {
			return r, ctx.Err()
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fillAndSave(ctx, c)
}

func freeURLs() (peer, client string, err error) {
	var urls []string
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", "", err
		}
		defer l.Close()
		urls = append(urls, "http://"+l.Addr().String())
	}
	return urls[0], urls[1], nil
}

func fillAndSave(ctx context.Context, c *etcdclient.Client) (r real, err error) {
	kv := c.Raw()
	lease, err := kv.Grant(ctx, 3600)
	if err != nil {
		return r, err
	}
	put := func(key string, size int, opts ...clientv3.OpOption) {
		if _, perr := kv.Put(ctx, key, strings.Repeat("v", size), opts...); err == nil {
			err = perr
		}
	}
	for i := range 20 {
		put(fmt.Sprintf("/registry/pods/default/p%d", i), 100)
		put(fmt.Sprintf("/registry/pods/default/p%d", i), 200)
		put(fmt.Sprintf("/registry/events/default/e%d", i%10), 10, clientv3.WithLease(lease.ID))
	}
	put("/registry/secrets/default/big", 50000)
	put("/registry/masterleases/10.0.0.1", 20, clientv3.WithLease(lease.ID))
	put("compact_rev_key", 5)
	put("\xff\x00/binary", 5)
	put("/registry/secrets/default/deleted", 500)
	if err != nil {
		return r, err
	}
	if _, err := kv.Delete(ctx, "/registry/secrets/default/deleted"); err != nil {
		return r, err
	}
	all, err := kv.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithCountOnly())
	if err != nil {
		return r, err
	}
	s, err := c.Snapshot(ctx)
	if err != nil {
		return r, err
	}
	defer s.Close()
	r.revision, r.keys = all.Header.Revision, all.Count
	r.data, err = io.ReadAll(s)
	return r, err
}

// takeBackup makes a backup of a snapshot in the world's store.
func (w *world) takeBackup(name string, data []byte, revision int64) {
	w.t.Helper()
	_, err := backup.NewWriter(w.catalog(), backup.Options{Now: func() time.Time { return w.now }}).Write(context.Background(),
		name, backup.Facts{
			ClusterName: "main", Node: "a", EtcdVersion: etcd.CompiledVersion,
			Spec: cluster.Spec{MemberCount: 3, EtcdVersion: etcd.CompiledVersion}, Revision: revision, Reason: "periodic",
		}, io.NopCloser(bytes.NewReader(data)), nil)
	must(w.t, err)
}

// foreign stores a backup as other tools do, without a manifest.
func (w *world) foreign(name string, data []byte) {
	w.t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err := z.Write(data)
	must(w.t, errors.Join(err, z.Close()))
	w.put(name+"/etcd.backup.gz", b.String())
	w.put(name+"/_etcd_backup.meta", `{"etcdVersion":"3.6.16","timestamp":"1516000000","clusterSpec":{"memberCount":3}}`)
}

// rehash damages a database and puts the right checksum behind it, so that only a look at every page finds it out.
func rehash(data []byte, damage func(db []byte)) []byte {
	db := bytes.Clone(data[:len(data)-sha256.Size])
	damage(db)
	sum := sha256.Sum256(db)
	return append(db, sum[:]...)
}

// steady takes out of a transcript what differs from run to run.
func (w *world) steady() {
	text := w.log.String()
	for _, r := range [][2]string{{`(HashKV:? *)\d+`, "$1#"}, {`\b[\d.]+ [KM]iB`, "#.# MiB"},
		{`at byte \d+`, "at byte #"}, {`\d+ bytes with SHA-256 \w+…`, "# bytes with SHA-256 #…"},
		{`in a process .*`, "in a process #"}, {regexp.QuoteMeta(etcd.CompiledVersion), "#.#.#"},
		{`/\S*etcd-manager-ctl-\d+`, "TMP"}, {`\b\d+ (bytes|pages)`, "# $1"}, {`page \d+`, "page #"},
		{`(bad database: )bucket "\w+": `, "$1"}} {
		text = regexp.MustCompile(r[0]).ReplaceAllString(text, r[1])
	}
	w.log.Reset()
	w.log.WriteString(text)
}

func TestVerify(t *testing.T) {
	r := realSnapshot(t)
	w := newWorld(t)
	t.Chdir(t.TempDir())
	const tmp = "tmp"
	must(t, os.Mkdir(tmp, 0o700))
	w.do("verify-backup", "latest")
	w.do("verify-backup", "--all")
	w.takeBackup("2026-02-01T10:00:00Z-000000", r.data, r.revision)
	w.do("verify-backup", "latest", "--temp-dir="+tmp)
	w.foreign("2026-02-01T09:00:00Z-000000", r.data)
	w.do("verify-backup", "2026-02-01T09:00:00Z-000000")
	w.do("verify-backup", "2026-02-01T09:00:00Z-00000")
	w.spec(3, "3.99.0")
	w.do("verify-backup", "latest")
	w.do("verify-backup", "--all")
	// Each kind of damage has its words.
	stored := w.content("2026-02-01T09:00:00Z-000000/etcd.backup.gz")
	w.foreign("2026-02-01T08:00:00Z-000001", r.data)
	w.put("2026-02-01T08:00:00Z-000001/etcd.backup.gz", stored[:len(stored)/2])
	w.foreign("2026-02-01T08:00:00Z-000002", rehash(r.data, func(db []byte) { clear(db[3*4096:]) }))
	w.takeBackup("2026-02-01T08:00:00Z-000003", r.data, r.revision+1)
	w.takeBackup("2026-02-01T08:00:00Z-000004", r.data, r.revision)
	w.put("2026-02-01T08:00:00Z-000004/_etcd_manager_manifest.json", "{}")
	w.do("verify-backup", "2026-02-01T08:00:00Z-000002", "--temp-dir="+tmp)
	w.do("verify-backup", "2026-02-01T08:00:00Z-000003", "--temp-dir="+tmp)
	w.do("verify-backup", "--all", "--temp-dir="+tmp)
	var all []map[string]any
	code, out, _ := w.exec("--backup-store=mem://x", "verify-backup", "--all", "-o", "json")
	must(t, json.Unmarshal([]byte(out), &all))
	if code != exitFailure || len(all) != 6 || all[0]["sound"] != true || all[0]["keys"] != float64(r.keys) ||
		all[2]["sound"] != false || all[2]["problem"] == "" {
		t.Errorf("%d %s", code, out)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	w.steady()
	w.golden("verify")
}

// TestVerifyUnknown: a backup that can't be looked at is not called bad.
func TestVerifyUnknown(t *testing.T) {
	r := realSnapshot(t)
	w := newWorld(t)
	w.takeBackup("2026-02-01T10:00:00Z-000000", r.data, r.revision)
	code, _, errOut := w.exec("--backup-store=mem://x", "verify-backup", "latest", "--temp-dir=/nowhere/at/all")
	if code != exitFailure || strings.Contains(errOut, "BAD") || !strings.Contains(errOut, "could not be checked") {
		t.Errorf("%d %s", code, errOut)
	}
	f := blobtest.NewFaulty(w.store)
	f.Add(blobtest.Fault{Op: "get", Match: func(key string) bool { return strings.HasSuffix(key, catalog.DataFile) },
		Err: blobtest.Denied("get", "x", "s3:GetObject")})
	w.store = f
	for _, args := range [][]string{{"verify-backup", "latest"}, {"verify-backup", "--all"}, {"inspect", "latest"},
		{"download-backup", "latest", t.TempDir()}} {
		code, _, errOut := w.exec(append([]string{"--backup-store=mem://x"}, args...)...)
		if code != exitStore || strings.Contains(errOut, "BAD") {
			t.Errorf("%v: %d %s", args, code, errOut)
		}
	}
}

func TestDownload(t *testing.T) {
	r := realSnapshot(t)
	w := newWorld(t)
	const name = "2026-02-01T10:00:00Z-000000"
	w.takeBackup(name, r.data, r.revision)
	dir := t.TempDir()
	t.Chdir(dir)
	w.do("download-backup", "latest")
	w.do("download-backup", "latest")
	must(t, os.Mkdir("sub", 0o700))
	w.do("download-backup", name, "sub")
	must(t, os.WriteFile("old.db", []byte("old"), 0o600))
	w.do("download-backup", name, "old.db")
	if got, err := os.ReadFile("old.db"); err != nil || string(got) != "old" {
		t.Errorf("a file was replaced without --force: %q %v", got, err)
	}
	w.do("download-backup", name, "old.db", "--force", "-o", "json")
	w.do("download-backup", name, "absent/x.db")
	for _, file := range []string{name + ".db", "sub/" + name + ".db", "old.db"} {
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, r.data) {
			t.Errorf("%s: %d bytes, %v; want the %d of the snapshot", file, len(got), err, len(r.data))
		}
	}
	checkByEtcdutl(t, "old.db", r)
	// A bad one leaves nothing.
	w.foreign("bad", r.data[:len(r.data)-100])
	w.do("download-backup", "bad", "bad.db")
	if left, err := filepath.Glob("*"); err != nil || len(left) != 3 {
		t.Errorf("there is %v, %v", left, err)
	}
	if left, err := filepath.Glob(".*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	w.log = redact(&w.log, `"sha256": "\w+"`, `"sha256": "#"`)
	w.log = redact(&w.log, `"sizeBytes": \d+`, `"sizeBytes": #`)
	w.log = redact(&w.log, `ctl-\d+`, `ctl-#`)
	w.steady()
	w.golden("download")
}

// checkByEtcdutl has etcd's own tool look at a file and restore it, as the command says that was printed.
func checkByEtcdutl(t *testing.T, file string, r real) {
	t.Helper()
	tool := snapshot.NewV3(zap.NewNop())
	st, err := tool.Status(file)
	must(t, err)
	if st.Revision != r.revision {
		t.Errorf("etcdutl sees revision %d, want %d", st.Revision, r.revision)
	}
	must(t, tool.Restore(snapshot.RestoreConfig{SnapshotPath: file, Name: "m",
		OutputDataDir: filepath.Join(t.TempDir(), "data"), PeerURLs: []string{"http://127.0.0.1:2380"},
		InitialCluster: "m=http://127.0.0.1:2380", InitialClusterToken: "t", RevisionBump: 1000000000, MarkCompacted: true}))
}

func redact(log *strings.Builder, pattern, by string) (out strings.Builder) {
	out.WriteString(regexp.MustCompile(pattern).ReplaceAllString(log.String(), by))
	return out
}

func TestInspect(t *testing.T) {
	r := realSnapshot(t)
	w := newWorld(t)
	w.takeBackup("2026-02-01T10:00:00Z-000000", r.data, r.revision)
	w.do("inspect", "latest")
	w.do("inspect", "latest", "--depth=1", "--top=2")
	var out struct {
		Revision, Keys, LeasedKeys int64
		Leases, PrefixCount        int
		Prefixes                   []operator.Prefix
	}
	code, text, errOut := w.exec("--backup-store=mem://x", "inspect", "latest", "-o", "json", "--depth=3", "--top=0")
	if code != 0 {
		t.Fatal(errOut)
	}
	must(t, json.Unmarshal([]byte(text), &out))
	if out.Revision != r.revision || out.Keys != r.keys || out.LeasedKeys != 11 || out.Leases != 1 ||
		out.PrefixCount != 6 || len(out.Prefixes) != 6 {
		t.Errorf("%s", text)
	}
	sum := operator.Prefix{}
	for _, p := range out.Prefixes {
		sum.Keys, sum.LeasedKeys = sum.Keys+p.Keys, sum.LeasedKeys+p.LeasedKeys
	}
	if sum.Keys != r.keys || sum.LeasedKeys != 11 {
		t.Errorf("the prefixes have %d keys, %d with a lease", sum.Keys, sum.LeasedKeys)
	}
	if p := out.Prefixes[0]; p.Prefix != "/registry/secrets/default/" || p.Keys != 1 ||
		p.Bytes != int64(50000+len("/registry/secrets/default/big")) {
		t.Errorf("the largest is %+v", p)
	}
	w.foreign("2026-02-01T11:00:00Z-000000", rehash(r.data, func(db []byte) { clear(db[3*4096:]) }))
	if code, _, errOut := w.exec("--backup-store=mem://x", "inspect", "latest"); code != exitFailure ||
		!strings.Contains(errOut, "2026-02-01T11:00:00Z-000000") {
		t.Errorf("%d %s", code, errOut)
	}
	w.steady()
	w.golden("inspect")
}

func TestImport(t *testing.T) {
	r := realSnapshot(t)
	w := newWorld(t)
	dir := t.TempDir()
	t.Chdir(dir)
	const tmp = "tmp"
	must(t, os.Mkdir(tmp, 0o700))
	file := func(name string, data []byte) string {
		must(t, os.WriteFile(name, data, 0o600))
		return name
	}
	gzipped := func(data []byte) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, err := z.Write(data)
		must(t, errors.Join(err, z.Close()))
		return b.Bytes()
	}
	w.do("import-backup", file("snapshot.db", r.data))
	w.do("import-backup", file("etcd.backup.gz", gzipped(r.data)), "--reason=from the other store",
		"--etcd-version=v3.6.9", "--temp-dir="+tmp)
	w.do("import-backup", file("copied.db", r.data[:len(r.data)-sha256.Size]))
	w.do("import-backup", "copied.db", "--skip-hash-check")
	w.do("import-backup", file("cut.gz", gzipped(r.data)[:1000]), "--temp-dir="+tmp)
	w.do("import-backup", file("cut.db", r.data[:len(r.data)/2/4096*4096]), "--skip-hash-check")
	w.do("import-backup", file("empty", nil))
	w.do("import-backup", file("bad.db", rehash(r.data, func(db []byte) { clear(db[3*4096:]) })))
	w.do("import-backup", ".")
	w.do("import-backup", "snapshot.db", "--etcd-version=new")
	w.do("list-backups")
	w.do("list-backups", "-o", "wide")
	l, err := w.catalog().Backups(context.Background())
	must(t, err)
	if len(l.Backups) != 3 || len(l.Leftovers) != 0 {
		t.Fatalf("there is %+v", l)
	}
	for i, want := range []string{"3.6.0", "3.6.9", "3.6.0"} {
		m, err := w.catalog().Manifest(context.Background(), l.Backups[i].Name)
		must(t, err)
		if m.ClusterName != "" || m.Revision != r.revision || m.Keys != r.keys || m.EtcdVersion != want {
			t.Errorf("%s: %+v", m.Backup, m)
		}
		var b bytes.Buffer
		if _, err := backup.Fetch(context.Background(), w.catalog(), m.Backup, &b, nil); err != nil || !bytes.Equal(b.Bytes(), r.data) {
			t.Errorf("%s comes back as %d bytes, %v", m.Backup, b.Len(), err)
		}
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	w.steady()
	w.golden("import")
}

// TestImportNameTaken: another backup of the same second has taken the name after the listing.
func TestImportNameTaken(t *testing.T) {
	r := realSnapshot(t)
	w := newWorld(t)
	path := filepath.Join(t.TempDir(), "snapshot.db")
	must(t, os.WriteFile(path, r.data, 0o600))
	mem := w.store
	w.store = &firstPut{Store: mem, before: func(key string) { w.put2(mem, key) }}
	if code, out, errOut := w.exec("--backup-store=mem://x", "import-backup", path); code != 0 ||
		!strings.Contains(out, "imported: 2026-02-01T12:00:00Z-000001") {
		t.Errorf("%d %s%s", code, out, errOut)
	}
}

func (w *world) put2(s blob.Store, key string) {
	w.t.Helper()
	dir, _, _ := strings.Cut(key, "/")
	for _, file := range []string{"/etcd.backup.gz", "/_etcd_backup.meta"} {
		_, err := s.Put(context.Background(), dir+file, strings.NewReader("another's"), blob.PutOptions{})
		must(w.t, err)
	}
}

// firstPut lets something happen before the first object is stored.
type firstPut struct {
	blob.Store
	before func(key string)
}

func (s *firstPut) Put(ctx context.Context, key string, body io.Reader, o blob.PutOptions) (blob.Info, error) {
	if s.before != nil {
		s.before(key)
		s.before = nil
	}
	return s.Store.Put(ctx, key, body, o)
}

// TestDownloadNeverReplaces: a file that comes while the backup is fetched stays what it is.
func TestDownloadNeverReplaces(t *testing.T) {
	r := realSnapshot(t)
	w := newWorld(t)
	w.takeBackup("2026-02-01T10:00:00Z-000000", r.data, r.revision)
	path := filepath.Join(t.TempDir(), "x.db")
	w.store = &onGet{w.store, func(key string) {
		if strings.HasSuffix(key, catalog.DataFile) {
			must(t, os.WriteFile(path, []byte("mine"), 0o600))
		}
	}}
	code, _, errOut := w.exec("--backup-store=mem://x", "download-backup", "latest", path)
	if got, err := os.ReadFile(path); err != nil || string(got) != "mine" || code != exitFailure || !strings.Contains(errOut, "exists") {
		t.Errorf("%d %s: %q %v", code, errOut, got, err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// onGet lets something happen before an object is read.
type onGet struct {
	blob.Store
	before func(key string)
}

func (s *onGet) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	s.before(key)
	return s.Store.Get(ctx, key, r)
}
