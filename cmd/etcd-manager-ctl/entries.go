package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// States of a command as list-commands shows them; running ones show the operation's own state beside.
const (
	stateWaiting    = "waiting"
	stateRunning    = "running"
	stateUnreadable = "unreadable"
)

// entry is one command with what became of it. Of cmd and op at most one is nil, and both if it can't be read.
type entry struct {
	name    string
	cmd     *catalog.Command // nil once it isn't queued any more
	op      *catalog.Operation
	problem error
	// inQueue is true for what can't be read and stands in the queue.
	inQueue bool
	// overtaken is the name of a later command that waits too, which wins.
	overtaken string
}

func (e entry) queued() bool  { return e.cmd != nil || e.inQueue }
func (e entry) waiting() bool { return e.problem == nil && e.op == nil }
func (e entry) running() bool { return e.op != nil && !e.op.State.Final() }

func (e entry) backup() string {
	if e.op != nil && e.op.Backup != "" {
		return e.op.Backup
	}
	if e.cmd != nil {
		return e.cmd.Backup
	}
	return ""
}

func (e entry) source() *catalog.Source {
	if e.cmd != nil {
		return e.cmd.Source
	}
	if e.op != nil {
		return e.op.Source
	}
	return nil
}

// creates tells that it takes a backup, and restores nothing.
func (e entry) creates() bool {
	return e.cmd != nil && e.cmd.Create != nil || e.op != nil && e.op.Kind == catalog.KindBackup
}

func (e entry) subject() string {
	if e.problem != nil {
		return "it can't be read"
	}
	if e.creates() {
		return "a backup on demand"
	}
	return subject(e.backup(), e.source()) + e.point()
}

// point says to where the backup is brought.
func (e entry) point() string {
	if e.op != nil {
		return point(e.options(), e.op.Target)
	}
	return point(e.options(), nil)
}

func (e entry) spec() cluster.Spec {
	if e.cmd != nil {
		return e.cmd.Spec
	}
	return e.op.Spec
}

func (e entry) options() catalog.RestoreOptions {
	if e.cmd != nil && e.cmd.Create != nil {
		return catalog.RestoreOptions{Reason: e.cmd.Create.Reason}
	}
	if e.cmd != nil {
		return e.cmd.Options
	}
	return e.op.Options
}

func (e entry) queuedAt() time.Time {
	if e.cmd != nil {
		return e.cmd.Time
	}
	return catalog.BackupTime(e.name)
}

// entries puts queue and operations together: first what has left the queue, oldest first, then the queue, then
// what can't be read.
func entries(ctx context.Context, c *catalog.Catalog) ([]entry, error) {
	cmds, badCommands, err := c.Commands(ctx)
	if err != nil {
		return nil, err
	}
	ops, badOps, err := c.Operations(ctx)
	if err != nil {
		return nil, err
	}
	byCommand := map[string]*catalog.Operation{}
	queued := map[string]bool{}
	for _, cmd := range cmds {
		queued[cmd.Name] = true
	}
	var out []entry
	for i, op := range ops {
		byCommand[op.Command] = &ops[i]
		if !queued[op.Command] {
			out = append(out, entry{name: op.Command, op: &ops[i]})
		}
	}
	last := "" // the newest that waits
	for i, cmd := range cmds {
		e := entry{name: cmd.Name, cmd: &cmds[i], op: byCommand[cmd.Name]}
		if e.waiting() && !e.creates() {
			last = e.name
		}
		out = append(out, e)
	}
	for i := range out {
		if out[i].waiting() && !out[i].creates() && out[i].name != last {
			out[i].overtaken = last
		}
	}
	for _, p := range badCommands {
		out = append(out, entry{name: p.Name, problem: p.Err, inQueue: true})
	}
	for _, p := range badOps {
		out = append(out, entry{name: p.Name, problem: p.Err})
	}
	return out, nil
}

// percent is how far the nodes are with the present step, by bytes; -1 if nothing is known.
func percent(op *catalog.Operation) int {
	var done, total int64
	for _, p := range op.Progress {
		if p.Total > 0 {
			done, total = done+min(p.Done, p.Total), total+p.Total
		}
	}
	if total == 0 {
		return -1
	}
	return int(100 * done / total)
}

type sourceOutput struct {
	Node  cluster.NodeID `json:"node,omitempty"`
	Token cluster.Token  `json:"token"`
}

