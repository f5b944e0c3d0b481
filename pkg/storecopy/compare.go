package storecopy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/prune"
	"github.com/etcd-manager/etcd-manager/pkg/retention"
)

const (
	// windowHeld is how many backups of the first store are held at a time, lastOnes how many are looked at beside them.
	windowHeld, lastOnes = 40_000, 4
	// noteEvery is how many segments are copied before the copy's record says so.
	noteEvery = 5000
)

// look compares what is new: backups since the last whole comparison, and the changes of the incarnation that serves. It takes about ten
// requests of each store, however much they have.
func (c *Copier) look(ctx context.Context) error {
	c.looked = c.cfg.Now()
	drops := c.dropped()
	if err := c.claim(ctx); err != nil {
		return err
	}
	if err := c.noteHere(ctx); err != nil {
		return err
	}
	if err := c.cfg.To.CopyControl(ctx, c.cfg.From, c.operations, c.claim); err != nil {
		return err
	}
	since := c.record.Compared
	if since.IsZero() {
		since = c.begun
	}
	// From the beginning of a day, since the first backup of a day, and of an hour, are those that stay.
	since = since.Add(-overlap).UTC().Truncate(24 * time.Hour)
	list, err := c.cfg.From.BackupsSince(ctx, since)
	if err != nil {
		return err
	}
	have, err := c.cfg.To.BackupsSince(ctx, since)
	if err != nil {
		return err
	}
	// A store that takes no more backups may still take the changes.
	vain := c.copyBackups(ctx, list, have, nil)
	if vain != nil && !refused(vain) {
		return vain
	}
	if err := c.tryLater(ctx); refused(err) {
		vain = cmp.Or(vain, err)
	} else if err != nil {
		return err
	}
	if vain == nil {
		c.setMissing(len(c.later))
	}
	if err := lookAtChanges(ctx, c); err != nil {
		return err
	}
	c.settle(drops)
	if err := c.save(ctx); err != nil {
		return err
	}
	return vain
}

// lookAtChanges copies the changes of the incarnation that serves, and of those that are new.
func lookAtChanges(ctx context.Context, c *Copier) error {
	ids, err := c.cfg.From.IncarnationNames(ctx)
	if err != nil {
		return err
	}
	serving, err := c.cfg.From.Serving(ctx)
	if err != nil && !errors.Is(err, catalog.ErrNotFound) && !unreadable(err) && !catalog.DeniedToRead(err) {
		return err
	}
	for _, id := range ids {
		name, known := c.record.Through[id]
		after, err := catalog.ParseSegmentName(name)
		if known && err != nil {
			return err
		}
		if known && id != serving.Incarnation && serving.Incarnation != "" {
			continue
		}
		if err := c.copyChanges(ctx, id, after, !known); err != nil {
			return err
		}
	}
	for id := range c.record.Through {
		if !slices.Contains(ids, id) {
			delete(c.record.Through, id) // all its changes are gone
		}
	}
	return nil
}

func (c *Copier) dropped() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.drops
}

// settle notes that the copy has everything, unless changes were dropped since then.
func (c *Copier) settle(drops int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.behind = c.drops != drops
	c.missed = c.behind
}

// compareAll compares all of both stores, in pages, and copies what is lacking: the newest backup first, then the changes, then the rest
// from the newest to the oldest. What an earlier attempt has copied isn't copied again.
func (c *Copier) compareAll(ctx context.Context) error {
	begun := c.cfg.Now().UTC()
	was := maps.Clone(c.bad)
	clear(c.bad)
	done := false
	defer func() {
		if !done { // what wasn't looked at again stays bad
			for name, why := range was {
				addBad(c.bad, name, why)
			}
		}
	}()
	clear(c.copied)
	vain := c.newest(ctx)
	if vain != nil && !refused(vain) {
		return vain
	}
	ids, err := c.cfg.From.IncarnationNames(ctx)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := c.copyChanges(ctx, id, catalog.SegmentName{}, true); err != nil {
			return err
		}
	}
	if vain != nil {
		return vain
	}
	for after := ""; ; {
		w, err := c.cfg.From.BackupWindow(ctx, after, windowHeld, begun, lastOnes)
		if err != nil {
			return err
		}
		if err := c.copyWindow(ctx, w); err != nil {
			return err
		}
		if w.Whole || w.Until == "" {
			break
		}
		after = w.Until
	}
	done = true
	c.record.Compared = begun
	return c.save(ctx)
}

