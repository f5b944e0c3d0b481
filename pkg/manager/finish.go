package manager

import (
	"context"
	"errors"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// outage is the time from the first stop until a member was open to clients again.
func (l *leadership) outage(op *catalog.Operation) time.Duration {
	end := l.served
	if end.IsZero() {
		end = time.Now()
	}
	for _, s := range op.Steps {
		if s.Name == string(catalog.StateStopping) {
			return end.Sub(s.Started)
		}
	}
	return 0
}

// noteServed remembers when the first member answered a client after the stop, which takes a quorum.
func (l *leadership) noteServed(nodes []cluster.NodeStatus) {
	if l.op == nil || !l.op.State.Committing() {
		l.served = time.Time{}
		return
	}
	token := l.op.NewToken
	if l.op.State == catalog.StateReverting {
		token = l.op.OldToken
	}
	for _, n := range nodes {
		if l.served.IsZero() && n.State != nil && n.State.Token == token && n.Etcd.Running && n.Etcd.Votes() && !n.Holding {
			l.served = time.Now()
		}
	}
}

// finish closes the books: marker, record, command, leftovers, in this order, so that a crash in between leaves the command to be finished again.
func (l *leadership) finish(ctx context.Context, o *model.Observation, a model.FinishRestore) error {
	if a.To == model.OpDone {
		if err := l.markRestored(ctx); err != nil {
			return err
		}
		if err := l.setSpec(ctx); err != nil {
			return err
		}
	}
	l.opRemoved = l.op.ID
	if err := l.m.cfg.Catalog.RemoveCommand(ctx, l.op.Command); err != nil {
		return err
	}
	err := l.save(ctx, func(op *catalog.Operation) {
		if a.To == model.OpDone || a.To == model.OpRolledBack {
			op.Outage = l.outage(op)
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
	op := l.op
	l.learn(op)
	if a.To == model.OpDone {
		klog.Infof("%s is restored: revision %d, etcd served nobody for %s; restart API servers and controllers now (docs/kubernetes.md)", subject(op), op.RevisionAfter, op.Outage.Round(time.Millisecond))
	} else {
		klog.Errorf("the restore of %s ended as %s: %s", subject(op), op.State, op.Reason)
	}
	l.forgetOperation()
	l.forceStore()
	if a.To == model.OpDone {
		l.backups.noteRestored()
	}
	l.clearAway(ctx, o, op.ID)
	l.retention.pruneHistory(ctx)
	return nil
}

// markRestored makes the marker say which cluster there is now.
func (l *leadership) markRestored(ctx context.Context) error {
	if l.store.Marker.Phase == model.MarkerFormed && l.store.Marker.Token == l.op.NewToken {
		return nil
	}
	m := l.newMarker(catalog.PhaseFormed, &l.op.Spec, l.op.NewToken, l.op.Members, l.op.Spec.EtcdVersion)
	if !l.store.marker.Time.IsZero() {
		m.Time = l.store.marker.Time
	}
	var ver string
	var err error
	if l.store.markerVer == "" {
		ver, err = l.m.cfg.Catalog.CreateMarker(ctx, m)
	} else {
		ver, err = l.m.cfg.Catalog.ReplaceMarker(ctx, m, l.store.markerVer)
	}
	if err != nil {
		return err
	}
	l.setMarker(m, ver)
	return nil
}

// setSpec makes the command's spec the cluster's, if that was asked for.
func (l *leadership) setSpec(ctx context.Context) error {
	if !l.op.Options.SetSpec {
		return nil
	}
	now, ver, err := l.m.cfg.Catalog.Spec(ctx)
	want := l.op.Spec
	var bad *catalog.ObjectError
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		_, err = l.m.cfg.Catalog.CreateSpec(ctx, want)
	case errors.As(err, &bad):
		klog.Errorf("the cluster spec can't be read, so the restored cluster's is not written: %v", err)
		return nil
	case err != nil:
	case now.MemberCount == want.MemberCount && (now.EtcdVersion == want.EtcdVersion || now.EtcdVersion == ""):
		return nil
	default:
		_, err = l.m.cfg.Catalog.ReplaceSpec(ctx, want, ver)
	}
	if err != nil {
		return err
	}
	klog.Infof("the cluster spec is that of the restore now: %d members, etcd %s", want.MemberCount, want.EtcdVersion)
	l.store.Spec, l.store.SpecError = &want, ""
	return nil
}

// clearAway frees the nodes of what the operation has left. A node that misses it does so before its next restore.
func (l *leadership) clearAway(ctx context.Context, o *model.Observation, id string) {
	err := each(o.Nodes, func(n cluster.NodeStatus) error {
		return l.nodes.quick(ctx, n.ID, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Discard{Discard: &protosv1.Discard{Operation: id}}})
	})
	if err != nil && ctx.Err() == nil {
		klog.V(2).Infof("clear away restore %s: %v", id, err)
	}
}

// leftBehind are the nodes that still have what an operation has staged which is over by the store, with its name. Data that are in use, or that
// a restore which was taken back has still to give up, are none.
func leftBehind(nodes []cluster.NodeStatus, ended map[string]string, current string) map[cluster.NodeID]string {
	list := map[cluster.NodeID]string{}
	for _, n := range nodes {
		inUse := slices.ContainsFunc(n.Staged, func(s cluster.StagedDir) bool {
			return s.Switched || s.Halted || n.State != nil && n.State.Token == s.Token
		})
		if n.Operation != "" && n.Operation != current && ended[n.Operation] != "" && !n.Holding && n.Busy == "" && !inUse {
			list[n.ID] = n.Operation
		}
	}
	return list
}

// discardAgain is how often a node is asked again to clear away what it has missed.
const discardAgain = time.Minute

// clearBehind frees nodes that were away, or whose manager was down, when an operation ended. Nobody waits for it.
func (l *leadership) clearBehind(ctx context.Context, nodes []cluster.NodeStatus) {
	current := ""
	if l.op != nil {
		current = l.op.ID
	}
	for id, op := range leftBehind(nodes, l.store.ended, current) {
		if time.Since(l.cleared[id]) < discardAgain {
			continue
		}
		l.cleared[id] = time.Now()
		l.wg.Go(func() {
			err := l.nodes.quick(ctx, id, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Discard{Discard: &protosv1.Discard{Operation: op}}})
			switch {
			case err == nil:
				klog.Infof("node %s has cleared away what it had of operation %s, which ended without it", id, op)
			case ctx.Err() == nil:
				l.said.Warningf("discard "+string(id), "clear away operation %s: %v", op, err)
			}
		})
	}
}

// failCommand records why a command can't be carried out, then removes it.
func (l *leadership) failCommand(ctx context.Context, a model.FailCommand) error {
	c := l.store.commands[a.Command]
	now := time.Now()
	op := catalog.Operation{
		ID: a.Command, Kind: catalog.KindRestore, State: catalog.StateFailed, Reason: a.Reason, Command: a.Command, Backup: a.Backup, Source: c.Source,
		Options: c.Options, Spec: c.Spec, Created: now, StateSince: now, Finished: now, Term: l.term, Leader: l.m.cfg.Self, Instance: l.m.cfg.Instance,
	}
	if a.SupersededBy != "" {
		op.State = catalog.StateSuperseded
	}
	if _, err := l.m.cfg.Catalog.PutOperation(ctx, op, ""); err != nil && !errors.Is(err, catalog.ErrConflict) {
		return err
	}
	klog.Errorf("the queued restore of %s is not carried out: %s", subject(&op), a.Reason)
	l.forceStore()
	l.retention.pruneHistory(ctx)
	return l.m.cfg.Catalog.RemoveCommand(ctx, a.Command)
}
