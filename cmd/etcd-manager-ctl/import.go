package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/pgzip"
	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

func (a *app) importCommand() *cobra.Command {
	var o importOptions
	cmd := &cobra.Command{
		Use: "import-backup FILE", Short: "Make a backup in this store out of a snapshot file", Args: exactlyOne("a snapshot file"),
		Annotations: map[string]string{createsStore: "yes"},
		Long: `Make a backup in this store out of a snapshot file: one of "etcdctl snapshot save", of download-backup, or another store's etcd.backup.gz. It is checked like a
backup that is restored, and then stored under a name with the time of now; restore-backup restores it, also into a new cluster elsewhere. It names no
cluster, so it isn't taken for another one's.`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.importFile(cmd.Context(), args[0], o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.reason, "reason", "import", "the `reason` that the manifest names")
	f.StringVar(&o.version, "etcd-version", "", "the etcd `version` that it was taken with (default: as far as the file tells)")
	f.BoolVar(&o.skipHash, "skip-hash-check", false, "take a database that was copied from a data dir, which has no checksum at its end; its structure is checked all the same")
	f.StringVar(&o.compression, "backup-compression", catalog.DefaultCompression, "gzip, which other tools read too, or zstd")
	f.StringSliceVar(&a.encryption, "backup-encryption", nil, "who can read the backup: age:`FILE` with recipients, or aws-kms:ARN; may be repeated (default: not encrypted)")
	addTempDir(cmd, &o.tempDir)
	_ = cmd.MarkFlagDirname("temp-dir") // it fails only for a flag that doesn't exist
	return cmd
}

type importOptions struct {
	reason, version, tempDir, compression string
	skipHash                              bool
}

type importOutput struct {
	Backup string `json:"backup"`
	File   string `json:"file"`
	facts
	StoredBytes int64 `json:"storedBytes"`
}

func (a *app) importFile(ctx context.Context, file string, o importOptions) error {
	if err := a.format("json"); err != nil {
		return err
	}
	if o.version != "" {
		if err := catalog.ValidateSpec(cluster.Spec{MemberCount: 1, EtcdVersion: strings.TrimPrefix(o.version, "v")}); err != nil {
			return &ui.UsageError{Err: err}
		}
	}
	if err := backup.CheckCompression(o.compression); err != nil {
		return &ui.UsageError{Err: fmt.Errorf("--backup-compression: %w", err)}
	}
	c, err := a.openCatalog(ctx)
	if err != nil {
		return err
	}
	path, remove, err := a.plainFile(ctx, file, o.tempDir)
	if err != nil {
		return err
	}
	defer remove()
	f, err := a.checker.prove(ctx, path)
	if err != nil {
		return fmt.Errorf("nothing was imported: %s: %w", file, err)
	}
	if !f.TrailingHash && !o.skipHash {
		return fmt.Errorf("nothing was imported: %s has no checksum at its end, as a file has that was copied from a data dir; its structure is sound; if it is such a copy, add --skip-hash-check", file)
	}
	m, err := a.storeFile(ctx, c, path, f, o)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.printJSON(importOutput{m.Backup, file, f, m.Stored.Size})
	}
	return a.printf(`imported: %s (revision %d, %d keys, %s; format of etcd %s)
  restore it:  %s
`, m.Backup, f.Revision, f.Keys, ui.Size(f.SizeBytes), f.Format, a.ctl("restore-backup", m.Backup))
}

// plainFile is the file itself, or a temporary one with what it holds decompressed.
func (a *app) plainFile(ctx context.Context, file, tempDir string) (path string, remove func(), err error) {
	in, err := os.Open(file)
	if err != nil {
		return "", nil, &ui.UsageError{Err: err}
	}
	defer in.Close()
	fi, err := in.Stat()
	if err != nil {
		return "", nil, fmt.Errorf("look at %s: %w", file, err)
	}
	if !fi.Mode().IsRegular() {
		return "", nil, ui.Usagef("%s is not a regular file", file)
	}
	magic := make([]byte, 2)
	if n, _ := in.ReadAt(magic, 0); n < 2 || !bytes.Equal(magic, []byte{0x1f, 0x8b}) { // a file that short is refused by the check
		return file, func() {}, nil
	}
	dir, remove, err := scratch(tempDir)
	if err != nil {
		return "", nil, err
	}
	path = filepath.Join(dir, "snapshot.db")
	if err := a.gunzip(ctx, in, fi.Size(), path); err != nil {
		remove()
		return "", nil, fmt.Errorf("nothing was imported: decompress %s: %w", file, err)
	}
	return path, remove, nil
}

// gunzip looks for room again and again, for nobody knows how large it becomes.
func (a *app) gunzip(ctx context.Context, in io.Reader, size int64, path string) (err error) {
	if err := room(filepath.Dir(path), size); err != nil {
		return err
	}
	z, err := pgzip.NewReader(in)
	if err != nil {
		return err
	}
	defer z.Close()
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	for {
		if err := errors.Join(ctx.Err(), room(filepath.Dir(path), 0)); err != nil {
			return err
		}
		_, err := io.CopyN(out, z, spareRoom/2)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// nameAttempts bounds how often a name is looked for that nobody else has taken meanwhile.
const nameAttempts = 5

// storeFile writes the backup under a name of its own.
func (a *app) storeFile(ctx context.Context, c *catalog.Catalog, path string, f facts, o importOptions) (*catalog.Manifest, error) {
	version := strings.TrimPrefix(o.version, "v")
	if version == "" {
		version = f.Format + ".0"
	}
	w := backup.NewWriter(c, backup.Options{ToolVersion: a.version, Now: a.now, Compression: o.compression})
	for range nameAttempts {
		l, err := a.backups(ctx, c)
		if err != nil {
			return nil, err
		}
		in, err := withHash(path, f)
		if err != nil {
			return nil, err
		}
		t := a.transfer("store " + filepath.Base(path))
		m, err := w.Write(ctx, catalog.NewBackupName(a.now(), l.Names()), backup.Facts{
			EtcdVersion: version, Spec: a.specOf(ctx, c), Revision: f.Revision, Keys: f.Keys, Size: f.SizeBytes, Reason: o.reason,
		}, in, func(p backup.Progress) { t.Set(p.Done, p.Total) })
		t.Close()
		if errors.Is(err, catalog.ErrConflict) {
			continue
		}
		return m, err
	}
	return nil, errors.New("other backups took every name that was tried: try again")
}

func (a *app) backups(ctx context.Context, c *catalog.Catalog) (catalog.BackupList, error) {
	ctx, cancel := a.limit(ctx)
	defer cancel()
	return c.Backups(ctx)
}

// withHash opens a file as a snapshot stream: with the SHA-256 at its end that a copied database lacks.
func withHash(path string, f facts) (io.ReadCloser, error) {
	in, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	if f.TrailingHash {
		return in, nil
	}
	return &hashingFile{File: in, sum: sha256.New()}, nil
}