// newest copies the newest good backup, by which the copy is of use as early as possible, with the small objects.
func (c *Copier) newest(ctx context.Context) error {
	if err := c.cfg.To.CopyControl(ctx, c.cfg.From, c.operations, c.claim); err != nil {
		return err
	}
	list, err := c.cfg.From.RecentBackups(ctx, c.cfg.Now())
	if err != nil {
		return err
	}
	b, ok := list.NewestSound(c.cfg.Now())
	if !ok {
		return nil
	}
	have, err := c.cfg.To.BackupsOf(ctx, map[string]bool{b.Name: true})
	if err != nil {
		return err
	}
	return c.copyBackups(ctx, catalog.BackupList{Backups: []catalog.Backup{b}}, have, nil)
}

func (c *Copier) copyWindow(ctx context.Context, w catalog.Window) error {
	names := make(map[string]bool, len(w.Backups))
	for _, b := range w.Backups {
		names[b.Name] = true
	}
	have, err := c.cfg.To.BackupsOf(ctx, names)
	if err != nil {
		return err
	}
	return c.copyBackups(ctx, w.BackupList, have, &w)
}

// copyBackups copies those of a list that the copy's retention would keep and that aren't there, the newest first. have is what the copy
// has of them. window, if not nil, says that this is a part of a whole comparison, during which new backups aren't left waiting.
func (c *Copier) copyBackups(ctx context.Context, list, have catalog.BackupList, window *catalog.Window) error {
	there := make(map[string]catalog.Backup, len(have.Backups))
	for _, b := range have.Backups {
		there[b.Name] = b
		c.noteBackup(b)
	}
	list.Leftovers = nil
	kept := map[int]bool{}
	for _, d := range retention.Decide(prune.Now(list, c.cfg.Now()), prune.Stored(list), c.cfg.Retention.Backups) {
		kept[d.Index] = d.Keep
	}
	var lacking []catalog.Backup
	for i := len(list.Backups) - 1; i >= 0; i-- {
		b := list.Backups[i]
		if copied, ok := there[b.Name]; ok {
			if err := c.ignoreGone(c.cfg.To.CopyNotes(ctx, c.cfg.From, b, copied), b.Name); err != nil {
				return err
			}
		} else if kept[i] && (b.Sound() || b.Pinned) && c.bad[b.Name] == "" && !c.later.waitsFor(b.Name, c.cfg.Now()) {
			lacking = append(lacking, b)
		}
	}
	for i, b := range lacking {
		c.setMissing(len(lacking) - i)
		if window != nil && (c.copied[b.Name] || !window.Has(b.Name)) {
			continue
		}
		// Somebody may have put the copy into use meanwhile: one backup can take long.
		if err := c.claim(ctx); err != nil {
			return err
		}
		if err := c.copyBackup(ctx, b); err != nil {
			return err
		}
		if window != nil && c.lookDue() {
			if err := c.look(ctx); err != nil {
				return err
			}
		}
	}
	c.setMissing(len(c.later))
	return nil
}

// lookDue tells whether there is something new, or the last look was long ago.
func (c *Copier) lookDue() bool {
	select {
	case <-c.poked:
		return true
	default:
		return due(c.cfg.Now(), c.looked, c.cfg.Look)
	}
}

