package main

import (
	"fmt"
	"time"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// How long nothing may be written before the operator is told.
const (
	leaderQuiet    = 3 * time.Minute
	recordQuiet    = time.Minute
	restartManager = "until the managers are restarted (docker stop, kill, or a roll of the masters); the cluster serves on until then"
)

// phases say what happens in each state of an operation.
var phases = map[catalog.OperationState]string{
	catalog.StateSalvaging: "a backup is made of that data dir; nothing is stopped yet",
	catalog.StateProving:   "each node fetches the backup and checks it; nothing is stopped yet",
	catalog.StateStaging:   "each node builds its new data dir; nothing is stopped yet",
	catalog.StateSaving:    "the cluster is backed up as it is now, so that this can be undone; nothing is stopped yet",
	catalog.StateStopping:  "etcd is stopped; from here on no client is served",
	catalog.StateSwitching: "the nodes switch to the new data and start etcd",
	catalog.StateVerifying: "the restored cluster starts and is compared with what was staged",
	catalog.StateReverting: "the nodes go back to the data from before",
}

// told is one thing that has happened. at is by the clock of who looks, but for what had happened before the first look: that is
// by the leader's.
type told struct {
	at   time.Time
	text string
}

// tell says what has changed between two looks. prev is nil for the first one. It is pure.
func tell(prev, cur *sight) []told {
	if cur.withdrawn {
		return nil // the end says it
	}
	t := &teller{now: cur.at, history: prev == nil}
	if prev == nil {
		what := cur.subject()
		if !cur.creates() {
			what += " into " + clusterOf(cur.spec())
		}
		t.add(cur.queuedAt(), "%s: %s", cur.name, what)
		prev = &sight{}
	}
	switch {
	case cur.op == nil:
		t.waiting(prev, cur)
	case cur.creates(): // the end says it
	default:
		t.running(prev.op, cur.op)
		t.stale(prev, cur)
	}
	return t.lines
}

type teller struct {
	now     time.Time
	history bool
	lines   []told
}

func (t *teller) add(at time.Time, format string, args ...any) {
	if !t.history || at.IsZero() {
		at = t.now
	}
	t.lines = append(t.lines, told{at, fmt.Sprintf(format, args...)})
}

func (t *teller) waiting(prev, cur *sight) {
	if was, is := prev.waitsFor(), cur.waitsFor(); was != is {
		t.add(t.now, "%s", is)
	}
	if cur.overtaken != "" && prev.overtaken != cur.overtaken {
		t.add(t.now, "%s was queued later and wins: this one will be superseded", cur.overtaken)
	}
	if cur.quiet >= leaderQuiet && prev.quiet < leaderQuiet {
		t.add(t.now, "%s", cur.noLeader())
	}
}

// waitsFor says why nobody has begun.
func (s *sight) waitsFor() string {
	switch {
	case s.cmd == nil:
		return ""
	case s.cmd.Create != nil:
		state, words := progressOfBackup(s.cmd.Create)
		return state + ": " + words
	case s.ahead != nil:
		return fmt.Sprintf("waiting for %s (%s), which is being executed (%s)", s.ahead.Command, subject(s.ahead.Backup, s.ahead.Source), s.ahead.State)
	case s.cmd.Options.Now:
		return "waiting for the leader to see it, about half a minute"
	}
	return "waiting " + restartManager
}

// noLeader is for when the store hasn't heard of a leader for long.
func (s *sight) noLeader() string {
	who := "no manager"
	if s.leader != nil {
		who = fmt.Sprintf("no leading manager (the last was on %s)", s.leader.Node)
	}
	text := fmt.Sprintf("%s has written to the store for %s: do the managers run?", who, ui.Age(s.quiet))
	if n := s.spec().MemberCount; n > 0 {
		text += fmt.Sprintf(" At least %d of %d masters must run one", n/2+1, n)
	}
	return text
}

// running: prev is nil if the operation had not begun.
func (t *teller) running(prev, op *catalog.Operation) {
	if prev == nil {
		prev = &catalog.Operation{}
	}
	switch {
	case op.Leader == "" || op.State.Final() && len(op.Steps) == 0: // refused before it began
	case prev.Leader == "":
		t.add(op.Created, "begun; node %s leads (term %d)", op.Leader, op.Term)
	case prev.Leader != op.Leader || prev.Term != op.Term:
		t.add(t.now, "node %s leads now (term %d) and goes on with it", op.Leader, op.Term)
	}
	saved := op.SafetyBackup != "" && prev.SafetyBackup == ""
	for _, s := range op.Steps[min(len(prev.Steps), len(op.Steps)):] {
		t.add(s.Finished, "%s", stepLine(op, s))
		if saved && s.Name == string(catalog.StateSaving) {
			t.add(s.Finished, "safety backup: %s", op.SafetyBackup)
			saved = false
		}
	}
	if saved {
		t.add(t.now, "safety backup: %s", op.SafetyBackup)
	}
	switch {
	case op.State.Final():
	case op.State != prev.State:
		t.add(op.StateSince, "%s", stateLine(op))
	case op.Waiting != prev.Waiting && op.Waiting != "":
		t.add(t.now, "%s waits and has stopped nothing: %s", op.State, op.Waiting)
	case op.Reason != "" && op.Reason != prev.Reason:
		t.add(t.now, "%s: %s", op.State, op.Reason)
	}
}

// stale tells when nobody has written the record for long.
func (t *teller) stale(prev, cur *sight) {
	if !cur.op.State.Final() && cur.unchanged >= recordQuiet && prev.unchanged < recordQuiet {
		t.add(t.now, "nothing new for %s; if it stays so, look at the managers' log (the last leader was on node %s)", ui.Age(cur.unchanged), cur.op.Leader)
	}
}

// stateLine says what happens in the present state. Why it is in it was said by the step before.
func stateLine(op *catalog.Operation) string {
	line := string(op.State)
	if what := phases[op.State]; what != "" {
		line += ": " + what
	}
	if op.Waiting != "" {
		return line + "; it waits and has stopped nothing: " + op.Waiting
	}
	if n := len(op.Steps); op.Reason != "" && (n == 0 || op.Steps[n-1].Detail != op.Reason) {
		line += ": " + op.Reason
	}
	return line
}

// stepLine says how a step ended. Failures carry their reason.
func stepLine(op *catalog.Operation, s catalog.Step) string {
	line := s.Name
	if s.Node != "" {
		line += " on " + string(s.Node)
	}
	outcome, detail := outcomeOf(op, s)
	line += ": " + outcome
	if !s.Started.IsZero() && !s.Finished.IsZero() {
		line += " after " + ui.Took(s.Finished.Sub(s.Started))
	}
	if detail != "" {
		line += ": " + detail
	}
	return line
}

// outcomeOf is how a step ended. The way back carries the reason for which it was gone; that doesn't make it a failure.
func outcomeOf(op *catalog.Operation, s catalog.Step) (outcome, detail string) {
	switch {
	case s.Name == string(catalog.StateReverting) && op.State == catalog.StateRolledBack:
		return string(catalog.StepDone), ""
	case s.Outcome == "" && s.Finished.IsZero():
		return "running", s.Detail
	case s.Outcome == "":
		return "ended", s.Detail
	}
	return string(s.Outcome), s.Detail
}
