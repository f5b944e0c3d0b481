package operator

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// UndoRequest says which restore is to be undone.
type UndoRequest struct {
	// Operation is its name; empty means the newest one that was done.
	Operation string
	Spec      SpecChange
	// Options: without a Reason it is that it is an undo. Of a restore's own settings only Now and AcceptLoss apply.
	Options RestoreOptions
}

// UndoPlan is what an undo would do. It is itself a restore: of the data dirs in the nodes' trash
// cans, which have everything to the last write, or, if they are gone, of the backup that was made
// right before. So it too is checked first, and can be undone.
type UndoPlan struct {
	Request UndoRequest
	// Operation is the restore that is undone.
	Operation *catalog.Operation
	// Later are the restores that were done after it, which are undone with it.
	Later []*catalog.Operation
	// EndedSince are commands that ended otherwise after it, of which nothing is to be undone. They
	// are only looked for if no operation was named.
	EndedSince []Command
	// Source is the data dirs that come back, with the backup that takes their place if they are gone; nil if only Backup is left.
	Source *catalog.Source
	// Backup comes back if Source is nil, brought to Revision by the changes after it unless that is 0.
	Backup   string
	Revision int64
	// Spec is what they are restored into, SpecBefore what was wanted before the restore that is undone, nil if that isn't known.
	Spec       cluster.Spec
	SpecBefore *cluster.Spec
	// Newest is the newest good backup, nil if none is known: what it has beyond Operation.RevisionAfter is lost at least.
	Newest *changelog.Newest
}

// UndoRefusal says why nothing is undone.
type UndoRefusal string

const (
	// UndoNothing: no restore was done that the store remembers.
	UndoNothing UndoRefusal = "nothing was done"
	// UndoRunning: another one is being executed, and no operation was named.
	UndoRunning UndoRefusal = "one is running"
	// UndoWaiting: another one waits, and no operation was named.
	UndoWaiting UndoRefusal = "one is waiting"
	// UndoUnreadable: the record can't be read.
	UndoUnreadable UndoRefusal = "unreadable"
	// UndoNotBegun: the one that was named waits, and is to be withdrawn instead.
	UndoNotBegun UndoRefusal = "not begun"
	// UndoNotEnded: the one that was named is being executed.
	UndoNotEnded UndoRefusal = "not ended"
	// UndoNotDone: the one that was named has ended otherwise, and has changed nothing.
	UndoNotDone UndoRefusal = "not done"
	// UndoGone: its safety backup is gone, and no old data dir is known.
	UndoGone UndoRefusal = "gone"
	// UndoFirst: there was no cluster before it.
	UndoFirst UndoRefusal = "no cluster before"
	// UndoUnknown: there is no operation of that name.
	UndoUnknown UndoRefusal = "unknown"
)

// UndoError says why nothing is undone. With UndoNothing and UndoUnknown it is ErrNotFound.
type UndoError struct {
	Why UndoRefusal
	// Name is what was asked for, Command the one that is in the way, or that was named.
	Name    string
	Command Command
}

func (e *UndoError) Error() string {
	name := e.Command.Name
	switch e.Why {
	case UndoNothing:
		return "the store has no record of a restore that was done: there is nothing to undo"
	case UndoRunning:
		return fmt.Sprintf("%s is being executed (%s), so there is nothing to undo yet; to undo an earlier one, name it",
			name, e.Command.Operation.State)
	case UndoWaiting:
		return name + " waits and has not begun yet; to undo an earlier one anyway, name it"
	case UndoUnreadable:
		return fmt.Sprintf("%s can't be undone: %v", name, e.Command.Problem)
	case UndoNotBegun:
		return name + " waits and has not begun yet: withdraw it"
	case UndoNotEnded:
		return fmt.Sprintf("%s is being executed (%s): it can be undone when it has ended", name, e.Command.Operation.State)
	case UndoNotDone:
		if e.Command.Operation.State == catalog.StateRolledBack {
			return fmt.Sprintf("there is nothing to undo: %s was rolled back, the old data serve", name)
		}
		return fmt.Sprintf("there is nothing to undo: %s ended as %s and changed nothing", name, e.Command.Operation.State)
	case UndoGone:
		saved, _ := e.Command.Operation.Saved()
		return fmt.Sprintf("%s can't be undone: its safety backup %s is gone from the store, and no old data dir is known", name, saved)
	case UndoFirst:
		return name + " can't be undone: there was no cluster before it"
	}
	return fmt.Sprintf("there is no operation %q in the history", e.Name)
}

// Unwrap gives ErrNotFound where nothing was found.
func (e *UndoError) Unwrap() error {
	switch e.Why {
	case UndoNothing, UndoUnknown:
		return ErrNotFound
	case UndoUnreadable:
		return e.Command.Problem
	}
	return nil
}

