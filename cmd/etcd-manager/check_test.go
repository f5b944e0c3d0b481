package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/pki"
	"github.com/etcd-manager/etcd-manager/pkg/preflight"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// desk is a machine on which a manager could be started: sound, until a test breaks it.
type desk struct {
	t      *testing.T
	root   string
	server *servers.S3
	url    string
	args   map[string]string
	env    []string
	ahead  time.Duration
	disk   preflight.Speed
}

func newCheckDesk(t *testing.T, server *servers.S3) *desk {
	t.Helper()
	d := &desk{t: t, root: testutil.DiskDir(t), server: server, url: server.URL(strings.ToLower(filepath.Base(t.TempDir()) + t.Name())),
		env: server.Env(), disk: preflight.Speed{Count: 1}}
	testutil.Must(t, pki.CreateCAs(filepath.Join(d.root, "pki"), time.Now()))
	ports := map[int]bool{}
	port := func() int {
		for {
			if p := testutil.FreePort(t); !ports[p] {
				ports[p] = true
				return p
			}
		}
	}
	d.args = map[string]string{
		"cluster-name": "etcd", "backup-store": d.url, "data-dir": filepath.Join(d.root, "data"), "pki-dir": filepath.Join(d.root, "pki"),
		"address": "127.0.0.1", "etcd-address": "127.0.0.1", "grpc-port": fmt.Sprint(port()),
		"peer-urls":              fmt.Sprintf("https://__address__:%d", port()),
		"client-urls":            fmt.Sprintf("https://__address__:%d", port()),
		"quarantine-client-urls": fmt.Sprintf("https://__address__:%d", port()),
	}
	return d
}

// spec writes a cluster spec for three masters.
func (d *desk) spec() {
	d.t.Helper()
	s, err := connect.Open(d.t.Context(), d.url, d.server.Getenv)
	testutil.Must(d.t, err)
	_, err = catalog.New(s).CreateSpec(d.t.Context(), cluster.Spec{MemberCount: 3})
	testutil.Must(d.t, err)
}

func (d *desk) check(more ...string) (code int, out string) {
	d.t.Helper()
	args := more
	for name, value := range d.args {
		args = append(args, "--"+name+"="+value)
	}
	var o, e bytes.Buffer
	code = checker{args: args, environ: d.env, out: &o, errOut: &e,
		now:  func() time.Time { return time.Now().Add(d.ahead) },
		sync: func(context.Context, string) (preflight.Speed, error) { return d.disk, nil }}.run(d.t.Context())
	return code, o.String() + e.String()
}

// listen takes a port as another program would.
func (d *desk) listen(flag string) {
	d.t.Helper()
	port := d.args[flag][strings.LastIndex(d.args[flag], ":")+1:]
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	testutil.Must(d.t, err)
	d.t.Cleanup(func() { l.Close() })
}

// master is another manager that runs already, with the CAs in dir; this one knows it from a seed.
func (d *desk) master(dir string) {
	d.t.Helper()
	k, err := pki.NewKeeper(pki.Config{Dir: dir, NodeID: "b", Managers: true, Policy: pki.DefaultPolicy()})
	testutil.Must(d.t, err)
	l, err := tls.Listen("tcp", "127.0.0.1:0", k.ManagerServer())
	testutil.Must(d.t, err)
	d.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.(*tls.Conn).Handshake()
			c.Close()
		}
	}()
	d.args["seeds-dir"] = filepath.Join(d.root, "seeds")
	testutil.Must(d.t, os.MkdirAll(d.args["seeds-dir"], 0o755))
	testutil.Must(d.t, os.WriteFile(filepath.Join(d.args["seeds-dir"], "b"), []byte(l.Addr().String()+"\n"), 0o644))
}

