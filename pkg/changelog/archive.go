package changelog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// Archive reads what was kept: backups and the changes behind them. It is safe for concurrent use.
// Many methods, since points, chains, plans and keys are all looked up in the same listings, which it keeps.
type Archive struct {
	// Catalog is where everything is, with the keys to what is encrypted.
	Catalog *catalog.Catalog
}

// candidatesAsked bounds how many backups are looked at for one to begin with.
const candidatesAsked = 12

// Plan finds out how to reach a target. It reads listings, a few manifests and at most a few segments, however much is kept.
// No backup is chosen without regard to its life: what leaves open which life is meant is refused.
func (a *Archive) Plan(ctx context.Context, t Target) (*Plan, error) {
	list, err := a.stored(ctx, t)
	if err != nil {
		return nil, err
	}
	from, err := a.candidates(ctx, list, t)
	if err != nil {
		return nil, err
	}
	var best choice
	for _, k := range from.bases[:min(len(from.bases), candidatesAsked)] {
		if best.plan != nil && best.sure && k.Life == best.plan.Incarnation {
			continue
		}
		p, err := a.planFrom(ctx, k, t)
		if err := best.take(p, err, t); err != nil {
			return nil, err
		}
		if best.plan != nil && best.sure && from.decided(best.plan, t) {
			break
		}
	}
	switch {
	case best.plan == nil && best.problem != nil:
		return nil, best.problem
	case best.plan == nil:
		return nil, a.noBase(t, list, from)
	}
	if err := from.refuse(best, t); err != nil {
		return nil, err
	}
	best.plan.Serving, best.plan.recent = from.lives.Serving, from.recent
	return best.plan, nil
}

// choice collects what the backups to begin with lead to, the best first.
type choice struct {
	plan *Plan
	// sure is false while a snapshot may be ahead of the target; whether it is shows when it is read.
	sure bool
	// other is a plan in another life.
	other   *Plan
	problem error
}

// take looks at the plan from one more backup. The error that it returns ends the search.
func (c *choice) take(p *Plan, err error, t Target) error {
	if err != nil {
		var no *UnreachableError
		if !errors.As(err, &no) && !unreadable(err) {
			return err
		}
		var first *UnreachableError
		if c.problem == nil || errors.As(c.problem, &first) && first.later {
			c.problem = err
		}
		return nil
	}
	exact := t.Revision > 0 || !t.Time.IsZero()
	sure := !exact || t.Backup != "" || p.Revision >= p.Manifest.RevisionAtMost
	switch {
	case c.plan == nil, c.plan.Incarnation == p.Incarnation && !c.sure && sure:
		c.plan, c.sure = p, sure
	case c.plan.Incarnation != p.Incarnation && c.other == nil:
		c.other = p
	}
	return nil
}

// bases are the backups to begin with, the best first, and what is known of lives.
type bases struct {
	bases []Known
	lives Lives
	// recent are the last backups of all kinds.
	recent []Known
}

// decided tells whether no other life can be meant.
func (b bases) decided(p *Plan, t Target) bool {
	return t.Revision == 0 || t.Backup != "" || t.Life != "" || p.Incarnation == b.lives.Serving
}

// refuse says that a revision is one of several lives, which a restore by other software can make: it does not raise the revision.
func (b bases) refuse(c choice, t Target) error {
	if b.decided(c.plan, t) {
		return nil
	}
	lives := []catalog.Incarnation{c.plan.Incarnation}
	if c.other != nil {
		lives = append(lives, c.other.Incarnation)
	}
	if s := b.lives; s.Serving != "" && s.From > 0 && s.From <= t.Revision && !slices.Contains(lives, s.Serving) {
		if most := highestOf(b.recent, s.Serving); most >= t.Revision {
			lives = append(lives, s.Serving)
		}
	}
	if len(lives) == 1 {
		return nil
	}
	names := []string{c.plan.Base}
	if c.other != nil {
		names = append(names, c.other.Base)
	}
	return unreachable(t, "several incarnations of the cluster (%s) have this revision, because a restore by other software does not raise it; "+
		"name the backup to begin with: %s", joined(lives), strings.Join(names, " or "))
}

func joined(lives []catalog.Incarnation) string {
	var names []string
	for _, l := range lives {
		names = append(names, string(l))
	}
	return strings.Join(names, ", ")
}

