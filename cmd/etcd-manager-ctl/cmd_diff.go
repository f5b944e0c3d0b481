package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/kube"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

// diffOptions say what is shown.
type diffOptions struct {
	keys, values, secrets bool
	tempDir               string
}

func diffCommand(a *app) *cobra.Command {
	var o diffOptions
	cmd := &cobra.Command{
		Use: "diff A [B]", Short: "Compare two states: backups, points, or what the archive has last",
		Long: `Show what was added, changed and removed from A to B, by Kubernetes kind and namespace, or by prefix. A and B
are each a backup's name, "latest" (the newest backup), a time, a revision, before:KEY (the state before the key's last
deletion), or "now": everything that was kept, up to the last change. Without B, B is now.

A key that was written again counts as changed. If the changes between A and B are kept, only these are read.
Otherwise both states are built in a temporary directory.

Exit codes: 0 the same, 1 different, 2 wrong usage or failed, 3 not found, 4 the store can't be reached or refuses.`,
		Example: `  etcd-manager-ctl --backup-store=s3://bucket/prefix diff 90m
  etcd-manager-ctl --backup-store=s3://bucket/prefix diff before:/registry/namespaces/shop now --keys`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 || len(args) > 2 {
				return ui.Usagef("diff needs one or two states: backups' names, latest, times, revisions, before:KEY or now")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			r := operator.DiffRequest{B: operator.PointRequest{Target: operator.Target{Latest: true}}}
			var err error
			if r.A, err = diffSide(args[0], a.now()); err == nil && len(args) == 2 {
				r.B, err = diffSide(args[1], a.now())
			}
			if err != nil {
				return err
			}
			return diff(cmd.Context(), a, r, o)
		},
		ValidArgsFunction: a.complete(restorableNames),
	}
	f := cmd.Flags()
	f.BoolVar(&o.keys, "keys", false, "list every key that differs")
	f.BoolVar(&o.values, "values", false, "list the keys with their values before and after; JSON is compared field by field")
	f.BoolVar(&o.secrets, "show-secrets", false, "with --values: show the values of Kubernetes' secrets too")
	addTempDir(cmd, &o.tempDir)
	return cmd
}

// diffSide reads a word that names a state.
func diffSide(word string, now time.Time) (r operator.PointRequest, err error) {
	if key, ok := strings.CutPrefix(word, "before:"); ok {
		if key == "" {
			return r, ui.Usagef("before: needs a key, as in before:/registry/namespaces/shop")
		}
		r.Before = key
		return r, nil
	}
	switch n, nerr := strconv.ParseInt(word, 10, 64); {
	case word == "now":
		r.Target.Latest = true
		return r, nil
	case word == operator.Latest:
		r.Backup = word
		return r, nil
	case nerr == nil && n < 1:
		return r, ui.Usagef("%s: revisions begin with 1", word)
	case nerr == nil:
		r.Target.Revision = n
		return r, nil
	}
	if at, terr := ui.ParseWhen(word, now); terr == nil {
		if at.After(now) {
			return r, ui.Usagef("%s is in the future", word)
		}
		r.Target.Time = at
		return r, nil
	}
	if err := catalog.ValidBackupName(word); err != nil {
		return r, ui.Usagef("%s names no state: give a backup's name, latest, a time, a revision, before:KEY or now", word)
	}
	r.Backup = word
	return r, nil
}

// differentError ends the tool with exit code 1 and without a message: two states differ.
type differentError struct{}

func (differentError) Error() string { return "the two states differ" }

// exitTrouble is diff's exit code for what isn't an answer.
const exitTrouble = 2

// diff tells a failure from a difference, as diff does.
func diff(ctx context.Context, a *app, r operator.DiffRequest, o diffOptions) error {
	d, err := printDiff(ctx, a, r, o)
	switch {
	case err != nil && exitCode(a.explain(err)) == exitFailure:
		return &outcomeError{exitTrouble, a.explain(err).Error()}
	case err != nil:
		return err
	case d.Total() > 0:
		return differentError{}
	}
	return nil
}

