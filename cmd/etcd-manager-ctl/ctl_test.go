package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
	"github.com/etcd-manager/etcd-manager/pkg/buildinfo"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/envelope"
	"github.com/etcd-manager/etcd-manager/test/awsdouble"
)

var update = flag.Bool("update", false, "rewrite the transcripts in testdata")

// world is a store in memory, a clock that stands still, and the transcript of what was said.
type world struct {
	kms   envelope.KMS
	t     *testing.T
	store blob.Store
	now   time.Time
	log   strings.Builder
	ctx   context.Context
	// answer is what the operator types; without one nobody is there.
	answer string
	// steps are what happens between the looks of one who follows; after the last one the operator interrupts.
	steps []func()
	// testdata is where transcripts are, whatever the current directory is.
	testdata string
	// stores are those of a kOps cluster, by URL, in memory or as onServer opens them, and cloud has its volumes.
	stores   map[string]blob.Store
	onServer func(url string) blob.Store
	// screen is whether somebody looks at the output.
	screen bool
	cloud  *awsdouble.Cloud
}

func newWorld(t *testing.T) *world {
	testdata, err := filepath.Abs("testdata")
	must(t, err)
	return &world{testdata: testdata, t: t, store: blobtest.NewMemory(),
		now: time.Date(2026, 2, 1, 12, 0, 0, 0, time.UTC), ctx: t.Context()}
}

// next is another world whose transcript goes on with this one's.
func (w *world) next() *world {
	n := newWorld(w.t)
	n.log.WriteString(w.log.String())
	return n
}

