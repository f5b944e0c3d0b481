package preflight

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// text puts findings into lines.
func text(found []Finding) string {
	var b strings.Builder
	for _, f := range found {
		b.WriteString(string(f.Level) + " " + f.Check + ": " + f.Text + " | " + f.Do + "\n")
	}
	return b.String()
}

// want fails unless a finding has this level and check, and these words; problems and warnings have a way out.
func want(t *testing.T, found []Finding, level Level, check string, words ...string) {
	t.Helper()
next:
	for _, f := range found {
		if f.Level != level || f.Check != check {
			continue
		}
		for _, w := range words {
			if !strings.Contains(f.Text+" | "+f.Do, w) {
				continue next
			}
		}
		if level == Problem && f.Do == "" {
			t.Errorf("no way out of %+v", f)
		}
		return
	}
	t.Errorf("no %s of %s with %q in\n%s", level, check, words, text(found))
}

func TestJudgeClock(t *testing.T) {
	at := time.Date(2026, 2, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name   string
		stored time.Duration // by the store's clock, from at; the request took from at to at+200ms
		level  Level
		words  string
	}{
		{"whole seconds", -900 * time.Millisecond, OK, "agree"},
		{"a little ahead", 2 * time.Second, OK, "agree"},
		{"behind", 20 * time.Second, Warning, "20s behind the store's"},
		{"ahead", -20 * time.Second, Warning, "20s ahead of the store's"},
		{"far behind", time.Hour, Problem, "1h0m0s behind"},
		{"far ahead", -time.Hour, Problem, "S3 refuses"},
	} {
		f := judgeClock(skew(at, at.Add(200*time.Millisecond), at.Add(c.stored)))
		if f.Level != c.level || !strings.Contains(f.Text, c.words) || (f.Level == OK) != (f.Do == "") {
			t.Errorf("%s: %+v", c.name, f)
		}
	}
}

func TestJudgeDisk(t *testing.T) {
	for _, c := range []struct {
		speed Speed
		level Level
	}{
		{Speed{Median: time.Millisecond, P99: 9 * time.Millisecond, Max: time.Second}, OK},
		{Speed{Median: time.Millisecond, P99: 11 * time.Millisecond}, Warning},
		{Speed{Median: 100 * time.Millisecond, P99: 200 * time.Millisecond}, Problem},
	} {
		if f := c.speed.judge("/x"); f.Level != c.level || (f.Level == OK) != (f.Do == "") {
			t.Errorf("%+v: %+v", c.speed, f)
		}
	}
	for _, c := range []struct {
		free, quota int64
		level       Level
	}{
		{20 * gib, 8 * gib, OK}, {20 * gib, 2 * gib, OK}, {10 * gib, 8 * gib, Warning}, {leastSpace - 1, gib / 4, Problem},
	} {
		if f := judgeSpace("/x", c.free, c.quota); f.Level != c.level || (f.Level == OK) != (f.Do == "") {
			t.Errorf("%d, %d: %+v", c.free, c.quota, f)
		}
	}
}