func highestOf(list []Known, life catalog.Incarnation) (most int64) {
	for _, k := range list {
		if k.Life == life {
			most = max(most, k.most())
		}
	}
	return most
}

func (a *Archive) noBase(t Target, list stored, from bases) error {
	if life := cmp.Or(t.Life, from.lives.Serving); t.Latest && life != "" {
		return unreachable(t, "incarnation %s serves, and the store has no good backup of it to which its changes can be applied; take one (create-backup), "+
			"or name a backup of another incarnation%s", life, names(eachLife(soundOnly(from.recent))))
	}
	for _, b := range list.Backups {
		if b.HasManifest {
			return unreachable(t, "the oldest backup to which changes can be applied, %s, is newer", b.Name)
		}
	}
	return unreachable(t, "there is no backup to which changes can be applied (backups of other tools don't have their revision)")
}

// names lists backups with what is known of them, behind a colon.
func names(list []Known) string {
	var words []string
	for _, k := range list {
		words = append(words, fmt.Sprintf("%s (%s)", k.Name, k.describe()))
	}
	if len(words) == 0 {
		return ""
	}
	return ": " + strings.Join(words, ", ")
}

// candidates are the backups to begin with, the best first: of the life that serves before others,
// and of a life the one with the highest revision.
func (a *Archive) candidates(ctx context.Context, list stored, t Target) (bases, error) {
	var from bases
	all := slices.DeleteFunc(slices.Clone(list.Backups), func(b catalog.Backup) bool {
		return !b.HasManifest || t.Backup != "" && b.Name != t.Backup
	})
	switch {
	case t.Backup != "" && len(all) == 0:
		return from, unreachable(t, "there is no backup %s with a manifest", t.Backup)
	case slices.ContainsFunc(all, catalog.Backup.Sound) && t.Backup == "":
		all = slices.DeleteFunc(all, func(b catalog.Backup) bool { return !b.Sound() })
	}
	var err error
	if from.recent, err = a.know(ctx, list.Recent(time.Now(), recentAsked)); err != nil {
		return from, err
	}
	if from.lives, err = a.ServingLife(ctx, from.recent); err != nil {
		return from, err
	}
	if t.Latest && t.Backup == "" && t.Life == "" && from.lives.Serving == "" {
		return from, &UndecidedError{Reason: from.lives.Why, Candidates: eachLife(soundOnly(from.recent))}
	}
	near, err := a.near(ctx, stored{catalog.BackupList{Backups: all}, list.whole}, t)
	if err != nil {
		return from, err
	}
	for _, b := range (catalog.BackupList{Backups: all}).Recent(time.Now(), recentAsked) {
		if !slices.ContainsFunc(near, func(n catalog.Backup) bool { return n.Name == b.Name }) {
			near = append(near, b)
		}
	}
	if from.bases, err = a.knowAgain(ctx, near, from.recent); err != nil {
		return from, err
	}
	from.bases = slices.DeleteFunc(from.bases, func(k Known) bool { return !fits(k, t, from.lives) })
	slices.SortStableFunc(from.bases, func(x, y Known) int {
		return cmp.Or(cmp.Compare(from.rank(y), from.rank(x)), compareKnown(y, x))
	})
	return from, nil
}

// knowAgain is know for backups some of which are known already.
func (a *Archive) knowAgain(ctx context.Context, backups []catalog.Backup, known []Known) ([]Known, error) {
	var out []Known
	var rest []catalog.Backup
	for _, b := range backups {
		if i := slices.IndexFunc(known, func(k Known) bool { return k.Name == b.Name }); i >= 0 {
			out = append(out, known[i])
		} else {
			rest = append(rest, b)
		}
	}
	more, err := a.know(ctx, rest)
	return append(out, more...), err
}

// rank is higher for the life that serves, and lowest for a backup whose manifest can't be used.
func (b bases) rank(k Known) int {
	switch {
	case k.Manifest == nil:
		return 0
	case k.Life == b.lives.Serving && k.Life != "":
		return 2
	}
	return 1
}

// fits tells whether a backup can be the one to begin with.
func fits(k Known, t Target, lives Lives) bool {
	switch {
	case t.Backup != "" || k.problem != nil:
		return true
	case t.Latest:
		return k.Life == cmp.Or(t.Life, lives.Serving)
	case t.Life != "" && k.Life != t.Life:
		return false
	case t.Revision > 0:
		return k.revision() <= t.Revision
	}
	return !k.Time.After(t.Time)
}

