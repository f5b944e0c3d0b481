package catalog

import (
	"testing"
	"time"
)

// TestNewestSound: an interval counts from the last backup that is good, as far as anybody knows, and a clock that was ahead makes none
// newer than the store has had it. A store that tells no times of its own leaves out what is dated ahead.
func TestNewestSound(t *testing.T) {
	now := time.Date(2026, 1, 30, 12, 0, 0, 0, time.UTC)
	const minute, hour, year = time.Minute, time.Hour, 365 * 24 * time.Hour
	// at is a backup that was dated and written so long ago; less than 0 is ahead of now.
	at := func(name string, dated, written time.Duration) Backup {
		return Backup{Name: name, Time: now.Add(-dated), Modified: now.Add(-written), HasManifest: true}
	}
	bad := func(b Backup) Backup { b.Disproven, b.ProofAt = true, now; return b }
	proven := func(b Backup) Backup { b.Proven, b.ProofAt = true, now; return b }
	untimed := func(b Backup) Backup { b.Modified = time.Time{}; return b }
	for name, x := range map[string]struct {
		list []Backup
		want string
		at   time.Duration // before now
	}{
		"none":                        {nil, "", 0},
		"the last one":                {[]Backup{at("a", 2*hour, 2*hour), at("b", hour, hour)}, "b", hour},
		"a proof makes no difference": {[]Backup{proven(at("a", 2*hour, 2*hour)), at("b", hour, hour)}, "b", hour},
		"the last one is bad":         {[]Backup{at("a", 2*hour, 2*hour), bad(at("b", hour, hour))}, "a", 2 * hour},
		"the last two are bad": {[]Backup{at("a", 3*hour, 3*hour), bad(at("b", 2*hour, 2*hour)), bad(at("c", hour, hour))},
			"a", 3 * hour},
		"all are bad":                    {[]Backup{bad(at("a", 2*hour, 2*hour)), bad(at("b", hour, hour))}, "", 0},
		"a minute ahead, as clocks are":  {[]Backup{at("a", hour, hour), at("b", -minute, 0)}, "b", -minute},
		"an hour ahead, written earlier": {[]Backup{at("a", hour, hour), at("b", -hour, 2*hour)}, "a", hour},
		"an hour ahead, written later":   {[]Backup{at("a", hour, hour), at("b", -hour, minute)}, "b", minute},
		"a year ahead, written earlier":  {[]Backup{at("a", hour, hour), at("b", -year, 2*hour)}, "a", hour},
		"a year ahead, written later":    {[]Backup{at("a", hour, hour), at("b", -year, minute)}, "b", minute},
		"a year ahead and bad":           {[]Backup{at("a", hour, hour), bad(at("b", -year, minute))}, "a", hour},
		"only ahead":                     {[]Backup{at("a", -hour, 2*hour), at("b", -year, 3*hour)}, "a", 2 * hour},
		"the store's clock is ahead too": {[]Backup{at("a", hour, hour), at("b", -year, -hour)}, "a", hour},
		"no times of the store's own": {[]Backup{untimed(at("a", hour, 0)), untimed(at("b", -hour, 0)), untimed(at("c", -year, 0))},
			"a", hour},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := BackupList{Backups: x.list}.NewestSound(now)
			if got.Name != x.want || ok != (x.want != "") {
				t.Fatalf("got %q, %t; want %q", got.Name, ok, x.want)
			}
			if taken := got.TakenBy(now); ok && !taken.Equal(now.Add(-x.at)) {
				t.Errorf("it counts as taken %s ago, want %s", now.Sub(taken), x.at)
			}
		})
	}
}
