package retention

import (
	"cmp"
	"fmt"
	"time"
)

// DefaultChanges is how long every change between backups is kept.
const DefaultChanges = 7 * 24 * time.Hour

// anchorMargin is how much older than the cutoff a base has to be: its name tells when it was begun, and its revision is of a little later.
const anchorMargin = 10 * time.Minute

// Segment is what retention needs to know of a segment; its name tells all of it.
type Segment struct {
	// First and Last are the revisions that it holds; one that says that nothing has changed has Last = First - 1.
	First, Last int64
	// Ended is up to when it tells what happened.
	Ended time.Time
	// Previous and Sum tell which segment it follows on. Previous is empty where a chain begins.
	Previous, Sum string
}

// ChangeBase is a complete backup of the incarnation whose segments are looked at.
type ChangeBase struct {
	Name     string
	Time     time.Time
	Revision int64
}

// Changes is what is known of one incarnation beside its segments.
type Changes struct {
	// Bases are its backups, in any order. At least the newest one from before the cutoff has to be among them, if there is any.
	Bases []ChangeBase
	// Live is true if segments younger than the cutoff are there: then what is older may be needed to reach them.
	Live bool
	// ProvenFrom and ProvenTo are the revisions between which the chain of the newest proven backup
	// runs; both 0 if it isn't of this incarnation.
	ProvenFrom, ProvenTo int64
}

// SegmentRule says of the segments of one incarnation which stay. Make it with NewSegmentRule.
type SegmentRule struct {
	changes Changes
	cutoff  time.Time
	anchor  *ChangeBase
}

// NewSegmentRule prepares the decisions for one incarnation. Retention is how long every change is kept, counted back from now.
func NewSegmentRule(now time.Time, retention time.Duration, c Changes) *SegmentRule {
	r := &SegmentRule{changes: c, cutoff: now.Add(-retention)}
	if c.Live {
		r.anchor = AnchorOf(r.cutoff, c.Bases)
	}
	return r
}

// AnchorOf is the newest base that is surely from before the cutoff: from it everything younger is
// reached, so it stays, and so do the segments behind it. Nil if there is none.
func AnchorOf(cutoff time.Time, bases []ChangeBase) *ChangeBase {
	var anchor *ChangeBase
	for i, b := range bases {
		if b.Time.IsZero() || b.Time.After(cutoff.Add(-anchorMargin)) {
			continue
		}
		if anchor == nil || cmp.Or(b.Time.Compare(anchor.Time), cmp.Compare(b.Revision, anchor.Revision)) > 0 {
			anchor = &bases[i]
		}
	}
	return anchor
}

// Decide says of one segment whether it stays. The first rule that speaks wins:
//
//   - A segment younger than the retention stays.
//   - The chain of the newest verified backup stays.
//   - If the newest segments of an incarnation are older than the retention, the rest is removed.
//   - A segment after the newest base from before the cutoff stays, because everything younger is
//     reached through it. As long as there is no such base, nothing is removed.
//   - The rest is removed.
func (r *SegmentRule) Decide(s Segment) (keep bool, reason string) {
	c := r.changes
	switch {
	case !s.Ended.Before(r.cutoff):
		return true, "within the time for which changes are kept"
	case c.ProvenTo > 0 && s.Last >= c.ProvenFrom && s.First <= c.ProvenTo:
		return true, "in the chain of the newest verified backup"
	case !c.Live:
		return false, "older than the time for which changes are kept"
	case r.anchor == nil:
		return true, "younger changes may need it: no backup of that cluster is known from before them"
	case s.Last >= r.anchor.Revision:
		return true, fmt.Sprintf("leads from backup %s to younger changes", r.anchor.Name)
	}
	return false, fmt.Sprintf("older than the time for which changes are kept; backup %s begins after it", r.anchor.Name)
}

// Dispensable tells whether everything that can be reached from a base by these segments can be
// reached from an earlier base too, so that the former may go. The segments are those from the
// earlier base to some way behind the later one, in the order of their revisions.
func Dispensable(later, earlier ChangeBase, segments []Segment) bool {
	own, others := reached(later.Revision, segments), reached(earlier.Revision, segments)
	for sum := range own {
		if !others[sum] {
			return false
		}
	}
	return true
}

// reached are the sums of the segments to which a chain from the revision leads, and that hold more than it.
func reached(base int64, segments []Segment) map[string]bool {
	last := map[string]int64{}
	out := map[string]bool{}
	for _, s := range segments {
		p, follows := last[s.Previous]
		if s.First <= base+1 && s.Last >= base || follows && s.Previous != "" && p == s.First-1 {
			last[s.Sum] = s.Last
			out[s.Sum] = true
		}
	}
	return out
}
