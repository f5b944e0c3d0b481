package page

import (
	"fmt"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// text is what somebody else has written, as it may stand on the page: bounded, and without characters that can't be seen.
func text(s string) string { return cluster.Shown(s, mostText) }

// name is a bounded name.
func name(s string) string { return cluster.Shown(s, mostName) }

// sentence begins with a capital and ends with a full stop.
func sentence(s string) string {
	if s == "" {
		return ""
	}
	return capital(strings.TrimRight(s, ".")) + "."
}

// capital begins with a capital letter, but for the names of programs.
func capital(s string) string {
	if s == "" || s[0] < 'a' || s[0] > 'z' || strings.HasPrefix(s, "etcd") {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

func seconds(n int64) string { return age(time.Duration(n) * time.Second) }

// age prints how long something is, in its largest unit or two.
func age(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		if m := int(d.Minutes()) % 60; m > 0 {
			return fmt.Sprintf("%d h %d min", int(d.Hours()), m)
		}
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours())/24)
}

// size prints bytes in binary units.
func size(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n), ""
	for _, unit = range []string{"KiB", "MiB", "GiB", "TiB"} {
		if v /= 1024; v < 1024 {
			break
		}
	}
	if v >= 100 {
		return fmt.Sprintf("%.0f %s", v, unit)
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}