func (w *world) put(key, content string) {
	w.t.Helper()
	if _, err := w.store.Put(context.Background(), key, strings.NewReader(content), blob.PutOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) backup(name string, manifest bool) {
	w.put(name+"/etcd.backup.gz", strings.Repeat("x", 1500))
	if manifest {
		sum := strings.Repeat("0", 64)
		w.put(name+"/_etcd_manager_manifest.json",
			fmt.Sprintf(`{"version":1,"backup":%q,"raw":{"size":1,"sha256":%q},"stored":{"size":1500,"sha256":%q}}`, name, sum, sum))
	}
	w.put(name+"/_etcd_backup.meta", `{"etcdVersion":"3.5.21","timestamp":"1516000000","clusterSpec":{"memberCount":3,"etcdVersion":"3.5.21"}}`)
}

func (w *world) exec(args ...string) (code int, out, errOut string) {
	w.t.Helper()
	var o, e bytes.Buffer
	code = run(w.ctx, deps{args: args, in: strings.NewReader(w.answer), out: &o, errOut: &e, build: buildinfo.Info{Version: "1.2.3"},
		now:         func() time.Time { return w.now },
		outTerminal: w.screen, person: w.answer != "", pause: w.pause, kms: w.kms,
		open: func(ctx context.Context, url string) (blob.Store, error) {
			if strings.HasPrefix(url, "mem:") {
				return w.store, nil
			}
			if w.stores != nil {
				return w.kopsStore(url), nil
			}
			return connect.Open(ctx, url, func(string) string { return "" })
		}, kopsVolumes: openKopsVolumes})
	return code, o.String(), e.String()
}

// do runs one command line on the store and writes down what came of it.
func (w *world) do(args ...string) {
	w.t.Helper()
	w.raw(append([]string{"--backup-store=mem://bucket/main"}, args...)...)
}

func (w *world) raw(args ...string) {
	w.t.Helper()
	code, out, errOut := w.exec(args...)
	fmt.Fprintf(&w.log, "$ etcd-manager-ctl %s\n%s", strings.Join(args, " "), out)
	for line := range strings.Lines(errOut) {
		fmt.Fprintf(&w.log, "! %s", line)
	}
	if code != 0 {
		fmt.Fprintf(&w.log, "(exit code %d)\n", code)
	}
	w.log.WriteString("\n")
}

// golden compares the transcript with testdata/<name>.txt.
func (w *world) golden(name string) {
	w.t.Helper()
	path := filepath.Join(w.testdata, name+".txt")
	if *update {
		if err := os.WriteFile(path, []byte(w.log.String()), 0o644); err != nil {
			w.t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	if w.log.String() != string(want) {
		w.t.Errorf("%s differs; got:\n%s", path, w.log.String())
	}
}

func (w *world) content(key string) string {
	w.t.Helper()
	data, _, err := blob.ReadAll(context.Background(), w.store, key, 1<<20)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(data)
}

func TestSpec(t *testing.T) {
	w := newWorld(t)
	w.do("get")
	w.do()
	w.do("configure-cluster")
	w.do("configure-cluster", "--etcd-version=3.5.21")
	w.do("configure-cluster", "--member-count=3")
	w.do("configure-cluster", "--etcd-version", "v3.5.21")
	w.do("get")
	w.do()
	w.do("get", "-o", "json")
	if got := w.content("control/etcd-cluster-spec"); got != `{"memberCount":3,"etcdVersion":"3.5.21"}` {
		t.Errorf("stored %s", got)
	}
	w.do("configure-cluster", "--member-count=2")
	w.do("configure-cluster", "--member-count=0")
	w.do("configure-cluster", "--member-count=100")
	w.do("configure-cluster", "--member-count=many")
	w.do("configure-cluster", "--etcd-version=latest")
	w.do("get")
	w.put("control/etcd-cluster-spec", "")
	w.do("get")
	w.do("configure-cluster", "--etcd-version=3.5.21")
	w.do("configure-cluster", "--member-count=5")
	w.golden("spec")
}

func TestFlagsAsOlderToolsAcceptThem(t *testing.T) {
	w := newWorld(t)
	w.raw("-backup-store=mem://bucket/main", "-member-count=3", "--etcd-version", "3.5.21", "configure-cluster")
	w.raw("-backup-store", "mem://bucket/main", "get")
	w.raw("get", "-backup-store", "mem://bucket/main", "-o=json")
	w.raw("-v=6", "--logtostderr=true", "--backup-store=mem://bucket/main")
	w.raw("--v", "6", "--logtostderr", "--backup-store=mem://bucket/main", "get")
	w.raw("-o", "json", "--backup-store", "mem://bucket/main")
	w.golden("flags")
}

func TestUsage(t *testing.T) {
	w := newWorld(t)
	w.raw()
	w.raw("get")
	w.do("list-backup")
	w.do("frobnicate")
	w.do("get", "extra")
	w.do("restore-backup")
	w.do("restore-backup", "a", "b")
	w.do("restore-backup", "a/b")
	w.do("delete-command")
	w.do("get", "--no-such-flag")
	w.do("get", "-o", "yaml")
	w.do("list-commands", "-o", "wide")
	w.do("recover", "--from-survivor", "b")
	w.do("follow", "a", "b")
	w.do("verify-backup")
	w.do("verify-backup", "a", "--all")
	w.do("download-backup")
	w.do("download-backup", "a", "b", "c")
	w.do("inspect", "a", "--depth=0")
	w.do("import-backup", "/nowhere/at/all")
	w.do("describe-command")
	w.do("restore-backup", "a", "--member-count=x")
	w.raw("--backup-store=swift://bucket/x", "get")
	w.raw("--backup-store=relative/path", "get")
	w.raw("version")
	w.raw("version", "-o", "json")
	w.raw("--version")
	w.raw("--backup-stroe=mem://bucket/main", "get")
	w.do("list-backups", "--sincce=1h")
	w.do("list-backups", "--limit=-1")
	w.do("list-backups", "--since=yesterday")
	w.golden("usage")
}

// TestErrorsForPrograms: who asks for JSON gets errors as JSON too, in the last line of standard error, also if the command line is wrong.
func TestErrorsForPrograms(t *testing.T) {
	w := newWorld(t)
	w.backup("2026-02-01T11:45:00Z-000001", true)
	store := "--backup-store=mem://x"
	for _, c := range []struct {
		args []string
		kind string
		code int
		says string
	}{
		{[]string{store, "verify-backup", "nothing-like-it", "-o", "json"}, "not-found", 3, "nothing-like-it"},
		{[]string{store, "list-backups", "-o=json", "--limt=3"}, "usage", 2, `did you mean \"--limit\"?`},
		{[]string{store, "-o", "yaml", "list-backups", "extra"}, "usage", 2, "takes no argument"},
		{[]string{"list-backups", "-ojson"}, "usage", 2, "--backup-store is missing"},
		{[]string{store, "--output=json", "lst-backups"}, "usage", 2, `did you mean \"list-backups\"?`},
	} {
		code, out, errOut := w.exec(c.args...)
		lines := strings.Split(strings.TrimSpace(errOut), "\n")
		var e errorOutput
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &e); err != nil {
			t.Errorf("%v: %v: %q", c.args, err, errOut)
			continue
		}
		if code != c.code || e.Error.ExitCode != c.code || e.Error.Kind != c.kind || out != "" || !strings.Contains(errOut, c.says) {
			t.Errorf("%v: code %d, %+v, output %q; want %d, %s, %q", c.args, code, e, out, c.code, c.kind, c.says)
		}
	}
	if code, _, errOut := w.exec(store, "verify-backup", "nothing-like-it"); code != 3 || strings.HasPrefix(errOut, "{") {
		t.Errorf("without -o json: %d, %q", code, errOut)
	}
}

func TestListBackups(t *testing.T) {
	w := newWorld(t)
	w.do("list-backups")
	w.do("list-backups", "-o", "json")
	w.backup("2026-02-01T11:45:00Z-000001", true)
	w.backup("2026-01-30T01:02:03Z-000009", false)
	w.backup("2025-01-30T01:02:03Z-000009", false)
	w.backup("2026-02-01T12:30:00Z-000000", true)
	w.put("2026-02-01T11:59:00Z-000002/etcd.backup.gz", "x")
	w.do("list-backups")
	w.do("list-backups", "-o", "wide")
	w.do("list-backups", "--since=3d")
	w.do("list-backups", "--since=2026-02-01T11:45:00Z", "--limit=1")
	w.screen = true
	w.do("list-backups")
	w.do("list-backups", "-o", "name")
	w.screen = false
	if code, out, _ := w.exec("--backup-store=mem://x", "list-backups", "-o", "yaml", "--limit=1"); code != 0 ||
		strings.Count(out, "name: ") != 1 || !strings.Contains(out, "  name: 2026-02-01T12:30:00Z-000000\n") {
		t.Errorf("yaml: %d %s", code, out)
	}
	code, out, _ := w.exec("--backup-store=mem://x", "list-backups", "-o", "json")
	if code != 0 || strings.Count(out, `"name"`) != 4 || !strings.Contains(out, `"sizeBytes": 1500`) {
		t.Errorf("json: %d %s", code, out)
	}
	w.golden("backups")
}

func TestRestore(t *testing.T) {
	w := newWorld(t)
	w.do("restore-backup", "2026-01-30T01:02:03Z-000009")
	w.backup("2026-01-30T01:02:03Z-000009", true)
	w.do("restore-backup", "2026-01-30T01:02:03Z-000009")
	w.put("control/etcd-cluster-spec", `{"memberCount":3,"etcdVersion":"3.5.21"}`)
	w.backup("2026-01-30T02:02:03Z-000010", false)
	w.do("list-commands")
	w.do("restore-backup", "2026-01-30T01:02:03Z-000009")
	w.do("restore-backup", "2026-01-30T01:02:03Z-000009", "-o", "json")
	w.do("restore-backup", "2026-01-30T02:02:03Z-000010")
	if got, want := w.content("control/2026-02-01T12:00:00Z-000000/_command.json"),
		`{"timestamp":"1769947200000000000","restoreBackup":{"clusterSpec":{"memberCount":3,"etcdVersion":"3.5.21"},"backup":"2026-01-30T01:02:03Z-000009"}}`; got != want {
		t.Errorf("stored %s, want %s", got, want)
	}
	w.do("restore-backup", "2026-01-30T01:02:03Z-00000")
	w.do("restore-backup", "something-else")
	w.put("2026-01-31T00:00:00Z-000000/etcd.backup.gz", "x")
	w.do("restore-backup", "2026-01-31T00:00:00Z-000000")
	w.backup("2026-01-31T01:00:00Z-000000", false)
	w.put("2026-01-31T01:00:00Z-000000/_etcd_backup.meta", "")
	w.do("restore-backup", "2026-01-31T01:00:00Z-000000")
	w.do("list-commands")
	w.do("delete-command", "2026-01-30T01:02:03Z-000009")
	w.do("delete-command", "2026-02-01T12:00:00Z-000002")
	w.do("delete-command", "2026-01-30T01:02:03Z-000009")
	w.do("list-commands")
	w.put("control/etcd-cluster-spec", `{"memberCount":2}`)
	w.do("restore-backup", "2026-01-30T02:02:03Z-000010")
	w.golden("restore")
}

func TestListCommandsStates(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	c := catalog.New(w.store, catalog.WithClock(func() time.Time { return w.now }))
	queue := func(backup string) string {
		cmd, err := c.QueueRestore(ctx, backup, specOf(3), catalog.RestoreOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return cmd.Name
	}
	operation := func(op catalog.Operation) {
		op.Kind, op.ID, op.Created, op.Spec = catalog.KindRestore, op.Command, w.now, specOf(3)
		if _, err := c.PutOperation(ctx, op, ""); err != nil {
			t.Fatal(err)
		}
	}
	operation(catalog.Operation{Command: "2026-01-31T00:00:00Z-000000", Backup: "old", State: catalog.StateDone,
		Outage: 1234 * time.Millisecond, Finished: w.now})
	operation(catalog.Operation{Command: queue("bad"), Backup: "bad", State: catalog.StateFailed,
		Reason: "backup bad: cut short: etcd.backup.gz"})
	operation(catalog.Operation{Command: queue("running"), Backup: "running", State: catalog.StateStaging})
	operation(catalog.Operation{Command: queue("earlier"), Backup: "earlier", State: catalog.StateSuperseded,
		Reason: "a later command restores waiting"})
	queue("waiting")
	w.put("control/broken/_command.json", "")
	w.put("control/operations/future.json", `{"version":9}`)
	w.do("list-commands")
	w.do("list-commands", "-o", "json")
	w.do("delete-command", "running")
	w.do("delete-command", "broken")
	w.do("list-commands")
	w.golden("commands")
}

// broken is a store that answers every read with one error.
type broken struct {
	blob.Store
	err error
}

func TestStoreErrors(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
		say  string
	}{
		{&blob.Error{Op: "get", Key: "s3://b/x", Kind: blob.ErrDenied, Action: "s3:GetObject"}, exitStore, "s3:GetObject"},
		{&blob.Error{Op: "get", Key: "s3://b/x", Kind: blob.ErrTransient, Err: errors.New("connection refused")},
			exitStore, "can't be reached"},
		{&blob.Error{Op: "get", Key: "s3://b/x", Kind: blob.ErrInvalid, Err: errors.New("no such bucket")}, exitFailure, "no such bucket"},
		{context.DeadlineExceeded, exitStore, "--timeout"},
	} {
		w := newWorld(t)
		w.store = broken{w.store, c.err}
		for _, args := range [][]string{{"get"}, {"configure-cluster", "--member-count=3"}} {
			code, out, errOut := w.exec(append([]string{"--backup-store=mem://x"}, args...)...)
			if code != c.code || out != "" || !strings.Contains(errOut, c.say) {
				t.Errorf("%v %v: code %d, %q, %q", args, c.err, code, out, errOut)
			}
		}
	}
}

func TestCompletion(t *testing.T) {
	w := newWorld(t)
	w.backup("2026-01-30T01:02:03Z-000009", false)
	w.backup("2026-01-31T01:02:03Z-000001", false)
	w.put("control/etcd-cluster-spec", `{"memberCount":3}`)
	w.do("restore-backup", "2026-01-30T01:02:03Z-000009")
	w.ended(done1, "x", catalog.StateDone, nil)
	w.survivors(survivor("a", "t", 1, 1, 1), survivor("b", "t", 1, 1, 1))
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"__complete", "--backup-store=mem://x", "restore-backup", ""},
			[]string{"2026-01-31T01:02:03Z-000001", "2026-01-30T01:02:03Z-000009", "latest"}},
		{[]string{"__complete", "--backup-store=mem://x", "verify-backup", ""},
			[]string{"2026-01-31T01:02:03Z-000001", "2026-01-30T01:02:03Z-000009", "latest"}},
		{[]string{"__complete", "--backup-store=mem://x", "download-backup", "2026", "fi"}, nil},
		{[]string{"__complete", "--backup-store=mem://x", "undo-restore", ""}, []string{done1}},
		{[]string{"__complete", "--backup-store=mem://x", "follow", ""}, []string{"2026-02-01T12:00:00Z-000000", done1}},
		{[]string{"__complete", "--backup-store=mem://x", "describe-command", ""}, []string{"2026-02-01T12:00:00Z-000000", done1}},
		{[]string{"__complete", "--backup-store=mem://x", "recover", "--from-survivor="}, []string{"a", "b"}},
		{[]string{"__complete", "-backup-store=mem://x", "delete-command", ""},
			[]string{"2026-02-01T12:00:00Z-000000", "2026-01-30T01:02:03Z-000009"}},
		{[]string{"__complete", "--backup-store=mem://x", "restore-backup", "2026-01-30T01:02:03Z-000009", ""}, nil},
		{[]string{"__complete", "restore-backup", ""}, nil},
	} {
		code, out, _ := w.exec(c.args...)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if code != 0 || !slices.Equal(lines[:len(lines)-1], c.want) && len(lines)-1+len(c.want) > 0 {
			t.Errorf("%v: code %d, got %q, want %q", c.args, code, lines, c.want)
		}
	}
	if code, out, _ := w.exec("completion", "bash"); code != 0 || !strings.Contains(out, "etcd-manager-ctl") {
		t.Errorf("completion: %d", code)
	}
}

