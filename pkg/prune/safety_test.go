package prune

import (
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// TestStateBeforeARestoreStays: the backup and the changes that lead to the state before a restore stay for a week, and
// nothing else does for them.
func TestStateBeforeARestoreStays(t *testing.T) {
	w := newWorld(t, "2026-03-01T00:00:00Z")
	w.run(2)
	base := catalog.SafetyPoint{PointInTime: catalog.PointInTime{Incarnation: catalog.IncarnationOf(clusterID), BaseRevision: w.rev}}
	w.now = w.now.Add(time.Second)
	base.Backup = w.backup()
	before := len(w.segments())
	for range 10 {
		w.now = w.now.Add(30 * time.Second)
		w.segment(3)
	}
	base.Revision = w.rev - 4 // the last two segments reach it, the last one not wholly
	w.run(60)
	op := catalog.Operation{ID: "done", Kind: catalog.KindRestore, State: catalog.StateDone, SafetyPoint: &base}
	if _, err := w.c.PutOperation(t.Context(), op, ""); err != nil {
		t.Fatal(err)
	}
	ex, err := w.pruner().Exempt(t.Context())
	if err != nil || len(ex.SafetyChanges) != 1 || ex.SafetyChanges[0].To != base || ex.Safety[base.Backup].IsZero() {
		t.Fatalf("kept for an undo: %+v, %v", ex, err)
	}
	at := w.now.Add(time.Minute)
	ex.SafetyChanges[0].At, ex.Safety[base.Backup] = at, at
	all := w.segments()
	for range 50 {
		r, err := w.pruner().Run(t.Context(), at.Add(6*24*time.Hour), ex)
		if err != nil {
			t.Fatal(err)
		}
		if !r.More {
			break
		}
	}
	if !w.names()[base.Backup] {
		t.Error("the backup is gone")
	}
	left := w.segments()
	if len(left) < 9 {
		t.Fatalf("%d segments are left of %d", len(left), len(all))
	}
	for i, s := range left[:9] {
		if s.SegmentName != all[before+i].SegmentName {
			t.Errorf("segment %d is %s; want %s", i, s.SegmentName, all[before+i].SegmentName)
		}
	}
	if len(left) > 9 && left[9].First <= all[before+10].Last {
		t.Errorf("%s stays, which nobody needs", left[9].SegmentName)
	}
	for range 50 {
		r, err := w.pruner().Run(t.Context(), at.Add(8*24*time.Hour), ex)
		if err != nil {
			t.Fatal(err)
		}
		if !r.More {
			break
		}
	}
	if left := w.segments(); len(left) > 0 && left[0].First == all[before].First {
		t.Errorf("%s is still there after eight days", left[0].SegmentName)
	}
}
