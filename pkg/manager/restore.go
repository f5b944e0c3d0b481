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
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// actRestore carries out the steps of a restore.
func (l *leadership) actRestore(ctx context.Context, o *model.Observation, spec *cluster.Spec, a model.Action) error {
	switch a := a.(type) {
	case model.BeginRestore:
		return l.beginRestore(ctx, o, a)
	case model.SalvageData:
		return l.step(ctx, l.salvage(ctx, spec, a))
	case model.ProveBackup:
		return l.step(ctx, l.proveAll(ctx, a))
	case model.StageBackup:
		return l.step(ctx, l.stageAll(ctx, o, a))
	case model.SafetyBackup:
		return l.step(ctx, l.safetyBackup(ctx, o, spec, a))
	case model.Advance:
		return l.advance(ctx, o, a)
	case model.StopAll:
		return l.step(ctx, l.stopAll(ctx, a))
	case model.SwitchAll:
		return l.step(ctx, each(a.Starts, func(s model.StartEtcd) error {
			return l.nodes.urgent(ctx, s.Node, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Switch{
				Switch: &protosv1.Switch{Operation: a.Op.ID, State: wire.StateToProto(&s.State)}}})
		}))
	case model.HaltAll:
		return each(a.Nodes, func(id cluster.NodeID) error {
			return l.nodes.urgent(ctx, id, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Halt{Halt: &protosv1.Halt{Operation: a.Op.ID}}})
		})
	case model.VerifyAll:
		return l.verifyAll(ctx, a)
	case model.RollbackAll:
		return each(a.Nodes, func(id cluster.NodeID) error {
			return l.nodes.urgent(ctx, id, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Rollback{Rollback: &protosv1.Rollback{Operation: a.Op.ID}}})
		})
	case model.FinishRestore:
		return l.finish(ctx, o, a)
	case model.FailCommand:
		return l.failCommand(ctx, a)
	}
	return fmt.Errorf("action %T is not known", a)
}

// stopAll stops etcd everywhere, and leaves the record with the nodes.
func (l *leadership) stopAll(ctx context.Context, a model.StopAll) error {
	record, err := catalog.EncodeOperation(*l.op)
	if err != nil {
		return err
	}
	return each(a.Nodes, func(id cluster.NodeID) error {
		return l.nodes.urgent(ctx, id, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Stop{
			Stop: &protosv1.Stop{Operation: a.Op.ID, Record: record}}})
	})
}

// opAttempts is how often a step is tried for a reason that may pass, about ten minutes in all.
const opAttempts = 40

// step turns the outcome of a step into what the next decision is made from: a reason if it can't succeed, a time to try again if it may.
func (l *leadership) step(ctx context.Context, err error) error {
	if err == nil {
		l.opRetry, l.opFails = time.Time{}, 0
		return nil
	}
	if ctx.Err() != nil || errors.Is(err, cluster.ErrLowerTerm) || errors.Is(err, catalog.ErrConflict) {
		return err // a conflict means that the record isn't what this leader remembers: it is read again
	}
	var waits *waitError
	if errors.As(err, &waits) {
		return l.waitOn(ctx, waits)
	}
	l.opFails++
	if errors.Is(err, cluster.ErrPermanent) || l.opFails >= opAttempts {
		l.opFails = 0
		l.said.Errorf("restore "+l.op.ID+string(l.op.State), "restore %s (%s): %v", l.op.ID, l.op.State, err)
		return l.save(ctx, func(op *catalog.Operation) { op.Reason = err.Error() })
	}
	longest := 15 * time.Second
	if l.op.State.Committing() {
		longest = 2 * time.Second
	}
	wait := min(250*time.Millisecond<<min(l.opFails, 6), longest)
	l.opRetry = time.Now().Add(wait)
	l.said.Warningf("step: "+string(l.op.State), "restore %s (%s), next attempt in %s: %v", l.op.ID, l.op.State, wait, err)
	return nil
}

