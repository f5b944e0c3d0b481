package main

import (
	"fmt"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

const restartManager = "until the managers are restarted (docker stop, kill, or a rolling update of the masters); the cluster keeps serving until then"

// phases say what happens in each state of an operation.
var phases = map[catalog.OperationState]string{
	catalog.StateSalvaging: "a backup is made of that data dir; nothing is stopped yet",
	catalog.StateProving:   "each node fetches the backup and checks it; nothing is stopped yet",
	catalog.StateStaging:   "each node builds its new data dir; nothing is stopped yet",
	catalog.StateSaving:    "the store gets the cluster's last state, so this can be undone; nothing is stopped yet",
	catalog.StateStopping:  "etcd is stopped; the time without etcd begins",
	catalog.StateSwitching: "the nodes switch to the new data and start etcd",
	catalog.StateVerifying: "the restored cluster starts and is compared with what was staged",
	catalog.StateReverting: "the nodes go back to the data from before",
}

// show shows an event of a command that is followed.
func show(v ui.View, event operator.Event) {
	if l, ok := event.(operator.Looked); ok {
		v.Show(viewState(l.Look))
		return
	}
	if line := eventLine(event); line != "" {
		v.Say(event.When(), line)
	}
}

// viewState is what a view shows of a look.
func viewState(l operator.Look) ui.State {
	out := ui.State{At: l.At}
	cmd, op := l.Command.Queued, l.Command.Operation
	switch {
	case op == nil && cmd != nil:
		out.Doing, out.Since = string(operator.StateWaiting), cmd.Time
		if p := cmd.PutBack; p != nil && p.Progress != nil {
			out.Doing = fmt.Sprintf("%s: %d of %d keys", l.Command.State(), p.Progress.Done(), p.Entries)
		}
	case op != nil && !op.State.Final():
		out.Doing, out.Since = string(op.State), op.StateSince
	}
	if op != nil {
		out.Progress = op.Progress
	}
	return out
}

// eventLine says in one line what has happened; empty for what is shown otherwise.
func eventLine(event operator.Event) string {
	switch e := event.(type) {
	case operator.Found:
		line := e.Command.Name + ": " + subjectOf(e.Command)
		if e.Command.Restores() {
			line += " into " + clusterOf(e.Command.Spec())
		}
		return line
	case operator.Waiting:
		return waitLine(e)
	case operator.Overtaken:
		return fmt.Sprintf("%s was queued later and replaces it: this one will be superseded", e.By)
	case operator.NoLeader:
		return noLeaderLine(e)
	case operator.Begun:
		return fmt.Sprintf("begun; node %s leads (term %d)", e.Leader, e.Term)
	case operator.LeaderChanged:
		return fmt.Sprintf("node %s leads now (term %d) and continues it", e.Leader, e.Term)
	case operator.StepEnded:
		return stepLine(e)
	case operator.SafetyBackup:
		return "safety backup: " + withChanges(e.Backup, e.Revision)
	case operator.StateEntered:
		return stateLine(e)
	case operator.StateWaits:
		return fmt.Sprintf("%s waits and has stopped nothing: %s", e.State, e.Waiting)
	case operator.StateReason:
		return fmt.Sprintf("%s: %s", e.State, e.Reason)
	case operator.NoNews:
		return fmt.Sprintf("no progress for %s; if this continues, look at the managers' log (the last leader was on node %s)",
			ui.Age(e.For), e.Leader)
	case operator.StoreSilent:
		return fmt.Sprintf("the store doesn't answer; the managers continue meanwhile, and the tool tries again: %v", e.Err)
	case operator.StoreAnswers:
		return "the store answers again, after " + ui.Took(e.After)
	}
	return ""
}

// withChanges names a backup, and to what its changes lead.
func withChanges(backup string, revision int64) string {
	if revision == 0 {
		return backup
	}
	return fmt.Sprintf("%s with the changes up to revision %d", backup, revision)
}

// waitLine says why nobody has begun.
func waitLine(e operator.Waiting) string {
	switch e.For {
	case operator.WaitsForBackup:
		state, words := progressOfBackup(e.Backup)
		return state + ": " + words
	case operator.WaitsForPutBack:
		state, words := putBackWords(e.PutBack)
		return state + ": " + words
	case operator.WaitsForOther:
		return fmt.Sprintf("waiting for %s (%s), which is being executed (%s)", e.Ahead.Command,
			subject(e.Ahead.Backup, e.Ahead.Source), e.Ahead.State)
	case operator.WaitsForLeader:
		if e.Doing != "" {
			return leaderSaysLine(e.Leader, e.Doing)
		}
		return "waiting for the leader to see it, about half a minute"
	case operator.WaitsForRestart:
		return "waiting " + restartManager
	}
	return ""
}

// noLeaderLine is for when the store hasn't heard of a leader for long.
func noLeaderLine(e operator.NoLeader) string {
	who := "no manager"
	if e.Last != nil {
		who = fmt.Sprintf("no leading manager (the last was on %s)", e.Last.Node)
	}
	text := fmt.Sprintf("%s has written to the store for %s: do the managers run?", who, ui.Age(e.Quiet))
	if n := e.Members; n > 0 {
		text += fmt.Sprintf(" At least %d of %d masters must run one", cluster.Quorum(n), n)
	}
	return text
}

// leaderSaysLine is why a leader has not begun yet.
func leaderSaysLine(leader cluster.NodeID, doing string) string {
	return fmt.Sprintf("not begun yet; node %s leads, and says: %s", leader, doing)
}

// stateLine says what happens in the present state. Why it is in it was said by the step before.
func stateLine(e operator.StateEntered) string {
	line := string(e.State)
	if what := phases[e.State]; what != "" {
		line += ": " + what
	}
	switch {
	case e.Waiting != "":
		line += "; it waits and has stopped nothing: " + e.Waiting
	case e.Reason != "":
		line += ": " + e.Reason
	}
	return line
}

// stepLine says how a step ended. Failures carry their reason.
func stepLine(e operator.StepEnded) string {
	s := e.Step
	line := s.Name
	if s.Node != "" {
		line += " on " + string(s.Node)
	}
	line += ": " + e.Outcome
	if !s.Started.IsZero() && !s.Finished.IsZero() {
		line += " after " + ui.Took(s.Finished.Sub(s.Started))
	}
	if e.Detail != "" {
		line += ": " + e.Detail
	}
	return line
}
