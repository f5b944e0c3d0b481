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

// claim makes sure that the place is a copy of this store, that nobody uses it, and that no later leadership copies. It writes the record
// if that is another one's.
func (c *Copier) claim(ctx context.Context) error {
	err := c.tryClaim(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		c.open, c.status.Compared = true, c.record.Compared
		c.queue.poke()
	case errors.Is(err, ErrNotACopy), errors.Is(err, ErrInUse), errors.Is(err, ErrTaken), errors.Is(err, ErrGone):
		c.open = false
	}
	return err
}

func (c *Copier) tryClaim(ctx context.Context) error {
	r, version, err := c.cfg.To.CopyRecord(ctx)
	anew := errors.Is(err, catalog.ErrNotFound)
	if anew {
		r, err = c.begin(ctx)
	}
	if err == nil {
		err = c.refused(r, version)
	}
	if err == nil && c.version == "" {
		err = c.otherStore(ctx, r, version)
	}
	if err != nil {
		return err
	}
	if r.Term == c.cfg.Term && r.Node == c.cfg.Node && !anew {
		if c.version == "" {
			c.take(r)
		}
		c.version = version // what is known here is newer than what is stored
		return nil
	}
	first := c.version == ""
	r.Term, r.Node = c.cfg.Term, c.cfg.Node
	if err := c.write(ctx, r, version); err != nil {
		return err
	}
	if first {
		c.take(r)
	}
	return nil
}

// take goes on with what an earlier leadership has recorded.
func (c *Copier) take(r catalog.CopyRecord) {
	c.record = r
	for name, why := range r.Bad {
		addBad(c.bad, name, why)
	}
	c.inherited = len(r.Bad) > 0
}

// otherStore is an error if the place is the copy of another store, which has the same URL, and was written by its leader a short while
// ago. A first store that was lost and made anew has no name yet, but the same incarnation of the cluster: it takes its copy's name for it.
// It may never have an incarnation, as without a change log: then it takes the copy when nobody has written to it for a while.
func (c *Copier) otherStore(ctx context.Context, r catalog.CopyRecord, version string) error {
	own, _, err := c.cfg.From.Copies(ctx)
	if err != nil && !errors.Is(err, catalog.ErrNotFound) && !unreadable(err) {
		return fmt.Errorf("nothing is copied to %s yet: whether it is the copy of this store isn't known: %w", c.cfg.ToName, err)
	}
	lately := c.seen.lately(c.cfg.Now(), r, version, stillCopied)
	if own.Store == "" && r.Store != "" && len(r.Through) > 0 {
		ids, err := c.cfg.From.IncarnationNames(ctx)
		if err != nil {
			return err
		}
		if len(ids) == 0 && lately {
			return fmt.Errorf("nothing is copied to %s yet: it isn't known whether it is the copy of this store before the first changes are in "+
				"%s, or nobody has written to the copy for %s", c.cfg.ToName, c.cfg.FromName, stillCopied)
		}
		if slices.ContainsFunc(ids, func(id catalog.Incarnation) bool { _, known := r.Through[id]; return known }) {
			own.Store = r.Store
		}
	} else if own.Store == "" {
		own.Store = r.Store
	}
	if r.Store != "" && r.Store != own.Store && lately {
		return fmt.Errorf("nothing is copied to %s: %w: it is the copy of another store, which has the same URL %s, and node %s wrote to it at "+
			"%s. Give --backup-store-copy a place of its own; if the first store was made anew, wait for %s", c.cfg.ToName, ErrNotACopy, r.Of,
			r.Node, r.At.UTC().Format(time.RFC3339), stillCopied)
	}
	c.store = own.Store
	return nil
}

// sighting is when a version of the copy's record was seen first.
type sighting struct {
	version string
	at      time.Time
}

// lately tells whether the copy's record was written within a span. A date in the future is of a clock that is or was ahead: then
// the span begins when this version of the record was first seen here.
func (s *sighting) lately(now time.Time, r catalog.CopyRecord, version string, span time.Duration) bool {
	if s.version != version || now.Before(s.at) {
		s.version, s.at = version, now
	}
	at := r.At
	if at.After(now) {
		at = s.at
	}
	return now.Sub(at) < span
}

