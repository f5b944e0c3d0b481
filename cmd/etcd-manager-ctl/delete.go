package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

func (a *app) deleteCommandCommand() *cobra.Command {
	return &cobra.Command{
		Use: "delete-command NAME", Short: "Withdraw queued restores, also one that has begun but stopped nothing yet", Args: exactlyOne("the name of a backup or of a command (see list-commands)"),
		Long: `Withdraw all queued restores of the backup NAME. NAME may also be the command's own name, as list-commands shows it.

One that is being executed is given up by the managers as long as nothing was stopped for it (salvaging, proving, staging, saving).
Later than that it is not withdrawn: let it end, then undo-restore takes it back.`,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.deleteCommand(cmd.Context(), args[0]) },
		ValidArgsFunction: a.complete(queuedNames),
	}
}

// stopped tells that etcd has been, or is being, stopped for an operation that is in this state.
func stopped(s catalog.OperationState) bool {
	switch s {
	case catalog.StateSalvaging, catalog.StateProving, catalog.StateStaging, catalog.StateSaving:
		return false
	}
	return !s.Final()
}

func (a *app) deleteCommand(ctx context.Context, name string) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, ctx, cancel, err := a.catalog(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	list, err := entries(ctx, c)
	if err != nil {
		return err
	}
	if name == latest && !slices.ContainsFunc(list, func(e entry) bool { return e.name == latest }) {
		backups, err := c.Backups(ctx)
		if err != nil {
			return err
		}
		if name, err = a.resolve(ctx, c, backups, name); err != nil {
			return err
		}
	}
	removed := []commandOutput{}
	var refused []error
	for _, e := range list {
		if e.name != name && (name == "" || e.backup() != name || !e.queued()) {
			continue
		}
		if err := a.whyKept(e); err != nil {
			refused = append(refused, err)
			continue
		}
		if err := c.RemoveCommand(ctx, e.name); err != nil {
			return err
		}
		removed = append(removed, e.output())
		if err := a.sayWithdrawn(ctx, c, e); err != nil {
			return err
		}
	}
	if len(removed) == 0 && len(refused) == 0 {
		return &notFoundError{fmt.Sprintf("no queued command restores the backup %q, or is called so (list-commands shows the queue)", name)}
	}
	if a.output == "json" {
		if err := a.printJSON(removed); err != nil {
			return err
		}
	}
	return errors.Join(refused...)
}

// whyKept says why a command can't be withdrawn; nil if it can.
func (a *app) whyKept(e entry) error {
	switch {
	case e.op == nil:
		if e.queued() {
			return nil
		}
		return &notFoundError{fmt.Sprintf("%s isn't queued: %s is the record of an operation", e.name, e.name)}
	case e.op.State == catalog.StateReverting:
		return fmt.Errorf("%s (%s) is being taken back already\n  see how it ends:  %s", e.name, e.subject(), a.ctl("follow", e.name))
	case stopped(e.op.State):
		return fmt.Errorf("%s (%s) can't be withdrawn any more: etcd was stopped for it (%s). Let it end, then take it back\n  see how it ends:  %s\n  take it back:     %s",
			e.name, e.subject(), e.op.State, a.ctl("follow", e.name), a.ctl("undo-restore", e.name))
	case e.queued():
		return nil
	case e.op.State == catalog.StateDone && e.creates():
		return &notFoundError{fmt.Sprintf("%s isn't queued any more: backup %s was taken", e.name, e.op.Backup)}
	case e.op.State == catalog.StateDone:
		return &notFoundError{fmt.Sprintf("%s isn't queued any more: it was done\n  take it back:  %s", e.name, a.ctl("undo-restore", e.name))}
	case e.op.State.Final():
		return &notFoundError{fmt.Sprintf("%s isn't queued any more: it ended as %s", e.name, e.op.State)}
	}
	return &notFoundError{fmt.Sprintf("%s is withdrawn already; the managers are giving it up\n  see how it ends:  %s", e.name, a.ctl("follow", e.name))}
}

// sayWithdrawn reports what was removed. An operation that was under way is looked at once more, for it may have come further meanwhile.
func (a *app) sayWithdrawn(ctx context.Context, c *catalog.Catalog, e entry) error {
	if a.output == "" {
		if err := a.printf("withdrawn: %s (%s)\n", e.name, e.subject()); err != nil {
			return err
		}
	}
	if !e.running() {
		return nil
	}
	op, _, err := c.Operation(ctx, e.op.ID)
	if err == nil && stopped(op.State) {
		a.note("%s began to stop etcd at this very moment (%s), so it goes on. Let it end, then take it back\n  see how it ends:  %s\n  take it back:     %s",
			e.name, op.State, a.ctl("follow", e.name), a.ctl("undo-restore", e.name))
		return nil
	}
	a.note("%s is being executed (%s), but nothing was stopped for it: the managers give it up now\n  see how it ends:  %s", e.name, e.op.State, a.ctl("follow", e.name))
	return nil
}
