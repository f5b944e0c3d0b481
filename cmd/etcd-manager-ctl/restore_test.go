package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

func TestRestoreLatestAndOptions(t *testing.T) {
	w := newWorld(t)
	w.do("restore-backup", "latest")
	w.goodBackup(backup1, "main", 1234, "periodic")
	w.goodBackup("2026-02-01T11:45:00Z-000000", "main", 5678, "before-restore")
	w.put("2026-02-01T11:59:00Z-000000/etcd.backup.gz", "x")
	w.do("restore-backup", "latest")
	w.spec(3, "3.5.21")
	w.do("restore-backup", "latest", "--now", "--keep-masterleases", "--drop-prefix=/registry/events/", "--drop-prefix",
		"/x", "--reason=wrong deletion", "--force-foreign")
	cmd, err := w.catalog().Command(context.Background(), "2026-02-01T12:00:00Z-000000")
	must(t, err)
	if o := cmd.Options; !o.Now || !o.KeepMasterleases ||
		!slices.Equal(o.DropPrefixes, []string{"/registry/events/", "/x"}) || o.Reason != "wrong deletion" || !o.ForceForeign {
		t.Errorf("queued with %+v", o)
	}
	if cmd.Backup != "2026-02-01T11:45:00Z-000000" {
		t.Errorf("queued %s", cmd.Backup)
	}
	w.do("describe-command", cmd.Name)
	w.do("list-commands", "-o", "json")
	w.do("restore-backup", backup1, "--drop-prefix=")
	l := w.begin(cmd.Name, catalog.StateStaging)
	l.progress(fetching("stage", 30*mib))
	w.do("restore-backup", backup1, "--now")
	w.do("list-commands")
	w.do("describe-command", cmd.Name)
	w.do("describe-command", "nobody")
	w.golden("options")
}

// TestRestoreWithSpec has the managers write the spec when the restore is done; where there is none yet it is written at once, and
// nothing is queued if that isn't possible.
func TestRestoreWithSpec(t *testing.T) {
	w := newWorld(t)
	w.goodBackup(backup1, "main", 1234, "periodic")
	w.do("restore-backup", backup1, "--etcd-version=3.6.16")
	w.do("restore-backup", backup1, "--member-count=2")
	w.do("list-commands")
	w.do("restore-backup", backup1, "--member-count=1", "--etcd-version=3.6.16")
	w.do("get")
	w.do("restore-backup", backup1, "--member-count=1")
	w.do("restore-backup", backup1, "--member-count=3")
	w.do("get")
	if c := w.lastCommand(); !c.Options.SetSpec || c.Spec.MemberCount != 3 {
		t.Errorf("queued %+v", c)
	}
	w.golden("restore-spec")

	w = newWorld(t)
	w.goodBackup(backup1, "main", 1234, "periodic")
	mem := w.store
	faulty := blobtest.NewFaulty(mem)
	w.store = faulty
	before, _, err := w.catalog().Commands(context.Background())
	must(t, err)
	faulty.Add(blobtest.Fault{Op: "put", Match: func(key string) bool { return strings.HasSuffix(key, "etcd-cluster-spec") },
		Err: blobtest.Denied("put", "control/etcd-cluster-spec", "s3:PutObject")})
	code, out, errOut := w.exec("--backup-store=mem://x", "restore-backup", backup1, "--member-count=5")
	if code != exitStore || out != "" || !strings.Contains(errOut, "nothing is queued") {
		t.Errorf("the spec can't be written: %d %s%s", code, out, errOut)
	}
	after, _, err := w.catalog().Commands(context.Background())
	must(t, err)
	if len(after) != len(before) {
		t.Errorf("%d commands are queued, %d were before", len(after), len(before))
	}
	faulty.Add(blobtest.Fault{Op: "purge", Err: blobtest.Transient("purge", "control/")})
	code, _, errOut = w.exec("--backup-store=mem://x", "restore-backup", backup1, "--member-count=5")
	if code != exitStore || !strings.Contains(errOut, "delete-command") {
		t.Errorf("withdrawing fails too: %d %s", code, errOut)
	}
}

func TestRestoreForeign(t *testing.T) {
	w := newWorld(t)
	w.spec(3, "3.5.21")
	w.goodBackup("2026-01-30T01:00:00Z-000000", "main", 1, "periodic")
	w.goodBackup("2026-01-30T02:00:00Z-000000", "", 2, "import")
	w.backup("2026-01-30T03:00:00Z-000000", false)
	w.goodBackup("2026-01-30T04:00:00Z-000000", "events", 3, "periodic")
	w.do("restore-backup", "latest")
	w.do("restore-backup", "latest", "--force-foreign")
	for _, name := range []string{"2026-01-30T02:00:00Z-000000", "2026-01-30T03:00:00Z-000000"} {
		w.do("restore-backup", name)
	}
	w.golden("foreign")
	// The only one of its kind tells nothing.
	w = newWorld(t)
	w.spec(3, "3.5.21")
	w.goodBackup("2026-01-30T04:00:00Z-000000", "events", 3, "periodic")
	if code, _, errOut := w.exec("--backup-store=mem://x", "restore-backup", "latest"); code != 0 {
		t.Error(errOut)
	}
}

func TestRestoreCutShort(t *testing.T) {
	w := newWorld(t)
	w.spec(3, "3.5.21")
	w.goodBackup(backup1, "main", 1234, "periodic")
	w.put(backup1+"/etcd.backup.gz", "x")
	code, _, errOut := w.exec("--backup-store=mem://x", "restore-backup", backup1)
	if code != exitFailure || !strings.Contains(errOut, "cut short: etcd.backup.gz: it has 1 bytes, the manifest says 1500") {
		t.Errorf("%d %s", code, errOut)
	}
}

