package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

func downloadCommand(a *app) *cobra.Command {
	var force bool
	var to targetFlags
	cmd := &cobra.Command{
		Use: "download-backup [NAME|latest] [FILE]", Short: "Fetch a backup, or the state of any second, as an ordinary snapshot file",
		Long: `Fetch a backup as an ordinary snapshot file, as "etcdctl snapshot save" writes it and "etcdutl snapshot
restore" reads it. All checksums are checked, and the file gets its name only when it is complete. Without FILE it is
NAME.db in the current directory.

With --to-time, --to-revision, --latest or --before, build the state at that point: the backup before it is fetched,
and the changes after it are replayed. Then the only argument is FILE (default: revision-N.db); NAME and FILE together
name the backup to begin with. Replaying changes works on Linux only.`,
		Example: `  etcd-manager-ctl --backup-store=s3://bucket/prefix download-backup latest
  etcd-manager-ctl --backup-store=s3://bucket/prefix download-backup --to-time=12:03:06 then.db`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 2 {
				return ui.Usagef("download-backup needs the name of a backup (see list-backups) or a point, and at most a file")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := to.target(cmd, a.now())
			if err != nil {
				return err
			}
			point := operator.PointRequest{Target: t, Before: to.before}
			r := operator.DownloadRequest{Point: point, Replace: force, Transfers: a.transfers()}
			if err := downloadArgs(&r, args); err != nil {
				return err
			}
			return runDownload(cmd.Context(), a, r)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return a.complete(restorableNames)(cmd, args, word)
		},
	}
	to.add(cmd)
	cmd.Flags().BoolVar(&force, "force", false, "replace an existing file")
	return cmd
}

// downloadArgs tells the backup's name from the file's.
func downloadArgs(r *operator.DownloadRequest, args []string) error {
	point := !r.Point.Target.IsZero() || r.Point.Before != ""
	switch {
	case len(args) == 2:
		r.Point.Backup, r.File = args[0], args[1]
	case len(args) == 1 && !point:
		r.Point.Backup = args[0]
	case len(args) == 1 && (args[0] == operator.Latest || !catalog.BackupTime(args[0]).IsZero()):
		return ui.Usagef("%s looks like the name of a backup: with a point, give the file too, or only the file", args[0])
	case len(args) == 1:
		r.File = args[0]
	case !point:
		return ui.Usagef("download-backup needs the name of a backup (see list-backups), or --to-time, --to-revision, --latest or --before")
	}
	return nil
}

func runDownload(ctx context.Context, a *app, r operator.DownloadRequest) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	d, p, err := c.Download(ctx, r)
	if p != nil {
		sayLocated(a, p.Before, r.Point.Before, p.Notes)
	}
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.printJSON(d)
	}
	text := fmt.Sprintf("%s: %s, all checksums are right\n", d.File, ui.Size(d.SizeBytes))
	if p.Plan != nil {
		text += fmt.Sprintf("  the state:  %s; HashKV %d\n  built from:  backup %s and %s of changes\n",
			reachedText(d.Revision, d.Time, p.Plan.Uncertain, d.Until), d.HashKV, d.Backup, ui.Count(d.Segments, "segment"))
	}
	return a.printf(`%s  restore it manually:  etcdutl snapshot restore %s --data-dir=NEW-DIRECTORY --bump-revision=1000000000 --mark-compacted
`, text, d.File)
}
