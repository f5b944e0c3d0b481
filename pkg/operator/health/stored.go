package health

import (
	"fmt"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// What is found of what is stored: backups, their verification, the archive, and what ends.

func (b *builder) backupFindings() {
	if b.r.Formed != "yes" || !b.f.BackupsRead && (!b.fresh || b.r.Backup == nil && !b.leading()) {
		return // nobody knows
	}
	interval := defaultInterval
	s := b.status
	if s != nil && s.Backups != nil && s.Backups.IntervalSeconds > 0 {
		interval = time.Duration(s.Backups.IntervalSeconds) * time.Second
	}
	reason := ""
	if s != nil && s.Backups != nil {
		reason = s.Backups.Error
	}
	n := b.r.Backup
	command := ""
	if b.fresh { // else nobody is there to take one
		command = b.ctl("create-backup --wait")
	}
	switch {
	case n == nil && b.age(b.f.Marker.Time) > 2*interval:
		b.add(Finding{Severity: NeedsYou, Kind: KindBackupOld, Text: "There is no backup in the store." + told(reason), Command: command})
	case n == nil:
		b.add(Finding{Severity: Degraded, Kind: KindBackupOld, Text: "There is no backup yet." + told(reason)})
	case b.age(n.At) > 4*interval+5*time.Minute:
		b.add(Finding{Severity: NeedsYou, Kind: KindBackupOld, Since: n.At,
			Text: fmt.Sprintf("The newest backup is %s old, and one is taken every %s.%s",
				ago(n.AgeSeconds), ago(seconds(interval)), told(reason)), Command: command})
	case b.age(n.At) > 2*interval+time.Minute:
		b.add(Finding{Severity: Degraded, Kind: KindBackupOld, Since: n.At,
			Text: fmt.Sprintf("The newest backup is %s old, and one is taken every %s.%s",
				ago(n.AgeSeconds), ago(seconds(interval)), told(reason))})
	case reason != "":
		b.add(Finding{Severity: Degraded, Kind: string(cluster.AttentionBackup),
			Text: "The last attempt at a backup failed: " + stop(reason)})
	}
	b.verificationFindings()
}

// stop ends a clause with a full stop.
func stop(s string) string { return strings.TrimRight(s, ".") + "." }

func told(reason string) string {
	if reason == "" {
		return ""
	}
	return " The last attempt failed: " + stop(reason)
}

func (b *builder) verificationFindings() {
	v := b.r.Verification
	if v == nil {
		return
	}
	every := time.Duration(0)
	if b.status != nil && b.status.Backups != nil {
		every = time.Duration(b.status.Backups.VerifySeconds) * time.Second
	}
	switch {
	case v.Bad != "":
		b.add(Finding{Severity: NeedsYou, Kind: KindBackupBad, Since: v.At,
			Text: fmt.Sprintf("Backup %s is bad: %s It is never restored as latest; another one is taken, and verified next.",
				v.Backup, stop(v.Bad)),
			Command: b.ctl("verify-backup latest")})
	case v.ChainProblem != "":
		b.add(Finding{Severity: Degraded, Kind: KindChain, Since: v.At,
			Text: fmt.Sprintf("Backup %s is good, but the changes before it don't lead to it: %s", v.Backup, stop(v.ChainProblem))})
	case b.fresh && every > 0 && v.Backup != "" && b.age(v.At) > 2*every+time.Hour:
		b.add(Finding{Severity: Degraded, Kind: KindUnverified, Since: v.At,
			Text: fmt.Sprintf("No backup was verified for %s, and one is every %s.%s",
				ago(v.AgeSeconds), ago(seconds(every)), postponed(v.Postponed)),
			Command: b.ctl("verify-backup latest")})
	}
}

func postponed(why string) string {
	if why == "" {
		return ""
	}
	return " " + sentence(why)
}

func (b *builder) archiveFindings() {
	if a := b.r.Archive; a != nil && b.fresh {
		lag := time.Duration(a.LagSeconds) * time.Second
		severity := Degraded
		if lag > lost {
			severity = NeedsYou
		}
		switch {
		case a.Error != "":
			b.add(Finding{Severity: severity, Kind: KindArchive, Text: "Changes can't be kept: " + stop(a.Error) + lagWords(a),
				NoCommand: "remove the cause that the message names; until then a restore reaches the newest backup and what is in the store"})
		case lag > lagging:
			b.add(Finding{Severity: severity, Kind: KindArchive,
				Text: strings.TrimSpace("The archive of changes is behind." + lagWords(a))})
		}
	}
	w := b.r.Window
	if w == nil || len(w.Gaps) == 0 {
		return
	}
	g := w.Gaps[len(w.Gaps)-1]
	text := fmt.Sprintf("No second can be restored between %s and %s: changes were lost there.", clock(g.From), clock(g.Until))
	f := Finding{Severity: Degraded, Kind: KindGap, Since: g.From}
	if g.Until.IsZero() {
		text = fmt.Sprintf("No second after %s can be restored, until the next backup: changes were lost there.", clock(g.From))
		f.Command = b.ctl("create-backup --wait")
	}
	if f.Text = text; len(w.Gaps) > 1 {
		f.Text += fmt.Sprintf(" It is the last of %d gaps.", len(w.Gaps))
	}
	b.add(f)
}

func lagWords(a *Archive) string {
	if a.Until.IsZero() {
		return ""
	}
	return fmt.Sprintf(" The store has every change up to %s, %s before.", clock(a.Until), ago(a.LagSeconds))
}

func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

func (b *builder) endingFindings() {
	for _, e := range b.r.Endings {
		left := e.At.Sub(b.f.Now)
		if e.Renewed && left > day || left > endsSoon {
			continue
		}
		severity := Degraded
		if left <= endsNow {
			severity = NeedsYou
		}
		ends := fmt.Sprintf("ends in %d days", e.Days)
		if left < 0 {
			ends = "has ended"
		}
		f := Finding{Severity: severity, Kind: string(cluster.AttentionCertificate), Node: e.Nodes[0],
			Text: fmt.Sprintf("%s %s, at %s%s.", e.What, ends, clock(e.At), because(e.Problem))}
		if !e.Renewed {
			f.NoCommand = "put new CAs into the managers' --pki-dir on all masters, as docs/operations.md says (New CAs)"
		}
		if strings.HasPrefix(e.What, "CA ") {
			f.Node = ""
		}
		if b.hasKind(cluster.AttentionCertificate) {
			continue // the managers have said it already
		}
		b.add(f)
	}
}

func (b *builder) hasKind(k cluster.AttentionKind) bool {
	for _, f := range b.r.Findings {
		if f.Kind == string(k) {
			return true
		}
	}
	return false
}
