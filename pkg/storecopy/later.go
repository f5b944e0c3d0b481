package storecopy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

const (
	// firstLater and lastLater bound how long a backup waits that could not be copied: each attempt reads it from its beginning.
	firstLater = 2 * time.Minute
	lastLater  = time.Hour
	// maxVain is how many backups in a row may fail in one pass before that counts as a failure of the store, and maxLater how many wait.
	maxVain  = 2
	maxLater = 512
)

// refusal is a backup that could not be copied though both stores answer, for example because the copy's store takes no object as large.
type refusal struct {
	backup catalog.Backup
	fails  int
	next   time.Time
	why    string
}

// refusedError says that the copy's store doesn't take backups, though it takes small objects. No more backups are tried in this pass; the
// changes go on.
type refusedError struct{ error }

func (e refusedError) Unwrap() error { return e.error }

func refused(err error) bool {
	var r refusedError
	return errors.As(err, &r)
}

// refusals are the backups that wait for an attempt of their own, by name.
type refusals map[string]*refusal

// postpone has a backup that could not be copied wait for an attempt of its own, so that the others go on. It returns the error if that
// is the store's rather than the backup's.
func (c *Copier) postpone(ctx context.Context, b catalog.Backup, err error) error {
	r := c.later[b.Name]
	if c.vain++; ctx.Err() != nil {
		return err
	}
	if c.vain > maxVain || r == nil && len(c.later) >= maxLater {
		if r != nil { // the next pass tries another one
			r.next = c.cfg.Now().Add(min(firstLater<<min(r.fails, 10), lastLater))
		}
		return refusedError{err}
	}
	if _, _, first := c.cfg.From.Copies(ctx); first != nil && !errors.Is(first, catalog.ErrNotFound) && !unreadable(first) {
		return err
	}
	if r == nil {
		r = &refusal{}
		c.later[b.Name] = r
	}
	r.backup, r.why = b, cluster.Shown(err.Error(), 300)
	r.next = c.cfg.Now().Add(min(firstLater<<min(r.fails, 10), lastLater))
	r.fails++
	if c.save(ctx) != nil { // the copy's store doesn't take a small object either
		delete(c.later, b.Name)
		return err
	}
	c.said.Warningf("copy "+b.Name, "copy of the store in %s: backup %s can't be copied, the others are; it is tried again at %s: %v",
		c.cfg.ToName, b.Name, r.next.UTC().Format(time.RFC3339), err)
	return nil
}

// waitsFor tells whether the time of a backup's next attempt is still to come.
func (l refusals) waitsFor(name string, now time.Time) bool {
	r := l[name]
	return r != nil && waits(now, r.next, lastLater)
}

// tryLater tries the backups whose time has come, the newest first. A look at what is new doesn't see them all.
func (c *Copier) tryLater(ctx context.Context) error {
	if c.inherited {
		c.inherited = false
		c.later.inherit(ctx, c.cfg.From, c.bad, c.cfg.Now())
	}
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(c.later))) {
		if c.later.waitsFor(name, c.cfg.Now()) {
			continue
		}
		if err := c.claim(ctx); err != nil {
			return err
		}
		if err := c.copyBackup(ctx, c.later[name].backup); err != nil {
			return err
		}
	}
	return nil
}

// inherit has this leadership try what an earlier one could not copy: it would else wait for the next whole comparison, as it does if the
// first store can't be listed now.
func (l refusals) inherit(ctx context.Context, first *catalog.Catalog, bad map[string]string, now time.Time) {
	names := map[string]bool{}
	for name := range bad {
		if catalog.ValidBackupName(name) == nil {
			names[name] = true
		}
	}
	if len(names) == 0 {
		return
	}
	list, err := first.BackupsOf(ctx, names)
	if err != nil {
		return
	}
	for _, b := range list.Backups {
		if why := bad[b.Name]; why != "" && (b.Sound() || b.Pinned) && l[b.Name] == nil && len(l) < maxLater {
			l[b.Name] = &refusal{backup: b, next: now.Add(firstLater), why: why}
			delete(bad, b.Name)
		}
	}
}

// pause is how long nothing is to be done, look at most.
func (l refusals) pause(look time.Duration, now time.Time) time.Duration {
	for _, r := range l {
		look = min(look, max(r.next.Sub(now), firstRetry))
	}
	return look
}

// and is all that can't be copied, and why.
func (l refusals) and(bad map[string]string) map[string]string {
	all := maps.Clone(bad)
	for name, r := range l {
		all[name] = r.why
	}
	return all
}

// lacks is an error as long as something isn't copied: it is damaged in the first store or may not be read there, or one of both stores
// fails with it.
func (l refusals) lacks(bad map[string]string) error {
	if len(bad) > 0 {
		name := slices.Min(slices.Collect(maps.Keys(bad)))
		return fmt.Errorf("%s in the first store can't be copied: %s: %s", cluster.Count(len(bad), "object"), name, bad[name])
	}
	if len(l) > 0 {
		name := slices.Max(slices.Collect(maps.Keys(l)))
		r := l[name]
		return fmt.Errorf("%s can't be copied, all others are: %s: %s; next attempt at %s", cluster.Count(len(l), "backup"), name, r.why,
			r.next.UTC().Format(time.RFC3339))
	}
	return nil
}
