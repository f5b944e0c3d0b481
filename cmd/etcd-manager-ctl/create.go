package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

func (a *app) createBackupCommand() *cobra.Command {
	var b catalog.CreateBackup
	var wait bool
	cmd := &cobra.Command{
		Use: "create-backup", Short: "Have the managers take a backup now", Args: noArgs,
		Long: `Queue a backup, which the leader takes as soon as it sees the command, within about half a minute: nothing has to be restarted, and nothing is stopped.
It waits for a cluster that serves, and is tried again when it fails; list-commands shows why, and delete-command withdraws it.
A cluster with a static configuration reads no commands.

Exit codes with --wait: 0 taken, 1 failed, 6 withdrawn, 7 not followed to its end.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.createBackup(cmd.Context(), b, wait) },
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "follow it to its end; interrupting that doesn't interrupt the backup")
	cmd.Flags().BoolVar(&b.Pin, "pin", false, "keep the backup until it is unpinned, whatever its age")
	cmd.Flags().StringVar(&b.Reason, "reason", "", "a `note` of your own, kept with the record and the pin")
	return cmd
}

func (a *app) createBackup(ctx context.Context, b catalog.CreateBackup, wait bool) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, err := a.openCatalog(ctx)
	if err != nil {
		return err
	}
	cmd, err := a.queueCreate(ctx, c, b)
	if err != nil {
		return err
	}
	switch {
	case wait:
		return a.follow(ctx, c, cmd.Name)
	case a.output == "json":
		return a.printJSON(entry{name: cmd.Name, cmd: &cmd}.output())
	}
	return a.printf("queued: %s (a backup on demand)\n  watch it:     %s\n  withdraw it:  %s\n", cmd.Name, a.ctl("follow", cmd.Name), a.ctl("delete-command", cmd.Name))
}

func (a *app) queueCreate(ctx context.Context, c *catalog.Catalog, b catalog.CreateBackup) (catalog.Command, error) {
	ctx, cancel := a.limit(ctx)
	defer cancel()
	l, err := c.ControlListing(ctx)
	if err != nil {
		return catalog.Command{}, err
	}
	if !l.Marker.Exists() {
		a.note("no cluster was formed for this store yet, as far as it knows: the backup waits for one that serves")
	}
	if l.Survivors.Exists() {
		a.note("the cluster has no quorum: the backup waits until it serves again")
	}
	cmd, err := c.QueueCreateBackup(ctx, b)
	if err != nil {
		return catalog.Command{}, fmt.Errorf("%w; whether it is queued all the same shows %s", err, a.ctl("list-commands"))
	}
	return cmd, nil
}

func (a *app) pinCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "pin-backup NAME|latest", Short: "Keep a backup, whatever its age", Args: exactlyOne("the name of a backup (see list-backups)"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.onBackup(cmd.Context(), args[0], "pinned: %s is kept until it is unpinned\n", func(ctx context.Context, c *catalog.Catalog, name string) error {
				return c.PinBackup(ctx, name, reason)
			})
		},
		ValidArgsFunction: a.complete(restorableNames),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "a `note` of your own, kept with the pin")
	return cmd
}

func (a *app) unpinCommand() *cobra.Command {
	return &cobra.Command{
		Use: "unpin-backup NAME|latest", Short: "Let retention decide about a backup again", Args: exactlyOne("the name of a backup (see list-backups)"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.onBackup(cmd.Context(), args[0], "unpinned: retention decides about %s again\n", func(ctx context.Context, c *catalog.Catalog, name string) error {
				return c.UnpinBackup(ctx, name)
			})
		},
		ValidArgsFunction: a.complete(restorableNames),
	}
}

// onBackup does something to a backup that is there, and says so.
func (a *app) onBackup(ctx context.Context, name, say string, do func(context.Context, *catalog.Catalog, string) error) error {
	if err := a.format(); err != nil {
		return err
	}
	c, ctx, cancel, err := a.catalog(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	l, err := c.Backups(ctx)
	if err != nil {
		return err
	}
	if name, err = a.resolve(ctx, c, l, name); err != nil {
		return err
	}
	if !slices.Contains(l.Names(), name) {
		return a.noBackup(l, name)
	}
	if err := do(ctx, c, name); err != nil {
		return err
	}
	return a.printf(say, name)
}