// beginRestore writes the record before the first step.
func (l *leadership) beginRestore(ctx context.Context, o *model.Observation, a model.BeginRestore) error {
	c, ok := l.store.commands[a.Command]
	if !ok {
		return fmt.Errorf("command %s is not queued any more", a.Command)
	}
	now := time.Now()
	before := max(l.store.highest, a.Op.RevisionBefore)
	for _, n := range o.Nodes {
		before = max(before, n.Etcd.Revision)
	}
	most, err := l.highestStored(ctx)
	if err != nil {
		return err // a revision that clients have seen must not come back
	}
	before = max(before, most)
	op := catalog.Operation{
		ID: a.Op.ID, Kind: catalog.KindRestore, State: catalog.StateProving, Command: a.Command, Backup: a.Op.Backup, Options: c.Options,
		Spec: cluster.Spec{MemberCount: a.Op.Size, EtcdVersion: a.Op.Version}, Members: a.Op.Nodes, NewToken: a.Op.Token, OldToken: a.Op.OldToken,
		RevisionBefore: before, BumpRevision: int64(plan.Bump()), Created: now, StateSince: now,
		Term: l.term, Leader: l.m.cfg.Self, Instance: l.m.cfg.Instance,
	}
	if a.Op.State == model.OpSalvaging {
		op.State, op.Source = catalog.StateSalvaging, &catalog.Source{Node: a.Op.Source.Node, Token: a.Op.Source.Token, OrBackup: a.Op.Source.OrBackup}
	}
	ver, err := l.m.cfg.Catalog.PutOperation(ctx, op, "")
	if err != nil {
		return err
	}
	l.op, l.opVer = &op, ver
	return nil
}

// highestStored is the highest revision that the store's last backups name. Those of lives before stand in the records of the restores.
func (l *leadership) highestStored(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, quickAction)
	defer cancel()
	return l.archive().HighestRevision(ctx)
}

// currentBackup is a good backup of the cluster that serves, if nothing was written since it was taken, or "".
func (l *leadership) currentBackup(ctx context.Context, o *model.Observation) string {
	_, urls := servingURLs(o, l.m.cfg.Peers.Addresses)
	rctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	revision, id, err := changelog.NewestRevision(rctx, func() []changelog.Dialer { return l.etcd.dialers(urls) })
	if err != nil {
		return ""
	}
	for _, n := range o.Nodes {
		revision = max(revision, n.Etcd.Revision)
	}
	m, err := l.archive().CopyOf(ctx, l.m.cfg.ClusterName, id, revision)
	if err != nil || m == nil {
		return ""
	}
	klog.Infof("nothing was written since backup %s, so that it serves as the one from before the restore", m.Backup)
	return m.Backup
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

// maxUnknownLeases bounds what the record says of leases: the number, and the ids of some.
const maxUnknownLeases = 1 << 10

// proveAll has the nodes fetch and prove the backup, all at once.
func (l *leadership) proveAll(ctx context.Context, a model.ProveBackup) error {
	if err := l.aim(ctx); err != nil {
		return err
	}
	replay := l.replay()
	report, stop := l.showProgress(ctx)
	var mu sync.Mutex
	proven, reached, unknown := slices.Clone(l.op.Proven), l.op.Reached, l.op.UnknownLeases
	err := each(a.Nodes, func(id cluster.NodeID) error {
		e, err := l.nodes.perform(ctx, id, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Prove{Prove: &protosv1.Prove{
			Operation: a.Op.ID, Backup: l.op.Backup, Replay: replay, BumpRevision: plan.Bump(), AtLeastRevision: l.leastRevision(), DropPrefixes: l.dropped(),
			EtcdVersion: a.Op.Version, ForceForeign: l.op.Options.ForceForeign}}}, l.nodes.slowAction(), func(e *protosv1.PerformEvent) { report(id, e) })
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		proven, reached = append(proven, id), e.GetFacts().GetRevision()
		unknown = fmt.Sprintf("%.*s", maxUnknownLeases, e.GetFacts().GetUnknownLeases())
		return nil
	})
	stop()
	if len(proven) > len(l.op.Proven) {
		if serr := l.save(ctx, func(op *catalog.Operation) { op.Proven, op.Reached, op.UnknownLeases = proven, reached, unknown }); serr != nil {
			return serr
		}
	}
	return err
}

// stageAll has the nodes build their new data dirs, all at once.
func (l *leadership) stageAll(ctx context.Context, o *model.Observation, a model.StageBackup) error {
	replay := l.replay()
	report, stop := l.showProgress(ctx)
	defer stop()
	return each(a.Starts, func(s model.StartEtcd) error {
		_, err := l.nodes.perform(ctx, s.Node, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Stage{Stage: &protosv1.Stage{
			Operation: a.Op.ID, Backup: a.Op.Backup, State: wire.StateToProto(&s.State), BumpRevision: plan.Bump(),
			AtLeastRevision: l.leastRevision(), DropPrefixes: l.dropped(), Replay: replay}}}, l.nodes.slowAction(), func(e *protosv1.PerformEvent) { report(s.Node, e) })
		return err
	})
}

