package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

func (a *app) downloadCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "download-backup NAME|latest [FILE]", Short: "Fetch a backup as an ordinary snapshot file",
		Long: `Fetch a backup as an ordinary snapshot file, such as "etcdctl snapshot save" writes and "etcdutl snapshot restore" takes. All checksums are checked on
the way; the file appears under its name when it is whole. Without FILE it is NAME.db in the current directory.`,
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
	cmd.Flags().BoolVar(&force, "force", false, "replace a file that is there")
	return cmd
}

type downloadOutput struct {
	Backup    string `json:"backup"`
	File      string `json:"file"`
	SizeBytes int64  `json:"sizeBytes"`
	SHA256    string `json:"sha256"`
}

func (a *app) download(ctx context.Context, name, file string, force bool) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, err := a.openCatalog(ctx)
	if err != nil {
		return err
	}
	ch, err := a.choose(ctx, c, name)
	if err != nil {
		return err
	}
	path, err := target(file, ch.backup.Name)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(path); err == nil && !force {
		return fmt.Errorf("%s exists already: nothing was fetched; --force replaces it", path)
	}
	res, err := a.fetchTo(ctx, c, ch, path, force)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.printJSON(downloadOutput{ch.backup.Name, path, res.Raw.Size, res.Raw.SHA256})
	}
	return a.printf(`%s: %s, all checksums are right
  restore it by hand:  etcdutl snapshot restore %s --data-dir=NEW-DIRECTORY --bump-revision=1000000000 --mark-compacted
`, path, ui.Size(res.Raw.Size), path)
}

// target is the path to write to: a directory gets the backup's name.
func target(file, name string) (string, error) {
	if file == "" {
		return name + ".db", nil
	}
	fi, err := os.Stat(file)
	if err == nil && fi.IsDir() {
		return filepath.Join(file, name+".db"), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("look at %s: %w", file, err)
	}
	return file, nil
}

// fetchTo fetches beside the target and then gives the file its name, which takes place at once or not at all. Without force it never
// replaces a file, also not one that has come meanwhile.
func (a *app) fetchTo(ctx context.Context, c *catalog.Catalog, ch choice, path string, force bool) (backup.Result, error) {
	dir, err := os.MkdirTemp(filepath.Dir(path), ".etcd-manager-ctl-")
	if err != nil {
		return backup.Result{}, fmt.Errorf("make temporary directory: %w", err)
	}
	defer os.RemoveAll(dir)
	tmp := filepath.Join(dir, "snapshot.db")
	res, err := a.fetchFile(ctx, c, ch, tmp)
	if err != nil {
		return res, err
	}
	if force {
		err = os.Rename(tmp, path)
	} else {
		err = os.Link(tmp, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return res, fmt.Errorf("give %s its name: %w", path, err)
	}
	return res, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
