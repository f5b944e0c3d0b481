package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

func (a *app) confirmCommand() *cobra.Command {
	return &cobra.Command{
		Use: "confirm-cluster TOKEN", Short: "Say that the cluster that runs is the right one, though the store's marker names another",
		Args: exactlyOne("the token of the cluster that runs (the managers' status page names it)"),
		Long: `The store's marker (control/etcd-cluster-created) names the cluster whose data are the right ones. After other software has restored a backup, a cluster runs
that the marker doesn't name; the managers leave both alone until a person decides. This command writes the token of the cluster that runs into the marker.
Look at the data first. Nothing is stopped, started or deleted by it, and it can be taken back with the token that it names.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.confirmCluster(cmd.Context(), cluster.Token(args[0]))
		},
	}
}

func (a *app) confirmCluster(ctx context.Context, token cluster.Token) error {
	if err := a.format(); err != nil {
		return err
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	switch before, err := c.ConfirmCluster(ctx, token); {
	case err != nil:
		return err
	case before == token:
		return a.printf("the marker names cluster %s already\n", token)
	case before == "":
		return a.printf("the marker names cluster %s now; it named none before\n", token)
	default:
		return a.printf("the marker names cluster %s now, not %s\n  take it back:  %s\n", token, before, a.ctl("confirm-cluster", string(before)))
	}
}
