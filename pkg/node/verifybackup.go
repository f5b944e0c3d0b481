package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

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

// verifier proves backups, one at a time. All methods may be called concurrently.
type verifier struct {
	cfg  *Config
	l    layout
	disk *disk
	// operation is the restore in the journal, or nil.
	operation func() *journalOperation
	// loadavg is the file in which the kernel tells how busy the machine is.
	loadavg string

	mu      sync.Mutex
	current *verification // guarded by mu; nil if no backup is being proven
}

// begin makes a proof known, so that there is one at a time and a restore can end it.
func (v *verifier) begin(ctx context.Context) (_ context.Context, end func(), err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.current != nil {
		return nil, nil, errors.New("postponed: another backup is being proven here")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	now := &verification{cancel, make(chan struct{})}
	v.current = now
	return ctx, func() {
		cancel(nil)
		v.mu.Lock()
		v.current = nil
		v.mu.Unlock()
		close(now.done)
	}, nil
}

// end ends a proof that is under way, since a restore needs the disk and the processor now, and waits until what it had on the disk is gone.
func (v *verifier) end(ctx context.Context, operation cluster.OperationID) error {
	v.mu.Lock()
	now := v.current
	v.mu.Unlock()
	if now == nil {
		return nil
	}
	now.cancel(fmt.Errorf("postponed: restore %s has begun", operation))
	select {
	case <-now.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// verifyBackup proves a backup beside the running etcd, until a restore begins. What is bad about the backup is the result, anything else an error: it can be
// tried again later.
func (v *verifier) verifyBackup(ctx context.Context, req *protosv1.VerifyBackup, t *task) (*protosv1.PerformEvent, error) {
	name := req.GetName()
	if v.cfg.Catalog == nil {
		return nil, fmt.Errorf("verify backup: no store: %w", cluster.ErrPermanent)
	}
	ctx, end, err := v.begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("verify backup %s: %w", name, err)
	}
	defer end()
	if err := v.timeForMore(ctx, name, req.GetAlthoughBusy()); err != nil {
		return nil, fmt.Errorf("verify backup %s: %w", name, err)
	}
	archive := changelog.Archive{Catalog: v.cfg.Catalog}
	found, err := archive.Verify(ctx, name, changelog.VerifyOptions{Executable: v.cfg.Executable, Dir: v.l.verifying(), KeepFree: headroom, Progress: t.report})
	out := &protosv1.VerifiedBackup{Base: found.Base, Incarnation: string(found.Incarnation), Segments: int32(found.Segments), ChainProblem: found.ChainProblem,
		Revision: found.Facts.Revision, Hash: found.Facts.Hash.Hash, DurationNanos: int64(found.Took)}
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("verify backup %s: %w", name, context.Cause(ctx))
	case err == nil:
		klog.Infof("backup %s is proven: revision %d, reached from %q with %s %s", name, found.Facts.Revision, found.Base, cluster.Count(found.Segments, "segment"), found.ChainProblem)
	case changelog.Disproves(err):
		out.Bad = err.Error()
	default:
		return nil, err
	}
	return &protosv1.PerformEvent{Done: true, Verified: out}, nil
}

// timeForMore tells why work that can wait should: a restore, a disk without room, a machine that is busy unless that doesn't count.
func (v *verifier) timeForMore(ctx context.Context, name string, althoughBusy bool) error {
	if op := v.operation(); op != nil {
		return fmt.Errorf("postponed: restore %s is under way", op.ID)
	}
	if data, err := os.ReadFile(v.loadavg); err == nil && !althoughBusy {
		if err := busy(string(data), runtime.NumCPU()); err != nil {
			return err
		}
	}
	m, err := v.cfg.Catalog.Manifest(ctx, name)
	if errors.Is(err, catalog.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := v.disk.room("proving a backup", m.Raw.Size+m.Raw.Size/4); err != nil {
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
