package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// sight is what one look at the store found out about a command.
type sight struct {
	at time.Time
	// entry is the command and its operation; withdrawn is true if neither is there.
	entry
	withdrawn bool
	// ahead is another operation, after which this one begins.
	ahead *catalog.Operation
	// leader is who led when somebody last wrote that down, quiet for how long nobody has.
	leader *catalog.LeaderRecord
	quiet  time.Duration
	// unchanged is for how long the operation's record is the same.
	unchanged time.Duration
}

// ended tells that nothing more will happen.
func (s *sight) ended() bool { return s.withdrawn || s.op != nil && s.op.State.Final() }

// watch looks at one command again and again, and reads only what has changed since.
type watch struct {
	a    *app
	c    *catalog.Catalog
	name string

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
	since  time.Time
}

func newWatch(a *app, c *catalog.Catalog, name string) *watch {
	return &watch{a: a, c: c, name: name, ops: map[string]recordSeen{}, commands: map[string]commandSeen{}}
}

// lookTimeout bounds one look: one that hangs is better begun anew.
const lookTimeout = 20 * time.Second

// errEmpty is for a store from which everything is gone: more likely it isn't mounted than that somebody deleted it.
var errEmpty = errors.New("it is empty now (is the file system mounted?)")

// look reads what there is now. An error says that nothing is known.
func (w *watch) look(ctx context.Context) (*sight, error) {
	ctx, cancel := context.WithTimeout(ctx, min(w.a.timeout, lookTimeout))
	defer cancel()
	l, err := w.c.ControlListing(ctx)
	if err != nil {
		return nil, err
	}
	if len(l.Commands)+len(l.Operations) == 0 && !l.Spec.Exists() && !l.Marker.Exists() && !l.Leader.Exists() {
		return nil, errEmpty
	}
	s := &sight{at: w.a.now(), entry: entry{name: w.name}}
	if s.op, err = w.operation(ctx, l, w.name); err != nil {
		return nil, err
	}
	if s.cmd, err = w.command(ctx, l, w.name); err != nil {
		return nil, err
	}
	switch {
	case s.op != nil:
		s.unchanged = s.at.Sub(w.ops[w.name].since)
		return s, nil
	case s.cmd == nil && w.ops[w.name].stamp != "":
		return nil, fmt.Errorf("the record of operation %s is gone from it", w.name)
	case s.cmd == nil:
		return s, w.lastSign(ctx, s)
	}
	if s.creates() {
		return s, w.leading(ctx, l, s) // it waits for nobody
	}
	if err := w.surroundings(ctx, l, s); err != nil {
		return nil, err
	}
	return s, nil
}

// lastSign settles what became of a command that isn't queued any more: a record that was written after the listing was made, or none.
func (w *watch) lastSign(ctx context.Context, s *sight) error {
	op, _, err := w.c.Operation(ctx, w.name)
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		s.withdrawn = true
	case err != nil:
		return err
	default:
		s.op = &op
	}
	return nil
}

// unusable tells an object that can't be read from a store that doesn't answer.
func unusable(err error) bool {
	return errors.Is(err, cluster.ErrCorrupt) || errors.Is(err, cluster.ErrFuture)
}

// surroundings finds out what a waiting command waits for.
func (w *watch) surroundings(ctx context.Context, l catalog.ControlListing, s *sight) error {
	for _, o := range l.Operations {
		op, err := w.operation(ctx, l, o.Name)
		if err != nil && !unusable(err) {
			return err
		}
		if err == nil && op != nil && !op.State.Final() {
			s.ahead = op
		}
	}
	newest := *s.cmd
	for _, o := range l.Commands {
		if slices.ContainsFunc(l.Operations, func(op catalog.Object) bool { return op.Name == o.Name }) {
			continue
		}
		cmd, err := w.command(ctx, l, o.Name)
		if err != nil && !unusable(err) {
			return err
		}
		if err != nil || cmd == nil || cmd.Create != nil {
			continue
		}
		both := []catalog.Command{newest, *cmd}
		catalog.SortCommands(both)
		newest = both[1]
	}
	if newest.Name != w.name {
		s.overtaken = newest.Name
	}
	return w.leading(ctx, l, s)
}

// leading notes who leads, as far as the store knows.
func (w *watch) leading(ctx context.Context, l catalog.ControlListing, s *sight) error {
	if w.leader.since.IsZero() {
		w.leader.since = s.at // nobody has ever led
	}
	if l.Leader.Exists() && l.Leader.Stamp != w.leader.stamp {
		r, _, err := w.c.Leader(ctx)
		if err != nil && !unusable(err) && !errors.Is(err, catalog.ErrNotFound) {
			return err
		}
		since := s.at
		if w.leader.stamp == "" && l.Leader.Modified.Before(since) {
			since = l.Leader.Modified
		}
		w.leader = leaderSeen{stamp: l.Leader.Stamp, since: since}
		if err == nil {
			w.leader.record = &r
		}
	}
	s.leader, s.quiet = w.leader.record, s.at.Sub(w.leader.since)
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
	w.ops[name] = recordSeen{l.Operations[i].Stamp, op, w.a.now()}
	return &op, nil
}

// command returns a queued command, nil if there is none of that name.
func (w *watch) command(ctx context.Context, l catalog.ControlListing, name string) (*catalog.Command, error) {
	i := slices.IndexFunc(l.Commands, func(o catalog.Object) bool { return o.Name == name })
	if i < 0 {
		return nil, nil
	}
	if have := w.commands[name]; have.stamp == l.Commands[i].Stamp && have.cmd.Create == nil { // how far a backup is stands beside it
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
