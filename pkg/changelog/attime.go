package changelog

import (
	"context"
	"errors"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// atTime sets the revision to the last one at or before the target's time.
func (a *Archive) atTime(ctx context.Context, p *Plan, t Target) error {
	if p.ReachTime.Before(t.Time) {
		until, err := a.unchanged(ctx, p, t.Time)
		if err != nil {
			return err
		}
		if until.IsZero() {
			return a.behind(ctx, p, t)
		}
		p.Revision, p.ReachTime = p.Reach, until
		return nil
	}
	first, last := crossings(p.Chain.Segments, t.Time)
	if first < 0 {
		p.Revision = p.Chain.Base
		return nil
	}
	var err error
	if p.Revision, err = a.crossing(ctx, p, t, first); err != nil || first == last {
		return err
	}
	other, err := a.crossing(ctx, p, t, last)
	if err == nil && other != p.Revision {
		err = unreachable(t, "the clocks of the managers that kept the changes did not agree: at that time it was revision %d by one clock and revision %d by another; "+
			"history shows both; restore the right one: --to-revision=%d or --to-revision=%d", p.Revision, other, p.Revision, other)
	}
	return err
}

// crossings are the first and the last segment in which the times of a chain pass a moment; -1 if
// they don't. They are the same one, unless the times go back from one segment to the next, as they
// do in archives of before that was prevented.
func crossings(segments []catalog.Segment, at time.Time) (first, last int) {
	first, last = -1, -1
	for i, s := range segments {
		if s.Ended.Before(at) || i > 0 && !segments[i-1].Ended.Before(at) {
			continue
		}
		if last = i; first < 0 {
			first = i
		}
	}
	return first, last
}

// crossing is the last revision at or before the target's time, as one segment of the chain and what lies before it tell.
func (a *Archive) crossing(ctx context.Context, p *Plan, t Target, i int) (int64, error) {
	s, revision := p.Chain.Segments[i], p.Chain.Base
	if i > 0 {
		revision = max(revision, p.Chain.Segments[i-1].Last)
	}
	c, err := a.read(ctx, s)
	if err != nil {
		return 0, err
	}
	there, ahead := i > 0, false // when the base's own revision was made: by the target's time, or after it
	err = c.Marks(ctx, a.Catalog.Opener(), func(m *protosv1.Mark) error {
		rev := m.GetRevision()
		if at, _ := markTimes(m); !at.After(t.Time) {
			revision = max(revision, rev)
			there = there || rev >= p.Chain.Base
		} else if !there && (rev < p.Chain.Base || rev == p.Chain.Base &&
			rev >= s.First) { // one of before the segment says only that it lasted
			ahead = true
		}
		return nil
	})
	if err == nil && ahead {
		err = unreachable(t, "backup %s was taken after it, by the clock of the manager that kept the changes", p.Base)
	}
	return revision, err
}

// unchanged tells until when the newest revision of a chain is known to have stayed the newest by a
// backup of the same life from at or after a time, or the zero time. While nothing changes no marks
// are stored, and what ends a life, a restore, begins with a backup.
func (a *Archive) unchanged(ctx context.Context, p *Plan, at time.Time) (time.Time, error) {
	list, err := a.Catalog.BackupsFrom(ctx, at, candidatesAsked, withManifest)
	if err != nil {
		return time.Time{}, err
	}
	for _, b := range list {
		m, err := a.Catalog.Manifest(ctx, b.Name)
		if unreadable(err) || errors.Is(err, catalog.ErrNotFound) {
			continue
		}
		if err != nil {
			return time.Time{}, err
		}
		if m.RevisionAt.Before(at) {
			continue
		}
		id, err := lifeAt(ctx, a.Catalog, uint64(m.ClusterID), m.Started)
		if err != nil {
			return time.Time{}, err
		}
		if id != p.Incarnation {
			continue
		}
		if m.Revision == p.Reach {
			return m.RevisionAt, nil
		}
		break
	}
	return time.Time{}, nil
}
