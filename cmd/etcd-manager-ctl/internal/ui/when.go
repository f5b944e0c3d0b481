package ui

import (
	"strconv"
	"strings"
	"time"
)

// whenLayouts are the ways in which a moment can be written beside RFC 3339; they are UTC. Fractions of a second may follow.
var whenLayouts = []string{"2006-01-02 15:04:05Z07:00", "2006-01-02 15:04:05", "2006-01-02T15:04:05", "2006-01-02 15:04"}

// clockLayouts are those of a time of today.
var clockLayouts = []string{"15:04:05Z07:00", "15:04:05", "15:04"}

// ParseWhen reads a moment as it stands on a command line: RFC 3339, "2026-11-22 12:03:06",
// "12:03:06" (today), or how long it is past ("90m", "2d12h"). Without a zone it is UTC, as
// everything that the tool prints.
func ParseWhen(s string, now time.Time) (time.Time, error) {
	now = now.UTC()
	s = strings.TrimSpace(s)
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t.UTC(), nil
	}
	for _, layout := range whenLayouts {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC(), nil
		}
	}
	for _, layout := range clockLayouts {
		t, err := time.Parse(layout, s)
		if err != nil {
			continue
		}
		t = t.UTC()
		midnight := time.Date(now.Year(), now.Month(), now.Day(), 0, 0, 0, 0, time.UTC)
		today := midnight.Add(time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute +
			time.Duration(t.Second())*time.Second + time.Duration(t.Nanosecond()))
		if today.After(now) {
			// Early in the morning somebody may well mean yesterday evening; that is not for a program to guess.
			return time.Time{}, Usagef("%.60q is later today, it is %s now: write a date before it, for example %q", s,
				Clock(now), today.AddDate(0, 0, -1).Format("2006-01-02 15:04:05"))
		}
		return today, nil
	}
	d, ok := parseAgo(s)
	switch {
	case !ok:
		return time.Time{}, Usagef("%.60q is not a time: write 2026-11-22T12:03:06Z, \"2026-11-22 12:03:06\" (UTC), 12:03:06 (today, UTC), or a time ago, such as 90m", s)
	case d < 0:
		return time.Time{}, Usagef("%.60q is in the future: write a time ago without a sign, such as 90m", s)
	}
	return now.Add(-d), nil
}

// parseAgo reads a duration, which may begin with days.
func parseAgo(s string) (time.Duration, bool) {
	var days time.Duration
	if n, rest, ok := strings.Cut(s, "d"); ok {
		v, err := strconv.ParseUint(n, 10, 16)
		if err != nil {
			return 0, false
		}
		days, s = time.Duration(v)*24*time.Hour, rest
		if s == "" {
			return days, true
		}
	}
	d, err := time.ParseDuration(s)
	return days + d, err == nil
}
