package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
)

// targetFlags name a point behind a backup.
type targetFlags struct {
	time     string
	revision int64
	latest   bool
	before   string
	dryRun   bool
}

func (f *targetFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.time, "to-time", "", "the state at this `time`: 2026-11-22T12:03:06Z, 12:03:06 (today, UTC), or how long ago, as 90m")
	fs.Int64Var(&f.revision, "to-revision", 0, "the state at this `revision`")
	fs.BoolVar(&f.latest, "latest", false, "everything that was kept, to the last change")
	fs.StringVar(&f.before, "before", "", "the state right before this `key` was last deleted, or before what is below it was, if it ends with a slash")
	fs.BoolVar(&f.dryRun, "dry-run", false, "only say what would be restored, from what, what would be lost, and how long it takes; nothing is queued")
}

// target reads the flags. It is zero if none of them names a point.
func (f *targetFlags) target(cmd *cobra.Command, now time.Time) (changelog.Target, error) {
	t := changelog.Target{Revision: f.revision, Latest: f.latest}
	given := 0
	for _, name := range []string{"to-time", "to-revision", "latest", "before"} {
		if cmd.Flags().Changed(name) {
			given++
		}
	}
	if given > 1 {
		return t, ui.Usagef("--to-time, --to-revision, --latest and --before each name a point: give one of them")
	}
	if cmd.Flags().Changed("to-revision") && f.revision < 1 {
		return t, ui.Usagef("--to-revision=%d: revisions begin with 1", f.revision)
	}
	if cmd.Flags().Changed("to-time") {
		at, err := ui.ParseWhen(f.time, now)
		if err != nil {
			return t, err
		}
		if at.After(now) {
			return t, ui.Usagef("--to-time=%s is in the future", f.time)
		}
		t.Time = at
	}
	return t, nil
}

// archive reads backups with the changes behind them.
func (a *app) archive(c *catalog.Catalog) *changelog.Archive {
	return &changelog.Archive{Catalog: c}
}

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

	Seconds       float64 `json:"estimatedSeconds"`
	OutageSeconds float64 `json:"estimatedOutageSeconds"`
	EstimatedFrom string  `json:"estimatedFrom"`
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

// serving fills in what is lost of the life that serves.
func (o *planOutput) serving(p *changelog.Plan, lost *changelog.Lost) {
	o.ServingIncarnation = string(p.Serving)
	if lost == nil {
		return
	}
	o.LostServing = &lostOutput{lost.From, lost.Reach, lost.Began, lost.Until, lost.Backup}
}

func planned(t changelog.Target, p *changelog.Plan) planOutput {
	o := planOutput{Target: t.String(), Revision: p.Revision, Time: p.Time, Until: p.Until, NotBefore: p.Uncertain, Backup: p.Base, BackupBegan: p.Manifest.Started,
		BaseRevision: p.Manifest.Revision, Incarnation: string(p.Incarnation), Segments: []string{}, SegmentBytes: p.Chain.Size(), BackupBytes: p.Manifest.Stored.Size}
	for _, s := range p.Chain.Segments {
		o.Segments = append(o.Segments, s.SegmentName.String())
	}
	o.LostMore = p.More
	if p.Reach > p.Revision {
		o.LostRevisions, o.LostUntil = p.Reach-p.Revision, p.ReachTime
	}
	return o
}

func (o planOutput) text() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "  %s:\t%s\n", name, fmt.Sprintf(format, args...))
	}
	line("target", "%s", o.Target)
	reached := fmt.Sprintf("revision %d", o.Revision)
	switch {
	case !o.NotBefore.IsZero():
		reached += fmt.Sprintf(", made at some time between %s and %s", ui.Exactly(o.NotBefore), ui.Exactly(o.Time))
	case !o.Time.IsZero():
		reached += ", made at " + ui.Exactly(o.Time)
	}
	if !o.Until.IsZero() && o.Until.After(o.Time) {
		reached += ", the newest until " + ui.Exactly(o.Until)
	}
	line("reaches", "%s", reached)
	line("from", "backup %s (revision %d), %s stored", o.Backup, o.BaseRevision, ui.Size(o.BackupBytes))
	if n := len(o.Segments); n > 0 {
		line("and", "%d revisions in %s of changes, %s: %s", o.Revision-o.BaseRevision, ui.Count(n, "segment"), ui.Size(o.SegmentBytes), o.Segments[0])
		if n > 1 {
			fmt.Fprintf(w, "  \t…\n  \t%s\n", o.Segments[n-1])
		}
	}
	o.losses(line)
	line("takes", "about %s, of it about %s without etcd (%s)", ui.Took(round(o.Seconds)), ui.Took(round(o.OutageSeconds)), o.EstimatedFrom)
	_ = w.Flush() // to a builder
	return b.String()
}

