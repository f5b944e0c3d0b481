package operator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Queued is a restore or a recovery that was queued.
type Queued struct {
	Command catalog.Command
	// Spec is what becomes of the cluster's spec.
	Spec SpecEffect
	// Others are the commands that stood in the queue before: one that runs goes on first, those
	// that wait are superseded when this one begins.
	Others []Command
}

// SpecTiming says when a restore's spec becomes the cluster's.
type SpecTiming int

const (
	// SpecKept: the spec stays as it is.
	SpecKept SpecTiming = iota
	// SpecWhenDone: the managers write it when the restore is done.
	SpecWhenDone
	// SpecWritten: it is written already. A cluster that serves is changed accordingly from now on;
	// withdrawing the restore doesn't take that back.
	SpecWritten
)

// SpecEffect is what a restore does to the cluster's spec: a cluster restored into another size
// would be changed back to the spec's at once.
type SpecEffect struct {
	When SpecTiming
	// Before is nil if there was none. It and After are only set if the spec doesn't stay as it is.
	Before *cluster.Spec
	After  cluster.Spec
}

// UncertainError says that it isn't known whether a command was queued: the store may have taken it, and only its answer was lost.
type UncertainError struct{ Err error }

func (e *UncertainError) Error() string {
	return fmt.Sprintf("%v. It may be queued anyway: list the commands", e.Err)
}

// Unwrap gives what the store has said.
func (e *UncertainError) Unwrap() error { return e.Err }

// SpecError says that the cluster's spec could not be written along with a restore. The restore was
// withdrawn, so nothing is queued, unless Withdraw says why that failed too.
type SpecError struct {
	// Command is the name of the command that was queued.
	Command string
	// Err is why the spec could not be written, Withdraw why the command could not be withdrawn.
	Err, Withdraw error
}

func (e *SpecError) Error() string {
	if e.Withdraw != nil {
		return fmt.Sprintf("%s is queued, but the cluster spec could not be written, and withdrawing the command failed too (%v); "+
			"withdraw it: %v", e.Command, e.Withdraw, e.Err)
	}
	return fmt.Sprintf("nothing is queued: the cluster spec could not be written: %v", e.Err)
}

// Unwrap gives both.
func (e *SpecError) Unwrap() []error {
	if e.Withdraw != nil {
		return []error{e.Withdraw, e.Err}
	}
	return []error{e.Err}
}

// request is a restore, or a recovery, that is to be queued.
type request struct {
	// Exactly one of the two is set.
	backup string
	source *catalog.Source
	// change goes into the spec too. The managers write it when the restore is done; with nothing serving it is written at once, since
	// the managers elect by it.
	change  SpecChange
	options catalog.RestoreOptions
}

// enqueue queues the request, and writes the spec if the request changes it.
func (c *Client) enqueue(ctx context.Context, r request) (Queued, error) {
	if err := c.managed(ctx); err != nil {
		return Queued{}, err
	}
	ctx, cancel := c.limit(ctx)
	defer cancel()
	spec, stored, err := c.readSpec(ctx, r.change)
	if err != nil {
		if errors.Is(err, catalog.ErrInvalid) && r.change.Empty() {
			err = fmt.Errorf("a restore can't use the cluster spec in %s: %w", c.Store(), err)
		}
		return Queued{}, err
	}
	out := Queued{}
	if out.Others, err = c.commands(ctx); err != nil {
		return Queued{}, err
	}
	r.options.SetSpec = stored != "" && !r.change.Empty() && !r.atOnce()
	if out.Command, err = r.queue(ctx, c.catalog, spec); err != nil {
		return Queued{}, &UncertainError{err}
	}
	if out.Spec, err = c.changeSpec(ctx, r, out.Command, stored); err != nil {
		return Queued{}, err
	}
	return out, nil
}

func (r *request) queue(ctx context.Context, c *catalog.Catalog, spec cluster.Spec) (catalog.Command, error) {
	if r.source != nil {
		return c.QueueRecover(ctx, *r.source, spec, r.options)
	}
	return c.QueueRestore(ctx, r.backup, spec, r.options)
}

// atOnce tells whether nothing can be serving: a recovery from a survivor is only made without a quorum.
func (r *request) atOnce() bool { return r.source != nil && r.source.Node != "" }

// withdrawTimeout bounds the clearing away after a failure, which goes on when the caller's time is over.
const withdrawTimeout = 15 * time.Second

// changeSpec writes the spec after the command was queued: in the other order a failure, or a
// crash, in between would resize a cluster that nobody restores. If the spec can't be written, the
// command is withdrawn.
func (c *Client) changeSpec(ctx context.Context, r request, cmd catalog.Command, stored string) (SpecEffect, error) {
	if r.change.Empty() {
		return SpecEffect{}, nil
	}
	before, _, err := c.catalog.Spec(ctx)
	if err == nil && stored != "" && before == cmd.Spec {
		return SpecEffect{}, nil
	}
	if cmd.Options.SetSpec && err == nil {
		return SpecEffect{SpecWhenDone, &before, cmd.Spec}, nil
	}
	after, err := c.writeSpec(ctx, r.change)
	if err != nil {
		uctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawTimeout)
		defer cancel()
		return SpecEffect{}, &SpecError{cmd.Name, err, c.catalog.RemoveCommand(uctx, cmd.Name)}
	}
	effect := SpecEffect{When: SpecWritten, After: after}
	if stored != "" {
		effect.Before = &before
	}
	return effect, nil
}
