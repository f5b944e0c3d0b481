package ui

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Age prints a duration in its largest unit or two.
func Age(d time.Duration) string {
	switch {
	case d < 0:
		return "in the future"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours())/24)
}

// Ago says how long something is past; clocks that differ a little make it now.
func Ago(d time.Duration) string {
	if d < 0 && d > -time.Minute {
		d = 0
	}
	if d < 0 {
		return "in the future"
	}
	return Age(d) + " ago"
}

// Took prints how long something lasted, as exactly as matters.
func Took(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return d.Round(time.Second).String()
}

// Size prints bytes in binary units.
func Size(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n), ""
	for _, unit = range []string{"KiB", "MiB", "GiB", "TiB"} {
		if v /= 1024; v < 1024 {
			break
		}
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}

// Clock prints a moment; all times that the tool prints are UTC.
func Clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

// Count says how many, with the noun in its singular or plural.
func Count(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

// Exactly prints a moment to the millisecond.
func Exactly(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.000Z") }

// Moment prints when something came; what came late was made at some time between the two.
func Moment(at, since time.Time) string {
	s := at.UTC().Format("2006-01-02 15:04:05.000Z")
	if !since.IsZero() {
		return "between " + since.UTC().Format("2006-01-02 15:04:05.000Z") + " and " + s
	}
	return s
}

// Readable quotes what a screen can't show.
func Readable(s string) string {
	switch {
	case s == "":
		return "(no prefix)"
	case strconv.Quote(s) != `"`+s+`"`:
		return strconv.Quote(s)
	}
	return s
}

// ShellWord quotes what a shell would take apart.
func ShellWord(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-:=@%+,", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
