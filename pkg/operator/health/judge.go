package health

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Thresholds. A figure that isn't a person's affair yet makes a cluster degraded; then comes the one that is.
const (
	day = 24 * time.Hour
	// endsSoon and endsNow are for CAs, and for certificates that the managers can't renew.
	endsSoon, endsNow = 30 * day, 7 * day
	// lagging and lost are how far the archive may be behind: it hears from etcd every two minutes at least.
	lagging, lost = 5 * time.Minute, time.Hour
	// entriesBehind is how many entries a healthy member may be behind.
	entriesBehind = 10000
	// recently is how long a restore that failed is told of.
	recently = day
	// defaultInterval is that of backups if nobody says.
	defaultInterval = 15 * time.Minute
)

// Kinds of findings that are no attention's.
const (
	KindNoManager    = "no-manager"
	KindNoStatus     = "no-status"
	KindNotFormed    = "not-formed"
	KindNodeSilent   = "node-silent"
	KindLagging      = "member-lagging"
	KindLearner      = "learner"
	KindVersions     = "versions-mixed"
	KindOperation    = "operation-running"
	KindFailed       = "restore-failed"
	KindBackupOld    = "backup-old"
	KindBackupBad    = "backup-bad"
	KindChain        = "chain-broken"
	KindUnverified   = "verification-overdue"
	KindArchive      = "archive-lagging"
	KindGap          = "archive-gap"
	KindStoreSilent  = "store-silent"
	KindStoreRefuses = "store-refuses"
	KindStoreEmpty   = "store-empty"
	KindSuperseded   = "superseded"
	KindCopy         = "copy-failing"
	KindIsCopy       = "store-is-copy"
)

func (b *builder) add(f Finding) {
	if f.Text != "" {
		b.r.Findings = append(b.r.Findings, f)
	}
}

func (b *builder) findings() {
	b.attentions()
	if s := b.f.Superseded; s != nil {
		b.add(Finding{Severity: Degraded, Kind: KindSuperseded, Since: s.Time, Command: b.ctl("undo-supersede"),
			Text: fmt.Sprintf("This cluster was superseded by %q: %s. A manager that starts here doesn't start etcd. "+
				"The command takes that back.", cluster.Shown(s.By, 300), b.endedWords(s))})
	}
	b.managers()
	b.members()
	b.versions()
	b.operations()
	b.backupFindings()
	b.archiveFindings()
	b.copyFindings()
	b.endingFindings()
	for _, p := range b.f.Problems {
		b.add(Finding{Severity: Degraded, Kind: string(cluster.AttentionObject), Text: "An object in the store can't be used: " + p})
	}
}

// endedWords says how far the managers are with the end of a cluster that is superseded.
func (b *builder) endedWords(s *catalog.Superseded) string {
	e := b.f.Ending
	if e == nil || !e.Of.Equal(s.Time) || len(e.Stopped) == 0 && e.Revision == 0 {
		return "its managers haven't said that etcd is stopped"
	}
	words := "etcd is stopped on no node yet"
	if len(e.Stopped) > 0 {
		words = "etcd is stopped on " + strings.Join(shownNodes(slices.Sorted(maps.Keys(e.Stopped))), ", ")
	}
	if m := e.Missing(); len(m) > 0 {
		words += "; " + cluster.Shown(strings.Join(m, ", "), 300) + " hasn't answered"
	}
	switch {
	case e.Revision > 0 && e.Stored >= e.Revision:
		words += fmt.Sprintf("; the archive has everything, up to revision %d", e.Revision)
	case e.Revision > 0:
		words += fmt.Sprintf("; its last revision is %d, and it isn't known that the archive has all of it", e.Revision)
	}
	return words
}

// shownNodes are node ids as they may stand in a text.
func shownNodes(ids []cluster.NodeID) []string {
	list := make([]string, len(ids))
	for i, id := range ids {
		list[i] = cluster.Shown(string(id), 100)
	}
	return list
}

// attentions are what the managers call a person for. What ends in weeks is no affair of tonight.
func (b *builder) attentions() {
	var list []cluster.Attention
	if b.leading() {
		list = append(list, b.status.Attention...)
	}
	for _, s := range b.own {
		list = append(list, s.Attention...)
	}
	for _, a := range cluster.Distinct(list) {
		severity := NeedsYou
		if a.Kind == cluster.AttentionCertificate && !slices.ContainsFunc(b.r.Endings, func(e Ending) bool {
			return !e.Renewed && time.Duration(e.Days)*day <= endsNow
		}) {
			severity = Degraded
		}
		b.add(Finding{Severity: severity, Kind: string(a.Kind), Node: a.Node, Since: a.Since, Text: b.command(a.Text),
			Command: b.command(a.Command), NoCommand: b.command(a.NoCommand)})
	}
}

