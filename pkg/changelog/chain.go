package changelog

import (
	"slices"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// Chain is a number of segments that hang together: each names the one before, and no revision is lacking.
type Chain struct {
	// Base is the revision that it begins behind.
	Base     int64
	Segments []catalog.Segment
}

// Reach is the last revision, and up to when it is known that no other came; zero without any segment.
func (c Chain) Reach() (int64, time.Time) {
	if len(c.Segments) == 0 {
		return c.Base, time.Time{}
	}
	s := c.Segments[len(c.Segments)-1]
	return max(s.Last, c.Base), s.Ended
}

func (c Chain) reach() int64 { r, _ := c.Reach(); return r }

// Size is how many bytes are stored.
func (c Chain) Size() (n int64) {
	for _, s := range c.Segments {
		n += s.Size
	}
	return n
}

const (
	// lateSpan and lateMost bound how far beyond a revision segments are looked through for leases that became known late.
	lateSpan = time.Minute
	lateMost = 16
)

// To cuts off what isn't needed to reach a revision. It is the whole chain if that isn't reached. Some segments after it stay, since
// the TTL of a lease can stand in a later segment than the key that is attached to it.
func (c Chain) To(revision int64) Chain {
	i := slices.IndexFunc(c.Segments, func(s catalog.Segment) bool { return s.Last >= revision && s.Last >= s.First })
	switch {
	case revision <= c.Base:
		c.Segments = nil
	case i >= 0:
		n := i + 1
		for n < min(len(c.Segments), i+1+lateMost) && c.Segments[n].Ended.Sub(c.Segments[i].Ended) <= lateSpan {
			n++
		}
		c.Segments = c.Segments[:n]
	}
	return c
}

// hasChanges tells whether a segment has changes up to a revision. Others can only tell of leases.
func hasChanges(s catalog.Segment, revision int64) bool {
	return s.Last >= s.First && s.First <= revision
}

// Link finds the chain that begins behind a base and reaches farthest. Segments of two writers that
// worked at the same time stand in the listing side by side; both are right, so any path will do.
// The segments are of one incarnation, in the order of the listing. What doesn't hang together with
// the base is left out.
func Link(segments []catalog.Segment, base int64) Chain {
	previous, best := link(segments, base)
	return chainTo(segments, base, previous, best)
}

// chainTo goes back from the segment at an index, -1 for none.
func chainTo(segments []catalog.Segment, base int64, previous []int, i int) Chain {
	c := Chain{Base: base}
	for ; i >= 0; i = previous[i] {
		c.Segments = append(c.Segments, segments[i])
	}
	slices.Reverse(c.Segments)
	return c
}

// unlinked is what doesn't hang together with the base.
const unlinked = -2

// link finds for each segment the one before it, and the one that reaches farthest, -1 for none.
func link(segments []catalog.Segment, base int64) (previous []int, best int) {
	// previous is the index of the one before on the way to the base; -1 for one that the base itself is enough for.
	previous = slices.Repeat([]int{unlinked}, len(segments))
	bySum := make(map[catalog.SegmentSum]int, len(segments))
	best = -1
	// Of several that say that nothing has changed, the times decide which is listed first: where a
	// clock went back, that isn't the one that the others follow on.
	waiting := map[catalog.SegmentSum][]int{}
	reached := func(i int) {
		for todo := []int{i}; len(todo) > 0; todo = todo[1:] {
			i, s := todo[0], segments[todo[0]]
			bySum[s.Sum] = i
			if best < 0 || farther(s, segments[best]) {
				best = i
			}
			for _, w := range waiting[s.Sum] {
				if segments[w].First-1 == s.Last {
					previous[w] = i
					todo = append(todo, w)
				}
			}
			delete(waiting, s.Sum)
		}
	}
	for i, s := range segments {
		p, ok := bySum[s.Previous]
		switch {
		case s.First <= base+1 && s.Last >= base:
			previous[i] = -1
		case ok && segments[p].Last == s.First-1:
			previous[i] = p
		case s.Last < s.First:
			waiting[s.Previous] = append(waiting[s.Previous], i)
			continue
		default:
			continue
		}
		reached(i)
	}
	return previous, best
}

// LinkTo finds the chain that begins behind a base and ends with one segment. It is empty if that one doesn't hang together with the base.
func LinkTo(segments []catalog.Segment, base int64, head catalog.SegmentName) Chain {
	i := slices.IndexFunc(segments, func(s catalog.Segment) bool { return s.SegmentName == head })
	previous, _ := link(segments, base)
	if i < 0 || previous[i] == unlinked {
		return Chain{Base: base}
	}
	return chainTo(segments, base, previous, i)
}

func farther(a, b catalog.Segment) bool {
	if a.Last != b.Last {
		return a.Last > b.Last
	}
	return a.Ended.After(b.Ended)
}
