package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

// putBacker is the tool as far as it puts keys back and takes that back.
type putBacker struct{ *app }

type putBackFlags struct {
	r                 operator.PutBackRequest
	at, tempDir       string
	dryRun, yes, wait bool
}

func (a *putBacker) command() *cobra.Command {
	var o putBackFlags
	cmd := &cobra.Command{
		Use: "put-back [KEY]", Short: "Bring back deleted keys, or a namespace, while the cluster serves", Args: atMostOne,
		Long: `Write keys again as they were at an earlier point: a key, all keys of a prefix, or a Kubernetes namespace with
all its objects. Nothing is stopped or restarted, and the revision goes on. Without a point it is the revision before
the newest deletion of what is named.

By default only keys that are missing come back. --overwrite also resets keys that have another value now, and --exact
also removes keys that came later. Keys that somebody changes after the plan was made are left alone and listed.
Objects that were being deleted at that point come back as they were before. Keys with a lease are left out.

The plan is shown first. Then the leader carries it out, within about half a minute, at a limited rate; any leader
continues it. undo-put-back takes it back. delete-command ends it where it is. It waits while a restore is queued.

Exit codes with --wait: 0 done, 1 failed, 6 withdrawn, 7 not followed to its end.`,
		Example: "  etcd-manager-ctl --backup-store=s3://bucket/prefix put-back --namespace=shop --dry-run",
		RunE: func(cmd *cobra.Command, args []string) error {
			o.r.Key = strings.Join(args, "")
			return a.run(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.r.Prefix, "prefix", false, "all keys that begin with KEY")
	f.StringVar(&o.r.Namespace, "namespace", "", "all objects of this Kubernetes `namespace`, and the namespace itself")
	f.StringVar(&o.at, "at", "", "as of this `time`: RFC 3339, \"2026-11-22 12:03:06\", 12:03:06 (today, UTC), or how long ago")
	f.Int64Var(&o.r.Revision, "at-revision", 0, "as of this revision")
	f.StringVar(&o.r.Before, "before", "", "as of the revision before the newest deletion of this `key`, or of what is below it if it ends with a slash")
	f.BoolVar(&o.r.Overwrite, "overwrite", false, "also reset keys that have another value now")
	f.BoolVar(&o.r.Exact, "exact", false, "also remove keys that came later")
	f.BoolVar(&o.r.WithLeases, "with-leases", false, "also keys with a lease; one whose lease has ended comes back without it, and never expires")
	f.IntVar(&o.r.Rate, "rate", catalog.DefaultPutBackRate, "how many keys are written in a second")
	f.BoolVar(&o.dryRun, "dry-run", false, "only show what would be done")
	f.StringVar(&o.r.Reason, "reason", "", "a `note` of your own, kept with the record")
	a.addFlags(cmd, &o.yes, &o.wait)
	addTempDir(cmd, &o.tempDir)
	return cmd
}

// addFlags adds what putting back and taking that back have in common.
func (a *putBacker) addFlags(cmd *cobra.Command, yes, wait *bool) {
	f := cmd.Flags()
	f.BoolVar(yes, "yes", false, "don't ask")
	f.BoolVar(wait, "wait", false, "follow it to its end; interrupting the tool doesn't interrupt it")
	f.StringSliceVar(&a.encryption, "backup-encryption", nil,
		"encrypt the plan for `age:FILE` or aws-kms:ARN; may be repeated (default: the keys of the newest backup)")
}

func (a *putBacker) run(ctx context.Context, o putBackFlags) error {
	if err := a.format("json"); err != nil {
		return err
	}
	switch {
	case o.r.Rate == 0:
		return ui.Usagef("--rate must be 1 to %d keys a second", catalog.MaxPutBackRate)
	case o.r.Namespace != "" && o.r.Prefix:
		return ui.Usagef("--prefix is for a key, --namespace takes none")
	}
	at, err := whenFlag(a.app, "at", o.at)
	if err != nil {
		return err
	}
	o.r.At, o.r.VerifyOptions = at, a.verifyOptions(o.tempDir)
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	p, err := c.PlanPutBack(ctx, o.r)
	if err != nil {
		return err
	}
	if o.dryRun && a.output == "json" {
		return a.printJSON(putBackOf(p))
	}
	a.showPlan(p)
	switch {
	case o.dryRun:
		return nil
	case len(p.Entries) == 0:
		return a.printf("nothing to put back\n")
	}
	return a.queueIt(ctx, c, p, o.yes, o.wait, fmt.Sprintf("put back %s", ui.Count(len(p.Entries), "key")))
}

// queueIt asks, queues and follows.
func (a *putBacker) queueIt(ctx context.Context, c *operator.Client, p *operator.PutBackPlan, yes, wait bool, what string) error {
	if err := a.confirm(ctx, yes, "yes", what); err != nil {
		return err
	}
	q, err := c.PutBack(ctx, p)
	if err != nil {
		return err
	}
	if q.Restore != "" {
		a.note("%s (a restore) is queued or under way: this waits until it has ended", q.Restore)
	}
	cmd := q.Command
	switch {
	case wait:
		return followOperation(ctx, a.app, c, cmd.Name)
	case a.output == "json":
		return a.printJSON(commandRow(operator.Command{Name: cmd.Name, Queued: &cmd}))
	}
	return a.printf("queued: %s (%s)\n  follow it:  %s\n  end it:     %s\n", cmd.Name, subjectOf(operator.Command{Name: cmd.Name, Queued: &cmd}),
		a.ctl("follow", cmd.Name), a.ctl("delete-command", cmd.Name))
}

// putBackOutput is a plan for programs.
type putBackOutput struct {
	What     string                `json:"what"`
	Revision int64                 `json:"revision"`
	Time     time.Time             `json:"time,omitzero"`
	Compared int64                 `json:"comparedWithRevision"`
	Missing  int                   `json:"missing"`
	Changed  int                   `json:"changed"`
	Later    int                   `json:"later"`
	Same     int                   `json:"same"`
	Leased   int                   `json:"leased"`
	Unmarked int                   `json:"unmarked"`
	Marked   []string              `json:"marked,omitempty"`
	Writes   int                   `json:"writes"`
	Bytes    int64                 `json:"bytes"`
	Rows     []operator.PutBackRow `json:"rows,omitempty"`
}

func putBackOf(p *operator.PutBackPlan) putBackOutput {
	return putBackOutput{What: p.What, Revision: p.Then.Revision, Time: p.Then.Time, Compared: p.Now.Revision,
		Missing: p.Missing, Changed: p.Changed, Later: p.Later, Same: p.Same, Leased: p.Leased, Unmarked: p.Unmarked, Marked: p.Marked,
		Writes: len(p.Entries), Bytes: p.Bytes, Rows: p.Rows}
}

const (
	// rowsShown is how many rows of a plan are printed, staleAfter how old the archive's end may be before the tool says so.
	rowsShown  = 40
	staleAfter = time.Minute
)

// showPlan tells the operator what would be done.
func (a *putBacker) showPlan(p *operator.PutBackPlan) {
	a.note("%s as it was at revision %d%s, compared with revision %d%s", p.What, p.Then.Revision, atTime(p.Then), p.Now.Revision, a.fresh(p.Now))
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "  KIND\tNAMESPACE\tMISSING\tCHANGED\tLATER")
	for i, r := range p.Rows {
		if i == rowsShown {
			fmt.Fprintf(w, "  … and %d more\n", len(p.Rows)-rowsShown)
			break
		}
		fmt.Fprintf(w, "  %s\t%s\t%d\t%d\t%d\n", ui.Readable(r.Kind), r.Namespace, r.Missing, r.Changed, r.Later)
	}
	_ = w.Flush() // b is memory
	if len(p.Rows) > 0 {
		a.note("%s", strings.TrimRight(b.String(), "\n"))
	}
	a.note("  missing: %s, brought back", ui.Count(p.Missing, "key"))
	a.note("  changed: %s, %s", ui.Count(p.Changed, "key"),
		chosen(p.Request.Overwrite, "reset (--overwrite)", "left alone; --overwrite resets them"))
	a.note("  later:   %s, %s", ui.Count(p.Later, "key"), chosen(p.Request.Exact, "removed (--exact)", "left alone; --exact removes them"))
	a.note("  same:    %s", ui.Count(p.Same, "key"))
	if p.Leased > 0 {
		a.note("  leases:  %s left out, as they have a lease (--with-leases)", ui.Count(p.Leased, "key"))
	}
	if p.Unmarked > 0 {
		a.note("  marked:  %s in deletion at that point; back as before", ui.Count(p.Unmarked, "object"))
	}
	for i, key := range p.Marked {
		if i == keysShown {
			a.note("  left out: … and %d more", len(p.Marked)-keysShown)
			break
		}
		a.note("  left out: %s was being deleted at that point, and the archive has nothing from before", ui.Readable(key))
	}
}

func chosen(is bool, yes, no string) string {
	if is {
		return yes
	}
	return no
}

// atTime is when a point was.
func atTime(p *changelog.Plan) string {
	if p.Time.IsZero() {
		return ""
	}
	return " (" + ui.Exactly(p.Time) + ")"
}

// fresh says how old the newest change is that the archive has, if that is long ago.
func (a *putBacker) fresh(p *changelog.Plan) string {
	if age := a.now().Sub(p.ReachTime); !p.ReachTime.IsZero() && age > staleAfter {
		return fmt.Sprintf(", the newest that the store has, from %s: what was changed since is left alone", ui.Ago(age))
	}
	return ", the newest that the store has"
}

func (a *putBacker) undoCommand() *cobra.Command {
	var r operator.PutBackUndoRequest
	var yes, wait bool
	cmd := &cobra.Command{
		Use: "undo-put-back [OPERATION]", Short: "Take a put-back back, while the cluster serves", Args: atMostOne,
		Long: `Take a put-back back; by default the newest one. What it has created is removed, and what it has replaced or
removed has its earlier value again. What somebody has changed since is left alone and listed. The earlier values are
kept for 14 days. It is itself a put-back: it is queued, carried out by the leader, and can be undone.

Exit codes with --wait: 0 done, 1 failed, 6 withdrawn, 7 not followed to its end.`,
		Example: "  etcd-manager-ctl --backup-store=s3://bucket/prefix undo-put-back --wait",
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Operation = strings.Join(args, "")
			return a.undoIt(cmd.Context(), r, yes, wait)
		},
		ValidArgsFunction: a.complete(putBackNames),
	}
	f := cmd.Flags()
	f.IntVar(&r.Rate, "rate", catalog.DefaultPutBackRate, "how many keys are written in a second")
	f.StringVar(&r.Reason, "reason", "", "a `note` of your own, kept with the record")
	a.addFlags(cmd, &yes, &wait)
	return cmd
}