func (c *Copier) copyBackup(ctx context.Context, b catalog.Backup) error {
	var n int64
	err := c.cfg.To.CopyBackup(ctx, c.cfg.From, b, func(r io.Reader) io.Reader { return &slow{ctx, r, c.limit, &n} })
	if err == nil {
		err = c.cfg.To.CopyNotes(ctx, c.cfg.From, b, catalog.Backup{})
	}
	if err == nil {
		c.noteBackup(b)
		c.count(1, n)
		c.copied[b.Name] = true
		delete(c.later, b.Name)
		c.vain = 0
		return nil
	}
	if err = c.ignoreGone(err, b.Name); err == nil {
		delete(c.later, b.Name)
		return nil
	}
	return c.postpone(ctx, b, err)
}

// ignoreGone passes over what retention has removed from the first store meanwhile, and over what is damaged there or may not be read,
// which is remembered: one such object must not keep all others from the copy.
func (c *Copier) ignoreGone(err error, name string) error {
	switch {
	case err == nil, errors.Is(err, catalog.ErrNotFound):
		return nil
	case errors.Is(err, cluster.ErrCorrupt), errors.Is(err, cluster.ErrFuture), catalog.DeniedToRead(err):
		addBad(c.bad, name, cluster.Shown(err.Error(), 300))
		return nil
	}
	return fmt.Errorf("copy %s: %w", name, err)
}

// addBad notes a bad object, within bounds.
func addBad(bad map[string]string, name, why string) {
	if _, known := bad[name]; known || len(bad) < heldSegments {
		bad[name] = why
	}
}

func (c *Copier) noteBackup(b catalog.Backup) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at := b.TakenBy(c.cfg.Now()); at.After(c.status.NewestBackup) {
		c.status.NewestBackup = at.UTC()
	}
}

func (c *Copier) setMissing(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Missing = n
}

// copyChanges copies the segments of an incarnation after a name that the copy doesn't have and would keep, and its record if it is
// to be looked at. Both listings are in the order of the names, so they are read side by side, in pages.
func (c *Copier) copyChanges(ctx context.Context, id catalog.Incarnation, after catalog.SegmentName, record bool) error {
	if record {
		if err := c.ignoreGone(c.cfg.To.CopyIncarnation(ctx, c.cfg.From, id), "incarnation "+string(id)); err != nil {
			return err
		}
	}
	have, stop := iter.Pull2(c.cfg.To.SegmentsAfter(ctx, id, after))
	defer stop()
	copied, more := catalog.Segment{}, true
	oldest := c.cfg.oldestChange()
	n := 0
	for s, err := range c.cfg.From.SegmentsAfter(ctx, id, after) {
		if err != nil {
			return err
		}
		for more && (copied.Incarnation == "" || strings.Compare(copied.String(), s.String()) < 0) {
			if copied, err, more = have(); err != nil {
				return err
			}
		}
		if !(more && copied.SegmentName == s.SegmentName) && !s.KnownAt().Before(oldest) && c.bad[s.Key()] == "" {
			if err := c.copySegment(ctx, s); err != nil {
				return err
			}
			if n++; n%noteEvery == 0 {
				if err := c.claim(ctx); err != nil {
					return err
				}
			}
		}
		c.through(id, s)
	}
	return nil
}

func (c *Copier) copySegment(ctx context.Context, s catalog.Segment) error {
	var n int64
	err := c.cfg.To.CopySegment(ctx, c.cfg.From, s, func(r io.Reader) io.Reader { return &slow{ctx, r, c.limit, &n} })
	if err == nil {
		c.count(1, n)
		return nil
	}
	return c.ignoreGone(err, s.Key())
}

// through notes that everything up to a segment was looked at.
func (c *Copier) through(id catalog.Incarnation, s catalog.Segment) {
	if c.record.Through == nil {
		c.record.Through = map[catalog.Incarnation]string{}
	}
	c.record.Through[id] = max(c.record.Through[id], s.String())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.has(s.SegmentName)
}

// oldestChange is from when on the copy keeps changes.
func (c *Config) oldestChange() time.Time {
	keep := c.Retention.Changes
	if keep == 0 {
		keep = c.Retention.Backups.Hourly
	}
	return c.Now().Add(-keep)
}
