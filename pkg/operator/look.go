package operator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// Look is what one look at the store has found out about a command.
type Look struct {
	At time.Time
	// Command is as it is now; Withdrawn is true if it is neither queued nor recorded.
	Command   Command
	Withdrawn bool
	// Ahead is another operation, after which this one begins.
	Ahead *catalog.Operation
	// Leader is who led when somebody last wrote that down, Quiet for how long nobody has. They are known for what waits only.
	Leader *catalog.LeaderRecord
	Quiet  time.Duration
	// Doing is what the leader did or waited for when it last said so; empty if it doesn't say.
	Doing string
	// Unchanged is for how long the operation's record is the same.
	Unchanged time.Duration
}

// Ended tells that nothing more will happen.
func (l *Look) Ended() bool {
	return l.Withdrawn || l.Command.Operation != nil && l.Command.Operation.State.Final()
}

// watch looks at one command again and again, and reads only what has changed since.
type watch struct {
	c    *catalog.Catalog
	name string
	// now is the clock, and timeout bounds a look.
	now     func() time.Time
	timeout time.Duration

	ops      map[string]recordSeen
	commands map[string]commandSeen
	leader   leaderSeen
}

type recordSeen struct {
	stamp string
	op    catalog.Operation
	since time.Time
}

type commandSeen struct {
	stamp string
	cmd   catalog.Command
}

type leaderSeen struct {
	stamp  string
	record *catalog.LeaderRecord
	doing  string
	since  time.Time
}

func (c *Client) newWatch(name string) *watch {
	return &watch{c: c.catalog, name: name, now: c.config.Now, timeout: min(c.config.Timeout, lookTimeout),
		ops: map[string]recordSeen{}, commands: map[string]commandSeen{}}
}

// lookTimeout bounds one look: one that hangs is better begun again.
const lookTimeout = 20 * time.Second

// errEmpty is for a store from which everything is gone: more likely it isn't mounted than that somebody deleted it.
var errEmpty = errors.New("it is empty now (is the file system mounted?)")

// look reads what there is now. An error says that nothing is known.
func (w *watch) look(ctx context.Context) (*Look, error) {
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	l, err := w.c.ControlListing(ctx)
	if err != nil {
		return nil, err
	}
	if len(l.Commands)+len(l.Operations) == 0 && !l.Spec.Exists() && !l.Marker.Exists() && !l.Leader.Exists() {
		return nil, errEmpty
	}
	s := &Look{At: w.now(), Command: Command{Name: w.name}}
	if s.Command.Operation, err = w.operation(ctx, l, w.name); err != nil {
		return nil, err
	}
	if s.Command.Queued, err = w.command(ctx, l, w.name); err != nil {
		return nil, err
	}
	switch {
	case s.Command.Operation != nil:
		s.Unchanged = s.At.Sub(w.ops[w.name].since)
		return s, nil
	case s.Command.Queued == nil && w.ops[w.name].stamp != "":
		return nil, fmt.Errorf("the record of operation %s is gone from it", w.name)
	case s.Command.Queued == nil:
		return s, w.lastSign(ctx, s)
	}
	if s.Command.Creates() || s.Command.PutsBack() {
		return s, w.leading(ctx, l, s) // no restore replaces it
	}
	if err := w.surroundings(ctx, l, s); err != nil {
		return nil, err
	}
	return s, nil
}

// lastSign settles what became of a command that isn't queued any more: a record that was written after the listing was made, or none.
func (w *watch) lastSign(ctx context.Context, s *Look) error {
	op, _, err := w.c.Operation(ctx, w.name)
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		s.Withdrawn = true
	case err != nil:
		return err
	default:
		s.Command.Operation = &op
	}
	return nil
}

// surroundings finds out what a waiting command waits for.
func (w *watch) surroundings(ctx context.Context, l catalog.ControlListing, s *Look) error {
	for _, o := range l.Operations {
		op, err := w.operation(ctx, l, o.Name)
		if err != nil && !Unreadable(err) {
			return err
		}
		if err == nil && op != nil && !op.State.Final() {
			s.Ahead = op
		}
	}
	newest := *s.Command.Queued
	for _, o := range l.Commands {
		if slices.ContainsFunc(l.Operations, func(op catalog.Object) bool { return op.Name == o.Name }) {
			continue
		}
		cmd, err := w.command(ctx, l, o.Name)
		if err != nil && !Unreadable(err) {
			return err
		}
		if err != nil || cmd == nil || cmd.Create != nil || cmd.PutBack != nil {
			continue
		}
		both := []catalog.Command{newest, *cmd}
		catalog.SortCommands(both)
		newest = both[1]
	}
	if newest.Name != w.name {
		s.Command.Overtaken = newest.Name
	}
	return w.leading(ctx, l, s)
}

// leading notes who leads, as far as the store knows.
func (w *watch) leading(ctx context.Context, l catalog.ControlListing, s *Look) error {
	if w.leader.since.IsZero() {
		w.leader.since = s.At // nobody has ever led
	}
	if l.Leader.Exists() && l.Leader.Stamp != w.leader.stamp {
		r, status, _, err := w.c.LeaderStatus(ctx)
		if err != nil && !Unreadable(err) && !errors.Is(err, catalog.ErrNotFound) {
			return err
		}
		since := s.At
		if w.leader.stamp == "" && l.Leader.Modified.Before(since) {
			since = l.Leader.Modified
		}
		w.leader = leaderSeen{stamp: l.Leader.Stamp, since: since}
		if err == nil {
			w.leader.record = &r
		}
		if err == nil && status != nil {
			w.leader.doing = status.Doing
		}
	}
	s.Leader, s.Doing, s.Quiet = w.leader.record, w.leader.doing, s.At.Sub(w.leader.since)
	return nil
}

// operation returns a record as it is now, nil if there is none.
func (w *watch) operation(ctx context.Context, l catalog.ControlListing, name string) (*catalog.Operation, error) {
	i := slices.IndexFunc(l.Operations, func(o catalog.Object) bool { return o.Name == name })
	if i < 0 {
		return nil, nil
	}
	if have := w.ops[name]; have.stamp == l.Operations[i].Stamp {
		return &have.op, nil
	}
	op, _, err := w.c.Operation(ctx, name)
	if errors.Is(err, catalog.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	w.ops[name] = recordSeen{l.Operations[i].Stamp, op, w.now()}
	return &op, nil
}

// command returns a queued command, nil if there is none of that name.
func (w *watch) command(ctx context.Context, l catalog.ControlListing, name string) (*catalog.Command, error) {
	i := slices.IndexFunc(l.Commands, func(o catalog.Object) bool { return o.Name == name })
	if i < 0 {
		return nil, nil
	}
	have := w.commands[name]
	beside := have.cmd.Create != nil || have.cmd.PutBack != nil // how far it is stands beside it
	if have.stamp == l.Commands[i].Stamp && !beside {
		return &have.cmd, nil
	}
	cmd, err := w.c.Command(ctx, name)
	if errors.Is(err, catalog.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	w.commands[name] = commandSeen{l.Commands[i].Stamp, cmd}
	return &cmd, nil
}
