package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

func createBackupCommand(a *app) *cobra.Command {
	var b operator.BackupRequest
	var wait bool
	cmd := &cobra.Command{
		Use: "create-backup", Short: "Ask the managers to take a backup now", Args: noArgs,
		Long: `Queue a backup. The leader takes it as soon as it sees the command, within about half a minute. Nothing
is restarted or stopped. The backup waits for a cluster that serves, and is tried again if it fails. list-commands
shows the error, and delete-command withdraws it. A cluster with a static configuration reads no commands.

Exit codes with --wait: 0 taken, 1 failed, 6 withdrawn, 7 not followed to its end.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return runCreateBackup(cmd.Context(), a, b, wait) },
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "follow it to its end; interrupting the tool doesn't interrupt the backup")
	cmd.Flags().BoolVar(&b.Pin, "pin", false, "keep the backup until it is unpinned, whatever its age")
	cmd.Flags().StringVar(&b.Reason, "reason", "", "a `note` of your own, kept with the record and the pin")
	return cmd
}

func runCreateBackup(ctx context.Context, a *app, b operator.BackupRequest, wait bool) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	queued, err := c.CreateBackup(ctx, b)
	sayWaits(a, queued)
	if err != nil {
		return err
	}
	cmd := queued.Command
	switch {
	case wait:
		return followOperation(ctx, a, c, cmd.Name)
	case a.output == "json":
		return a.printJSON(commandRow(operator.Command{Name: cmd.Name, Queued: &cmd}))
	}
	return a.printf("queued: %s (a backup on demand)\n  follow it:    %s\n  withdraw it:  %s\n", cmd.Name,
		a.ctl("follow", cmd.Name), a.ctl("delete-command", cmd.Name))
}

// sayWaits says what a backup waits for.
func sayWaits(a *app, q operator.BackupQueued) {
	if q.NotFormed {
		a.note("this store has no record of a cluster yet: the backup waits for a cluster that serves")
	}
	if q.NoQuorum {
		a.note("the cluster has no quorum: the backup waits until it serves again")
	}
}
