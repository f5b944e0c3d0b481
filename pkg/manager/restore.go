package manager

import (
	"cmp"
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
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// restorer carries out the steps of a restore. What it knows stands in the operation's record. Only
// the loop uses it.
type restorer struct {
	*shared
	nodes      *nodes
	etcd       *etcdClients
	store      *storeView
	marker     *marker
	operations *operations
	backups    *backups
	changes    *changes
	retention  *retention
	cleaner    *cleaner
}

// act carries out the steps of a restore.
func (rs *restorer) act(ctx context.Context, o *model.Observation, spec *cluster.Spec, a model.Action) error {
	switch a := a.(type) {
	case model.BeginRestore:
		return rs.beginRestore(ctx, o, a)
	case model.SalvageData:
		return rs.operations.step(ctx, rs.salvage(ctx, spec, a))
	case model.ProveBackup:
		return rs.operations.step(ctx, rs.proveAll(ctx, a))
	case model.StageBackup:
		return rs.operations.step(ctx, rs.stageAll(ctx, o, a))
	case model.SafetyBackup:
		return rs.operations.step(ctx, rs.safetyBackup(ctx, o, spec, a))
	case model.Advance:
		return rs.advance(ctx, o, a)
	case model.StopAll:
		return rs.operations.step(ctx, rs.stopAll(ctx, a))
	case model.SwitchAll:
		return rs.operations.step(ctx, each(a.Starts, func(s model.StartEtcd) error {
			return rs.nodes.urgent(ctx, s.Node, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Switch{
				Switch: &protosv1.Switch{Operation: a.Op.ID, State: wire.StateToProto(&s.State)}}})
		}))
	case model.HaltAll:
		return each(a.Nodes, func(id cluster.NodeID) error {
			return rs.nodes.urgent(ctx, id, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Halt{Halt: &protosv1.Halt{Operation: a.Op.ID}}})
		})
	case model.VerifyAll:
		return rs.verifyAll(ctx, a)
	case model.RollbackAll:
		return each(a.Nodes, func(id cluster.NodeID) error {
			return rs.nodes.urgent(ctx, id, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Rollback{Rollback: &protosv1.Rollback{Operation: a.Op.ID}}})
		})
	case model.FinishRestore:
		return rs.finish(ctx, o, a)
	case model.FailCommand:
		return rs.failCommand(ctx, a)
	}
	return fmt.Errorf("action %T is not known", a)
}

// stopAll stops etcd everywhere, and leaves the record with the nodes.
func (rs *restorer) stopAll(ctx context.Context, a model.StopAll) error {
	record, err := catalog.EncodeOperation(*rs.operations.current())
	if err != nil {
		return err
	}
	return each(a.Nodes, func(id cluster.NodeID) error {
		return rs.nodes.urgent(ctx, id, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Stop{
			Stop: &protosv1.Stop{Operation: a.Op.ID, Record: record}}})
	})
}

// beginRestore writes the record before the first step.
func (rs *restorer) beginRestore(ctx context.Context, o *model.Observation, a model.BeginRestore) error {
	c, ok := rs.store.command(a.Command)
	if !ok {
		return fmt.Errorf("command %s is not queued any more", a.Command)
	}
	now := time.Now()
	before := max(rs.operations.highestRecorded(), a.Op.RevisionBefore)
	for _, n := range o.Nodes {
		before = max(before, n.Etcd.Revision)
	}
	most, err := rs.highestStored(ctx)
	if err != nil {
		return err // a revision that clients have seen must not come back
	}
	before = max(before, most)
	op := catalog.Operation{
		ID: a.Op.ID, Kind: catalog.KindRestore, State: catalog.StateProving, Command: a.Command, Backup: a.Op.Backup, Options: c.Options,
		Spec: cluster.Spec{MemberCount: a.Op.Size, EtcdVersion: a.Op.Version}, Members: a.Op.Nodes, NewToken: a.Op.Token, OldToken: a.Op.OldToken,
		RevisionBefore: before, BumpRevision: int64(plan.Bump()), Created: now, StateSince: now,
		Term: rs.term, Leader: rs.m.cfg.Self, Instance: rs.m.cfg.Instance,
	}
	if a.Op.State == model.OpSalvaging {
		op.State, op.Source = catalog.StateSalvaging, &catalog.Source{Node: a.Op.Source.Node, Token: a.Op.Source.Token, OrBackup: a.Op.Source.OrBackup,
			OrRevision: a.Op.Source.OrRevision}
	} else if c.Source != nil && c.Source.OrRevision > 0 {
		op.Options.ToRevision = c.Source.OrRevision // its backup is restored in the data dir's stead
	}
	if err := rs.operations.begin(ctx, op); err != nil {
		return err
	}
	rs.m.events.restore(&op, catalog.EventBegun, fmt.Sprintf("the restore of %s begins; etcd serves on until the backup is checked and staged on every node", subject(&op)))
	return nil
}

