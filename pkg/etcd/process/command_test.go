package process

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the expected output in testdata")

// fullConfig sets everything.
func fullConfig() etcd.Config {
	tls := func(kind string) *etcd.TLSFiles {
		return &etcd.TLSFiles{CAFile: "/pki/" + kind + "/ca.crt", CertFile: "/pki/" + kind + "/me.crt", KeyFile: "/pki/" + kind + "/me.key"}
	}
	return etcd.Config{
		Name: "etcd-a", DataDir: "/data/tok", Token: "tok",
		PeerURLs: []string{"https://etcd-a.internal:2380"}, ListenPeerURLs: []string{"https://0.0.0.0:2380"},
		ClientURLs: []string{"https://etcd-a.internal:4001"}, ListenClientURLs: []string{"https://[::]:4001", "https://127.0.0.1:3994"},
		ListenMetricsURLs: []string{"http://0.0.0.0:8081"},
		InitialCluster: []etcd.Peer{
			{Name: "etcd-b", PeerURLs: []string{"https://[fd00::b]:2380"}},
			{Name: "etcd-a", PeerURLs: []string{"https://etcd-a.internal:2380"}},
		},
		NewCluster: true, PeerTLS: tls("peers"), ClientTLS: tls("clients"),
		QuotaBytes: 8 << 30, AutoCompactionMode: "periodic", AutoCompactionRetention: "5m", SnapshotCount: 10000,
		Heartbeat: 100 * time.Millisecond, ElectionTimeout: time.Second,
		InitialCorruptCheck: true, CompactHashCheck: true, CorruptCheckInterval: time.Hour, LogLevel: "info",
	}
}

// smallConfig sets only what must be set.
func smallConfig() etcd.Config {
	u := []string{"http://127.0.0.1:2380"}
	c := []string{"http://127.0.0.1:4001"}
	return etcd.Config{Name: "a", DataDir: "/d", Token: "t", PeerURLs: u, ListenPeerURLs: u, ClientURLs: c, ListenClientURLs: c, InitialCluster: []etcd.Peer{{Name: "a", PeerURLs: u}}}
}

func TestCommandGolden(t *testing.T) {
	override := fullConfig()
	override.ExtraEnv = map[string]string{
		"ETCD_QUOTA_BACKEND_BYTES": "123", "ETCD_EXPERIMENTAL_CORRUPT_CHECK_TIME": "2h",
		"ETCD_EXPERIMENTAL_INITIAL_CORRUPT_CHECK": "false", "ETCD_LISTEN_METRICS_URLS": "", "ETCD_DATA_DIR": "/elsewhere",
		"ETCD_MANAGER_HOURLY_BACKUPS_RETENTION": "1h", "ETCD_SNAPSHOT_COUNT": "5", "GODEBUG": "x=1",
	}
	gates := fullConfig()
	gates.ExtraEnv = map[string]string{"ETCD_FEATURE_GATES": "InitialCorruptCheck=false"}
	var out strings.Builder
	for _, c := range []struct {
		name string
		cfg  etcd.Config
		bin  Binary
	}{
		{"small, 3.6 compiled in", smallConfig(), Binary{Version: "3.6.16", Path: "/bin/etcd-manager", Args: []string{"etcd"}, Compiled: true}},
		{"full, 3.4", fullConfig(), Binary{Version: "3.4.23", Path: "/opt/etcd-v3.4.23/etcd"}},
		{"full, 3.5", fullConfig(), Binary{Version: "3.5.35", Path: "/opt/etcd-v3.5.35/etcd"}},
		{"full, 3.6", fullConfig(), Binary{Version: "3.6.16", Path: "/opt/etcd-v3.6.16/etcd"}},
		{"full, 3.7", fullConfig(), Binary{Version: "3.7.3", Path: "/opt/etcd-v3.7.3/etcd"}},
		{"overrides, 3.5", override, Binary{Version: "3.5.35", Path: "/etcd"}},
		{"overrides, 3.6", override, Binary{Version: "3.6.16", Path: "/etcd"}},
		{"overrides, 3.7: the old names mean nothing there", override, Binary{Version: "3.7.3", Path: "/etcd"}},
		{"own feature gates, 3.6", gates, Binary{Version: "3.6.16", Path: "/etcd"}},
	} {
		cmd, err := Command(c.cfg, c.bin)
		must(t, err)
		out.WriteString("# " + c.name + "\n")
		for _, e := range cmd.Env {
			out.WriteString(e + "\n")
		}
		out.WriteString(strings.Join(cmd.Argv, " \\\n  ") + "\n\n")
	}
	golden := filepath.Join("testdata", "command.txt")
	if *rewrite {
		must(t, os.WriteFile(golden, []byte(out.String()), 0o644))
	}
	want, err := os.ReadFile(golden)
	must(t, err)
	if out.String() != string(want) {
		t.Errorf("command lines differ from %s (look at the difference after -rewrite):\n%s", golden, out.String())
	}
}

