package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// readOperations keeps the restore under way in step with its record, and remembers which ones have ended.
func (l *leadership) readOperations(ctx context.Context, list catalog.ControlListing) error {
	s := &l.store
	if s.ended == nil {
		s.ended, s.failed = map[string]string{}, map[string]string{}
	}
	s.FailedRestores = nil
	for name := range s.failed {
		if !slices.ContainsFunc(list.Operations, func(o catalog.Object) bool { return o.Name == name }) {
			delete(s.failed, name)
			continue
		}
		s.FailedRestores = append(s.FailedRestores, s.failed[name])
	}
	slices.Sort(s.FailedRestores)
	if l.op != nil {
		return nil // this leadership writes it; nobody else does
	}
	for _, obj := range list.Operations {
		if s.ended[obj.Name] == obj.Stamp {
			continue
		}
		op, ver, err := l.m.cfg.Catalog.Operation(ctx, obj.Name)
		if errors.Is(err, catalog.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		s.highest = max(s.highest, op.RevisionBefore, op.RevisionAfter)
		if op.State == catalog.StateFailed {
			s.failed[obj.Name] = op.Backup + ": " + op.Reason
		}
		if op.State == catalog.StateRolledBack {
			s.RolledBack = append(s.RolledBack, *toPlan(&op))
			if n := len(s.RolledBack); n > rolledBackKept {
				s.RolledBack = s.RolledBack[n-rolledBackKept:]
			}
		}
		if op.State.Final() {
			s.ended[obj.Name] = obj.Stamp
			continue
		}
		klog.Infof("restore %s of backup %s was left in state %s; going on with it", op.ID, op.Backup, op.State)
		l.op, l.opVer = &op, ver
	}
	return nil
}

// rolledBackKept is how many restores that were taken back are remembered, for nodes that were away when it happened.
const rolledBackKept = 2

// planOperation is the restore under way as plan sees it.
func (l *leadership) planOperation() *plan.Operation {
	if l.op == nil {
		return nil
	}
	op := toPlan(l.op)
	op.RetryAt = l.opRetry
	return op
}

func toPlan(op *catalog.Operation) *plan.Operation {
	return &plan.Operation{
		ID: op.ID, Backup: op.Backup, State: plan.OperationState(op.State), Reason: op.Reason, Nodes: op.Members, Token: op.NewToken,
		OldToken: op.OldToken, Version: op.Spec.EtcdVersion, Size: op.Spec.MemberCount, Proven: op.Proven, SafetyBackup: op.SafetyBackup,
		SafetyTried: op.SafetyTried, RevisionBefore: op.RevisionBefore, Revision: op.StagedRevision, Hash: op.StagedHash, StateFor: time.Since(op.StateSince),
	}
}

// save writes the operation's record; what it says is true only afterwards.
func (l *leadership) save(ctx context.Context, change func(*catalog.Operation)) error {
	op := l.op.Clone()
	change(&op)
	op.Term, op.Leader, op.Instance = l.term, l.m.cfg.Self, l.m.cfg.Instance
	ctx, cancel := context.WithTimeout(ctx, quickAction)
	defer cancel()
	ver, err := l.m.cfg.Catalog.PutOperation(ctx, op, l.opVer)
	if err != nil {
		return err
	}
	l.op, l.opVer = &op, ver
	return nil
}

// actRestore carries out the steps of a restore.
func (l *leadership) actRestore(ctx context.Context, o *plan.Observation, spec *cluster.Spec, a plan.Action) error {
	switch a := a.(type) {
	case plan.BeginRestore:
		return l.beginRestore(ctx, o, a)
	case plan.ProveBackup:
		return l.step(ctx, l.proveAll(ctx, a))
	case plan.StageBackup:
		return l.step(ctx, l.stageAll(ctx, o, a))
	case plan.SafetyBackup:
		return l.step(ctx, l.safetyBackup(ctx, spec, a))
	case plan.Advance:
		return l.advance(ctx, o, a)
	case plan.StopAll:
		return l.step(ctx, each(a.Nodes, func(id cluster.NodeID) error {
			return l.quick(ctx, id, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Stop{Stop: &protosv1.Stop{Operation: a.Op.ID}}})
		}))
	case plan.SwitchAll:
		return l.step(ctx, each(a.Starts, func(s plan.StartEtcd) error {
			return l.quick(ctx, s.Node, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Switch{
				Switch: &protosv1.Switch{Operation: a.Op.ID, State: wire.StateToProto(&s.State)}}})
		}))
	case plan.RollbackAll:
		return each(a.Nodes, func(id cluster.NodeID) error {
			return l.quick(ctx, id, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Rollback{Rollback: &protosv1.Rollback{Operation: a.Op.ID}}})
		})
	case plan.FinishRestore:
		return l.finish(ctx, o, a)
	case plan.FailCommand:
		return l.failCommand(ctx, a)
	}
	return fmt.Errorf("action %T is not known", a)
}