// highestStored is the highest revision that the store's last backups name. Those of lives before
// stand in the records of the restores.
func (rs *restorer) highestStored(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, quickAction)
	defer cancel()
	return rs.archive().HighestRevision(ctx)
}

// showProgress keeps the operator informed through the record while a step takes long.
func (rs *restorer) showProgress(ctx context.Context) (report func(cluster.NodeID, *protosv1.PerformEvent), stop func()) {
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
				if err := rs.operations.save(ctx, func(op *catalog.Operation) { op.Progress = copied }); err != nil && ctx.Err() == nil {
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
func (rs *restorer) proveAll(ctx context.Context, a model.ProveBackup) error {
	if err := rs.aim(ctx); err != nil {
		return err
	}
	replay := rs.replay()
	report, stop := rs.showProgress(ctx)
	var mu sync.Mutex
	op := rs.operations.current()
	proven, reached, unknown, toldBy := slices.Clone(op.Proven), op.Reached, op.UnknownLeases, slices.Clone(op.LeasesToldBy)
	err := each(a.Nodes, func(id cluster.NodeID) error {
		e, err := rs.nodes.perform(ctx, id, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Prove{Prove: &protosv1.Prove{
			Operation: a.Op.ID, Backup: rs.operations.current().Backup, Replay: replay, BumpRevision: plan.Bump(), AtLeastRevision: rs.leastRevision(), DropPrefixes: rs.dropped(),
			EtcdVersion: a.Op.Version, ForceForeign: rs.operations.current().Options.ForceForeign}}}, rs.nodes.slowAction(), func(e *protosv1.PerformEvent) { report(id, e) })
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		if f := e.GetFacts(); f.GetLeasesTold() { // an older manager says nothing of leases, which isn't that all are known
			found := fmt.Sprintf("%.*s", maxUnknownLeases, f.GetUnknownLeases())
			if len(toldBy) > 0 && found != unknown {
				return otherLeases(id, found, toldBy, unknown)
			}
			unknown, toldBy = found, append(toldBy, id)
		}
		proven, reached = append(proven, id), e.GetFacts().GetRevision()
		return nil
	})
	stop()
	if len(proven) > len(rs.operations.current().Proven) {
		if serr := rs.operations.save(ctx, func(op *catalog.Operation) {
			op.Proven, op.Reached, op.UnknownLeases, op.LeasesToldBy = proven, reached, unknown, toldBy
		}); serr != nil {
			return serr
		}
	}
	return err
}

// otherLeases: nodes have put the same changes on the same backup, and one of them could not read what a segment says of leases. HashKV
// doesn't cover TTLs, and members with different ones would not agree which keys have ended. Nothing was stopped yet.
func otherLeases(id cluster.NodeID, found string, others []cluster.NodeID, unknown string) error {
	return fmt.Errorf("the nodes found different leases: on node %s, the TTL of %s; on %v, the TTL of %s. Ask for the restore again (%w)",
		id, cmp.Or(found, "no lease is unknown"), others, cmp.Or(unknown, "no lease is unknown"), cluster.ErrPermanent)
}

// stageAll has the nodes build their new data dirs, all at once.
func (rs *restorer) stageAll(ctx context.Context, o *model.Observation, a model.StageBackup) error {
	replay := rs.replay()
	report, stop := rs.showProgress(ctx)
	defer stop()
	return each(a.Starts, func(s model.StartEtcd) error {
		_, err := rs.nodes.perform(ctx, s.Node, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Stage{Stage: &protosv1.Stage{
			Operation: a.Op.ID, Backup: a.Op.Backup, State: wire.StateToProto(&s.State), BumpRevision: plan.Bump(),
			AtLeastRevision: rs.leastRevision(), DropPrefixes: rs.dropped(), Replay: replay}}}, rs.nodes.slowAction(), func(e *protosv1.PerformEvent) { report(s.Node, e) })
		return err
	})
}

// leastRevision is what the restored cluster's revision is above. What is written between now and
// the stop is far less than the bump.
func (rs *restorer) leastRevision() int64 {
	return rs.operations.current().RevisionBefore + int64(plan.Bump())
}

// dropped are the prefixes that the restored data shall not have.
func (rs *restorer) dropped() []string {
	drop := slices.Clone(rs.operations.current().Options.DropPrefixes)
	if !rs.operations.current().Options.KeepMasterleases {
		drop = append(drop, rs.m.cfg.DropPrefixes...)
	}
	return drop
}

