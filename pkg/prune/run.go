package prune

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

const (
	// firstWait and longestWait bound how long a store that has denied deleting isn't asked again.
	firstWait   = time.Hour
	longestWait = 24 * time.Hour
	// holdWait is when an object under a legal hold is looked at again: nobody says when it ends.
	holdWait = 24 * time.Hour
)

// Result is what a run has done.
type Result struct {
	// Backups and Segments are how many went, Objects how many objects were deleted for the former.
	Backups, Objects, Segments int
	// Stored is how many backups are left.
	Stored int
	// Locked is how many objects the store keeps under lock, Until when the first of them is looked at again.
	Locked int
	Until  time.Time
	// Denied says why the store refuses to delete, RetryAt when it is asked again; News is true if that wasn't known before.
	Denied  string
	RetryAt time.Time
	News    bool
	// Refused is how many objects the store would not delete in this run although others went, and Waiting how many backups and segments
	// now wait for that reason, each on its own. RefusedWhy says why, of one of them.
	Refused, Waiting int
	RefusedWhy       string
	// More is true if there was more to do than one run does.
	More bool
}

// Run finds out what goes, and deletes it. What is under lock, and what the store denies, is in the result and no error.
func (p *Pruner) Run(ctx context.Context, clock time.Time, ex Exempt) (Result, error) {
	w, err := p.catalog.BackupWindow(ctx, p.after, p.held, clock, lookBack)
	if err != nil {
		return Result{}, err
	}
	pl, err := p.plan(ctx, clock, ex, w, false)
	if err != nil {
		return Result{}, err
	}
	return p.Carry(ctx, clock, pl)
}

// Carry does what a plan says.
func (p *Pruner) Carry(ctx context.Context, clock time.Time, pl *Plan) (Result, error) {
	r := Result{Stored: pl.Stored, More: pl.More, RetryAt: p.retryAt}
	if clock.Before(p.retryAt) {
		r.Denied = "the store has denied deleting"
		return r, nil
	}
	t := &tally{p: p, clock: clock, r: &r, pl: pl, stayed: map[string]bool{}}
	if len(pl.backups) > 0 {
		n, err := p.catalog.DeleteBackups(ctx, pl.backups...)
		t.collect(err)
		r.Objects = n
		t.countBackups(ctx, n)
	}
	for _, d := range pl.segments {
		if denied(t.rest) || ctx.Err() != nil {
			break
		}
		n, err := p.catalog.DeleteSegments(ctx, d.incarnation, d.names)
		t.collect(err)
		r.Segments += n
	}
	if len(t.rest) == 0 {
		for _, id := range pl.records {
			t.collect(p.catalog.DeleteIncarnation(ctx, id))
		}
	}
	t.settle()
	return r, p.outcome(clock, t.rest, &r)
}

// tally sorts what came of a run.
type tally struct {
	p     *Pruner
	clock time.Time
	r     *Result
	pl    *Plan
	// refused are what the store would not delete, one by one; rest are errors about the whole;
	// stayed are the backups of which something is left.
	refused []*blob.Error
	rest    []error
	stayed  map[string]bool
}

func (t *tally) collect(err error) {
	locked, others := blob.SplitLocked(err)
	t.p.lock(t.clock, locked, t.r)
	for _, l := range locked {
		t.stays(l.Keys)
	}
	for _, o := range others {
		refused, rest := blob.SplitRefused(o)
		for _, e := range refused {
			t.stays(e.Keys)
		}
		t.refused, t.rest = append(t.refused, refused...), append(t.rest, rest...)
	}
}

func (t *tally) stays(keys []string) {
	for _, key := range keys {
		t.stayed[itemOf(key)] = true
	}
}

// itemOf is what waits because of an object: its backup, or the object itself if it is one of the changes'.
func itemOf(key string) string {
	if strings.HasPrefix(key, "changes/") {
		return key
	}
	return path.Dir(key)
}

// countBackups counts those that went whole. After an error that names no object the store is asked what is left.
func (t *tally) countBackups(ctx context.Context, objects int) {
	if len(t.rest) > 0 {
		if objects == 0 {
			return
		}
		list, err := t.p.catalog.BackupsOf(ctx, setOf(t.pl.backups))
		if err != nil {
			return // then only the objects are known
		}
		for _, name := range list.AllNames() {
			t.stayed[name] = true
		}
	}
	gone := make([]string, 0, len(t.pl.backups))
	for _, name := range t.pl.backups {
		if !t.stayed[name] {
			gone = append(gone, name)
		}
	}
	t.r.Backups = len(gone)
	t.r.Stored -= complete(t.pl, gone)
}

