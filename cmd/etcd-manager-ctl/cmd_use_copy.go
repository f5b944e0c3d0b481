package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
)

func useCopyCommand(a *app) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "use-copy", Short: "Put a copy of a store into use as a store of its own", Args: noArgs,
		Long: `Put a copy that --backup-store-copy has made into use as a store of its own, because the first store is lost.
Managers don't run on a copy before that. Afterwards the managers of the first store, if any still run, copy nothing to it any more.
It can't be undone: to have a copy again, give --backup-store-copy an empty place.

Reading a copy needs no such step: every command that only reads works with --backup-store=COPY, and restore-backup --from=COPY restores
from it into a cluster that has its own store.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return useCopy(cmd.Context(), a, yes) },
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "don't ask")
	return cmd
}

func useCopy(ctx context.Context, a *app, yes bool) error {
	if err := a.format(); err != nil {
		return err
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	what := "put the copy " + a.store + " into use as a store of its own; nothing is copied to it any more"
	if err := a.confirm(ctx, yes, "yes", what); err != nil {
		return err
	}
	r, changed, err := c.UseCopy(ctx)
	if err != nil {
		return err
	}
	switch s, err := c.SupersededBy(ctx); {
	case err != nil:
		a.note("it isn't known whether another cluster has taken the place of this one: %v", err)
	case s != nil:
		a.note("a record here says that %q has taken the place of this cluster, so no manager starts etcd; if that isn't so any more: %s", s.By,
			a.ctl("undo-supersede"))
	}
	switch {
	case !changed:
		return a.printf("this copy of %s was put into use at %s; managers may run on it\n", r.Of, r.InUse.UTC().Format(time.RFC3339))
	}
	return a.printf("this copy of %s is a store of its own now\n  start managers with:  --backup-store=%s\n  restore it:           %s\n", r.Of,
		a.store, a.ctl("restore-backup", "--latest", "--now", "--wait"))
}
