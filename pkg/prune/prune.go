// Package prune carries retention out: it gathers what pkg/plan needs to decide which backups and
// changes stay, explains every decision, and deletes the rest in batches.
//
// It reads names wherever they are enough, and the manifests of only a few backups, which it
// remembers. It must never delete on a guess: what it can't find out about, it leaves. What the
// store has under lock is no failure, and a store that denies deleting is asked again ever more
// rarely.
package prune

import (
	"context"
	"maps"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/retention"
)

// Bounds of one run; what is left over is for the next.
const (
	maxBackups  = 1000
	maxSegments = 5000
	// maxListed is how many old segments of an incarnation are looked at.
	maxListed = 2 * maxSegments
	// maxManifests is how many manifests are read that aren't known yet.
	maxManifests = 60
	// maxChains is how many stretches of changes are listed to find out whether a backup among them may go.
	maxChains = 10
	// maxHeld is how many backups are held at a time. Of more than that each run looks at the next ones in the order of their names, and
	// may remove maxInWindow, as listing them all takes many requests.
	maxHeld     = 40_000
	maxInWindow = 10 * maxBackups
)

// Policy says how long things are kept.
type Policy struct {
	Backups retention.Policy
	// Changes is how long every change is kept; 0 means as long as a backup of each hour.
	Changes time.Duration
}

func (p Policy) changes() time.Duration {
	if p.Changes == 0 {
		return p.Backups.Hourly
	}
	return p.Changes
}

// Exempt is what is needed for another reason.
type Exempt struct {
	// Backups says of backups by name why they stay.
	Backups map[string]string
	// Safety are the backups from before restores, and when they were made: by them restores are undone.
	Safety map[string]time.Time
	// SafetyChanges are the changes that such backups need.
	SafetyChanges []SafetyChanges
	// Changes, if not empty, says why no changes are removed at all.
	Changes string
}

// SafetyChanges are the changes that lead to the state before a restore, and when that was recorded.
type SafetyChanges struct {
	To catalog.SafetyPoint
	At time.Time
}

// Pruner removes what isn't kept. It is for one goroutine at a time, and remembers what it has read from run to run.
type Pruner struct {
	catalog *catalog.Catalog
	policy  Policy

	bases  map[string]known
	proofs map[string]knownProof
	ops    map[string]knownOperation
	// locked is until when things are not tried again, by backup name or segment key.
	locked map[string]time.Time
	// refused is what the store would not delete, each with a wait of its own, by backup name or segment key.
	refused map[string]refusal
	// inARow is how many were refused for the first time since something last went.
	inARow int
	// stretch is what was listed last.
	stretch stretch
	// held is how many backups are held at a time, and after the name behind which the next run looks, if there are more.
	held  int
	after string
	// retryAt and wait are for a store that denies.
	retryAt time.Time
	wait    time.Duration
}

// known is what the manifest of a backup says; usable is false for one that changes can't be put on.
type known struct {
	usable   bool
	cluster  catalog.Incarnation
	revision int64
}

type knownProof struct {
	at    time.Time
	proof catalog.Proof
}

// New makes a pruner. It sends no request.
func New(c *catalog.Catalog, p Policy) *Pruner {
	return &Pruner{catalog: c, policy: p, bases: map[string]known{}, proofs: map[string]knownProof{}, locked: map[string]time.Time{},
		refused: map[string]refusal{}, held: maxHeld}
}

// Keep changes how long things are kept, from the next run on.
func (p *Pruner) Keep(policy Policy) { p.policy = policy }

// Stored is the listing as retention sees it.
func Stored(list catalog.BackupList) []retention.Backup {
	stored := make([]retention.Backup, 0, len(list.Backups)+len(list.Leftovers))
	for _, b := range list.Backups {
		stored = append(stored, retention.Backup{Name: b.Name, Time: b.Time, Complete: true, Proven: b.Proven,
			Disproven: b.Disproven, Pinned: b.Pinned})
	}
	for _, b := range list.Leftovers {
		stored = append(stored, retention.Backup{Name: b.Name, Time: b.Modified})
	}
	return stored
}

