package main

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

// subjectOf says what a command does.
func subjectOf(c operator.Command) string {
	if c.Problem != nil {
		return "it can't be read"
	}
	if c.Creates() {
		return "a backup on demand"
	}
	if p := putBackIn(c); p != nil && p.Undoes != "" {
		return p.What
	} else if p != nil {
		return fmt.Sprintf("put-back of %s as it was at %s", p.What, p.At)
	}
	return subject(c.Backup(), c.Source()) + point(c.Options(), c.Target())
}

// putBackIn is the put-back that a command is; nil for all others.
func putBackIn(c operator.Command) *catalog.PutBack {
	switch {
	case c.Queued != nil && c.Queued.PutBack != nil:
		return c.Queued.PutBack
	case c.Operation != nil && c.Operation.PutBack != nil:
		return &c.Operation.PutBack.PutBack
	}
	return nil
}

type sourceOutput struct {
	Node  cluster.NodeID `json:"node,omitempty"`
	Token cluster.Token  `json:"token"`
}

type commandOutput struct {
	Name string `json:"name"`
	// Kind is "restore", "recover", "backup", "put-back" or "unknown".
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
	// SafetyPoint takes the place of SafetyBackup if the changes after a backup lead to the state before.
	SafetyPoint *catalog.SafetyPoint `json:"safetyPoint,omitempty"`
	// PutBack says in words what a put-back is of, Counts what it has done.
	PutBack string                 `json:"putBack,omitempty"`
	Counts  *catalog.PutBackCounts `json:"counts,omitempty"`
}

// commandRow is the row of a command.
func commandRow(c operator.Command) commandOutput {
	if c.Problem != nil {
		return commandOutput{Name: c.Name, Kind: "unknown", State: string(operator.StateUnreadable), Queued: c.InQueue,
			Reason: c.Problem.Error()}
	}
	spec, options, op := c.Spec(), c.Options(), c.Operation
	r := commandOutput{Name: c.Name, Kind: "restore", State: string(c.State()), Queued: c.IsQueued(), Backup: c.Backup(),
		Spec: &specOutput{spec.MemberCount, spec.EtcdVersion, nil}, QueuedAt: c.QueuedAt(), Now: options.Now, Note: options.Reason}
	r.To = strings.TrimPrefix(point(options, c.Target()), ", ")
	if s := c.Source(); s != nil {
		r.Kind, r.Source = "recover", &sourceOutput{s.Node, s.Token}
	}
	if c.Creates() {
		r.Kind, r.Spec = "backup", nil
		if op == nil {
			r.State, r.Reason = progressOfBackup(c.Queued.Create)
			return r
		}
	}
	if p := putBackIn(c); p != nil {
		return putBackRow(r, c, p)
	}
	if op == nil {
		if c.Overtaken != "" {
			r.Reason = fmt.Sprintf("%s was queued later and replaces it", c.Overtaken)
		}
		return r
	}
	r.Reason, r.FinishedAt, r.OutageSeconds, r.SafetyBackup = op.Reason, op.Finished, op.Outage.Seconds(), op.SafetyBackup
	r.SafetyPoint = op.SafetyPoint
	if op.State.Final() {
		return r
	}
	r.Phase, r.Reason = string(op.State), cmp.Or(op.Reason, op.Waiting)
	if p, ok := c.Percent(); ok {
		r.Percent = &p
	}
	return r
}

// putBackRow is the row of a put-back.
func putBackRow(r commandOutput, c operator.Command, p *catalog.PutBack) commandOutput {
	r.Kind, r.Spec, r.PutBack = "put-back", nil, p.What
	if op := c.Operation; op != nil {
		r.Reason, r.FinishedAt, r.Counts = op.Reason, op.Finished, &op.PutBack.PutBackCounts
		return r
	}
	r.State, r.Reason = putBackWords(p)
	if p.Progress != nil {
		r.Counts = &p.Progress.PutBackCounts
		percent := 100 * p.Progress.Done() / max(p.Entries, 1)
		r.Percent = &percent
	}
	return r
}

// progressOfBackup is how far the managers are with a backup on demand.
func progressOfBackup(b *catalog.CreateBackup) (state, words string) {
	p := b.Progress
	switch {
	case p == nil:
		return string(operator.StateWaiting), "for the leader to see it (about half a minute), and for a cluster that serves"
	case p.Error == "":
		return string(operator.StateRunning), fmt.Sprintf("node %s takes it", p.Node)
	}
	return string(operator.StateWaiting), fmt.Sprintf("attempt %d on node %s failed, the next one comes at %s: %s",
		p.Attempt, p.Node, ui.Clock(p.RetryAt), p.Error)
}

// detail is the last column of list-commands.
func (r commandOutput) detail() string {
	switch {
	case r.State == string(operator.StateWaiting) && r.Reason != "":
		return r.Reason
	case r.State == string(operator.StateWaiting) && r.Now:
		return "for the leader to see it (about half a minute)"
	case r.State == string(operator.StateWaiting):
		return "until the managers are restarted"
	case r.State == string(operator.StateRunning) && r.Phase == "":
		return r.Reason
	case r.State == string(operator.StateRunning):
		s := r.Phase
		if r.Percent != nil {
			s += fmt.Sprintf(" %d%%", *r.Percent)
		}
		if r.Reason != "" {
			s += ": " + r.Reason
		}
		return s
	case r.Kind == "put-back" && r.Reason == "" && r.Counts != nil:
		return r.PutBack + ": " + countsOf(*r.Counts)
	case r.Reason == "" && r.OutageSeconds > 0:
		return fmt.Sprintf("etcd was stopped for %.1fs", r.OutageSeconds)
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
