package main

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
	"github.com/etcd-manager/etcd-manager/pkg/retention"
)

type pruneOptions struct {
	retention   operator.Retention
	dryRun, yes bool
}

func pruneCommand(a *app) *cobra.Command {
	o := pruneOptions{retention: operator.DefaultRetention()}
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove the backups and changes that retention no longer keeps, or explain each decision (--dry-run)",
		Args: noArgs,
		Long: `Remove the backups and changes that retention no longer keeps. The managers do the same after each
backup and every hour, with their own settings. With --dry-run nothing is removed, and every decision is explained.
Give the same settings as the managers have, as flags or in the environment (ETCD_MANAGER_HOURLY_BACKUPS_RETENTION,
ETCD_MANAGER_DAILY_BACKUPS_RETENTION).

These are never removed: pinned backups, a backup that a queued restore names, the newest backup, and the newest
verified backup with the changes that lead to it.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := pruneEnv(a, cmd, &o.retention); err != nil {
				return err
			}
			return runPrune(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.dryRun, "dry-run", false, "remove nothing, and explain every decision")
	f.BoolVar(&o.yes, "yes", false, "don't ask before removing")
	f.Var(retention.Flag{To: &o.retention.Hourly}, "hourly-backups-retention", "how long a backup of each hour is kept: 168h, 7d, 1y")
	f.Var(retention.Flag{To: &o.retention.Daily}, "daily-backups-retention", "how long a backup of each day is kept")
	f.Var(retention.Flag{To: &o.retention.Changes}, "change-log-retention",
		"how long every change is kept; 0 means as long as a backup of each hour")
	return cmd
}

// pruneEnv reads the managers' variables for what the command line doesn't say.
func pruneEnv(a *app, cmd *cobra.Command, r *operator.Retention) error {
	for _, v := range []struct {
		flag, name string
		to         *time.Duration
	}{
		{"hourly-backups-retention", "ETCD_MANAGER_HOURLY_BACKUPS_RETENTION", &r.Hourly},
		{"daily-backups-retention", "ETCD_MANAGER_DAILY_BACKUPS_RETENTION", &r.Daily},
	} {
		if a.env == nil || cmd.Flags().Changed(v.flag) || a.env(v.name) == "" {
			continue
		}
		d, err := retention.ParseDuration(a.env(v.name))
		if err != nil {
			return ui.Usagef("environment variable %s: %w", v.name, err)
		}
		*v.to = d
	}
	return nil
}

type decisionOutput struct {
	Backup      string    `json:"backup,omitempty"`
	Incarnation string    `json:"incarnation,omitempty"`
	First       int64     `json:"firstRevision,omitempty"`
	Last        int64     `json:"lastRevision,omitempty"`
	Ended       time.Time `json:"ended,omitzero"`
	Segments    int       `json:"segments,omitempty"`
	SizeBytes   int64     `json:"sizeBytes"`
	Keep        bool      `json:"keep"`
	Reason      string    `json:"reason"`
}

func runPrune(ctx context.Context, a *app, o pruneOptions) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	pl, err := c.PlanPrune(ctx, o.retention)
	if err != nil {
		return err
	}
	if o.dryRun {
		return explainPlan(a, pl)
	}
	backups, segments := pl.Counts()
	if backups+segments == 0 && !pl.More {
		return a.printf("there is nothing to remove\n")
	}
	a.note("%s and %s of changes are to be removed; prune --dry-run says which, and why", ui.Count(backups, "backup"),
		ui.Count(segments, "segment"))
	if err := a.confirm(ctx, o.yes, "prune", "remove them"); err != nil {
		return err
	}
	sum, err := c.Prune(ctx, pl)
	if sum.Locked > 0 && (err == nil || !refusedAll(err)) {
		a.note("the store keeps %s under lock; they are removed later", ui.Count(sum.Locked, "object"))
	}
	if err != nil {
		return explainPrune(err)
	}
	return a.printf("removed: %s (%s) and %s of changes\n", ui.Count(sum.Backups, "backup"),
		ui.Count(sum.Objects, "object"), ui.Count(sum.Segments, "segment"))
}

// refusedAll tells that nothing is known of what was left.
func refusedAll(err error) bool {
	var denied *operator.PruneDeniedError
	return !errors.As(err, &denied) || denied.All
}

// explainPrune says what was removed before the store refused.
func explainPrune(err error) error {
	var denied *operator.PruneDeniedError
	if !errors.As(err, &denied) {
		return err
	}
	sum := denied.Pruned
	if denied.All {
		return fmt.Errorf("removed %s and %s, then the store refused: %w: %s", ui.Count(sum.Backups, "backup"),
			ui.Count(sum.Segments, "segment"), operator.ErrDenied, denied.Why)
	}
	return fmt.Errorf("removed %s (%s) and %s of changes; the store refused to delete %s: %w: %s",
		ui.Count(sum.Backups, "backup"), ui.Count(sum.Objects, "object"),
		ui.Count(sum.Segments, "segment"), ui.Count(sum.Refused, "object"), operator.ErrDenied, denied.Why)
}

// explainPlan prints every decision.
func explainPlan(a *app, pl *operator.PrunePlan) error {
	if a.output == "json" {
		out := make([]decisionOutput, 0, len(pl.Decisions))
		for _, d := range pl.Decisions {
			out = append(out, decisionOutput{d.Backup, string(d.Incarnation), d.First, d.Last, d.Ended, d.Segments,
				d.Size, d.Keep, d.Reason})
		}
		return a.printJSON(out)
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "DO\tWHAT\tSIZE\tWHY")
	for _, d := range pl.Decisions {
		do, size := "remove", ui.Size(d.Size)
		if d.Keep {
			do = "keep"
		}
		if d.Open {
			size = "not counted"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", do, whatOf(d), size, d.Reason)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	backups, segments := pl.Counts()
	more := ""
	if pl.More {
		more = ", and more after that"
	}
	a.note("%s and %s of changes would be removed%s; nothing was", ui.Count(backups, "backup"), ui.Count(segments, "segment"), more)
	return nil
}

// whatOf names what a decision is about.
func whatOf(d operator.PruneDecision) string {
	switch {
	case d.Backup != "":
		return "backup " + d.Backup
	case d.Open:
		return fmt.Sprintf("changes %s from revision %d on", d.Incarnation, d.First)
	case d.Segments == 0:
		return fmt.Sprintf("changes %s", d.Incarnation)
	}
	return fmt.Sprintf("changes %s, revisions %d to %d, until %s (%s)", d.Incarnation, d.First, d.Last,
		ui.Clock(d.Ended), ui.Count(d.Segments, "segment"))
}
