package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

func inspectCommand(a *app) *cobra.Command {
	var r operator.InspectRequest
	cmd := &cobra.Command{
		Use: "inspect NAME|latest", Short: "Show the content of a backup: revision, keys, leases, the largest prefixes",
		Args: exactlyOne("the name of a backup (see list-backups)"),
		Long: `Fetch a backup, check it like verify-backup, and show its content: revision, keys, leases, sizes, and
the prefixes with most keys and most bytes. Only keys that exist at the backup's revision are counted, with the bytes
of key and value.`,
		RunE:              func(cmd *cobra.Command, args []string) error { return runInspect(cmd.Context(), a, args[0], r) },
		ValidArgsFunction: a.complete(restorableNames),
	}
	f := cmd.Flags()
	f.IntVar(&r.Depth, "depth", 2, "the number of path elements in a `prefix`")
	f.IntVar(&r.Top, "top", 15, "how many prefixes to show, 0 for all")
	addTempDir(cmd, &r.TempDir)
	return cmd
}

func runInspect(ctx context.Context, a *app, name string, r operator.InspectRequest) error {
	if err := a.format("json"); err != nil {
		return err
	}
	if r.Depth < 1 || r.Top < 0 {
		return ui.Usagef("--depth must be at least 1, and --top at least 0")
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	r.Backup, r.Transfers = name, a.transfers()
	out, err := c.Inspect(ctx, r)
	a.latest(out.Notes)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.printJSON(out)
	}
	return printInspection(a, out)
}

func printInspection(a *app, out operator.Inspection) error {
	var b strings.Builder
	fmt.Fprintf(&b, "backup:      %s\n", out.Backup)
	if out.ClusterName != "" {
		fmt.Fprintf(&b, "cluster:     %s\n", out.ClusterName)
	}
	if out.EtcdVersion != "" {
		fmt.Fprintf(&b, "etcd:        %s\n", out.EtcdVersion)
	}
	fmt.Fprintf(&b, "format:      etcd %s\n", out.Format)
	compacted := "never compacted"
	if out.CompactRevision > 0 {
		compacted = fmt.Sprintf("compacted up to %d", out.CompactRevision)
	}
	fmt.Fprintf(&b, "revision:    %d, %s\n", out.Revision, compacted)
	fmt.Fprintf(&b, "keys:        %d, %d of them with a lease; %d records with their history\n", out.Keys, out.LeasedKeys, out.Records)
	fmt.Fprintf(&b, "leases:      %d\n", out.Leases)
	fmt.Fprintf(&b, "database:    %s, %s of it in use\n", ui.Size(out.SizeBytes), ui.Size(out.InUseBytes))
	fmt.Fprintf(&b, "HashKV:      %d\n", out.Hash)
	printPrefixes(&b, fmt.Sprintf("\nMOST BYTES (%d of %d prefixes)", len(out.Prefixes), out.PrefixCount), out.Prefixes)
	printPrefixes(&b, fmt.Sprintf("\nMOST KEYS (%d of %d prefixes)", len(out.ByKeys), out.PrefixCount), out.ByKeys)
	return a.printf("%s", b.String())
}

func printPrefixes(out io.Writer, title string, list []operator.Prefix) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(out, title)
	fmt.Fprintln(w, "KEYS\tBYTES\tLEASED\tNEWEST\t  PREFIX")
	for _, p := range list {
		fmt.Fprintf(w, "%d\t%s\t%d\t%d\t  %s\n", p.Keys, ui.Size(p.Bytes), p.LeasedKeys, p.NewestRevision, ui.Readable(p.Prefix))
	}
	_ = w.Flush() // out is memory
}
