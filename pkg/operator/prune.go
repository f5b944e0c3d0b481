package operator

import (
	"context"
	"fmt"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/prune"
	"github.com/etcd-manager/etcd-manager/pkg/retention"
)

// Retention is how long backups and changes are kept. It should be the managers' own.
type Retention struct {
	// Hourly is how long a backup of each hour is kept, Daily that of each day.
	Hourly, Daily time.Duration
	// Changes is how long every change is kept; 0 means as long as Hourly.
	Changes time.Duration
}

// DefaultRetention is what managers keep if they are told nothing.
func DefaultRetention() Retention {
	b := retention.Default()
	return Retention{b.Hourly, b.Daily, retention.DefaultChanges}
}

func (r Retention) policy() prune.Policy {
	p := prune.Policy{Backups: retention.Default(), Changes: r.Changes}
	p.Backups.Hourly, p.Backups.Daily = r.Hourly, r.Daily
	return p
}

// PruneDecision is what is done with one backup, or with a run of changes, and why.
type PruneDecision = prune.Decision

// PrunePlan is what retention gives up.
type PrunePlan struct {
	*prune.Plan
	pruner *prune.Pruner
}

// Pruned is what was removed.
type Pruned = prune.Result

// PlanPrune says of each backup and of all changes whether they are kept, and why. It removes
// nothing. What is pinned, what a queued restore names, the newest backup, and the newest proven
// one with what leads to it are always kept.
func (c *Client) PlanPrune(ctx context.Context, r Retention) (*PrunePlan, error) {
	p := &PrunePlan{pruner: prune.New(c.catalog, r.policy())}
	return p, c.planPrune(ctx, p)
}

func (c *Client) planPrune(ctx context.Context, p *PrunePlan) error {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	ex, err := p.pruner.Exempt(ctx)
	if err != nil {
		return err
	}
	p.Plan, err = p.pruner.Plan(ctx, c.Now(), ex)
	return err
}

// PruneDeniedError says that the store refuses to remove something. It is ErrDenied.
type PruneDeniedError struct {
	// Pruned is what was removed. All is true if the store refused as a whole, and nothing further
	// was tried; else Pruned.Refused counts the objects.
	Pruned Pruned
	All    bool
	Why    string
}

func (e *PruneDeniedError) Error() string {
	return fmt.Sprintf("%v: %s", catalog.ErrDenied, e.Why)
}

// Unwrap gives ErrDenied.
func (e *PruneDeniedError) Unwrap() error { return ErrDenied }

// Prune carries a plan out, and what retention gives up after it, until nothing is left. What is
// removed follows the rule, not the list: what the plan shows may have changed meanwhile. What the
// store refuses is a *PruneDeniedError, a store that is a copy a *CopyError.
func (c *Client) Prune(ctx context.Context, p *PrunePlan) (Pruned, error) {
	if err := c.managed(ctx); err != nil {
		return Pruned{}, err // a copy has a retention of its own, which whoever copies carries out
	}
	var sum Pruned
	for {
		r, err := p.pruner.Carry(ctx, c.Now(), p.Plan)
		sum.Refused += r.Refused
		if r.RefusedWhy != "" {
			sum.RefusedWhy = r.RefusedWhy
		}
		sum.Backups, sum.Segments, sum.Objects, sum.Locked = sum.Backups+r.Backups, sum.Segments+r.Segments,
			sum.Objects+r.Objects, sum.Locked+r.Locked
		if err != nil {
			return sum, err
		}
		if r.Denied != "" {
			return sum, &PruneDeniedError{sum, true, r.Denied}
		}
		// What is left for later has to wait, for a restore that is queued perhaps.
		if !r.More || r.Backups+r.Segments+r.Objects+r.Locked+r.Refused == 0 {
			break
		}
		if err := c.planPrune(ctx, p); err != nil {
			return sum, err
		}
	}
	if sum.Refused > 0 {
		return sum, &PruneDeniedError{sum, false, sum.RefusedWhy}
	}
	return sum, nil
}
