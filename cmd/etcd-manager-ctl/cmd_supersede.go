package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

func supersedeCommand(a *app) *cobra.Command {
	by, force, yes := "", false, false
	c := &cobra.Command{
		Use: "supersede --by=NAME", Args: noArgs,
		Short: "Record that another cluster has taken the place of this one, so that it doesn't serve again",
		Long: `Record in the store that another cluster has taken the place of this one, for example a standby that took over. A manager
that starts with this store then doesn't start etcd: it ends, and says why. So machines that come back after an outage
don't serve old data beside the new cluster.

It stops nothing that runs, and managers of versions that don't know the record don't obey it. So stop the managers
first. While the leader still writes to the store, the command is refused without --force. A manager that can't reach the store
when it starts doesn't know of the record either. undo-supersede takes it back.`,
		Example: "  etcd-manager-ctl --backup-store=s3://old-bucket/prefix supersede --by=s3://new-bucket/prefix",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.format(); err != nil {
				return err
			}
			if by == "" {
				return ui.Usagef("--by is missing: what has taken the cluster's place, for example the new cluster's store")
			}
			return supersede(cmd.Context(), a, by, force, yes)
		},
	}
	c.Flags().StringVar(&by, "by", "", "what has taken its place, for people: the `name` of a store, a region, a ticket")
	c.Flags().BoolVar(&force, "force", false, "write it although the managers seem to run; what runs goes on until it is restarted")
	c.Flags().BoolVar(&yes, "yes", false, "don't ask")
	return c
}

func supersede(ctx context.Context, a *app, by string, force, yes bool) error {
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	a.note("Once this is recorded, managers that start with %s don't start etcd. Nothing that runs is stopped.", a.store)
	if err := a.confirm(ctx, yes, "supersede", "record this"); err != nil {
		return err
	}
	s, err := c.Supersede(ctx, by, force)
	var serves *operator.ServesError
	switch {
	case errors.As(err, &serves):
		return fmt.Errorf("%w\n  stop its managers (SIGTERM), which stops their etcd, and repeat this after 3 minutes\n"+
			"  if that can't be done:  %s", err, a.ctl("supersede", "--by="+by, "--force"))
	case errors.Is(err, catalog.ErrConflict) && s.By != "":
		return fmt.Errorf("the cluster is superseded already, by %q since %s: nothing was written\n  take it back:  %s", s.By,
			ui.Clock(s.Time), a.ctl("undo-supersede"))
	case err != nil:
		return err
	}
	return a.printf("superseded by %s\n  take it back:  %s\n", s.By, a.ctl("undo-supersede"))
}

func undoSupersedeCommand(a *app) *cobra.Command {
	yes := false
	c := &cobra.Command{
		Use: "undo-supersede", Short: "Take back supersede: this cluster may serve again", Args: noArgs,
		Long: `Take back supersede: managers that start with this store start etcd again. Make sure first that the cluster that took its
place doesn't serve any more, and that what was written there isn't needed: it isn't in this one.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.format(); err != nil {
				return err
			}
			c, err := a.client(cmd.Context())
			if err != nil {
				return err
			}
			a.note("Managers that start with %s will start etcd again, with the data from before.", a.store)
			if err := a.confirm(cmd.Context(), yes, "serve", "let this cluster serve again"); err != nil {
				return err
			}
			s, err := c.UndoSupersede(cmd.Context())
			switch {
			case errors.Is(err, operator.ErrNotFound):
				return a.printf("the cluster is not superseded\n")
			case err != nil:
				return err
			}
			return a.printf("taken back (it said: superseded by %q); start the managers\n", s.By)
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "don't ask")
	return c
}
