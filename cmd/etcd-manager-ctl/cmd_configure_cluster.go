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
	cmd.Flags().IntVar(&s.count, "member-count", 0, "the wanted `number` of members: an odd number from 1 to 9")
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
	cmd.Flags().StringArrayVar(&s.set, "set", nil, "set one of etcd's settings, as `NAME=VALUE`; may be repeated; names are "+names)
	cmd.Flags().StringArrayVar(&s.unset, "unset", nil, "return a setting to etcd's default, by its `NAME`; may be repeated")
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
	cmd.Flags().BoolVar(&o.allow, "allow-outage", false,
		"also change to an --etcd-version that etcd can't reach while it serves: by a restore, at once, with an outage")
	cmd.Flags().BoolVar(&o.wait, "wait", false, "with --allow-outage: follow the restore to its end; interrupting the tool doesn't interrupt the restore")
}

func (o *outageFlags) check(change operator.SpecChange) error {
	switch {
	case o.allow && change.EtcdVersion == nil:
		return ui.Usagef("--allow-outage needs --etcd-version: only a change of the version may need an outage")
	case o.wait && !o.allow:
		return ui.Usagef("--wait needs --allow-outage: the managers make all other changes by themselves (the leading manager's status shows their progress)")
	}
	return nil
}

func configureCommand(a *app) *cobra.Command {
	var spec specFlags
	var set settingsFlags
	var out outageFlags
	cmd := &cobra.Command{
		Use: "configure-cluster", Short: "Write the cluster spec; values that are not given stay as they are", Args: noArgs,
		Annotations: map[string]string{createsStore: "yes"},
		Long: `Write the cluster spec and etcd's settings. Values that are not given stay as they are. The managers see
the change within a minute and change the cluster, one safe step at a time. If they refuse something, the leading
manager's log and status say why.

Some versions can't be reached while etcd serves, like 3.4 from 3.5. Then --allow-outage is needed: a backup is taken
and restored into that version at once. Before it is queued, the command says how long etcd will be stopped and which
writes will be lost. Nothing is stopped before every node has checked the backup and staged its data, and undo-restore
undoes it. If no outage is needed, the flag has no effect.`,
		Example: `  etcd-manager-ctl --backup-store=s3://bucket/prefix configure-cluster --member-count=3 --etcd-version=3.5.21
  etcd-manager-ctl --backup-store=s3://bucket/prefix configure-cluster --set=quota-backend-bytes=8GiB --set=auto-compaction-retention=1h
  etcd-manager-ctl --backup-store=s3://bucket/prefix configure-cluster --etcd-version=3.4.23 --allow-outage --wait`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			change := spec.read(cmd)
			settings, err := set.read()
			if err != nil {
				return err
			}
			return runConfigure(cmd.Context(), a, change, settings, out)
		},
	}
	spec.add(cmd)
	set.add(cmd)
	out.add(cmd)
	return cmd
}

func runConfigure(ctx context.Context, a *app, change operator.SpecChange, set operator.SettingsChange, out outageFlags) error {
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
		return runChangeVersion(ctx, a, c, operator.VersionChange{Spec: change, Settings: set, Follow: followOptions(a)}, out.wait)
	}
	spec, err := c.Configure(ctx, change, set)
	if err != nil {
		return err
	}
	return showSpec(a, spec)
}

// runChangeVersion goes to a version with an outage if it can't be had without.
func runChangeVersion(ctx context.Context, a *app, c *operator.Client, v operator.VersionChange, wait bool) error {
	view := ui.NewPipe(a.errOut)
	defer view.Close()
	for event, err := range c.ChangeVersion(ctx, v) {
		var none *operator.NoVersionBackupError
		if errors.As(err, &none) {
			a.note("nothing is changed; remove the cause, then run the command again")
		}
		if err != nil {
			return err
		}
		switch e := event.(type) {
		case operator.VersionBackup:
			sayWaits(a, e.Queued)
			a.note("a backup is taken first, which also shows the running version of etcd (%s)", e.Queued.Command.Name)
		case operator.VersionRolls:
			a.note("etcd %s is changed to %s while it serves, one member after the other: no outage is needed", e.From, e.To)
		case operator.VersionOutage:
			sayOutage(a, e)
		case operator.Configured:
			return showSpec(a, e.Spec)
		case operator.RestoreQueued:
			return a.sayAndFollow(ctx, c, e.Queued, wait)
		default:
			show(view, event)
		}
	}
	return nil
}

// sayOutage says what nobody being served costs.
func sayOutage(a *app, e operator.VersionOutage) {
	total, outage := e.Path.Estimate.Total.Seconds(), e.Path.Estimate.Outage.Seconds()
	a.note(`etcd %s can't be changed to %s while it serves: everything (at least revision %d) is restored into it
  takes about %s, of it about %s without etcd (%s)
  Writes from its beginning until etcd stops, for about %s, are lost: if no write may be lost, stop the clients (API servers) first.
  Before etcd stops it is backed up once more, and undo-restore brings that state back.`,
		e.From, e.To, e.Path.Revision, ui.Took(round(total)), ui.Took(round(outage)), estimatedFrom(e.Path.Estimate),
		ui.Took(round(max(total-outage, 1))))
}