// TestDelete withdraws in every state, or says why not.
func TestDelete(t *testing.T) {
	w := newWorld(t)
	w.spec(3, "3.5.21")
	w.formed()
	ctx := context.Background()
	queued := func(name string) bool {
		_, err := w.catalog().Command(ctx, name)
		if err != nil && !errors.Is(err, catalog.ErrNotFound) {
			t.Fatal(err)
		}
		return err == nil
	}
	for _, state := range []catalog.OperationState{catalog.StateSalvaging, catalog.StateProving, catalog.StateStaging, catalog.StateSaving,
		catalog.StateStopping, catalog.StateSwitching, catalog.StateVerifying, catalog.StateReverting} {
		w.pass(time.Second)
		l := w.begin(w.queue("in-"+string(state), catalog.RestoreOptions{}), state)
		w.do("delete-command", l.op.Command)
		if got, want := queued(l.op.Command), operator.Stopped(state); got != want {
			t.Errorf("%s: still queued: %t, want %t", state, got, want)
		}
		w.do("delete-command", l.op.Command)
		l.advance(catalog.StateDone, "")
	}
	w.pass(time.Second)
	twice := []string{w.queue("twice", catalog.RestoreOptions{}), w.queue("twice", catalog.RestoreOptions{})}
	w.do("delete-command", "twice")
	if queued(twice[0]) || queued(twice[1]) {
		t.Error("not both are withdrawn")
	}
	w.ended(twice[0], "twice", catalog.StateFailed, nil)
	w.do("delete-command", twice[0])
	cmd, err := w.catalog().QueueRecover(ctx, catalog.Source{Node: "b", Token: "tok"}, specOf(3), catalog.RestoreOptions{Now: true})
	must(t, err)
	w.do("list-commands")
	w.do("delete-command", "")
	w.do("delete-command", cmd.Name)
	if queued(cmd.Name) {
		t.Error("a recovery isn't withdrawn")
	}
	w.golden("delete")
}

// TestDeleteFailedFirst removes the record of a restore that has failed where no cluster was ever
// created, since it keeps one from being formed.
func TestDeleteFailedFirst(t *testing.T) {
	w := newWorld(t)
	w.spec(3, "3.5.21")
	name := w.queue("bad", catalog.RestoreOptions{})
	must(t, w.catalog().RemoveCommand(context.Background(), name))
	w.ended(name, "bad", catalog.StateFailed, nil)
	code, out, errOut := w.exec("--backup-store=mem://x", "delete-command", name)
	if code != exitOK || !strings.Contains(out, "removed: "+name) {
		t.Errorf("%d %s%s", code, out, errOut)
	}
	if _, _, err := w.catalog().Operation(context.Background(), name); !errors.Is(err, catalog.ErrNotFound) {
		t.Errorf("its record: %v", err)
	}
	w.ended(name, "bad", catalog.StateFailed, nil)
	w.formed()
	if code, _, errOut := w.exec("--backup-store=mem://x", "delete-command", name); code != exitNotFound ||
		!strings.Contains(errOut, "it ended as failed") {
		t.Errorf("where a cluster is: %d %s", code, errOut)
	}
}

// TestDeleteRace: the managers come further in the very moment of the withdrawal.
func TestDeleteRace(t *testing.T) {
	w := newWorld(t)
	w.spec(3, "3.5.21")
	l := w.begin(w.queue("x", catalog.RestoreOptions{}), catalog.StateSaving)
	w.store = onPurge{w.store, func() { l.op.SafetyBackup = "s"; l.op.State = catalog.StateStopping; l.save() }}
	code, _, errOut := w.exec("--backup-store=mem://x", "delete-command", "x")
	if code != 0 || !strings.Contains(errOut, "at this moment") || !strings.Contains(errOut, "undo-restore") {
		t.Errorf("%d %s", code, errOut)
	}
}

// TestRestoreAnswerLost: the store has taken the command, but said so in vain. It is found and
// queued once; if the store can't be asked any more, the operator is told where to look.
func TestRestoreAnswerLost(t *testing.T) {
	for _, away := range []bool{false, true} {
		w := newWorld(t)
		w.spec(3, "3.5.21")
		w.goodBackup(backup1, "main", 1234, "periodic")
		intact, f := w.store, blobtest.NewFaulty(w.store)
		f.Add(blobtest.Fault{Op: "put", After: true, Err: blobtest.Transient("put", "control/x")})
		if away {
			f.Add(blobtest.Fault{Op: "get", Match: func(key string) bool { return strings.HasSuffix(key, "_command.json") },
				Err: blobtest.Transient("get", "control/x")})
		}
		w.store = f
		code, out, errOut := w.exec("--backup-store=mem://x", "restore-backup", backup1)
		switch {
		case away && (code != exitStore || out != "" || !strings.Contains(errOut, "list-commands")):
			t.Errorf("the store away: %d %s%s", code, out, errOut)
		case !away && code != exitOK:
			t.Errorf("%d %s%s", code, out, errOut)
		}
		w.store = intact
		if cmds, _, err := w.catalog().Commands(t.Context()); err != nil || len(cmds) != 1 {
			t.Errorf("away %t: %d commands are queued, %v", away, len(cmds), err)
		}
	}
}
