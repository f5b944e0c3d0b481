package main

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
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

// onScreen is how many backups a screen shows if nothing is said, and manifestsRead of how many the manifests are read for a table.
const (
	onScreen      = 50
	manifestsRead = 1000
)

type listOptions struct {
	since string
	// limit is how many of the newest are listed, 0 for all. limited is true if the command line says so.
	limit   int
	limited bool
}

func listBackupsCommand(a *app) *cobra.Command {
	var o listOptions
	cmd := &cobra.Command{
		Use: "list-backups", Short: "List the backups, oldest first", Args: noArgs,
		Long: `List the backups, oldest first: on a screen as a table of the newest ones, in a pipe one name a line.

-o wide is the table of all, -o name one name a line, also on a screen. -o json and -o yaml are for programs.
The table reads the manifests of the newest 1,000 backups that it shows, for revision and reason.`,
		Example: "  etcd-manager-ctl --backup-store=s3://bucket/prefix list-backups --since=24h",
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.limited = cmd.Flags().Changed("limit")
			return runListBackups(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.since, "since", "",
		"only backups begun from this `time` on: RFC 3339, \"2026-11-22 12:03:06\", 12:03:06 (today, UTC), or how long ago")
	f.IntVar(&o.limit, "limit", 0, "only so many, the newest; 0 for all (default: 50 on a screen, else all)")
	return cmd
}

func runListBackups(ctx context.Context, a *app, o listOptions) error {
	if err := a.format("json", "yaml", "name", "wide"); err != nil {
		return err
	}
	if o.limit < 0 {
		return ui.Usagef("--limit can't be negative")
	}
	since, err := whenFlag(a, "since", o.since)
	if err != nil {
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
		a.note("%d incomplete: not finished yet, or given up; removed after a day (newest: %s lacks %s)",
			n, l.Leftovers[n-1].Name, l.Leftovers[n-1].Missing)
	}
	screen := a.output == "" && a.outTerminal
	if screen && !o.limited {
		o.limit = onScreen
	}
	list := o.of(l.Backups, since)
	switch {
	case a.output == "json" || a.output == "yaml":
		return printReport(a, backupOutputs(list), nil)
	case a.output == "wide" || screen:
		if screen && !o.limited && len(list) == onScreen && len(l.Backups) > onScreen {
			a.note("the newest %d of %d backups; --limit=0 lists all", onScreen, len(l.Backups))
		}
		manifests, err := c.Manifests(ctx, list[max(0, len(list)-manifestsRead):])
		if err != nil {
			a.note("revisions and reasons are not shown, since a manifest can't be read: %v", err)
		}
		return backupTable(a, list, manifests, a.output == "wide")
	}
	for _, b := range list {
		if err := a.printf("%s\n", b.Name); err != nil {
			return err
		}
	}
	return nil
}

// of are the backups that the options let through.
func (o listOptions) of(list []catalog.Backup, since time.Time) []catalog.Backup {
	var out []catalog.Backup
	for _, b := range list {
		at := b.At()
		if at.IsZero() {
			at = b.Modified
		}
		if !at.Before(since) {
			out = append(out, b)
		}
	}
	if o.limit > 0 {
		out = out[max(0, len(out)-o.limit):]
	}
	return out
}

func backupOutputs(list []catalog.Backup) []backupOutput {
	out := make([]backupOutput, 0, len(list))
	for _, b := range list {
		out = append(out, backupOutput{Name: b.Name, Time: b.Time, SizeBytes: b.Size, HasManifest: b.HasManifest,
			Pinned: b.Pinned, Proof: proofOf(b), ProofAt: b.ProofAt, Modified: b.Modified})
	}
	return out
}

// backupTable prints a table. Unless it is wide, it fits a screen of 80 columns.
func backupTable(a *app, backups []catalog.Backup, manifests map[string]*catalog.Manifest, wide bool) error {
	if len(backups) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	columns := []string{"NAME", "AGE", "SIZE", "REVISION", "REASON", "VERIFIED"}
	if wide {
		columns = []string{"NAME", "AGE", "SIZE", "REVISION", "REASON", "CHECKSUMS", "PINNED", "VERIFIED"}
	}
	fmt.Fprintln(w, strings.Join(columns, "\t"))
	for _, b := range backups {
		age, sums := "unknown", "gzip and etcd"
		if !b.Time.IsZero() {
			age = ui.Age(a.now().Sub(b.Time))
		}
		if b.HasManifest {
			sums = "manifest"
		}
		revision, reason := "-", "-"
		if m := manifests[b.Name]; m != nil {
			if m.Revision > 0 {
				revision = strconv.FormatInt(m.Revision, 10)
			}
			reason = cmp.Or(m.Reason, "-")
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
		row := []string{b.Name, age, ui.Size(b.Size), revision, ui.Readable(reason), sums, pinned, verified}
		if !wide {
			if reason = ui.Readable(reason); b.Pinned {
				reason = strings.TrimPrefix(reason+", pinned", "-, ")
			}
			row = []string{b.Name, age, ui.Size(b.Size), revision, reason, verified}
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
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
