package health

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

const (
	// marksBack is how far back backups are marked, marksMost how many at most: the newest.
	marksBack = 24 * time.Hour
	marksMost = 2000
)

// Mark is a backup on a time line.
type Mark struct {
	Name string    `json:"name"`
	At   time.Time `json:"at"`
	// Verified is true if the last verification of it was a success, Bad if it wasn't.
	Verified bool `json:"verified,omitempty"`
	Bad      bool `json:"bad,omitempty"`
}

// Marks are the backups of the last day, oldest first, as far as they were read. They are no part of a Report, as they may be many.
func Marks(f Facts) []Mark {
	var list []Mark
	for _, b := range append(slices.Clone(f.Taken), f.Backups.Backups...) {
		at := b.TakenBy(f.Now)
		if at.IsZero() || f.Now.Sub(at) > marksBack || b.Future(f.Now) {
			continue
		}
		list = append(list, Mark{Name: b.Name, At: at.UTC(), Verified: b.Proven, Bad: b.Disproven})
	}
	slices.SortStableFunc(list, func(x, y Mark) int { return cmp.Or(x.At.Compare(y.At), strings.Compare(x.Name, y.Name)) })
	list = slices.CompactFunc(list, func(x, y Mark) bool { return x.Name == y.Name })
	return list[max(len(list)-marksMost, 0):]
}

// WithWord are the facts with what a manager says at this moment, without the way through the store. What the store has of the same manager
// is older, so it is replaced. stored says whether the facts were read of the store; without that and a member here nothing can be
// told: then it is false.
//
// A manager that hears from a leader knows that there is one, also if the store can't be read any more.
func (f Facts) WithWord(s catalog.Status, at time.Time, stored bool) (Facts, bool) {
	f.Now = at
	if !stored {
		if !s.Leading && !s.HasMember() {
			return f, false
		}
		// Whoever has a member belongs to a cluster that was formed. When is not known.
		f.Marker = &catalog.Marker{Phase: catalog.PhaseFormed, Time: at}
	}
	switch {
	case s.Leading:
		f.Leader = &catalog.LeaderRecord{Node: s.Node, Term: s.Term}
		f.LeaderAt, f.Status = at, &s
		return f, true
	case s.Leader == "" && f.Leader != nil && at.Sub(f.LeaderAt) < quietFor && !lacksLeader(s):
		return f, true // it has begun a moment ago, or the leader changes: that no manager leads is said only if it lasts
	case s.Leader != "" && at.Sub(f.LeaderAt) >= quietFor:
		f.Leader, f.LeaderAt, f.Status = &catalog.LeaderRecord{Node: s.Leader, Term: s.Term}, at, nil
	}
	f.Own = append(slices.DeleteFunc(slices.Clone(f.Own), func(o OwnStatus) bool { return o.Node == s.Node }),
		OwnStatus{Status: s, Written: at})
	return f, true
}

// lacksLeader tells whether a manager calls a person because nobody leads.
func lacksLeader(s catalog.Status) bool {
	return slices.ContainsFunc(s.Attention, func(a cluster.Attention) bool { return a.Kind == cluster.AttentionNoLeader })
}
