package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// outage is what the operator permits for a version that the members can't go to while they serve.
type outage struct{ allow, wait bool }

func (o *outage) addFlags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.allow, "allow-outage", false, "go to an --etcd-version that etcd can't go to while it serves, by a restore into it at once")
	cmd.Flags().BoolVar(&o.wait, "wait", false, "with --allow-outage: follow the restore to its end; interrupting that doesn't interrupt it")
}

func (o *outage) check(change specChange) error {
	switch {
	case o.allow && !change.setVers:
		return ui.Usagef("--allow-outage goes with --etcd-version: only a change of the version may need an outage")
	case o.wait && !o.allow:
		return ui.Usagef("--wait goes with --allow-outage: all else is done by the managers in their own time (the leading manager's status shows how far they are)")
	}
	return nil
}

// changeVersion goes to a version with an outage if it can't be had without. The backup that is taken for it tells which version runs.
// Settings that are changed too are written when it has been taken.
func (a *app) changeVersion(ctx context.Context, c *catalog.Catalog, change specChange, set settingsChange, wait bool) error {
	lctx, cancel := a.limit(ctx)
	spec, _, err := a.readSpec(lctx, c, change)
	cancel()
	if err != nil {
		return err
	}
	want, err := cluster.ParseVersion(spec.EtcdVersion)
	if err != nil {
		return &ui.UsageError{Err: err}
	}
	if why := want.Unsafe(); why != "" {
		return ui.Usagef("--etcd-version=%s is refused: %s", want, why)
	}
	m, err := a.backupBefore(ctx, c, want)
	if err != nil {
		a.note("nothing is changed; give the command again when what is in the way is gone")
		return err
	}
	runs, err := cluster.ParseVersion(m.EtcdVersion)
	if err != nil {
		return fmt.Errorf("which etcd runs can't be told from backup %s: %w; nothing is changed", m.Backup, err)
	}
	lctx, cancel = a.limit(ctx)
	err = a.writeSettings(lctx, c, set)
	cancel()
	if err != nil {
		return err
	}
	if runs.RollsTo(want) {
		a.note("etcd %s becomes %s while it serves, one member after the other: no outage is needed", runs, want)
		lctx, cancel := a.limit(ctx)
		defer cancel()
		return a.writeAndShow(lctx, c, change)
	}
	r := request{backup: m.Backup, change: change, wait: wait}
	r.options.Now, r.options.Reason = true, fmt.Sprintf("etcd %s to %s, with an outage", runs, want)
	p, o, err := a.plan(ctx, c, changelog.Target{Backup: m.Backup}) // no changes are read for it, which may be encrypted
	if err != nil {
		return err
	}
	r.options.Latest = true
	a.note(`etcd %s can't become %s while it serves: all there is (at least revision %d) is restored into it
  takes about %s, of it about %s without etcd (%s)
  What is written from its beginning until etcd stops, for about %s, is not in it: stop the clients (API servers) first if nothing may be missing.
  Before etcd stops it is backed up once more, and undo-restore goes back to that.`,
		runs, want, p.Revision, ui.Took(round(o.Seconds)), ui.Took(round(o.OutageSeconds)), o.EstimatedFrom, ui.Took(round(max(o.Seconds-o.OutageSeconds, 1))))
	return a.enqueue(ctx, c, r)
}

// backupBefore has a backup taken and waits for it.
func (a *app) backupBefore(ctx context.Context, c *catalog.Catalog, want cluster.Version) (*catalog.Manifest, error) {
	cmd, err := a.queueCreate(ctx, c, catalog.CreateBackup{Reason: fmt.Sprintf("before etcd %s", want)})
	if err != nil {
		return nil, err
	}
	a.note("a backup is taken first, which also tells which etcd runs (%s)", cmd.Name)
	v := ui.NewPipe(a.errOut)
	last, err := newWatch(a, c, cmd.Name).run(ctx, v)
	v.Close()
	switch {
	case err != nil:
		return nil, err
	case last.withdrawn:
		return nil, &outcomeError{exitNotDone, fmt.Sprintf("%s, the backup before it, was withdrawn", cmd.Name)}
	case last.op.State != catalog.StateDone:
		return nil, &outcomeError{exitFailure, fmt.Sprintf("no backup could be taken: %s", last.op.Reason)}
	}
	ctx, cancel := a.limit(ctx)
	defer cancel()
	return c.Manifest(ctx, last.op.Backup)
}
