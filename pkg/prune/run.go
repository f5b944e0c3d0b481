package prune

import (
	"context"
	"errors"
	"fmt"
	"path"
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
	// More is true if there was more to do than one run does.
	More bool
}

// Run finds out what goes, and deletes it. What is under lock, and what the store denies, is in the result and no error.
func (p *Pruner) Run(ctx context.Context, clock time.Time, ex Exempt) (Result, error) {
	pl, err := p.Plan(ctx, clock, ex)
	if err != nil {
		return Result{}, err
	}
	return p.Carry(ctx, clock, pl)
}

// Carry does what a plan says.
func (p *Pruner) Carry(ctx context.Context, clock time.Time, pl *Plan) (Result, error) {
	r := Result{Stored: len(pl.Listed.Backups), More: pl.More, RetryAt: p.retryAt}
	if clock.Before(p.retryAt) {
		r.Denied = "the store has denied deleting"
		return r, nil
	}
	var rest []error
	collect := func(err error) {
		locked, others := blob.SplitLocked(err)
		p.lock(clock, locked, &r)
		rest = append(rest, others...)
	}
	if len(pl.backups) > 0 {
		n, err := p.catalog.DeleteBackups(ctx, pl.backups...)
		collect(err)
		r.Objects = n
		if err == nil {
			r.Backups = len(pl.backups)
			r.Stored -= complete(pl)
		}
	}
	for _, d := range pl.segments {
		if denied(rest) || ctx.Err() != nil {
			break
		}
		n, err := p.catalog.DeleteSegments(ctx, d.incarnation, d.names)
		collect(err)
		r.Segments += n
	}
	if len(rest) == 0 {
		for _, id := range pl.records {
			collect(p.catalog.DeleteIncarnation(ctx, id))
		}
	}
	return r, p.outcome(clock, rest, &r)
}

// complete counts the backups among what went; the others were leftovers.
func complete(pl *Plan) int {
	there := map[string]bool{}
	for _, b := range pl.Listed.Backups {
		there[b.Name] = true
	}
	n := 0
	for _, name := range pl.backups {
		if there[name] {
			n++
		}
	}
	return n
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
			if strings.HasPrefix(key, "changes/") {
				p.locked[key] = until
			} else {
				p.locked[path.Dir(key)] = until
			}
		}
		if r.Until.IsZero() || until.Before(r.Until) {
			r.Until = until
		}
	}
}