// planFrom plans with one backup to begin with.
func (a *Archive) planFrom(ctx context.Context, k Known, t Target) (*Plan, error) {
	b, m := k.Backup, k.Manifest
	if m == nil {
		return nil, k.problem
	}
	p := &Plan{Base: b.Name, Manifest: m, Revision: m.Revision, Incarnation: k.Life}
	if t.IsZero() {
		return p, a.whole(ctx, p)
	}
	if k.Life == "" && m.ClusterID != 0 {
		return nil, unreachable(t, "it isn't known to which incarnation backup %s belongs: a record below changes/ can't be used", b.Name)
	}
	if !t.Time.IsZero() && m.Started.After(t.Time) {
		return nil, &UnreachableError{Target: t, Reason: fmt.Sprintf("backup %s was begun at %s", b.Name,
			m.Started.Format("2006-01-02 15:04:05.999Z")), later: true}
	}
	// A snapshot is of a moment between the two; one that is ahead of the target can't be brought back.
	if most := max(m.RevisionAtMost, m.Revision); t.Revision > 0 && t.Revision < most && t.Revision != m.Revision {
		return nil, unreachable(t, "backup %s may go up to revision %d already, and there is none before it with changes up to the target",
			b.Name, most)
	}
	if err := a.linkFrom(ctx, p, t); err != nil {
		return nil, err
	}
	if err := a.aim(ctx, p, t); err != nil {
		return nil, a.firstBad(ctx, p, err)
	}
	return p, nil
}

// whole fills in what lies behind a backup that is the target itself. It is only shown, and an imported backup has nothing behind it.
func (a *Archive) whole(ctx context.Context, p *Plan) error {
	if p.Manifest.ClusterID == 0 {
		return nil
	}
	if err := a.linkFrom(ctx, p, Target{Revision: p.Revision}); err != nil {
		return err
	}
	p.Chain = p.Chain.To(p.Revision)
	return nil
}

// firstBad looks for a worse reason: a segment before the one that was found bad, or at which
// nothing goes on, may be bad as well, and what is offered instead has to be good.
func (a *Archive) firstBad(ctx context.Context, p *Plan, err error) error {
	if chainProblem(err) == "" {
		return err
	}
	for _, s := range p.Chain.Segments {
		c, berr := a.read(ctx, s)
		if berr == nil {
			berr = c.whole(ctx)
		}
		if chainProblem(berr) != "" {
			return berr
		} else if berr != nil {
			return err
		}
	}
	return err
}

// aim sets the revision and the times of a plan whose chain is linked.
func (a *Archive) aim(ctx context.Context, p *Plan, t Target) error {
	m := p.Manifest
	switch {
	case t.Latest:
		p.Revision, p.Time = p.Reach, time.Time{}
	case t.Revision > 0:
		if t.Revision > p.Reach {
			return a.behind(ctx, p, t)
		}
		p.Revision = t.Revision
	default:
		if err := a.atTime(ctx, p, t); err != nil {
			return err
		}
		if most := max(m.RevisionAtMost, m.Revision); p.Revision < most && p.Revision != m.Revision {
			return unreachable(t, "backup %s may go up to revision %d already, and at that time it was %d", p.Base, most, p.Revision)
		}
	}
	p.Chain = p.Chain.To(p.Revision)
	if err := a.times(ctx, p); err != nil {
		return err
	}
	if p.Revision == p.Reach && p.Until.Before(p.ReachTime) {
		p.Until = p.ReachTime
	}
	return nil
}

// linkFrom finds the chain behind the base, in the incarnation of the base's cluster.
func (a *Archive) linkFrom(ctx context.Context, p *Plan, t Target) error {
	id := p.Incarnation
	if id == "" {
		return unreachable(t, "backup %s was imported, so it isn't known which changes follow it", p.Base)
	}
	segments, more, err := a.segments(ctx, id, p.Manifest.Revision, t)
	if err != nil {
		return err
	}
	p.More = more
	p.Incarnation, p.Chain = id, Link(segments, p.Manifest.Revision)
	p.Reach, p.ReachTime = p.Chain.Reach()
	if p.ReachTime.IsZero() {
		p.ReachTime = p.Manifest.Started
	}
	return nil
}

// Enough is how far behind a target the listing goes: what would be lost is known by and large then.
const Enough = 2 * time.Hour

