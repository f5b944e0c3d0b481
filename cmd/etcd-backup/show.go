package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	"github.com/etcd-manager/etcd-manager/pkg/status"
)

// shown is what the status page knows.
type shown struct {
	acting   bool
	term     cluster.Term
	leader   cluster.NodeID // who acts, if that is known
	doing    string
	alarm    bool
	etcd     cluster.EtcdStatus
	newest   time.Time
	backups  int
	failure  string // of the last backup
	store    string // why the store doesn't answer
	denied   string // why nothing old can be removed
	proof    status.Proof
	recorder *changelog.Recorder
}

// show changes what the status page knows.
func (s *sidecar) show(change func(*shown)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.shown)
}

// view is what the status page shows, from memory alone.
func (s *sidecar) view() status.View {
	s.mu.Lock()
	x := s.shown
	s.mu.Unlock()
	v := status.View{
		ClusterName: s.o.clusterName, Node: s.fence.node, Version: s.toolVersion, Leader: x.leader, Leading: x.acting,
		Term: x.term, Doing: x.doing, Alarm: x.alarm, Etcd: x.etcd,
	}
	if !x.acting {
		if x.etcd.Denied { // which instance is to act can't be known, and none can
			v.BackupError, v.Doing, v.Alarm = x.failure, x.failure, true
		}
		return v
	}
	v.Source = s.fence.node
	v.NewestBackup, v.Backups, v.BackupError, v.StoreError, v.PruneDenied, v.Proof = x.newest, x.backups, x.failure,
		x.store, x.denied, &x.proof
	if x.recorder != nil {
		c := x.recorder.Status()
		v.Changes = &status.Changes{
			Seen: c.Seen, Archived: c.Archived, Until: c.Until, Waiting: c.Waiting, SpilledBytes: c.Spilled,
			Segments: c.Segments, Bytes: c.Bytes,
			Gaps: c.Gaps, LastGap: c.LastGap, Error: c.Error,
		}
	}
	return v
}

// etcdShown is what the status page says of etcd. An etcd that refuses is asked whether it has a
// quorum, which it reads from before it refuses.
func (s *sidecar) etcdShown(ctx context.Context, st client.Status, err error) cluster.EtcdStatus {
	if errors.Is(err, client.ErrDenied) {
		ctx, cancel := context.WithTimeout(ctx, statusTimeout)
		defer cancel()
		healthy := errors.Is(s.client.Permitted(ctx), client.ErrDenied)
		return cluster.EtcdStatus{Running: true, Healthy: healthy, Denied: true, Error: err.Error()}
	}
	if err != nil {
		return cluster.EtcdStatus{Running: true, Error: err.Error()}
	}
	return cluster.EtcdStatus{
		Running: true, Healthy: true, Version: st.Version, MemberID: st.MemberID, LeaderID: st.Leader,
		Learner: st.Learner, Revision: st.Revision,
		RaftTerm: st.RaftTerm, RaftIndex: st.RaftIndex, AppliedIndex: st.AppliedIndex, DBSize: st.DBSize,
		DBSizeInUse: st.DBSizeInUse, DBQuota: st.DBQuota,
		StorageVersion: st.StorageVersion,
	}
}

// serveStatus answers on the metrics port until ctx ends.
func (s *sidecar) serveStatus(ctx context.Context) error {
	var c net.ListenConfig
	l, err := c.Listen(ctx, "tcp", net.JoinHostPort(s.o.address, fmt.Sprint(s.o.metricsPort)))
	if err != nil {
		return fmt.Errorf("--metrics-port: %w", err)
	}
	srv := status.Server(status.Handler(s.view))
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("--metrics-port: %w", err)
	}
	return nil
}