// printDiff compares and prints. Keys are printed while they are found, and the summary behind them, since there may be millions.
func printDiff(ctx context.Context, a *app, r operator.DiffRequest, o diffOptions) (*operator.Difference, error) {
	if err := a.format("json"); err != nil {
		return nil, err
	}
	if o.secrets && !o.values {
		return nil, ui.Usagef("--show-secrets is for --values")
	}
	c, err := a.client(ctx)
	if err != nil {
		return nil, err
	}
	r.Values, r.VerifyOptions = o.values, a.verifyOptions(o.tempDir)
	var visit func(operator.DiffEntry) error
	list := o.keys || o.values
	first := true
	switch {
	case list && a.output == "json":
		visit = func(e operator.DiffEntry) error {
			begin := ",\n    "
			if first {
				begin, first = "{\n  \"keys\": [\n    ", false
			}
			b, err := json.Marshal(diffKeyOf(e, o))
			if err != nil {
				return err
			}
			return a.printf("%s%s", begin, b)
		}
	case list:
		visit = func(e operator.DiffEntry) error { return a.printf("%s", diffText(e, o)) }
	}
	d, err := c.Diff(ctx, r, visit)
	for _, s := range []operator.DiffSide{d.A, d.B} {
		if s.Point != nil {
			sayLocated(a, s.Point.Before, s.Point.Request.Before, s.Point.Notes)
		}
	}
	if err != nil {
		return d, err
	}
	if a.output != "json" {
		return d, a.printf("%s", diffSummary(d, list))
	}
	b, err := json.MarshalIndent(diffOutputOf(d), "", "  ")
	if err != nil {
		return d, err
	}
	if first {
		return d, a.printf("%s\n", b)
	}
	return d, a.printf("\n  ],%s\n", b[1:])
}

// diffOutput is a difference for programs. With --keys, "keys" stands before it in the same object.
type diffOutput struct {
	From     diffSideOutput       `json:"from"`
	To       diffSideOutput       `json:"to"`
	Added    int64                `json:"added"`
	Changed  int64                `json:"changed"`
	Removed  int64                `json:"removed"`
	Groups   []operator.DiffGroup `json:"groups"`
	Segments int                  `json:"segmentsRead"`
	Built    bool                 `json:"bothBuilt"`
}

type diffSideOutput struct {
	Backup   string    `json:"backup"`
	Revision int64     `json:"revision,omitempty"`
	Time     time.Time `json:"time,omitzero"`
}

func diffOutputOf(d *operator.Difference) diffOutput {
	side := func(s operator.DiffSide) diffSideOutput { return diffSideOutput{s.Point.Base(), s.Revision, s.Time()} }
	out := diffOutput{From: side(d.A), To: side(d.B), Added: d.Added, Changed: d.Changed, Removed: d.Removed, Groups: d.Groups,
		Segments: d.Segments, Built: !d.Joined}
	if out.Groups == nil {
		out.Groups = []operator.DiffGroup{}
	}
	return out
}

// groupsShown is how many groups are printed.
const groupsShown = 40

func diffSummary(d *operator.Difference, behindKeys bool) string {
	var b strings.Builder
	if behindKeys && d.Total() > 0 {
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "from:  %s\nto:    %s\n", diffSideText(d.A), diffSideText(d.B))
	if d.Joined {
		fmt.Fprintf(&b, "read:  %s of changes, %s\n", ui.Count(d.Segments, "segment"), ui.Size(d.Bytes))
	} else {
		fmt.Fprintf(&b, "read:  both states, %s: no kept changes lead from one to the other\n", ui.Size(d.Bytes))
	}
	if d.Total() == 0 {
		b.WriteString("the same\n")
		return b.String()
	}
	b.WriteString("\n")
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "ADDED\tCHANGED\tREMOVED\t  WHAT\n")
	for i, g := range d.Groups {
		if i == groupsShown {
			break
		}
		fmt.Fprintf(w, "%d\t%d\t%d\t  %s\n", g.Added, g.Changed, g.Removed, ui.Readable(g.Name()))
	}
	_ = w.Flush() // to a builder
	if more := len(d.Groups) - groupsShown; more > 0 {
		fmt.Fprintf(&b, "… and %d more (-o json shows all)\n", more)
	}
	fmt.Fprintf(&b, "\n%d added, %d changed, %d removed\n", d.Added, d.Changed, d.Removed)
	return b.String()
}

func diffSideText(s operator.DiffSide) string {
	p := s.Point
	switch {
	case p.Plan != nil:
		text := reachedText(s.Revision, p.Plan.Time, p.Plan.Uncertain, p.Plan.Until)
		if p.Request.Target.Latest {
			text = "now, " + text
		}
		return text
	case s.Revision == 0:
		return "backup " + p.Base()
	case s.AtMost > s.Revision:
		return fmt.Sprintf("backup %s, as of revision %d (its snapshot may go up to %d)", p.Base(), s.Revision, s.AtMost)
	}
	return fmt.Sprintf("backup %s, revision %d", p.Base(), s.Revision)
}

// diffText is a key that differs, in a line or more.
func diffText(e operator.DiffEntry, o diffOptions) string {
	sign := map[operator.DiffKind]string{operator.Added: "+", operator.Changed: "~", operator.Removed: "-"}[e.Kind]
	text := sign + " " + ui.Readable(string(e.Key))
	if object, ok := kube.ObjectOf(string(e.Key)); ok {
		text += "  (" + object.String() + ")"
	}
	if e.SameValue {
		text += "  written again, the same value"
	}
	text += "\n"
	if o.values && !e.SameValue {
		text += diffValuesText(e, o.secrets)
	}
	return text
}

// different tells whether an error only says that two states differ.
func different(err error) bool { return errors.As(err, new(differentError)) }
