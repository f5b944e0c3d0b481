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
		return safetyReason
	}
	if until, ok := s.p.locked[name]; ok {
		return "locked by the store, tried again " + until.UTC().Format(time.RFC3339)
	}
	return s.p.waits(name, s.clock)
}

// undoes tells whether a segment is needed to undo a restore. Those behind the point are too: a lease's TTL may stand there. They are
// few, as the incarnation ends there.
func (s *survey) undoes(seg catalog.Segment) bool {
	return slices.ContainsFunc(s.exempt.SafetyChanges, func(c SafetyChanges) bool {
		return c.To.Incarnation == seg.Incarnation && seg.Last > c.To.BaseRevision && s.now.Sub(c.At) < safetyKept
	})
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
			if !keep && s.undoes(seg) {
				keep, reason = true, safetyReason
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
