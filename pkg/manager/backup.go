package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// startBackup takes a backup beside the loop.
func (l *leadership) startBackup(ctx context.Context, spec *cluster.Spec, a plan.TakeBackup) {
	l.mu.Lock()
	if l.backup != "" {
		l.mu.Unlock()
		return
	}
	l.backup = a.Reason
	l.mu.Unlock()
	l.wg.Go(func() {
		name, err := l.takeBackup(ctx, spec, a.Node, a.Reason)
		l.mu.Lock()
		l.backup = ""
		if err != nil && ctx.Err() == nil {
			l.backupFails++
			l.failedOn[a.Node] = time.Now()
			wait := min(5*time.Second<<min(l.backupFails, 6), 5*time.Minute)
			l.backupRetry, l.backupError = time.Now().Add(wait), err.Error()
			klog.Errorf("the backup (%s) on node %s failed, next attempt in %s: %v", a.Reason, a.Node, wait, err)
		}
		if err == nil {
			l.backupFails, l.backupError, l.backupRetry, l.backupDone = 0, "", time.Time{}, time.Now()
			l.newest, l.newestKnown, l.restored = catalog.BackupTime(name), true, false
			delete(l.failedOn, a.Node)
		}
		l.mu.Unlock()
		l.poke()
		if err == nil {
			if err := l.thinOut(ctx); err != nil && ctx.Err() == nil {
				klog.Warningf("retention: %v", err)
			}
		}
	})
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
	list, err := l.m.cfg.Catalog.Backups(ctx)
	if err != nil {
		return "", err
	}
	name := catalog.NewBackupName(time.Now(), list.Names())
	req := &protosv1.TakeBackup{Name: name, Reason: reason, Spec: &protosv1.ClusterSpec{}}
	if spec != nil {
		req.Spec = wire.SpecToProto(*spec)
	}
	e, err := l.perform(ctx, node, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_TakeBackup{TakeBackup: req}}, slowAction, nil)
	if err != nil {
		return "", err
	}
	if _, err := l.m.cfg.Catalog.BackupInfo(ctx, e.GetBackup()); errors.Is(err, catalog.ErrNotFound) {
		return "", fmt.Errorf("backup %s isn't in this store: node %s has put it elsewhere; does it have another --backup-store?", e.GetBackup(), node)
	}
	return e.GetBackup(), nil
}

// thinOut removes what the retention policy doesn't keep, in one batch.
func (l *leadership) thinOut(ctx context.Context) error {
	list, err := l.m.cfg.Catalog.Backups(ctx)
	if err != nil {
		return err
	}
	names := expired(list, trustedNow(list), l.m.cfg.Retention)
	if len(names) > 0 {
		if names, err = l.unqueued(ctx, names); err != nil {
			return err
		}
	}
	l.mu.Lock()
	l.backups = len(list.Backups) - len(names)
	l.mu.Unlock()
	if len(names) == 0 {
		return nil
	}
	n, err := l.m.cfg.Catalog.DeleteBackups(ctx, names...)
	if n > 0 {
		klog.Infof("retention: removed %d backups (%d objects)", len(names), n)
	}
	if err != nil {
		return fmt.Errorf("remove %d backups: %w", len(names), err)
	}
	return nil
}

// safetyKept is how long the backup from before a restore is kept, whatever the retention policy says.
const safetyKept = 7 * 24 * time.Hour

// unqueued leaves out the backups that queued restores name, and those by which a restore can be undone. As long as a command can't be
// read, every backup may be meant.
func (l *leadership) unqueued(ctx context.Context, names []string) ([]string, error) {
	cmds, problems, err := l.m.cfg.Catalog.Commands(ctx)
	if err != nil {
		return nil, err
	}
	if len(problems) > 0 {
		return nil, fmt.Errorf("no backup is removed while a queued command can't be read: %w", problems[0].Err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.DeleteFunc(names, func(name string) bool {
		return time.Since(l.safety[name]) < safetyKept || slices.ContainsFunc(cmds, func(c catalog.Command) bool { return c.Backup == name })
	}), nil
}

// expired asks the retention policy which backups go.
func expired(list catalog.BackupList, now time.Time, p plan.RetentionPolicy) []string {
	var stored []plan.StoredBackup
	for _, b := range list.Backups {
		stored = append(stored, plan.StoredBackup{Name: b.Name, Time: b.Time, Complete: true})
	}
	for _, b := range list.Leftovers {
		stored = append(stored, plan.StoredBackup{Name: b.Name, Time: b.Modified})
	}
	var names []string
	for _, d := range plan.Retain(now, stored, p) {
		if !d.Keep {
			klog.V(2).Infof("retention: %s goes: %s", d.Name, d.Reason)
			names = append(names, d.Name)
		}
	}
	return names
}

// trustedNow is the earlier one of this node's clock and the store's: a clock that is ahead must not make backups look old.
func trustedNow(list catalog.BackupList) time.Time {
	now := time.Now()
	if w := list.LastWritten(); !w.IsZero() && w.Before(now) {
		return w
	}
	return now
}