type commandOutput struct {
	Name string `json:"name"`
	// Kind is "restore", "recover", "backup" or "unknown".
	Kind   string        `json:"kind"`
	State  string        `json:"state"`
	Queued bool          `json:"queued"`
	Backup string        `json:"backup,omitempty"`
	Source *sourceOutput `json:"source,omitempty"`
	// To says to where the backup is brought before it is restored, in words; empty if not.
	To string `json:"to,omitempty"`
	// Spec is what the backup is restored into.
	Spec       *specOutput `json:"spec,omitempty"`
	QueuedAt   time.Time   `json:"queuedAt,omitzero"`
	FinishedAt time.Time   `json:"finishedAt,omitzero"`
	// Now is true if it doesn't wait for a restart of the managers.
	Now bool `json:"now,omitempty"`
	// Phase is the operation's own state while it runs, Percent how far the nodes are with it.
	Phase   string `json:"phase,omitempty"`
	Percent *int   `json:"progressPercent,omitempty"`
	// Reason says why it is in its state, Note is the operator's own.
	Reason string `json:"reason,omitempty"`
	Note   string `json:"note,omitempty"`
	// OutageSeconds is how long etcd served nobody.
	OutageSeconds float64 `json:"outageSeconds,omitempty"`
	SafetyBackup  string  `json:"safetyBackup,omitempty"`
}

// output is the row of an entry.
func (e entry) output() commandOutput {
	if e.problem != nil {
		return commandOutput{Name: e.name, Kind: "unknown", State: stateUnreadable, Queued: e.inQueue, Reason: e.problem.Error()}
	}
	spec, options := e.spec(), e.options()
	r := commandOutput{Name: e.name, Kind: "restore", State: stateWaiting, Queued: e.queued(), Backup: e.backup(),
		Spec: &specOutput{spec.MemberCount, spec.EtcdVersion, nil}, QueuedAt: e.queuedAt(), Now: options.Now, Note: options.Reason}
	r.To = strings.TrimPrefix(e.point(), ", ")
	if s := e.source(); s != nil {
		r.Kind, r.Source = "recover", &sourceOutput{s.Node, s.Token}
	}
	if e.creates() {
		r.Kind, r.Spec = "backup", nil
		if e.cmd != nil && e.op == nil {
			r.State, r.Reason = progressOfBackup(e.cmd.Create)
			return r
		}
	}
	if e.op == nil {
		if e.overtaken != "" {
			r.Reason = fmt.Sprintf("%s was queued later and wins", e.overtaken)
		}
		return r
	}
	r.Reason, r.FinishedAt, r.OutageSeconds, r.SafetyBackup = e.op.Reason, e.op.Finished, e.op.Outage.Seconds(), e.op.SafetyBackup
	if e.op.State.Final() {
		r.State = string(e.op.State)
		return r
	}
	r.State, r.Phase, r.Reason = stateRunning, string(e.op.State), cmp.Or(e.op.Reason, e.op.Waiting)
	if p := percent(e.op); p >= 0 {
		r.Percent = &p
	}
	return r
}

// progressOfBackup is how far the managers are with a backup on demand.
func progressOfBackup(b *catalog.CreateBackup) (state, words string) {
	p := b.Progress
	switch {
	case p == nil:
		return stateWaiting, "for the leader to see it (about half a minute), and for a cluster that serves"
	case p.Error == "":
		return stateRunning, fmt.Sprintf("node %s takes it", p.Node)
	}
	return stateWaiting, fmt.Sprintf("attempt %d on node %s failed, the next one comes at %s: %s", p.Attempt, p.Node, ui.Clock(p.RetryAt), p.Error)
}

// detail is the last column of list-commands.
func (r commandOutput) detail() string {
	switch {
	case r.State == stateWaiting && r.Reason != "":
		return r.Reason
	case r.State == stateWaiting && r.Now:
		return "for the leader to see it (about half a minute)"
	case r.State == stateWaiting:
		return "until the managers are restarted"
	case r.State == stateRunning && r.Phase == "":
		return r.Reason
	case r.State == stateRunning:
		s := r.Phase
		if r.Percent != nil {
			s += fmt.Sprintf(" %d%%", *r.Percent)
		}
		if r.Reason != "" {
			s += ": " + r.Reason
		}
		return s
	case r.Reason == "" && r.OutageSeconds > 0:
		return fmt.Sprintf("etcd served nobody for %.1fs", r.OutageSeconds)
	}
	return r.Reason
}

// of is what list-commands shows in the column of backups.
func (r commandOutput) of() string {
	switch {
	case r.Source == nil || r.Backup != "":
		return r.Backup
	case r.Source.Node == "":
		return "(trash cans)"
	}
	return fmt.Sprintf("(data of %s)", r.Source.Node)
}
