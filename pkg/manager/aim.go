package manager

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

const (
	// flushTimeout is how long one attempt waits for the newest changes to be in the store.
	flushTimeout = 15 * time.Second
	// waitPause is how long a restore that waits for something waits before it looks again.
	waitPause = 5 * time.Second
)

// waitError means that a step can't be done yet, for a reason that has nothing to do with a failure: the restore waits, for as long as it takes.
type waitError struct{ reason string }

func (e *waitError) Error() string { return e.reason }

// aim finds out, once, how to reach the point that a restore was asked for, and records it: whoever leads next goes to the same one. The
// latest state is aimed at only when it is known to have all that clients had been told of until now.
func (rs *restorer) aim(ctx context.Context) error {
	o := rs.operations.current().Options
	target := changelog.Target{Revision: o.ToRevision, Time: o.ToTime, Latest: o.Latest}
	if rs.operations.current().Target != nil || target.IsZero() {
		return nil
	}
	var acknowledged int64
	if o.Latest {
		var err error
		if acknowledged, err = rs.bringIn(ctx); err != nil {
			return err
		}
	}
	p, err := rs.planTarget(ctx, rs.archive(), target)
	if err != nil {
		return err
	}
	if p.Revision < acknowledged && !o.AcceptLoss {
		return rs.behind(p.Revision, fmt.Sprintf("clients were told of revision %d, and from backup %s the changes in the store lead to revision %d", acknowledged, p.Base, p.Revision))
	}
	klog.Infof("restore %s: %s is revision %d, reached from backup %s with %s", rs.operations.current().ID, target, p.Revision, p.Base, cluster.Count(len(p.Chain.Segments), "segment"))
	return rs.operations.save(ctx, func(op *catalog.Operation) { op.Backup, op.Target, op.Waiting = p.Base, p.Point(), "" })
}

// bringIn has everything stored that clients were told of until now, and returns the revision that this is. 0 means that there was no cluster when
// the restore began, so that the store has all there is. What isn't known is waited for, or accepted by the operator.
func (rs *restorer) bringIn(ctx context.Context) (int64, error) {
	if rs.operations.current().OldToken == "" {
		klog.Infof("restore %s: no cluster was here when it began, so the store has all there is", rs.operations.current().ID)
		return 0, nil
	}
	fctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	revision, err := rs.changes.flush(fctx, rs.operations.current().OldToken)
	if err == nil || ctx.Err() != nil {
		return revision, err
	}
	if rs.operations.current().Options.AcceptLoss {
		klog.Warningf("restore %s: the store may lack changes, which the operator has accepted: %v", rs.operations.current().ID, err)
		return 0, nil
	}
	var f *changelog.FlushError
	if errors.As(err, &f) {
		return 0, rs.behind(f.Stored, err.Error())
	}
	return 0, rs.behind(0, err.Error())
}

// behind is what a restore to the latest state waits with, and the ways out: the one without loss first.
func (rs *restorer) behind(stored int64, why string) error {
	has := ""
	if stored > 0 {
		has = fmt.Sprintf(" (it has everything up to revision %d)", stored)
	}
	return &waitError{fmt.Sprintf("it isn't certain that the store has everything that clients were told of%s: %s. It goes on by itself once a quorum of etcd answers and the changes are stored. "+
		"If members are lost for good, withdraw it (delete-command %s) and keep what a survivor has: recover --from-survivor. "+
		"To go to what the store has: withdraw it, then restore-backup --latest --accept-loss", has, why, rs.operations.current().ID)}
}

// planTarget plans a restore's point. The newest change is that of the life that serves: as etcd says if it answers, else as the store does.
func (rs *restorer) planTarget(ctx context.Context, archive *changelog.Archive, target changelog.Target) (*changelog.Plan, error) {
	if target.Latest {
		if r := rs.changes.recordingOf(rs.operations.current().OldToken); r != nil {
			target.Life = r.recorder.Status().Incarnation
		}
		return archive.Plan(ctx, target)
	}
	target.Backup = rs.operations.current().Backup
	p, err := archive.Plan(ctx, target)
	var no *changelog.UnreachableError
	if !errors.As(err, &no) {
		return p, err
	}
	// The one that was named when it was queued may have gone, or be of no use; another one of the same life may do.
	life, lerr := archive.LifeOf(ctx, target.Backup)
	if lerr != nil {
		return nil, lerr
	}
	target.Backup, target.Life = "", life
	if other, oerr := archive.Plan(ctx, target); oerr == nil {
		return other, nil
	}
	return nil, err
}

// replay names the point that the nodes are to bring the backup to; nil if it is the backup itself. Nodes list the segments for themselves: no message
// grows with the archive.
func (rs *restorer) replay() *protosv1.Replay {
	t := rs.operations.current().Target
	if t == nil {
		return nil
	}
	return &protosv1.Replay{Incarnation: string(t.Incarnation), BaseRevision: t.BaseRevision, Revision: t.Revision, Head: t.Head}
}
