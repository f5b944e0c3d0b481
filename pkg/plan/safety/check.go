package safety

import (
	"errors"
	"fmt"
	"slices"

	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// ErrUnknownAction is what Check says of an action for which it has no rule. What it doesn't know isn't safe.
var ErrUnknownAction = errors.New("the safety check has no rule for it")

// Check says whether an action is safe for what was observed. It shares no reasoning with Next: it knows no rules, only what
// must never happen. A nil error means safe; anything else names the invariant (docs/design.md) that would be broken.
func Check(o *model.Observation, a model.Action, p model.Policy) error {
	if a == nil {
		return nil
	}
	if a.Fence() != model.FenceNone {
		if err := checkFenced(o, a, p); err != nil {
			return err
		}
	}
	if err := checkCounted(o, a); err != nil {
		return err
	}
	if err := checkOver(o, a); err != nil {
		return err
	}
	return checkKind(o, a, p)
}

// checkKind asks the one rule that there is for each kind of action.
func checkKind(o *model.Observation, a model.Action, p model.Policy) error {
	switch a := a.(type) {
	case model.TakeTerm:
		return checkTerm(o)
	case model.CreateMarker:
		return checkCreate(o, a.Founders)
	case model.ReplaceMarker:
		return checkReplace(o, a)
	case model.StartAll:
		return checkStartAll(o, a)
	case model.StartEtcd:
		return checkStart(o, a)
	case model.MarkFormed:
		return checkFormed(o, a)
	case model.RemoveMember:
		return checkRemove(o, a)
	case model.AddLearner:
		return checkAdd(o, a)
	case model.Promote:
		return checkPromote(o, a)
	case model.UpdateMember:
		return checkUpdate(o, a)
	case model.SetAside:
		return checkSetAside(o, a)
	case model.RestartMember:
		return checkRestartMember(o, a)
	case model.StopMember:
		return checkStopMember(o, a)
	case model.ReleaseVolume:
		return checkRelease(o, a)
	case model.EnableDowngrade:
		return checkDowngrade(o, a)
	case model.CancelDowngrade, model.Compact, model.Defragment, model.Disarm:
		return checkUpkeep(o, a)
	case model.TakeBackup:
		return checkSource(o, a.Node)
	case model.PutBack:
		return checkPutBack(o, a)
	case model.EndWrites:
		return checkEndWrites(o)
	case model.StopSuperseded:
		return checkStopSuperseded(o, a)
	case model.ReportStopped:
		return checkReported(o, a)
	case model.BeginRestore:
		return checkBegin(o, a)
	case model.SalvageData:
		return checkSalvage(o, a)
	case model.SafetyBackup:
		if err := checkOp(o, a.Op, model.OpSaving); err != nil {
			return err
		}
		return checkSource(o, a.Node)
	case model.ProveBackup:
		return checkOp(o, a.Op, model.OpProving)
	case model.StageBackup:
		return checkOp(o, a.Op, model.OpStaging)
	case model.StopAll:
		return checkStop(o, a)
	case model.SwitchAll:
		return checkSwitch(o, a, p)
	case model.HaltAll:
		return checkHalt(o, a)
	case model.VerifyAll:
		return checkOp(o, a.Op, model.OpVerifying)
	case model.RollbackAll:
		return checkRollback(o, a)
	case model.Advance:
		return checkAdvance(o, a, p)
	case model.FinishRestore:
		return checkFinish(o, a)
	case model.FailCommand:
		return checkFail(o, a)
	}
	return fmt.Errorf("%T: %w", a, ErrUnknownAction)
}

// checkTerm: a term is only taken by who leads in one, in a store whose leader record can be read.
func checkTerm(o *model.Observation) error {
	switch {
	case o.Term == 0:
		return fmt.Errorf("node %s leads in no term", o.Self)
	case o.Store.Error != "" || o.Store.HolderError != "":
		return fmt.Errorf("the store's leader record can't be read: %s%s", o.Store.Error, o.Store.HolderError)
	}
	return nil
}

// checkFail: only a command that is queued is failed, for a reason, and never that of the restore which is under way.
func checkFail(o *model.Observation, a model.FailCommand) error {
	op := unfinished(o)
	switch {
	case !slices.ContainsFunc(o.Store.Commands, func(c model.Command) bool { return c.Name == a.Command }):
		return fmt.Errorf("command %s isn't queued", a.Command)
	case op != nil && op.ID == a.Command:
		return fmt.Errorf("restore %s is under way", op.ID)
	case a.Reason == "":
		return fmt.Errorf("command %s would fail without a reason", a.Command)
	}
	return nil
}

// checkFenced: what can't be taken back is done by the one who holds the leader record, in a store that can tell who does. Without the
// store only a commit goes on, and only if all who could obey another leader obey this one.
func checkFenced(o *model.Observation, a model.Action, p model.Policy) error {
	switch {
	case o.Store.Error != "":
		return checkUnwatched(o, a)
	case !o.Store.Holder.Mine:
		return fmt.Errorf("%s without holding the store's leader record", a)
	case !p.AllowUnfenced && (!o.Store.Fences || o.Store.Unsure != ""):
		return checkUnfenced(o, a)
	}
	return nil
}

// checkUnfenced: in a store that doesn't fence, or of which that isn't known yet, nothing is done but to end a commit that is under way.
func checkUnfenced(o *model.Observation, a model.Action) error {
	why := "on a store that ignores conditional puts"
	if o.Store.Fences {
		why = "before it is known whether the store fences"
	} else if len(o.Store.Apart) > 0 {
		why = fmt.Sprintf("on a store that doesn't fence off node %s", o.Store.Apart[0].Node)
	}
	switch a.(type) {
	case model.StopAll, model.SwitchAll, model.HaltAll, model.RollbackAll, model.Advance, model.FinishRestore:
	default:
		return fmt.Errorf("%s %s", a, why)
	}
	rec := o.Store.Operation
	if rec == nil || rec.State != model.OpStopping && rec.State != model.OpSwitching &&
		rec.State != model.OpVerifying && rec.State != model.OpReverting {
		return fmt.Errorf("%s %s", a, why)
	}
	return checkHeard(o, a, why)
}

// checkUnwatched: without the store a commit may go on if every node that takes part in it, and every member of the old cluster that
// anyone knows of, answers this leader.
func checkUnwatched(o *model.Observation, a model.Action) error {
	rec := o.Store.Operation
	allowed := false
	inCommit := map[model.OperationState]bool{model.OpStopping: true, model.OpSwitching: true, model.OpVerifying: true,
		model.OpReverting: true}
	switch a := a.(type) {
	case model.StopAll, model.SwitchAll, model.HaltAll, model.RollbackAll:
		allowed = true
	case model.Advance:
		allowed = inCommit[a.To]
	}
	if rec == nil || !allowed || !inCommit[rec.State] {
		return fmt.Errorf("%s without the store: no one could be fenced off", a)
	}
	return checkHeard(o, a, "without the store")
}

// checkCounted: until a restore has stopped anything it counts on the members, and on the data dirs, that there were when it began.
func checkCounted(o *model.Observation, a model.Action) error {
	op := unfinished(o)
	if op == nil || op.State != model.OpSalvaging && op.State != model.OpProving && op.State != model.OpStaging &&
		op.State != model.OpSaving {
		return nil
	}
	start, ok := a.(model.StartEtcd)
	switch a.(type) {
	case model.AddLearner, model.Promote, model.UpdateMember, model.RemoveMember, model.SetAside, model.ReleaseVolume:
	default:
		if !ok || !start.MayBeEmpty {
			return nil
		}
	}
	return fmt.Errorf("restore %s counts on the members and data dirs that there are", op.ID)
}
