package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// ageOf prints a duration in its largest unit or two.
func ageOf(d time.Duration) string {
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

// ago says how long something is past; clocks that differ a little make it now.
func ago(d time.Duration) string {
	if d < 0 && d > -time.Minute {
		d = 0
	}
	if d < 0 {
		return "in the future"
	}
	return ageOf(d) + " ago"
}

// took prints how long something lasted, as exactly as matters.
func took(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return d.Round(time.Second).String()
}

// sizeOf prints bytes in binary units.
func sizeOf(n int64) string {
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

// clock prints a moment; all times that the tool prints are UTC.
func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

func count(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

func clusterOf(spec cluster.Spec) string {
	s := count(spec.MemberCount, "member")
	if spec.EtcdVersion != "" {
		s += ", etcd " + spec.EtcdVersion
	}
	return s
}

// subject says what a command or an operation brings back.
func subject(backup string, source *catalog.Source) string {
	switch {
	case source == nil:
		return "restore of " + backup
	case source.Node == "":
		return fmt.Sprintf("recovery from the nodes' trash cans (token %s)", source.Token)
	}
	return fmt.Sprintf("recovery from the data of node %s (token %s)", source.Node, source.Token)
}

// point says to where a backup is brought; empty if it is the backup itself that is wanted.
func point(o catalog.RestoreOptions, t *catalog.PointInTime) string {
	switch {
	case t != nil && !t.Time.IsZero():
		return fmt.Sprintf(", brought to revision %d of %s", t.Revision, exactly(t.Time))
	case t != nil:
		return fmt.Sprintf(", brought to revision %d", t.Revision)
	case o.ToRevision > 0:
		return fmt.Sprintf(", brought to revision %d", o.ToRevision)
	case !o.ToTime.IsZero():
		return ", brought to " + exactly(o.ToTime)
	case o.Latest:
		return ", brought to the last change that is kept"
	}
	return ""
}

// asked lists the options that a restore was queued with.
func asked(o catalog.RestoreOptions) []string {
	var out []string
	if o.Now {
		out = append(out, "now")
	}
	if o.KeepMasterleases {
		out = append(out, "keep master leases")
	}
	if len(o.DropPrefixes) > 0 {
		out = append(out, "drop "+strings.Join(o.DropPrefixes, " "))
	}
	if o.ForceForeign {
		out = append(out, "another cluster's backup is fine")
	}
	return out
}
