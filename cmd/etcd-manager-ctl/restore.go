package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

func (a *app) restoreCommand() *cobra.Command {
	return &cobra.Command{
		Use: "restore-backup NAME", Short: "Queue the restore of a backup with the current spec", Args: exactlyOne("the name of a backup (see list-backups)"),
		Long: `Queue the restore of a backup with the current spec. It does not start at once: the managers look into the queue
when they start, so restart them (docker stop, kill, a roll of the masters) when the moment has come.
The backup is proven to be good before the running cluster is touched.`,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.restore(cmd.Context(), args[0]) },
		ValidArgsFunction: a.complete(backupNames),
	}
}

// backupNames lists the newest first: that is the one that is wanted most often.
func backupNames(ctx context.Context, c *catalog.Catalog) ([]string, error) {
	l, err := c.Backups(ctx)
	names := l.Names()
	slices.Reverse(names)
	return names, err
}

func (a *app) restore(ctx context.Context, name string) error {
	if err := a.format("json"); err != nil {
		return err
	}
	if err := catalog.ValidBackupName(name); err != nil {
		return &usageError{err}
	}
	c, ctx, cancel, err := a.catalog(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	if err := a.checkBackup(ctx, c, name); err != nil {
		return err
	}
	spec, _, err := c.Spec(ctx)
	if errors.Is(err, catalog.ErrNotFound) {
		return a.noSpec()
	}
	if err != nil {
		return err
	}
	if err := catalog.ValidateSpec(spec); err != nil {
		return fmt.Errorf("the cluster spec in %s can't be restored into: %w", a.store, err)
	}
	cmd, err := c.QueueRestore(ctx, name, spec, catalog.RestoreOptions{})
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.printJSON(commandRow(cmd, nil, true))
	}
	return a.printf(`queued: %s (restore of %s into %s)
Nothing has changed yet: the cluster serves on until the managers are restarted.
  start it:     restart etcd-manager on the masters (docker stop, kill, or a roll of the masters)
  watch it:     etcd-manager-ctl --backup-store=%s list-commands
  withdraw it:  etcd-manager-ctl --backup-store=%s delete-command %s
`, cmd.Name, name, clusterOf(spec), a.store, a.store, cmd.Name)
}

func clusterOf(spec cluster.Spec) string {
	s := fmt.Sprintf("%d members", spec.MemberCount)
	if spec.MemberCount == 1 {
		s = "1 member"
	}
	if spec.EtcdVersion != "" {
		s += ", etcd " + spec.EtcdVersion
	}
	return s
}

// checkBackup makes sure that there is something to restore, and helps with the name if there isn't.
func (a *app) checkBackup(ctx context.Context, c *catalog.Catalog, name string) error {
	l, err := c.Backups(ctx)
	if err != nil {
		return err
	}
	if !slices.Contains(l.Names(), name) {
		message := fmt.Sprintf("there is no backup %q in %s", name, a.store)
		for _, left := range l.Leftovers {
			if left.Name == name {
				message = fmt.Sprintf("the backup %q in %s is incomplete: %s is missing", name, a.store, left.Missing)
			}
		}
		near := closest(name, l.Names(), 3)
		newest, ok := l.Newest()
		switch {
		case len(near) > 0:
			message += "; did you mean " + strings.Join(near, ", ") + "?"
		case ok:
			message += "; the newest is " + newest.Name
		default:
			message += ": there is none at all; check the URL"
		}
		return &notFoundError{message}
	}
	if _, err := c.BackupInfo(ctx, name); err != nil {
		return fmt.Errorf("backup %s can't be restored: %w", name, err)
	}
	if _, err := c.Manifest(ctx, name); err != nil && !errors.Is(err, catalog.ErrNotFound) {
		return fmt.Errorf("backup %s can't be restored: %w", name, err)
	}
	return nil
}
