package main

import (
	"context"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

const (
	done1  = "2026-02-01T08:00:00Z-000000"
	done2  = "2026-02-01T10:00:00Z-000000"
	safety = "2026-02-01T10:00:30Z-000000"
)

// undoWorld has a restore without and one with a safety backup, and a backup from after them.
func undoWorld(t *testing.T) *world {
	w := newWorld(t)
	w.spec(1, "3.5.21")
	w.goodBackup(backup1, "main", 1234, "periodic")
	w.goodBackup(safety, "main", 5678, "before-restore")
	w.ended(done1, backup1, catalog.StateDone, func(op *catalog.Operation) { op.OldToken = "firsttoken" })
	w.ended(done2, backup1, catalog.StateDone, func(op *catalog.Operation) { op.OldToken, op.SafetyBackup = "secondtoken", safety })
	w.goodBackup("2026-02-01T11:50:00Z-000000", "main", 1000009999, "periodic")
	return w
}

func (w *world) lastCommand() catalog.Command {
	w.t.Helper()
	cmds, _, err := w.catalog().Commands(context.Background())
	must(w.t, err)
	if len(cmds) == 0 {
		return catalog.Command{}
	}
	return cmds[len(cmds)-1]
}

func TestUndo(t *testing.T) {
	w := undoWorld(t)
	w.do("undo-restore") // nobody can be asked
	w.answer = "no\n"
	w.do("undo-restore")
	if c := w.lastCommand(); c.Name != "" {
		t.Fatalf("queued without a yes: %+v", c)
	}
	w.answer = "yes\n"
	w.do("undo-restore")
	if c := w.lastCommand(); c.Source == nil || c.Source.Token != "secondtoken" || c.Source.OrBackup != safety ||
		c.Options.Now || c.Options.Reason != "undo of "+done2 {
		t.Errorf("queued %+v", c)
	}
	w.answer = ""
	w.do("undo-restore", "--yes") // one waits
	must(t, w.catalog().RemoveCommand(context.Background(), w.lastCommand().Name))
	w.do("undo-restore", done1, "--yes", "--now", "--member-count=3", "--reason=mine")
	if c := w.lastCommand(); c.Backup != "" || c.Source == nil || c.Source.Token != "firsttoken" ||
		c.Source.Node != "" || !c.Options.Now || c.Spec.MemberCount != 3 || c.Options.Reason != "mine" {
		t.Errorf("queued %+v", c)
	}
	w.do("list-commands")
	w.do("describe-command", w.lastCommand().Name)
	w.golden("undo")
}

// TestUndoOfUndo: an undo is a restore with a safety backup of its own.
func TestUndoOfUndo(t *testing.T) {
	w := undoWorld(t)
	w.goodBackup("2026-02-01T11:51:00Z-000000", "main", 1000010000, "before-restore")
	w.ended("2026-02-01T11:00:00Z-000000", safety, catalog.StateDone, func(op *catalog.Operation) {
		op.OldToken, op.SafetyBackup, op.Finished = "thirdtoken", "2026-02-01T11:51:00Z-000000", w.now.Add(-time.Minute)
	})
	w.do("undo-restore", "--yes")
	if c := w.lastCommand(); c.Source == nil || c.Source.Token != "thirdtoken" || c.Source.OrBackup != "2026-02-01T11:51:00Z-000000" {
		t.Errorf("queued %+v", c)
	}
	w.golden("undo-undo")
}

func TestUndoRefused(t *testing.T) {
	w := newWorld(t)
	w.spec(3, "3.5.21")
	w.do("undo-restore", "--yes")
	w.ended("2026-02-01T01:00:00Z-000000", "x", catalog.StateRolledBack, nil)
	w.ended("2026-02-01T02:00:00Z-000000", "x", catalog.StateFailed, nil)
	w.do("undo-restore", "--yes")
	w.do("undo-restore", "2026-02-01T01:00:00Z-000000", "--yes")
	w.do("undo-restore", "2026-02-01T02:00:00Z-000000", "--yes")
	w.do("undo-restore", "nothing", "--yes")
	w.ended("2026-02-01T00:00:00Z-000000", "x", catalog.StateDone, nil)
	w.do("undo-restore", "--yes") // there was no cluster before
	w.ended("2026-02-01T03:00:00Z-000000", "x", catalog.StateDone, func(op *catalog.Operation) { op.SafetyBackup = "gone" })
	w.do("undo-restore", "--yes")
	w.ended("2026-02-01T04:00:00Z-000000", "x", catalog.StateDone,
		func(op *catalog.Operation) { op.SafetyBackup, op.OldToken = "gone", "oldtoken" })
	w.ended("2026-02-01T05:00:00Z-000000", "x", catalog.StateFailed, nil)
	w.do("undo-restore", "--yes")
	if c := w.lastCommand(); c.Source == nil || c.Source.Token != "oldtoken" {
		t.Errorf("queued %+v", c)
	}
	running := w.begin(w.lastCommand().Name, catalog.StateStaging)
	w.do("undo-restore", "--yes")
	w.do("undo-restore", running.op.ID, "--yes")
	w.golden("undo-refused")
}
