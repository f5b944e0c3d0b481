package model

import (
	"cmp"
	"fmt"
)

// Subject names what an action is about: its kind and whom it concerns, without what is new at each attempt, such as tokens
// and revisions. Two actions with the same subject are two attempts at the same thing.
func Subject(a Action) string {
	if a == nil {
		return ""
	}
	return a.subject()
}

func (TakeTerm) subject() string        { return "take-term" }
func (CreateMarker) subject() string    { return "create-marker" }
func (ReplaceMarker) subject() string   { return "replace-marker" }
func (a MarkFormed) subject() string    { return "mark-formed " + string(a.Token) }
func (a TakeBackup) subject() string    { return "take-backup " + cmp.Or(a.Command, a.Reason) }
func (a PutBack) subject() string       { return "put-back " + a.Command }
func (a AddLearner) subject() string    { return "add-learner " + string(a.Node) }
func (a Promote) subject() string       { return "promote " + a.Member.String() }
func (a UpdateMember) subject() string  { return "update-member " + a.Member.String() }
func (a RemoveMember) subject() string  { return "remove-member " + a.Member.String() }
func (a StopMember) subject() string    { return "stop-member " + string(a.Node) }
func (EnableDowngrade) subject() string { return "enable-downgrade" }
func (CancelDowngrade) subject() string { return "cancel-downgrade" }
func (Compact) subject() string         { return "compact" }
func (a Defragment) subject() string    { return "defragment " + string(a.Node) }
func (a Disarm) subject() string        { return fmt.Sprintf("disarm %s %s", a.Alarm.Type, a.Alarm.Member) }
func (a ReleaseVolume) subject() string { return "release-volume " + string(a.Node) }
func (a SetAside) subject() string      { return "set-aside " + string(a.Node) }
func (a BeginRestore) subject() string  { return "begin-restore " + a.Command }
func (a SalvageData) subject() string   { return "salvage-data " + a.Op.ID }
func (a ProveBackup) subject() string   { return "prove-backup " + a.Op.ID }
func (a StageBackup) subject() string   { return "stage-backup " + a.Op.ID }
func (a SafetyBackup) subject() string  { return "safety-backup " + a.Op.ID }
func (a StopAll) subject() string       { return "stop-all " + a.Op.ID + " " + ids(a.Nodes) }
func (a SwitchAll) subject() string     { return "switch-all " + a.Op.ID + " " + startIDs(a.Starts) }
func (a HaltAll) subject() string       { return "halt-all " + a.Op.ID + " " + ids(a.Nodes) }
func (a VerifyAll) subject() string     { return "verify-all " + a.Op.ID + " " + ids(a.Nodes) }
func (a RollbackAll) subject() string   { return "rollback-all " + a.Op.ID + " " + ids(a.Nodes) }
func (a Advance) subject() string       { return fmt.Sprintf("advance %s %s", a.Op.ID, a.To) }
func (a FinishRestore) subject() string { return "finish-restore " + a.Op.ID }
func (a FailCommand) subject() string   { return "fail-command " + a.Command }

func (a StartEtcd) subject() string {
	return fmt.Sprintf("start-etcd %s %t %t %t %s %s", a.Node, a.State.NewCluster, a.State.Quarantined, a.Restart,
		a.State.EtcdVersion, names(a.State.Nodes))
}

func (EndWrites) subject() string       { return "end-writes" }
func (a ReportStopped) subject() string { return "report-stopped " + ids(a.Nodes) }

func (a StopSuperseded) subject() string {
	if a.Unstored { // another attempt than the one to store the last changes, which may have failed just now
		return "stop-superseded unstored"
	}
	return "stop-superseded"
}

func (a StartAll) subject() string { return "start-all " + startIDs(a.Starts) }

func (a RestartMember) subject() string {
	return fmt.Sprintf("restart-member %s %s %s", a.Node, a.Why, cmp.Or(a.State.EtcdVersion, a.Settings.String()))
}
