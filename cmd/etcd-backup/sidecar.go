package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/plan"
)

const (
	// statusTimeout bounds the question whether the local etcd leads.
	statusTimeout = 5 * time.Second
	// lookInterval is how often an instance beside a follower looks whether that has changed.
	lookInterval = 30 * time.Second
	// firstRetry and longestRetry bound the wait after a failure.
	firstRetry   = time.Second
	longestRetry = 5 * time.Minute
	// stallTimeout ends a backup that hasn't moved for so long.
	stallTimeout = 5 * time.Minute
)

var errStalled = errors.New("no byte has moved for " + stallTimeout.String())

// sidecar backs up one etcd member.
type sidecar struct {
	o       options
	catalog *catalog.Catalog
	writer  *backup.Writer
	client  *etcd.Client
	now     func() time.Time
	node    cluster.NodeID

	// begun is true after the first backup, or after the first look that found that somebody else is to make it.
	begun    bool
	failures int
}

// newSidecar prepares everything and talks to nobody.
func newSidecar(o options, c *catalog.Catalog, toolVersion string) (*sidecar, error) {
	conf, err := o.files.config(o.clientURL)
	if err != nil {
		return nil, err
	}
	client, err := etcd.Dial([]string{o.clientURL}, conf)
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "" // only a label in the manifest
	}
	return &sidecar{o: o, catalog: c, writer: backup.NewWriter(c, backup.Options{ToolVersion: toolVersion}), client: client, now: time.Now, node: cluster.NodeID(host)}, nil
}

func (s *sidecar) close() error { return s.client.Close() }

// run works until the context ends, which is no error. Whatever fails is tried again.
func (s *sidecar) run(ctx context.Context) error {
	klog.Infof("backing up etcd %s of cluster %s to %s every %s, while it is the etcd leader", s.o.clientURL, s.o.clusterName, s.o.store, s.o.interval)
	for {
		wait := s.step(ctx)
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			klog.Info("asked to stop: stopping")
			return nil
		case <-t.C:
		}
	}
}

// step does what is due and returns how long to wait for the next.
func (s *sidecar) step(ctx context.Context) time.Duration {
	wait, err := s.turn(ctx)
	if err == nil {
		s.failures = 0
		return wait
	}
	if ctx.Err() != nil {
		return 0
	}
	s.failures++
	wait = min(firstRetry<<min(s.failures-1, 16), longestRetry, s.o.interval)
	klog.Errorf("backup of cluster %s failed %d times in a row, next attempt in %s: %v", s.o.clusterName, s.failures, wait, err)
	return wait
}

func (s *sidecar) turn(ctx context.Context) (time.Duration, error) {
	status, err := s.status(ctx)
	if err != nil {
		return 0, err
	}
	look := min(lookInterval, s.o.interval)
	if status.Leader != status.MemberID {
		s.begun = true
		klog.V(2).Infof("member %s is not the etcd leader: its leader's instance backs up", status.MemberID)
		return look, nil
	}
	list, err := s.catalog.Backups(ctx)
	if err != nil {
		return 0, err
	}
	if newest, ok := list.Newest(); ok && s.begun {
		// Whoever led before may have made it: the interval counts from there.
		if age := s.now().Sub(newest.Time); age >= 0 && age < s.o.interval {
			return min(s.o.interval-age, look), nil
		}
	}
	name := catalog.NewBackupName(s.now(), allNames(list))
	if err := s.backup(ctx, name, status); err != nil {
		return 0, err
	}
	s.begun = true
	if err := s.retain(ctx); err != nil {
		// The backup stands; what is too much goes after the next one.
		klog.Errorf("old backups could not be removed, next attempt in %s: %v", s.o.interval, err)
	}
	return min(s.o.interval, look), nil
}

func allNames(l catalog.BackupList) []string {
	names := l.Names()
	for _, b := range l.Leftovers {
		names = append(names, b.Name)
	}
	return names
}

func (s *sidecar) status(ctx context.Context) (etcd.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	st, err := s.client.Status(ctx)
	if err == nil && st.Leader == 0 {
		err = fmt.Errorf("member %s knows no etcd leader", st.MemberID)
	}
	return st, err
}

// backup streams one snapshot into the store.
func (s *sidecar) backup(ctx context.Context, name string, status etcd.Status) error {
	spec, err := s.spec(ctx, status)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(stallTimeout, func() { cancel(errStalled) })
	defer watchdog.Stop()
	snapshot, err := s.client.Snapshot(ctx)
	if err != nil {
		return err
	}
	facts := backup.Facts{ClusterName: s.o.clusterName, ClusterID: status.ClusterID, MemberID: status.MemberID, Node: s.node,
		EtcdVersion: status.Version, Spec: spec, Revision: status.Revision, Size: snapshot.Size, Reason: "periodic"}
	m, err := s.writer.Write(ctx, name, facts, snapshot.Unverified(), func(backup.Progress) { watchdog.Reset(stallTimeout) })
	if err != nil {
		return err
	}
	klog.Infof("backup %s: revision %d, %d bytes stored as %d in %s", name, m.Revision, m.Raw.Size, m.Stored.Size, m.Duration().Round(time.Millisecond))
	return nil
}

// spec is what the meta file says of the cluster: the spec in the store, else what runs.
func (s *sidecar) spec(ctx context.Context, status etcd.Status) (cluster.Spec, error) {
	spec, _, err := s.catalog.Spec(ctx)
	if err == nil {
		return spec, nil
	}
	if !errors.Is(err, catalog.ErrNotFound) && !errors.Is(err, cluster.ErrCorrupt) {
		return cluster.Spec{}, err
	}
	mctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	members, err := s.client.Members(mctx, false)
	if err != nil {
		return cluster.Spec{}, err
	}
	spec = cluster.Spec{EtcdVersion: status.Version}
	for _, m := range members {
		if !m.Learner {
			spec.MemberCount++
		}
	}
	return spec, nil
}

// retain removes what the policy gives up, all in one pass.
func (s *sidecar) retain(ctx context.Context) error {
	list, err := s.catalog.Backups(ctx)
	if err != nil {
		return err
	}
	var stored []plan.StoredBackup
	for _, b := range list.Backups {
		stored = append(stored, plan.StoredBackup{Name: b.Name, Time: b.Time, Complete: true})
	}
	for _, b := range list.Leftovers {
		stored = append(stored, plan.StoredBackup{Name: b.Name, Time: b.Time})
	}
	// A backup was just written, so a clock of ours that is ahead of the store's is wrong, and would cost old backups.
	now := s.now()
	if written := list.LastWritten(); written.Before(now) {
		now = written
	}
	var doomed []string
	for _, d := range plan.Retain(now, stored, s.o.retention) {
		if !d.Keep {
			klog.V(2).Infof("removing backup %s: %s", d.Name, d.Reason)
			doomed = append(doomed, d.Name)
		}
	}
	if len(doomed) == 0 {
		return nil
	}
	n, err := s.catalog.DeleteBackups(ctx, doomed...)
	klog.Infof("removed %d old backups (%d objects)", len(doomed), n)
	return err
}