// segments lists what may be needed. more tells that there are others behind it.
func (a *Archive) segments(ctx context.Context, id catalog.Incarnation, from int64, t Target) (list []catalog.Segment,
	more bool, err error) {
	for s, err := range a.Catalog.Segments(ctx, id, from) {
		if err != nil {
			return nil, false, err
		}
		if n := len(list); n > 0 {
			far := !t.Time.IsZero() && s.Ended.After(t.Time.Add(Enough)) || t.Revision > 0 && s.First > t.Revision+
				catalog.MaxSegmentRevisions
			if far && list[n-1].Last < s.First {
				return list, true, nil
			}
		}
		list = append(list, s)
	}
	return list, false, nil
}

func withManifest(b catalog.Backup) bool { return b.HasManifest }

// times finds when the state of the plan's revision began and ended.
func (a *Archive) times(ctx context.Context, p *Plan) error {
	if p.Revision == p.Reach {
		p.Until = p.ReachTime
	}
	for _, s := range slices.Backward(p.Chain.Segments) {
		if s.Last < s.First || s.First > p.Revision {
			continue
		}
		c, err := a.read(ctx, s)
		if err != nil {
			return err
		}
		return c.Marks(ctx, a.Catalog.Opener(), func(m *protosv1.Mark) error {
			at, since := markTimes(m)
			switch r := m.GetRevision(); {
			case r >= p.Revision && p.Time.IsZero():
				p.Time, p.Uncertain, p.Until = at, since, at
			case r == p.Revision, r > p.Revision && p.Until.Equal(p.Time):
				p.Until = at
			}
			return nil
		})
	}
	return nil
}

// behind says that a target is beyond what was kept, and why.
func (a *Archive) behind(ctx context.Context, p *Plan, t Target) error {
	reason := fmt.Sprintf("from backup %s the changes reach revision %d at %s", p.Base, p.Reach,
		p.ReachTime.Format("2006-01-02 15:04:05.999Z"))
	if beyond := a.beyond(ctx, p); beyond != "" {
		reason += "; " + beyond
	}
	return unreachable(t, "%s; the nearest point is --to-revision=%d", reason, p.Reach)
}

// beyond says what lies behind the end of a chain.
func (a *Archive) beyond(ctx context.Context, p *Plan) string {
	for s, err := range a.Catalog.Segments(ctx, p.Incarnation, p.Reach+1) {
		switch {
		case err != nil:
			return ""
		case s.Begins() && s.First > p.Reach+1:
			if c, err := a.read(ctx, s); err == nil {
				return c.Header.GetBegins()
			}
			return fmt.Sprintf("the changes from revision %d to %d are missing", p.Reach+1, s.First-1)
		case s.First > p.Reach+1:
			return fmt.Sprintf("a segment that begins with revision %d is lost", p.Reach+1)
		}
	}
	incarnations, _, err := a.Catalog.Incarnations(ctx)
	if err != nil {
		return ""
	}
	for _, i := range incarnations {
		if i.Origin != nil && i.Origin.Replaced == p.Incarnation {
			return fmt.Sprintf("a restore (%s) replaced it at %s", i.Origin.Operation, i.Began.Format("2006-01-02 15:04:05Z"))
		}
	}
	return ""
}

// Find lists the segments of a point that was planned before.
func (a *Archive) Find(ctx context.Context, p *catalog.PointInTime) (Chain, error) {
	if p.Head == "" {
		return Chain{Base: p.BaseRevision}, nil
	}
	head, err := catalog.ParseSegmentName(p.Head)
	if err != nil {
		return Chain{}, err
	}
	var list []catalog.Segment
	for s, err := range a.Catalog.Segments(ctx, p.Incarnation, p.BaseRevision) {
		if err != nil {
			return Chain{}, err
		}
		if s.First > head.Last+1 {
			break
		}
		list = append(list, s)
	}
	c := LinkTo(list, p.BaseRevision, head)
	if len(c.Segments) == 0 {
		return Chain{}, &Error{Segment: catalog.Segment{SegmentName: head, Incarnation: p.Incarnation}.Key(), Kind: catalog.ErrNotFound,
			Err:  fmt.Errorf("it, or a segment between revision %d and it, is gone", p.BaseRevision),
			Good: Link(list, p.BaseRevision).reach()}
	}
	return c, nil
}
