package main

import (
	"context"
	"fmt"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
	"github.com/etcd-manager/etcd-manager/pkg/operator/health"
)

func listCommandsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list-commands", Short: "List the queued commands, and the results of earlier ones", Args: noArgs,
		Long: `List the queued commands, oldest first, and before them the finished ones that the store still remembers.

waiting      not begun; the managers read the queue when they start, or at once for --now
running      it is being executed; the phase shows the progress
done         it was executed
failed       it can't be executed, for the reason given, and is not tried again
rolled-back  it failed halfway, and the old cluster serves again
superseded   a later restore replaced it
unreadable   an object in the queue that isn't a command

describe-command shows one of them in full.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return runListCommands(cmd.Context(), a) },
	}
}

func runListCommands(ctx context.Context, a *app) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	list, err := c.Commands(ctx)
	if err != nil {
		return err
	}
	rows := []commandOutput{}
	for _, e := range list {
		rows = append(rows, commandRow(e))
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
	if slices.ContainsFunc(list, operator.Command.Waiting) {
		noteWaiting(ctx, a, c, true)
	}
	return nil
}

// noteWaiting says that no manager leads, which keeps all commands waiting, and in a list what the one that leads does. That it can't be
// told is no failure.
func noteWaiting(ctx context.Context, a *app, c *operator.Client, list bool) {
	r, err := c.Health(ctx, operator.HealthOptions{Brief: true})
	if err != nil {
		return
	}
	for _, f := range r.Findings {
		if f.Kind == string(cluster.AttentionNoLeader) || f.Kind == health.KindNoManager {
			a.note("commands wait: %s", f.Text)
			return
		}
	}
	if list && r.Leader != nil && r.Doing != "" {
		a.note("%s", leaderSaysLine(r.Leader.Node, r.Doing))
	}
}
