package retention

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Backup is what retention needs to know of a backup.
type Backup struct {
	Name string
	// Time is when it was taken; the zero value means that its name doesn't tell.
	Time time.Time
	// Complete is false for what stands of a backup that was begun and not finished, or half deleted.
	Complete bool
	// Proven is true if it has been restored somewhere and found right.
	Proven bool
	// Disproven is true if it was found bad: others stay in its place if there are any.
	Disproven bool
	// Pinned backups are never removed.
	Pinned bool
	// Latest is true if it is the good one of its life with the highest revision.
	Latest bool
	// Base is true if changes that are kept can only be reached from it.
	Base bool
}

// Policy says how long backups are kept. Ages are counted back from now.
type Policy struct {
	// Hourly is how long the first backup of each hour is kept.
	Hourly time.Duration
	// Daily is how long the first backup of each day (UTC) is kept.
	Daily time.Duration
}

// Default keeps a backup an hour for a week and one a day for a year.
func Default() Policy {
	return Policy{Hourly: 168 * time.Hour, Daily: 365 * 24 * time.Hour}
}

// Decision says of one backup whether it stays, and why.
type Decision struct {
	Name string
	// Index is where the backup stands among those that were given.
	Index  int
	Keep   bool
	Reason string
}

const (
	// retainAll is the age up to which every backup stays: who has just broken something wants the one right before it.
	retainAll = time.Hour
	// retainLeftover is the age from which what is incomplete is given up; no upload takes that long.
	retainLeftover = 24 * time.Hour
)

// Decide decides which backups stay, oldest first. The first rule that speaks wins:
//
//   - An incomplete backup is removed when it is a day old; before, it may still be being written.
//   - Pinned backups stay, and so do those whose name has no time, and those dated in the future (a
//     clock was wrong: their age isn't known).
//   - The newest backup, the newest good one of an incarnation and the newest verified one stay,
//     however old they are. So does a backup from which kept changes are replayed.
//   - All of the last hour stay.
//   - Within Hourly the first of each hour stays, within Daily the first of each day.
//   - The rest is removed.
//
// "First" is among all backups there are, whatever the windows: so a backup that is kept now is not replaced by
// another in the next run, and the first of a day is also the first of its hour. One that was found bad counts only where no other is.
func Decide(now time.Time, backups []Backup, p Policy) []Decision {
	// There may be a hundred thousand of them, so they are not copied.
	r := retention{backups: backups, order: make([]int, len(backups)), now: now, policy: p, newest: -1, proven: -1,
		hours: map[int64]int{}, days: map[int64]int{}}
	for i := range r.order {
		r.order[i] = i
	}
	slices.SortStableFunc(r.order, func(i, j int) int {
		a, b := &backups[i], &backups[j]
		return cmp.Or(a.Time.Compare(b.Time), strings.Compare(a.Name, b.Name))
	})
	for i := range r.order {
		r.index(i, r.at(i))
	}
	decisions := make([]Decision, 0, len(backups))
	for i := range r.order {
		keep, reason := r.decide(i, r.at(i))
		decisions = append(decisions, Decision{Name: r.at(i).Name, Index: r.order[i], Keep: keep, Reason: reason})
	}
	return decisions
}

type retention struct {
	backups []Backup
	// order has the indexes of the backups, sorted by their time.
	order  []int
	now    time.Time
	policy Policy
	// newest and proven are places in the order, -1 if there is none.
	newest, proven int
	// hours and days hold the place of the first backup of each.
	hours, days map[int64]int
}

// at is the backup in a place of the order.
func (r *retention) at(i int) *Backup { return &r.backups[r.order[i]] }

func (r *retention) index(i int, b *Backup) {
	if !b.Complete {
		return
	}
	// Complete ones dated in the future don't count as the newest: a wrong clock must not cost the newest right one. Those
	// that tell no time sort first and count only if nothing else is there.
	if !b.Time.After(r.now) {
		if !b.Disproven || r.newest < 0 || r.at(r.newest).Disproven {
			r.newest = i
		}
		if b.Proven {
			r.proven = i
		}
	}
	hour, day := hourOf(b.Time), dayOf(b.Time)
	r.first(r.hours, hour, i)
	r.first(r.days, day, i)
}

// first notes the first backup of a time, or the first one that wasn't found bad.
func (r *retention) first(of map[int64]int, at int64, i int) {
	if have, ok := of[at]; !ok || r.at(have).Disproven && !r.at(i).Disproven {
		of[at] = i
	}
}

func (r *retention) decide(i int, b *Backup) (keep bool, reason string) {
	age := r.now.Sub(b.Time)
	switch {
	case b.Pinned:
		return true, "pinned"
	case b.Time.IsZero():
		return true, "its name has no time"
	case age < 0:
		return true, fmt.Sprintf("dated %s in the future: a clock is or was wrong", (-age).Round(time.Second))
	case !b.Complete && age < retainLeftover:
		return true, "incomplete, may still be being written"
	case !b.Complete:
		return false, "incomplete for more than a day"
	case i == r.newest:
		return true, "newest"
	case i == r.proven:
		return true, "newest proven"
	case b.Latest:
		return true, "newest of its incarnation"
	case b.Base:
		return true, "base of kept changes"
	case age <= retainAll:
		return true, "of the last hour"
	case age <= r.policy.Hourly && r.hours[hourOf(b.Time)] == i:
		return true, "first of its hour"
	case age <= r.policy.Daily && r.days[dayOf(b.Time)] == i:
		return true, "first of its day"
	case age <= r.policy.Hourly:
		return false, "not the first of its hour"
	case age <= r.policy.Daily:
		return false, "not the first of its day"
	}
	return false, "older than what is kept"
}

func hourOf(t time.Time) int64 { return t.UTC().Truncate(time.Hour).Unix() }

// Truncate counts from the zero time, which begins a day in UTC.
func dayOf(t time.Time) int64 { return t.UTC().Truncate(24 * time.Hour).Unix() }
