package manager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// backups takes backups, one at a time, and knows when the newest one was begun.
type backups struct {
	*shared
	nodes     *nodes
	demands   *demands
	retention *retention

	mu sync.Mutex
	// running is the reason of the one that is being taken.
	running string
	retryAt time.Time
	failure string
	doneAt  time.Time
	begunAt time.Time // of the one that was done then
	fails   int
	// failedOn is when a backup last failed on a node.
	failedOn map[cluster.NodeID]time.Time
	// restored is true if a restore has ended and no backup was taken since.
	restored    bool
	newest      time.Time
	newestKnown bool
	// listError says why the newest backup isn't known.
	listError string
	// wanted says why a full backup is needed at once.
	wanted string
}

// start takes a backup beside the loop.
func (bs *backups) start(ctx context.Context, spec *cluster.Spec, a model.TakeBackup) {
	bs.mu.Lock()
	if bs.running != "" {
		bs.mu.Unlock()
		return
	}
	bs.running = a.Reason
	wanted, begun := bs.wanted, time.Now()
	bs.mu.Unlock()
	bs.wg.Go(func() {
		bs.demands.begin(ctx, a)
		name, err := bs.demands.taken(a.Command), error(nil)
		if name == "" {
			name, err = bs.take(ctx, spec, a.Node, a.Reason)
		}
		if err == nil {
			err = bs.demands.close(ctx, a, name)
		}
		bs.mu.Lock()
		bs.running = ""
		if err != nil && ctx.Err() == nil {
			bs.fails++
			bs.failedOn[a.Node] = time.Now()
			wait := min(5*time.Second<<min(bs.fails, 6), 5*time.Minute)
			bs.retryAt, bs.failure = time.Now().Add(wait), err.Error()
			if bs.fails == 1 {
				bs.m.events.add(catalog.Event{Kind: catalog.EventBackup, Term: bs.term, Phase: catalog.EventFailed,
					Text: fmt.Sprintf("the backup (%s) on node %s failed, it is tried again: %v", a.Reason, a.Node, err)}, true)
			}
			bs.said.Errorf("backup of "+string(a.Node), "the backup (%s) on node %s failed, next attempt in %s: %v", a.Reason, a.Node, wait, err)
		}
		retryAt := bs.retryAt
		if err == nil {
			bs.m.events.add(catalog.Event{Kind: catalog.EventBackup, Term: bs.term, Subject: name, Phase: catalog.EventDone,
				Text: fmt.Sprintf("backup %s (%s) was taken on node %s in %s", name, a.Reason, a.Node, time.Since(begun).Round(100*time.Millisecond))},
				bs.fails > 0 || a.Command != "")
			bs.fails, bs.failure, bs.retryAt = 0, "", time.Time{}
			bs.begunAt, bs.doneAt = begun, time.Now()
			bs.newest, bs.newestKnown, bs.restored = catalog.BackupTime(name), true, false
			delete(bs.failedOn, a.Node)
			if bs.wanted == wanted { // else it was wanted after this one had begun
				bs.wanted = ""
			}
		}
		bs.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			bs.demands.fail(ctx, a, retryAt, err)
		}
		bs.poke()
		if err == nil {
			bs.m.copiers.poke()
			if _, err := bs.retention.thinOut(ctx); err != nil && ctx.Err() == nil {
				bs.said.Warningf("retention", "retention: %v", err)
			}
		}
	})
}

// observe fills in what is known of backups.
func (bs *backups) observe(o *model.Observation) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	o.BackupRunning, o.BackupRetryAt = bs.running, bs.retryAt
	o.BackupBegunAt, o.BackupDoneAt = bs.begunAt, bs.doneAt
	o.BackupFailed, o.Restored, o.BackupWanted = bs.avoided(), bs.restored, bs.wanted
	o.BackupFailures, o.BackupError = bs.fails, bs.failure
	o.Store.NewestBackup, o.Store.NewestBackupKnown = bs.newest, bs.newestKnown
}

// report is the same for the report.
func (bs *backups) report(r *Report) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	r.NewestBackup, r.BackupRunning, r.BackupError = bs.newest, bs.running, cmp.Or(bs.failure, bs.listError)
}

// noteRestored remembers that a restore has ended: a backup is due.
func (bs *backups) noteRestored() {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	bs.restored = true
}

// noteFailedOn remembers that a backup has failed on a node.
func (bs *backups) noteFailedOn(id cluster.NodeID) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	bs.failedOn[id] = time.Now()
}

// failureMemory is how long a node on which a backup has failed is only asked if there is no other.
const failureMemory = time.Hour

// avoided are the nodes on which a backup has failed lately. mu is held.
func (bs *backups) avoided() []cluster.NodeID {
	var list []cluster.NodeID
	for id, at := range bs.failedOn {
		if time.Since(at) < failureMemory {
			list = append(list, id)
		}
	}
	slices.Sort(list)
	return list
}

// take has a node stream its etcd into the store and returns the backup's name.
func (bs *backups) take(ctx context.Context, spec *cluster.Spec, node cluster.NodeID, reason string) (string, error) {
	name, err := bs.m.cfg.Catalog.NextBackupName(ctx, time.Now())
	if err != nil {
		return "", err
	}
	req := &protosv1.TakeBackup{Name: name, Reason: reason, Spec: &protosv1.ClusterSpec{}}
	if spec != nil {
		req.Spec = wire.SpecToProto(*spec)
	}
	action := &protosv1.PerformRequest{Action: &protosv1.PerformRequest_TakeBackup{TakeBackup: req}}
	e, err := bs.nodes.perform(ctx, node, action, bs.nodes.slowAction(), nil)
	if err != nil {
		return "", err
	}
	if _, err := bs.m.cfg.Catalog.BackupInfo(ctx, e.GetBackup()); errors.Is(err, catalog.ErrNotFound) {
		return "", fmt.Errorf("backup %s isn't in this store: node %s has put it elsewhere; does it have another --backup-store?",
			e.GetBackup(), node)
	}
	return e.GetBackup(), nil
}

// learn finds the newest backup, then counts them all.
func (bs *backups) learn(ctx context.Context) {
	const what = "the newest backup isn't known yet, so no periodic backup is taken"
	retry(ctx, what, once, func(ctx context.Context) error {
		err := bs.learnNewest(ctx)
		bs.mu.Lock()
		defer bs.mu.Unlock()
		switch {
		case err != nil && ctx.Err() == nil:
			bs.listError = fmt.Sprintf("%s: %v", what, err)
		case err == nil:
			bs.listError = ""
		}
		return err
	})
	bs.poke()
	retry(ctx, "the backups can't be counted", once, bs.retention.countBackups)
	bs.poke()
}

func (bs *backups) learnNewest(ctx context.Context) error {
	list, err := bs.m.cfg.Catalog.RecentBackups(ctx, time.Now())
	if err != nil {
		return err
	}
	bs.mu.Lock()
	defer bs.mu.Unlock()
	if bs.newestKnown {
		return nil // a backup was taken meanwhile
	}
	bs.newestKnown, bs.newest = true, time.Time{}
	if b, ok := list.NewestSound(time.Now()); ok {
		bs.newest = b.TakenBy(time.Now())
	}
	return nil
}

// want has a full backup taken at once.
func (bs *backups) want(reason string) {
	bs.mu.Lock()
	bs.wanted = reason
	bs.mu.Unlock()
	bs.poke()
}
