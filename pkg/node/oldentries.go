package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/datadir"
)

// snapshotPatience is how long an etcd may take to write a raft snapshot after a restart for it.
const snapshotPatience = 20 * time.Second

// firstWithoutOld is the first minor version that can't read entries of the log as 3.5 writes them.
const firstWithoutOld = 7

// clearOldEntries makes sure that a member's log has nothing that the version to come can't read. Otherwise etcd is restarted once as it is, only
// with a raft snapshot due at every entry; the restart into the new version ends that. If the manager dies in between it is begun anew.
func (sv *supervisor) clearOldEntries(ctx context.Context, s *cluster.EtcdState) error {
	now := sv.records.current()
	sv.mu.Lock()
	running := sv.proc != nil
	sv.mu.Unlock()
	if !running || now == nil || now.Token != s.Token || etcd.MinorNumber(s.EtcdVersion) < firstWithoutOld || etcd.MinorNumber(now.EtcdVersion) >= firstWithoutOld {
		return nil
	}
	old, err := datadir.OldEntries(sv.l.data(s.Token))
	if err != nil || !old {
		return err
	}
	klog.Infof("etcd's log has entries that %s can't read; etcd is restarted once as it is, so that it writes a raft snapshot behind them", s.EtcdVersion)
	if err := sv.restartForSnapshot(ctx); err != nil {
		return err
	}
	for deadline := time.Now().Add(snapshotPatience); time.Now().Before(deadline) && sleep(ctx, 100*time.Millisecond); {
		if old, err = datadir.OldEntries(sv.l.data(s.Token)); err == nil && !old && sv.healthyNow(ctx) {
			return nil
		}
	}
	return errors.Join(err, fmt.Errorf("etcd's log has entries that %s can't read, and no raft snapshot came behind them within %s; etcd stays as it is", s.EtcdVersion, snapshotPatience))
}

func (sv *supervisor) restartForSnapshot(ctx context.Context) error {
	sv.procMu.Lock()
	defer sv.procMu.Unlock()
	sv.setSnapshotNow(true)
	err := sv.startLocked(ctx, true)
	sv.setSnapshotNow(false)
	sv.noteOutdated()
	return err
}

func (sv *supervisor) setSnapshotNow(now bool) {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	sv.snapshotNow = now
}

func (sv *supervisor) healthyNow(ctx context.Context) bool {
	sv.probe(ctx, 0)
	sv.mu.Lock()
	defer sv.mu.Unlock()
	return sv.health.Healthy
}

// forSnapshot has etcd write a raft snapshot at once.
func forSnapshot(cfg *etcd.Config) {
	cfg.SnapshotCount = 1
	cfg.ExtraEnv = maps.Clone(cfg.ExtraEnv)
	delete(cfg.ExtraEnv, "ETCD_SNAPSHOT_COUNT")
}