// opAttempts is how often a step is tried for a reason that may pass, about ten minutes in all.
const opAttempts = 40

// step turns the outcome of a step into what the next decision is made from: a reason if it can't succeed, a time to try again if it may.
func (l *leadership) step(ctx context.Context, err error) error {
	if err == nil {
		l.opRetry, l.opFails = time.Time{}, 0
		return nil
	}
	if ctx.Err() != nil || errors.Is(err, cluster.ErrLowerTerm) {
		return err
	}
	l.opFails++
	if errors.Is(err, cluster.ErrPermanent) || l.opFails >= opAttempts {
		l.opFails = 0
		klog.Errorf("restore %s (%s): %v", l.op.ID, l.op.State, err)
		return l.save(ctx, func(op *catalog.Operation) { op.Reason = err.Error() })
	}
	wait := min(250*time.Millisecond<<min(l.opFails, 6), 15*time.Second)
	l.opRetry = time.Now().Add(wait)
	klog.Warningf("restore %s (%s), next attempt in %s: %v", l.op.ID, l.op.State, wait, err)
	return nil
}

// beginRestore writes the record before the first step.
func (l *leadership) beginRestore(ctx context.Context, o *plan.Observation, a plan.BeginRestore) error {
	c, ok := l.store.commands[a.Command]
	if !ok {
		return fmt.Errorf("command %s is not queued any more", a.Command)
	}
	now := time.Now()
	before := max(l.store.highest, a.Op.RevisionBefore)
	for _, n := range o.Nodes {
		before = max(before, n.Etcd.Revision)
	}
	before = max(before, l.newestRevision(ctx))
	op := catalog.Operation{
		ID: a.Op.ID, Kind: catalog.KindRestore, State: catalog.StateProving, Command: a.Command, Backup: a.Op.Backup, Options: c.Options,
		Spec: cluster.Spec{MemberCount: a.Op.Size, EtcdVersion: a.Op.Version}, Members: a.Op.Nodes, NewToken: a.Op.Token, OldToken: a.Op.OldToken,
		RevisionBefore: before, BumpRevision: int64(plan.Bump()), Created: now, StateSince: now,
		Term: l.term, Leader: l.m.cfg.Self, Instance: l.m.cfg.Instance,
	}
	ver, err := l.m.cfg.Catalog.PutOperation(ctx, op, "")
	if err != nil {
		return err
	}
	l.op, l.opVer = &op, ver
	return nil
}

// newestRevision is the revision of the newest backup, as far as its manifest tells; 0 if nothing does.
func (l *leadership) newestRevision(ctx context.Context) int64 {
	list, err := l.m.cfg.Catalog.Backups(ctx)
	if err != nil {
		return 0
	}
	b, ok := list.Newest()
	if !ok || !b.HasManifest {
		return 0
	}
	m, err := l.m.cfg.Catalog.Manifest(ctx, b.Name)
	if err != nil {
		return 0
	}
	return m.Revision
}

// showProgress keeps the operator informed through the record while a step takes long.
func (l *leadership) showProgress(ctx context.Context) (report func(cluster.NodeID, *protosv1.PerformEvent), stop func()) {
	var mu sync.Mutex
	now := map[cluster.NodeID]catalog.Progress{}
	changed := false
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(2 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			mu.Lock()
			copied, dirty := make(map[cluster.NodeID]catalog.Progress, len(now)), changed
			for k, v := range now {
				copied[k] = v
			}
			changed = false
			mu.Unlock()
			if dirty {
				if err := l.save(ctx, func(op *catalog.Operation) { op.Progress = copied }); err != nil && ctx.Err() == nil {
					klog.V(2).Infof("show progress: %v", err)
				}
			}
		}
	}()
	report = func(id cluster.NodeID, e *protosv1.PerformEvent) {
		mu.Lock()
		defer mu.Unlock()
		now[id] = catalog.Progress{Phase: e.GetPhase(), Done: e.GetBytesDone(), Total: e.GetBytesTotal()}
		changed = true
	}
	return report, func() { close(done); <-ended }
}

