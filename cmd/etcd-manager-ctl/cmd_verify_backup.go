package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

func verifyCommand(a *app) *cobra.Command {
	var tempDir string
	var all, chain bool
	cmd := &cobra.Command{
		Use: "verify-backup NAME|latest", Short: "Fetch a backup and check it completely", Args: atMostOne,
		Long: `Fetch a backup and make the same checks as a restore: sizes and SHA-256 against the manifest, gzip's
checksum, etcd's own checksum at the end of the snapshot, and every page and record of the database. With --all all
backups are checked, the newest first.

With --chain the changes between the backup before it and this one are replayed too, and the result is compared with
this backup. This verifies both backups and every segment between them.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) == 1) {
				return ui.Usagef("verify-backup needs the name of a backup (see list-backups), or --all")
			}
			if all && chain {
				return ui.Usagef("--chain and --all can't be combined: a chain leads from one backup to the next")
			}
			if all {
				return runVerifyAll(cmd.Context(), a, tempDir)
			}
			if chain {
				return runVerifyChain(cmd.Context(), a, args[0], tempDir)
			}
			return runVerify(cmd.Context(), a, args[0], tempDir)
		},
		ValidArgsFunction: a.complete(restorableNames),
	}
	cmd.Flags().BoolVar(&all, "all", false, "check all backups")
	cmd.Flags().BoolVar(&chain, "chain", false, "also replay the changes from the backup before it, and compare the result")
	addTempDir(cmd, &tempDir)
	return cmd
}

func runVerify(ctx context.Context, a *app, name, tempDir string) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	out, err := c.Verify(ctx, name, a.verifyOptions(tempDir))
	a.latest(out.Notes)
	var missing *operator.NoBackupError
	if errors.As(err, &missing) {
		return err
	}
	err = a.explain(err)
	if err != nil && !operator.Bad(err) {
		return fmt.Errorf("backup %s could not be checked: %w", out.Name, err)
	}
	if a.output == "json" {
		if perr := a.printJSON(out); perr != nil {
			return perr
		}
		return err
	}
	if err != nil {
		return fmt.Errorf("BAD: %w", err)
	}
	return printVerified(a, out)
}

func printVerified(a *app, out operator.Verified) error {
	var b strings.Builder
	sums := "gzip's checksum is right (no manifest: the backup of another tool)"
	if slices.Contains(out.Checked, "manifest") {
		sums = "size and SHA-256 are those of the manifest"
	}
	fmt.Fprintf(&b, "sound: %s\n", out.Name)
	fmt.Fprintf(&b, "  stored file:   %s; %s\n", ui.Size(out.StoredBytes), sums)
	fmt.Fprintf(&b, "  snapshot:      %s; etcd's own checksum at its end is right\n", ui.Size(out.SizeBytes))
	fmt.Fprintf(&b, "  database:      every page and record was read and is valid; format of etcd %s\n", out.Format)
	fmt.Fprintf(&b, "  content:       revision %d, %s, %s, HashKV %d\n", out.Revision, ui.Count(int(out.Keys), "key"),
		ui.Count(out.Leases, "lease"), out.Hash)
	taken := "with etcd " + out.EtcdVersion
	if out.EtcdVersion == "" {
		taken = "with an unknown version of etcd"
	}
	if out.ClusterName != "" {
		taken += fmt.Sprintf(", from cluster %q", out.ClusterName)
	}
	if out.Reason != "" {
		taken += ", as " + out.Reason
	}
	if !out.Time.IsZero() {
		taken += ", " + ui.Ago(a.now().Sub(out.Time))
	}
	fmt.Fprintf(&b, "  taken:         %s\n", taken)
	if out.Unfit != "" {
		fmt.Fprintf(&b, "  BUT:           it can't be restored with the current spec: %s\n", out.Unfit)
	}
	return a.printf("%s", b.String())
}

func runVerifyAll(ctx context.Context, a *app, tempDir string) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	names, err := c.BackupNames(ctx)
	if err != nil {
		return err
	}
	results := []operator.Verified{}
	bad := 0
	for i, name := range names {
		out, err := c.Verify(ctx, name, a.verifyOptions(tempDir))
		var gone *operator.NoBackupError
		switch {
		case errors.As(err, &gone): // retention took it meanwhile
			continue
		case err != nil && !operator.Bad(err):
			return fmt.Errorf("%d of %d backups were checked, %d of them are bad; then: backup %s could not be checked: %w",
				i, len(names), bad, name, a.explain(err))
		case err != nil:
			bad++
		}
		results = append(results, out)
		if a.output == "" {
			if err := printLine(a, out); err != nil {
				return err
			}
		}
	}
	if a.output == "json" {
		if err := a.printJSON(results); err != nil {
			return err
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d backups are bad", bad, len(results))
	}
	a.note("all %d backups are sound", len(results))
	return nil
}

func printLine(a *app, out operator.Verified) error {
	switch {
	case !out.Sound:
		return a.printf("BAD    %s  %s\n", out.Name, out.Problem)
	case out.Unfit != "":
		return a.printf("sound  %s  revision %d, %d keys, %s; not with the current spec: %s\n", out.Name, out.Revision,
			out.Keys, ui.Size(out.SizeBytes), out.Unfit)
	}
	return a.printf("sound  %s  revision %d, %d keys, %s\n", out.Name, out.Revision, out.Keys, ui.Size(out.SizeBytes))
}

// chainOutput is what was found out about a backup and the changes that lead to it.
type chainOutput struct {
	Name        string  `json:"name"`
	Sound       bool    `json:"sound"`
	ChainSound  bool    `json:"chainSound"`
	Problem     string  `json:"problem,omitempty"`
	Revision    int64   `json:"revision,omitempty"`
	Hash        uint32  `json:"hashKV,omitempty"`
	Base        string  `json:"base,omitempty"`
	Segments    int     `json:"segments,omitempty"`
	Incarnation string  `json:"incarnation,omitempty"`
	Seconds     float64 `json:"seconds"`
}

// runVerifyChain checks a backup together with the one before it and the changes between them.
func runVerifyChain(ctx context.Context, a *app, name, tempDir string) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	v, notes, bad, err := c.VerifyChain(ctx, name, a.verifyOptions(tempDir))
	a.latest(notes)
	if v.Backup == "" {
		return err // there was nothing to check
	}
	err = a.explain(err)
	out := chainOutput{Name: v.Backup, Sound: err == nil, ChainSound: err == nil && v.ChainProblem == "",
		Problem: v.ChainProblem, Revision: v.Facts.Revision, Hash: v.Facts.Hash.Hash,
		Base: v.Base, Segments: v.Segments, Incarnation: string(v.Incarnation), Seconds: v.Took.Seconds()}
	if err != nil {
		out.Problem = err.Error()
		if !bad {
			return fmt.Errorf("backup %s could not be checked: %w", v.Backup, err)
		}
	}
	if a.output == "json" {
		if perr := a.printJSON(out); perr != nil {
			return perr
		}
	}
	switch {
	case err != nil:
		return fmt.Errorf("BAD: %w", err)
	case !out.ChainSound:
		return fmt.Errorf("backup %s is sound (revision %d), but it can't be reached from the one before it: %s",
			v.Backup, v.Facts.Revision, v.ChainProblem)
	case a.output == "json":
		return nil
	}
	return a.printf("sound: %s\n  content:   revision %d, %s, HashKV %d\n  chain:     backup %s with the %s after it gives the same\n  took:      %s\n",
		v.Backup, v.Facts.Revision, ui.Count(int(v.Facts.Keys), "key"), v.Facts.Hash.Hash, v.Base,
		ui.Count(v.Segments, "segment"), ui.Took(v.Took))
}
