package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

func deleteCommandCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "delete-command NAME", Short: "Withdraw queued restores, also one that has begun but hasn't stopped anything yet",
		Args: exactlyOne("the name of a backup or of a command (see list-commands)"),
		Long: `Withdraw all queued restores of the backup NAME. NAME may also be the command's own name, as list-commands shows it.

The managers abandon a restore that is being executed, as long as nothing was stopped for it (salvaging, proving,
staging, saving). Later it can't be withdrawn: let it end, then undo it with undo-restore.

If no cluster was created yet, NAME may also be a failed restore: its record keeps the managers from forming an empty
cluster.`,
		RunE:              func(cmd *cobra.Command, args []string) error { return runDeleteCommand(cmd.Context(), a, args[0]) },
		ValidArgsFunction: a.complete(queuedNames),
	}
}

func runDeleteCommand(ctx context.Context, a *app, name string) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	w, err := c.Withdraw(ctx, name)
	a.latest(w.Notes)
	removed := []commandOutput{}
	for _, r := range w.Removed {
		removed = append(removed, commandRow(r.Command))
		if err := sayWithdrawn(a, r); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	if a.output == "json" {
		if err := a.printJSON(removed); err != nil {
			return err
		}
	}
	var refused []error
	for _, k := range w.Kept {
		refused = append(refused, whyKept(a, k))
	}
	return errors.Join(refused...)
}

// whyKept says why a command can't be withdrawn, and what leads on.
func whyKept(a *app, k *operator.KeptError) error {
	e, op := k.Command, k.Command.Operation
	switch {
	case op == nil:
		return &notFoundError{fmt.Sprintf("%s isn't queued: %s is the record of an operation", e.Name, e.Name)}
	case op.State == catalog.StateReverting:
		return fmt.Errorf("%s (%s) is already being rolled back\n  follow it:  %s", e.Name, subjectOf(e), a.ctl("follow", e.Name))
	case operator.Stopped(op.State):
		return fmt.Errorf("%s (%s) can't be withdrawn any more: etcd was stopped for it (%s). Let it end, then undo it\n  follow it:  %s\n  undo it:    %s",
			e.Name, subjectOf(e), op.State, a.ctl("follow", e.Name), a.ctl("undo-restore", e.Name))
	case op.State == catalog.StateDone && e.PutsBack():
		return &notFoundError{fmt.Sprintf("%s isn't queued any more: it was done\n  undo it:  %s", e.Name, a.ctl("undo-put-back", e.Name))}
	case op.State == catalog.StateDone && e.Creates():
		return &notFoundError{fmt.Sprintf("%s isn't queued any more: backup %s was taken", e.Name, op.Backup)}
	case op.State == catalog.StateDone:
		return &notFoundError{fmt.Sprintf("%s isn't queued any more: it was done\n  undo it:  %s", e.Name, a.ctl("undo-restore", e.Name))}
	case op.State.Final():
		return &notFoundError{fmt.Sprintf("%s isn't queued any more: it ended as %s", e.Name, op.State)}
	}
	return &notFoundError{fmt.Sprintf("%s is already withdrawn; the managers are abandoning it\n  follow it:  %s",
		e.Name, a.ctl("follow", e.Name))}
}

// sayWithdrawn reports what was removed.
func sayWithdrawn(a *app, w operator.Withdrawn) error {
	e := w.Command
	if w.Forgotten {
		if a.output != "" {
			return nil
		}
		return a.printf("removed: %s (%s), which has failed; the managers may form an empty cluster now\n", e.Name, subjectOf(e))
	}
	if w.Ending {
		a.note("%s has begun: the leader ends it where it is, within seconds\n  follow it:  %s\n  undo it:    %s", e.Name, a.ctl("follow", e.Name),
			a.ctl("undo-put-back", e.Name))
		return nil
	}
	if a.output == "" {
		if err := a.printf("withdrawn: %s (%s)\n", e.Name, subjectOf(e)); err != nil {
			return err
		}
	}
	switch {
	case w.TooLate != "":
		a.note("%s began to stop etcd at this moment (%s), so it continues. Let it end, then undo it\n  follow it:  %s\n  undo it:    %s",
			e.Name, w.TooLate, a.ctl("follow", e.Name), a.ctl("undo-restore", e.Name))
	case e.Running():
		a.note("%s is being executed (%s), but nothing was stopped for it: the managers abandon it now\n  follow it:  %s",
			e.Name, e.Operation.State, a.ctl("follow", e.Name))
	}
	return nil
}