// salvage has a backup made of a data dir. Its name is recorded first, so that a repetition makes
// no second one.
func (rs *restorer) salvage(ctx context.Context, spec *cluster.Spec, a model.SalvageData) error {
	if rs.operations.current().SalvageName == "" {
		name, err := rs.m.cfg.Catalog.NextBackupName(ctx, time.Now())
		if err != nil {
			return err
		}
		if err := rs.operations.save(ctx, func(op *catalog.Operation) { op.SalvageName = name }); err != nil {
			return err
		}
	}
	req := &protosv1.Salvage{Operation: a.Op.ID, Token: string(a.Op.Source.Token), Name: rs.operations.current().SalvageName, Reason: "survivor", Spec: &protosv1.ClusterSpec{}}
	if c, ok := rs.store.command(rs.operations.current().Command); ok && c.Source != nil && c.Source.Node == "" {
		req.Reason = "undo"
	}
	if spec != nil {
		req.Spec = wire.SpecToProto(*spec)
	}
	report, stop := rs.showProgress(ctx)
	_, err := rs.nodes.perform(ctx, a.Node, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Salvage{Salvage: req}}, rs.nodes.slowAction(),
		func(e *protosv1.PerformEvent) { report(a.Node, e) })
	stop()
	if err != nil {
		return err
	}
	return rs.operations.save(ctx, func(op *catalog.Operation) { op.Backup = op.SalvageName })
}

// verifyAll has the members compare what they hold with what was staged. They serve already: what
// differs is said, not undone.
func (rs *restorer) verifyAll(ctx context.Context, a model.VerifyAll) error {
	var mu sync.Mutex
	var steps []catalog.Step
	err := each(a.Nodes, func(id cluster.NodeID) error {
		step := catalog.Step{Name: "compare", Node: id, Started: time.Now(), Outcome: catalog.StepDone, Detail: "HashKV is as staged"}
		_, err := rs.nodes.perform(ctx, id, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Verify{Verify: &protosv1.Verify{Operation: a.Op.ID}}}, rs.nodes.slowAction(), nil)
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
	return rs.operations.save(ctx, func(op *catalog.Operation) {
		op.Steps, op.Verified = append(op.Steps, steps...), append(op.Verified, a.Nodes...)
	})
}

// advance records the next state, and the one before as a step that is done.
func (rs *restorer) advance(ctx context.Context, o *model.Observation, a model.Advance) error {
	if a.To == model.OpSwitching && rs.marker.seen.Phase == model.MarkerAbsent && !rs.store.away() {
		m := rs.marker.newMarker(catalog.PhaseFormed, &rs.operations.current().Spec, rs.operations.current().NewToken, rs.operations.current().Members, rs.operations.current().Spec.EtcdVersion)
		if err := rs.marker.writeNew(ctx, m); err != nil {
			return err
		}
	}
	rs.operations.stepAgain()
	return rs.operations.save(ctx, func(op *catalog.Operation) {
		stepTo(op, catalog.OperationState(a.To), a.Reason)
		op.StagedRevision, op.StagedHash, op.StagedBytes = a.Op.Revision, a.Op.Hash, a.Op.Bytes
		op.Written, op.Unwritten, op.Backup = a.Op.Written, a.Op.Unwritten, a.Op.Backup
		if a.To == model.OpProving && op.Source != nil && op.Source.OrRevision > 0 && op.Backup == op.Source.OrBackup {
			op.Options.ToRevision = op.Source.OrRevision
		}
		if a.To == model.OpStopping {
			for _, n := range o.Nodes {
				op.RevisionBefore = max(op.RevisionBefore, n.Etcd.Revision)
			}
			if r := rs.changes.recordingOf(op.OldToken); r != nil {
				op.LeftOut = leftOut(op, r.recorder.Status().Incarnation, o.Nodes)
			}
			if !op.Options.Now {
				op.RestartOutage = restartOutage(o.Nodes, rs.m.cfg.Self, op.OldToken, time.Now())
			}
		}
	})
}

// leftOut is how many revisions the cluster that serves, which lives in an incarnation, is seen to have after the newest one that a restore
// goes to.
func leftOut(op *catalog.Operation, serving catalog.Incarnation, nodes []cluster.NodeStatus) int64 {
	if !op.Options.Latest || op.Target == nil || op.Target.Incarnation != serving {
		return 0 // what is left out is what was asked for
	}
	newest := op.Target.Revision
	for _, n := range nodes {
		if n.State != nil && n.State.Token == op.OldToken {
			newest = max(newest, n.Etcd.Revision)
		}
	}
	return newest - op.Target.Revision
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
