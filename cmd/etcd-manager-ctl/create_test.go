package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// TestCreateBackup: a backup is asked for, seen being taken, failing, and done, through the store alone.
func TestCreateBackup(t *testing.T) {
	w := newWorld(t)
	w.spec(3, "3.5.21")
	c := w.catalog()
	queued := func() string {
		cmds, problems, err := c.Commands(context.Background())
		must(t, err)
		if len(problems) > 0 || len(cmds) != 1 || cmds[0].Create == nil || !cmds[0].Create.Pin || cmds[0].Create.Reason != "upgrade" {
			t.Fatalf("the queue is %+v, %v", cmds, problems)
		}
		return cmds[0].Name
	}
	w.steps = []func(){
		func() {
			must(t, c.PutCreateProgress(context.Background(), queued(), catalog.CreateProgress{At: w.now, Node: "b", Attempt: 1}))
		},
		func() {
			must(t, c.PutCreateProgress(context.Background(), queued(),
				catalog.CreateProgress{At: w.now, Node: "b", Attempt: 1, Error: "disk on fire", RetryAt: w.now.Add(5 * time.Second)}))
		},
		func() {
			name := queued()
			_, err := c.PutOperation(context.Background(),
				catalog.Operation{ID: name, Kind: catalog.KindBackup, State: catalog.StateDone, Command: name,
					Backup:  "2026-01-30T01:02:03Z-000009",
					Options: catalog.RestoreOptions{Reason: "upgrade"}, Created: w.now, Finished: w.now, Leader: "a", Term: 3}, "")
			must(t, err)
			must(t, c.RemoveCommand(context.Background(), name))
		},
	}
	out, errOut, code := w.tell("create-backup", "--wait", "--pin", "--reason=upgrade")
	if code != exitOK {
		t.Fatalf("code %d: %s%s", code, out, errOut)
	}
	for _, want := range []string{"a backup on demand", "node b takes it", "disk on fire", "done: backup 2026-01-30T01:02:03Z-000009"} {
		if !strings.Contains(out, want) {
			t.Errorf("it doesn't say %q:\n%s", want, out)
		}
	}
	if out, _, _ := w.tell("list-commands"); !strings.Contains(out, "done") || !strings.Contains(out, "2026-01-30T01:02:03Z-000009") {
		t.Errorf("list-commands:\n%s", out)
	}
	if _, errOut, code := w.tell("undo-restore"); code != exitNotFound {
		t.Errorf("a backup can be undone? code %d: %s", code, errOut)
	}
	if _, _, code := w.tell("create-backup"); code != exitOK {
		t.Errorf("queued without waiting: code %d", code)
	}
	cmds, _, err := c.Commands(context.Background())
	must(t, err)
	if out, _, code := w.tell("delete-command", cmds[0].Name); code != exitOK || !strings.Contains(out, "withdrawn") {
		t.Errorf("withdrawing: code %d: %s", code, out)
	}
}

// TestPins: what is pinned stays, what isn't goes, and each decision is explained.
func TestPins(t *testing.T) {
	w := newWorld(t)
	old, pinned := "2020-01-01T00:00:00Z-000000", "2020-01-01T01:00:00Z-000000"
	newest := w.now.UTC().Add(-time.Minute).Format(time.RFC3339) + "-000000"
	for _, name := range []string{old, pinned, newest} {
		w.goodBackup(name, "c", 5, "periodic")
	}
	if _, errOut, code := w.tell("pin-backup", "2020-01-01T01:00:00Z-00000"); code != exitNotFound || !strings.Contains(errOut, pinned) {
		t.Errorf("pinning what isn't there: code %d: %s", code, errOut)
	}
	if _, errOut, code := w.tell("pin-backup", pinned, "--reason=keep it"); code != exitOK {
		t.Fatalf("pin: code %d: %s", code, errOut)
	}
	if p, err := w.catalog().Pin(context.Background(), pinned); err != nil || p.Reason != "keep it" {
		t.Errorf("the pin is %+v, %v", p, err)
	}
	must(t, w.catalog().PutProof(context.Background(), newest, catalog.Proof{At: w.now, Outcome: catalog.Proven}))
	var narrow strings.Builder
	backups, err := w.catalog().Backups(t.Context())
	must(t, err)
	must(t, backupTable(&app{deps: deps{out: &narrow, now: func() time.Time { return w.now }}}, backups.Backups, nil, false))
	for line := range strings.Lines(narrow.String()) {
		if len(strings.Replace(line, "in the future", "1m ago", 1)) > 81 { // the test's clock is behind the store's
			t.Errorf("%d columns are too many for a screen: %s", len(line)-1, line)
		}
	}
	if !strings.Contains(narrow.String(), "pinned") || !strings.Contains(narrow.String(), "good, ") {
		t.Errorf("the table on a screen:\n%s", narrow.String())
	}
	if out, _, _ := w.tell("list-backups", "-o", "wide"); !strings.Contains(out, "yes") || !strings.Contains(out, "good, ") {
		t.Errorf("the table:\n%s", out)
	}
	out, _, code := w.tell("prune", "--dry-run")
	if code != exitOK || !strings.Contains(out, "remove  backup "+old) || !strings.Contains(out, "pinned") {
		t.Errorf("dry run: code %d:\n%s", code, out)
	}
	if _, _, code := w.tell("prune"); code != exitUsage {
		t.Errorf("it removes without being asked to: code %d", code)
	}
	if out, errOut, code := w.tell("prune", "--yes"); code != exitOK || !strings.Contains(out, "removed: 1 backup") {
		t.Errorf("prune: code %d: %s%s", code, out, errOut)
	}
	if out, _, _ := w.tell("list-backups"); strings.Contains(out, old) || !strings.Contains(out, pinned) || !strings.Contains(out, newest) {
		t.Errorf("left are:\n%s", out)
	}
	if _, _, code := w.tell("unpin-backup", pinned); code != exitOK {
		t.Errorf("unpin: code %d", code)
	}
	if out, _, _ := w.tell("prune", "--yes", "--daily-backups-retention=1d"); !strings.Contains(out, "removed: 1 backup") {
		t.Errorf("after unpinning: %s", out)
	}
}

// tell runs one command line on the store.
func (w *world) tell(args ...string) (out, errOut string, code int) {
	w.t.Helper()
	code, out, errOut = w.exec(append([]string{"--backup-store=mem://bucket/main"}, args...)...)
	return out, errOut, code
}