// command fills the store in.
func (b *builder) command(c string) string {
	return cluster.WithStore(c, b.f.Store)
}

func (b *builder) ctl(args string) string {
	return "etcd-manager-ctl --backup-store=" + b.f.Store + " " + args
}

// managers is about who speaks for the cluster at all.
func (b *builder) managers() {
	if x := b.f.Copy; b.r.CopyOf != "" {
		b.add(Finding{Severity: Unknown, Kind: KindIsCopy, Text: fmt.Sprintf("This store is a copy of %s, last updated by node %s %s ago. "+
			"How the cluster does, the first store tells.", x.Of, x.Node, ago(seconds(b.age(x.At)))),
			NoCommand: "etcd-manager-ctl --backup-store=" + x.Of + " status; if that store is lost: " + b.ctl("use-copy")})
		return
	}
	if b.r.Spec == nil && b.status == nil && b.r.Formed == "no" {
		b.add(Finding{Severity: NeedsYou, Kind: KindNotFormed, Text: "There is no cluster yet, and nobody has said how many members are wanted.",
			Command: b.ctl("configure-cluster --member-count=3")})
	}
	switch {
	case b.hasKind(cluster.AttentionNoLeader): // the nodes say so
	case b.fresh && b.r.Leader != nil && !b.r.Leader.Current || b.fresh && b.r.Leader == nil && len(b.own) > 0 && b.noneLeads():
		last := ""
		if b.r.Leader != nil {
			last = fmt.Sprintf(" The last was node %s, %s ago.", b.r.Leader.Node, ago(b.r.Leader.AgeSeconds))
		}
		b.add(Finding{Severity: NeedsYou, Kind: string(cluster.AttentionNoLeader),
			Text:      "No manager leads, so nothing is repaired and nothing is backed up." + last,
			NoCommand: "start managers, or repair the network between them, until a majority of them answers"})
	case b.fresh:
	case b.quiet >= quietFor:
		b.add(Finding{Severity: NeedsYou, Kind: KindNoManager,
			Text: fmt.Sprintf("No manager has written to the store for %s. What is shown is that old.", ago(seconds(b.quiet))),
			NoCommand: "look whether the managers run on the masters, and whether they reach the store; " +
				"if the store was moved, ask the new one"})
	case b.r.Leader != nil && strings.HasPrefix(b.f.Leader.Instance, sidecar):
		b.add(Finding{Severity: Unknown, Kind: KindNoStatus,
			Text: fmt.Sprintf("Only etcd-backup (node %s) writes to this store: it takes backups and says nothing of the members.",
				b.r.Leader.Node)})
	case b.r.Leader != nil:
		b.add(Finding{Severity: Unknown, Kind: KindNoStatus, Text: fmt.Sprintf("The leader (node %s, term %d) shows no status in the store: "+
			"its version is older than this, or it has begun to lead a moment ago.", b.r.Leader.Node, b.r.Leader.Term)})
	case b.r.Formed == "no" && b.r.Spec != nil:
		b.add(Finding{Severity: NeedsYou, Kind: KindNotFormed,
			Text:      fmt.Sprintf("There is no cluster yet, and no manager has written to this store. %d members are wanted.", b.r.MembersWanted),
			NoCommand: "start the managers with this store; a cluster is formed when enough of them answer"})
	case b.r.Formed != "no":
		b.add(Finding{Severity: Unknown, Kind: KindNoStatus,
			Text: "No manager of this project has written to the store: another etcd-manager, or none, runs this cluster."})
	}
	if b.r.Formed == "forming" {
		b.add(Finding{Severity: Degraded, Kind: KindNotFormed, Text: "The cluster is being formed; no client was let in yet."})
	} else if b.r.Formed == "no" && b.fresh && len(b.r.Findings) == 0 {
		b.add(Finding{Severity: Degraded, Kind: KindNotFormed, Text: "There is no cluster yet: " + cmp.Or(b.r.Doing, "the managers wait")})
	}
}

// sidecar is what the instance of an etcd-backup begins with.
const sidecar = "etcd-backup/"

// noneLeads tells whether no node knows a leader.
func (b *builder) noneLeads() bool {
	return !slices.ContainsFunc(b.own, func(s OwnStatus) bool { return s.Leader != "" })
}

// switchTime is how long etcd may be down for a restore, with the time until the managers write their status again, before that counts as
// a loss.
const switchTime = 2 * time.Minute

// switching tells whether etcd is down for a restore, or may have been when the status was written: it is written each minute. A date that
// lies in the future, by a wrong clock, explains nothing.
func (b *builder) switching() bool {
	for _, op := range []*Operation{b.r.Operation, b.r.Ended} {
		if op == nil || op.Kind != catalog.KindRestore {
			continue
		}
		if age := b.f.Now.Sub(op.Since); age > -switchTime && age < switchTime {
			return true
		}
	}
	return false
}

