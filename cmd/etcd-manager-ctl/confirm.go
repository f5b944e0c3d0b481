package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

func (a *app) confirmCommand() *cobra.Command {
	return &cobra.Command{
		Use: "confirm-cluster TOKEN", Short: "Say that the cluster that runs is the right one, though the store's marker names another",
		Args: exactlyOne("the token of the cluster that runs (the managers' status page names it)"),
		Long: `The store's marker (control/etcd-cluster-created) names the cluster whose data are the right ones. After other software has restored a backup, a cluster runs
that the marker doesn't name; the managers leave both alone until a person decides. This command writes the token of the cluster that runs into the marker.
Look at the data first. Nothing is stopped, started or deleted by it, and it can be taken back with the token that it names.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.confirmCluster(cmd.Context(), cluster.Token(args[0]))
		},
	}
}

func (a *app) confirmCluster(ctx context.Context, token cluster.Token) error {
	if err := a.format(); err != nil {
		return err
	}
	if _, err := cluster.ParseToken(string(token)); err != nil {
		return &ui.UsageError{Err: err}
	}
	c, ctx, cancel, err := a.catalog(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	m, version, err := c.Marker(ctx)
	switch {
	case err != nil:
		return err
	case m.Phase != catalog.PhaseFormed:
		return fmt.Errorf("the marker in %s is of a cluster that is being formed (%s); the managers end that by themselves", a.store, m.Token)
	case m.Token == token:
		return a.printf("the marker names cluster %s already\n", token)
	}
	list, err := entries(ctx, c)
	if err != nil {
		return err
	}
	for _, e := range list {
		if e.running() {
			return fmt.Errorf("%s (%s) is under way and writes the marker itself; see how it ends: %s", e.name, e.subject(), a.ctl("follow", e.name))
		}
	}
	before := m.Token
	m.Token, m.Founders = token, nil
	if _, err := c.ReplaceMarker(ctx, m, version); err != nil {
		return err
	}
	if before == "" {
		return a.printf("the marker names cluster %s now; it named none before\n", token)
	}
	return a.printf("the marker names cluster %s now, not %s\n  take it back:  %s\n", token, before, a.ctl("confirm-cluster", string(before)))
}
