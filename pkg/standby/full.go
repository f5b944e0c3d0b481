package standby

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
)

// fetching brings a full backup here, beside the copy that is followed meanwhile.
type fetching struct {
	cancel context.CancelFunc
	done   chan struct{}
	// What follows is set when done is closed. held is nil if there is no backup that is of more use than what is here.
	held *held
	err  error
}

func (x *fetching) over() bool {
	select {
	case <-x.done:
		return true
	default:
		return false
	}
}

func (x *fetching) end() {
	x.cancel()
	<-x.done
}

// fetch begins to fetch a full backup, unless one is under way, or was tried a short while ago.
func (f *Follower) fetch(ctx context.Context, why string) {
	if f.full != nil || time.Now().Before(f.again) {
		return
	}
	f.said.Infof("full", "a full backup of %s is looked for: %s", f.cfg.Store, why)
	f.set(func(r *catalog.StandbyReport) { r.Doing = "a full backup is looked for: " + why })
	ctx, cancel := context.WithCancel(ctx)
	x := &fetching{cancel: cancel, done: make(chan struct{})}
	f.full = x
	var now held
	if f.held != nil {
		now = *f.held
	}
	missing := !f.missing.IsZero()
	go func() {
		defer close(x.done)
		x.held, x.err = f.bring(ctx, now, missing)
	}()
}

// need is fetch where nothing goes on without a full backup: then why the last attempt has failed is an error.
func (f *Follower) need(ctx context.Context, why string) error {
	f.fetch(ctx, why)
	return f.failed
}

// without says why there is no full backup: the other store may be mistyped, or not mounted.
func (f *Follower) without(ctx context.Context, err error) error {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	_, _, merr := f.cfg.Catalog.Marker(ctx)
	switch {
	case errors.Is(merr, catalog.ErrNotFound):
		return fmt.Errorf("there is no cluster in %s (--standby-of): it is the --backup-store of the cluster that is to be followed: %w",
			f.cfg.Store, err)
	case errors.Is(merr, catalog.ErrInvalid) && errors.Is(merr, fs.ErrNotExist):
		return fmt.Errorf("the directory %s (--standby-of) doesn't exist; is the file system mounted? %w", f.cfg.Store, err)
	}
	return fmt.Errorf("find a full backup: %w", err)
}

// bring fetches the newest good full backup of the incarnation that serves, and reads it to the last page. It returns nil if there is
// none that is newer than now, or if changes are missing and there is none behind them.
func (f *Follower) bring(ctx context.Context, now held, missing bool) (*held, error) {
	plan, err := f.archive.Plan(ctx, changelog.Target{Latest: true})
	if err != nil {
		return nil, f.without(ctx, err)
	}
	if plan.Manifest == nil {
		return nil, fmt.Errorf("backup %s has no manifest, so it isn't known which changes follow on it: a standby needs a backup of "+
			"etcd-manager",
			plan.Base)
	}
	old := plan.Base == now.Base || plan.Manifest.Revision <= now.BaseRevision
	if plan.Incarnation == now.Incarnation && (old || missing && plan.Manifest.Revision <= now.Revision) {
		return nil, nil
	}
	h := &held{Store: f.cfg.Store, Number: now.Number + 1, Incarnation: plan.Incarnation, Base: plan.Base, Began: time.Now().UTC()}
	h.File = fmt.Sprintf("copy-%d.db", h.Number%1e9)
	path := filepath.Join(f.cfg.Dir, h.File)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	klog.Infof("backup %s of %s is fetched: revision %d, %d MiB", plan.Base, f.cfg.Store, plan.Manifest.Revision, plan.Manifest.Raw.Size>>20)
	progress := func(p backup.Progress) {
		f.set(func(r *catalog.StandbyReport) {
			r.Doing, r.Done, r.Total = "backup "+plan.Base+" is fetched", p.Done, p.Total
		})
	}
	_, err = backup.FetchFile(ctx, f.cfg.Catalog, plan.Base, path, backup.FileOptions{KeepFree: f.cfg.KeepFree, Progress: progress})
	if err != nil {
		return nil, err
	}
	f.set(func(r *catalog.StandbyReport) {
		r.Doing, r.Done, r.Total = "backup "+plan.Base+" is read to the last page", 0, 0
	})
	facts, err := database.Check(ctx, f.cfg.Executable, path, database.CheckOptions{SkipHash: true})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("backup %s: %w", plan.Base, err), os.Remove(path))
	}
	h.BaseRevision, h.Revision, h.BaseBytes, h.Until = facts.Revision, facts.Revision, facts.SizeBytes, plan.Manifest.Started
	return h, nil
}

