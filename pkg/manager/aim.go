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

// waitOn records what the restore waits for, so that the operator sees it through the store alone.
func (l *leadership) waitOn(ctx context.Context, w *waitError) error {
	l.opRetry, l.opFails = time.Now().Add(waitPause), 0
	if l.op.Waiting == w.reason {
		return nil
	}
	klog.Warningf("restore %s (%s) waits and has stopped nothing: %s", l.op.ID, l.op.State, w.reason)
	return l.save(ctx, func(op *catalog.Operation) { op.Waiting = w.reason })
}

// aim finds out, once, how to reach the point that a restore was asked for, and records it: whoever leads next goes to the same one. The
// latest state is aimed at only when it is known to have all that clients had been told of until now.
func (l *leadership) aim(ctx context.Context) error {
	o := l.op.Options
	target := changelog.Target{Revision: o.ToRevision, Time: o.ToTime, Latest: o.Latest}
	if l.op.Target != nil || target.IsZero() {
		return nil
	}
	var acknowledged int64
	if o.Latest {
		var err error
		if acknowledged, err = l.bringIn(ctx); err != nil {
			return err
		}
	}
	p, err := l.planTarget(ctx, l.archive(), target)
	if err != nil {
		return err
	}
	if p.Revision < acknowledged && !o.AcceptLoss {
		return l.behind(p.Revision, fmt.Sprintf("clients were told of revision %d, and from backup %s the changes in the store lead to revision %d", acknowledged, p.Base, p.Revision))
	}
	klog.Infof("restore %s: %s is revision %d, reached from backup %s with %s", l.op.ID, target, p.Revision, p.Base, cluster.Count(len(p.Chain.Segments), "segment"))
	return l.save(ctx, func(op *catalog.Operation) { op.Backup, op.Target, op.Waiting = p.Base, p.Point(), "" })
}

// bringIn has everything stored that clients were told of until now, and returns the revision that this is. 0 means that there was no cluster when
// the restore began, so that the store has all there is. What isn't known is waited for, or accepted by the operator.
func (l *leadership) bringIn(ctx context.Context) (int64, error) {
	if l.op.OldToken == "" {
		klog.Infof("restore %s: no cluster was here when it began, so the store has all there is", l.op.ID)
		return 0, nil
	}
	fctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	revision, err := l.changes.flush(fctx)
	if err == nil || ctx.Err() != nil {
		return revision, err
	}
	if l.op.Options.AcceptLoss {
		klog.Warningf("restore %s: the store may lack changes, which the operator has accepted: %v", l.op.ID, err)
		return 0, nil
	}
	var f *changelog.FlushError
	if errors.As(err, &f) {
		return 0, l.behind(f.Stored, err.Error())
	}
	return 0, l.behind(0, err.Error())
}

// behind is what a restore to the latest state waits with, and the ways out: the one without loss first.
func (l *leadership) behind(stored int64, why string) error {
	has := ""
	if stored > 0 {
		has = fmt.Sprintf(" (it has everything up to revision %d)", stored)
	}
	return &waitError{fmt.Sprintf("it isn't certain that the store has everything that clients were told of%s: %s. It goes on by itself once a quorum of etcd answers and the changes are stored. "+
		"If members are lost for good, withdraw it (delete-command %s) and keep what a survivor has: recover --from-survivor. "+
		"To go to what the store has: withdraw it, then restore-backup --latest --accept-loss", has, why, l.op.ID)}
}