func TestFingerprint(t *testing.T) {
	bin := Binary{Version: "3.6.16", Path: "/a"}
	base, err := Command(smallConfig(), bin)
	must(t, err)
	for name, c := range map[string]struct {
		change func(c *etcd.Config, b *Binary)
		same   bool
	}{
		"nothing":         {func(*etcd.Config, *Binary) {}, true},
		"bootstrap state": {func(c *etcd.Config, _ *Binary) { c.NewCluster = true }, true},
		"another member": {func(c *etcd.Config, _ *Binary) {
			c.InitialCluster = append(c.InitialCluster, etcd.Peer{Name: "b", PeerURLs: []string{"http://127.0.0.2:1"}})
		}, true},
		"another path":  {func(_ *etcd.Config, b *Binary) { b.Path = "/b" }, true},
		"initial check": {func(c *etcd.Config, _ *Binary) { c.InitialCorruptCheck = true }, true},
		"hash check":    {func(c *etcd.Config, _ *Binary) { c.CompactHashCheck = true }, false},
		"version":       {func(_ *etcd.Config, b *Binary) { b.Version = "3.6.17" }, false},
		"quota":         {func(c *etcd.Config, _ *Binary) { c.QuotaBytes = 1 }, false},
		"client URLs":   {func(c *etcd.Config, _ *Binary) { c.ClientURLs = []string{"http://127.0.0.1:1"} }, false},
		"environment":   {func(c *etcd.Config, _ *Binary) { c.ExtraEnv = map[string]string{"ETCD_X": "1"} }, false},
		"manager's own": {func(c *etcd.Config, _ *Binary) { c.ExtraEnv = map[string]string{"ETCD_MANAGER_X": "1"} }, true},
	} {
		cfg, b := smallConfig(), bin
		c.change(&cfg, &b)
		cmd, err := Command(cfg, b)
		must(t, err)
		if same := cmd.Fingerprint == base.Fingerprint; same != c.same {
			t.Errorf("%s: same fingerprint %t, want %t", name, same, c.same)
		}
	}
}

