package changelog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Coverage says of which time any second can be restored, by what is listed. That every segment is sound is only known when a backup is
// verified.
type Coverage struct {
	Incarnation catalog.Incarnation
	// From and Until are the bounds; both are zero if there is nothing.
	From, Until time.Time
	// KeptSince is the oldest time of which there are changes, which may be before From: that far back nothing was looked at.
	KeptSince time.Time
	Gaps      []Gap
}

// Gap is a time in which no second can be restored.
type Gap struct {
	// Until is zero if nothing behind the gap can be restored yet, since there is no backup behind it.
	From, Until time.Time
	// First and Last are the revisions that are lacking; Last is below First if none is.
	First, Last int64
}

const (
	// maxGaps bounds how many gaps are looked for; coverReads how many manifests are read for a backup that will do.
	maxGaps    = 20
	coverReads = 4
)

// ErrTooMany says that there are more segments than the caller wants to list.
var ErrTooMany = errors.New("too many segments")

// Coverage looks at what was kept of an incarnation since a moment. The list has the backups around and after that moment. It lists at most
// so many segments; if there are more it returns ErrTooMany. It is nil if there is no backup to begin with.
func (a *Archive) Coverage(ctx context.Context, id catalog.Incarnation, list []catalog.Backup, since time.Time,
	most int) (*Coverage, error) {
	r, err := a.Catalog.Incarnation(ctx, id)
	if err != nil && !errors.Is(err, catalog.ErrNotFound) && !unreadable(err) {
		return nil, err
	}
	f := baseFinder{ctx: ctx, catalog: a.Catalog, known: map[string]*catalog.Manifest{}}
	first := 0
	for _, b := range list {
		if !b.HasManifest || !b.Sound() || b.Time.IsZero() || err == nil && !r.Holds(b.At()) {
			continue
		}
		if f.list = append(f.list, b); !b.At().After(since) {
			first = len(f.list) - 1
		}
	}
	at, base, ok, err := f.find(first, time.Time{}, r.Revision)
	if err != nil || !ok {
		return nil, err
	}
	var segments []catalog.Segment
	for s, err := range a.Catalog.Segments(ctx, id, base) {
		if err != nil {
			return nil, err
		}
		if segments = append(segments, s); len(segments) > most {
			return nil, ErrTooMany
		}
	}
	c, err := cover(segments, base, at, func(after time.Time, revision int64) (time.Time, bool, error) {
		at, _, ok, err := f.find(0, after, revision)
		return at, ok, err
	})
	if err != nil {
		return nil, err
	}
	c.Incarnation, c.KeptSince = id, c.From
	for s, err := range a.Catalog.Segments(ctx, id, 0) {
		if err != nil {
			return nil, err
		}
		if t := s.KnownAt(); t.Before(c.KeptSince) {
			c.KeptSince = t
		}
		break
	}
	return c, nil
}

// baseFinder finds backups that a replay can begin with.
type baseFinder struct {
	ctx     context.Context
	catalog *catalog.Catalog
	list    []catalog.Backup
	known   map[string]*catalog.Manifest
}

// find returns when the first backup was begun, from an index on, that is not before a moment and has a revision, and which it has.
func (f *baseFinder) find(from int, after time.Time, revision int64) (at time.Time, has int64, ok bool, err error) {
	reads := 0
	for _, b := range f.list[min(from, len(f.list)):] {
		if b.At().Before(after.Add(-time.Second)) { // names tell whole seconds
			continue
		}
		m, seen := f.known[b.Name]
		if !seen {
			if reads++; reads > coverReads {
				break
			}
			if m, err = f.catalog.Manifest(f.ctx, b.Name); err != nil && !errors.Is(err, catalog.ErrNotFound) && !unusable(err) {
				return at, 0, false, fmt.Errorf("look for what can be restored: %w", err)
			}
			f.known[b.Name] = m
		}
		if m != nil && m.Revision >= revision {
			return b.At(), m.Revision, true, nil
		}
	}
	return at, 0, false, nil
}

// unusable tells a manifest that can't be read here: it is damaged, of a newer version, or sealed.
func unusable(err error) bool {
	return unreadable(err) || errors.Is(err, cluster.ErrPermanent)
}

// cover finds the gaps in segments of one incarnation, in the order of the listing, behind a backup that has a revision and was begun at a
// moment. find returns when the first backup was begun that is not before a moment and has a revision.
func cover(segments []catalog.Segment, base int64, at time.Time,
	find func(after time.Time, revision int64) (time.Time, bool, error)) (*Coverage, error) {
	c := &Coverage{From: at, Until: at}
	chain := Link(segments, base)
	for {
		reach, until := chain.Reach()
		if until.After(c.Until) {
			c.Until = until
		}
		i := slices.IndexFunc(segments, func(s catalog.Segment) bool {
			return s.Begins() && s.First > reach && !slices.ContainsFunc(chain.Segments, func(x catalog.Segment) bool {
				return x.SegmentName == s.SegmentName
			})
		})
		if i < 0 || len(c.Gaps) == maxGaps {
			return c, nil
		}
		next := segments[i]
		g := Gap{From: c.Until, First: reach + 1, Last: next.First - 1}
		after, ok, err := find(c.Until, next.First-1)
		if err != nil {
			return nil, err
		}
		if !ok {
			c.Gaps = append(c.Gaps, g)
			return c, nil
		}
		g.Until = after
		if after.After(g.From) {
			c.Gaps = append(c.Gaps, g)
		}
		c.Until = after
		segments = segments[i:]
		chain = Link(segments, next.First-1)
	}
}
