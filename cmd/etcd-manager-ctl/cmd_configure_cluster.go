package main

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

// specFlags change the cluster spec.
type specFlags struct {
	count   int
	version string
}

func (s *specFlags) add(cmd *cobra.Command) {
	cmd.Flags().IntVar(&s.count, "member-count", 0, "the wanted `number` of members: odd, 1 to 9")
	cmd.Flags().StringVar(&s.version, "etcd-version", "", "the wanted etcd `version`, for example 3.5.21")
}

// read is the change that the command line asks for: what isn't given is kept.
func (s *specFlags) read(cmd *cobra.Command) operator.SpecChange {
	var change operator.SpecChange
	if cmd.Flags().Changed("member-count") {
		change.MemberCount = &s.count
	}
	if cmd.Flags().Changed("etcd-version") {
		change.EtcdVersion = &s.version
	}
	return change
}

// settingsFlags change etcd's settings.
type settingsFlags struct{ set, unset []string }

func (s *settingsFlags) add(cmd *cobra.Command) {
	names := strings.Join(cluster.SettingNames(), ", ")
	cmd.Flags().StringArrayVar(&s.set, "set", nil, "choose one of etcd's settings, as `NAME=VALUE`; may be repeated; names are "+names)
	cmd.Flags().StringArrayVar(&s.unset, "unset", nil, "leave a setting to etcd again, by its `NAME`; may be repeated")
}

func (s *settingsFlags) read() (operator.SettingsChange, error) {
	change := operator.SettingsChange{Unset: s.unset}
	for _, word := range s.set {
		name, value, ok := strings.Cut(word, "=")
		if !ok {
			return change, ui.Usagef("--set=%s is not NAME=VALUE", word)
		}
		change.Set = append(change.Set, operator.Setting{Name: name, Value: value})
	}
	return change, nil
}

// outageFlags are what the operator permits for a version that the members can't go to while they serve.
type outageFlags struct{ allow, wait bool }

func (o *outageFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.allow, "allow-outage", false, "go to an --etcd-version that etcd can't go to while it serves, by a restore into it at once")
	cmd.Flags().BoolVar(&o.wait, "wait", false, "with --allow-outage: follow the restore to its end; interrupting that doesn't interrupt it")
}

func (o *outageFlags) check(change operator.SpecChange) error {
	switch {
	case o.allow && change.EtcdVersion == nil:
		return ui.Usagef("--allow-outage goes with --etcd-version: only a change of the version may need an outage")
	case o.wait && !o.allow:
		return ui.Usagef("--wait goes with --allow-outage: all else is done by the managers in their own time (the leading manager's status shows how far they are)")
	}
	return nil
}

func (a *app) configureCommand() *cobra.Command {
	var spec specFlags
	var set settingsFlags
	var out outageFlags
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
			change := spec.read(cmd)
			settings, err := set.read()
			if err != nil {
				return err
			}
			return a.configure(cmd.Context(), change, settings, out)
		},
	}
	spec.add(cmd)
	set.add(cmd)
	out.add(cmd)
	return cmd
}

func (a *app) configure(ctx context.Context, change operator.SpecChange, set operator.SettingsChange, out outageFlags) error {
	if err := a.format("json"); err != nil {
		return err
	}
	if err := out.check(change); err != nil {
		return err
	}
	if change.Empty() && set.Empty() {
		return ui.Usagef("configure-cluster needs --member-count, --etcd-version, --set or --unset")
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	if out.allow {
		return a.changeVersion(ctx, c, operator.VersionChange{Spec: change, Settings: set, Follow: a.followOptions()}, out.wait)
	}
	spec, err := c.Configure(ctx, change, set)
	if err != nil {
		return err
	}
	return a.showSpec(spec)
}

// changeVersion goes to a version with an outage if it can't be had without.
func (a *app) changeVersion(ctx context.Context, c *operator.Client, v operator.VersionChange, wait bool) error {
	view := ui.NewPipe(a.errOut)
	defer view.Close()
	for event, err := range c.ChangeVersion(ctx, v) {
		var none *operator.NoVersionBackupError
		if errors.As(err, &none) {
			a.note("nothing is changed; give the command again when what is in the way is gone")
		}
		if err != nil {
			return err
		}
		switch e := event.(type) {
		case operator.VersionBackup:
			a.sayWaits(e.Queued)
			a.note("a backup is taken first, which also tells which etcd runs (%s)", e.Queued.Command.Name)
		case operator.VersionRolls:
			a.note("etcd %s becomes %s while it serves, one member after the other: no outage is needed", e.From, e.To)
		case operator.VersionOutage:
			a.sayOutage(e)
		case operator.Configured:
			return a.showSpec(e.Spec)
		case operator.RestoreQueued:
			return a.sayAndFollow(ctx, c, e.Queued, wait)
		default:
			show(view, event)
		}
	}
	return nil
}

// sayOutage says what nobody being served costs.
func (a *app) sayOutage(e operator.VersionOutage) {
	total, outage := e.Path.Estimate.Total.Seconds(), e.Path.Estimate.Outage.Seconds()
	a.note(`etcd %s can't become %s while it serves: all there is (at least revision %d) is restored into it
  takes about %s, of it about %s without etcd (%s)
  What is written from its beginning until etcd stops, for about %s, is not in it: stop the clients (API servers) first if nothing may be missing.
  Before etcd stops it is backed up once more, and undo-restore goes back to that.`,
		e.From, e.To, e.Path.Revision, ui.Took(round(total)), ui.Took(round(outage)), estimatedFrom(e.Path.Estimate), ui.Took(round(max(total-outage, 1))))
}
