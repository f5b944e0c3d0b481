package operator

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// VersionChange is a change of the spec for which an outage is permitted.
type VersionChange struct {
	// Spec has to name an etcd version.
	Spec     SpecChange
	Settings SettingsChange
	Follow   FollowOptions
}

// VersionBackup is an event of ChangeVersion: a backup was queued, which also tells which etcd
// runs. What follows until it has ended are the events of Follow for it.
type VersionBackup struct {
	Moment
	Queued BackupQueued
}

// VersionRolls is an event of ChangeVersion: the version is gone to while the cluster serves, one
// member after the other. The spec is written right after it.
type VersionRolls struct {
	Moment
	From, To cluster.Version
}

// VersionOutage is an event of ChangeVersion: the version is gone to by a restore of all there is,
// during which nobody is served. It is queued right after it; who ends the loop here has changed
// nothing but the settings.
type VersionOutage struct {
	Moment
	From, To cluster.Version
	// Path is how the backup is reached, with the least revision that the restore will have, and how long it takes.
	Path *Path
}

// Configured is the last event of a ChangeVersion that needs no outage.
type Configured struct {
	Moment
	Spec ClusterSpec
}

// RestoreQueued is the last event of a ChangeVersion that needs an outage.
type RestoreQueued struct {
	Moment
	Queued Queued
}

// NoVersionBackupError says that the backup that ChangeVersion begins with was not taken; nothing
// is changed. Err is an *OutcomeError if it has ended otherwise than done.
type NoVersionBackupError struct{ Err error }

func (e *NoVersionBackupError) Error() string {
	var outcome *OutcomeError
	switch {
	case !errors.As(e.Err, &outcome):
		return e.Err.Error()
	case outcome.Withdrawn:
		return outcome.Command.Name + ", the backup before it, was withdrawn"
	}
	return "no backup could be taken: " + outcome.Command.Operation.Reason
}

// Unwrap gives the cause.
func (e *NoVersionBackupError) Unwrap() error { return e.Err }

// ChangeVersion goes to a version of etcd with an outage if it can't be had without: a backup is
// taken first, which tells which version runs, and if need be restored into the other one at once.
// Settings that are changed too are written when it has been taken. It yields what it does before
// it does it; an error ends the sequence. Ending the loop, or the context, leaves what was queued
// by then.
func (c *Client) ChangeVersion(ctx context.Context, v VersionChange) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		if err := c.changeVersion(ctx, v, func(e Event) bool { return yield(e, nil) }); err != nil {
			yield(nil, err)
		}
	}
}

func (c *Client) changeVersion(ctx context.Context, v VersionChange, yield func(Event) bool) error {
	want, err := c.wantedVersion(ctx, v.Spec)
	if err != nil {
		return err
	}
	m, err := c.backupBefore(ctx, want, v.Follow, yield)
	if err != nil {
		return &NoVersionBackupError{err}
	}
	if m == nil {
		return nil
	}
	runs, err := cluster.ParseVersion(m.EtcdVersion)
	if err != nil {
		return fmt.Errorf("backup %s doesn't show which etcd runs: %w; nothing is changed", m.Backup, err)
	}
	lctx, cancel := c.limit(ctx)
	err = c.writeSettings(lctx, v.Settings)
	cancel()
	if err != nil {
		return err
	}
	if runs.RollsTo(want) {
		if !yield(VersionRolls{Moment{c.Now()}, runs, want}) {
			return nil
		}
		lctx, cancel := c.limit(ctx)
		defer cancel()
		spec, err := c.configure(lctx, v.Spec)
		if err == nil {
			yield(Configured{Moment{c.Now()}, spec})
		}
		return err
	}
	path, err := c.path(ctx, Target{Backup: m.Backup}) // no changes are read for it, which may be encrypted
	if err != nil {
		return err
	}
	if !yield(VersionOutage{Moment{c.Now()}, runs, want, path}) {
		return nil
	}
	r := request{backup: m.Backup, change: v.Spec}
	r.options.Now, r.options.Latest, r.options.Reason = true, true, fmt.Sprintf("etcd %s to %s, with an outage", runs, want)
	queued, err := c.enqueue(ctx, r)
	if err == nil {
		yield(RestoreQueued{Moment{c.Now()}, queued})
	}
	return err
}

// wantedVersion is the version that the spec will have.
func (c *Client) wantedVersion(ctx context.Context, change SpecChange) (cluster.Version, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	if change.EtcdVersion == nil {
		return cluster.Version{}, invalidf("no etcd version is named: only a change of the version may need an outage")
	}
	spec, _, err := c.readSpec(ctx, change)
	if err != nil {
		return cluster.Version{}, err
	}
	want, err := cluster.ParseVersion(spec.EtcdVersion)
	if err != nil {
		return want, &InvalidError{err}
	}
	if why := want.Unsafe(); why != "" {
		return want, &UnsafeVersionError{want, why}
	}
	return want, nil
}

// UnsafeVersionError says why a version of etcd is refused. It is an *InvalidError, too.
type UnsafeVersionError struct {
	Version cluster.Version
	Why     string
}

func (e *UnsafeVersionError) Error() string {
	return fmt.Sprintf("etcd %s is refused: %s", e.Version, e.Why)
}

// Unwrap gives an *InvalidError.
func (e *UnsafeVersionError) Unwrap() error { return invalidf("%s", e.Why) }

// backupBefore has a backup taken and waits for it. The manifest is nil if nobody wants to wait.
func (c *Client) backupBefore(ctx context.Context, want cluster.Version, o FollowOptions,
	yield func(Event) bool) (*catalog.Manifest, error) {
	created, err := c.CreateBackup(ctx, BackupRequest{Reason: fmt.Sprintf("before etcd %s", want)})
	if err != nil {
		return nil, err
	}
	if !yield(VersionBackup{Moment{c.Now()}, created}) {
		return nil, nil
	}
	var end *Ended
	for e, err := range c.Follow(ctx, created.Command.Name, o) {
		if err != nil {
			return nil, err
		}
		if ended, ok := e.(Ended); ok {
			end = &ended
			break
		}
		if !yield(e) {
			return nil, nil
		}
	}
	switch {
	case end == nil:
		return nil, &UnfollowedError{Command: created.Command.Name, Err: context.Cause(ctx)}
	case end.Err() != nil:
		return nil, end.Err()
	}
	ctx, cancel := c.limit(ctx)
	defer cancel()
	return c.catalog.Manifest(ctx, end.Command.Operation.Backup)
}
