package prune

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/retention"
)

// survey is one look at everything.
type survey struct {
	p          *Pruner
	now, clock time.Time
	list       catalog.BackupList
	window     catalog.Window
	stored     []retention.Backup
	exempt     Exempt
	logs       []*changeLog
	plan       *Plan
	// read and chains count what bounds them.
	read, chains int
	// keeps says of the backups in the list which stay by the policy, and why of which other reason, by their places in the list.
	keeps []bool
	why   []string
	// explain is whether the decision about each backup is told.
	explain bool
}

// changeLog is what is known of an incarnation's segments.
type changeLog struct {
	id      catalog.Incarnation
	old     []catalog.Segment
	changes retention.Changes
	// any is true if there is a segment, rest if old is not all that is old.
	any, rest bool
	// next is the first one that is young.
	next *catalog.Segment
}

// clusterOf is the name that all lives of one etcd cluster's revisions begin with.
func clusterOf(id catalog.Incarnation) catalog.Incarnation {
	name, _, _ := strings.Cut(string(id), "-")
	return catalog.Incarnation(name)
}

func (s *survey) cutoff() time.Time { return s.now.Add(-s.p.policy.changes()) }

// gather lists the old segments, and finds the backups that changes begin at.
func (s *survey) gather(ctx context.Context) error {
	names, err := s.p.catalog.IncarnationNames(ctx)
	if err != nil {
		return err
	}
	for _, id := range names {
		l := &changeLog{id: id}
		if err := s.oldSegments(ctx, l); err != nil {
			return err
		}
		s.logs = append(s.logs, l)
	}
	if len(s.logs) == 0 {
		return nil
	}
	if err := s.findAnchors(ctx); err != nil {
		return err
	}
	return s.findProven(ctx)
}

// oldSegments lists up to the first segment that is young. Of very many only the first ones are remembered.
func (s *survey) oldSegments(ctx context.Context, l *changeLog) error {
	cutoff := s.cutoff()
	for seg, err := range s.p.catalog.Segments(ctx, l.id, 0) {
		if err != nil {
			return err
		}
		l.any = true
		if !seg.KnownAt().Before(cutoff) {
			l.changes.Live, l.next = true, &seg
			return nil
		}
		if len(l.old) >= maxListed {
			l.rest, l.changes.Live = true, true // as if there were younger ones: only what is surely not needed goes
			return nil
		}
		l.old = append(l.old, seg)
	}
	return nil
}

// base reads what a backup's manifest says. ok is false if no more may be read in this run.
func (s *survey) base(ctx context.Context, name string) (k known, ok bool, err error) {
	if k, ok := s.p.bases[name]; ok {
		return k, true, nil
	}
	if s.read >= maxManifests {
		return known{}, false, nil
	}
	s.read++
	m, err := s.p.catalog.Manifest(ctx, name)
	switch {
	case err == nil:
		k = known{usable: true, cluster: catalog.IncarnationOf(uint64(m.ClusterID)), revision: m.Revision}
	case errors.Is(err, catalog.ErrNotFound), errors.Is(err, cluster.ErrCorrupt), errors.Is(err, cluster.ErrFuture):
	default:
		return known{}, false, err
	}
	s.p.bases[name] = k
	return k, true, nil
}

// findAnchors looks for the newest backup from before the cutoff of each incarnation that has younger changes.
func (s *survey) findAnchors(ctx context.Context) error {
	var want []*changeLog
	for _, l := range s.logs {
		if l.changes.Live {
			want = append(want, l)
		}
	}
	for i := len(s.list.Backups) - 1; i >= 0 && len(want) > 0; i-- {
		b := s.list.Backups[i]
		// That it is old enough is the policy's to say.
		if !b.HasManifest || b.Disproven || retention.AnchorOf(s.cutoff(), []retention.ChangeBase{{Name: b.Name, Time: b.Time}}) == nil {
			continue
		}
		k, ok, err := s.base(ctx, b.Name)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		want = slices.DeleteFunc(want, func(l *changeLog) bool {
			if !k.usable || k.cluster != clusterOf(l.id) {
				return false
			}
			l.changes.Bases = append(l.changes.Bases, retention.ChangeBase{Name: b.Name, Time: b.Time, Revision: k.revision})
			s.markBase(b.Name)
			return true
		})
	}
	return nil
}

func (s *survey) markBase(name string) {
	for i := range s.stored {
		if s.stored[i].Name == name {
			s.stored[i].Base = true
		}
	}
}

// decideBackups asks the policy, and keeps those to which it would be the only way to kept changes.
func (s *survey) decideBackups(ctx context.Context) error {
	if err := s.markNewest(ctx); err != nil {
		return err
	}
	decisions := retention.Decide(s.now, s.stored, s.p.policy.Backups)
	s.keeps, s.why = make([]bool, len(s.stored)), make([]string, len(s.list.Backups))
	for i, d := range decisions {
		if !d.Keep {
			why := s.needs(d.Name)
			if why == "" && !s.window.Has(d.Name) {
				why = "decided in a later run, with those before it"
			}
			if why != "" {
				decisions[i].Keep, decisions[i].Reason = true, why
			}
		}
		s.keeps[d.Index] = decisions[i].Keep
	}
	if err := s.onlyWays(ctx); err != nil {
		return err
	}
	if s.explain {
		s.plan.Decisions = make([]Decision, 0, len(decisions))
	}
	later, most := map[string]string{}, maxBackups
	if !s.window.Whole {
		most = maxInWindow
	}
	for _, d := range decisions {
		if d.Index < len(s.why) && s.why[d.Index] != "" {
			d.Keep, d.Reason = true, s.why[d.Index]
		}
		switch {
		case d.Keep:
		case len(s.plan.backups) >= most:
			s.plan.More = true
			if later[d.Reason] == "" {
				later[d.Reason] = d.Reason + " (in a later run)"
			}
			d.Reason = later[d.Reason]
		default:
			s.plan.backups = append(s.plan.backups, d.Name)
		}
		if s.explain {
			s.plan.Decisions = append(s.plan.Decisions,
				Decision{Backup: d.Name, Size: s.backup(d.Index).TotalSize, Keep: d.Keep, Reason: d.Reason})
		}
	}
	return nil
}

