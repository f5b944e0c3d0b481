package plan

import (
	"cmp"
	"fmt"
	"time"
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
	return fmt.Sprintf("start-etcd %s %t %t %t %s %s", a.Node, a.State.NewCluster, a.State.Quarantined, a.Restart, a.State.EtcdVersion, names(a.State.Nodes))
}

func (a StartAll) subject() string { return "start-all " + startIDs(a.Starts) }

func (a RestartMember) subject() string {
	return fmt.Sprintf("restart-member %s %s %s", a.Node, a.Why, cmp.Or(a.State.EtcdVersion, a.Settings.String()))
}

// Postponed is an action that has failed, or was done and changed nothing, and is not to be tried again yet.
type Postponed struct {
	// For is how long it still waits.
	For time.Duration
	// Times is how often it was tried in vain, Error why it failed the last time; empty if it didn't.
	Times int
	Error string
}

// stubborn is how often something is tried in vain before a person is told.
const stubborn = 12

// Postpone turns what is to be done into a wait if its last attempt was in vain and its time hasn't come.
func Postpone(o *Observation, d Decision) Decision {
	if p, late := o.Postponed[Subject(d.Do)]; late && d.Do != nil {
		return d.postponed(p)
	}
	return d
}

// postponed is the decision not to do yet what was to be done.
func (d Decision) postponed(p Postponed) Decision {
	why := fmt.Sprintf("%s; it has failed %d times and is tried again in %s: %s", d.Why, p.Times, round(p.For), p.Error)
	if p.Error == "" {
		why = fmt.Sprintf("%s; it was done %d times and changed nothing; it is done again in %s", d.Why, p.Times, round(p.For))
	}
	return Decision{Why: why, Key: "postponed: " + d.Do.subject(), Waits: true, Alarm: p.Times >= stubborn, After: p.For}
}

// figure is what changes in a sentence while nothing happens: a counter, or the words of an error. Sentences are compared without.
type figure struct{ v any }

// Format prints the value as if it stood there itself.
func (f figure) Format(s fmt.State, verb rune) { fmt.Fprintf(s, fmt.FormatString(s, verb), f.v) }

// keyOf is what a sentence is recognized by when it comes again: all of it but times and figures.
func keyOf(format string, args []any) string {
	still := make([]any, len(args))
	for i, a := range args {
		switch a.(type) {
		case time.Duration, figure:
			still[i] = figure{"*"}
		default:
			still[i] = a
		}
	}
	return fmt.Sprintf(format, still...)
}
