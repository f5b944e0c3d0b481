package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

func describeCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "describe-command NAME", Short: "Show one command in full: steps, times, revisions, safety backup",
		Args:              exactlyOne("the name of a command (see list-commands)"),
		RunE:              func(cmd *cobra.Command, args []string) error { return runDescribe(cmd.Context(), a, args[0]) },
		ValidArgsFunction: a.complete(commandNames),
	}
}

// describeOutput is everything that is known of a command.
type describeOutput struct {
	commandOutput
	Options        catalog.RestoreOptions              `json:"options,omitzero"`
	BegunAt        time.Time                           `json:"begunAt,omitzero"`
	UpdatedAt      time.Time                           `json:"updatedAt,omitzero"`
	Leader         cluster.NodeID                      `json:"leader,omitempty"`
	Term           cluster.Term                        `json:"term,omitempty"`
	Nodes          []string                            `json:"nodes,omitempty"`
	OldToken       cluster.Token                       `json:"oldToken,omitempty"`
	NewToken       cluster.Token                       `json:"newToken,omitempty"`
	RevisionBefore int64                               `json:"revisionBefore,omitempty"`
	RevisionAfter  int64                               `json:"revisionAfter,omitempty"`
	StagedRevision int64                               `json:"stagedRevision,omitempty"`
	StagedHash     uint32                              `json:"stagedHashKV,omitempty"`
	StagedBytes    int64                               `json:"stagedBytes,omitempty"`
	Verified       []cluster.NodeID                    `json:"verified,omitempty"`
	ClientsWrote   bool                                `json:"clientsWrote,omitempty"`
	UnknownLeases  string                              `json:"unknownLeases,omitempty"`
	LeftOut        int64                               `json:"leftOut,omitempty"`
	Steps          []catalog.Step                      `json:"steps,omitempty"`
	Progress       map[cluster.NodeID]catalog.Progress `json:"progress,omitempty"`
}

func describe(e operator.Command) describeOutput {
	d := describeOutput{commandOutput: commandRow(e)}
	if e.Problem != nil {
		return d
	}
	d.Options = e.Options()
	op := e.Operation
	if op == nil {
		return d
	}
	d.BegunAt, d.UpdatedAt, d.Leader, d.Term = op.Created, op.Updated, op.Leader, op.Term
	for _, m := range op.Members {
		d.Nodes = append(d.Nodes, m.Name)
	}
	d.OldToken, d.NewToken, d.RevisionBefore, d.RevisionAfter = op.OldToken, op.NewToken, op.RevisionBefore, op.RevisionAfter
	d.StagedRevision, d.StagedHash, d.StagedBytes, d.Verified = op.StagedRevision, op.StagedHash, op.StagedBytes, op.Verified
	d.ClientsWrote, d.UnknownLeases, d.Steps, d.Progress = op.Written, op.UnknownLeases, op.Steps, op.Progress
	d.LeftOut = op.LeftOut
	return d
}

func runDescribe(ctx context.Context, a *app, name string) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	e, err := c.Command(ctx, name)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.printJSON(describe(e))
	}
	if err := printDescription(a, e); err != nil || e.Operation == nil || e.Operation.PutBack == nil {
		return err
	}
	return (&putBacker{a}).describeLeft(ctx, c, e.Operation)
}

// printDescription prints what is known, and leaves out what isn't.
func printDescription(a *app, e operator.Command) error {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s:\t%s\n", name, fmt.Sprintf(format, args...))
	}
	r := commandRow(e)
	line("name", "%s", e.Name)
	state := r.State
	if d := r.detail(); d != "" && d != r.Reason && r.State != string(catalog.StateDone) {
		state += ", " + d
	} else if r.Reason != "" {
		state += ": " + r.Reason
	}
	line("state", "%s", state)
	if e.Problem == nil {
		describeRequest(a, line, e)
	}
	if e.Operation != nil && e.Operation.Waiting != "" && !e.Operation.State.Final() {
		line("waits for", "%s", e.Operation.Waiting)
	}
	if e.Operation != nil {
		describeOperation(a, line, e.Operation)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	if e.Operation != nil {
		printProgress(&b, e.Operation)
		printSteps(&b, e.Operation, a.now())
	}
	return a.printf("%s", b.String())
}

