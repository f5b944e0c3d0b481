package operator

import (
	"context"
	"slices"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// State is how far a command is: one of the four below, or the final state of its operation (done, failed, rolled-back, superseded).
type State string

const (
	// StateWaiting: nobody has begun, or a backup on demand is tried again later.
	StateWaiting State = "waiting"
	// StateRunning: it is being executed; the operation's own state says how far it is.
	StateRunning State = "running"
	// StateUnreadable: what stands there isn't a command or a record that this program can read.
	StateUnreadable State = "unreadable"
	// StateWithdrawn: it was taken out of the queue before anybody began.
	StateWithdrawn State = "withdrawn"
)

// Command is one command with what became of it. Of Queued and Operation at most one is nil, and both if it can't be read.
type Command struct {
	Name string
	// Queued is nil once it isn't queued any more.
	Queued *catalog.Command
	// Operation is nil before anybody has begun.
	Operation *catalog.Operation
	// Problem says why it can't be read. InQueue is true then for what stands in the queue.
	Problem error
	InQueue bool
	// Overtaken is the name of a later command that waits too, which wins.
	Overtaken string
}

// IsQueued tells that it stands in the queue.
func (c Command) IsQueued() bool { return c.Queued != nil || c.InQueue }

// Waiting tells that nobody has begun.
func (c Command) Waiting() bool { return c.Problem == nil && c.Operation == nil }

// Running tells that it is being executed.
func (c Command) Running() bool { return c.Operation != nil && !c.Operation.State.Final() }

// State is how far it is.
func (c Command) State() State {
	switch {
	case c.Problem != nil:
		return StateUnreadable
	case c.Running(), c.Operation == nil && c.Creates() && c.Queued.Create.Progress != nil && c.Queued.Create.Progress.Error == "":
		return StateRunning
	case c.Operation == nil && c.PutsBack() && c.Queued.PutBack.Progress != nil && c.Queued.PutBack.Progress.Waiting == "":
		return StateRunning
	case c.Operation == nil:
		return StateWaiting
	}
	return State(c.Operation.State)
}

// Backup is what it restores, or has taken; empty if that isn't known yet.
func (c Command) Backup() string {
	if c.Operation != nil && c.Operation.Backup != "" {
		return c.Operation.Backup
	}
	if c.Queued != nil {
		return c.Queued.Backup
	}
	return ""
}

// Source is the data dir that it recovers; nil if it restores a backup.
func (c Command) Source() *catalog.Source {
	if c.Queued != nil {
		return c.Queued.Source
	}
	if c.Operation != nil {
		return c.Operation.Source
	}
	return nil
}

// Creates tells that it takes a backup, and restores nothing.
func (c Command) Creates() bool {
	return c.Queued != nil && c.Queued.Create != nil || c.Operation != nil && c.Operation.Kind == catalog.KindBackup
}

// PutsBack tells that it puts keys back while the cluster serves, or takes that back, and restores nothing.
func (c Command) PutsBack() bool {
	return c.Queued != nil && c.Queued.PutBack != nil || c.Operation != nil && c.Operation.PutBack != nil
}

// Restores tells that it replaces the cluster's data.
func (c Command) Restores() bool { return !c.Creates() && !c.PutsBack() }

// Target is the point to which the backup is brought; nil if it is the backup itself, or if the managers have not found it yet.
func (c Command) Target() *catalog.PointInTime {
	if c.Operation != nil {
		return c.Operation.Target
	}
	return nil
}

// Spec is the cluster that is restored into. It is zero for what can't be read.
func (c Command) Spec() cluster.Spec {
	switch {
	case c.Queued != nil:
		return c.Queued.Spec
	case c.Operation != nil:
		return c.Operation.Spec
	}
	return cluster.Spec{}
}

// Options are what was asked for.
func (c Command) Options() catalog.RestoreOptions {
	switch {
	case c.Queued != nil && c.Queued.Create != nil:
		return catalog.RestoreOptions{Reason: c.Queued.Create.Reason}
	case c.Queued != nil && c.Queued.PutBack != nil:
		return catalog.RestoreOptions{Reason: c.Queued.PutBack.Reason}
	case c.Queued != nil:
		return c.Queued.Options
	case c.Operation != nil:
		return c.Operation.Options
	}
	return catalog.RestoreOptions{}
}

// QueuedAt is when it was queued, by the clock of who did.
func (c Command) QueuedAt() time.Time {
	if c.Queued != nil {
		return c.Queued.Time
	}
	return catalog.BackupTime(c.Name)
}

// Percent is how far the nodes are with the present step, by bytes; ok is false if that isn't known.
func (c Command) Percent() (percent int, ok bool) {
	if c.Operation == nil {
		return 0, false
	}
	var done, total int64
	for _, p := range c.Operation.Progress {
		if p.Total > 0 {
			done, total = done+min(p.Done, p.Total), total+p.Total
		}
	}
	if total == 0 {
		return 0, false
	}
	return int(100 * done / total), true
}

// Stopped tells that etcd has been, or is being, stopped for an operation that is in this state.
func Stopped(s catalog.OperationState) bool {
	switch s {
	case catalog.StateSalvaging, catalog.StateProving, catalog.StateStaging, catalog.StateSaving:
		return false
	}
	return !s.Final()
}

// Commands lists queue and history: first what has left the queue, oldest first, then the queue, then what can't be read.
func (c *Client) Commands(ctx context.Context) ([]Command, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	return c.commands(ctx)
}

// Command finds a command by its name; it is a *NoCommandError if there is none.
func (c *Client) Command(ctx context.Context, name string) (Command, error) {
	list, err := c.Commands(ctx)
	if err != nil {
		return Command{}, err
	}
	i := slices.IndexFunc(list, func(e Command) bool { return e.Name == name })
	if i < 0 {
		return Command{}, &NoCommandError{Name: name}
	}
	return list[i], nil
}

// CommandToFollow finds the name of the command that is meant: of that name, or else the newest
// that restores the backup of that name. Without a name it is the one that is being executed, else
// the newest that waits. It is a *NoCommandError if there is none.
func (c *Client) CommandToFollow(ctx context.Context, name string) (string, error) {
	list, err := c.Commands(ctx)
	if err != nil {
		return "", err
	}
	named, running, waiting := "", "", ""
	for _, e := range list {
		switch {
		case name != "" && e.Name == name:
			return e.Name, nil
		case name != "" && e.Problem == nil && e.Backup() == name:
			named = e.Name
		case e.Running():
			running = e.Name
		case e.Waiting():
			waiting = e.Name
		}
	}
	switch {
	case named != "":
		return named, nil
	case name != "":
	case running != "":
		return running, nil
	case waiting != "":
		return waiting, nil
	}
	return "", &NoCommandError{Name: name}
}

// commands puts queue and operations together.
func (c *Client) commands(ctx context.Context) ([]Command, error) {
	cmds, badCommands, err := c.catalog.Commands(ctx)
	if err != nil {
		return nil, err
	}
	ops, badOps, err := c.catalog.Operations(ctx)
	if err != nil {
		return nil, err
	}
	byCommand := map[string]*catalog.Operation{}
	queued := map[string]bool{}
	for _, cmd := range cmds {
		queued[cmd.Name] = true
	}
	var out []Command
	for i, op := range ops {
		byCommand[op.Command] = &ops[i]
		if !queued[op.Command] {
			out = append(out, Command{Name: op.Command, Operation: &ops[i]})
		}
	}
	last := "" // the newest that waits
	for i, cmd := range cmds {
		e := Command{Name: cmd.Name, Queued: &cmds[i], Operation: byCommand[cmd.Name]}
		if e.Waiting() && e.Restores() {
			last = e.Name
		}
		out = append(out, e)
	}
	for i := range out {
		if out[i].Waiting() && out[i].Restores() && out[i].Name != last {
			out[i].Overtaken = last
		}
	}
	for _, p := range badCommands {
		out = append(out, Command{Name: p.Name, Problem: p.Err, InQueue: true})
	}
	for _, p := range badOps {
		out = append(out, Command{Name: p.Name, Problem: p.Err})
	}
	return out, nil
}

// VolumeRecords are what the nodes have last written down of their volumes.
func (c *Client) VolumeRecords(ctx context.Context) (map[cluster.NodeID]catalog.VolumeRecord, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	return c.catalog.Volumes(ctx)
}
