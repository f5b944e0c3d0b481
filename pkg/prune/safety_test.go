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
	base.Revision = w.rev - 4
	w.run(60)
	op := catalog.Operation{ID: "done", Kind: catalog.KindRestore, State: catalog.StateDone, SafetyPoint: &base}
	if _, err := w.c.PutOperation(t.Context(), op, ""); err != nil {
		t.Fatal(err)
	}
	ex, err := w.pruner().Exempt(t.Context())
	if err != nil || len(ex.SafetyChanges) != 1 || ex.SafetyChanges[0].To != base || ex.Safety[base.Backup].IsZero() {
		t.Fatalf("kept for an undo: %+v, %v", ex, err)
	}
	for _, state := range []catalog.OperationState{catalog.StateFailed, catalog.StateRolledBack} {
		if ex := exemptFor(nil, []catalog.Operation{{State: state, SafetyPoint: &base}}); len(ex.SafetyChanges) > 0 {
			t.Errorf("changes are kept for a restore that is %s: nothing is to be undone", state)
		}
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
	// What comes behind the point may have the TTL of a lease, and is little where a restore has ended the incarnation.
	left := w.segments()
	if len(left) != len(all)-before || left[0].SegmentName != all[before].SegmentName {
		t.Fatalf("%d segments are left of %d, from %v on; the first %d are not needed", len(left), len(all), left, before)
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
