package main

import (
	"context"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

func (a *app) listCommandsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list-commands", Short: "List what is queued, and what became of what was", Args: noArgs,
		Long: `List the queued commands, oldest first, and before them the finished ones that the store still remembers.

waiting      nobody has begun; the managers look into the queue when they start, or at once with --now
running      it is being executed; the phase says how far it is
done         it was executed
failed       it can't be executed, for the reason given, and is not tried again
rolled-back  it went wrong on the way, and the old cluster serves again
superseded   a later restore took its place
unreadable   the queue has something that isn't a command

describe-command shows one of them in full.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.listCommands(cmd.Context()) },
	}
}

func (a *app) listCommands(ctx context.Context) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, ctx, cancel, err := a.catalog(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	list, err := entries(ctx, c)
	if err != nil {
		return err
	}
	rows := []commandOutput{}
	for _, e := range list {
		rows = append(rows, e.output())
	}
	if a.output == "json" {
		return a.printJSON(rows)
	}
	if len(rows) == 0 {
		a.note("nothing is queued")
		return nil
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tSTATE\tBACKUP\tDETAIL")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.Name, r.State, r.of(), r.detail())
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// complete makes shell completion out of a function that lists names. It keeps silent about errors: there is no place for them.
func (a *app) complete(list func(context.Context, *catalog.Catalog) ([]string, error)) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		parent := cmd.Context()
		if parent == nil {
			parent = context.Background()
		}
		c, ctx, cancel, err := a.catalog(parent)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer cancel()
		names, err := list(ctx, c)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return names, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	}
}

// queuedNames lists what can be withdrawn.
func queuedNames(ctx context.Context, c *catalog.Catalog) ([]string, error) {
	cmds, _, err := c.Commands(ctx)
	var names []string
	for _, cmd := range cmds {
		names = append(names, cmd.Name)
		if cmd.Backup != "" {
			names = append(names, cmd.Backup)
		}
	}
	return names, err
}

// commandNames lists all that is known, the newest first.
func commandNames(ctx context.Context, c *catalog.Catalog) ([]string, error) {
	list, err := entries(ctx, c)
	var names []string
	for i := len(list) - 1; i >= 0; i-- {
		names = append(names, list[i].name)
	}
	return names, err
}