// backup is the one, or the leftover, that stands in a place of what is stored.
func (s *survey) backup(i int) *catalog.Backup {
	if n := len(s.list.Backups); i >= n {
		return &s.list.Leftovers[i-n].Backup
	}
	return &s.list.Backups[i]
}

// needs says why a backup stays that the policy gives up; empty if it goes.
func (s *survey) needs(name string) string {
	if why := s.exempt.Backups[name]; why != "" {
		return why
	}
	if at, ok := s.exempt.Safety[name]; ok && s.now.Sub(at) < safetyKept {
		return "from before a restore, which can be undone by it"
	}
	if until, ok := s.p.locked[name]; ok {
		return "locked by the store, tried again " + until.UTC().Format(time.RFC3339)
	}
	return s.p.waits(name, s.clock)
}

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

// decideSegments asks the policy about the old segments of each incarnation.
func (s *survey) decideSegments() {
	left := maxSegments
	for _, l := range s.logs {
		rule := retention.NewSegmentRule(s.now, s.p.policy.changes(), l.changes)
		d := doomed{incarnation: l.id}
		for _, seg := range l.old {
			keep, reason := rule.Decide(storedSegment(seg))
			if until, locked := s.p.locked[seg.Key()]; !keep && locked {
				keep, reason = true, "locked by the store, tried again "+until.UTC().Format(time.RFC3339)
			}
			if why := s.p.waits(seg.Key(), s.clock); !keep && why != "" {
				keep, reason = true, why
			}
			if !keep && s.exempt.Changes != "" {
				keep, reason = true, s.exempt.Changes
			}
			switch {
			case keep:
			case left == 0:
				s.plan.More = true
				reason += " (in a later run)"
			default:
				left--
				d.names = append(d.names, seg.SegmentName)
			}
			s.note(seg, keep, reason)
		}
		if len(d.names) > 0 {
			s.plan.segments = append(s.plan.segments, d)
		}
		switch {
		case l.rest:
			s.plan.More = true
			s.plan.Decisions = append(s.plan.Decisions,
				Decision{Incarnation: l.id, First: l.old[len(l.old)-1].Last + 1, Open: true, Keep: true, Reason: "decided in a later run"})
		case l.next != nil:
			s.plan.Decisions = append(s.plan.Decisions,
				Decision{Incarnation: l.id, First: l.next.First, Open: true, Keep: true,
					Reason: "within the time for which changes are kept"})
		}
	}
}

// note puts a segment's decision to that of the one before if it is the same.
func (s *survey) note(seg catalog.Segment, keep bool, reason string) {
	if n := len(s.plan.Decisions); n > 0 {
		if d := &s.plan.Decisions[n-1]; d.Incarnation == seg.Incarnation && d.Keep == keep && d.Reason == reason {
			d.Last, d.Ended, d.Segments, d.Size = max(d.Last, seg.Last), seg.Ended, d.Segments+1, d.Size+seg.Size
			return
		}
	}
	s.plan.Decisions = append(s.plan.Decisions, Decision{Incarnation: seg.Incarnation, First: seg.First, Last: seg.Last, Ended: seg.Ended,
		Segments: 1, Size: seg.Size, Keep: keep, Reason: reason})
}

// decideRecords gives up the records of incarnations of which nothing is left: no segment, and no backup from before another one began.
// So it has to know all backups.
func (s *survey) decideRecords(ctx context.Context) error {
	empty := map[catalog.Incarnation]bool{}
	for _, l := range s.logs {
		if !l.any {
			empty[l.id] = true
		}
	}
	if len(empty) == 0 || len(s.logs) < 2 || len(s.list.Backups) == 0 || !s.window.Whole {
		return nil
	}
	records, problems, err := s.p.catalog.Incarnations(ctx)
	if err != nil || len(problems) > 0 {
		return err
	}
	oldest := slices.MinFunc(s.list.Backups, func(a, b catalog.Backup) int { return cmp.Compare(a.Time.Unix(), b.Time.Unix()) }).Time
	for i, r := range records {
		over := slices.ContainsFunc(records[i+1:], func(later catalog.IncarnationRecord) bool {
			return later.Began.After(r.Began) && later.Began.Before(oldest)
		})
		if !empty[r.ID] || r.Began.IsZero() || !over {
			continue
		}
		s.plan.records = append(s.plan.records, r.ID)
		s.plan.Decisions = append(s.plan.Decisions,
			Decision{Incarnation: r.ID, Reason: "its record: neither a change nor a backup of it is left"})
	}
	return nil
}
