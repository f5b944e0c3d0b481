package status

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// copyText says in one line how a copy of the store does.
func copyText(c catalog.CopyReport, now time.Time) string {
	text := c.Name + ": "
	switch {
	case !c.Until.IsZero():
		text += fmt.Sprintf("has every change up to %s ago", now.Sub(c.Until).Round(time.Second))
	case !c.NewestBackup.IsZero():
		text += fmt.Sprintf("its newest backup is %s old", now.Sub(c.NewestBackup).Round(time.Second))
	default:
		text += "nothing was copied yet"
	}
	if c.Compared.IsZero() {
		text += "; the first comparison is under way"
	}
	if c.Missing > 0 {
		text += "; " + cluster.Count(c.Missing, "backup") + " to be copied"
	}
	if c.Error != "" {
		text += "; FAILING since " + c.Since.UTC().Format(time.RFC3339) + ": " + c.Error
	}
	if c.Held != "" {
		text += "; " + c.Held
	}
	return text
}

// Line is the page in one line, for who has room for no more: what a person is needed for, else what is done, and how etcd is.
func Line(v View) string {
	line := v.Doing
	if len(v.Attention) > 0 {
		line = "a person is needed: " + v.Attention[0].Text
		if n := len(v.Attention) - 1; n > 0 {
			line += fmt.Sprintf(" (and %d more)", n)
		}
	}
	if v.Standby == nil {
		switch {
		case v.Etcd.Healthy:
			line = "etcd serves; " + line
		case v.Etcd.Running:
			line = "etcd isn't healthy; " + line
		default:
			line = "no etcd runs; " + line
		}
	}
	return strings.TrimSuffix(line, "; ")
}

// Text is the status page.
func Text(v View, now time.Time) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 4, 2, ' ', 0)
	row := func(name, format string, a ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, a...)) }
	row("cluster", "%s (this is node %s, manager %s)", v.ClusterName, v.Node, v.Version)
	switch {
	case v.Leading:
		row("leader", "this node, term %d", v.Term)
	case v.Leader != "":
		row("leader", "%s, term %d", v.Leader, v.Term)
	default:
		row("leader", "none")
	}
	if v.Doing != "" {
		mark, since := "", ""
		if v.Alarm && len(v.Attention) == 0 {
			mark = "ATTENTION: "
		}
		if !v.DoingSince.IsZero() {
			since = fmt.Sprintf(" (for %s)", now.Sub(v.DoingSince).Round(time.Second))
		}
		row("now", "%s%s%s", mark, v.Doing, since)
	}
	for _, a := range v.Attention {
		attentionRows(row, a, now)
	}
	if v.Standby != nil {
		v.Standby.rows(row, now)
	} else {
		row("etcd here", "%s", etcdText(v.Etcd))
	}
	if v.Disk.TotalBytes > 0 {
		row("disk here", "%s", v.Disk.text())
	}
	for _, p := range v.Peers {
		state := "answers"
		switch {
		case p.Foreign:
			state = "other software: " + p.Problem
		case !p.Connected:
			state = "doesn't answer: " + p.Problem
		}
		row("manager "+string(p.ID), "%s", state)
	}
	if v.Source != "" {
		if v.Source != v.Node {
			row("told by", "node %s, %s ago", v.Source, v.SourceAge.Round(time.Second))
		} else if !v.Leading {
			row("seen by", "this node only, because it hears from no leader; information about backups may be old")
		}
		if v.Wanted > 0 {
			row("members", "%d healthy, %d wanted", v.Healthy, v.Wanted)
		}
		backup := "none"
		if !v.NewestBackup.IsZero() {
			backup = fmt.Sprintf("%s ago (%d in the store)", now.Sub(v.NewestBackup).Round(time.Second), v.Backups)
		}
		row("newest backup", "%s", backup)
		if v.BackupError != "" {
			row("last attempt", "FAILED: %s", v.BackupError)
		}
		if v.Proof != nil {
			row("proof", "%s", v.Proof.text(now))
		}
		if v.PruneDenied != "" {
			row("retention", "DENIED: %s", v.PruneDenied)
		}
		if v.PruneLocked > 0 {
			row("retention", "%d old objects are under lock in the store; they are removed later", v.PruneLocked)
		}
		if v.Changes != nil {
			row("changes", "%s", v.Changes.text(now))
			if v.Changes.LastGap != "" {
				row("last gap", "%s", v.Changes.LastGap)
			}
		}
		for _, c := range v.Copies {
			row("copy", "%s", copyText(c, now))
		}
		if v.StoreError != "" {
			row("store", "AWAY: %s", v.StoreError)
		}
	}
	for _, s := range v.Waiting {
		row("waiting", "%s", s)
	}
	if v.Restore != "" {
		row("restore", "%s", v.Restore)
	}
	for _, e := range v.Recent {
		row(e.At.UTC().Format("15:04:05"), "%s", e.Text)
	}
	_ = w.Flush()
	return b.String()
}

// attentionRows says what a person is needed for, and how it ends.
func attentionRows(row func(name, format string, a ...any), a cluster.Attention, now time.Time) {
	where := ""
	if a.Node != "" {
		where = " on node " + string(a.Node)
	}
	if !a.Since.IsZero() {
		where += fmt.Sprintf(" for %s", now.Sub(a.Since).Round(time.Second))
	}
	row("ATTENTION", "%s%s: %s", a.Kind, where, a.Text)
	if a.Command != "" {
		row("  end it with", "%s", a.Command)
	}
	if a.NoCommand != "" {
		row("  no command", "%s", a.NoCommand)
	}
}

func etcdText(s cluster.EtcdStatus) string {
	switch {
	case !s.Running && s.Error != "":
		return "not running: " + s.Error
	case !s.Running:
		return "not running"
	case !s.Healthy:
		return fmt.Sprintf("NOT healthy for %s: %s", s.UnhealthyFor.Round(time.Second), s.Error)
	case s.Denied:
		return "serves, and REFUSES the manager: " + s.Error
	}
	text := fmt.Sprintf("healthy, version %s, revision %d, %d MiB", s.Version, s.Revision, s.DBSize>>20)
	if s.DBQuota > 0 {
		text += fmt.Sprintf(" of %d (%d in use)", s.DBQuota>>20, s.DBSizeInUse>>20)
	}
	for _, a := range s.Alarms {
		text += fmt.Sprintf(", ALARM %s of member %s", a.Type, a.Member)
	}
	if s.Outdated {
		text += ", to be restarted as its settings have changed"
	}
	if s.MemberID == s.LeaderID && s.MemberID != 0 {
		text += ", etcd leader"
	}
	if s.Quarantined {
		text += ", quarantined (no client can reach it)"
	}
	return text
}
