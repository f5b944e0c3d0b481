package manager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// startBackup takes a backup beside the loop.
func (l *leadership) startBackup(ctx context.Context, spec *cluster.Spec, a model.TakeBackup) {
	l.mu.Lock()
	if l.backup != "" {
		l.mu.Unlock()
		return
	}
	l.backup = a.Reason
	wanted := l.wanted
	l.mu.Unlock()
	l.wg.Go(func() {
		l.beginDemand(ctx, a)
		name, err := l.taken(a.Command), error(nil)
		if name == "" {
			name, err = l.takeBackup(ctx, spec, a.Node, a.Reason)
		}
		if err == nil {
			err = l.closeDemand(ctx, a, name)
		}
		l.mu.Lock()
		l.backup = ""
		if err != nil && ctx.Err() == nil {
			l.backupFails++
			l.failedOn[a.Node] = time.Now()
			wait := min(5*time.Second<<min(l.backupFails, 6), 5*time.Minute)
			l.backupRetry, l.backupError = time.Now().Add(wait), err.Error()
			l.said.Errorf("backup of "+string(a.Node), "the backup (%s) on node %s failed, next attempt in %s: %v", a.Reason, a.Node, wait, err)
		}
		retryAt := l.backupRetry
		if err == nil {
			l.backupFails, l.backupError, l.backupRetry, l.backupDone = 0, "", time.Time{}, time.Now()
			l.newest, l.newestKnown, l.restored = catalog.BackupTime(name), true, false
			delete(l.failedOn, a.Node)
			if l.wanted == wanted { // else it was wanted after this one had begun
				l.wanted = ""
			}
		}
		l.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			l.failDemand(ctx, a, retryAt, err)
		}
		l.poke()
		if err == nil {
			if _, err := l.thinOut(ctx); err != nil && ctx.Err() == nil {
				l.said.Warningf("retention", "retention: %v", err)
			}
		}
	})
}

// observeBackups fills in what is known of backups.
func (l *leadership) observeBackups(o *model.Observation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	o.BackupRunning, o.BackupRetryAt, o.BackupDoneAt = l.backup, l.backupRetry, l.backupDone
	o.BackupFailed, o.Restored, o.BackupWanted = l.avoided(), l.restored, l.wanted
	o.BackupFailures, o.BackupError = l.backupFails, l.backupError
	o.Store.NewestBackup, o.Store.NewestBackupKnown = l.newest, l.newestKnown
}

// reportBackups is the same for the report.
func (l *leadership) reportBackups(r *Report) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.NewestBackup, r.BackupRunning, r.BackupError = l.newest, l.backup, cmp.Or(l.backupError, l.listError)
}

// noteRestored remembers that a restore has ended: a backup is due.
func (l *leadership) noteRestored() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.restored = true
}

// noteFailedOn remembers that a backup has failed on a node.
func (l *leadership) noteFailedOn(id cluster.NodeID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failedOn[id] = time.Now()
}

// failureMemory is how long a node on which a backup has failed is only asked if there is no other.
const failureMemory = time.Hour

// avoided are the nodes on which a backup has failed lately. mu is held.
func (l *leadership) avoided() []cluster.NodeID {
	var list []cluster.NodeID
	for id, at := range l.failedOn {
		if time.Since(at) < failureMemory {
			list = append(list, id)
		}
	}
	slices.Sort(list)
	return list
}

// takeBackup has a node stream its etcd into the store and returns the backup's name.
func (l *leadership) takeBackup(ctx context.Context, spec *cluster.Spec, node cluster.NodeID, reason string) (string, error) {
	name, err := l.m.cfg.Catalog.NextBackupName(ctx, time.Now())
	if err != nil {
		return "", err
	}
	req := &protosv1.TakeBackup{Name: name, Reason: reason, Spec: &protosv1.ClusterSpec{}}
	if spec != nil {
		req.Spec = wire.SpecToProto(*spec)
	}
	e, err := l.nodes.perform(ctx, node, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_TakeBackup{TakeBackup: req}}, l.nodes.slowAction(), nil)
	if err != nil {
		return "", err
	}
	if _, err := l.m.cfg.Catalog.BackupInfo(ctx, e.GetBackup()); errors.Is(err, catalog.ErrNotFound) {
		return "", fmt.Errorf("backup %s isn't in this store: node %s has put it elsewhere; does it have another --backup-store?", e.GetBackup(), node)
	}
	return e.GetBackup(), nil
}

// thinOut removes what isn't kept of backups and changes, within the bounds of one run. It returns whether there is more.
func (l *leadership) thinOut(ctx context.Context) (more bool, err error) {
	l.pruning.Lock()
	defer l.pruning.Unlock()
	ex, err := l.pruner.Exempt(ctx)
	if err != nil {
		return false, err
	}
	r, err := l.pruner.Run(ctx, time.Now(), ex)
	l.mu.Lock()
	l.pruned = time.Now()
	if err == nil {
		l.backups, l.pruneDenied, l.pruneLocked = r.Stored, r.Hold(), r.Locked
	}
	denied := l.pruneDenied
	l.mu.Unlock()
	if r.Backups+r.Objects+r.Segments > 0 {
		klog.Infof("retention: removed %s (%s) and %s of changes", cluster.Count(r.Backups, "backup"), cluster.Count(r.Objects, "object"), cluster.Count(r.Segments, "segment"))
	}
	if r.News || r.Refused > 0 {
		l.said.Warningf("retention denied", "retention: %s", denied)
	}
	if r.Locked > 0 {
		klog.V(2).Infof("retention: the store keeps %d objects under lock; they are looked at again from %s on", r.Locked, r.Until.UTC().Format(time.RFC3339))
	}
	return r.More && err == nil && r.RetryAt.IsZero(), err
}

// reportRetention fills in what retention has found.
func (l *leadership) reportRetention(r *Report) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.Backups, r.PruneDenied, r.PruneLocked = l.backups, l.pruneDenied, l.pruneLocked
}

const (
	// pruneInterval is how often what is too old is looked for, backups or not; pruneAgain when a run could not do everything.
	pruneInterval = time.Hour
	pruneAgain    = time.Minute
)

// prune thins out again and again, whether backups succeed or not.
func (l *leadership) prune(ctx context.Context) {
	wait := pruneInterval
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		l.mu.Lock()
		due := l.pruned.Add(wait)
		l.mu.Unlock()
		if wait = time.Until(due); wait > 0 {
			continue // a backup has done it
		}
		wait = pruneInterval
		more, err := l.thinOut(ctx)
		if err != nil && ctx.Err() == nil {
			l.said.Warningf("retention", "retention: %v", err)
		}
		if more {
			wait = pruneAgain
		}
	}
}
