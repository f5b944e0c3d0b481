package prune

import (
	"context"
	"slices"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/retention"
)

// onlyWays looks at the backups that the policy gives up although changes behind them are kept: one
// that stands in an unbroken chain may go, one that is the only way to what follows stays, and why
// is noted.
func (s *survey) onlyWays(ctx context.Context) error {
	if !slices.ContainsFunc(s.logs, func(l *changeLog) bool { return l.changes.Live }) {
		return nil
	}
	var previous []catalog.Backup // the last ones that stay, up to here
	stays := func(b catalog.Backup) {
		if len(previous) >= lookBack {
			previous = slices.Delete(previous, 0, len(previous)-lookBack+1)
		}
		previous = append(previous, b)
	}
	all := s.list.Backups
	for i := 0; i < len(all); i++ {
		b := all[i]
		if s.keeps[i] {
			stays(b)
			continue
		}
		if !b.HasManifest || retention.AnchorOf(s.cutoff(), []retention.ChangeBase{{Name: b.Name, Time: b.Time}}) != nil {
			continue // nothing that is kept begins at it
		}
		from := i
		for i+1 < len(all) && !s.keeps[i+1] {
			i++
		}
		if err := s.onlyWay(ctx, previous, from, i+1); err != nil {
			return err
		}
		for j := from; j <= i; j++ {
			if s.why[j] != "" {
				stays(all[j])
			}
		}
	}
	return nil
}

// onlyWay looks at backups that stand between two that stay.
func (s *survey) onlyWay(ctx context.Context, previous []catalog.Backup, begin, end int) error {
	bases, err := s.usable(ctx, begin, end)
	if err != nil || len(bases) == 0 {
		return err
	}
	if s.chains >= maxChains {
		for _, b := range bases {
			s.why[b.at] = "decided in a later run: changes may begin at it"
		}
		s.plan.More = true
		return nil
	}
	earlier := map[catalog.Incarnation]*retention.ChangeBase{}
	for _, b := range bases {
		if _, ok := earlier[b.cluster]; !ok {
			if earlier[b.cluster], err = s.before(ctx, previous, b.cluster); err != nil {
				return err
			}
		}
	}
	for i, b := range bases {
		from := b.revision
		if e := earlier[b.cluster]; e != nil {
			from = e.Revision
		}
		needed, err := s.needed(ctx, b, earlier[b.cluster], from, bases[len(bases)-1].revision, i == 0)
		if err != nil {
			return err
		}
		if needed {
			s.why[b.at] = "base of kept changes"
			earlier[b.cluster] = &retention.ChangeBase{Name: b.name, Revision: b.revision}
		}
	}
	return nil
}

// markNewest marks the good backup with the highest revision of each cluster that has one among the last: the date in its name, by
// whatever clock, must not cost it.
func (s *survey) markNewest(ctx context.Context) error {
	best := map[catalog.Incarnation]namedBase{}
	for _, b := range s.list.Recent(s.now, lookBack) {
		if !b.HasManifest || !b.Sound() {
			continue
		}
		k, ok, err := s.base(ctx, b.Name)
		if err != nil {
			return err
		}
		if have, there := best[k.cluster]; ok && k.usable && (!there || k.revision >= have.revision) {
			best[k.cluster] = namedBase{name: b.Name, known: k}
		}
	}
	for _, b := range best {
		for i := range s.stored {
			s.stored[i].Latest = s.stored[i].Latest || s.stored[i].Name == b.name
		}
	}
	return nil
}

type namedBase struct {
	name string
	// at is its place in the list, where it matters.
	at int
	known
}

// usable are those that changes can be put on.
func (s *survey) usable(ctx context.Context, begin, end int) ([]namedBase, error) {
	var out []namedBase
	for i := begin; i < end; i++ {
		b := &s.list.Backups[i]
		if !b.HasManifest {
			continue
		}
		k, ok, err := s.base(ctx, b.Name)
		if err != nil {
			return nil, err
		}
		if !ok {
			s.why[i] = "decided in a later run: changes may begin at it"
			s.plan.More = true
		} else if k.usable {
			out = append(out, namedBase{b.Name, i, k})
		}
	}
	return out, nil
}

// lookBack is how many backups that stay are asked for one of the same cluster.
const lookBack = 4

// before finds the nearest earlier backup of the cluster that stays.
func (s *survey) before(ctx context.Context, previous []catalog.Backup, id catalog.Incarnation) (*retention.ChangeBase, error) {
	for i := len(previous) - 1; i >= max(0, len(previous)-lookBack); i-- {
		if !previous[i].HasManifest || previous[i].Disproven {
			continue
		}
		k, ok, err := s.base(ctx, previous[i].Name)
		if err != nil || !ok {
			return nil, err
		}
		if k.usable && k.cluster == id {
			return &retention.ChangeBase{Name: previous[i].Name, Time: previous[i].Time, Revision: k.revision}, nil
		}
	}
	return nil, nil
}

// beyond is how many segments behind a backup are listed: whether a chain goes through it is seen in the first ones.
const beyond = 50

// needed tells whether something can only be reached from b.
func (s *survey) needed(ctx context.Context, b namedBase, earlier *retention.ChangeBase, from, until int64, first bool) (bool, error) {
	later := retention.ChangeBase{Name: b.name, Revision: b.revision}
	for _, l := range s.logs {
		if clusterOf(l.id) != b.cluster || !l.changes.Live {
			continue
		}
		if first {
			s.chains++
		}
		segments, err := s.stretch(ctx, l.id, from, until)
		if err != nil {
			return false, err
		}
		if earlier == nil {
			earlier = &retention.ChangeBase{Revision: -2} // leads nowhere
		}
		if !retention.Dispensable(later, *earlier, segments) {
			return true, nil
		}
	}
	return false, nil
}

// stretch lists the segments from one revision to some way behind another.
func (s *survey) stretch(ctx context.Context, id catalog.Incarnation, from, until int64) ([]retention.Segment, error) {
	if st := s.p.stretch; st.id == id && st.from == from && st.until == until && st.at.Equal(s.clock) {
		return st.segments, nil
	}
	var out []retention.Segment
	behind := 0
	for seg, err := range s.p.catalog.Segments(ctx, id, from) {
		if err != nil {
			return nil, err
		}
		if seg.First > until {
			behind++
		}
		if behind > beyond {
			break
		}
		out = append(out, storedSegment(seg))
	}
	s.p.stretch = stretch{id, from, until, s.clock, out}
	return out, nil
}

// stretch is the last one that was listed, for the backups that stand in it.
type stretch struct {
	id          catalog.Incarnation
	from, until int64
	at          time.Time
	segments    []retention.Segment
}

func storedSegment(s catalog.Segment) retention.Segment {
	out := retention.Segment{First: s.First, Last: s.Last, Ended: s.KnownAt(), Sum: string(s.Sum)}
	if !s.Begins() {
		out.Previous = string(s.Previous)
	}
	return out
}
