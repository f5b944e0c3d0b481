package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

func importCommand(a *app) *cobra.Command {
	var r operator.ImportRequest
	cmd := &cobra.Command{
		Use: "import-backup FILE", Short: "Create a backup in this store from a snapshot file", Args: exactlyOne("a snapshot file"),
		Annotations: map[string]string{createsStore: "yes"},
		Long: `Create a backup in this store from a snapshot file: a file of "etcdctl snapshot save" or
download-backup, or another store's etcd.backup.gz. It is checked as in a restore, and then stored under a name with
the current time. restore-backup restores it, also into a new cluster elsewhere. Its manifest names no cluster, so it
isn't refused as another cluster's.`,
		RunE: func(cmd *cobra.Command, args []string) error { return runImport(cmd.Context(), a, args[0], r) },
	}
	f := cmd.Flags()
	f.StringVar(&r.Reason, "reason", "import", "the `reason` in the manifest")
	f.StringVar(&r.EtcdVersion, "etcd-version", "", "the etcd `version` that it was taken with (default: as far as the file shows it)")
	f.BoolVar(&r.SkipHashCheck, "skip-hash-check", false,
		"accept a database that was copied from a data dir, which has no checksum at its end; its structure is still checked")
	f.StringVar(&r.Compression, "backup-compression", catalog.DefaultCompression, "gzip, which other tools read too, or zstd")
	f.StringSliceVar(&a.encryption, "backup-encryption", nil,
		"who can read the backup: age:`FILE` with recipients, or aws-kms:ARN; may be repeated (default: not encrypted)")
	addTempDir(cmd, &r.TempDir)
	_ = cmd.MarkFlagDirname("temp-dir") // it fails only for a flag that doesn't exist
	return cmd
}

func runImport(ctx context.Context, a *app, file string, r operator.ImportRequest) error {
	if err := a.format("json"); err != nil {
		return err
	}
	if err := backup.CheckCompression(r.Compression); err != nil {
		return &ui.UsageError{Err: fmt.Errorf("--backup-compression: %w", err)}
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	r.File, r.Transfers = file, a.transfers()
	m, err := c.Import(ctx, r)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.printJSON(m)
	}
	return a.printf(`imported: %s (revision %d, %d keys, %s; format of etcd %s)
  restore it:  %s
`, m.Backup, m.Revision, m.Keys, ui.Size(m.SizeBytes), m.Format, a.ctl("restore-backup", m.Backup))
}
