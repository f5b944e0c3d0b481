package operator

import (
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// How long nothing may be written before an event says so.
const (
	// LeaderQuiet is for the leader's heartbeat in the store while a command waits.
	LeaderQuiet = 3 * time.Minute
	// LeaderSlow is for a leader that is there to begin with a command for which it need not wait for a restart.
	LeaderSlow = time.Minute
	// RecordQuiet is for the record of an operation that is being executed.
	RecordQuiet = time.Minute
)

// Event is one thing that has happened to a command that is followed. Its type says what; all of them are in this package.
type Event interface {
	// When is the moment to which it belongs, by the clock of who follows, but for what had
	// happened before the first look: that is by the leader's.
	When() time.Time
}

// Moment is the part that all events have.
type Moment struct{ At time.Time }

// When implements Event.
func (m Moment) When() time.Time { return m.At }

// Found is the first event: what is followed.
type Found struct {
	Moment
	Command Command
}

// WaitReason says why nobody has begun.
type WaitReason string

const (
	// WaitsForRestart: the managers look into the queue when they start.
	WaitsForRestart WaitReason = "restart"
	// WaitsForLeader: the leader sees it within about half a minute.
	WaitsForLeader WaitReason = "leader"
	// WaitsForOther: another one is being executed.
	WaitsForOther WaitReason = "other"
	// WaitsForBackup: a backup on demand is being taken, or is tried again later.
	WaitsForBackup WaitReason = "backup"
	// WaitsForPutBack: keys are being put back, or are later.
	WaitsForPutBack WaitReason = "put-back"
)

// Waiting says what a command waits for, whenever that changes.
type Waiting struct {
	Moment
	For WaitReason
	// Ahead is the other operation with WaitsForOther.
	Ahead *catalog.Operation
	// Backup is how far the backup is with WaitsForBackup.
	Backup *catalog.CreateBackup
	// PutBack is how far the put-back is with WaitsForPutBack.
	PutBack *catalog.PutBack
	// Doing is what the leader, node Leader, does or waits for with WaitsForLeader, if it has not begun for LeaderSlow.
	Leader cluster.NodeID
	Doing  string
}

// Overtaken says that a later command waits too, which wins: this one will be superseded.
type Overtaken struct {
	Moment
	By string
}

// NoLeader says that no leading manager has written to the store for LeaderQuiet.
type NoLeader struct {
	Moment
	// Last is who led last, nil if nobody ever has. Quiet is since when.
	Last  *catalog.LeaderRecord
	Quiet time.Duration
	// Members is how many members the command's spec has; a majority of them must run a manager.
	Members int
}

// Begun says that a leader has begun.
type Begun struct {
	Moment
	Leader cluster.NodeID
	Term   cluster.Term
}

// LeaderChanged says that another leader goes on with it.
type LeaderChanged struct {
	Moment
	Leader cluster.NodeID
	Term   cluster.Term
}

// StepEnded says how a step has ended.
type StepEnded struct {
	Moment
	Step catalog.Step
	// Outcome and Detail are the step's own, but for the way back: that carries the reason for
	// which it was gone, which doesn't make it a failure.
	Outcome, Detail string
}

// SafetyBackup names the backup of the cluster as it was before.
type SafetyBackup struct {
	Moment
	Backup string
	// Revision is to what the changes after the backup lead; 0 if the backup itself has everything.
	Revision int64
}

// StateEntered says which state the operation is in now.
type StateEntered struct {
	Moment
	State catalog.OperationState
	// Waiting says what it waits for in this state, without having stopped anything. Reason says
	// why it is in it, unless the step before has said so.
	Waiting, Reason string
}

// StateWaits says what an operation has begun to wait for, without having stopped anything.
type StateWaits struct {
	Moment
	State   catalog.OperationState
	Waiting string
}

// StateReason says what has gone wrong in the present state.
type StateReason struct {
	Moment
	State  catalog.OperationState
	Reason string
}

// NoNews says that nobody has written the operation's record for RecordQuiet.
type NoNews struct {
	Moment
	For time.Duration
	// Leader is the last one.
	Leader cluster.NodeID
}

// StoreSilent says that the store has ceased to answer. The managers go on meanwhile, and it is tried again.
type StoreSilent struct {
	Moment
	Err error
}

// StoreAnswers says that the store answers again.
type StoreAnswers struct {
	Moment
	After time.Duration
}

// Looked follows the events of each look, whether there are any or not: the state and the progress to show now.
type Looked struct {
	Moment
	Look Look
}

// Ended is the last event.
type Ended struct {
	Moment
	Command Command
	// Withdrawn is true if the command was taken out of the queue before anybody began.
	Withdrawn bool
}

// Err is nil if it was done, and else an *OutcomeError.
func (e Ended) Err() error {
	if !e.Withdrawn && e.Command.Operation != nil && e.Command.Operation.State == catalog.StateDone {
		return nil
	}
	return &OutcomeError{Command: e.Command, Withdrawn: e.Withdrawn}
}

// changes are the events between two looks. prev is nil for the first one. It is pure.
func changes(prev, cur *Look) []Event {
	if cur.Withdrawn {
		return nil // the end says it
	}
	t := &teller{now: cur.At, history: prev == nil}
	if prev == nil {
		t.add(Found{t.at(cur.Command.QueuedAt()), cur.Command})
		prev = &Look{}
	}
	switch {
	case cur.Command.Operation == nil:
		t.waiting(prev, cur)
	case !cur.Command.Restores(): // the end says it
	default:
		t.running(prev.Command.Operation, cur.Command.Operation)
		t.noNews(prev, cur)
	}
	return t.events
}

type teller struct {
	now     time.Time
	history bool
	events  []Event
}

func (t *teller) add(e Event) { t.events = append(t.events, e) }

// at is the moment of what somebody else has written down.
func (t *teller) at(when time.Time) Moment {
	if !t.history || when.IsZero() {
		return Moment{t.now}
	}
	return Moment{when}
}

func (t *teller) waiting(prev, cur *Look) {
	now := Moment{t.now}
	if was, is := prev.waitsFor(), cur.waitsFor(); !was.same(is) {
		is.Moment = now
		t.add(is)
	}
	if by := cur.Command.Overtaken; by != "" && prev.Command.Overtaken != by {
		t.add(Overtaken{now, by})
	}
	if cur.Quiet >= LeaderQuiet && prev.Quiet < LeaderQuiet {
		t.add(NoLeader{now, cur.Leader, cur.Quiet, cur.Command.Spec().MemberCount})
	}
}

// sameSentence compares sentences, but for how long something has been so: the first difference is in a number.
func sameSentence(a, b string) bool {
	i := 0
	for i < len(a) && i < len(b) && a[i] == b[i] {
		i++
	}
	return a == b || i < len(a) && i < len(b) && a[i]-'0' < 10 && b[i]-'0' < 10
}

// waitsFor says why nobody has begun; For is empty if there is nothing to begin.
func (l *Look) waitsFor() Waiting {
	cmd := l.Command.Queued
	switch {
	case cmd == nil:
		return Waiting{}
	case cmd.Create != nil:
		return Waiting{For: WaitsForBackup, Backup: cmd.Create}
	case cmd.PutBack != nil:
		return Waiting{For: WaitsForPutBack, PutBack: cmd.PutBack}
	case l.Ahead != nil:
		return Waiting{For: WaitsForOther, Ahead: l.Ahead}
	case cmd.Options.Now:
		w := Waiting{For: WaitsForLeader}
		if l.Leader != nil && l.Quiet < LeaderQuiet && l.At.Sub(cmd.Time) >= LeaderSlow {
			w.Leader, w.Doing = l.Leader.Node, l.Doing
		}
		return w
	}
	return Waiting{For: WaitsForRestart}
}

// same tells that nothing has changed that a person would be told.
func (w Waiting) same(o Waiting) bool {
	if w.For != o.For || !sameSentence(w.Doing, o.Doing) {
		return false
	}
	if w.Ahead != nil {
		return w.Ahead.Command == o.Ahead.Command && w.Ahead.State == o.Ahead.State && w.Ahead.Backup == o.Ahead.Backup
	}
	if w.PutBack != nil {
		a, b := w.PutBack.Progress, o.PutBack.Progress
		if a == nil || b == nil {
			return a == b
		}
		return a.Waiting == b.Waiting && a.Node == b.Node && a.Term == b.Term && w.PutBack.Canceled == o.PutBack.Canceled
	}
	if w.Backup == nil {
		return true
	}
	a, b := w.Backup.Progress, o.Backup.Progress
	switch {
	case a == nil || b == nil:
		return a == b
	case a.Error == "" && b.Error == "":
		return a.Node == b.Node
	}
	return a.Error == b.Error && a.Node == b.Node && a.Attempt == b.Attempt && a.RetryAt.Equal(b.RetryAt)
}

// running: prev is nil if the operation had not begun.
func (t *teller) running(prev, op *catalog.Operation) {
	now := Moment{t.now}
	if prev == nil {
		prev = &catalog.Operation{}
	}
	switch {
	case op.Leader == "" || op.State.Final() && len(op.Steps) == 0: // refused before it began
	case prev.Leader == "":
		t.add(Begun{t.at(op.Created), op.Leader, op.Term})
	case prev.Leader != op.Leader || prev.Term != op.Term:
		t.add(LeaderChanged{now, op.Leader, op.Term})
	}
	backup, revision := op.Saved()
	before, _ := prev.Saved()
	saved := backup != "" && before == ""
	for _, s := range op.Steps[min(len(prev.Steps), len(op.Steps)):] {
		outcome, detail := StepOutcome(op, s)
		t.add(StepEnded{t.at(s.Finished), s, outcome, detail})
		if saved && s.Name == string(catalog.StateSaving) {
			t.add(SafetyBackup{t.at(s.Finished), backup, revision})
			saved = false
		}
	}
	if saved {
		t.add(SafetyBackup{now, backup, revision})
	}
	switch {
	case op.State.Final():
	case op.State != prev.State:
		t.add(StateEntered{t.at(op.StateSince), op.State, op.Waiting, newReason(op)})
	case op.Waiting != prev.Waiting && op.Waiting != "":
		t.add(StateWaits{now, op.State, op.Waiting})
	case op.Reason != "" && op.Reason != prev.Reason:
		t.add(StateReason{now, op.State, op.Reason})
	}
}

// newReason is why the operation is in its state, unless the step before has said so.
func newReason(op *catalog.Operation) string {
	if n := len(op.Steps); n > 0 && op.Steps[n-1].Detail == op.Reason {
		return ""
	}
	return op.Reason
}

// noNews tells when nobody has written the record for long.
func (t *teller) noNews(prev, cur *Look) {
	op := cur.Command.Operation
	if !op.State.Final() && cur.Unchanged >= RecordQuiet && prev.Unchanged < RecordQuiet {
		t.add(NoNews{Moment{t.now}, cur.Unchanged, op.Leader})
	}
}

// StepOutcome is how a step ended, or "running". The way back carries the reason for which it was gone; that doesn't make it a failure.
func StepOutcome(op *catalog.Operation, s catalog.Step) (outcome, detail string) {
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
