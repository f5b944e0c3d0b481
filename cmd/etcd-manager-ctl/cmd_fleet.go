package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
	"github.com/etcd-manager/etcd-manager/pkg/operator/health"
)

func fleetCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "fleet", Short: "Show all clusters below a store", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var store string
	var prefixes []string
	s := &cobra.Command{
		Use: "status", Short: "Show how all clusters below a store do, the worst first", Args: noArgs,
		Long: `Show how all clusters below a store do, the worst first. What a leader shows in the store is taken at its word; status looks
at one cluster closely. Below a directory that has one named "backups", only that is looked into, as in kOps' state store.

Exit codes are those of status, of the worst cluster: 0 healthy, 1 degraded, 2 needs you, 3 can't tell (or there is none).`,
		Example: `  etcd-manager-ctl fleet status --store=s3://bucket/
  etcd-manager-ctl fleet status --store=s3://bucket/ --prefix=europe --prefix=asia -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return fleetStatus(cmd.Context(), a, cmp.Or(store, a.store), prefixes)
		},
	}
	s.Flags().StringVar(&store, "store", "", "the `URL` below which the clusters are; default: --backup-store")
	s.Flags().StringSliceVar(&prefixes, "prefix", nil, "a `directory` below the URL; may be repeated; default: all")
	c.AddCommand(s)
	return c
}

func fleetStatus(ctx context.Context, a *app, store string, prefixes []string) error {
	if err := a.format("json", "yaml"); err != nil {
		return err
	}
	if store == "" {
		return ui.Usagef("--store is missing: for example --store=s3://bucket/")
	}
	a.store = store
	f, err := operator.Fleet(ctx, operator.Config{Store: store, Open: a.open, KMS: a.kms, Timeout: a.timeout, Now: a.now}, prefixes)
	var config *operator.ConfigError
	var invalid *operator.InvalidError
	switch {
	case errors.As(err, &config), errors.As(err, &invalid):
		return err
	case err != nil:
		_, why := whyUnknown(a, err)
		fmt.Fprintf(a.errOut, "etcd-manager-ctl: %s\n", why)
		return byVerdict(health.Unknown)
	case len(f.Clusters) == 0:
		a.note("there is no cluster below %s %s", store, strings.Join(prefixes, " "))
	}
	if err := printReport(a, f, func(w io.Writer) { drawFleet(w, f) }); err != nil {
		return err
	}
	return byVerdict(f.Verdict)
}

func drawFleet(out io.Writer, f operator.FleetHealth) {
	if len(f.Clusters) == 0 {
		return
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CLUSTER\tSTATE\tMEMBERS\tETCD\tBACKUP\tVERIFIED\tLAG\tLEADER\tWHY")
	for _, c := range f.Clusters {
		members, backup, verified, lag, leader, why := "-", "-", "-", "-", "none", ""
		if c.MembersWanted > 0 && c.MembersKnown {
			members = fmt.Sprintf("%d/%d", c.MembersHealthy, c.MembersWanted)
		}
		if c.Backup != nil {
			backup = ageOf(c.Backup.AgeSeconds)
		}
		if v := c.Verification; v != nil && v.Bad != "" {
			verified = "BAD"
		} else if v != nil && v.Backup != "" {
			verified = ageOf(v.AgeSeconds)
		}
		if c.Archive != nil && !c.Archive.Until.IsZero() {
			lag = ageOf(c.Archive.LagSeconds)
		}
		if c.Leader != nil && c.Leader.Current {
			leader = string(c.Leader.Node)
		}
		if len(c.Findings) > 0 {
			why = c.Summary
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.Prefix, verdictWords(c.Verdict), members,
			cmp.Or(strings.Join(c.Versions, ","), "-"),
			backup, verified, lag, leader, why)
	}
	_ = w.Flush()
}
