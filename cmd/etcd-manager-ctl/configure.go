package main

import (
	"context"
	"errors"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// specChange is what the command line changes about the cluster spec.
type specChange struct {
	count    int
	version  string
	setCount bool
	setVers  bool
}

// addFlags declares the two flags; read tells afterwards which of them were given.
func (s *specChange) addFlags(cmd *cobra.Command) {
	cmd.Flags().IntVar(&s.count, "member-count", 0, "the wanted `number` of members: odd, 1 to 9")
	cmd.Flags().StringVar(&s.version, "etcd-version", "", "the wanted etcd `version`, for example 3.5.21")
}

func (s *specChange) read(cmd *cobra.Command) {
	s.setCount, s.setVers = cmd.Flags().Changed("member-count"), cmd.Flags().Changed("etcd-version")
}

func (s *specChange) empty() bool { return !s.setCount && !s.setVers }

func (s *specChange) apply(spec cluster.Spec) cluster.Spec {
	if s.setCount {
		spec.MemberCount = s.count
	}
	if s.setVers {
		spec.EtcdVersion = strings.TrimPrefix(strings.TrimSpace(s.version), "v")
	}
	return spec
}

func (a *app) configureCommand() *cobra.Command {
	var change specChange
	var set settingsChange
	var out outage
	cmd := &cobra.Command{
		Use: "configure-cluster", Short: "Write the cluster spec, keeping what is not given", Args: noArgs,
		Annotations: map[string]string{createsStore: "yes"},
		Long: `Write the cluster spec and etcd's settings, keeping what is not given. The managers see it within a minute and change the
cluster accordingly, one safe step at a time. What is refused, and why, is in the leading manager's log and status.

A version that etcd can't go to while it serves, like 3.4 from 3.5, is only gone to with --allow-outage: a backup is taken and restored into that
version at once; how long nobody is served for it, and what isn't in it, is said before it is queued. Nothing is stopped before the backup is
proven and staged on every node, and undo-restore takes it back. Where no outage is needed the flag changes nothing.`,
		Example: `  etcd-manager-ctl --backup-store=s3://bucket/prefix configure-cluster --member-count=3 --etcd-version=3.5.21
  etcd-manager-ctl --backup-store=s3://bucket/prefix configure-cluster --set=quota-backend-bytes=8GiB --set=auto-compaction-retention=1h
  etcd-manager-ctl --backup-store=s3://bucket/prefix configure-cluster --etcd-version=3.4.23 --allow-outage --wait`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			change.read(cmd)
			return a.configure(cmd.Context(), change, set, out)
		},
	}
	change.addFlags(cmd)
	set.addFlags(cmd)
	out.addFlags(cmd)
	return cmd
}

func (a *app) configure(ctx context.Context, change specChange, set settingsChange, out outage) error {
	if err := a.format("json"); err != nil {
		return err
	}
	if err := out.check(change); err != nil {
		return err
	}
	if change.empty() && set.empty() {
		return ui.Usagef("configure-cluster needs --member-count, --etcd-version, --set or --unset")
	}
	c, lctx, cancel, err := a.catalog(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	if out.allow {
		return a.changeVersion(ctx, c, change, set, out.wait)
	}
	if err := a.writeSettings(lctx, c, set); err != nil {
		return err
	}
	return a.writeAndShow(lctx, c, change)
}

// writeAndShow changes the spec, if anything is changed about it, and prints what it is now.
func (a *app) writeAndShow(ctx context.Context, c *catalog.Catalog, change specChange) error {
	var spec cluster.Spec
	var err error
	if change.empty() {
		spec, _, err = a.readSpec(ctx, c, change)
	} else {
		spec, err = a.writeSpec(ctx, c, change)
	}
	if err != nil {
		return err
	}
	return a.showSpec(ctx, c, spec)
}

// configureAttempts bounds how often a change by somebody else is taken into account.
const configureAttempts = 5

// writeSpec changes the spec in the store and keeps what the change doesn't name, also if somebody else writes at the same moment.
func (a *app) writeSpec(ctx context.Context, c *catalog.Catalog, change specChange) (cluster.Spec, error) {
	for range configureAttempts {
		spec, stored, err := a.readSpec(ctx, c, change)
		if err != nil {
			return spec, err
		}
		if stored == "" {
			_, err = c.CreateSpec(ctx, spec)
		} else {
			_, err = c.ReplaceSpec(ctx, spec, stored)
		}
		if errors.Is(err, catalog.ErrConflict) {
			continue
		}
		return spec, err
	}
	return cluster.Spec{}, errors.New("the spec was changed by somebody else again and again: look with get, then try again")
}

// readSpec reads the spec and applies the change. The version is that of what is stored, empty if there is none.
func (a *app) readSpec(ctx context.Context, c *catalog.Catalog, change specChange) (cluster.Spec, string, error) {
	spec, stored, err := c.Spec(ctx)
	// A directory that doesn't exist yet is made by the first write, which this may be.
	absent := errors.Is(err, catalog.ErrNotFound) || change.setCount && errors.Is(err, catalog.ErrInvalid) && errors.Is(err, fs.ErrNotExist)
	unreadable := errors.Is(err, cluster.ErrCorrupt)
	switch {
	case err != nil && !absent && !unreadable, unreadable && !change.setCount:
		return spec, "", err
	case err != nil && !change.setCount && change.empty():
		return spec, "", a.noSpec()
	case err != nil && !change.setCount:
		return spec, "", ui.Usagef("there is no cluster spec in %s yet: --member-count is needed too", a.store)
	}
	spec = change.apply(spec)
	if err := catalog.ValidateSpec(spec); err != nil {
		if change.empty() {
			return spec, "", err
		}
		return spec, "", &ui.UsageError{Err: err}
	}
	if absent {
		stored = ""
	}
	return spec, stored, nil
}
