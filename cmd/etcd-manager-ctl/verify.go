package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

func (a *app) verifyCommand() *cobra.Command {
	var tempDir string
	var all, chain bool
	cmd := &cobra.Command{
		Use: "verify-backup NAME|latest", Short: "Fetch a backup and check everything about it", Args: atMostOne,
		Long: `Fetch a backup and check everything about it that a restore checks: sizes and SHA-256 against the manifest, gzip's checksum, etcd's own checksum at the
end of the snapshot, and every page and record of the database. With --all all backups are checked, the newest first.

With --chain the backup is also reached a second time, from the backup before it by the changes that were kept between the two, and compared: this proves
both backups and every segment between them.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) == 1) {
				return ui.Usagef("verify-backup needs the name of a backup (see list-backups), or --all")
			}
			if all && chain {
				return ui.Usagef("--chain and --all don't go together: a chain leads from one backup to the next")
			}
			if all {
				return a.verifyAll(cmd.Context(), tempDir)
			}
			if chain {
				return a.verifyChain(cmd.Context(), args[0], tempDir)
			}
			return a.verify(cmd.Context(), args[0], tempDir)
		},
		ValidArgsFunction: a.complete(restorableNames),
	}
	cmd.Flags().BoolVar(&all, "all", false, "check all backups")
	cmd.Flags().BoolVar(&chain, "chain", false, "also reach it from the backup before it by the changes between them, and compare")
	addTempDir(cmd, &tempDir)
	return cmd
}

// verifyOutput is what was found out about one backup.
type verifyOutput struct {
	Name    string `json:"name"`
	Sound   bool   `json:"sound"`
	Problem string `json:"problem,omitempty"`
	// Checked says by what: "manifest", "encryption", the compression, "etcd checksum", "database".
	Checked     []string  `json:"checked,omitempty"`
	Time        time.Time `json:"time,omitzero"`
	ClusterName string    `json:"clusterName,omitempty"`
	EtcdVersion string    `json:"etcdVersion,omitempty"`
	Reason      string    `json:"reason,omitempty"`
	StoredBytes int64     `json:"storedBytes,omitempty"`
	*facts
	// Unfit says why it can't be restored into the etcd version of the spec; empty if it can, or if the spec names none.
	Unfit string `json:"unfit,omitempty"`
}

func (a *app) verify(ctx context.Context, name, tempDir string) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, err := a.openCatalog(ctx)
	if err != nil {
		return err
	}
	out, err := a.verifyNamed(ctx, c, name, a.specOf(ctx, c), tempDir)
	var missing *notFoundError
	if errors.As(err, &missing) {
		return err
	}
	if err != nil && !isBad(err) {
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
	return a.printVerified(out)
}

// specOf reads the spec, if there is one that can be read.
func (a *app) specOf(ctx context.Context, c *catalog.Catalog) cluster.Spec {
	ctx, cancel := a.limit(ctx)
	defer cancel()
	spec, _, err := c.Spec(ctx)
	if err != nil {
		return cluster.Spec{}
	}
	return spec
}

// verifyOne checks one backup. The output is filled in as far as it goes, also with an error.
func (a *app) verifyOne(ctx context.Context, c *catalog.Catalog, ch choice, spec cluster.Spec, tempDir string) (verifyOutput, error) {
	out := verifyOutput{Name: ch.backup.Name, Time: ch.backup.Time, StoredBytes: ch.backup.Size, EtcdVersion: ch.info.EtcdVersion}
	if m := ch.manifest; m != nil {
		out.ClusterName, out.Reason = m.ClusterName, m.Reason
	}
	p, err := a.prove(ctx, c, ch, tempDir)
	if err != nil {
		out.Problem = err.Error()
		return out, err
	}
	p.remove()
	out.Sound, out.facts = true, &p.facts
	out.Checked = []string{catalog.DefaultCompression, "etcd checksum", "database"}
	if m := ch.manifest; m != nil {
		out.Checked[0] = m.Compression
		if m.Encryption != nil {
			out.Checked = slices.Insert(out.Checked, 0, "encryption")
		}
		out.Checked = slices.Insert(out.Checked, 0, "manifest")
	}
	if spec.EtcdVersion != "" {
		if err := p.facts.fits(spec.EtcdVersion); err != nil {
			out.Unfit = err.Error()
		}
	}
	return out, nil
}

func (a *app) printVerified(out verifyOutput) error {
	var b strings.Builder
	sums := "gzip's checksum is right (no manifest: the backup of another tool)"
	if slices.Contains(out.Checked, "manifest") {
		sums = "size and SHA-256 are those of the manifest"
	}
	fmt.Fprintf(&b, "sound: %s\n", out.Name)
	fmt.Fprintf(&b, "  stored file:   %s; %s\n", ui.Size(out.StoredBytes), sums)
	fmt.Fprintf(&b, "  snapshot:      %s; etcd's own checksum at its end is right\n", ui.Size(out.SizeBytes))
	fmt.Fprintf(&b, "  database:      every page and record was read and makes sense; format of etcd %s\n", out.Format)
	fmt.Fprintf(&b, "  content:       revision %d, %s, %s, HashKV %d\n", out.Revision, ui.Count(int(out.Keys), "key"), ui.Count(out.Leases, "lease"), out.Hash)
	taken := "with etcd " + out.EtcdVersion
	if out.EtcdVersion == "" {
		taken = "with an etcd that isn't known"
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
		fmt.Fprintf(&b, "  BUT:           it can't be restored with the present spec: %s\n", out.Unfit)
	}
	return a.printf("%s", b.String())
}

func (a *app) verifyAll(ctx context.Context, tempDir string) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, err := a.openCatalog(ctx)
	if err != nil {
		return err
	}
	names, err := a.allBackups(ctx, c)
	if err != nil {
		return err
	}
	spec := a.specOf(ctx, c)
	results := []verifyOutput{}
	bad := 0
	for i, name := range names {
		out, err := a.verifyNamed(ctx, c, name, spec, tempDir)
		var gone *notFoundError
		switch {
		case errors.As(err, &gone): // retention took it meanwhile
			continue
		case err != nil && !isBad(err):
			return fmt.Errorf("%d of %d backups were checked, %d of them are bad; then: backup %s could not be checked: %w", i, len(names), bad, name, err)
		case err != nil:
			bad++
		}
		results = append(results, out)
		if a.output == "" {
			if err := a.printLine(out); err != nil {
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

// allBackups lists the names, newest first.
func (a *app) allBackups(ctx context.Context, c *catalog.Catalog) ([]string, error) {
	ctx, cancel := a.limit(ctx)
	defer cancel()
	names, err := backupNames(ctx, c)
	if err == nil && len(names) == 0 {
		return nil, &notFoundError{fmt.Sprintf("there is no backup in %s: check the URL", a.store)}
	}
	return names, err
}

// verifyNamed is verifyOne for a name. Metadata that can't be read makes a backup as bad as bytes do.
func (a *app) verifyNamed(ctx context.Context, c *catalog.Catalog, name string, spec cluster.Spec, tempDir string) (verifyOutput, error) {
	ch, err := a.choose(ctx, c, name)
	if err != nil {
		return verifyOutput{Name: name, Problem: err.Error()}, err
	}
	return a.verifyOne(ctx, c, ch, spec, tempDir)
}

func (a *app) printLine(out verifyOutput) error {
	switch {
	case !out.Sound:
		return a.printf("BAD    %s  %s\n", out.Name, out.Problem)
	case out.Unfit != "":
		return a.printf("sound  %s  revision %d, %d keys, %s; not with the present spec: %s\n", out.Name, out.Revision, out.Keys, ui.Size(out.SizeBytes), out.Unfit)
	}
	return a.printf("sound  %s  revision %d, %d keys, %s\n", out.Name, out.Revision, out.Keys, ui.Size(out.SizeBytes))
}