// proveAll has the nodes fetch and prove the backup, all at once.
func (l *leadership) proveAll(ctx context.Context, a plan.ProveBackup) error {
	report, stop := l.showProgress(ctx)
	var mu sync.Mutex
	proven := slices.Clone(l.op.Proven)
	err := each(a.Nodes, func(id cluster.NodeID) error {
		_, err := l.perform(ctx, id, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Prove{
			Prove: &protosv1.Prove{Operation: a.Op.ID, Backup: a.Op.Backup}}}, slowAction, func(e *protosv1.PerformEvent) { report(id, e) })
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		proven = append(proven, id)
		return nil
	})
	stop()
	if len(proven) > len(l.op.Proven) {
		if serr := l.save(ctx, func(op *catalog.Operation) { op.Proven = proven }); serr != nil {
			return serr
		}
	}
	return err
}

// stageAll has the nodes build their new data dirs, all at once.
func (l *leadership) stageAll(ctx context.Context, o *plan.Observation, a plan.StageBackup) error {
	report, stop := l.showProgress(ctx)
	defer stop()
	drop := slices.Clone(l.op.Options.DropPrefixes)
	if !l.op.Options.KeepMasterleases {
		drop = append(drop, l.m.cfg.DropPrefixes...)
	}
	// What is written between now and the stop is far less than the bump.
	least := l.op.RevisionBefore + int64(plan.Bump())
	return each(a.Starts, func(s plan.StartEtcd) error {
		_, err := l.perform(ctx, s.Node, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Stage{Stage: &protosv1.Stage{
			Operation: a.Op.ID, Backup: a.Op.Backup, State: wire.StateToProto(&s.State), BumpRevision: plan.Bump(),
			AtLeastRevision: least, DropPrefixes: drop}}}, slowAction, func(e *protosv1.PerformEvent) { report(s.Node, e) })
		return err
	})
}

// safetyBackup copies the old cluster, so that the restore can be undone.
func (l *leadership) safetyBackup(ctx context.Context, spec *cluster.Spec, a plan.SafetyBackup) error {
	name, err := l.takeBackup(ctx, spec, a.Node, "before-restore")
	if err != nil {
		return fmt.Errorf("back up the cluster as it is now: %w", err)
	}
	return l.save(ctx, func(op *catalog.Operation) { op.SafetyBackup, op.SafetyTried = name, true })
}

// advance records the next state, and the one before as a step that is done.
func (l *leadership) advance(ctx context.Context, o *plan.Observation, a plan.Advance) error {
	if a.To == plan.OpSwitching && l.store.Marker.Phase == plan.MarkerAbsent {
		m := l.newMarker(catalog.PhaseFormed, &l.op.Spec, l.op.NewToken, l.op.Members, l.op.Spec.EtcdVersion)
		ver, err := l.m.cfg.Catalog.CreateMarker(ctx, m)
		if err != nil {
			return err
		}
		l.setMarker(m, ver)
	}
	l.opRetry, l.opFails = time.Time{}, 0
	return l.save(ctx, func(op *catalog.Operation) {
		stepTo(op, catalog.OperationState(a.To), a.Reason)
		op.StagedRevision, op.StagedHash = a.Op.Revision, a.Op.Hash
		if a.To == plan.OpStopping {
			for _, n := range o.Nodes {
				op.RevisionBefore = max(op.RevisionBefore, n.Etcd.Revision)
			}
		}
	})
}

func stepTo(op *catalog.Operation, to catalog.OperationState, reason string) {
	now := time.Now()
	outcome := catalog.StepDone
	if reason != "" {
		outcome = catalog.StepFailed
	}
	op.Steps = append(op.Steps, catalog.Step{Name: string(op.State), Started: op.StateSince, Finished: now, Outcome: outcome, Detail: reason})
	op.State, op.StateSince, op.Reason, op.Progress = to, now, reason, nil
}

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