// PlanUndo finds out what is to be undone and how, and changes nothing. What can't be undone is an *UndoError.
func (c *Client) PlanUndo(ctx context.Context, r UndoRequest) (*UndoPlan, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	p := &UndoPlan{Request: r}
	list, err := c.commands(ctx)
	if err != nil {
		return p, err
	}
	if err := p.pick(slices.DeleteFunc(list, func(e Command) bool { return e.Problem == nil && !e.Restores() })); err != nil {
		return p, err
	}
	backups, err := c.catalog.Backups(ctx)
	if err != nil {
		return p, err
	}
	if err := c.chooseUndo(ctx, p, backups.Names()); err != nil {
		return p, err
	}
	if p.Spec, _, err = c.readSpec(ctx, r.Spec); err != nil {
		return p, err
	}
	if newest, err := c.archive.NewestGood(ctx, backups, c.Now()); err == nil {
		p.Newest = &newest
	}
	p.SpecBefore = c.specBefore(ctx, backups, p.Operation)
	return p, nil
}

// Undo queues an undo as planned.
func (c *Client) Undo(ctx context.Context, p *UndoPlan) (Queued, error) {
	if p.Source == nil && p.Backup == "" {
		return Queued{}, invalidf("the plan is incomplete: PlanUndo has failed")
	}
	r := request{backup: p.Backup, source: p.Source, change: p.Request.Spec, options: p.Request.Options.stored()}
	r.options.ToRevision = p.Revision
	if r.options.Reason == "" {
		r.options.Reason = "undo of " + p.Operation.ID
	}
	return c.enqueue(ctx, r)
}

// chooseUndo says what comes back: the old data dirs, which have everything, and in their absence the safety backup. If that needs
// changes, it is a good backup from which they lead to the revision.
func (c *Client) chooseUndo(ctx context.Context, p *UndoPlan, backups []string) error {
	op := p.Operation
	saved, revision := op.Saved()
	kept := slices.Contains(backups, saved)
	if op.SafetyPoint != nil {
		plan, err := c.archive.Plan(ctx, changelog.Target{Revision: revision, Life: op.SafetyPoint.Incarnation})
		var no *changelog.UnreachableError
		if err != nil && !errors.As(err, &no) {
			return err
		}
		if kept = err == nil; kept {
			saved = plan.Base
		}
	}
	switch {
	case op.OldToken != "":
		p.Source = &catalog.Source{Token: op.OldToken}
		if kept {
			p.Source.OrBackup, p.Source.OrRevision = saved, revision
		}
	case kept:
		p.Backup, p.Revision = saved, revision
	case saved != "":
		return &UndoError{Why: UndoGone, Name: op.ID, Command: Command{Name: op.ID, Operation: op}}
	default:
		return &UndoError{Why: UndoFirst, Name: op.ID, Command: Command{Name: op.ID, Operation: op}}
	}
	return nil
}

// pick chooses the operation, and finds those that were done after it.
func (p *UndoPlan) pick(list []Command) error {
	name := p.Request.Operation
	done := []*catalog.Operation{}
	for _, e := range list {
		switch {
		case name == "" && e.Running():
			return &UndoError{Why: UndoRunning, Command: e}
		case name == "" && e.Waiting():
			return &UndoError{Why: UndoWaiting, Command: e}
		case e.Operation != nil && e.Operation.State == catalog.StateDone:
			done = append(done, e.Operation)
		}
	}
	slices.SortStableFunc(done, func(x, y *catalog.Operation) int { return x.Finished.Compare(y.Finished) })
	if name == "" {
		if len(done) == 0 {
			return &UndoError{Why: UndoNothing}
		}
		p.Operation = done[len(done)-1]
		for _, e := range list {
			if e.Operation != nil && e.Operation.State.Final() && e.Operation.Created.After(p.Operation.Finished) {
				p.EndedSince = append(p.EndedSince, e)
			}
		}
		return nil
	}
	for i, o := range done {
		if o.ID == name {
			p.Operation, p.Later = o, done[i+1:]
			return nil
		}
	}
	return notUndoable(list, name)
}

func notUndoable(list []Command, name string) error {
	e := &UndoError{Why: UndoUnknown, Name: name}
	i := slices.IndexFunc(list, func(c Command) bool { return c.Name == name })
	if i < 0 {
		return e
	}
	e.Command = list[i]
	switch {
	case e.Command.Problem != nil:
		e.Why = UndoUnreadable
	case e.Command.Operation == nil:
		e.Why = UndoNotBegun
	case !e.Command.Operation.State.Final():
		e.Why = UndoNotEnded
	default:
		e.Why = UndoNotDone
	}
	return e
}

// specBefore is the spec that the last backup from before the command knows; nil if none does.
func (c *Client) specBefore(ctx context.Context, backups catalog.BackupList, op *catalog.Operation) *cluster.Spec {
	queued := catalog.BackupTime(op.Command)
	for _, b := range slices.Backward(backups.Backups) {
		if b.Time.IsZero() || !b.Time.Before(queued) {
			continue
		}
		info, err := c.catalog.BackupInfo(ctx, b.Name)
		if err != nil || catalog.ValidateSpec(info.Spec) != nil {
			return nil
		}
		return &info.Spec
	}
	return nil
}