// take makes what was fetched the copy, after it was compared with the one before.
func (f *Follower) take(ctx context.Context) error {
	x := f.full
	f.full = nil
	x.cancel()
	f.set(func(r *catalog.StandbyReport) { r.Doing, r.Done, r.Total = "", 0, 0 })
	if x.err != nil {
		f.pause = min(max(2*f.pause, firstPause), lastPause)
		f.again, f.failed = time.Now().Add(f.pause), x.err
		return x.err
	}
	f.failed = nil
	if x.held == nil { // a newer one comes within the backup interval; each look lists all backups, so they get rare
		f.pause = min(max(2*f.pause, f.patience()), max(lastPause, f.patience()))
		f.again = time.Now().Add(f.pause)
		if f.missing.IsZero() {
			return nil
		}
		f.failed = fmt.Errorf("the changes behind revision %d are missing in %s, and there is no full backup yet that leads beyond "+
			"them; one is taken at once "+
			"if the managers there keep changes and reach their store", f.held.Revision, f.cfg.Store)
		return f.failed
	}
	f.pause = 0
	if f.held != nil && f.held.Incarnation == x.held.Incarnation && f.missing.IsZero() {
		f.set(func(r *catalog.StandbyReport) { r.Doing = "the copy is compared with backup " + x.held.Base })
		c, err := f.compare(ctx, x.held)
		f.set(func(r *catalog.StandbyReport) { r.Doing = "" })
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			f.said.Warningf("compare", "the copy was not compared with backup %s: %v", x.held.Base, err)
			if x.held.Revision < f.held.Revision { // nothing that is here is given up for less
				f.again = time.Now().Add(lastPause)
				return sweep(f.cfg.Dir, f.held.File)
			}
		case c.Differs != "":
			klog.Errorf("the copy of %s DIFFERS: %s; what was made from backup %s takes its place", f.cfg.Store, c.Differs, x.held.Base)
		default:
			klog.Infof("the copy of %s is right: at revision %d it has HashKV %d, as backup %s with its "+
				"changes", f.cfg.Store, c.Revision, c.HashKV, c.Backup)
		}
		if x.held.Compared = f.held.Compared; err == nil {
			x.held.Compared = &c
		}
	}
	if err := x.held.store(f.cfg.Dir); err != nil {
		return err
	}
	f.held, f.missing, f.moved = x.held, time.Time{}, time.Now()
	f.show()
	return sweep(f.cfg.Dir, f.held.File)
}

// patience is how long to wait for a newer full backup to come.
func (f *Follower) patience() time.Duration {
	if !f.missing.IsZero() {
		return f.cfg.patience
	}
	return time.Minute
}

// compare brings both copies to one revision and compares what they hold.
func (f *Follower) compare(ctx context.Context, n *held) (Compared, error) {
	c := Compared{Backup: n.Base, At: time.Now().UTC(), Revision: max(n.Revision, f.held.Revision)}
	for _, h := range []*held{f.held, n} {
		for h.Revision < c.Revision {
			moved, _, err := f.follow(ctx, h, c.Revision)
			if err != nil {
				return c, err
			}
			if !moved {
				return c, fmt.Errorf("the changes between revision %d and %d are not to be had", h.Revision, c.Revision)
			}
		}
	}
	check := func(h *held, compact int64) (database.Facts, error) {
		o := database.CheckOptions{SkipHash: true, HashCompact: compact}
		return database.Check(ctx, f.cfg.Executable, filepath.Join(f.cfg.Dir, h.File), o)
	}
	fresh, err := check(n, 0)
	if err != nil {
		return c, err
	}
	old, err := check(f.held, fresh.Hash.CompactRevision)
	if err != nil {
		c.Differs = err.Error()
		return c, nil //nolint:nilerr // that the old copy can't be read is the outcome
	}
	c.HashKV = fresh.Hash.Hash
	switch {
	case old.Hash.CompactRevision != fresh.Hash.CompactRevision:
		return c, fmt.Errorf("the copy is compacted up to revision %d, and the backup only up to "+
			"%d", old.Hash.CompactRevision, fresh.Hash.CompactRevision)
	case old.Hash != fresh.Hash:
		c.Differs = fmt.Sprintf("at revision %d the copy has HashKV %d, and backup %s with its changes "+
			"%d", c.Revision, old.Hash.Hash, n.Base, fresh.Hash.Hash)
	case old.Leased.Digest != fresh.Leased.Digest:
		klog.Warningf("the copy has the same keys as backup %s with its changes, but other leases (%d and %d with keys): ids or TTLs differ",
			n.Base, old.Leased.Attached, fresh.Leased.Attached)
	}
	return c, nil
}

// room fails if the disk has no room for changes of so many stored bytes, which may be many times as many when they are unpacked.
func (f *Follower) room(stored int64) error {
	var s syscall.Statfs_t
	if err := syscall.Statfs(f.cfg.Dir, &s); err != nil {
		return nil //nolint:nilerr // what can't be found out stops nothing; a full disk is an error of the write
	}
	free := int64(s.Bavail) * int64(s.Bsize) //nolint:unconvert // the types differ between systems
	if need := 4*stored + f.cfg.KeepFree; free < need {
		return fmt.Errorf("%w: the disk of %s has %d MiB free, and the next changes need up to %d MiB, of which %d must stay free: "+
			"free some disk space or use a larger volume",
			syscall.ENOSPC, f.cfg.Dir, free>>20, need>>20, f.cfg.KeepFree>>20)
	}
	return nil
}

// collect takes the first of a listing.
func collect(seq iter.Seq2[catalog.Segment, error]) ([]catalog.Segment, error) {
	var list []catalog.Segment
	for s, err := range seq {
		if err != nil {
			return nil, err
		}
		if list = append(list, s); len(list) == roundSegments {
			break
		}
	}
	return list, nil
}
