package main

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

type backupOutput struct {
	Name        string    `json:"name"`
	Time        time.Time `json:"time,omitzero"`
	SizeBytes   int64     `json:"sizeBytes"`
	HasManifest bool      `json:"hasManifest"`
	Pinned      bool      `json:"pinned"`
	// Proof is "proven", "disproven" or, if it was never tried, absent; ProofAt is when it was written.
	Proof    string    `json:"proof,omitempty"`
	ProofAt  time.Time `json:"proofAt,omitzero"`
	Modified time.Time `json:"modified"`
}

func (a *app) listBackupsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list-backups", Short: "List the backups, oldest first, one a line", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.listBackups(cmd.Context()) },
	}
}

func (a *app) listBackups(ctx context.Context) error {
	if err := a.format("json", "wide"); err != nil {
		return err
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	l, err := c.Backups(ctx)
	if err != nil {
		return err
	}
	if n := len(l.Leftovers); n > 0 {
		fmt.Fprintf(a.errOut, "%d incomplete: not finished yet, or given up; removed after a day (newest: %s lacks %s)\n",
			n, l.Leftovers[n-1].Name, l.Leftovers[n-1].Missing)
	}
	switch a.output {
	case "json":
		out := make([]backupOutput, 0, len(l.Backups))
		for _, b := range l.Backups {
			out = append(out, backupOutput{Name: b.Name, Time: b.Time, SizeBytes: b.Size, HasManifest: b.HasManifest,
				Pinned: b.Pinned, Proof: proofOf(b), ProofAt: b.ProofAt, Modified: b.Modified})
		}
		return a.printJSON(out)
	case "wide":
		return a.backupTable(l.Backups)
	}
	for _, b := range l.Backups {
		if err := a.printf("%s\n", b.Name); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) backupTable(backups []catalog.Backup) error {
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tAGE\tSIZE\tCHECKSUMS\tPINNED\tVERIFIED")
	for _, b := range backups {
		age, sums := "unknown", "gzip and etcd"
		if !b.Time.IsZero() {
			age = ui.Age(a.now().Sub(b.Time))
		}
		if b.HasManifest {
			sums = "manifest"
		}
		pinned, verified := "no", "never"
		if b.Pinned {
			pinned = "yes"
		}
		switch ago := ui.Ago(a.now().Sub(b.ProofAt)); proofOf(b) {
		case string(catalog.Proven):
			verified = "good, " + ago
		case string(catalog.Disproven):
			verified = "BAD, " + ago
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", b.Name, age, ui.Size(b.Size), sums, pinned, verified)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// proofOf is what the last proof of a backup has found; empty if there was none.
func proofOf(b catalog.Backup) string {
	switch {
	case b.Disproven:
		return string(catalog.Disproven)
	case b.Proven:
		return string(catalog.Proven)
	}
	return ""
}