func TestFileStore(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	for _, url := range []string{dir, "file://" + dir} {
		if code, _, errOut := w.exec("--backup-store="+url, "configure-cluster", "--member-count=1"); code != 0 {
			t.Fatalf("%s: %d %s", url, code, errOut)
		}
		if code, out, _ := w.exec("--backup-store="+url, "-o", "json"); code != 0 || !strings.Contains(out, `"memberCount": 1`) {
			t.Fatalf("%s: %d %s", url, code, out)
		}
	}
}

// TestEverythingIsDocumented holds docs/ctl.md and the pages below docs/ctl to the commands and flags that there are.
func TestEverythingIsDocumented(t *testing.T) {
	pages, err := filepath.Glob("../../docs/ctl/*.md")
	must(t, err)
	var doc string
	for _, page := range append(pages, "../../docs/ctl.md") {
		data, err := os.ReadFile(page)
		must(t, err)
		doc += string(data)
	}
	for _, c := range (&app{}).rootCommand().Commands() {
		if !strings.Contains(doc, "## `"+c.Name()) {
			t.Errorf("command %s has no section", c.Name())
		}
		c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" && !strings.Contains(doc, "--"+f.Name) {
				t.Errorf("%s: flag --%s is not mentioned", c.Name(), f.Name)
			}
		})
	}
}
