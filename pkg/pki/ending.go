package pki

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Ending is a group of CAs or certificates that end soon and that nothing here can renew.
type Ending struct {
	// In is the time that is left, negative if it is over; Level is the step that was reached, of 30, 7 and 1 days and the end.
	In    time.Duration
	Level time.Duration
	// Text says what ends and when, Way what a person does about it.
	Text, Way string
}

// endingLevels are the steps at which the end of a CA or certificate is told anew, the longest first.
var endingLevels = [...]time.Duration{30 * 24 * time.Hour, 7 * 24 * time.Hour, 24 * time.Hour, 0}

// endingShare bounds the first step for what lives shorter: a CA of ten days isn't near its end on its first day.
const endingShare = 3

// level is the step that an end has reached: the shortest of which no more is left; false if none is.
func level(left, life time.Duration) (reached time.Duration, ok bool) {
	for _, l := range endingLevels {
		if left <= min(l, life/endingShare) {
			reached, ok = l, true
		}
	}
	return reached, ok
}

// Ending lists what ends soon: the CAs that sign here, and certificates whose renewal fails. It
// returns at most one entry, which names all of them, the one that ends first in front.
func (k *Keeper) Ending(now time.Time) []Ending {
	type end struct {
		what  string
		at    time.Time
		level time.Duration
	}
	var ends []end
	k.mu.RLock()
	for _, name := range slices.Sorted(maps.Keys(k.authorities)) {
		c := k.authorities[name].signer
		if l, ok := level(c.NotAfter.Sub(now), c.NotAfter.Sub(c.NotBefore)); ok {
			ends = append(ends, end{"CA " + filepath.Join(k.cfg.Dir, name+".crt"), c.NotAfter, l})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(k.status)) {
		s := k.status[name]
		if s.Err == nil || s.NotAfter.IsZero() {
			continue
		}
		if l, ok := level(s.NotAfter.Sub(now), 1<<62); ok {
			ends = append(ends, end{fmt.Sprintf("certificate %s, whose renewal fails (%v)", name, s.Err), s.NotAfter, l})
		}
	}
	k.mu.RUnlock()
	if len(ends) == 0 {
		return nil
	}
	slices.SortStableFunc(ends, func(a, b end) int { return a.at.Compare(b.at) })
	words := make([]string, len(ends))
	for i, e := range ends {
		words[i] = fmt.Sprintf("%s %s", e.what, endWords(e.at, now))
	}
	return []Ending{{
		In: ends[0].at.Sub(now), Level: ends[0].level, Text: strings.Join(words, "; "),
		Way: fmt.Sprintf("CAs are given to the managers: put new ones into %s on all masters, as docs/operations.md says (New CAs)",
			k.cfg.Dir),
	}}
}

// Endings are, for people: the CAs that sign here, the certificate that ends first, and those whose renewal fails.
func (k *Keeper) Endings() []cluster.Ending {
	k.mu.RLock()
	defer k.mu.RUnlock()
	var list []cluster.Ending
	for _, name := range slices.Sorted(maps.Keys(k.authorities)) {
		list = append(list, cluster.Ending{What: "CA " + name, At: k.authorities[name].signer.NotAfter.UTC()})
	}
	var first *Status
	for _, name := range slices.Sorted(maps.Keys(k.status)) {
		s := k.status[name]
		switch {
		case s.NotAfter.IsZero():
		case s.Err != nil:
			list = append(list, cluster.Ending{What: "certificate " + name, At: s.NotAfter.UTC(), Problem: s.Err.Error()})
		case first == nil || s.NotAfter.Before(first.NotAfter):
			first = &s
		}
	}
	if first != nil {
		list = append(list, cluster.Ending{What: "certificate " + first.Name, At: first.NotAfter.UTC(), Renewed: !first.EndsWithCA})
	}
	return list
}

// endWords says when something ends; days are counted down, as hours are on the last day.
func endWords(at, now time.Time) string {
	left, date := at.Sub(now), at.UTC().Format(time.RFC3339)
	switch {
	case left <= 0:
		return "has ended at " + date
	case left < 24*time.Hour:
		return fmt.Sprintf("ends in %d hours, at %s", int(left.Hours()), date)
	case left < 48*time.Hour:
		return "ends in 1 day, at " + date
	}
	return fmt.Sprintf("ends in %d days, at %s", int(left.Hours()/24), date)
}