// members is about the etcd members.
func (b *builder) members() {
	if s := b.f.Survivors; s != nil {
		b.add(Finding{Severity: NeedsYou, Kind: string(cluster.AttentionQuorum), Since: s.At,
			Text:    "Etcd has no quorum. " + survivorWords(s),
			Command: b.ctl("recover --from-survivor")})
	} else if b.leading() && b.r.Formed == "yes" && b.r.MembersHealthy == 0 &&
		slices.ContainsFunc(b.r.Nodes, func(n Node) bool { return n.Role != catalog.RoleNone }) {
		f := Finding{Severity: NeedsYou, Kind: string(cluster.AttentionQuorum),
			Text:      "No member of etcd is healthy, so nothing can be read or written.",
			NoCommand: "the managers start etcd again; what they wait for stands below"}
		if b.switching() {
			f.Severity, f.NoCommand = Degraded, ""
			f.Text = "No member of etcd was healthy when the managers last said so: a restore stops etcd while the data are exchanged."
		}
		b.add(f)
	}
	if !b.fresh {
		return
	}
	for _, n := range b.r.Nodes {
		switch {
		case n.Silent:
			since := ""
			if n.SilentSeconds > 0 {
				since = " for " + ago(n.SilentSeconds)
			}
			b.add(Finding{Severity: Degraded, Kind: KindNodeSilent, Node: n.Node,
				Text: fmt.Sprintf("The manager of node %s has not answered%s%s.", n.Node, since, because(n.Problem)),
				NoCommand: fmt.Sprintf("look whether node %s runs and its manager is started; "+
					"a node that stays away is replaced when another master is there",
					n.Node)})
		case n.Role == catalog.RoleNone:
		case !n.Healthy && b.r.Formed != "no":
			b.add(Finding{Severity: Degraded, Kind: string(cluster.AttentionMember), Node: n.Node,
				Text: fmt.Sprintf("Etcd of node %s is not healthy%s%s.", n.Node, forSeconds(n.UnhealthySeconds), because(n.Error))})
		case n.Quarantined:
			b.add(Finding{Severity: Degraded, Kind: KindNotFormed, Node: n.Node,
				Text: fmt.Sprintf("Etcd of node %s listens on its quarantine URLs: no client can reach it.", n.Node)})
		case n.Role == catalog.RoleLearner:
			b.add(Finding{Severity: Degraded, Kind: KindLearner, Node: n.Node,
				Text: fmt.Sprintf("Node %s is a learner: it catches up.", n.Node)})
		case n.Lag > entriesBehind:
			b.add(Finding{Severity: Degraded, Kind: KindLagging, Node: n.Node,
				Text: fmt.Sprintf("The member of node %s is %d entries behind.", n.Node, n.Lag)})
		}
		for _, a := range n.Alarms {
			kind := cluster.AttentionDatabase
			if a == string(cluster.AlarmCorrupt) {
				kind = cluster.AttentionCorrupt
			}
			if b.hasKind(kind) {
				continue // the leader has said more about it
			}
			b.add(Finding{Severity: NeedsYou, Kind: string(kind), Node: n.Node,
				Text: fmt.Sprintf("Etcd has the alarm %s of node %s.", a, n.Node)})
		}
	}
	if b.leading() && b.r.Formed == "yes" && b.r.MembersHealthy > 0 && b.r.MembersHealthy < b.r.MembersWanted {
		b.add(Finding{Severity: Degraded, Kind: string(cluster.AttentionMember),
			Text: fmt.Sprintf("%d of %s healthy%s.", b.r.MembersHealthy, areMembers(b.r.MembersWanted), b.spare())})
	}
}

// spare says what one more failure would do.
func (b *builder) spare() string {
	total := 0
	for _, n := range b.r.Nodes {
		if n.Role != catalog.RoleNone && n.Role != catalog.RoleLearner {
			total++
		}
	}
	if total > 1 && b.r.MembersHealthy <= cluster.Quorum(total) {
		return "; if one more fails, etcd has no quorum"
	}
	return ""
}

func (b *builder) versions() {
	wanted := ""
	if b.r.Spec != nil {
		wanted = b.r.Spec.EtcdVersion
	}
	switch v := b.r.Versions; {
	case !b.fresh || len(v) == 0:
	case len(v) > 1:
		b.add(Finding{Severity: Degraded, Kind: KindVersions,
			Text: fmt.Sprintf("Etcd runs in %s: a change of the version is under way, or waits.",
				strings.Join(v, " and "))})
	case wanted != "" && v[0] != wanted:
		b.add(Finding{Severity: Degraded, Kind: KindVersions, Text: fmt.Sprintf("Etcd %s runs, and the spec asks for %s.", v[0], wanted)})
	}
}

