package main

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

// complete makes shell completion out of a function that lists names. It keeps silent about errors: there is no place for them.
func (a *app) complete(list func(context.Context, *operator.Client) ([]string, error)) func(*cobra.Command, []string,
	string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		parent := cmd.Context()
		if parent == nil {
			parent = context.Background()
		}
		c, err := a.client(parent)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names, err := list(parent, c)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return names, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	}
}

// queuedNames lists what can be withdrawn.
func queuedNames(ctx context.Context, c *operator.Client) ([]string, error) {
	list, err := c.Commands(ctx)
	var names []string
	for _, e := range list {
		if e.Queued == nil {
			continue
		}
		names = append(names, e.Name)
		if e.Queued.Backup != "" {
			names = append(names, e.Queued.Backup)
		}
	}
	return names, err
}

// commandNames lists all that is known, the newest first.
func commandNames(ctx context.Context, c *operator.Client) ([]string, error) {
	list, err := c.Commands(ctx)
	var names []string
	for _, e := range slices.Backward(list) {
		names = append(names, e.Name)
	}
	return names, err
}

// restorableNames lists the newest first: that is the one that is wanted most often.
func restorableNames(ctx context.Context, c *operator.Client) ([]string, error) {
	names, err := c.BackupNames(ctx)
	if len(names) > 0 {
		names = append(names, operator.Latest)
	}
	return names, err
}

// undoableNames lists the restores that were done, the newest first.
func undoableNames(ctx context.Context, c *operator.Client) ([]string, error) {
	list, err := c.Commands(ctx)
	var names []string
	for _, e := range slices.Backward(list) {
		if e.State() == operator.State(catalog.StateDone) && e.Restores() {
			names = append(names, e.Operation.ID)
		}
	}
	return names, err
}

func survivorNames(ctx context.Context, c *operator.Client) ([]string, error) {
	s, err := c.Survivors(ctx)
	var names []string
	for _, n := range s.Nodes {
		names = append(names, string(n.Node))
	}
	return names, err
}
