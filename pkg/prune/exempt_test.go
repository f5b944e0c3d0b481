package prune

import (
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// TestExempt: the queue, a restore under way and the copy from before one that is done stay for
// whoever prunes, and a clock that is ahead takes nothing of that away.
func TestExempt(t *testing.T) {
	w := newWorld(t, "2026-01-01T00:00:00Z")
	ctx := t.Context()
	var names []string
	for range 5 {
		names = append(names, w.backup())
		w.now = w.now.Add(10 * time.Minute)
	}
	w.now = w.now.Add(200 * 24 * time.Hour)
	w.backup()
	queued, restoring, safety := names[1], names[2], names[3]
	if _, err := w.c.QueueRestore(ctx, queued, cluster.Spec{MemberCount: 3}, catalog.RestoreOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, op := range []catalog.Operation{
		{ID: "under-way", Kind: catalog.KindRestore, State: catalog.StateProving, Backup: restoring,
			Target: &catalog.PointInTime{Incarnation: "i"}},
		{ID: "done", Kind: catalog.KindRestore, State: catalog.StateDone, SafetyBackup: safety},
	} {
		if _, err := w.c.PutOperation(ctx, op, ""); err != nil {
			t.Fatal(err)
		}
	}
	p := w.pruner()
	ex, err := p.Exempt(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if ex.Changes == "" {
		t.Error("changes may be removed while they are being restored")
	}
	if at := ex.Safety[safety]; time.Since(at).Abs() > time.Hour {
		t.Errorf("safety copy of %s", at)
	}
	gets := w.store.gets
	if _, err := p.Exempt(ctx); err != nil || w.store.gets-gets > 2 { // the command, in its two files
		t.Errorf("%d objects are read again, %v", w.store.gets-gets, err)
	}
	ex.Safety[safety] = time.Now() // by the store's clock
	pl, err := p.Plan(ctx, w.now.Add(400*24*time.Hour), ex)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range pl.Decisions {
		want := d.Backup == queued || d.Backup == restoring || d.Backup == safety
		if want && !d.Keep {
			t.Errorf("%s goes: %s", d.Backup, d.Reason)
		}
	}
}
