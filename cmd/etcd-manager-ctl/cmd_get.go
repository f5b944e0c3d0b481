package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

type specOutput struct {
	MemberCount int              `json:"memberCount"`
	EtcdVersion string           `json:"etcdVersion,omitempty"`
	Settings    cluster.Settings `json:"settings,omitempty"`
}

// showSpec prints the spec and, if there are any, the settings.
func showSpec(a *app, spec operator.ClusterSpec) error {
	if a.output == "json" {
		return a.printJSON(specOutput{spec.MemberCount, spec.EtcdVersion, spec.Settings})
	}
	version := spec.EtcdVersion
	if version == "" {
		version = "not set (the running version; for a new cluster the version that is compiled into the managers)"
	}
	if err := a.printf("member count: %d\netcd version: %s\n", spec.MemberCount, version); err != nil || len(spec.Settings) == 0 {
		return err
	}
	return a.printf("etcd settings: %s\n", spec.Settings)
}

func getCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "get", Short: "Print the cluster spec", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runGet(cmd.Context(), a) },
	}
}

func runGet(ctx context.Context, a *app) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	spec, err := c.Spec(ctx)
	if err != nil {
		return err
	}
	return showSpec(a, spec)
}