// TestMeasureSync measures a real disk, and leaves nothing.
func TestMeasureSync(t *testing.T) {
	dir := t.TempDir()
	s, err := MeasureSync(t.Context(), dir)
	testutil.Must(t, err)
	if s.Count == 0 || s.Median <= 0 || s.P99 < s.Median || s.Max < s.P99 {
		t.Errorf("%+v", s)
	}
	if list, _ := os.ReadDir(dir); len(list) > 0 {
		t.Errorf("it left %v", list)
	}
	if _, err := MeasureSync(t.Context(), filepath.Join(dir, "absent")); err == nil {
		t.Error("a directory that isn't there can be measured")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := MeasureSync(ended, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// fast is a disk that needs no time.
func fast(context.Context, string) (Speed, error) { return Speed{Count: 1}, nil }

func TestDataDir(t *testing.T) {
	root := t.TempDir()
	dir := func(name string, perm os.FileMode, content ...string) string {
		path := filepath.Join(root, name)
		testutil.Must(t, os.Mkdir(path, 0o700))
		for _, c := range content {
			testutil.Must(t, os.Mkdir(filepath.Join(path, c), 0o700))
		}
		testutil.Must(t, os.Chmod(path, perm))
		return path
	}
	file := filepath.Join(root, "file")
	testutil.Must(t, os.WriteFile(file, nil, 0o600))
	for _, c := range []struct {
		dir     string
		mounted bool
		level   Level
		words   string
	}{
		{filepath.Join(root, "a", "b"), false, OK, "will be made"},
		{dir("empty", 0o700), false, OK, "no data yet"},
		{dir("used", 0o700, "state"), false, OK, "continues with them"},
		{dir("etcd", 0o700, "member"), false, Problem, "adopt"},
		{dir("open", 0o777), false, Problem, "chmod 700"},
		{file, false, Problem, "is a file"},
		{filepath.Join(root, "absent"), true, Problem, "mount the volume"},
		{dir("unmounted", 0o700), true, Problem, "nothing is mounted"},
	} {
		r := &run{ctx: t.Context(), Config: Config{DataDir: c.dir, Mounted: c.mounted, Sync: fast}}
		r.disk()
		want(t, r.found, c.level, "data-dir", c.words)
		if _, err := os.Stat(filepath.Join(root, "a")); err == nil {
			t.Fatal("the data dir was made")
		}
	}
	if at := existing(filepath.Join(root, "x", "y", "z")); at != root {
		t.Errorf("the next directory is %s", at)
	}
}

func TestNames(t *testing.T) {
	lookup := func(_ context.Context, host string) ([]netip.Addr, error) {
		switch host {
		case "good":
			return []netip.Addr{netip.MustParseAddr("10.0.0.1")}, nil
		case "own":
			return []netip.Addr{netip.MustParseAddr("127.0.1.1")}, nil
		}
		return nil, errors.New("no such host")
	}
	hosts := filepath.Join(t.TempDir(), "hosts")
	r := &run{ctx: t.Context(), Config: Config{Names: []string{"good", "own", "absent", "good"}, Lookup: lookup, HostsFile: hosts,
		Address: netip.MustParseAddr("10.0.0.1")}}
	r.names()
	r.hostsFile()
	want(t, r.found, OK, "names", "10.0.0.1")
	want(t, r.found, Problem, "names", "own resolves to loopback", "127.0.1.1")
	want(t, r.found, Problem, "names", "absent doesn't resolve", "DNS")
	want(t, r.found, Problem, "names", hosts, "--hosts-file")
	if len(r.found) != 4 {
		t.Error(text(r.found))
	}
}

// TestStoreSays is about what the store says of the cluster.
func TestStoreSays(t *testing.T) {
	look := func(c *catalog.Catalog, clusterName string) []Finding {
		r := &run{ctx: t.Context(), Config: Config{Catalog: c, StoreURL: "mem:", ClusterName: clusterName, Now: time.Now}}
		r.wanted(t.Context())
		return r.found
	}
	store := blobtest.NewMemory()
	c := catalog.New(store)
	want(t, look(c, "etcd"), Warning, "cluster", "no cluster spec yet", "configure-cluster --member-count=3")
	_, err := c.CreateSpec(t.Context(), cluster.Spec{MemberCount: 3})
	testutil.Must(t, err)
	_, err = c.CreateMarker(t.Context(), catalog.Marker{Time: time.Now(), Phase: catalog.PhaseFormed, Token: "t"})
	testutil.Must(t, err)
	want(t, look(c, "etcd"), OK, "cluster", "3 members")
	want(t, look(c, "etcd"), OK, "cluster", "joins")
	const name = "2026-02-01T10:00:00Z-000001"
	_, err = store.Put(t.Context(), name+"/etcd.backup.gz", strings.NewReader("x"), blob.PutOptions{})
	testutil.Must(t, err)
	digest := catalog.Digest{Size: 1, SHA256: strings.Repeat("0", 64)}
	testutil.Must(t, c.PutManifest(t.Context(), &catalog.Manifest{Backup: name, ClusterName: "etcd-events", Compression: "gzip",
		Raw:    digest,
		Stored: digest, EtcdVersion: "3.6.1"}))
	testutil.Must(t, c.CommitBackup(t.Context(), name, catalog.BackupInfo{EtcdVersion: "3.6.1", Time: catalog.BackupTime(name),
		Spec: cluster.Spec{MemberCount: 3}}))
	want(t, look(c, "etcd"), Problem, "cluster", `is of the cluster "etcd-events"`, "--cluster-name")
	if found := look(c, "etcd-events"); !OKAll(found) {
		t.Error(text(found))
	}
}

func TestSplit(t *testing.T) {
	a, b, c := errors.New("a"), errors.New("b"), errors.New("c")
	if got := Split(errors.Join(a, errors.Join(b, nil, c))); len(got) != 3 {
		t.Errorf("%v", got)
	}
	if Split(nil) != nil || len(Split(errors.Join(a))) != 1 {
		t.Error("none and one")
	}
}
