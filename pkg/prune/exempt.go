package prune

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// safetyKept is how long the state from before a restore is kept, whatever the policy says.
const safetyKept = catalog.UndoKept

// safetyReason says why it is kept.
const safetyReason = "from before a restore, which can be undone by it"

// knownOperation is a record that was read.
type knownOperation struct {
	stamp string
	op    catalog.Operation
}

// Exempt says what is needed beside the policy: it is the one list for everybody who removes
// anything. It reads the queue, and of the operations those that have changed since it was last
// asked. As long as one of them can't be read every backup may be meant, so that is an error.
func (p *Pruner) Exempt(ctx context.Context) (Exempt, error) {
	cmds, problems, err := p.catalog.Commands(ctx)
	if err != nil {
		return Exempt{}, err
	}
	if len(problems) > 0 {
		return Exempt{}, fmt.Errorf("nothing is removed while a queued command can't be read: %w", problems[0].Err)
	}
	ops, err := p.operations(ctx)
	if err != nil {
		return Exempt{}, err
	}
	return exemptFor(cmds, ops), nil
}

func (p *Pruner) operations(ctx context.Context) ([]catalog.Operation, error) {
	l, err := p.catalog.ControlListing(ctx)
	if err != nil {
		return nil, err
	}
	var ops []catalog.Operation
	now := map[string]knownOperation{}
	for _, o := range l.Operations {
		k, ok := p.ops[o.Name]
		if !ok || k.stamp != o.Stamp {
			op, _, err := p.catalog.Operation(ctx, o.Name)
			if errors.Is(err, catalog.ErrNotFound) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("nothing is removed while operation %s can't be read: %w", o.Name, err)
			}
			k = knownOperation{o.Stamp, op}
		}
		now[o.Name] = k
		ops = append(ops, k.op)
	}
	p.ops = now
	return ops, nil
}

// exemptFor makes the list out of the queue and the operations.
func exemptFor(queued []catalog.Command, ops []catalog.Operation) Exempt {
	ex := Exempt{Backups: map[string]string{}, Safety: map[string]time.Time{}}
	for _, c := range queued {
		if c.Create != nil || c.PutBack != nil {
			continue
		}
		if c.Backup != "" {
			ex.Backups[c.Backup] = "a queued restore names it"
		}
		if c.Source != nil && c.Source.OrBackup != "" {
			ex.Backups[c.Source.OrBackup] = "a queued recovery names it"
		}
		if c.Source != nil && c.Source.OrRevision != 0 || c.Options.ToRevision != 0 || !c.Options.ToTime.IsZero() || c.Options.Latest {
			ex.Changes = "no changes are removed while a restore to a point between backups is queued"
		}
	}
	for _, op := range ops {
		if name, _ := op.Saved(); name != "" {
			ex.Safety[name] = op.Updated
		}
		if op.SafetyPoint != nil && (!op.State.Final() || op.State == catalog.StateDone) {
			ex.SafetyChanges = append(ex.SafetyChanges, SafetyChanges{*op.SafetyPoint, op.Updated})
		}
		if !op.State.Final() && op.Backup != "" {
			ex.Backups[op.Backup] = "it is being restored"
		}
		if !op.State.Final() && op.Target != nil {
			ex.Changes = "no changes are removed while they are being restored"
		}
	}
	return ex
}