func TestCommandRefuses(t *testing.T) {
	for want, change := range map[string]func(c *etcd.Config){
		"name":          func(c *etcd.Config) { c.Name = "" },
		"absolute":      func(c *etcd.Config) { c.DataDir = "data" },
		"token":         func(c *etcd.Config) { c.Token = "" },
		"no client URL": func(c *etcd.Config) { c.ClientURLs = nil },
		"scheme":        func(c *etcd.Config) { c.ListenClientURLs = []string{"https://127.0.0.1:1"} },
		"IP addresses":  func(c *etcd.Config) { c.ListenPeerURLs = []string{"http://etcd-a:2380"} },
		"port":          func(c *etcd.Config) { c.ClientURLs = []string{"http://127.0.0.1"} },
		"not part":      func(c *etcd.Config) { c.InitialCluster = nil },
		"but it advertises": func(c *etcd.Config) {
			c.InitialCluster = []etcd.Peer{{Name: "a", PeerURLs: []string{"http://127.0.0.2:2380"}}}
		},
		"certificate": func(c *etcd.Config) {
			c.PeerTLS = &etcd.TLSFiles{}
			c.PeerURLs = []string{"https://127.0.0.1:2380"}
			c.ListenPeerURLs = c.PeerURLs
			c.InitialCluster = []etcd.Peer{{Name: "a", PeerURLs: c.PeerURLs}}
		},
		"5 times":            func(c *etcd.Config) { c.Heartbeat = time.Second; c.ElectionTimeout = 2 * time.Second },
		"no path is allowed": func(c *etcd.Config) { c.ClientURLs = []string{"http://127.0.0.1:1/etcd"} },
	} {
		cfg := smallConfig()
		change(&cfg)
		_, err := Command(cfg, Binary{Version: "3.6.16", Path: "/etcd"})
		if !errors.Is(err, etcd.ErrConfig) || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	for _, v := range []string{"", "3.6", "v3.6.16", "3.5.0", "3.5.2", "3.3.25", "3.8.0", "4.0.0", "2.3.8"} {
		if _, err := Command(smallConfig(), Binary{Version: v, Path: "/etcd"}); !errors.Is(err, etcd.ErrVersion) {
			t.Errorf("version %q: %v", v, err)
		}
	}
}

// fake writes an executable that says that it is a version of etcd, and counts how often it is asked.
func fake(t *testing.T, root, named, sub, says string, mode os.FileMode) (path string) {
	t.Helper()
	path = filepath.Join(root, "etcd-v"+named, sub, "etcd")
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte("#!/bin/sh\necho asked >> "+root+"/asked\necho etcd Version: "+says+"\n"), mode))
	return path
}

func asked(t *testing.T, root string) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "asked"))
	if !errors.Is(err, os.ErrNotExist) {
		must(t, err)
	}
	return strings.Count(string(b), "asked")
}

func TestBinaries(t *testing.T) {
	opt, other := t.TempDir(), t.TempDir()
	fake(t, opt, "3.5.21", "", "3.5.21", 0o755)
	fake(t, opt, "3.5.9", "usr/local/bin", "3.5.9", 0o755)
	fake(t, other, "3.5.21", "", "3.5.21", 0o755)
	fake(t, other, "3.4.13", "", "3.4.13", 0o755)
	fake(t, opt, "3.5.1", "", "3.5.1", 0o755)
	fake(t, opt, "3.5.30", "", "3.5.30", 0o644) // not executable
	b := &Binaries{Roots: []string{opt, other}, Self: "/ko-app/etcd-manager"}
	if got := b.Versions(); !slices.Equal(got, []string{"3.4.13", "3.5.9", "3.5.21", etcd.CompiledVersion}) {
		t.Errorf("versions %v", got)
	}
	for v, want := range map[string]string{
		"3.5.21": opt + "/etcd-v3.5.21/etcd", "3.5.9": opt + "/etcd-v3.5.9/usr/local/bin/etcd",
		"3.4.13": other + "/etcd-v3.4.13/etcd", etcd.CompiledVersion: "/ko-app/etcd-manager",
	} {
		got, err := b.Find(v)
		if err != nil || got.Path != want || got.Version != v || got.Compiled != (v == etcd.CompiledVersion) {
			t.Errorf("%s: %+v %v", v, got, err)
		}
	}
	_, err := b.Find("3.5.22")
	if !errors.Is(err, ErrNoBinary) || !strings.Contains(err.Error(), other+"/etcd-v3.5.22/usr/local/bin/etcd") || !strings.Contains(err.Error(), "3.5.9") {
		t.Errorf("absent version: %v", err)
	}
	if _, err := b.Find("3.5.1"); !errors.Is(err, etcd.ErrVersion) {
		t.Errorf("3.5.1: %v", err)
	}
	for asked, want := range map[string]string{
		"3.5.21": "3.5.21", "3.5.10": "3.5.21", "3.5.4": "3.5.9", "3.5.35": "3.5.21", "3.4.0": "3.4.13", "3.6.1": etcd.CompiledVersion, "3.6.99": etcd.CompiledVersion,
		"3.7.0": "", "3.5.1": "3.5.9", "3.3.1": "",
	} {
		got, err := b.Nearest(asked)
		if got.Version != want || (err == nil) != (want != "") {
			t.Errorf("nearest to %s: %+v %v, want %q", asked, got, err, want)
		}
	}
}

