package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// busyLoad is the load of a processor from which a machine has no time for what can wait.
const busyLoad = 4

// verification is a proof of a backup that is under way.
type verification struct {
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when nothing of it is left on the disk
}

// beginVerification makes a proof known, so that there is one at a time and a restore can end it.
func (a *Agent) beginVerification(ctx context.Context) (_ context.Context, end func(), err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.verification != nil {
		return nil, nil, errors.New("postponed: another backup is being proven here")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	v := &verification{cancel, make(chan struct{})}
	a.verification = v
	return ctx, func() {
		cancel(nil)
		a.mu.Lock()
		a.verification = nil
		a.mu.Unlock()
		close(v.done)
	}, nil
}

// endVerification ends a proof that is under way, since a restore needs the disk and the processor now, and waits until what it had on the disk is gone.
func (a *Agent) endVerification(ctx context.Context, operation cluster.OperationID) error {
	a.mu.Lock()
	v := a.verification
	a.mu.Unlock()
	if v == nil {
		return nil
	}
	v.cancel(fmt.Errorf("postponed: restore %s has begun", operation))
	select {
	case <-v.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// verifyBackup proves a backup beside the running etcd, until a restore begins. What is bad about the backup is the result, anything else an error: it can be
// tried again later.
func (a *Agent) verifyBackup(ctx context.Context, req *protosv1.VerifyBackup, t *task) (*protosv1.PerformEvent, error) {
	name := req.GetName()
	if a.cfg.Catalog == nil {
		return nil, fmt.Errorf("verify backup: no store: %w", cluster.ErrPermanent)
	}
	ctx, end, err := a.beginVerification(ctx)
	if err != nil {
		return nil, fmt.Errorf("verify backup %s: %w", name, err)
	}
	defer end()
	if err := a.timeForMore(ctx, name, req.GetAlthoughBusy()); err != nil {
		return nil, fmt.Errorf("verify backup %s: %w", name, err)
	}
	archive := changelog.Archive{Catalog: a.cfg.Catalog}
	v, err := archive.Verify(ctx, name, changelog.VerifyOptions{Executable: a.cfg.Executable, Dir: a.l.verifying(), KeepFree: headroom, Progress: t.report})
	out := &protosv1.VerifiedBackup{Base: v.Base, Incarnation: string(v.Incarnation), Segments: int32(v.Segments), ChainProblem: v.ChainProblem,
		Revision: v.Facts.Revision, Hash: v.Facts.Hash.Hash, DurationNanos: int64(v.Took)}
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("verify backup %s: %w", name, context.Cause(ctx))
	case err == nil:
		klog.Infof("backup %s is proven: revision %d, reached from %q with %s %s", name, v.Facts.Revision, v.Base, cluster.Count(v.Segments, "segment"), v.ChainProblem)
	case changelog.Disproves(err):
		out.Bad = err.Error()
	default:
		return nil, err
	}
	return &protosv1.PerformEvent{Done: true, Verified: out}, nil
}

// timeForMore tells why work that can wait should: a restore, a disk without room, a machine that is busy unless that doesn't count.
func (a *Agent) timeForMore(ctx context.Context, name string, althoughBusy bool) error {
	a.mu.Lock()
	op := a.operation()
	a.mu.Unlock()
	if op != nil {
		return fmt.Errorf("postponed: restore %s is under way", op.ID)
	}
	if data, err := os.ReadFile(a.loadavg); err == nil && !althoughBusy {
		if err := busy(string(data), runtime.NumCPU()); err != nil {
			return err
		}
	}
	m, err := a.cfg.Catalog.Manifest(ctx, name)
	if errors.Is(err, catalog.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := a.room("proving a backup", m.Raw.Size+m.Raw.Size/4); err != nil {
		return fmt.Errorf("postponed: %w", err)
	}
	return nil
}

// busy tells by the kernel's loadavg whether a machine has no time for what can wait.
func busy(loadavg string, processors int) error {
	var one float64
	if _, err := fmt.Sscan(loadavg, &one); err == nil && one > busyLoad*float64(processors) {
		return fmt.Errorf("postponed: the machine is busy (load %.1f on %d processors)", one, processors)
	}
	return nil
}
