package operator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Target is a point to go to: a revision, a time, or the last change that is kept.
type Target = changelog.Target

// RestoreOptions are the settings of a restore.
type RestoreOptions struct {
	// Now starts it without waiting for a restart of the managers: the leader sees it within about half a minute.
	Now bool
	// Reason is a note, kept with the record.
	Reason string
	// KeepMasterleases keeps the API servers' master leases, also those of servers that are gone.
	KeepMasterleases bool
	// DropPrefixes leave out the keys with these prefixes.
	DropPrefixes []string
	// AcceptLoss goes to what there is, though it isn't certain that this is all that clients were
	// told of: with Target.Latest to what the store has, in an undo to what the old data dirs have.
	AcceptLoss bool
	// ForceForeign permits the backup of another cluster.
	ForceForeign bool
}

func (o RestoreOptions) stored() catalog.RestoreOptions {
	return catalog.RestoreOptions{Now: o.Now, Reason: o.Reason, KeepMasterleases: o.KeepMasterleases,
		DropPrefixes: o.DropPrefixes, AcceptLoss: o.AcceptLoss, ForceForeign: o.ForceForeign}
}

// RestoreRequest says what is to be restored. Backup, Target or Before has to be set; Target or Before with Backup begins with that backup.
type RestoreRequest struct {
	// Backup is a name, or Latest.
	Backup string
	// Target is a point behind a backup; zero for the backup itself. Its Backup and Life are not used.
	Target Target
	// Before, if not empty, is a key: the target is the state right before its last deletion, or
	// before that of what is below it if it ends with a slash.
	Before string
	// Spec is changed along with it, since the restored cluster would be changed back to it else.
	Spec    SpecChange
	Options RestoreOptions
}

func (r RestoreRequest) check() error {
	if r.Backup != "" {
		if err := catalog.ValidBackupName(r.Backup); err != nil {
			return &InvalidError{err}
		}
	} else if r.Target.IsZero() && r.Before == "" {
		return invalidf("a restore needs a backup or a target")
	}
	if slices.Contains(r.Options.DropPrefixes, "") {
		return invalidf("a prefix to drop is empty: that would drop every key")
	}
	return nil
}

// RestorePlan is what a restore would do.
type RestorePlan struct {
	Request RestoreRequest
	// Notes say which backup Latest means, and what was passed over.
	Notes []string
	// Before is the deletion before which to go; nil if none was asked for.
	Before *Deletion
	// Backup is the one that was named; nil if the plan has chosen one itself.
	Backup *Backup
	// Path is how the point is reached, and what is lost; nil for a backup itself, until Estimate was called.
	Path *Path

	target Target
}

// Path is how a point is reached.
type Path struct {
	*changelog.Plan
	// Target is where it leads.
	Target Target
	// Lost is what is kept of the incarnation that serves, all of which is lost; nil if the point is of that one, or if it isn't known.
	Lost     *changelog.Lost
	Estimate Estimate
}

// Estimate is how long a restore will take, roughly.
type Estimate struct {
	// Total is from its beginning to its end; for Outage of that nobody is served.
	Total, Outage time.Duration
	// Like is the restore by which it is estimated; nil if none was done yet.
	Like *catalog.Operation
}

// PlanRestore finds out what a restore would do, and changes nothing. Everything is refused here
// that can be found out before the managers begin: a backup that isn't there, is incomplete or of
// another cluster (*ForeignBackupError), and a point that can't be reached.
func (c *Client) PlanRestore(ctx context.Context, r RestoreRequest) (*RestorePlan, error) {
	p := &RestorePlan{Request: r, target: r.Target}
	if err := r.check(); err != nil {
		return p, err
	}
	l, err := c.locate(ctx, PointRequest{Backup: r.Backup, Target: r.Target, Before: r.Before})
	p.Notes, p.Before, p.target = l.notes, l.before, l.target
	if err != nil {
		return p, err
	}
	if l.backup == nil {
		return p, c.Estimate(ctx, p)
	}
	if !r.Options.ForceForeign {
		if err := c.refuseForeign(ctx, *l.backup); err != nil {
			return p, err
		}
	}
	p.Backup, p.target.Backup = l.backup, l.backup.Name
	if p.target.IsZero() {
		return p, nil
	}
	return p, c.Estimate(ctx, p)
}

// Estimate fills in the Path of a plan, also for a backup itself. A backup of another tool has no
// manifest, so its revision isn't known before it is read: its Path stays nil.
func (c *Client) Estimate(ctx context.Context, p *RestorePlan) error {
	if p.Path != nil || p.Backup != nil && p.Backup.Manifest == nil && p.target.IsZero() {
		return nil
	}
	path, err := c.path(ctx, p.target)
	p.Path = path
	return err
}