// losses says what is lost: of the point's own life what came after it, and all of the life that serves if that is another one.
func (o planOutput) losses(line func(name, format string, args ...any)) {
	switch {
	case o.LostRevisions > 0 && o.LostMore:
		line("loses", "what came after it: at least %d revisions, until %s and longer", o.LostRevisions, ui.Exactly(o.LostUntil))
	case o.LostMore:
		line("loses", "what came after it: changes of more than %s later are kept, too", ui.Took(changelog.Enough))
	case o.LostRevisions > 0:
		line("loses", "what came after it: at least %d revisions, until %s", o.LostRevisions, ui.Exactly(o.LostUntil))
	case o.LostServing == nil:
		line("loses", "what came after it; nothing of that is in the store")
	}
	l := o.LostServing
	if l == nil {
		if o.ServingIncarnation == "" && o.Incarnation != "" {
			line("note", "the store doesn't tell which life of the cluster serves; this point is of life %s", o.Incarnation)
		}
		return
	}
	line("OTHER LIFE", "this point is of life %s, and life %s serves, since %s", o.Incarnation, o.ServingIncarnation, ui.Exactly(l.Began))
	if l.LastRevision > 0 {
		line("loses too", "all that was written in the life that serves: in the store up to revision %d, until %s", l.LastRevision, ui.Exactly(l.Until))
	} else {
		line("loses too", "all that was written in the life that serves; nothing of that is in the store")
	}
	if l.Backup == "" && l.LastRevision > 0 {
		line("note", "no backup of the life that serves is in the store, so its changes can't be brought back (create-backup takes one)")
	}
}

func round(seconds float64) time.Duration {
	return time.Duration(seconds * float64(time.Second)).Round(100 * time.Millisecond)
}

// What a restore takes, roughly, where none was done before: it was measured on two cores that three masters shared.
const (
	secondsPerMiB     = 0.02
	outagePerMiB      = 0.006
	secondsAtLeast    = 2
	outageAtLeast     = 1
	revisionsASecond  = 50_000
	bytesOfARevision  = 1024
	segmentsPerSecond = 40
)

// estimate says how long a restore will take, from the last one that was done if there is one.
func (o *planOutput) estimate(rawSize int64, ops []catalog.Operation) {
	mib := float64(rawSize+(o.Revision-o.BaseRevision)*bytesOfARevision) / (1 << 20)
	replay := max(float64(o.Revision-o.BaseRevision)/revisionsASecond, float64(len(o.Segments))/segmentsPerSecond)
	o.Seconds, o.OutageSeconds = secondsAtLeast+mib*secondsPerMiB+replay, outageAtLeast+mib*outagePerMiB
	o.EstimatedFrom = "estimated by the size; no restore was done here yet"
	for _, op := range slices.Backward(ops) {
		if op.State != catalog.StateDone || op.Kind != catalog.KindRestore || op.StagedBytes == 0 || op.Finished.IsZero() {
			continue
		}
		factor := max(mib/(float64(op.StagedBytes)/(1<<20)), 0.5)
		o.Seconds, o.OutageSeconds = op.Finished.Sub(op.Created).Seconds()*factor+replay, op.Outage.Seconds()*factor
		o.EstimatedFrom = fmt.Sprintf("as the last one, %s, with %s", op.ID, ui.Size(op.StagedBytes))
		return
	}
}

// plan finds out how a point is reached, and how long it will take.
func (a *app) plan(ctx context.Context, c *catalog.Catalog, t changelog.Target) (*changelog.Plan, planOutput, error) {
	ctx, cancel := a.limit(ctx)
	defer cancel()
	archive := a.archive(c)
	p, err := archive.Plan(ctx, t)
	var open *changelog.UndecidedError
	if errors.As(err, &open) {
		return nil, planOutput{}, a.undecided(open)
	}
	if err != nil {
		return nil, planOutput{}, err
	}
	o := planned(t, p)
	lost, err := archive.LostWith(ctx, p)
	if err != nil {
		return nil, planOutput{}, err
	}
	o.serving(p, lost)
	ops, _, err := c.Operations(ctx)
	if err != nil {
		return nil, planOutput{}, err
	}
	o.estimate(p.Manifest.Raw.Size, ops)
	return p, o, nil
}

// restoreTo queues the restore of a point, or says what it would do.
func (a *app) restoreTo(ctx context.Context, c *catalog.Catalog, r request, t changelog.Target, dryRun bool) error {
	p, o, err := a.plan(ctx, c, t)
	if err != nil {
		return err
	}
	if dryRun {
		if a.output == "json" {
			return a.printJSON(o)
		}
		return a.printf("this would be restored:\n%s", o.text())
	}
	a.note("this is restored:\n%s", strings.TrimSuffix(o.text(), "\n"))
	r.backup = p.Base
	r.options.ToRevision, r.options.ToTime, r.options.Latest = t.Revision, t.Time, t.Latest
	if t.Latest && t.Backup != "" { // the newest of the life that was named, whichever is going on when it begins
		r.options.ToRevision, r.options.Latest = p.Revision, false
	}
	return a.enqueue(ctx, c, r)
}