func (b *builder) operations() {
	if op := b.r.Operation; op != nil {
		b.add(Finding{Severity: Degraded, Kind: KindOperation, Since: op.Since,
			Text:    fmt.Sprintf("A %s is under way: %s.", op.Kind, op.State),
			Command: b.ctl("follow " + op.ID)})
	}
	if op := b.r.Ended; op != nil && b.age(op.Since) < recently &&
		(op.State == catalog.StateFailed || op.State == catalog.StateRolledBack) {
		end := "failed: nothing was stopped, and nothing is changed"
		if op.State == catalog.StateRolledBack {
			end = "was taken back: the data from before serve again"
		}
		b.add(Finding{Severity: Degraded, Kind: KindFailed, Since: op.Since,
			Text:    fmt.Sprintf("The last %s %s. %s", op.Kind, end, sentence(op.Reason)),
			Command: b.ctl("describe-command " + op.ID)})
	}
}

// copyFindings are about the copies of this store. One that fails costs nothing at once.
func (b *builder) copyFindings() {
	for _, c := range b.r.Copies {
		switch {
		case c.Error != "":
			b.add(Finding{Severity: Degraded, Kind: KindCopy, Since: c.Since,
				Text:      fmt.Sprintf("The copy of the store in %s isn't kept up to date: %s", c.Name, sentence(c.Error)),
				NoCommand: "the managers try again by themselves; docs/runbooks/etcd-store-copy-failing.md says what can be wrong"})
		case c.LagSeconds != nil && time.Duration(*c.LagSeconds)*time.Second > lost:
			b.add(Finding{Severity: Degraded, Kind: KindCopy, Text: fmt.Sprintf("The copy of the store in %s is %s behind.", c.Name,
				ago(*c.LagSeconds)), NoCommand: "docs/runbooks/etcd-store-copy-failing.md says what can be wrong"})
		}
	}
}

func (b *builder) conclude() {
	seen := map[string]bool{}
	b.r.Findings = slices.DeleteFunc(b.r.Findings, func(f Finding) bool {
		k := f.Kind + "\x00" + string(f.Node)
		if f.Kind == string(cluster.AttentionObject) || f.Kind == KindCopy { // each object, and each copy, is told
			k += f.Text
		}
		double := seen[k]
		seen[k] = true
		return double
	})
	slices.SortStableFunc(b.r.Findings, func(x, y Finding) int { return cmp.Compare(y.Severity.Trouble(), x.Severity.Trouble()) })
	for _, f := range b.r.Findings {
		if f.Command != "" && !slices.Contains(b.r.Commands, f.Command) {
			b.r.Commands = append(b.r.Commands, f.Command)
		}
	}
	if len(b.r.Findings) == 0 {
		b.r.Verdict = Healthy
		if len(b.r.Standbys) > 0 {
			return // it has its own summary
		}
		b.r.Summary = fmt.Sprintf("%d of %s healthy", b.r.MembersHealthy, areMembers(b.r.MembersWanted))
		if b.r.Backup != nil {
			b.r.Summary += fmt.Sprintf("; the newest backup is %s old", ago(b.r.Backup.AgeSeconds))
		}
		return
	}
	b.r.Verdict, b.r.Summary = b.r.Findings[0].Severity, b.r.Findings[0].Text
}

func areMembers(n int) string {
	if n == 1 {
		return "1 member is"
	}
	return fmt.Sprintf("%d members are", n)
}

func because(problem string) string {
	if problem == "" {
		return ""
	}
	return ": " + strings.TrimRight(problem, ".")
}

func forSeconds(n int64) string {
	if n == 0 {
		return ""
	}
	return " for " + ago(n)
}

// sentence ends with a full stop, and begins with a capital.
func sentence(s string) string {
	if s == "" {
		return ""
	}
	return strings.ToUpper(s[:1]) + strings.TrimRight(s[1:], ".") + "."
}

// ago prints seconds in their largest unit or two.
func ago(n int64) string {
	switch {
	case n < 60:
		return fmt.Sprintf("%ds", n)
	case n < 3600:
		return fmt.Sprintf("%dm", n/60)
	case n < 48*3600:
		return fmt.Sprintf("%dh%dm", n/3600, n/60%60)
	}
	return fmt.Sprintf("%dd", n/86400)
}

func survivorWords(s *catalog.Survivors) string {
	var words []string
	for _, n := range s.Nodes {
		words = append(words, fmt.Sprintf("node %s has data (%s)", n.Node, cmp.Or(n.Condition, "condition unknown")))
	}
	if len(words) == 0 {
		return "No node has its data."
	}
	return sentence(strings.Join(words, ", ")) + " First bring the other masters back: then nothing is lost."
}