// mistakes are what people do in their first hour, by the words of docs/quickstart.md. warning says that the manager can be started anyway.
func mistakes() map[string]struct {
	do      func(d *desk)
	warning bool
} {
	type mistake = struct {
		do      func(d *desk)
		warning bool
	}
	return map[string]mistake{
		"a flag is mistyped":                     {do: func(d *desk) { d.args["grpc-prot"] = "8000" }},
		"`--address` is missing":                 {do: func(d *desk) { delete(d.args, "address") }},
		"`--address` is that of another machine": {do: func(d *desk) { d.args["address"] = "192.0.2.1" }},
		"another etcd runs on the machine":       {do: func(d *desk) { d.listen("peer-urls") }},
		"the data dir is that of another etcd": {do: func(d *desk) {
			testutil.Must(d.t, os.MkdirAll(filepath.Join(d.args["data-dir"], "member"), 0o700))
		}},
		"the CAs weren't copied to this master": {do: func(d *desk) { testutil.Must(d.t, os.RemoveAll(d.args["pki-dir"])) }},
		"`pki init` ran on each master": {do: func(d *desk) {
			other := filepath.Join(d.root, "other")
			testutil.Must(d.t, pki.CreateCAs(other, time.Now()))
			d.master(other)
		}},
		"the keys were copied without their permissions": {do: func(d *desk) {
			testutil.Must(d.t, os.Chmod(filepath.Join(d.args["pki-dir"], pki.PeersCA+".key"), 0o644))
		}},
		"the bucket doesn't exist": {do: func(d *desk) { d.args["backup-store"] = "s3://no-such-bucket/main" }},
		"the credentials are wrong": {do: func(d *desk) {
			d.env = append(append([]string{}, d.env...), "S3_SECRET_ACCESS_KEY=wrong")
		}},
		"the clock is wrong": {do: func(d *desk) { d.ahead = 10 * time.Minute }},
		"the disk is slow": {do: func(d *desk) { d.disk = preflight.Speed{Median: 3e6, P99: 3e7, Count: 200} },
			warning: true},
		"`configure-cluster` was forgotten": {do: func(*desk) {}, warning: true},
		"two flags name the same port":      {do: func(d *desk) { d.args["client-urls"] = d.args["peer-urls"] }},
	}
}

var mistakeRow = regexp.MustCompile(`(?m)^\| (.+?) \| (problem|warning) \| (.+?) \|$`)

// TestMistakes makes each mistake of the page's table, and looks for what the page says that check says.
func TestMistakes(t *testing.T) {
	page, err := os.ReadFile("../../docs/quickstart.md")
	testutil.Must(t, err)
	server := servers.StartVersityGW(t, servers.InMemory())
	all := mistakes()
	for _, row := range mistakeRow.FindAllStringSubmatch(string(page), -1) {
		m, ok := all[row[1]]
		if !ok {
			t.Errorf("the page has the mistake %q, and no test makes it", row[1])
			continue
		}
		delete(all, row[1])
		t.Run(row[1], func(t *testing.T) {
			d := newCheckDesk(t, server)
			if !strings.Contains(row[1], "configure-cluster") {
				d.spec()
			}
			m.do(d)
			code, out := d.check()
			if (code == exitOK) != m.warning || m.warning != (row[2] == "warning") {
				t.Errorf("code %d:\n%s", code, out)
			}
			for _, q := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[3], -1) {
				for part := range strings.SplitSeq(q[1], "…") {
					if part = strings.TrimSpace(part); !strings.Contains(out, part) {
						t.Errorf("%q isn't said in:\n%s", part, out)
					}
				}
			}
			for line := range strings.Lines(out) {
				if strings.HasPrefix(line, "problem") && !strings.Contains(out, line+strings.Repeat(" ", 23)+"do: ") {
					t.Errorf("no way out of %s", line)
				}
			}
		})
	}
	for name := range all {
		t.Errorf("the page doesn't have the mistake %q", name)
	}
}

