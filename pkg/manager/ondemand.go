package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// demandAttempts is how often a backup that an operator asked for is tried until it counts as
// failed.
const demandAttempts = 10

// demands are the backups that operators asked for.
type demands struct {
	*shared
	retention *retention

	mu sync.Mutex
	// fails counts by command how often its backup has failed, took names the backup that only has to
	// be pinned and recorded, and over are the commands that are done with.
	fails map[string]int
	took  map[string]string
	over  map[string]bool
}

// begin shows in the store that a backup which was asked for is being taken. That it can't be shown
// doesn't hold it up.
func (ds *demands) begin(ctx context.Context, a model.TakeBackup) {
	if a.Command == "" {
		return
	}
	ds.mu.Lock()
	attempt := ds.fails[a.Command] + 1
	ds.mu.Unlock()
	ds.show(ctx, a.Command, catalog.CreateProgress{At: time.Now().UTC(), Node: a.Node, Attempt: attempt})
}

// taken is the backup that was already taken for a command, when only pinning or recording it has
// failed; else empty.
func (ds *demands) taken(command string) string {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	return ds.took[command]
}

func (ds *demands) show(ctx context.Context, command string, p catalog.CreateProgress) {
	if err := ds.m.cfg.Catalog.PutCreateProgress(ctx, command, p); err != nil && ctx.Err() == nil {
		ds.said.Warningf("progress", "the progress of command %s can't be shown: %v", command, err)
	}
}

// close pins a backup that was asked for, if that was asked for too, writes the record and removes
// the command: in this order, so that what a crash leaves undone is done again.
func (ds *demands) close(ctx context.Context, a model.TakeBackup, name string) error {
	if a.Command == "" {
		return nil
	}
	ds.mu.Lock()
	ds.took[a.Command] = name
	ds.mu.Unlock()
	cmd, err := ds.m.cfg.Catalog.Command(ctx, a.Command)
	if errors.Is(err, catalog.ErrNotFound) {
		klog.Infof("backup %s is taken; command %s, which asked for it, was withdrawn meanwhile", name, a.Command)
		return nil
	}
	if err != nil {
		return err
	}
	if cmd.Create == nil {
		return nil
	}
	if cmd.Create.Pin {
		if err := ds.m.cfg.Catalog.PinBackup(ctx, name, cmd.Create.Reason); err != nil {
			return fmt.Errorf("backup %s is taken, but can't be pinned: %w", name, err)
		}
	}
	if err := ds.end(ctx, cmd, name, catalog.StateDone, ""); err != nil {
		return err
	}
	klog.Infof("command %s is done: backup %s", a.Command, name)
	return nil
}

// end writes the record of a backup that was asked for, and removes the command.
func (ds *demands) end(ctx context.Context, cmd catalog.Command, name string, state catalog.OperationState, reason string) error {
	now := time.Now()
	op := catalog.Operation{
		ID: cmd.Name, Kind: catalog.KindBackup, State: state, Reason: reason, Command: cmd.Name, Backup: name, Options: catalog.RestoreOptions{Reason: cmd.Create.Reason},
		Created: cmd.Time, StateSince: now, Finished: now, Term: ds.term, Leader: ds.m.cfg.Self, Instance: ds.m.cfg.Instance,
	}
	if p := cmd.Create.Progress; p != nil {
		op.Created = p.At
	}
	if _, err := ds.m.cfg.Catalog.PutOperation(ctx, op, ""); err != nil && !errors.Is(err, catalog.ErrConflict) {
		return err
	}
	if err := ds.m.cfg.Catalog.RemoveCommand(ctx, cmd.Name); err != nil {
		return err
	}
	ds.retention.pruneHistory(ctx)
	ds.forceStore()
	ds.mu.Lock()
	defer ds.mu.Unlock()
	delete(ds.fails, cmd.Name)
	delete(ds.took, cmd.Name)
	ds.over[cmd.Name] = true // until the queue is read again it must not be taken a second time
	return nil
}

// observe leaves out what is done with.
func (ds *demands) observe(o *model.Observation) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	o.Store.CreateBackups = slices.DeleteFunc(slices.Clone(o.Store.CreateBackups), func(c model.CreateBackup) bool { return ds.over[c.Name] })
}

// fail shows why a backup that was asked for has failed, and gives it up after many attempts.
func (ds *demands) fail(ctx context.Context, a model.TakeBackup, retryAt time.Time, cause error) {
	if a.Command == "" {
		return
	}
	ds.mu.Lock()
	ds.fails[a.Command]++
	attempt := ds.fails[a.Command]
	ds.mu.Unlock()
	if attempt < demandAttempts {
		ds.show(ctx, a.Command, catalog.CreateProgress{At: time.Now().UTC(), Node: a.Node, Attempt: attempt, Error: cause.Error(), RetryAt: retryAt.UTC()})
		return
	}
	cmd, err := ds.m.cfg.Catalog.Command(ctx, a.Command)
	if err == nil && cmd.Create != nil {
		err = ds.end(ctx, cmd, ds.taken(a.Command), catalog.StateFailed, fmt.Sprintf("it has failed %s, in the end because: %v", cluster.Times(attempt), cause))
	}
	if err != nil && ctx.Err() == nil {
		ds.said.Warningf("end of "+a.Command, "command %s stays queued: that it failed can't be written: %v", a.Command, err)
	}
}
