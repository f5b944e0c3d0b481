package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// demandAttempts is how often a backup that an operator asked for is tried until it counts as failed.
const demandAttempts = 10

// beginDemand shows in the store that a backup which was asked for is being taken. That it can't be shown doesn't hold it up.
func (l *leadership) beginDemand(ctx context.Context, a model.TakeBackup) {
	if a.Command == "" {
		return
	}
	l.mu.Lock()
	attempt := l.demandFails[a.Command] + 1
	l.mu.Unlock()
	l.showDemand(ctx, a.Command, catalog.CreateProgress{At: time.Now().UTC(), Node: a.Node, Attempt: attempt})
}

// taken is the backup that was already taken for a command, when only pinning or recording it has failed; else empty.
func (l *leadership) taken(command string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.demandTaken[command]
}

func (l *leadership) showDemand(ctx context.Context, command string, p catalog.CreateProgress) {
	if err := l.m.cfg.Catalog.PutCreateProgress(ctx, command, p); err != nil && ctx.Err() == nil {
		l.said.Warningf("progress", "the progress of command %s can't be shown: %v", command, err)
	}
}

// closeDemand pins a backup that was asked for, if that was asked for too, writes the record and removes the command: in this order, so that what a
// crash leaves undone is done again.
func (l *leadership) closeDemand(ctx context.Context, a model.TakeBackup, name string) error {
	if a.Command == "" {
		return nil
	}
	l.mu.Lock()
	l.demandTaken[a.Command] = name
	l.mu.Unlock()
	cmd, err := l.m.cfg.Catalog.Command(ctx, a.Command)
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
		if err := l.m.cfg.Catalog.PinBackup(ctx, name, cmd.Create.Reason); err != nil {
			return fmt.Errorf("backup %s is taken, but can't be pinned: %w", name, err)
		}
	}
	if err := l.endDemand(ctx, cmd, name, catalog.StateDone, ""); err != nil {
		return err
	}
	klog.Infof("command %s is done: backup %s", a.Command, name)
	return nil
}

// endDemand writes the record of a backup that was asked for, and removes the command.
func (l *leadership) endDemand(ctx context.Context, cmd catalog.Command, name string, state catalog.OperationState, reason string) error {
	now := time.Now()
	op := catalog.Operation{
		ID: cmd.Name, Kind: catalog.KindBackup, State: state, Reason: reason, Command: cmd.Name, Backup: name, Options: catalog.RestoreOptions{Reason: cmd.Create.Reason},
		Created: cmd.Time, StateSince: now, Finished: now, Term: l.term, Leader: l.m.cfg.Self, Instance: l.m.cfg.Instance,
	}
	if p := cmd.Create.Progress; p != nil {
		op.Created = p.At
	}
	if _, err := l.m.cfg.Catalog.PutOperation(ctx, op, ""); err != nil && !errors.Is(err, catalog.ErrConflict) {
		return err
	}
	if err := l.m.cfg.Catalog.RemoveCommand(ctx, cmd.Name); err != nil {
		return err
	}
	l.pruneHistory(ctx)
	l.forceStore()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.demandFails, cmd.Name)
	delete(l.demandTaken, cmd.Name)
	l.demandDone[cmd.Name] = true // until the queue is read again it must not be taken a second time
	return nil
}

// observeDemands leaves out what is done with.
func (l *leadership) observeDemands(o *model.Observation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	o.Store.CreateBackups = slices.DeleteFunc(slices.Clone(o.Store.CreateBackups), func(c model.CreateBackup) bool { return l.demandDone[c.Name] })
}

// failDemand shows why a backup that was asked for has failed, and gives it up after many attempts.
func (l *leadership) failDemand(ctx context.Context, a model.TakeBackup, retryAt time.Time, cause error) {
	if a.Command == "" {
		return
	}
	l.mu.Lock()
	l.demandFails[a.Command]++
	attempt := l.demandFails[a.Command]
	l.mu.Unlock()
	if attempt < demandAttempts {
		l.showDemand(ctx, a.Command, catalog.CreateProgress{At: time.Now().UTC(), Node: a.Node, Attempt: attempt, Error: cause.Error(), RetryAt: retryAt.UTC()})
		return
	}
	cmd, err := l.m.cfg.Catalog.Command(ctx, a.Command)
	if err == nil && cmd.Create != nil {
		err = l.endDemand(ctx, cmd, l.taken(a.Command), catalog.StateFailed, fmt.Sprintf("it has failed %s, in the end because: %v", cluster.Times(attempt), cause))
	}
	if err != nil && ctx.Err() == nil {
		l.said.Warningf("end of "+a.Command, "command %s stays queued: that it failed can't be written: %v", a.Command, err)
	}
}