func (a *putBacker) undoIt(ctx context.Context, r operator.PutBackUndoRequest, yes, wait bool) error {
	if err := a.format("json"); err != nil {
		return err
	}
	if r.Rate == 0 {
		return ui.Usagef("--rate must be 1 to %d keys a second", catalog.MaxPutBackRate)
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	p, err := c.PlanUndoPutBack(ctx, r)
	if err != nil {
		return err
	}
	op := p.Undoes
	a.note("undo %s (%s as it was at %s), which ended at %s, %s", op.ID, op.PutBack.What, op.PutBack.At, ui.Clock(op.Finished), ui.Ago(a.now().Sub(op.Finished)))
	a.note("  removes:  %s that it has created", ui.Count(op.PutBack.Created, "key"))
	a.note("  resets:   %s that it has replaced or removed", ui.Count(op.PutBack.Replaced+op.PutBack.Removed, "key"))
	return a.queueIt(ctx, c, p, yes, wait, "undo "+op.ID)
}

// putBackWords says how far a put-back is.
func putBackWords(p *catalog.PutBack) (state, words string) {
	g := p.Progress
	switch {
	case p.Canceled:
		return string(operator.StateRunning), "the leader ends it"
	case g == nil:
		return string(operator.StateWaiting), "for the leader to see it (about half a minute), for a cluster that serves, and for restores that are queued"
	case g.Waiting != "":
		return string(operator.StateWaiting), fmt.Sprintf("%d of %d keys are done; it continues by itself: %s", g.Done(), p.Entries, g.Waiting)
	}
	return string(operator.StateRunning), fmt.Sprintf("%d of %d keys are done (node %s leads)", g.Done(), p.Entries, g.Node)
}

// countsOf says what a put-back has done.
func countsOf(n catalog.PutBackCounts) string {
	words := []string{fmt.Sprintf("%d created", n.Created)}
	for _, x := range []struct {
		n    int
		what string
	}{{n.Replaced, "replaced"}, {n.Removed, "removed"}, {n.Same, "as wanted already"}, {n.Left, "left alone"}} {
		if x.n > 0 {
			words = append(words, fmt.Sprintf("%d %s", x.n, x.what))
		}
	}
	return strings.Join(words, ", ")
}

// sayEnd prints the result of a put-back.
func (a *putBacker) sayEnd(op *catalog.Operation) error {
	p := op.PutBack
	text := fmt.Sprintf("done: %s: %s\n", p.What, countsOf(p.PutBackCounts))
	if p.Left > 0 {
		text += fmt.Sprintf("  left alone:  %s\n", a.ctl("describe-command", op.ID))
	}
	if p.Written() > 0 {
		text += fmt.Sprintf("  undo it:     %s\n", a.ctl("undo-put-back", op.ID))
	}
	return a.printf("%s", text)
}

// putBackNames lists the put-backs that have written something, the newest first.
func putBackNames(ctx context.Context, c *operator.Client) ([]string, error) {
	list, err := c.Commands(ctx)
	var names []string
	for i := len(list) - 1; i >= 0; i-- {
		if op := list[i].Operation; op != nil && op.PutBack != nil && op.PutBack.Written() > 0 {
			names = append(names, op.ID)
		}
	}
	return names, err
}

// leftShown is how many of the keys that were left alone describe-command prints.
const leftShown = 50

// describeLeft prints what a put-back has left alone.
func (a *putBacker) describeLeft(ctx context.Context, c *operator.Client, op *catalog.Operation) error {
	left, err := c.PutBackLeft(ctx, op)
	if err != nil {
		a.note("what was left alone can't be listed: %v", err)
		return nil
	}
	var b strings.Builder
	for i, l := range left {
		if i == 0 {
			b.WriteString("left alone:\n")
		}
		if i == leftShown {
			fmt.Fprintf(&b, "  … and %d more\n", op.PutBack.Left-leftShown)
			break
		}
		fmt.Fprintf(&b, "  %s: %s\n", ui.Readable(l.Key), l.Why)
	}
	return a.printf("%s", b.String())
}