// TestAliases has the newest patch under the name of every older one, as kOps gives it: as symbolic links, hard links and copies.
func TestAliases(t *testing.T) {
	root := t.TempDir()
	path := fake(t, root, "3.5.31", "", "3.5.31", 0o755)
	for i := range 30 {
		dir := filepath.Join(root, fmt.Sprintf("etcd-v3.5.%d", i))
		must(t, os.Mkdir(dir, 0o755))
		if i%2 == 0 {
			must(t, os.Symlink("../etcd-v3.5.31/etcd", filepath.Join(dir, "etcd")))
		} else {
			must(t, os.Link(path, filepath.Join(dir, "etcd")))
		}
	}
	fake(t, root, "3.5.40", "", "3.5.1", 0o755) // a bad one under a good name
	fake(t, root, "3.6.1", "", "3.5.33", 0o755) // another minor version
	b := &Binaries{Roots: []string{root}}
	for _, spec := range []string{"3.5.9", "3.5.0", "3.5.2", "3.5.31", "3.5.10"} {
		bin, err := b.Nearest(spec)
		if err != nil || bin.Version != "3.5.31" {
			t.Errorf("%s: %+v %v", spec, bin, err)
		}
	}
	got := b.Installed()
	if !slices.Equal(got.Versions, []string{"3.5.31"}) || len(got.Problems) != 2 {
		t.Errorf("installed: %+v", got)
	}
	for range 3 {
		b.Installed()
	}
	if n := asked(t, root); n != 3 {
		t.Errorf("executables were run %d times for their versions, want once for each of 3 files", n)
	}
	// Another file in its place is asked again.
	must(t, os.Remove(path))
	fake(t, root, "3.5.31", "", "3.5.35", 0o755)
	if got := b.Installed(); !slices.Equal(got.Versions, []string{"3.5.31", "3.5.35"}) {
		t.Errorf("replaced: %+v", got)
	}
}

// TestCopiesOfOne asks one of several copies of a real program only, though each is a file of its own.
func TestCopiesOfOne(t *testing.T) {
	root := t.TempDir()
	b := &Binaries{Roots: []string{root}}
	program, err := os.ReadFile(self(t))
	must(t, err)
	for _, v := range []string{"3.5.9", "3.5.10"} {
		dir := filepath.Join(root, "etcd-v"+v)
		must(t, os.Mkdir(dir, 0o755))
		must(t, os.WriteFile(filepath.Join(dir, "etcd"), program, 0o755))
	}
	first, firstID, err := openTrusted(filepath.Join(root, "etcd-v3.5.9", "etcd"))
	must(t, err)
	defer first.Close()
	b.remember(firstID, first, answer{version: "3.5.31"})
	second, secondID, err := openTrusted(filepath.Join(root, "etcd-v3.5.10", "etcd"))
	must(t, err)
	defer second.Close()
	if a, ok := b.remembered(secondID, second); firstID == secondID || !ok || a.version != "3.5.31" {
		t.Errorf("the copy is asked again: %v %+v", ok, a)
	}
}

// TestAskBounded has an executable that says nothing, one that says too much and one that isn't etcd: none is tried again at once.
func TestAskBounded(t *testing.T) {
	root := t.TempDir()
	for v, script := range map[string]string{"3.5.9": "exit 3", "3.5.10": "yes", "3.5.11": "echo Python 3.12"} {
		path := fake(t, root, v, "", "x", 0o755)
		must(t, os.WriteFile(path, []byte("#!/bin/sh\necho asked >> "+root+"/asked\n"+script+"\n"), 0o755))
	}
	b := &Binaries{Roots: []string{root}}
	for range 5 {
		if got := b.Installed(); len(got.Versions) != 0 || len(got.Problems) != 3 {
			t.Errorf("installed: %+v", got)
		}
	}
	if n := asked(t, root); n != 3 {
		t.Errorf("run %d times, want 3", n)
	}
}
