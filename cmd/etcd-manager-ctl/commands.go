package main

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// States of a command as list-commands shows them; running ones show the operation's own state beside.
const (
	stateWaiting    = "waiting"
	stateRunning    = "running"
	stateUnreadable = "unreadable"
)

type commandOutput struct {
	Name   string `json:"name"`
	Kind   string `json:"kind"`
	State  string `json:"state"`
	Queued bool   `json:"queued"`
	Backup string `json:"backup,omitempty"`
	// Spec is what the backup is restored into.
	Spec       *specOutput `json:"spec,omitempty"`
	QueuedAt   time.Time   `json:"queuedAt,omitzero"`
	FinishedAt time.Time   `json:"finishedAt,omitzero"`
	// Phase is the operation's own state while it runs.
	Phase  string `json:"phase,omitempty"`
	Reason string `json:"reason,omitempty"`
	// OutageSeconds is how long etcd served nobody.
	OutageSeconds float64 `json:"outageSeconds,omitempty"`
}

func (a *app) listCommandsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list-commands", Short: "List what is queued, and what became of what was", Args: noArgs,
		Long: `List the queued commands, oldest first, and before them the finished ones that the store still remembers.

waiting      nobody has begun; the managers look into the queue when they start
running      it is being executed; the phase says how far it is
done         it was executed
failed       it can't be executed, for the reason given, and is not tried again
rolled-back  it went wrong on the way, and the old cluster serves again
superseded   a later restore took its place
unreadable   the queue has something that isn't a command`,
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
	rows, err := commandRows(ctx, c)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.printJSON(rows)
	}
	if len(rows) == 0 {
		fmt.Fprintln(a.errOut, "nothing is queued")
		return nil
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tSTATE\tBACKUP\tDETAIL")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.Name, r.State, r.Backup, r.detail())
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

func (r commandOutput) detail() string {
	switch {
	case r.State == stateWaiting:
		return "until the managers are restarted"
	case r.State == stateRunning && r.Reason == "":
		return r.Phase
	case r.State == stateRunning:
		return r.Phase + ": " + r.Reason
	case r.Reason == "" && r.OutageSeconds > 0:
		return fmt.Sprintf("etcd served nobody for %.1fs", r.OutageSeconds)
	}
	return r.Reason
}

// commandRows puts queue and operations together.
func commandRows(ctx context.Context, c *catalog.Catalog) ([]commandOutput, error) {
	cmds, badCommands, err := c.Commands(ctx)
	if err != nil {
		return nil, err
	}
	ops, badOps, err := c.Operations(ctx)
	if err != nil {
		return nil, err
	}
	byCommand := map[string]catalog.Operation{}
	queued := map[string]bool{}
	for _, cmd := range cmds {
		queued[cmd.Name] = true
	}
	rows := []commandOutput{}
	for _, op := range ops {
		byCommand[op.Command] = op
		if !queued[op.Command] {
			rows = append(rows, commandRow(catalog.Command{Name: op.Command, Backup: op.Backup, Spec: op.Spec, Time: catalog.BackupTime(op.Command)}, &op, false))
		}
	}
	for _, cmd := range cmds {
		if op, ok := byCommand[cmd.Name]; ok {
			rows = append(rows, commandRow(cmd, &op, true))
		} else {
			rows = append(rows, commandRow(cmd, nil, true))
		}
	}
	for _, p := range badCommands {
		rows = append(rows, commandOutput{Name: p.Name, Kind: "unknown", State: stateUnreadable, Queued: true, Reason: p.Err.Error()})
	}
	for _, p := range badOps {
		rows = append(rows, commandOutput{Name: p.Name, Kind: "unknown", State: stateUnreadable, Reason: p.Err.Error()})
	}
	return rows, nil
}

func commandRow(cmd catalog.Command, op *catalog.Operation, queued bool) commandOutput {
	r := commandOutput{Name: cmd.Name, Kind: string(catalog.KindRestore), State: stateWaiting, Queued: queued, Backup: cmd.Backup,
		Spec: &specOutput{cmd.Spec.MemberCount, cmd.Spec.EtcdVersion}, QueuedAt: cmd.Time}
	if op == nil {
		return r
	}
	r.Reason, r.FinishedAt, r.OutageSeconds = op.Reason, op.Finished, op.Outage.Seconds()
	if op.State.Final() {
		r.State = string(op.State)
	} else {
		r.State, r.Phase = stateRunning, string(op.State)
	}
	return r
}

func (a *app) deleteCommandCommand() *cobra.Command {
	return &cobra.Command{
		Use: "delete-command NAME", Short: "Withdraw the queued restores of a backup", Args: exactlyOne("the name of a backup or of a command (see list-commands)"),
		Long: `Withdraw all queued restores of the backup NAME. NAME may also be the command's own name, as list-commands shows it.
What has begun already is not stopped by this.`,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.deleteCommand(cmd.Context(), args[0]) },
		ValidArgsFunction: a.complete(queuedNames),
	}
}

func (a *app) deleteCommand(ctx context.Context, name string) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, ctx, cancel, err := a.catalog(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	rows, err := commandRows(ctx, c)
	if err != nil {
		return err
	}
	removed := []commandOutput{}
	for _, r := range rows {
		if !r.Queued || r.Backup != name && r.Name != name {
			continue
		}
		if err := c.RemoveCommand(ctx, r.Name); err != nil {
			return err
		}
		removed = append(removed, r)
		if r.State == stateRunning {
			fmt.Fprintf(a.errOut, "%s is being executed already (%s): withdrawing it doesn't stop it\n", r.Name, r.Phase)
		}
		if a.output == "" {
			if err := a.printf("withdrawn: %s (%s)\n", r.Name, describe(r)); err != nil {
				return err
			}
		}
	}
	if len(removed) == 0 {
		return &notFoundError{fmt.Sprintf("no queued command restores the backup %q, or is called so (list-commands shows the queue)", name)}
	}
	if a.output == "json" {
		return a.printJSON(removed)
	}
	return nil
}

func describe(r commandOutput) string {
	if r.State == stateUnreadable {
		return "it couldn't be read"
	}
	return "restore of " + r.Backup
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

func queuedNames(ctx context.Context, c *catalog.Catalog) ([]string, error) {
	cmds, _, err := c.Commands(ctx)
	var names []string
	for _, cmd := range cmds {
		names = append(names, cmd.Name)
		names = append(names, cmd.Backup)
	}
	return names, err
}
