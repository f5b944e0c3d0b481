package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

type specOutput struct {
	MemberCount int    `json:"memberCount"`
	EtcdVersion string `json:"etcdVersion,omitempty"`
}

func (a *app) printSpec(spec cluster.Spec) error {
	if a.output == "json" {
		return a.printJSON(specOutput{spec.MemberCount, spec.EtcdVersion})
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
	return a.printSpec(spec)
}

func (a *app) noSpec() error {
	return &notFoundError{fmt.Sprintf("there is no cluster spec in %s: write one with configure-cluster --member-count=N, or check the URL", a.store)}
}

func (a *app) configureCommand() *cobra.Command {
	var count int
	var version string
	cmd := &cobra.Command{
		Use: "configure-cluster", Short: "Write the cluster spec, keeping what is not given", Args: noArgs,
		Long: `Write the cluster spec, keeping what is not given. The managers see it within a minute and change the
cluster accordingly, one safe step at a time.`,
		Example: "  etcd-manager-ctl --backup-store=s3://bucket/prefix configure-cluster --member-count=3 --etcd-version=3.5.21",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.configure(cmd.Context(), cmd.Flags().Changed("member-count"), count, cmd.Flags().Changed("etcd-version"), version)
		},
	}
	cmd.Flags().IntVar(&count, "member-count", 0, "the wanted `number` of members: odd, 1 to 9")
	cmd.Flags().StringVar(&version, "etcd-version", "", "the wanted etcd `version`, for example 3.5.21")
	return cmd
}

// configureAttempts bounds how often a change by somebody else is taken into account.
const configureAttempts = 5

func (a *app) configure(ctx context.Context, setCount bool, count int, setVersion bool, version string) error {
	if err := a.format("json"); err != nil {
		return err
	}
	if !setCount && !setVersion {
		return usagef("configure-cluster needs --member-count or --etcd-version")
	}
	c, ctx, cancel, err := a.catalog(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	for range configureAttempts {
		spec, stored, err := c.Spec(ctx)
		// A directory that doesn't exist yet is made by the first write, which this may be.
		absent := errors.Is(err, catalog.ErrNotFound) || setCount && errors.Is(err, catalog.ErrInvalid) && errors.Is(err, fs.ErrNotExist)
		unreadable := errors.Is(err, cluster.ErrCorrupt)
		if err != nil && !absent && !unreadable {
			return err
		}
		if err != nil && !setCount {
			if unreadable {
				return err
			}
			return usagef("there is no cluster spec in %s yet: configure-cluster needs --member-count too", a.store)
		}
		if setCount {
			spec.MemberCount = count
		}
		if setVersion {
			spec.EtcdVersion = strings.TrimPrefix(strings.TrimSpace(version), "v")
		}
		if err := catalog.ValidateSpec(spec); err != nil {
			return &usageError{err}
		}
		if absent {
			_, err = c.CreateSpec(ctx, spec)
		} else {
			_, err = c.ReplaceSpec(ctx, spec, stored)
		}
		if errors.Is(err, catalog.ErrConflict) {
			continue
		}
		if err != nil {
			return err
		}
		return a.printSpec(spec)
	}
	return errors.New("the spec was changed by somebody else again and again: look with get, then try again")
}
