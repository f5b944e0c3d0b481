package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

type specOutput struct {
	MemberCount int              `json:"memberCount"`
	EtcdVersion string           `json:"etcdVersion,omitempty"`
	Settings    cluster.Settings `json:"settings,omitempty"`
}

// showSpec prints the spec and, if there are any, the settings.
func (a *app) showSpec(ctx context.Context, c *catalog.Catalog, spec cluster.Spec) error {
	settings, _, err := c.Settings(ctx)
	if err != nil && !errors.Is(err, catalog.ErrNotFound) {
		return err
	}
	if a.output == "json" {
		return a.printJSON(specOutput{spec.MemberCount, spec.EtcdVersion, settings})
	}
	if err := a.printSpec(spec); err != nil || len(settings) == 0 {
		return err
	}
	return a.printf("etcd settings: %s\n", settings)
}

func (a *app) printSpec(spec cluster.Spec) error {
	if a.output == "json" {
		return a.printJSON(specOutput{spec.MemberCount, spec.EtcdVersion, nil})
	}
	version := spec.EtcdVersion
	if version == "" {
		version = "not set (what runs, else the version that the managers have compiled in)"
	}
	return a.printf("member count: %d\netcd version: %s\n", spec.MemberCount, version)
}

func (a *app) getCommand() *cobra.Command {
	return &cobra.Command{
		Use: "get", Short: "Print the cluster spec", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.get(cmd.Context()) },
	}
}

func (a *app) get(ctx context.Context) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, ctx, cancel, err := a.catalog(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	spec, _, err := c.Spec(ctx)
	if errors.Is(err, catalog.ErrNotFound) {
		return a.noSpec()
	}
	if err != nil {
		return err
	}
	return a.showSpec(ctx, c, spec)
}

func (a *app) noSpec() error {
	return &notFoundError{fmt.Sprintf("there is no cluster spec in %s: write one with configure-cluster --member-count=N, or check the URL", a.store)}
}