// refusal is how long one thing isn't tried again that the store would not delete.
type refusal struct {
	until time.Time
	wait  time.Duration
	why   string
}

// storeDenies is how many things must be refused, with nothing deleted in between, before it is the store that is taken to deny.
const storeDenies = 3

// settle gives everything that was refused a wait of its own, unless it's the store that deletes nothing: then all of it waits together.
func (t *tally) settle() {
	p := t.p
	if t.r.Objects+t.r.Segments > 0 {
		p.inARow = 0
	}
	items := map[string]string{}
	for _, e := range t.refused {
		for _, key := range e.Keys {
			items[itemOf(key)] = e.Error()
		}
		t.r.Refused += len(e.Keys)
	}
	for item := range items {
		if _, known := p.refused[item]; !known {
			p.inARow++
		}
	}
	if len(items) > 0 && t.r.Objects+t.r.Segments == 0 && (p.wait > 0 || p.inARow >= storeDenies) {
		t.r.Refused = 0
		for _, e := range t.refused {
			t.rest = append(t.rest, e)
		}
	} else {
		for item, why := range items {
			wait := min(max(firstWait, 2*p.refused[item].wait), longestWait)
			p.refused[item] = refusal{t.clock.Add(wait), wait, why}
		}
	}
	for _, item := range slices.Sorted(maps.Keys(p.refused)) {
		if f := p.refused[item]; t.clock.Before(f.until) {
			t.r.Waiting++
			t.r.RefusedWhy = f.why
		}
	}
}

// Hold says what isn't removed although it should be, and why; empty if the store deletes what it is asked to.
func (r Result) Hold() string {
	switch {
	case r.Denied != "":
		return fmt.Sprintf("nothing is removed from the store before %s: %s", r.RetryAt.UTC().Format(time.RFC3339), r.Denied)
	case r.Waiting > 0:
		return fmt.Sprintf("the store refused to delete %d backups or segments, and each is tried again later: %s", r.Waiting, r.RefusedWhy)
	}
	return ""
}

// waits says why an item isn't tried now; empty if it is.
func (p *Pruner) waits(item string, clock time.Time) string {
	f, ok := p.refused[item]
	if !ok || !clock.Before(f.until) {
		return ""
	}
	return "the store refused to delete it; tried again " + f.until.UTC().Format(time.RFC3339)
}

// complete counts the backups among what went; the others were leftovers.
func complete(pl *Plan, gone []string) int {
	went := setOf(gone)
	n := 0
	for _, b := range pl.Listed.Backups {
		if went[b.Name] {
			n++
		}
	}
	return n
}

func setOf(names []string) map[string]bool {
	set := make(map[string]bool, len(names))
	for _, name := range names {
		set[name] = true
	}
	return set
}

// outcome makes of a denial a longer wait, and an error of everything else.
func (p *Pruner) outcome(clock time.Time, rest []error, r *Result) error {
	if len(rest) == 0 {
		p.wait, p.retryAt, r.RetryAt = 0, time.Time{}, time.Time{}
		return nil
	}
	err := errors.Join(rest...)
	if !denied(rest) {
		return fmt.Errorf("prune: %w", err)
	}
	r.News = p.wait == 0
	p.wait = min(max(firstWait, 2*p.wait), longestWait)
	p.retryAt = clock.Add(p.wait)
	r.Denied, r.RetryAt = err.Error(), p.retryAt
	return nil
}

func denied(errs []error) bool { return errors.Is(errors.Join(errs...), catalog.ErrDenied) }

// lock remembers what must not be tried again before.
func (p *Pruner) lock(clock time.Time, locked []*catalog.LockedError, r *Result) {
	for _, l := range locked {
		until := clock.Add(holdWait)
		if !l.Until.IsZero() && (!l.LegalHold || l.Until.Before(until)) {
			until = l.Until
		}
		for _, key := range l.Keys {
			r.Locked++
			p.locked[itemOf(key)] = until
		}
		if r.Until.IsZero() || until.Before(r.Until) {
			r.Until = until
		}
	}
}
