package operator

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// Withdrawn is a command that was taken out of the queue.
type Withdrawn struct {
	// Command is as it was before.
	Command Command
	// TooLate is the state that its operation has come to meanwhile, if etcd is being stopped for
	// it: it goes on all the same. Else it is empty, and the managers give up what they had begun.
	TooLate catalog.OperationState
	// Ending is true for a put-back that has begun: the leader ends it where it is, and records that. It can be undone then.
	Ending bool
	// Forgotten is true if it had failed, and its record was removed.
	Forgotten bool
}

// KeptError says why a command is not withdrawn: it has ended, is given up or taken back already,
// or etcd was stopped for it. In the last case it has to be let end, and can be undone then.
type KeptError struct{ Command Command }

// Ended tells that it isn't queued any more; else it can't be withdrawn any more.
func (e *KeptError) Ended() bool {
	op := e.Command.Operation
	return op == nil || !Stopped(op.State)
}

func (e *KeptError) Error() string {
	name, op := e.Command.Name, e.Command.Operation
	switch {
	case op == nil:
		return fmt.Sprintf("%s isn't queued: it is the record of an operation", name)
	case op.State == catalog.StateReverting:
		return name + " is already being rolled back"
	case Stopped(op.State):
		return fmt.Sprintf("%s can't be withdrawn any more: etcd was stopped for it (%s)", name, op.State)
	case op.State.Final():
		return fmt.Sprintf("%s isn't queued any more: it ended as %s", name, op.State)
	}
	return name + " is already withdrawn; the managers are abandoning it"
}

// Withdrawal is what became of a wish to withdraw.
type Withdrawal struct {
	// Notes say which backup Latest means, and what was passed over.
	Notes []string
	// Removed are the commands that were withdrawn, Kept those that can't be.
	Removed []Withdrawn
	Kept    []*KeptError
}

// Withdraw takes commands out of the queue: that of the name, and all queued ones that restore the
// backup of that name (which may be Latest). One that is being executed is given up by the managers
// as long as nothing was stopped for it. It is a *NoCommandError if there is none at all. The
// result holds what was done, also beside an error.
func (c *Client) Withdraw(ctx context.Context, name string) (Withdrawal, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	var out Withdrawal
	list, err := c.commands(ctx)
	if err != nil {
		return out, err
	}
	if name == Latest && !slices.ContainsFunc(list, func(e Command) bool { return e.Name == Latest }) {
		backups, err := c.catalog.Backups(ctx)
		if err != nil {
			return out, err
		}
		if name, out.Notes, err = c.resolve(ctx, backups, name); err != nil {
			return out, err
		}
	}
	for _, e := range list {
		if e.Name != name && (name == "" || e.Backup() != name || !e.IsQueued()) {
			continue
		}
		first, err := c.failedFirst(ctx, e)
		if err == nil && first {
			err = c.catalog.RemoveOperation(ctx, e.Operation.ID)
		}
		if err != nil {
			return out, err
		}
		if first {
			out.Removed = append(out.Removed, Withdrawn{Command: e, Forgotten: true})
			continue
		}
		if kept(e) {
			out.Kept = append(out.Kept, &KeptError{e})
			continue
		}
		w, err := c.withdraw(ctx, e)
		if err != nil {
			return out, err
		}
		if w.Ending {
			out.Removed = append(out.Removed, w)
			continue
		}
		out.Removed = append(out.Removed, Withdrawn{Command: e, TooLate: c.tooLate(ctx, e)})
	}
	if len(out.Removed) == 0 && len(out.Kept) == 0 {
		return out, &NoCommandError{Name: name, Queue: true}
	}
	return out, nil
}

// withdraw takes one command out of the queue. A put-back that has begun is ended by the leader, which knows what it has written.
func (c *Client) withdraw(ctx context.Context, e Command) (Withdrawn, error) {
	w := Withdrawn{Command: e}
	if e.Queued == nil || e.Queued.PutBack == nil {
		return w, c.catalog.RemoveCommand(ctx, e.Name)
	}
	if e.Queued.PutBack.Progress == nil {
		if err := c.catalog.RemoveCommand(ctx, e.Name); err != nil {
			return w, err
		}
		return w, nil // a leader that has begun meanwhile records what it has written; else its parts are removed later
	}
	w.Ending = true
	err := c.catalog.CancelPutBack(ctx, e.Name)
	if errors.Is(err, ErrNotFound) {
		err = nil // it has ended
	}
	return w, err
}

// failedFirst tells whether a restore has failed where no cluster was ever created. Its record keeps the managers from forming an empty one
// in its stead, so that it can be removed, too.
func (c *Client) failedFirst(ctx context.Context, e Command) (bool, error) {
	if e.Operation == nil || e.IsQueued() || !e.Restores() || e.Operation.State != catalog.StateFailed {
		return false, nil
	}
	_, _, err := c.catalog.Marker(ctx)
	if errors.Is(err, catalog.ErrNotFound) {
		return true, nil
	}
	return false, err
}

// kept tells that a command can't be withdrawn.
func kept(e Command) bool {
	return !e.IsQueued() || e.Operation != nil && Stopped(e.Operation.State)
}

// tooLate looks once more at an operation that was under way, for it may have come further meanwhile.
func (c *Client) tooLate(ctx context.Context, e Command) catalog.OperationState {
	if !e.Running() {
		return ""
	}
	op, _, err := c.catalog.Operation(ctx, e.Operation.ID)
	if err != nil || !Stopped(op.State) {
		return ""
	}
	return op.State
}
