package main

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

// planOutput says how a point is reached, for programs.
type planOutput struct {
	Target       string    `json:"target"`
	Revision     int64     `json:"revision"`
	Time         time.Time `json:"time,omitzero"`
	Until        time.Time `json:"until,omitzero"`
	NotBefore    time.Time `json:"notBefore,omitzero"`
	Backup       string    `json:"backup"`
	BackupBegan  time.Time `json:"backupBegan,omitzero"`
	BaseRevision int64     `json:"baseRevision"`
	Incarnation  string    `json:"incarnation,omitempty"`
	Segments     []string  `json:"segments"`
	SegmentBytes int64     `json:"segmentBytes"`
	BackupBytes  int64     `json:"backupBytes"`
	// LostRevisions are those behind the point that are known to be kept, up to LostUntil.
	LostRevisions int64     `json:"lostRevisions"`
	LostUntil     time.Time `json:"lostUntil,omitzero"`
	// LostMore means that more is kept behind that; it wasn't all looked at.
	LostMore bool `json:"lostMore,omitempty"`
	// ServingIncarnation is the life that serves, if the store tells. If the point is of another one, LostServing says what of the
	// former is kept in the store, which is all lost too.
	ServingIncarnation string      `json:"servingIncarnation,omitempty"`
	LostServing        *lostOutput `json:"lostServing,omitempty"`
	// Changes is what it would change of what the store has last; if that wasn't compared, ChangesLeftOut says why.
	Changes        *changesOutput `json:"changes,omitempty"`
	ChangesLeftOut string         `json:"changesLeftOut,omitempty"`

	Seconds       float64 `json:"estimatedSeconds"`
	OutageSeconds float64 `json:"estimatedOutageSeconds"`
	EstimatedFrom string  `json:"estimatedFrom"`

	// changes is the same in words.
	changes string
}

// lostOutput is what is kept of a life.
type lostOutput struct {
	FirstRevision int64     `json:"firstRevision,omitempty"`
	LastRevision  int64     `json:"lastRevision,omitempty"`
	Began         time.Time `json:"began,omitzero"`
	Until         time.Time `json:"until,omitzero"`
	// Backup is the newest good one of it, empty if there is none.
	Backup string `json:"backup,omitempty"`
}

// planned is the output for a path.
func planned(p *operator.Path) planOutput {
	o := planOutput{Target: p.Target.String(), Revision: p.Revision, Time: p.Time, Until: p.Until,
		NotBefore: p.Uncertain, Backup: p.Base, BackupBegan: p.Manifest.Started,
		BaseRevision: p.Manifest.Revision, Incarnation: string(p.Incarnation), Segments: []string{},
		SegmentBytes: p.Chain.Size(), BackupBytes: p.Manifest.Stored.Size,
		LostMore: p.More, ServingIncarnation: string(p.Serving),
		Seconds: p.Estimate.Total.Seconds(), OutageSeconds: p.Estimate.Outage.Seconds(), EstimatedFrom: estimatedFrom(p.Estimate)}
	for _, s := range p.Chain.Segments {
		o.Segments = append(o.Segments, s.SegmentName.String())
	}
	if p.Reach > p.Revision {
		o.LostRevisions, o.LostUntil = p.Reach-p.Revision, p.ReachTime
	}
	if l := p.Lost; l != nil {
		o.LostServing = &lostOutput{l.From, l.Reach, l.Began, l.Until, l.Backup}
	}
	return o
}

func estimatedFrom(e operator.Estimate) string {
	if e.Like == nil {
		return "estimated from the size; no restore was done here yet"
	}
	return fmt.Sprintf("as the last one, %s, with %s", e.Like.ID, ui.Size(e.Like.StagedBytes))
}

func (o planOutput) text() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "  %s:\t%s\n", name, fmt.Sprintf(format, args...))
	}
	line("target", "%s", o.Target)
	line("reaches", "%s", reachedText(o.Revision, o.Time, o.NotBefore, o.Until))
	line("from", "backup %s (revision %d), %s stored", o.Backup, o.BaseRevision, ui.Size(o.BackupBytes))
	if n := len(o.Segments); n > 0 {
		line("and", "%d revisions in %s of changes, %s: %s", o.Revision-o.BaseRevision, ui.Count(n, "segment"),
			ui.Size(o.SegmentBytes), o.Segments[0])
		if n > 1 {
			fmt.Fprintf(w, "  \t…\n  \t%s\n", o.Segments[n-1])
		}
	}
	o.losses(line)
	if o.changes != "" {
		line("changes", "%s", o.changes)
	}
	line("takes", "about %s, of it about %s without etcd (%s)", ui.Took(round(o.Seconds)), ui.Took(round(o.OutageSeconds)), o.EstimatedFrom)
	_ = w.Flush() // to a builder
	return b.String()
}

// losses says what is lost: of the point's own life what came after it, and all of the life that serves if that is another one.
func (o planOutput) losses(line func(name, format string, args ...any)) {
	switch {
	case o.LostRevisions > 0 && o.LostMore:
		line("loses", "the changes after it: at least %d revisions, until %s and longer", o.LostRevisions, ui.Exactly(o.LostUntil))
	case o.LostMore:
		line("loses", "the changes after it: changes of more than %s later are kept, too", ui.Took(changelog.Enough))
	case o.LostRevisions > 0:
		line("loses", "the changes after it: at least %d revisions, until %s", o.LostRevisions, ui.Exactly(o.LostUntil))
	case o.LostServing == nil:
		line("loses", "the changes after it; none of them is in the store")
	}
	l := o.LostServing
	if l == nil {
		if o.ServingIncarnation == "" && o.Incarnation != "" {
			line("note", "the store doesn't show which incarnation of the cluster serves; this point is of incarnation %s", o.Incarnation)
		}
		return
	}
	line("INCARNATION", "this point is of incarnation %s, and incarnation %s serves, since %s", o.Incarnation,
		o.ServingIncarnation, ui.Exactly(l.Began))
	if l.LastRevision > 0 {
		line("loses too", "all writes of the incarnation that serves: in the store up to revision %d, until %s",
			l.LastRevision, ui.Exactly(l.Until))
	} else {
		line("loses too", "all writes of the incarnation that serves; none of them is in the store")
	}
	if l.Backup == "" && l.LastRevision > 0 {
		line("note", "no backup of the incarnation that serves is in the store, so its changes can't be restored (create-backup takes one)")
	}
}

func round(seconds float64) time.Duration {
	return time.Duration(seconds * float64(time.Second)).Round(100 * time.Millisecond)
}
