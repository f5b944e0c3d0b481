package catalog

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"
)

// FutureSlack is how far ahead of a reader's clock a date may be before it counts as one from the future.
const FutureSlack = 2 * time.Minute

// At is when the backup was begun, as far as it can be told: its name is dated by the clock of who took it, and the
// store cannot have had it before that. So a clock that was ahead does not make a backup newer than it is.
func (b Backup) At() time.Time {
	if !b.Modified.IsZero() && b.Modified.Before(b.Time) {
		return b.Modified
	}
	return b.Time
}

// TakenBy is when the backup was begun for one whose clock says now: what its name says, unless that is in the future.
func (b Backup) TakenBy(now time.Time) time.Time {
	if b.Future(now) {
		return b.At()
	}
	return b.Time
}

// Future tells whether the name of the backup is dated later than now: a clock is or was wrong.
func (b Backup) Future(now time.Time) bool { return b.Time.After(now.Add(FutureSlack)) }

// Sound tells whether no proof has found the backup bad.
func (b Backup) Sound() bool { return !b.Disproven }

// NewestAny returns the complete backup whose name sorts last: of whatever cluster, good or bad, and dated by whatever
// clock. Use it only where any backup will do; what is restored is chosen by life and revision.
func (l BackupList) NewestAny() (Backup, bool) {
	if len(l.Backups) == 0 {
		return Backup{}, false
	}
	return l.Backups[len(l.Backups)-1], true
}

// NewestSound returns the last backup in time that no proof has found bad and that is not dated in the future. It is
// for intervals, which are a question of time alone.
func (l BackupList) NewestSound(now time.Time) (Backup, bool) {
	var best Backup
	found := false
	for _, b := range l.Backups {
		at := b.TakenBy(now)
		if !b.Sound() || at.After(now.Add(FutureSlack)) {
			continue
		}
		if !found || !at.Before(best.TakenBy(now)) {
			best, found = b, true
		}
	}
	return best, found
}

// Recent returns the backups among which the newest one is, whatever clock has dated them: of those that are not dated in
// the future the n last by name, the n last of those that are, and the n last by the store's clock. They are sorted by name.
func (l BackupList) Recent(now time.Time, n int) []Backup {
	var past, future int
	chosen := map[int]bool{}
	for i := len(l.Backups) - 1; i >= 0 && n > 0 && past < n; i-- {
		switch {
		case !l.Backups[i].Future(now):
			past++
			chosen[i] = true
		case future < n:
			future++
			chosen[i] = true
		}
	}
	for _, i := range l.lastWritten(n) {
		chosen[i] = true
	}
	out := make([]Backup, 0, len(chosen))
	for _, i := range slices.Sorted(maps.Keys(chosen)) {
		out = append(out, l.Backups[i])
	}
	slices.SortFunc(out, compareBackups)
	return out
}

// lastWritten are the indexes of the n that were written last, by the store's clock.
func (l BackupList) lastWritten(n int) []int {
	var last []int // the last one first
	for i, b := range l.Backups {
		at, _ := slices.BinarySearchFunc(last, b.Modified, func(have int, m time.Time) int {
			return cmp.Or(m.Compare(l.Backups[have].Modified), 1) // of the same moment the later in the list is the later
		})
		if at < n {
			last = slices.Insert(last[:min(len(last), n-1)], at, i)
		}
	}
	return last
}

// DatedInFuture returns the names of the backups that are dated later than now.
func (l BackupList) DatedInFuture(now time.Time) []string {
	var names []string
	for _, b := range l.Backups {
		if b.Future(now) {
			names = append(names, b.Name)
		}
	}
	return names
}

// LastTried returns the backup that was last proven or found to be bad. A proof that is dated in the future, by a
// store whose clock was wrong, counts only if there is no other.
func (l BackupList) LastTried(now time.Time) (Backup, bool) {
	var last Backup
	future := func(b Backup) int {
		if b.ProofAt.After(now.Add(FutureSlack)) {
			return 0
		}
		return 1
	}
	for _, b := range l.Backups {
		if b.ProofAt.IsZero() {
			continue
		}
		if last.ProofAt.IsZero() || cmp.Or(cmp.Compare(future(b), future(last)), b.ProofAt.Compare(last.ProofAt),
			strings.Compare(b.Name, last.Name)) > 0 {
			last = b
		}
	}
	return last, !last.ProofAt.IsZero()
}

// ProofDue is for how long no new proof is due, if one is every interval and this backup was tried last. A proof that is dated in
// the future by more than clocks differ says nothing of when it was made: then it is due.
func (b Backup) ProofDue(now time.Time, interval time.Duration) time.Duration {
	if b.ProofAt.After(now.Add(FutureSlack)) {
		return 0
	}
	return b.ProofAt.Add(interval).Sub(now)
}

// AllNames returns the names under which anything of a backup stands, so that a new one gets another.
func (l BackupList) AllNames() []string {
	names := l.Names()
	for _, b := range l.Leftovers {
		names = append(names, b.Name)
	}
	return names
}
