package manager

import (
	"context"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/prune"
)

// retention removes what isn't kept of backups, changes and old records, and knows how many backups
// there are.
type retention struct {
	*shared

	pruning turn // held by one who prunes
	pruner  *prune.Pruner
	// eventsPruned is when old events were last removed; pruning guards it.
	eventsPruned time.Time

	mu     sync.Mutex
	stored int // backups
	// pruned is when retention last ran, denied why it can't delete, and locked how many objects it
	// found under lock.
	pruned time.Time
	denied string
	locked int
}

const (
	// pruneInterval is how often what is too old is looked for, backups or not; pruneAgain when a run
	// could not do everything.
	pruneInterval = time.Hour
	pruneAgain    = time.Minute
	// eventsPruneInterval is how often old events are removed.
	eventsPruneInterval = 24 * time.Hour
)

// The list of backups grows with what is stored, so no decision waits for it. What decisions need
// of it is found beside the loop:
//
//   - when the newest backup was begun. Until that is known no periodic backup is taken, and nothing else waits: the cluster is healed,
//     commands are obeyed, restores begin, and terms are taken;
//   - how many backups there are, which is only shown. It is counted once in the life of the process, by whoever leads, and goes on
//     where it broke off when a leadership ends; after that retention, which lists them anyway, keeps it right.

// backupCount is what is known over all leaderships of the process of how many backups there are.
type backupCount struct {
	scan *catalog.BackupScan
	n    int
	done bool
}

// thinOut removes what isn't kept of backups and changes, within the bounds of one run. It returns
// whether there is more.
func (rt *retention) thinOut(ctx context.Context) (more bool, err error) {
	if err := rt.pruning.take(ctx); err != nil {
		return false, err
	}
	defer rt.pruning.give()
	if !rt.trusted() {
		return false, nil
	}
	rt.pruner.Keep(rt.m.cfg.tuned().Retention)
	ex, err := rt.pruner.Exempt(ctx)
	if err != nil {
		return false, err
	}
	rt.prunePutBacks(ctx)
	rt.pruneEvents(ctx)
	r, err := rt.pruner.Run(ctx, time.Now(), ex)
	rt.mu.Lock()
	rt.pruned = time.Now()
	if err == nil {
		rt.stored, rt.denied, rt.locked = r.Stored, r.Hold(), r.Locked
	}
	denied := rt.denied
	rt.mu.Unlock()
	if r.Backups+r.Objects+r.Segments > 0 {
		klog.Infof("retention: removed %s (%s) and %s of changes", cluster.Count(r.Backups, "backup"), cluster.Count(r.Objects, "object"), cluster.Count(r.Segments, "segment"))
	}
	if r.News || r.Refused > 0 {
		rt.said.Warningf("retention denied", "retention: %s", denied)
	}
	if r.Locked > 0 {
		klog.V(2).Infof("retention: the store keeps %d objects under lock; they are looked at again from %s on", r.Locked, r.Until.UTC().Format(time.RFC3339))
	}
	return r.More && err == nil && r.RetryAt.IsZero(), err
}

// trusted tells whether the store may be used at all: it may be another cluster's, a copy, or one that is only mounted later, and then
// nothing in it is for this manager to remove.
func (rt *retention) trusted() bool {
	_, problem := rt.m.probed()
	return problem == ""
}

// report fills in what retention has found.
func (rt *retention) report(r *Report) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	r.Backups, r.PruneDenied, r.PruneLocked = rt.stored, rt.denied, rt.locked
}

// prune thins out again and again, whether backups succeed or not.
func (rt *retention) prune(ctx context.Context) {
	wait := pruneInterval
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		rt.mu.Lock()
		due := rt.pruned.Add(wait)
		rt.mu.Unlock()
		if wait = time.Until(due); wait > 0 {
			continue // a backup has done it
		}
		wait = pruneInterval
		more, err := rt.thinOut(ctx)
		if err != nil && ctx.Err() == nil {
			rt.said.Warningf("retention", "retention: %v", err)
		}
		if more {
			wait = pruneAgain
		}
	}
}

// countBackups counts to the end of the list. Only one leadership of a process exists at a time,
// and only its one goroutine calls it.
func (rt *retention) countBackups(ctx context.Context) error {
	c := &rt.m.counted
	if c.scan == nil {
		c.scan = rt.m.cfg.Catalog.ScanBackups(func(catalog.Backup) { c.n++ }, nil)
	}
	if !c.done {
		begun := time.Now()
		if err := c.scan.Run(ctx); err != nil {
			return err
		}
		c.done = true
		klog.V(2).Infof("there are %d backups; it took %s to list them", c.n, time.Since(begun).Round(time.Millisecond))
	}
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if rt.stored == 0 {
		rt.stored = c.n
	}
	return nil
}

// pruneHistory keeps the number of records bounded, beside the loop: whoever leads next reads them
// all.
func (rt *retention) pruneHistory(ctx context.Context) {
	rt.wg.Go(func() {
		if rt.pruning.take(ctx) != nil {
			return
		}
		defer rt.pruning.give()
		if _, err := rt.m.cfg.Catalog.PruneOperations(ctx, catalog.OperationHistory); err != nil && ctx.Err() == nil {
			rt.said.Warningf("old records", "the records of old operations stay for now: %v", err)
		}
		rt.prunePutBacks(ctx)
	})
}

// prunePutBacks removes what was recorded of old put-backs. pruning is held.
func (rt *retention) prunePutBacks(ctx context.Context) {
	n, err := rt.m.cfg.Catalog.PrunePutBacks(ctx)
	if err != nil && ctx.Err() == nil {
		rt.said.Warningf("old put-backs", "what old put-backs have written over stays in the store for now: %v", err)
	}
	if n > 0 {
		klog.Infof("retention: removed the plans and previous values of %s", cluster.Count(n, "old put-back"))
	}
}

// pruneEvents removes old events, once a day. pruning is held.
func (rt *retention) pruneEvents(ctx context.Context) {
	if time.Since(rt.eventsPruned) < eventsPruneInterval {
		return
	}
	if _, err := rt.m.cfg.Catalog.PruneEvents(ctx, time.Now()); err != nil {
		if ctx.Err() == nil {
			rt.said.Warningf("old events", "old events stay in the store for now: %v", err)
		}
		return
	}
	rt.eventsPruned = time.Now()
}
