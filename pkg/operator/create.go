package operator

import (
	"context"
	"slices"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// BackupRequest is a backup that the managers shall take.
type BackupRequest struct {
	// Reason is a note, kept with the record and the pin.
	Reason string
	// Pin keeps the backup until it is unpinned, whatever its age.
	Pin bool
}

// BackupQueued is a backup on demand that was queued.
type BackupQueued struct {
	Command catalog.Command
	// NotFormed is true if no cluster was formed for this store yet, NoQuorum if the cluster has none: the backup waits until one serves.
	NotFormed, NoQuorum bool
}

// CreateBackup queues a backup, which the leader takes as soon as it sees the command, within about
// half a minute: nothing has to be restarted, and nothing is stopped. It waits for a cluster that
// serves, and is tried again when it fails. Beside an error the result says what the backup would
// wait for.
func (c *Client) CreateBackup(ctx context.Context, r BackupRequest) (BackupQueued, error) {
	if err := c.managed(ctx); err != nil {
		return BackupQueued{}, err
	}
	ctx, cancel := c.limit(ctx)
	defer cancel()
	l, err := c.catalog.ControlListing(ctx)
	if err != nil {
		return BackupQueued{}, err
	}
	out := BackupQueued{NotFormed: !l.Marker.Exists(), NoQuorum: l.Survivors.Exists()}
	if out.Command, err = c.catalog.QueueCreateBackup(ctx, catalog.CreateBackup{Reason: r.Reason, Pin: r.Pin}); err != nil {
		return out, &UncertainError{err}
	}
	return out, nil
}

// PinBackup keeps a backup, which may be Latest, until it is unpinned, whatever its age. It returns the name, with notes as Backup does.
func (c *Client) PinBackup(ctx context.Context, name, reason string) (pinned string, notes []string, err error) {
	return c.onBackup(ctx, name, func(ctx context.Context, name string) error { return c.catalog.PinBackup(ctx, name, reason) })
}

// UnpinBackup lets retention decide about a backup again. It returns the name, with notes as Backup does.
func (c *Client) UnpinBackup(ctx context.Context, name string) (unpinned string, notes []string, err error) {
	return c.onBackup(ctx, name, c.catalog.UnpinBackup)
}

// onBackup does something to a backup that is there.
func (c *Client) onBackup(ctx context.Context, name string, do func(context.Context, string) error) (_ string, notes []string, err error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	l, err := c.catalog.Backups(ctx)
	if err != nil {
		return "", nil, err
	}
	if name, notes, err = c.resolve(ctx, l, name); err != nil {
		return "", notes, err
	}
	if !slices.Contains(l.Names(), name) {
		return "", notes, c.noBackup(l, name)
	}
	return name, notes, do(ctx, name)
}
