package salvage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/child"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/datadir"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
)

// Config says what is to be salvaged, and how.
type Config struct {
	// DataDir is that of a stopped member. It is only read.
	DataDir string
	// WorkDir is the directory in which the copy is made. It must not exist, be empty, or be left from an earlier salvage; its parent must exist.
	WorkDir string
	// Binary is the etcd that opens the copy: of the version that ran on the data dir, or the next minor one.
	Binary process.Binary
	// SelfExe, if set, is the manager's executable: the copy is then made and checked by processes of their own, at the lowest priority.
	SelfExe string
	// KeepFree is how many bytes must stay free on WorkDir's file system.
	KeepFree int64
	// Stdout and Stderr are for etcd's log; nil means to discard it. Its last lines are in the error if it ends too early.
	Stdout *os.File
	Stderr *os.File
}

// Database is a database that has everything a member had, its write-ahead log included.
type Database struct {
	// Facts are what was found in the database; they hold for what Snapshot streams.
	Facts database.Facts
	// Version is the etcd that has applied the log.
	Version string
	// Term and Index are of the newest entry in the member's log.
	Term, Index uint64

	dir   salvageDir
	size  int64
	close sync.Once
	err   error
}

// Run makes a database out of the data dir of a cluster that has no quorum any more. It copies the member and has an etcd of its own apply all
// that is in the copy's log: an entry that isn't known to be committed may have been acknowledged by the others, so it is kept. That etcd
// is alone, reachable through sockets in WorkDir only, and has ended when Run returns; it also ends with the caller's process. Close must be
// called in the end.
//
// A disk that is too small is an error that wraps syscall.ENOSPC and cluster.ErrPermanent, an unreadable log ErrBadLog, a member that runs
// ErrDataDirInUse, and a database that isn't sound ErrBadDatabase.
func Run(ctx context.Context, cfg Config) (*Database, error) {
	s, err := run(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("salvage %s: %w", cfg.DataDir, err)
	}
	return s, nil
}

func run(ctx context.Context, cfg Config) (_ *Database, err error) {
	if !filepath.IsAbs(cfg.DataDir) || !filepath.IsAbs(cfg.WorkDir) || cfg.Binary.Path == "" {
		return nil, fmt.Errorf("%w: absolute paths and an etcd are needed", etcd.ErrConfig)
	}
	info, err := datadir.Inspect(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	if info.State != datadir.Member {
		return nil, fmt.Errorf("%w: the data dir is %s: %s", etcd.ErrBadDatabase, info.State, info.Reason)
	}
	dir := salvageDir(cfg.WorkDir)
	if err := dir.create(ctx); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, dir.remove())
		}
	}()
	c, err := dir.fill(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := dir.replay(ctx, cfg, c, child.TimeLimit(info.DBSize)); err != nil {
		return nil, err
	}
	s := &Database{Version: cfg.Binary.Version, Term: c.Term, Index: c.Index, dir: dir}
	return s, s.check(ctx, cfg.SelfExe)
}

// replay has etcd apply the whole log of the copy, and stops it.
func (d salvageDir) replay(ctx context.Context, cfg Config, c *salvageCopy, limit time.Duration) (err error) {
	h, err := startHelper(cfg, d)
	if err != nil {
		return err
	}
	defer func() {
		grace := helperGrace
		if err != nil {
			grace = 0 // the copy is of no use any more
		}
		err = errors.Join(err, h.stop(ctx, grace))
	}()
	tctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		why := h.applied(tctx, c.Index)
		if why == nil {
			return nil
		}
		select {
		case <-h.done:
			return fmt.Errorf("etcd %s ended before it had applied the log: %w", cfg.Binary.Version, h.reason())
		case <-tctx.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("etcd %s didn't apply the log within %s (%w); its last lines: %s", cfg.Binary.Version, limit, why, h.tail)
		case <-time.After(helperPoll):
		}
	}
}

// applied returns nil when the whole log is applied, else why that isn't known.
func (h *helper) applied(ctx context.Context, index uint64) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	st, err := h.client.Status(ctx)
	// etcd answers clients only when it is its own leader, and has applied what it proposed itself, which is behind all the rest. With users it
	// refuses to tell a stranger more than that; what counts is checked in the database afterwards.
	if errors.Is(err, client.ErrDenied) {
		return nil
	}
	if err == nil && st.AppliedIndex < index {
		err = fmt.Errorf("entry %d of %d is applied", st.AppliedIndex, index)
	}
	return err
}

// check proves the database and that it has the whole log.
func (s *Database) check(ctx context.Context, selfExe string) (err error) {
	path := etcd.DBPath(s.dir.data())
	if selfExe != "" {
		s.Facts, err = database.Check(ctx, selfExe, path, database.CheckOptions{})
	} else {
		s.Facts, err = database.CheckFile(ctx, path, database.CheckOptions{})
	}
	if err != nil {
		return err
	}
	if s.Facts.ConsistentIndex < s.Index {
		return fmt.Errorf("the database ends with entry %d, the log with %d: etcd didn't write everything before it ended", s.Facts.ConsistentIndex, s.Index)
	}
	s.size, err = database.UsedSize(path)
	s.Facts.SizeBytes = s.size
	return err
}

// Snapshot streams the database as Client.Snapshot does. It may be called more than once before Close. The context covers the whole stream.
func (s *Database) Snapshot(ctx context.Context) (*etcd.Snapshot, error) {
	f, err := os.Open(etcd.DBPath(s.dir.data()))
	if err != nil {
		return nil, fmt.Errorf("open salvaged database: %w", err)
	}
	return fileSnapshot(ctx, f, s.size, s.Facts.StorageVersion), nil
}

// Close removes the work dir. It may be called more than once.
func (s *Database) Close() error {
	s.close.Do(func() { s.err = s.dir.remove() })
	return s.err
}
