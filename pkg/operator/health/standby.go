package health

import (
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Kinds of findings about a standby.
const (
	KindStandbyBehind  = "standby-behind"
	KindStandbyDiffers = "standby-differs"
	KindStandbySilent  = "standby-silent"
)

// standbyFailing is for how long a standby may get no changes before it needs a person.
const standbyFailing = 10 * time.Minute

// standbys are the nodes that follow another cluster. Once a cluster is in the store itself, they are of the past.
func (b *builder) standbys() {
	if b.r.Formed != "no" {
		return
	}
	for _, s := range b.f.Own {
		if s.Standby == nil {
			continue
		}
		x := Standby{Node: s.Node, StandbyReport: *s.Standby, SeenSeconds: seconds(b.age(s.Written)),
			BehindRevisions: max(s.Standby.Known-s.Standby.Revision, 0)}
		if !x.Until.IsZero() {
			x.BehindSeconds = seconds(b.age(x.Until))
		}
		b.r.Standbys = append(b.r.Standbys, x)
	}
	sort.Slice(b.r.Standbys, func(i, j int) bool { return b.r.Standbys[i].Node < b.r.Standbys[j].Node })
}

// standbyFindings says what isn't as it should be.
func (b *builder) standbyFindings() {
	b.attentions()
	best := int64(-1)
	for _, s := range b.r.Standbys {
		if s.SeenSeconds < seconds(quietFor) && s.Base != "" && (best < 0 || s.BehindSeconds < best) {
			best = s.BehindSeconds
		}
		b.standby(s)
	}
	for _, p := range b.f.Problems {
		b.add(Finding{Severity: Degraded, Kind: string(cluster.AttentionObject), Text: "An object in the store can't be used: " + p})
	}
	if len(b.r.Findings) == 0 {
		b.r.Summary = fmt.Sprintf("%s %s; the copy that is farthest is %s behind", follow(len(b.r.Standbys)), b.r.Standbys[0].Of, ago(best))
	}
}

func follow(n int) string {
	if n == 1 {
		return "1 node follows"
	}
	return fmt.Sprintf("%d nodes follow", n)
}

func (b *builder) standby(s Standby) {
	add := func(severity Verdict, kind, way, format string, args ...any) {
		b.add(Finding{Severity: severity, Kind: kind, Node: s.Node, Text: fmt.Sprintf(format, args...), NoCommand: way})
	}
	const way = "look at the log and the status page of the manager there; following continues automatically when the cause is gone"
	behind := time.Duration(s.BehindSeconds) * time.Second
	switch {
	case s.SeenSeconds >= seconds(quietFor):
		add(NeedsYou, KindStandbySilent, "look whether the manager runs there, and whether it reaches this store",
			"Standby %s has written nothing for %s.", s.Node, ago(s.SeenSeconds))
	case s.Error != "" && b.age(s.Since) >= standbyFailing:
		add(NeedsYou, KindStandbyBehind, way, "Standby %s has got no changes for %s%s.", s.Node, ago(seconds(b.age(s.Since))), because(s.Error))
	case s.Error != "":
		add(Degraded, KindStandbyBehind, way, "Standby %s gets no changes%s.", s.Node, because(s.Error))
	case s.Base == "":
		add(Degraded, KindStandbyBehind, "it ends when the full backup is here", "Standby %s has no copy yet%s.", s.Node, because(s.Doing))
	case behind >= lost:
		add(NeedsYou, KindStandbyBehind, "look whether the managers of the other cluster keep changes and reach their store",
			"Standby %s is %s behind.", s.Node, ago(s.BehindSeconds))
	case behind >= lagging:
		add(Degraded, KindStandbyBehind, "look whether the managers of the other cluster keep changes and reach their store",
			"Standby %s is %s behind.", s.Node, ago(s.BehindSeconds))
	}
	if s.Differs != "" {
		add(Degraded, KindStandbyDiffers, "the copy was made anew from that backup; the next comparison ends this. "+
			"Verify the other cluster's backups (verify-backup), and report it with the logs",
			"Standby %s was not the same as backup %s: %s.", s.Node, s.Compared, strings.TrimRight(s.Differs, "."))
	}
}
