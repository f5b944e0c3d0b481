package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/kube"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

func beforeCommand(a *app) *cobra.Command {
	var o struct {
		prefix   bool
		until    string
		revision int64
	}
	cmd := &cobra.Command{
		Use: "before KEY", Short: "Find the last revision before a key, or keys below a prefix, were deleted",
		Args: exactlyOne("a key, or a prefix that ends with a slash"),
		Long: `Find the newest deletion of a key in the archive, and the revision right before it. A key that ends with
a slash is a prefix. For a prefix, find the newest series of deletions below it, without a pause of more than five
minutes, and the revision before the first one. Kubernetes first marks an object for deletion and removes it later:
then it is the revision before the mark, at which a namespace still has all its objects.`,
		Example: "  etcd-manager-ctl --backup-store=s3://bucket/prefix before /registry/namespaces/shop",
		RunE: func(cmd *cobra.Command, args []string) error {
			at, err := whenFlag(a, "until", o.until)
			if err != nil {
				return err
			}
			if o.revision < 0 || o.revision > 0 && o.until != "" || args[0] == "" {
				return ui.Usagef("before needs a key, and --until or --until-revision, not both")
			}
			return runBefore(cmd.Context(), a, operator.BeforeRequest{Key: args[0], Prefix: o.prefix, Until: at, UntilRevision: o.revision})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.prefix, "prefix", false, "the key is a prefix, also if it doesn't end with a slash")
	f.StringVar(&o.until, "until", "", "begin the search at this `time`")
	f.Int64Var(&o.revision, "until-revision", 0, "begin the search at this revision")
	return cmd
}

// beforeOutput is the point before a deletion.
type beforeOutput struct {
	Key string `json:"key"`
	// Revision is the one to go to.
	Revision  int64       `json:"revision"`
	Marked    *whenOutput `json:"marked,omitempty"`
	First     whenOutput  `json:"firstDeletion"`
	Last      whenOutput  `json:"lastDeletion"`
	Deletions int         `json:"deletions"`
	Keys      []string    `json:"keys"`
	With      *withOutput `json:"with,omitempty"`
	Notes     []string    `json:"notes,omitempty"`
}

type whenOutput struct {
	Revision int64     `json:"revision"`
	Time     time.Time `json:"time"`
	Since    time.Time `json:"since,omitzero"`
}

type withOutput struct {
	Deletions int        `json:"deletions"`
	First     whenOutput `json:"first"`
	Last      whenOutput `json:"last"`
}

func runBefore(ctx context.Context, a *app, r operator.BeforeRequest) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	b, err := c.Before(ctx, r)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.printJSON(beforeOf(r.Key, b))
	}
	return printBefore(a, r.Key, b)
}

func beforeOf(key string, b *operator.Deletion) beforeOutput {
	out := beforeOutput{Key: key, Revision: b.Revision, First: whenOutput(b.First), Last: whenOutput(b.Last),
		Deletions: b.Deletions, Keys: b.Keys, Notes: b.Notes}
	if b.Marked.Revision != 0 {
		m := whenOutput(b.Marked)
		out.Marked = &m
	}
	if b.With > 0 {
		out.With = &withOutput{b.With, whenOutput(b.WithFirst), whenOutput(b.WithLast)}
	}
	return out
}

// keysShown is how many of the keys of a burst are printed.
const keysShown = 10

func printBefore(a *app, key string, b *operator.Deletion) error {
	var s strings.Builder
	name := ui.Readable(key)
	switch {
	case b.Deletions == 1 && len(b.Keys) == 1:
		fmt.Fprintf(&s, "%s was deleted by revision %d, at %s\n", ui.Readable(b.Keys[0]), b.Last.Revision,
			ui.Moment(b.Last.Time, b.Last.Since))
	default:
		fmt.Fprintf(&s, "%d deletions below %s, by revisions %d to %d, from %s to %s\n", b.Deletions, name,
			b.First.Revision, b.Last.Revision,
			ui.Moment(b.First.Time, b.First.Since), ui.Moment(b.Last.Time, b.Last.Since))
		for i, k := range b.Keys {
			if i == keysShown {
				fmt.Fprintf(&s, "    … and %d more\n", b.Deletions-keysShown)
				break
			}
			fmt.Fprintf(&s, "    %s\n", ui.Readable(k))
		}
	}
	if m := b.Marked; m.Revision != 0 {
		fmt.Fprintf(&s, "  marked:      by revision %d, at %s: from then on Kubernetes was deleting\n", m.Revision,
			ui.Moment(m.Time, m.Since))
	}
	if b.With > 0 {
		fmt.Fprintf(&s, "  with it:     %s in it, by revisions %d to %d\n", ui.Count(b.With, "deletion"),
			b.WithFirst.Revision, b.WithLast.Revision)
	}
	for _, n := range b.Notes {
		fmt.Fprintf(&s, "  since then:  %s\n", n)
	}
	fmt.Fprintf(&s, "  go back to:  revision %d\n", b.Revision)
	what := ui.ShellWord(key)
	if namespace, ok := strings.CutPrefix(key, kube.NamespacesPrefix); ok && namespace != "" {
		what = "--namespace=" + ui.ShellWord(namespace)
	} else if b.Deletions > 1 || len(b.Keys) == 1 && b.Keys[0] != key {
		what += " --prefix"
	}
	fmt.Fprintf(&s, "  only this:   %s\n", a.ctl("extract", what, fmt.Sprintf("--at-revision=%d", b.Revision)))
	fmt.Fprintf(&s, "  put back:    %s\n", a.ctl("put-back", what, fmt.Sprintf("--at-revision=%d", b.Revision)))
	fmt.Fprintf(&s, "  everything:  %s\n", a.ctl("restore-backup", fmt.Sprintf("--to-revision=%d", b.Revision), "--dry-run"))
	return a.printf("%s", s.String())
}
