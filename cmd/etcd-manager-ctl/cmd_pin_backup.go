package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

func pinCommand(a *app) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "pin-backup NAME|latest", Short: "Keep a backup, whatever its age",
		Args: exactlyOne("the name of a backup (see list-backups)"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return onBackup(cmd.Context(), a, args[0], "pinned: %s is kept until it is unpinned\n",
				func(ctx context.Context, c *operator.Client, name string) (string, []string, error) {
					return c.PinBackup(ctx, name, reason)
				})
		},
		ValidArgsFunction: a.complete(restorableNames),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "a `note` of your own, kept with the pin")
	return cmd
}

func unpinCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "unpin-backup NAME|latest", Short: "Remove the pin; retention then decides about the backup again",
		Args: exactlyOne("the name of a backup (see list-backups)"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return onBackup(cmd.Context(), a, args[0], "unpinned: retention decides about %s again\n",
				func(ctx context.Context, c *operator.Client, name string) (string, []string, error) {
					return c.UnpinBackup(ctx, name)
				})
		},
		ValidArgsFunction: a.complete(restorableNames),
	}
}

// onBackup does something to a backup that is there, and says so.
func onBackup(ctx context.Context, a *app, name, say string,
	do func(context.Context, *operator.Client, string) (string, []string, error)) error {
	if err := a.format(); err != nil {
		return err
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	name, notes, err := do(ctx, c, name)
	a.latest(notes)
	if err != nil {
		return err
	}
	return a.printf(say, name)
}
