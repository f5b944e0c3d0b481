package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

// chainOutput is what was found out about a backup and the changes that lead to it.
type chainOutput struct {
	Name        string  `json:"name"`
	Sound       bool    `json:"sound"`
	ChainSound  bool    `json:"chainSound"`
	Problem     string  `json:"problem,omitempty"`
	Revision    int64   `json:"revision,omitempty"`
	Hash        uint32  `json:"hashKV,omitempty"`
	Base        string  `json:"base,omitempty"`
	Segments    int     `json:"segments,omitempty"`
	Incarnation string  `json:"incarnation,omitempty"`
	Seconds     float64 `json:"seconds"`
}

// verifyChain proves a backup together with the one before it and the changes between them.
func (a *app) verifyChain(ctx context.Context, name, tempDir string) error {
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
	v, err := a.verifyOnDisk(ctx, c, ch, tempDir)
	out := chainOutput{Name: v.Backup, Sound: err == nil, ChainSound: err == nil && v.ChainProblem == "", Problem: v.ChainProblem, Revision: v.Facts.Revision, Hash: v.Facts.Hash.Hash,
		Base: v.Base, Segments: v.Segments, Incarnation: string(v.Incarnation), Seconds: v.Took.Seconds()}
	if err != nil {
		out.Problem = err.Error()
		if !isBad(err) && !errors.Is(err, cluster.ErrCorrupt) && !errors.Is(err, etcd.ErrBadDatabase) {
			return fmt.Errorf("backup %s could not be checked: %w", ch.backup.Name, err)
		}
	}
	if a.output == "json" {
		if perr := a.printJSON(out); perr != nil {
			return perr
		}
	}
	switch {
	case err != nil:
		return fmt.Errorf("BAD: %w", err)
	case !out.ChainSound:
		return fmt.Errorf("backup %s is sound (revision %d), but it can't be reached from the one before it: %s", v.Backup, v.Facts.Revision, v.ChainProblem)
	case a.output == "json":
		return nil
	}
	return a.printf("sound: %s\n  content:   revision %d, %s, HashKV %d\n  chain:     the same comes out of backup %s with the %s behind it\n  took:      %s\n",
		v.Backup, v.Facts.Revision, ui.Count(int(v.Facts.Keys), "key"), v.Facts.Hash.Hash, v.Base, ui.Count(v.Segments, "segment"), ui.Took(v.Took))
}

func (a *app) verifyOnDisk(ctx context.Context, c *catalog.Catalog, ch choice, tempDir string) (changelog.Verified, error) {
	none := changelog.Verified{Backup: ch.backup.Name}
	exe, err := os.Executable()
	if err != nil {
		return none, fmt.Errorf("find own executable: %w", err)
	}
	dir, remove, err := scratch(tempDir)
	if err != nil {
		return none, err
	}
	defer remove()
	if ch.manifest != nil {
		if err := room(dir, ch.manifest.Raw.Size); err != nil {
			return none, err
		}
	}
	t := a.transfer("verify " + ch.backup.Name)
	defer t.Close()
	v, err := a.archive(c).Verify(ctx, ch.backup.Name, changelog.VerifyOptions{
		Executable: exe, Dir: filepath.Join(dir, "work"), KeepFree: spareRoom,
		Progress: func(_ string, done, total int64) { t.Set(done, total) },
	})
	var bad *backup.Error
	if err != nil && !errors.As(err, &bad) {
		err = judged(filepath.Join(dir, "work", "backup.db"), err)
	}
	return v, err
}