// Restore queues a restore as planned. Unless Options.Now is set it begins when the managers are
// restarted. The command is queued before the spec is written, and withdrawn if that fails
// (*SpecError).
func (c *Client) Restore(ctx context.Context, p *RestorePlan) (Queued, error) {
	r := request{change: p.Request.Spec, options: p.Request.Options.stored()}
	t := p.target
	switch {
	case t.IsZero() && p.Backup != nil:
		r.backup = p.Backup.Name
		return c.enqueue(ctx, r)
	case p.Path == nil:
		return Queued{}, invalidf("the plan is incomplete: PlanRestore has failed")
	}
	r.backup = p.Path.Base
	r.options.ToRevision, r.options.ToTime, r.options.Latest = t.Revision, t.Time, t.Latest
	if t.Latest && t.Backup != "" { // the newest of the incarnation that was named, whichever is going on when it begins
		r.options.ToRevision, r.options.Latest = p.Path.Revision, false
	}
	return c.enqueue(ctx, r)
}

// Backup is a backup that was looked at.
type Backup struct {
	catalog.Backup
	Info catalog.BackupInfo
	// Manifest is nil for backups of other tools.
	Manifest *catalog.Manifest

	others []catalog.Backup // all other backups, oldest first
}

// Backups lists the backups, oldest first, and what is incomplete.
func (c *Client) Backups(ctx context.Context) (catalog.BackupList, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	return c.catalog.Backups(ctx)
}

// Backup looks at a backup, which may be Latest: that it is complete, of the size that its manifest
// says, and what it says of itself. A name that isn't there is a *NoBackupError. The notes say
// which one Latest means, and what was passed over.
func (c *Client) Backup(ctx context.Context, name string) (b Backup, notes []string, err error) {
	return c.backup(ctx, name)
}

func (c *Client) backup(ctx context.Context, name string) (b Backup, notes []string, err error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	l, err := c.catalog.Backups(ctx)
	if err != nil {
		return Backup{}, nil, err
	}
	if name, notes, err = c.resolve(ctx, l, name); err != nil {
		return Backup{}, notes, err
	}
	i := slices.Index(l.Names(), name)
	if i < 0 {
		return Backup{}, notes, c.noBackup(l, name)
	}
	b = Backup{Backup: l.Backups[i], others: slices.Delete(slices.Clone(l.Backups), i, i+1)}
	if b.Info, err = c.catalog.BackupInfo(ctx, name); err != nil {
		return Backup{}, notes, fmt.Errorf("backup %s can't be restored: %w", name, err)
	}
	b.Manifest, err = c.catalog.Manifest(ctx, name)
	if errors.Is(err, ErrNotFound) {
		return b, notes, nil
	}
	if err != nil {
		return Backup{}, notes, fmt.Errorf("backup %s can't be restored: %w", name, err)
	}
	if have, want := b.Size, b.Manifest.Stored.Size; have != want {
		kind := cluster.ErrCorrupt
		if have < want {
			kind = backup.ErrTruncated
		}
		return Backup{}, notes, &backup.Error{Backup: name, Kind: kind, Where: b.Manifest.DataFile(),
			Err: fmt.Errorf("it has %d bytes, the manifest says %d", have, want)}
	}
	return b, notes, nil
}

// ForeignBackupError says that a backup is of another cluster than the other backups of the store.
type ForeignBackupError struct {
	Backup, Store string
	// Cluster is the backup's, Others that of the other backups.
	Cluster, Others string
}

func (e *ForeignBackupError) Error() string {
	return fmt.Sprintf("backup %s is of cluster %q, the other backups in %s are of %q: nothing was queued", e.Backup,
		e.Cluster, e.Store, e.Others)
}

// foreignLook is how many of the other backups are asked whose they are.
const foreignLook = 5

// refuseForeign fails if the newest other backups name a cluster, and none of them the one that
// this backup names. The managers, who know their own name, check it too; here it is found before a
// restart.
func (c *Client) refuseForeign(ctx context.Context, b Backup) error {
	if b.Manifest == nil || b.Manifest.ClusterName == "" {
		return nil
	}
	ctx, cancel := c.limit(ctx)
	defer cancel()
	other, looked := "", 0
	for i := len(b.others) - 1; i >= 0 && looked < foreignLook; i-- {
		o := b.others[i]
		if !o.HasManifest {
			continue
		}
		looked++
		m, err := c.catalog.Manifest(ctx, o.Name)
		switch {
		case ctx.Err() != nil, errors.Is(err, ErrDenied), errors.Is(err, ErrTransient):
			return err
		case err != nil || m.ClusterName == "": // it tells nothing
		case m.ClusterName == b.Manifest.ClusterName:
			return nil
		case other == "":
			other = m.ClusterName
		}
	}
	if other == "" {
		return nil
	}
	return &ForeignBackupError{Backup: b.Name, Store: c.Store(), Cluster: b.Manifest.ClusterName, Others: other}
}
