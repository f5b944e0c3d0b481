package main

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/prune"
	"github.com/etcd-manager/etcd-manager/pkg/retention"
)

type pruneOptions struct {
	policy      prune.Policy
	dryRun, yes bool
}

func (a *app) pruneCommand() *cobra.Command {
	o := pruneOptions{policy: prune.Policy{Backups: retention.Default(), Changes: retention.DefaultChanges}}
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove the backups and changes that retention gives up, or explain each decision (--dry-run)", Args: noArgs,
		Long: `Remove what retention gives up: what the managers do by themselves, after each backup and every hour, with the settings of their own.
With --dry-run nothing is removed, and every decision is explained. Give the settings that the managers have, as flags or in the environment
(ETCD_MANAGER_HOURLY_BACKUPS_RETENTION, ETCD_MANAGER_DAILY_BACKUPS_RETENTION).

What is pinned, what a queued restore names, the newest backup, and the newest proven one with what leads to it are never removed.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.pruneEnv(cmd, &o.policy); err != nil {
				return err
			}
			return a.prune(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.dryRun, "dry-run", false, "remove nothing, and explain every decision")
	f.BoolVar(&o.yes, "yes", false, "don't ask before removing")
	f.Var(retention.Flag{To: &o.policy.Backups.Hourly}, "hourly-backups-retention", "how long a backup of each hour is kept: 168h, 7d, 1y")
	f.Var(retention.Flag{To: &o.policy.Backups.Daily}, "daily-backups-retention", "how long a backup of each day is kept")
	f.Var(retention.Flag{To: &o.policy.Changes}, "change-log-retention", "how long every change is kept; 0 means as long as a backup of each hour")
	return cmd
}

// pruneEnv reads the managers' variables for what the command line doesn't say.
func (a *app) pruneEnv(cmd *cobra.Command, p *prune.Policy) error {
	for _, v := range []struct {
		flag, name string
		to         *time.Duration
	}{
		{"hourly-backups-retention", "ETCD_MANAGER_HOURLY_BACKUPS_RETENTION", &p.Backups.Hourly},
		{"daily-backups-retention", "ETCD_MANAGER_DAILY_BACKUPS_RETENTION", &p.Backups.Daily},
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

func (a *app) prune(ctx context.Context, o pruneOptions) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, err := a.openCatalog(ctx)
	if err != nil {
		return err
	}
	p := prune.New(c, o.policy)
	pl, err := a.planPrune(ctx, c, p)
	if err != nil {
		return err
	}
	if o.dryRun {
		return a.explain(pl)
	}
	backups, segments := pl.Counts()
	if backups+segments == 0 && !pl.More {
		return a.printf("nothing is to be removed\n")
	}
	a.note("%s and %s of changes are to be removed; prune --dry-run says which, and why", ui.Count(backups, "backup"), ui.Count(segments, "segment"))
	if err := a.confirm(ctx, o.yes, "prune", "remove them"); err != nil {
		return err
	}
	return a.pruneAll(ctx, c, p, pl)
}

func (a *app) planPrune(ctx context.Context, c *catalog.Catalog, p *prune.Pruner) (*prune.Plan, error) {
	ctx, cancel := a.limit(ctx)
	defer cancel()
	ex, err := p.Exempt(ctx)
	if err != nil {
		return nil, err
	}
	return p.Plan(ctx, a.now(), ex)
}

// pruneAll carries a plan out, and what is left after it, until nothing is. What was confirmed is a rule, not a list.
func (a *app) pruneAll(ctx context.Context, c *catalog.Catalog, p *prune.Pruner, pl *prune.Plan) error {
	var sum prune.Result
	for {
		r, err := p.Carry(ctx, a.now(), pl)
		sum.Refused += r.Refused
		if r.RefusedWhy != "" {
			sum.RefusedWhy = r.RefusedWhy
		}
		sum.Backups, sum.Segments, sum.Objects, sum.Locked = sum.Backups+r.Backups, sum.Segments+r.Segments, sum.Objects+r.Objects, sum.Locked+r.Locked
		if err != nil {
			return err
		}
		if r.Denied != "" {
			return fmt.Errorf("removed %s and %s, then the store refused: %w: %s", ui.Count(sum.Backups, "backup"), ui.Count(sum.Segments, "segment"), catalog.ErrDenied, r.Denied)
		}
		if !r.More || r.Backups+r.Segments+r.Objects+r.Locked+r.Refused == 0 { // what is left for later has to wait, for a restore that is queued perhaps
			break
		}
		if pl, err = a.planPrune(ctx, c, p); err != nil {
			return err
		}
	}
	if sum.Locked > 0 {
		a.note("the store keeps %s under lock; they go later", ui.Count(sum.Locked, "object"))
	}
	if sum.Refused > 0 {
		return fmt.Errorf("removed %s (%s) and %s of changes; the store would not delete %s: %w: %s", ui.Count(sum.Backups, "backup"), ui.Count(sum.Objects, "object"),
			ui.Count(sum.Segments, "segment"), ui.Count(sum.Refused, "object"), catalog.ErrDenied, sum.RefusedWhy)
	}
	return a.printf("removed: %s (%s) and %s of changes\n", ui.Count(sum.Backups, "backup"), ui.Count(sum.Objects, "object"), ui.Count(sum.Segments, "segment"))
}

// explain prints every decision.
func (a *app) explain(pl *prune.Plan) error {
	if a.output == "json" {
		out := make([]decisionOutput, 0, len(pl.Decisions))
		for _, d := range pl.Decisions {
			out = append(out, decisionOutput{d.Backup, string(d.Incarnation), d.First, d.Last, d.Ended, d.Segments, d.Size, d.Keep, d.Reason})
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
func whatOf(d prune.Decision) string {
	switch {
	case d.Backup != "":
		return "backup " + d.Backup
	case d.Open:
		return fmt.Sprintf("changes %s from revision %d on", d.Incarnation, d.First)
	case d.Segments == 0:
		return fmt.Sprintf("changes %s", d.Incarnation)
	}
	return fmt.Sprintf("changes %s, revisions %d to %d, until %s (%s)", d.Incarnation, d.First, d.Last, ui.Clock(d.Ended), ui.Count(d.Segments, "segment"))
}