// unreadable tells an object that is there and can't be used: damaged, or of a newer version.
func unreadable(err error) bool {
	return errors.Is(err, cluster.ErrCorrupt) || errors.Is(err, cluster.ErrFuture)
}

// noteHere has the first store know of this copy, also if it was made anew meanwhile.
func (c *Copier) noteHere(ctx context.Context) error {
	store, err := c.cfg.From.NoteCopy(ctx, c.cfg.ToName, c.store)
	if unreadable(err) || catalog.DeniedToRead(err) {
		return nil // it says less then, and stops nothing
	}
	if err != nil {
		return err
	}
	c.store, c.record.Store = store, store
	return nil
}

// begin is the record of a new copy, in an empty place.
func (c *Copier) begin(ctx context.Context) (catalog.CopyRecord, error) {
	empty, err := c.cfg.To.Empty(ctx)
	if err != nil {
		return catalog.CopyRecord{}, err
	}
	if !empty {
		return catalog.CopyRecord{}, fmt.Errorf("nothing is copied to %s: %w: other objects are there, and no control/copy.json. Give "+
			"--backup-store-copy an empty place", c.cfg.ToName, ErrNotACopy)
	}
	own, _, err := c.cfg.From.Copies(ctx)
	if err != nil && !errors.Is(err, catalog.ErrNotFound) && !errors.Is(err, cluster.ErrCorrupt) {
		return catalog.CopyRecord{}, err
	}
	if at, known := own.Begun[c.cfg.ToName]; known || c.version != "" {
		if at.IsZero() {
			at = c.record.Began
		}
		return catalog.CopyRecord{}, fmt.Errorf("nothing is copied to %s: %w (it began at %s): is the file system mounted? If it was removed "+
			"on purpose, give another place, or delete control/copies.json in %s and restart the leading manager", c.cfg.ToName, ErrGone,
			at.UTC().Format(time.RFC3339), c.cfg.FromName)
	}
	return catalog.CopyRecord{Of: c.cfg.FromName, ClusterName: c.cfg.ClusterName, Began: c.cfg.Now().UTC()}, nil
}

// refused says why nothing may be copied to the place of a record.
func (c *Copier) refused(r catalog.CopyRecord, version string) error {
	switch {
	case !r.InUse.IsZero():
		return fmt.Errorf("nothing is copied to %s: %w at %s. Remove --backup-store-copy, or give it an empty place", c.cfg.ToName, ErrInUse,
			r.InUse.UTC().Format(time.RFC3339))
	case r.Of != c.cfg.FromName || r.ClusterName != c.cfg.ClusterName:
		return fmt.Errorf("nothing is copied to %s: %w: it is a copy of %s, cluster %s. Give --backup-store-copy an empty place; if both are "+
			"the same store under two names, write the new one into \"of\" of control/copy.json", c.cfg.ToName, ErrNotACopy, r.Of, r.ClusterName)
	case r.Term > c.cfg.Term && c.seen.lately(c.cfg.Now(), r, version, takenOver):
		return fmt.Errorf("nothing is copied to %s: %w (term %d of node %s, this one has %d)", c.cfg.ToName, ErrTaken, r.Term, r.Node,
			c.cfg.Term)
	}
	return nil
}

// save writes the record as it is known here. Right before, it makes sure that the copy is still this leadership's: a store may ignore
// conditions.
func (c *Copier) save(ctx context.Context) error {
	if err := c.claim(ctx); err != nil {
		return err
	}
	c.record.Bad = nil
	bad := c.later.and(c.bad)
	for _, name := range slices.Sorted(maps.Keys(bad)) {
		if c.record.Bad == nil {
			c.record.Bad = map[string]string{}
		}
		if len(c.record.Bad) < recordedBad {
			c.record.Bad[name] = bad[name]
		}
	}
	return c.write(ctx, c.record, c.version)
}

// write replaces the record by compare-and-swap.
func (c *Copier) write(ctx context.Context, r catalog.CopyRecord, version string) error {
	version, err := c.cfg.To.PutCopyRecord(ctx, r, version)
	if err != nil {
		return err
	}
	c.record, c.version = r, version
	return nil
}
