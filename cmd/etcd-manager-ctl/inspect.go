package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
)

func (a *app) inspectCommand() *cobra.Command {
	var o inspectOptions
	cmd := &cobra.Command{
		Use: "inspect NAME|latest", Short: "Show what is in a backup: revision, keys, leases, the largest prefixes", Args: exactlyOne("the name of a backup (see list-backups)"),
		Long: `Fetch a backup, check it as verify-backup does, and show what is in it: revision, keys, leases, sizes, and under which prefixes most keys, and most
bytes, are. Only keys that exist at the backup's revision are counted, with the bytes of key and value.`,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.inspect(cmd.Context(), args[0], o) },
		ValidArgsFunction: a.complete(restorableNames),
	}
	f := cmd.Flags()
	f.IntVar(&o.depth, "depth", 2, "how many parts between slashes make a `prefix`")
	f.IntVar(&o.top, "top", 15, "how many prefixes to show, 0 for all")
	addTempDir(cmd, &o.tempDir)
	return cmd
}

type inspectOptions struct {
	depth, top int
	tempDir    string
}

// inspectOutput is what is in a backup.
type inspectOutput struct {
	Backup      string `json:"backup"`
	EtcdVersion string `json:"etcdVersion,omitempty"`
	ClusterName string `json:"clusterName,omitempty"`
	facts
	// Prefixes are sorted by bytes, the largest first. PrefixCount is how many there are at this depth.
	PrefixCount int      `json:"prefixCount"`
	Prefixes    []prefix `json:"prefixes"`
	// byKeys are sorted by number of keys.
	byKeys []prefix
}

// prefix is what all keys have together that begin alike.
type prefix struct {
	Prefix string `json:"prefix"`
	Keys   int64  `json:"keys"`
	// Bytes are those of keys and values.
	Bytes      int64 `json:"bytes"`
	LeasedKeys int64 `json:"leasedKeys,omitempty"`
	// NewestRevision is when one of them was last written.
	NewestRevision int64 `json:"newestRevision"`
}

func (a *app) inspect(ctx context.Context, name string, o inspectOptions) error {
	if err := a.format("json"); err != nil {
		return err
	}
	if o.depth < 1 || o.top < 0 {
		return ui.Usagef("--depth has to be at least 1, and --top at least 0")
	}
	c, err := a.openCatalog(ctx)
	if err != nil {
		return err
	}
	ch, err := a.choose(ctx, c, name)
	if err != nil {
		return err
	}
	p, err := a.prove(ctx, c, ch, o.tempDir)
	if err != nil {
		return err
	}
	defer p.remove()
	out := inspectOutput{Backup: ch.backup.Name, EtcdVersion: ch.info.EtcdVersion, facts: p.facts}
	if ch.manifest != nil {
		out.ClusterName = ch.manifest.ClusterName
	}
	all, err := a.prefixes(ctx, p.path, o.depth)
	if err != nil {
		return err
	}
	out.fill(all, o.top)
	if a.output == "json" {
		return a.printJSON(out)
	}
	return a.printInspection(out)
}

// prefixes sums up the live keys.
func (a *app) prefixes(ctx context.Context, path string, depth int) (map[string]*prefix, error) {
	all := map[string]*prefix{}
	err := a.checker.keys(ctx, path, func(k liveKey) error {
		b := prefixOf(k.key, depth)
		p := all[string(b)]
		if p == nil {
			p = &prefix{Prefix: string(b)}
			all[p.Prefix] = p
		}
		p.Keys++
		p.Bytes += int64(len(k.key)) + k.valueSize
		if k.lease != 0 {
			p.LeasedKeys++
		}
		p.NewestRevision = max(p.NewestRevision, k.revision)
		return nil
	})
	return all, err
}

// prefixOf cuts a key behind its depth-th part, where the slash at its beginning begins none. A key with fewer parts
// counts where its last slash is; one without a slash has the empty prefix.
func prefixOf(key []byte, depth int) []byte {
	at := 0
	if len(key) > 0 && key[0] == '/' {
		at = 1
	}
	end := 0
	if at == 1 {
		end = 1
	}
	for range depth {
		i := bytes.IndexByte(key[at:], '/')
		if i < 0 {
			break
		}
		at += i + 1
		end = at
	}
	return key[:end]
}

// fill sorts and cuts. Names decide between equals, so that the same backup is always shown alike.
func (out *inspectOutput) fill(all map[string]*prefix, top int) {
	list := make([]prefix, 0, len(all))
	for _, p := range all {
		list = append(list, *p)
	}
	out.PrefixCount = len(list)
	first := func(by func(p prefix) int64) []prefix {
		sorted := slices.Clone(list)
		slices.SortFunc(sorted, func(x, y prefix) int {
			return cmp.Or(cmp.Compare(by(y), by(x)), strings.Compare(x.Prefix, y.Prefix))
		})
		if top > 0 && top < len(sorted) {
			sorted = sorted[:top]
		}
		return sorted
	}
	out.Prefixes = first(func(p prefix) int64 { return p.Bytes })
	out.byKeys = first(func(p prefix) int64 { return p.Keys })
}

func (a *app) printInspection(out inspectOutput) error {
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
	printPrefixes(&b, fmt.Sprintf("\nMOST KEYS (%d of %d prefixes)", len(out.byKeys), out.PrefixCount), out.byKeys)
	return a.printf("%s", b.String())
}

func printPrefixes(out io.Writer, title string, list []prefix) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(out, title)
	fmt.Fprintln(w, "KEYS\tBYTES\tLEASED\tNEWEST\t  PREFIX")
	for _, p := range list {
		fmt.Fprintf(w, "%d\t%s\t%d\t%d\t  %s\n", p.Keys, ui.Size(p.Bytes), p.LeasedKeys, p.NewestRevision, ui.Readable(p.Prefix))
	}
	_ = w.Flush() // out is memory
}