// Now is the earlier one of this machine's clock and the store's: a clock that is ahead must not make things look old.
func Now(list catalog.BackupList, now time.Time) time.Time {
	if w := list.LastWritten(); !w.IsZero() && w.Before(now) {
		return w
	}
	return now
}

// Decision says of a backup, or of a run of segments, whether it stays and why.
type Decision struct {
	// Backup is the name of one; empty for segments.
	Backup string
	// Incarnation, First, Last, Began and Ended tell which Segments of changes are meant. Open is
	// true if there are more behind them, which weren't counted.
	Incarnation catalog.Incarnation
	First, Last int64
	Ended       time.Time
	Segments    int
	Open        bool
	// Size is in bytes.
	Size   int64
	Keep   bool
	Reason string
}

// Plan is what a run would do.
type Plan struct {
	// Decisions are those about backups, the oldest first, and then those about changes.
	Decisions []Decision
	// Listed are the backups that there are; of very many those that were looked at. Stored is how many complete ones there are. More is
	// true if not everything that goes is in this run.
	Listed catalog.BackupList
	Stored int
	More   bool

	backups  []string
	segments []doomed
	records  []catalog.Incarnation
}

type doomed struct {
	incarnation catalog.Incarnation
	names       []catalog.SegmentName
}

// Counts returns how many backups and segments go.
func (p *Plan) Counts() (backups, segments int) {
	for _, d := range p.segments {
		segments += len(d.names)
	}
	return len(p.backups), segments
}

// Plan finds out what goes, and deletes nothing. It holds all backups, since it says of each why it stays or goes.
func (p *Pruner) Plan(ctx context.Context, clock time.Time, ex Exempt) (*Plan, error) {
	list, err := p.catalog.Backups(ctx)
	if err != nil {
		return nil, err
	}
	return p.plan(ctx, clock, ex, catalog.Window{BackupList: list, Whole: true, Count: len(list.Backups)}, true)
}

// plan leaves out why each backup stays or goes if nobody is to be told: there may be a hundred thousand.
func (p *Pruner) plan(ctx context.Context, clock time.Time, ex Exempt, w catalog.Window, explain bool) (*Plan, error) {
	defer func() { p.stretch = stretch{} }()
	s := &survey{p: p, now: Now(w.BackupList, clock), clock: clock, list: w.BackupList, window: w, stored: Stored(w.BackupList), exempt: ex,
		explain: explain, plan: &Plan{Listed: w.BackupList, Stored: w.Count}}
	p.forget(w, clock)
	if err := s.gather(ctx); err != nil {
		return nil, err
	}
	if err := s.decideBackups(ctx); err != nil {
		return nil, err
	}
	if len(s.plan.backups) == 0 && !s.plan.More { // nothing goes here: the next run looks on
		p.after = w.Until
	}
	s.decideSegments()
	if err := s.decideRecords(ctx); err != nil {
		return nil, err
	}
	return s.plan, nil
}

// forget drops what is remembered of backups that are gone or not looked at, and locks that have ended.
func (p *Pruner) forget(w catalog.Window, now time.Time) {
	list := w.BackupList
	bases, proofs := map[string]known{}, map[string]knownProof{}
	for _, b := range list.Backups {
		if k, ok := p.bases[b.Name]; ok {
			bases[b.Name] = k
		}
		if k, ok := p.proofs[b.Name]; ok {
			proofs[b.Name] = k
		}
	}
	p.bases, p.proofs = bases, proofs
	for name, r := range p.refused {
		if now.Sub(r.until) > longestWait { // it is tried no more: it's gone, or it is kept
			delete(p.refused, name)
		}
	}
	for name, until := range p.locked {
		if !now.Before(until) {
			delete(p.locked, name)
		}
	}
	if w.Whole {
		return
	}
	// As many may be under lock as there are: what isn't looked at is forgotten, and asked for again when it is.
	maps.DeleteFunc(p.locked, func(name string, _ time.Time) bool { return backupOutside(w, name) })
	maps.DeleteFunc(p.refused, func(name string, _ refusal) bool { return backupOutside(w, name) })
}

func backupOutside(w catalog.Window, item string) bool {
	return !strings.HasPrefix(item, "changes/") && !w.Has(item)
}
