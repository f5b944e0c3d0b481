package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

func undoCommand(a *app) *cobra.Command {
	var q queueFlags
	var yes bool
	cmd := &cobra.Command{
		Use: "undo-restore [OPERATION]", Short: "Queue an operation that brings back the data from before a restore", Args: atMostOne,
		Long: `Queue an operation that brings back the data from before a restore; by default the newest one that was
done. It is itself a restore: of the data dirs in the nodes' trash cans, which have everything up to the last write,
or, if they are gone, of the backup that was taken right before. So it is checked first too, and can be undone.

Writes since that restore are lost. The command shows them and asks, unless --yes is given.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			r := operator.UndoRequest{Operation: strings.Join(args, ""), Spec: q.change.read(cmd), Options: q.options}
			return runUndo(cmd.Context(), a, r, yes, q.wait)
		},
		ValidArgsFunction: a.complete(undoableNames),
	}
	q.add(cmd, false)
	cmd.Flags().BoolVar(&yes, "yes", false, "don't ask")
	cmd.Flags().BoolVar(&q.options.AcceptLoss, "accept-loss", false,
		"undo although so few old data dirs are left that acknowledged writes may be missing")
	return cmd
}

func runUndo(ctx context.Context, a *app, r operator.UndoRequest, yes, wait bool) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	p, err := c.PlanUndo(ctx, r)
	for _, e := range p.EndedSince {
		a.note("%s (%s) came later and ended as %s: it needs no undo", e.Name, subjectOf(e), e.Operation.State)
	}
	if err != nil {
		return err
	}
	showUndo(a, p)
	if err := a.confirm(ctx, yes, "yes", "undo "+p.Operation.ID); err != nil {
		return err
	}
	queued, err := c.Undo(ctx, p)
	if err != nil {
		return err
	}
	return a.sayAndFollow(ctx, c, queued, wait)
}

// showUndo tells the operator what comes back and what is lost.
func showUndo(a *app, p *operator.UndoPlan) {
	op := p.Operation
	saved, _ := op.Saved()
	since := a.now().Sub(op.Finished)
	into := clusterOf(p.Spec)
	a.note("undo %s (%s), which was done at %s, %s", op.ID, subject(op.Backup, op.Source), ui.Clock(op.Finished), ui.Ago(since))
	switch {
	case p.Source != nil && p.Source.OrBackup != "":
		a.note("  brings back:  the old data dirs from the nodes' trash cans (token %s), to their last write; if they are gone, backup %s, made right before; into %s",
			op.OldToken, withChanges(p.Source.OrBackup, p.Source.OrRevision), into)
	case p.Backup != "":
		a.note("  brings back:  backup %s, made right before it, into %s", withChanges(p.Backup, p.Revision), into)
	case saved != "":
		a.note("  brings back:  the old data dirs from the nodes' trash cans (token %s), for its safety backup %s is gone from the store, into %s", op.OldToken, saved, into)
	default:
		a.note("  brings back:  the old data dirs from the nodes' trash cans (token %s), for the old cluster could not be backed up, into %s", op.OldToken, into)
	}
	if op.RevisionBefore > 0 {
		a.note("  that is:      about revision %d, the highest that clients had seen before", op.RevisionBefore)
	}
	a.note("  loses:        all writes of the %s since then%s", ui.Age(max(since, 0)), writtenSince(a, p))
	for _, o := range p.Later {
		a.note("  also undone:  %s (%s), done later", o.ID, subject(o.Backup, o.Source))
	}
	if b := p.SpecBefore; b != nil && p.Request.Spec.Empty() && b.MemberCount != p.Spec.MemberCount {
		a.note("  note:         before that restore the spec was %s; to go back to that too, add --member-count=%d",
			clusterOf(*b), b.MemberCount)
	}
	if p.Backup != "" || p.Source.OrBackup != "" {
		a.note("  afterwards:   this can be undone too, because the cluster is backed up once more before it")
	}
}

// writtenSince says by how much the newest backup is ahead of the restore.
func writtenSince(a *app, p *operator.UndoPlan) string {
	newest, op := p.Newest, p.Operation
	if newest == nil || newest.Manifest == nil || op.RevisionAfter == 0 || newest.Manifest.Revision < op.RevisionAfter {
		return ""
	}
	m := newest.Manifest
	lost := "nothing"
	if n := m.Revision - op.RevisionAfter; n > 0 {
		lost = fmt.Sprintf("at least %d revisions", n)
	}
	return fmt.Sprintf(": %s, as the newest backup knows (%s, %s, revision %d)", lost, newest.Name,
		ui.Ago(a.now().Sub(newest.Time)), m.Revision)
}