// noteServed remembers when the first member of a restored cluster let clients in.
func (l *leadership) noteServed(nodes []cluster.NodeStatus) {
	if l.op == nil || l.op.State != catalog.StateLifting && l.op.State != catalog.StateReverting {
		l.served = time.Time{}
		return
	}
	for _, n := range nodes {
		if l.served.IsZero() && n.Etcd.Running && n.Etcd.Healthy && !n.Etcd.Quarantined {
			l.served = time.Now()
		}
	}
}

// finish closes the books: marker, record, command, leftovers, in this order, so that a crash in between leaves the command to be finished again.
func (l *leadership) finish(ctx context.Context, o *plan.Observation, a plan.FinishRestore) error {
	if a.To == plan.OpDone {
		if err := l.markRestored(ctx); err != nil {
			return err
		}
	}
	if err := l.m.cfg.Catalog.RemoveCommand(ctx, l.op.Command); err != nil {
		return err
	}
	err := l.save(ctx, func(op *catalog.Operation) {
		if a.To == plan.OpDone || a.To == plan.OpRolledBack {
			op.Outage = l.outage(op)
		}
		stepTo(op, catalog.OperationState(a.To), a.Reason)
		op.Finished = time.Now()
		if a.To == plan.OpDone {
			op.RevisionAfter = op.StagedRevision
		}
	})
	if err != nil {
		return err
	}
	op := l.op
	if a.To == plan.OpRolledBack {
		l.store.RolledBack = append(l.store.RolledBack, *toPlan(op))
	}
	l.store.highest = max(l.store.highest, op.RevisionAfter, op.RevisionBefore)
	if a.To == plan.OpDone {
		klog.Infof("backup %s is restored: revision %d, etcd served nobody for %s; restart API servers and controllers now (docs/kubernetes.md)", op.Backup, op.RevisionAfter, op.Outage.Round(time.Millisecond))
	} else {
		klog.Errorf("the restore of backup %s ended as %s: %s", op.Backup, op.State, op.Reason)
	}
	l.op, l.opVer = nil, ""
	l.mu.Lock()
	l.force = true
	if a.To == plan.OpDone {
		l.newest = time.Time{} // a new incarnation begins with a backup of its own
	}
	l.mu.Unlock()
	l.clearAway(ctx, o, op.ID)
	if _, err := l.m.cfg.Catalog.PruneOperations(ctx, catalog.OperationHistory); err != nil {
		klog.V(2).Infof("prune history: %v", err)
	}
	return nil
}

// markRestored makes the marker say which cluster there is now.
func (l *leadership) markRestored(ctx context.Context) error {
	if l.store.Marker.Phase == plan.MarkerFormed && l.store.Marker.Token == l.op.NewToken {
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

// clearAway frees the nodes of what the operation has left. A node that misses it does so before its next restore.
func (l *leadership) clearAway(ctx context.Context, o *plan.Observation, id string) {
	err := each(o.Nodes, func(n cluster.NodeStatus) error {
		return l.quick(ctx, n.ID, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Discard{Discard: &protosv1.Discard{Operation: id}}})
	})
	if err != nil && ctx.Err() == nil {
		klog.V(2).Infof("clear away restore %s: %v", id, err)
	}
}

// failCommand records why a command can't be carried out, then removes it.
func (l *leadership) failCommand(ctx context.Context, a plan.FailCommand) error {
	c := l.store.commands[a.Command]
	now := time.Now()
	op := catalog.Operation{
		ID: a.Command, Kind: catalog.KindRestore, State: catalog.StateFailed, Reason: a.Reason, Command: a.Command, Backup: a.Backup,
		Options: c.Options, Spec: c.Spec, Created: now, StateSince: now, Finished: now, Term: l.term, Leader: l.m.cfg.Self, Instance: l.m.cfg.Instance,
	}
	if strings.HasPrefix(a.Reason, "superseded") {
		op.State = catalog.StateSuperseded
	}
	if _, err := l.m.cfg.Catalog.PutOperation(ctx, op, ""); err != nil && !errors.Is(err, catalog.ErrConflict) {
		return err
	}
	klog.Errorf("the queued restore of backup %s is not carried out: %s", a.Backup, a.Reason)
	l.forceStore()
	return l.m.cfg.Catalog.RemoveCommand(ctx, a.Command)
}
