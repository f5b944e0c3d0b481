package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/node"
)

// supersededTimeout bounds the question at the start: a store that is away must not keep etcd from starting.
const supersededTimeout = 5 * time.Second

// checkSuperseded refuses to start where the operator has recorded that another cluster took the place of this one, and says in the store
// that this node's etcd is stopped. It is asked before anything is started. If an etcd still runs on this node's data the manager starts,
// and the leader has it stopped in order.
func (d *daemon) checkSuperseded(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, supersededTimeout)
	defer cancel()
	s, err := d.catalog.Superseded(ctx)
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		return nil
	case err == nil:
		err = fmt.Errorf("this cluster was superseded by %q at %s: its etcd isn't started, so that two clusters don't serve; "+
			"if this one is the right one: etcd-manager-ctl --backup-store=%s undo-supersede", cluster.Shown(s.By, 300),
			s.Time.Format(time.RFC3339), d.o.backupStore)
	case errors.Is(err, cluster.ErrCorrupt), errors.Is(err, cluster.ErrFuture):
		err = fmt.Errorf("it isn't known whether another cluster has taken the place of this one, so etcd isn't started: %w", err)
	default:
		klog.Warningf("the store doesn't say whether another cluster has taken the place of this one; it is taken for the right one: %v", err)
		return nil
	}
	if dir := runningOn(d.o.dataDir); dir != "" {
		klog.Errorf("an etcd runs on %s, so the manager starts, and the leader has that etcd stopped: %v", dir, err)
		return nil
	}
	if s.By != "" {
		reportStopped(ctx, d, s)
	}
	return err
}

// reportStopped says in the store that no etcd runs on this node, for who waits for that. It is true for good: before, etcd is held, so
// that it isn't started either when this manager is started again and the store is away.
func reportStopped(ctx context.Context, d *daemon, s catalog.Superseded) {
	if err := node.HoldSuperseded(d.o.dataDir, d.o.clusterName); err != nil {
		klog.Warningf("the store isn't told that etcd is stopped on this node, since it can't be kept from starting while the store is away: %v", err)
		return
	}
	err := d.catalog.NoteEnded(ctx, s.Time, func(x *catalog.Ended) {
		if _, known := x.Stopped[d.id]; !known {
			x.Stopped[d.id] = catalog.StoppedNode{Time: time.Now().UTC()}
		}
	})
	if err != nil {
		klog.Warningf("the store isn't told that etcd is stopped on this node: %v", err)
	}
}

// runningOn is the etcd data dir below a manager's directory on which an etcd runs; empty if there is none.
func runningOn(dataDir string) string {
	dirs, err := filepath.Glob(filepath.Join(dataDir, "data", "*"))
	if err != nil {
		return ""
	}
	for _, dir := range dirs {
		if _, held, err := etcd.DataDirHolder(dir); held && err == nil {
			return dir
		}
	}
	return ""
}
