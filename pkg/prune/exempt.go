package prune

import (
	"context"
	"fmt"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// safetyKept is how long the backup from before a restore is kept, whatever the policy says.
const safetyKept = 7 * 24 * time.Hour

// ExemptFor makes out of the queue, and of the backups from before restores (with the times at which they were made), what is needed beside the policy.
func ExemptFor(queued []catalog.Command, safety map[string]time.Time, now time.Time) Exempt {
	ex := Exempt{Backups: map[string]string{}}
	for name, at := range safety {
		if now.Sub(at) < safetyKept {
			ex.Backups[name] = "from before a restore, which can be undone by it"
		}
	}
	for _, c := range queued {
		if c.Create != nil {
			continue
		}
		if c.Backup != "" {
			ex.Backups[c.Backup] = "a queued restore names it"
		}
		if c.Source != nil && c.Source.OrBackup != "" {
			ex.Backups[c.Source.OrBackup] = "a queued recovery names it"
		}
		if c.Options.ToRevision != 0 || !c.Options.ToTime.IsZero() || c.Options.Latest {
			ex.Changes = "no changes are removed while a restore to a point between backups is queued"
		}
	}
	return ex
}

// ReadExempt reads queue and operations. As long as one of them can't be read every backup may be meant, so that is an error.
func ReadExempt(ctx context.Context, c *catalog.Catalog, now time.Time) (Exempt, error) {
	cmds, problems, err := c.Commands(ctx)
	if err != nil {
		return Exempt{}, err
	}
	ops, bad, err := c.Operations(ctx)
	if err != nil {
		return Exempt{}, err
	}
	if problems = append(problems, bad...); len(problems) > 0 {
		return Exempt{}, fmt.Errorf("nothing is removed while a queued command or an operation can't be read: %w", problems[0].Err)
	}
	safety := map[string]time.Time{}
	for _, op := range ops {
		if op.SafetyBackup != "" {
			safety[op.SafetyBackup] = op.Updated
		}
	}
	out := ExemptFor(cmds, safety, now)
	for _, op := range ops {
		if !op.State.Final() && op.Backup != "" {
			out.Backups[op.Backup] = "it is being restored"
		}
		if !op.State.Final() && op.Target != nil {
			out.Changes = "no changes are removed while they are being restored"
		}
	}
	return out, nil
}