func describeRequest(a *app, line func(name, format string, args ...any), e operator.Command) {
	line("does", "%s", subjectOf(e))
	if e.Source() != nil && e.Backup() != "" {
		line("backup", "%s, made of that data", e.Backup())
	}
	if e.Creates() {
		if e.Queued != nil && e.Queued.Create.Pin {
			line("pinned", "as soon as it has been taken")
		}
		if e.Backup() != "" {
			line("backup", "%s", e.Backup())
		}
	} else if e.Restores() {
		line("into", "%s", clusterOf(e.Spec()))
	}
	if words := asked(e.Options()); len(words) > 0 {
		line("options", "%s", strings.Join(words, ", "))
	}
	if n := e.Options().Reason; n != "" {
		line("note", "%s", n)
	}
	if t := e.QueuedAt(); !t.IsZero() {
		line("queued", "%s, %s", ui.Clock(t), ui.Ago(a.now().Sub(t)))
	}
}

func describeOperation(a *app, line func(name, format string, args ...any), op *catalog.Operation) {
	line("begun", "%s, %s", ui.Clock(op.Created), ui.Ago(a.now().Sub(op.Created)))
	if !op.Finished.IsZero() {
		line("ended", "%s, after %s", ui.Clock(op.Finished), ui.Took(op.Finished.Sub(op.Created)))
	} else {
		line("last news", "%s, %s", ui.Clock(op.Updated), ui.Ago(a.now().Sub(op.Updated)))
	}
	if op.Leader != "" {
		line("led by", "node %s, term %d", op.Leader, op.Term)
	}
	if len(op.Members) > 0 {
		var names []string
		for _, m := range op.Members {
			names = append(names, m.Name)
		}
		line("nodes", "%s", strings.Join(names, ", "))
	}
	switch {
	case op.OldToken != "" && op.NewToken != "":
		line("tokens", "%s, before %s", op.NewToken, op.OldToken)
	case op.NewToken != "":
		line("token", "%s, there was no cluster before", op.NewToken)
	}
	if words := revisions(op); words != "" {
		line("revisions", "%s", words)
	}
	if op.StagedBytes > 0 {
		line("database", "%s", ui.Size(op.StagedBytes))
	}
	if op.LeftOut > 0 {
		line("not in it", leftOut, op.LeftOut, op.Target.Revision)
	}
	if op.UnknownLeases != "" {
		line("leases", "the TTL of %s", op.UnknownLeases)
	}
	if op.Outage > 0 {
		line("without etcd", "%s", ui.Took(op.Outage))
	}
	if saved, revision := op.Saved(); saved != "" {
		line("safety backup", "%s", withChanges(saved, revision))
	}
	if op.PutBack != nil {
		line("keys", "%s, of %d", countsOf(op.PutBack.PutBackCounts), op.PutBack.Entries)
		if op.PutBack.Undoes != "" {
			line("undoes", "%s", op.PutBack.Undoes)
		}
		if op.PutBack.Written() > 0 {
			line("undo it", "%s", a.ctl("undo-put-back", op.ID))
		}
	}
	if op.State == catalog.StateDone && (op.SafetyBackup != "" || op.OldToken != "") {
		line("undo it", "%s", a.ctl("undo-restore", op.ID))
	}
}

// revisions says what became of the revision.
func revisions(op *catalog.Operation) string {
	var words []string
	if op.RevisionBefore > 0 {
		words = append(words, fmt.Sprintf("clients had seen up to %d", op.RevisionBefore))
	}
	if op.RevisionAfter > 0 {
		words = append(words, fmt.Sprintf("restored as %d", op.RevisionAfter))
	} else if op.StagedRevision > 0 {
		words = append(words, fmt.Sprintf("staged as %d", op.StagedRevision))
	}
	return strings.Join(words, ", ")
}

func printProgress(out io.Writer, op *catalog.Operation) {
	if len(op.Progress) == 0 {
		return
	}
	fmt.Fprintln(out, "progress:")
	for _, id := range slices.Sorted(maps.Keys(op.Progress)) {
		fmt.Fprintf(out, "  %s: %s\n", id, ui.Progress(op.Progress[id]))
	}
}

// printSteps prints the steps that are over, and the one that runs.
func printSteps(out io.Writer, op *catalog.Operation, now time.Time) {
	steps := op.Steps
	if !op.State.Final() {
		since := op.StateSince
		if since.IsZero() {
			since = op.Updated
		}
		steps = append(slices.Clone(steps), catalog.Step{Name: string(op.State), Started: since})
	}
	if len(steps) == 0 {
		return
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "STEP\tNODE\tBEGUN\tTOOK\tOUTCOME\tDETAIL")
	for _, s := range steps {
		end := s.Finished
		if end.IsZero() {
			end = now
		}
		outcome, detail := operator.StepOutcome(op, s)
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", s.Name, s.Node, s.Started.UTC().Format("15:04:05Z"),
			ui.Took(max(end.Sub(s.Started), 0)), outcome, detail)
	}
	_ = w.Flush() // out is memory
}
