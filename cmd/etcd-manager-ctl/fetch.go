package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// spareRoom is what stays free on a file system that the tool writes to.
const spareRoom = 64 << 20

// addTempDir declares the flag for where backups are put for a while.
func addTempDir(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "temp-dir", "", "the `directory` for temporary files, which needs room for the decompressed backup (default: the system's)")
}

// scratch makes a directory that nobody else uses. remove takes it away.
func scratch(dir string) (path string, remove func(), err error) {
	path, err = os.MkdirTemp(dir, "etcd-manager-ctl-")
	if err != nil {
		return "", nil, fmt.Errorf("make temporary directory: %w (--temp-dir names another place)", err)
	}
	return path, func() { _ = os.RemoveAll(path) }, nil // what can't be removed is the system's to clear away
}

// room fails if a directory's file system has no place for that many bytes more. need is 0 if it isn't known.
func room(dir string, need int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("look for room in %s: %w", dir, err)
	}
	free := int64(st.Bavail) * int64(st.Bsize) //nolint:unconvert // other systems have other types
	if free < need+spareRoom {
		return fmt.Errorf("%s has no room: %s free, %s needed (and %s to spare)", dir, ui.Size(free), ui.Size(need), ui.Size(spareRoom))
	}
	return nil
}

// fetchFile downloads a backup, decompressed and with all checksums checked, to a path at which nothing stands yet.
func (a *app) fetchFile(ctx context.Context, c *catalog.Catalog, ch choice, path string) (backup.Result, error) {
	need := int64(0)
	if ch.manifest != nil {
		need = ch.manifest.Raw.Size
	}
	if err := room(filepath.Dir(path), need); err != nil {
		return backup.Result{}, err
	}
	t := a.transfer("fetch " + ch.backup.Name)
	defer t.Close()
	return backup.FetchFile(ctx, c, ch.backup.Name, path, backup.FileOptions{
		KeepFree: spareRoom, Progress: func(p backup.Progress) { t.Set(p.Done, p.Total) },
	})
}

// transfer is a bar on the standard error if that is a screen, and nothing otherwise.
func (a *app) transfer(name string) *ui.Transfer {
	return ui.NewTransfer(a.errOut, a.errTerminal, name)
}

// proven is a backup that was fetched into a temporary file and found to be sound.
type proven struct {
	choice choice
	path   string
	result backup.Result
	facts  facts
	remove func()
}

// prove fetches a backup into a temporary file and checks all that can be checked. The caller removes it.
func (a *app) prove(ctx context.Context, c *catalog.Catalog, ch choice, tempDir string) (_ *proven, err error) {
	dir, remove, err := scratch(tempDir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			remove()
		}
	}()
	p := &proven{choice: ch, path: filepath.Join(dir, "snapshot.db"), remove: remove}
	if p.result, err = a.fetchFile(ctx, c, ch, p.path); err != nil {
		return nil, err
	}
	if p.facts, err = a.checker.prove(ctx, p.path); err != nil {
		return nil, fmt.Errorf("backup %s: %w", ch.backup.Name, err)
	}
	if m := p.result.Manifest; m != nil && p.facts.Revision < m.Revision {
		return nil, &badDatabase{fmt.Errorf("backup %s: its database ends at revision %d, the manifest says that it has %d", ch.backup.Name, p.facts.Revision, m.Revision)}
	}
	return p, nil
}

// isBad tells a backup that is bad from one that could not be looked at.
func isBad(err error) bool {
	var bad *backup.Error
	return errors.As(err, &bad) || errors.Is(err, errBadDatabase) || unusable(err)
}