// leastRevision is what the restored cluster's revision is above. What is written between now and the stop is far less than the bump.
func (l *leadership) leastRevision() int64 { return l.op.RevisionBefore + int64(plan.Bump()) }

// dropped are the prefixes that the restored data shall not have.
func (l *leadership) dropped() []string {
	drop := slices.Clone(l.op.Options.DropPrefixes)
	if !l.op.Options.KeepMasterleases {
		drop = append(drop, l.m.cfg.DropPrefixes...)
	}
	return drop
}

// salvage has a backup made of a data dir. Its name is recorded first, so that a repetition makes no second one.
func (l *leadership) salvage(ctx context.Context, spec *cluster.Spec, a model.SalvageData) error {
	if l.op.SalvageName == "" {
		name, err := l.m.cfg.Catalog.NextBackupName(ctx, time.Now())
		if err != nil {
			return err
		}
		if err := l.save(ctx, func(op *catalog.Operation) { op.SalvageName = name }); err != nil {
			return err
		}
	}
	req := &protosv1.Salvage{Operation: a.Op.ID, Token: string(a.Op.Source.Token), Name: l.op.SalvageName, Reason: "survivor", Spec: &protosv1.ClusterSpec{}}
	if c, ok := l.store.commands[l.op.Command]; ok && c.Source != nil && c.Source.Node == "" {
		req.Reason = "undo"
	}
	if spec != nil {
		req.Spec = wire.SpecToProto(*spec)
	}
	report, stop := l.showProgress(ctx)
	_, err := l.nodes.perform(ctx, a.Node, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Salvage{Salvage: req}}, l.nodes.slowAction(),
		func(e *protosv1.PerformEvent) { report(a.Node, e) })
	stop()
	if err != nil {
		return err
	}
	return l.save(ctx, func(op *catalog.Operation) { op.Backup = op.SalvageName })
}

// verifyAll has the members compare what they hold with what was staged. They serve already: what differs is said, not undone.
func (l *leadership) verifyAll(ctx context.Context, a model.VerifyAll) error {
	var mu sync.Mutex
	var steps []catalog.Step
	err := each(a.Nodes, func(id cluster.NodeID) error {
		step := catalog.Step{Name: "compare", Node: id, Started: time.Now(), Outcome: catalog.StepDone, Detail: "HashKV is as staged"}
		_, err := l.nodes.perform(ctx, id, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Verify{Verify: &protosv1.Verify{Operation: a.Op.ID}}}, l.nodes.slowAction(), nil)
		if ctx.Err() != nil || errors.Is(err, cluster.ErrLowerTerm) {
			return err
		}
		if err != nil {
			step.Outcome, step.Detail = catalog.StepFailed, err.Error()
			klog.Errorf("restore %s: comparing the restored data with what was staged: %v", a.Op.ID, err)
		}
		step.Finished = time.Now()
		mu.Lock()
		defer mu.Unlock()
		steps = append(steps, step)
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(steps, func(a, b catalog.Step) int { return strings.Compare(string(a.Node), string(b.Node)) })
	return l.save(ctx, func(op *catalog.Operation) {
		op.Steps, op.Verified = append(op.Steps, steps...), append(op.Verified, a.Nodes...)
	})
}

// safetyBackup copies the old cluster, so that the restore can be undone.
func (l *leadership) safetyBackup(ctx context.Context, o *model.Observation, spec *cluster.Spec, a model.SafetyBackup) error {
	name := l.currentBackup(ctx, o)
	if name == "" {
		var err error
		if name, err = l.backups.take(ctx, spec, a.Node, "before-restore"); err != nil {
			l.backups.noteFailedOn(a.Node)
			return fmt.Errorf("back up the cluster as it is now: %w", err)
		}
	}
	return l.save(ctx, func(op *catalog.Operation) { op.SafetyBackup, op.SafetyTried = name, true })
}

// advance records the next state, and the one before as a step that is done.
func (l *leadership) advance(ctx context.Context, o *model.Observation, a model.Advance) error {
	if a.To == model.OpSwitching && l.store.Marker.Phase == model.MarkerAbsent && l.store.Error == "" {
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
		op.StagedRevision, op.StagedHash, op.StagedBytes = a.Op.Revision, a.Op.Hash, a.Op.Bytes
		op.Written, op.Unwritten, op.Backup = a.Op.Written, a.Op.Unwritten, a.Op.Backup
		if a.To == model.OpStopping {
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
