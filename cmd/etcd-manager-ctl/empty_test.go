package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
	"github.com/etcd-manager/etcd-manager/pkg/buildinfo"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/operator/health"
)

// TestEmptyStore gives every command a mistyped prefix: each says that nothing is there and what may be meant, and writes nothing.
func TestEmptyStore(t *testing.T) {
	dir := t.TempDir()
	open := func(ctx context.Context, url string) (blob.Store, error) {
		return connect.Open(ctx, url, func(string) string { return "" })
	}
	for _, name := range []string{"main", "events"} {
		s, err := open(t.Context(), "file://"+filepath.Join(dir, name))
		must(t, err)
		_, err = catalog.New(s).CreateSpec(t.Context(), specOf(3))
		must(t, err)
	}
	must(t, os.MkdirAll(filepath.Join(dir, "mian"), 0o700))
	file := filepath.Join(dir, "snapshot")
	must(t, os.WriteFile(file, []byte("x"), 0o600))
	ctl := func(base string, args ...string) (string, int) {
		var out, errOut strings.Builder
		w := newWorld(t)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // what would be followed there never ends
		defer cancel()
		code := run(ctx, deps{
			args: append([]string{"--backup-store=file://" + filepath.Join(dir, base)}, args...), out: &out,
			errOut: &errOut, in: strings.NewReader(""),
			open: open, now: func() time.Time { return w.now }, build: buildinfo.Info{Version: "test"},
		})
		return out.String() + errOut.String(), code
	}
	backup := "2026-01-01T00:00:00Z-000001"
	commands := [][]string{
		{"get"}, {"list-backups"}, {"list-commands"}, {"describe-command", backup}, {"create-backup"},
		{"restore-backup", backup}, {"restore-backup", "--latest"},
		{"recover", "--from-survivor", "--yes"}, {"undo-restore"}, {"follow"}, {"delete-command", backup},
		{"pin-backup", backup}, {"unpin-backup", backup},
		{"verify-backup", backup}, {"download-backup", backup, filepath.Join(dir, "out")}, {"inspect", backup},
		{"prune"}, {"history", "/a"},
		{"before", "/a"}, {"extract", "/a", "--at-revision=5", "--output-file=" + filepath.Join(dir, "x")}, {"confirm-cluster", "T1"},
		{"open", backup}, {"open", "--latest"}, {"diff", backup}, {"diff", backup, "latest"},
		{"put-back", "/a"}, {"put-back", "--namespace=shop", "--yes"},
		{"undo-put-back"}, {"undo-put-back", backup, "--yes"}, {"status"}, {"use-copy", "--yes"}, {"events"},
		{"supersede", "--by=s3://other/main", "--yes"}, {"undo-supersede", "--yes"}, {"promote", "--yes"},
	}
	for _, args := range commands {
		for base, want := range map[string]string{"mian": "/main", "event": "/events", "": "/events"} {
			text, code := ctl(base, args...)
			says, exit := "there is no cluster in", exitNotFound
			if base == "event" { // the directory doesn't exist: it may not be mounted
				says, exit = "is the file system mounted", exitStore
			}
			if args[0] == "status" {
				exit = health.Unknown.ExitCode()
			}
			if code != exit || !strings.Contains(text, says) ||
				!strings.Contains(text, "did you mean") || !strings.Contains(text, want) {
				t.Errorf("%q at %q: code %d, %s", args, base, code, text)
			}
		}
	}
	// A fleet's place is above its clusters.
	if text, code := ctl("mian", "fleet", "status"); code != health.Unknown.ExitCode() ||
		!strings.Contains(text, "there is no cluster below") {
		t.Errorf("a fleet without clusters: %d %s", code, text)
	}
	if text, code := ctl("", "fleet", "status"); !strings.Contains(text, "main") || !strings.Contains(text, "events") {
		t.Errorf("a fleet: %d %s", code, text)
	}
	left, err := os.ReadDir(filepath.Join(dir, "mian"))
	must(t, err)
	if len(left) > 0 {
		t.Errorf("something was written: %v", left)
	}
	if text, code := ctl("mian", "list-backups", "--allow-empty-store"); code != exitOK {
		t.Errorf("allowed: %d %s", code, text)
	}
	if text, code := ctl("mian", "configure-cluster", "--member-count=3"); code != exitOK ||
		!strings.Contains(text, "/main") || !strings.Contains(text, "new cluster") {
		t.Errorf("the first command: %d %s", code, text)
	}
	if text, code := ctl("mian", "create-backup"); code != exitOK {
		t.Errorf("a store with a spec: %d %s", code, text)
	}
	var named []string
	for _, args := range commands {
		named = append(named, args[0])
	}
	others := []string{"configure-cluster", "import-backup", "fleet", "version", "kops",
		"masterleases", "volumes", "pki", "help", "completion"}
	for _, c := range (&app{}).rootCommand().Commands() {
		if !slices.Contains(named, c.Name()) && !slices.Contains(others, c.Name()) {
			t.Errorf("%s is neither in the table nor among the commands that may go on with an empty store, or ask none", c.Name())
		}
	}
}
