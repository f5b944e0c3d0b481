package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

func (a *app) undoCommand() *cobra.Command {
	var r request
	var yes bool
	cmd := &cobra.Command{
		Use: "undo-restore [OPERATION]", Short: "Queue the way back to the data from before a restore", Args: atMostOne,
		Long: `Queue the way back to the data from before a restore; by default the newest one that was done. It is itself a restore: of the data dirs in the nodes' trash cans,
which have everything to the last write, or, if they are gone, of the backup that was made right before. So it too is proven first, and can be undone.

What was written since that restore is lost by it. The command shows what that is and asks, unless --yes is given.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			r.change.read(cmd)
			return a.undo(cmd.Context(), slices.Concat(args, []string{""})[0], r, yes)
		},
		ValidArgsFunction: a.complete(undoableNames),
	}
	r.addFlags(cmd, false)
	cmd.Flags().BoolVar(&yes, "yes", false, "don't ask")
	cmd.Flags().BoolVar(&r.options.AcceptLoss, "accept-loss", false, "go back though fewer old data dirs are there than are sure to have everything that clients were told of")
	return cmd
}

func undoableNames(ctx context.Context, c *catalog.Catalog) ([]string, error) {
	ops, _, err := c.Operations(ctx)
	var names []string
	for _, op := range slices.Backward(ops) {
		if op.State == catalog.StateDone {
			names = append(names, op.ID)
		}
	}
	return names, err
}

func (a *app) undo(ctx context.Context, name string, r request, yes bool) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, err := a.openCatalog(ctx)
	if err != nil {
		return err
	}
	op, err := a.prepareUndo(ctx, c, name, &r)
	if err != nil {
		return err
	}
	if err := a.confirm(ctx, yes, "yes", "undo "+op.ID); err != nil {
		return err
	}
	if r.options.Reason == "" {
		r.options.Reason = "undo of " + op.ID
	}
	return a.enqueue(ctx, c, r)
}

// prepareUndo finds out what is to be undone and how, and shows it.
func (a *app) prepareUndo(ctx context.Context, c *catalog.Catalog, name string, r *request) (*catalog.Operation, error) {
	ctx, cancel := a.limit(ctx)
	defer cancel()
	list, err := entries(ctx, c)
	if err != nil {
		return nil, err
	}
	op, later, err := a.pickUndo(slices.DeleteFunc(list, entry.creates), name)
	if err != nil {
		return nil, err
	}
	backups, err := c.Backups(ctx)
	if err != nil {
		return nil, err
	}
	switch {
	case op.OldToken != "":
		r.source = &catalog.Source{Token: op.OldToken}
		if slices.Contains(backups.Names(), op.SafetyBackup) {
			r.source.OrBackup = op.SafetyBackup
		}
	case slices.Contains(backups.Names(), op.SafetyBackup):
		r.backup = op.SafetyBackup
	case op.SafetyBackup != "":
		return nil, fmt.Errorf("%s can't be undone: its safety backup %s is gone from the store, and no old data dir is known", op.ID, op.SafetyBackup)
	default:
		return nil, fmt.Errorf("%s can't be undone: there was no cluster before it", op.ID)
	}
	return op, a.showUndo(ctx, c, backups, op, later, *r)
}

// pickUndo chooses the operation; later are the ones that were done after it, which are undone with it.
func (a *app) pickUndo(list []entry, name string) (op *catalog.Operation, later []*catalog.Operation, err error) {
	done := []*catalog.Operation{}
	for _, e := range list {
		switch {
		case name == "" && e.running():
			return nil, nil, fmt.Errorf("%s (%s) is being executed (%s), so nothing is to be undone yet; to undo an earlier one, name it\n  follow it:    %s\n  withdraw it:  %s (while nothing is stopped for it)",
				e.name, e.subject(), e.op.State, a.ctl("follow", e.name), a.ctl("delete-command", e.name))
		case name == "" && e.waiting():
			return nil, nil, fmt.Errorf("%s (%s) waits, and nothing of it has happened yet; to undo an earlier one all the same, name it\n  withdraw it:  %s",
				e.name, e.subject(), a.ctl("delete-command", e.name))
		case e.op != nil && e.op.State == catalog.StateDone:
			done = append(done, e.op)
		}
	}
	slices.SortStableFunc(done, func(x, y *catalog.Operation) int { return x.Finished.Compare(y.Finished) })
	if name == "" {
		if len(done) == 0 {
			return nil, nil, &notFoundError{"no restore was done that the store remembers: nothing is to be undone"}
		}
		last := done[len(done)-1]
		a.sayEndedSince(list, last)
		return last, nil, nil
	}
	for i, o := range done {
		if o.ID == name {
			return o, done[i+1:], nil
		}
	}
	return nil, nil, notUndoable(list, name)
}

// sayEndedSince names what ended otherwise after the restore that is going to be undone.
func (a *app) sayEndedSince(list []entry, done *catalog.Operation) {
	for _, e := range list {
		if e.op != nil && e.op.State.Final() && e.op.Created.After(done.Finished) {
			a.note("%s (%s) came later and ended as %s: nothing of it is to be undone", e.name, e.subject(), e.op.State)
		}
	}
}

func notUndoable(list []entry, name string) error {
	for _, e := range list {
		switch {
		case e.name != name:
		case e.problem != nil:
			return fmt.Errorf("%s can't be undone: %w", name, e.problem)
		case e.op == nil:
			return fmt.Errorf("%s waits, and nothing of it has happened yet: withdraw it with delete-command", name)
		case !e.op.State.Final():
			return fmt.Errorf("%s is being executed (%s): it can be undone when it has ended", name, e.op.State)
		case e.op.State == catalog.StateRolledBack:
			return fmt.Errorf("nothing is to be undone: %s was rolled back, the old data serve", name)
		default:
			return fmt.Errorf("nothing is to be undone: %s ended as %s, and nothing was changed by it", name, e.op.State)
		}
	}
	return &notFoundError{fmt.Sprintf("there is no operation %q in the history (list-commands shows them)", name)}
}

// showUndo tells the operator what comes back and what is lost.
func (a *app) showUndo(ctx context.Context, c *catalog.Catalog, backups catalog.BackupList, op *catalog.Operation, later []*catalog.Operation, r request) error {
	spec, _, err := a.readSpec(ctx, c, r.change)
	if err != nil {
		return err
	}
	since := a.now().Sub(op.Finished)
	a.note("undo %s (%s), which was done at %s, %s", op.ID, subject(op.Backup, op.Source), ui.Clock(op.Finished), ui.Ago(since))
	switch {
	case r.source != nil && r.source.OrBackup != "":
		a.note("  brings back:  the old data dirs from the nodes' trash cans (token %s), to their last write; if they are gone, backup %s, made right before; into %s", op.OldToken, r.source.OrBackup, clusterOf(spec))
	case r.backup != "":
		a.note("  brings back:  backup %s, made right before it, into %s", r.backup, clusterOf(spec))
	case op.SafetyBackup != "":
		a.note("  brings back:  the old data dirs from the nodes' trash cans (token %s), for its safety backup %s is gone from the store, into %s", op.OldToken, op.SafetyBackup, clusterOf(spec))
	default:
		a.note("  brings back:  the old data dirs from the nodes' trash cans (token %s), for the old cluster could not be backed up, into %s", op.OldToken, clusterOf(spec))
	}
	if op.RevisionBefore > 0 {
		a.note("  that is:      revision %d or so, the highest that clients had seen before", op.RevisionBefore)
	}
	a.note("  loses:        all that was written in the %s since then%s", ui.Age(max(since, 0)), a.writtenSince(ctx, c, backups, op))
	for _, o := range later {
		a.note("  with it goes: %s (%s), done later", o.ID, subject(o.Backup, o.Source))
	}
	if before, ok := specBefore(ctx, c, backups, op); ok && r.change.empty() && before.MemberCount != spec.MemberCount {
		a.note("  note:         before that restore the spec was %s; to go back to that too, add --member-count=%d", clusterOf(before), before.MemberCount)
	}
	if r.backup != "" || r.source.OrBackup != "" {
		a.note("  afterwards:   this can be undone too, as the cluster is backed up once more before it")
	}
	return nil
}

// writtenSince says by how much the newest backup is ahead of the restore.
func (a *app) writtenSince(ctx context.Context, c *catalog.Catalog, backups catalog.BackupList, op *catalog.Operation) string {
	newest, err := a.archive(c).NewestGood(ctx, backups, a.now())
	if err != nil || newest.Manifest == nil || op.RevisionAfter == 0 || newest.Manifest.Revision < op.RevisionAfter {
		return ""
	}
	m := newest.Manifest
	lost := "nothing"
	if n := m.Revision - op.RevisionAfter; n > 0 {
		lost = fmt.Sprintf("at least %d revisions", n)
	}
	return fmt.Sprintf(": %s, as the newest backup knows (%s, %s, revision %d)", lost, newest.Name, ui.Ago(a.now().Sub(newest.Time)), m.Revision)
}

// specBefore is the spec that the last backup from before the command knows.
func specBefore(ctx context.Context, c *catalog.Catalog, backups catalog.BackupList, op *catalog.Operation) (cluster.Spec, bool) {
	queued := catalog.BackupTime(op.Command)
	for _, b := range slices.Backward(backups.Backups) {
		if b.Time.IsZero() || !b.Time.Before(queued) {
			continue
		}
		info, err := c.BackupInfo(ctx, b.Name)
		if err != nil || catalog.ValidateSpec(info.Spec) != nil {
			return cluster.Spec{}, false
		}
		return info.Spec, true
	}
	return cluster.Spec{}, false
}