// TestCheckSound finds nothing wrong on a sound machine, and leaves it as it was.
func TestCheckSound(t *testing.T) {
	d := newCheckDesk(t, servers.StartVersityGW(t, servers.InMemory()))
	d.spec()
	d.master(d.args["pki-dir"])
	before := tree(t, d.root)
	code, out := d.check()
	if code != exitOK || strings.Contains(out, "problem ") || strings.Contains(out, "warning ") || !strings.Contains(out,
		"has the same CA") ||
		!strings.Contains(out, "Nothing is wrong") {
		t.Errorf("code %d\n%s", code, out)
	}
	if after := tree(t, d.root); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	s, err := connect.Open(t.Context(), d.url, d.server.Getenv)
	testutil.Must(t, err)
	for e, err := range s.List(t.Context(), "control/probe/", blob.ListOptions{}) {
		t.Errorf("the probe left %s, %v", e.Key, err)
	}

	code, out = d.check("-o", "json")
	var result struct {
		OK       bool                `json:"ok"`
		Findings []preflight.Finding `json:"findings"`
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil || code != exitOK || !result.OK || len(result.Findings) < 9 {
		t.Errorf("%v, code %d\n%s", err, code, out)
	}
	if code, out = d.check("-o=yaml"); code != exitUsage || !strings.Contains(out, "use json") {
		t.Errorf("code %d\n%s", code, out)
	}
	if code, out = d.check("--help"); code != exitOK || !strings.Contains(out, "usage: etcd-manager check") {
		t.Errorf("code %d\n%s", code, out)
	}
}

// TestCheckAllAtOnce makes many mistakes, which are all said.
func TestCheckAllAtOnce(t *testing.T) {
	root := t.TempDir()
	file := filepath.Join(root, "file")
	testutil.Must(t, os.WriteFile(file, nil, 0o600))
	var out bytes.Buffer
	code := checker{args: []string{"--no-such-flag", "value", "stray", "--backup-interval=often", "--data-dir=" + file,
		"--pki-dir=" + root + "/pki",
		"--backup-store=" + root + "/absent/store", "--etcd-binaries=/opt", "--address=192.0.2.1", "--env-file=" + root + "/env"},
		environ: []string{"ETCD_QUOTA_BACKEND_BYTES=much"}, out: &out, errOut: &out, now: time.Now,
		sync: preflight.MeasureSync}.run(t.Context())
	if code != exitError {
		t.Errorf("code %d", code)
	}
	for _, w := range []string{"--no-such-flag is unknown", `unexpected argument "stray"`, `invalid value "often"`,
		"--cluster-name is missing",
		file + " is a file", root + "/pki: the directory of the CAs doesn't exist", "absent/store doesn't exist",
		"192.0.2.1 isn't an address",
		"--env-file", "ETCD_QUOTA_BACKEND_BYTES"} {
		if !strings.Contains(out.String(), w) {
			t.Errorf("%q isn't said", w)
		}
	}
	if t.Failed() {
		t.Log(out.String())
	}
	if _, err := os.Stat(filepath.Join(root, "absent")); err == nil {
		t.Error("the store's directory was made")
	}
}

// tree is every file below root with its size and time.
func tree(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	testutil.Must(t, filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil {
			fmt.Fprintln(&b, path, info.Mode(), info.Size(), info.ModTime().UnixNano())
		}
		return err
	}))
	return b.String()
}

