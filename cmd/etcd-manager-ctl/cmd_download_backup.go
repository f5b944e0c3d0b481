package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

func (a *app) downloadCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "download-backup NAME|latest [FILE]", Short: "Fetch a backup as an ordinary snapshot file",
		Long: `Fetch a backup as an ordinary snapshot file, as "etcdctl snapshot save" writes it and "etcdutl snapshot
restore" reads it. All checksums are checked, and the file gets its name only when it is complete. Without FILE it is
NAME.db in the current directory.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 || len(args) > 2 {
				return ui.Usagef("download-backup needs the name of a backup (see list-backups), and at most a file")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			file := ""
			if len(args) > 1 {
				file = args[1]
			}
			return a.download(cmd.Context(), args[0], file, force)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return a.complete(restorableNames)(cmd, args, word)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "replace an existing file")
	return cmd
}

func (a *app) download(ctx context.Context, name, file string, force bool) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	d, notes, err := c.Download(ctx, operator.DownloadRequest{Backup: name, File: file, Replace: force, Transfers: a.transfers()})
	a.latest(notes)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.printJSON(d)
	}
	return a.printf(`%s: %s, all checksums are right
  restore it manually:  etcdutl snapshot restore %s --data-dir=NEW-DIRECTORY --bump-revision=1000000000 --mark-compacted
`, d.File, ui.Size(d.SizeBytes), d.File)
}
