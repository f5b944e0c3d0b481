package manager

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// finish closes the books: marker, command, record, leftovers, in this order. A crash in between
// leaves a record that isn't final, and whoever leads next finishes it. Were the record final
// first, a crash would leave a command that asks for the same restore again.
func (rs *restorer) finish(ctx context.Context, o *model.Observation, a model.FinishRestore) error {
	if a.To == model.OpDone {
		if err := rs.markRestored(ctx); err != nil {
			return err
		}
		if err := rs.setSpec(ctx); err != nil {
			return err
		}
	}
	rs.operations.noteRemoved(rs.operations.current().ID)
	if err := rs.m.cfg.Catalog.RemoveCommand(ctx, rs.operations.current().Command); err != nil {
		return err
	}
	err := rs.operations.save(ctx, func(op *catalog.Operation) {
		if a.To == model.OpDone || a.To == model.OpRolledBack {
			op.Outage = rs.operations.outage(op)
		}
		stepTo(op, catalog.OperationState(a.To), a.Reason)
		op.Finished = time.Now()
		if a.To == model.OpDone {
			op.RevisionAfter = op.StagedRevision
		}
	})
	if err != nil {
		return err
	}
	op := rs.operations.current()
	rs.operations.learn(op)
	if a.To == model.OpDone {
		text := fmt.Sprintf("%s is restored: revision %d, etcd served nobody for %s; API servers see it without a restart: restart them soon, one after the other (docs/kubernetes.md)",
			subject(op), op.RevisionAfter, op.Outage.Round(time.Millisecond))
		klog.Infof("%s", text)
		rs.m.events.restore(op, catalog.EventDone, text)
	} else {
		text := fmt.Sprintf("the restore of %s ended as %s: %s", subject(op), op.State, op.Reason)
		klog.Errorf("%s", text)
		rs.m.events.restore(op, catalog.EventFailed, text)
	}
	rs.operations.forget()
	rs.forceStore()
	if a.To == model.OpDone {
		rs.backups.noteRestored()
	}
	rs.cleaner.clearAway(ctx, o, op.ID)
	rs.retention.pruneHistory(ctx)
	return nil
}

// markRestored makes the marker say which cluster there is now.
func (rs *restorer) markRestored(ctx context.Context) error {
	if rs.marker.seen.Phase == model.MarkerFormed && rs.marker.seen.Token == rs.operations.current().NewToken {
		return nil
	}
	return rs.marker.markAs(ctx, rs.marker.newMarker(catalog.PhaseFormed, &rs.operations.current().Spec, rs.operations.current().NewToken, rs.operations.current().Members, rs.operations.current().Spec.EtcdVersion))
}

// setSpec makes the command's spec the cluster's, if that was asked for.
func (rs *restorer) setSpec(ctx context.Context) error {
	if !rs.operations.current().Options.SetSpec {
		return nil
	}
	now, ver, err := rs.m.cfg.Catalog.Spec(ctx)
	want := rs.operations.current().Spec
	var bad *catalog.ObjectError
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		_, err = rs.m.cfg.Catalog.CreateSpec(ctx, want)
	case errors.As(err, &bad):
		klog.Errorf("the cluster spec can't be read, so the restored cluster's is not written: %v", err)
		return nil
	case err != nil:
	case now.MemberCount == want.MemberCount && (now.EtcdVersion == want.EtcdVersion || now.EtcdVersion == ""):
		return nil
	default:
		_, err = rs.m.cfg.Catalog.ReplaceSpec(ctx, want, ver)
	}
	if err != nil {
		return err
	}
	klog.Infof("the cluster spec is that of the restore now: %d members, etcd %s", want.MemberCount, want.EtcdVersion)
	rs.store.setSpec(&want)
	return nil
}

// failCommand records why a command can't be carried out, then removes it.
func (rs *restorer) failCommand(ctx context.Context, a model.FailCommand) error {
	c, _ := rs.store.command(a.Command)
	now := time.Now()
	op := catalog.Operation{
		ID: a.Command, Kind: catalog.KindRestore, State: catalog.StateFailed, Reason: a.Reason, Command: a.Command, Backup: a.Backup, Source: c.Source,
		Options: c.Options, Spec: c.Spec, Created: now, StateSince: now, Finished: now, Term: rs.term, Leader: rs.m.cfg.Self, Instance: rs.m.cfg.Instance,
	}
	if a.SupersededBy != "" {
		op.State = catalog.StateSuperseded
	}
	if _, err := rs.m.cfg.Catalog.PutOperation(ctx, op, ""); err != nil && !errors.Is(err, catalog.ErrConflict) {
		return err
	}
	text := fmt.Sprintf("the queued restore of %s is not carried out: %s", subject(&op), a.Reason)
	klog.Errorf("%s", text)
	rs.m.events.restore(&op, catalog.EventFailed, text)
	rs.forceStore()
	rs.retention.pruneHistory(ctx)
	return rs.m.cfg.Catalog.RemoveCommand(ctx, a.Command)
}