// TestCheckPlaces: a copy to a place that has something else, and a standby of a store without a cluster, are named; a standby isn't told
// to configure a cluster.
func TestCheckPlaces(t *testing.T) {
	server := servers.StartVersityGW(t, servers.InMemory())
	store := func(dir string) *catalog.Catalog {
		s, err := connect.Open(t.Context(), dir, server.Getenv)
		testutil.Must(t, err)
		return catalog.New(s)
	}
	for name, c := range map[string]struct {
		do   func(d *desk, dir string)
		want []string
		bad  bool
	}{
		"an empty place for a copy": {do: func(d *desk, dir string) {
			testutil.Must(t, os.Mkdir(dir, 0o700))
			d.args["backup-store-copy"] = dir
		}, want: []string{"is empty: the copy begins"}},
		"a copy in a directory that isn't there": {do: func(d *desk, dir string) { d.args["backup-store-copy"] = dir },
			want: []string{"doesn't exist: the leader would make it", "do: mount"}},
		"a copy of this store": {do: func(d *desk, dir string) {
			d.args["backup-store-copy"] = dir
			_, err := store(dir).PutCopyRecord(t.Context(), catalog.CopyRecord{Of: d.url, ClusterName: "etcd", Began: time.Now()}, "")
			testutil.Must(t, err)
		}, want: []string{"is a copy of this store"}},
		"a copy of another store": {do: func(d *desk, dir string) {
			d.args["backup-store-copy"] = dir
			record := catalog.CopyRecord{Of: "s3://other/main", ClusterName: "etcd", Began: time.Now()}
			_, err := store(dir).PutCopyRecord(t.Context(), record, "")
			testutil.Must(t, err)
		}, want: []string{"is a copy of s3://other/main", "do: give --backup-store-copy an empty place"}, bad: true},
		"a copy in use": {do: func(d *desk, dir string) {
			d.args["backup-store-copy"] = dir
			_, err := store(dir).PutCopyRecord(t.Context(), catalog.CopyRecord{Of: d.url, ClusterName: "etcd", InUse: time.Now()}, "")
			testutil.Must(t, err)
		}, want: []string{"was put into use"}, bad: true},
		"a place for a copy that has something else": {do: func(d *desk, dir string) {
			d.args["backup-store-copy"] = dir
			testutil.Must(t, os.Mkdir(dir, 0o700))
			testutil.Must(t, os.WriteFile(filepath.Join(dir, "photo"), nil, 0o600))
		}, want: []string{"it is no copy of this store"}, bad: true},
		"a standby of a store that isn't there": {do: func(d *desk, dir string) { d.args["standby-of"] = dir },
			want: []string{"/other doesn't exist", "--standby-of"}, bad: true},
		"a standby of an empty store": {do: func(d *desk, dir string) {
			testutil.Must(t, os.Mkdir(dir, 0o700))
			d.args["standby-of"] = dir
		}, want: []string{"there is no cluster in"}, bad: true},
		"a standby of a cluster without a backup": {do: func(d *desk, dir string) {
			d.args["standby-of"] = dir
			_, err := store(dir).CreateMarker(t.Context(), catalog.Marker{Phase: catalog.PhaseFormed, Token: "T", Time: time.Now()})
			testutil.Must(t, err)
		}, want: []string{"has no backup yet"}},
		"a standby whose own store has a cluster": {do: func(d *desk, dir string) {
			testutil.Must(t, os.Mkdir(dir, 0o700))
			d.args["standby-of"] = dir
			_, err := store(d.url).CreateMarker(t.Context(), catalog.Marker{Phase: catalog.PhaseFormed, Token: "T", Time: time.Now()})
			testutil.Must(t, err)
		}, want: []string{"has a cluster already"}, bad: true},
	} {
		t.Run(name, func(t *testing.T) {
			d := newCheckDesk(t, server)
			standby := strings.Contains(name, "standby")
			if !standby {
				d.spec()
			}
			c.do(d, filepath.Join(d.root, "other"))
			code, out := d.check()
			if (code != exitOK) != c.bad {
				t.Errorf("code %d:\n%s", code, out)
			}
			for _, w := range c.want {
				if !strings.Contains(out, w) {
					t.Errorf("%q isn't said in:\n%s", w, out)
				}
			}
			if standby && strings.Contains(out, "configure-cluster") {
				t.Errorf("a standby is to be configured:\n%s", out)
			}
		})
	}
}
