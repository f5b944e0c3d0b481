package manager

import (
	"context"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// What an undo would have to replay at most. With more a full backup is taken, so that an undo doesn't take much longer than a restore.
const (
	maxSafetyBytes    = 256 << 20
	maxSafetySegments = 4096
)

// safetyBackup makes sure that the store has the old cluster's last state, so that the restore can be undone. A full backup is only taken if the
// store hasn't got it already: as a backup, or as one with all changes after it.
func (rs *restorer) safetyBackup(ctx context.Context, o *model.Observation, spec *cluster.Spec, a model.SafetyBackup) error {
	name := rs.currentBackup(ctx, o)
	if name == "" {
		point, err := rs.safetyPoint(ctx, o)
		if point != nil {
			klog.Infof("restore %s: the state before it is backup %s with all changes up to revision %d", a.Op.ID, point.Backup, point.Revision)
			return rs.operations.save(ctx, func(op *catalog.Operation) { op.SafetyPoint, op.SafetyTried = point, true })
		}
		klog.Infof("restore %s: a full backup of the state before it is taken: %v", a.Op.ID, err)
		if name, err = rs.backups.take(ctx, spec, a.Node, "before-restore"); err != nil {
			rs.backups.noteFailedOn(a.Node)
			return fmt.Errorf("back up the cluster as it is now: %w", err)
		}
	}
	return rs.operations.save(ctx, func(op *catalog.Operation) { op.SafetyBackup, op.SafetyTried = name, true })
}

// safetyPoint is the old cluster's last state as the changes in the store lead to it: all that a quorum had acknowledged. The error says why a full
// backup is needed instead.
func (rs *restorer) safetyPoint(ctx context.Context, o *model.Observation) (*catalog.SafetyPoint, error) {
	r := rs.changes.recordingOf(rs.operations.current().OldToken)
	if r == nil {
		return nil, fmt.Errorf("the changes of the cluster are not recorded")
	}
	fctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	if err := rs.doubtInChanges(fctx); err != nil {
		return nil, err
	}
	revision, err := r.recorder.Flush(fctx)
	if err != nil {
		return nil, err
	}
	for _, n := range o.Nodes {
		revision = max(revision, n.Etcd.Revision)
	}
	life := r.recorder.Status().Incarnation
	if life == "" {
		return nil, fmt.Errorf("the incarnation of the cluster isn't known yet")
	}
	p, err := rs.archive().Plan(fctx, changelog.Target{Latest: true, Life: life})
	if err != nil {
		return nil, err
	}
	return pointOf(p, revision)
}

// pointOf is a plan as a state from which a restore can be undone, if it has everything up to a revision and isn't too far from its backup.
func pointOf(p *changelog.Plan, revision int64) (*catalog.SafetyPoint, error) {
	var bytes int64
	for _, s := range p.Chain.Segments {
		bytes += s.Size
	}
	switch {
	case p.Revision < revision:
		return nil, fmt.Errorf("the cluster has revision %d, and from backup %s the changes in the store lead to revision %d", revision, p.Base, p.Revision)
	case bytes > maxSafetyBytes || len(p.Chain.Segments) > maxSafetySegments:
		return nil, fmt.Errorf("the changes since backup %s are %d bytes in %s, too many for a quick undo", p.Base, bytes,
			cluster.Count(len(p.Chain.Segments), "segment"))
	}
	return &catalog.SafetyPoint{Backup: p.Base, PointInTime: *p.Point()}, nil
}

// doubtInChanges is an error if the last verification that the store knows of found a backup bad, or changes that don't lead to one, or if the store
// doesn't say. That there was nothing to compare with is no doubt.
func (rs *restorer) doubtInChanges(ctx context.Context) error {
	list, err := rs.archive().ForProof(ctx, time.Now())
	if err != nil {
		return err
	}
	last, ok := list.LastTried(time.Now())
	if !ok {
		return nil
	}
	p, err := rs.m.cfg.Catalog.Proof(ctx, last.Name)
	if err != nil {
		return fmt.Errorf("the store doesn't say what the last verification found: %w", err)
	}
	if doubts(p) {
		return fmt.Errorf("the last verification, of backup %s, found: %s", last.Name, p.Error)
	}
	return nil
}

// doubts tells whether a verification found something wrong with a backup or with the changes that lead to it.
func doubts(p catalog.Proof) bool {
	return p.Outcome == catalog.Disproven || p.Error != "" && p.Base != ""
}

// currentBackup is a good backup of the cluster that serves, if nothing was written since it was
// taken, or "".
func (rs *restorer) currentBackup(ctx context.Context, o *model.Observation) string {
	_, urls := servingURLs(o, rs.m.cfg.Peers.Addresses)
	rctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	revision, id, err := changelog.NewestRevision(rctx, func() []changelog.Dialer { return rs.etcd.dialers(urls) })
	if err != nil {
		return ""
	}
	for _, n := range o.Nodes {
		revision = max(revision, n.Etcd.Revision)
	}
	m, err := rs.archive().CopyOf(ctx, rs.m.cfg.ClusterName, id, revision)
	if err != nil || m == nil {
		return ""
	}
	klog.Infof("nothing was written since backup %s, so that it serves as the one from before the restore", m.Backup)
	return m.Backup
}
