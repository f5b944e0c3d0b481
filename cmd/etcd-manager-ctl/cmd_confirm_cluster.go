package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

func confirmCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "confirm-cluster TOKEN", Short: "Confirm that the running cluster is the right one, although the store's marker names another",
		Args: exactlyOne("the token of the running cluster (the managers' status page names it)"),
		Long: `The store's marker (control/etcd-cluster-created) names the cluster with the right data. If other
software has restored a backup, the running cluster isn't the one in the marker. Then the managers change neither,
until a person decides. This command writes the token of the running cluster to the marker. Look at the data first.
The command stops, starts and deletes nothing. It prints the old token, with which you can undo it.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runConfirmCluster(cmd.Context(), a, cluster.Token(args[0]))
		},
	}
}

func runConfirmCluster(ctx context.Context, a *app, token cluster.Token) error {
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
		return a.printf("the marker already names cluster %s\n", token)
	case before == "":
		return a.printf("the marker names cluster %s now; it named none before\n", token)
	default:
		return a.printf("the marker names cluster %s now, not %s\n  undo it:  %s\n", token, before,
			a.ctl("confirm-cluster", string(before)))
	}
}
