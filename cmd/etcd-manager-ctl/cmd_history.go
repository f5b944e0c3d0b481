package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/kube"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

const (
	// defaultBack is how far back a history goes if nothing is said, and defaultLimit how many changes it shows.
	defaultBack  = time.Hour
	defaultLimit = 1000
)

type historyOptions struct {
	prefix, namespace string
	since, until      string
	from, to          int64
	deletes           bool
	values            bool
	limit             int
}

func historyCommand(a *app) *cobra.Command {
	var o historyOptions
	cmd := &cobra.Command{
		Use: "history [PREFIX]", Short: "List the changes of keys, from the archive", Args: atMostOne,
		Long: `List the changes that are kept between backups, oldest first: time, revision, put or delete, size and
key; Kubernetes objects by kind, namespace and name. Without --since it lists the last hour. Values are only shown
with --show-values, because they may be secrets. Missing changes and restores have lines of their own.`,
		Example: "  etcd-manager-ctl --backup-store=s3://bucket/prefix history /registry/deployments/ --since=90m --deletes",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.prefix = args[0]
			}
			return runHistory(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.since, "since", "", "from this `time` on: RFC 3339, \"2026-11-22 12:03:06\", 12:03:06 (today, UTC), or how long ago (default: 1h, unless --from-revision is given)")
	f.StringVar(&o.until, "until", "", "up to this `time`")
	f.Int64Var(&o.from, "from-revision", 0, "from this revision on")
	f.Int64Var(&o.to, "to-revision", 0, "up to this revision")
	f.StringVar(&o.namespace, "namespace", "", "what is in this Kubernetes `namespace`, and itself")
	f.BoolVar(&o.deletes, "deletes", false, "only what was deleted")
	f.BoolVar(&o.values, "show-values", false, "show the values too; they may be secrets")
	f.IntVar(&o.limit, "limit", defaultLimit, "how many changes to show, 0 for all")
	return cmd
}

func runHistory(ctx context.Context, a *app, o historyOptions) error {
	if err := a.format("json"); err != nil {
		return err
	}
	r, err := rangeOf(a, o)
	if err != nil {
		return err
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	show := &historyView{a: a, values: o.values}
	shown := 0
	for e, err := range c.History(ctx, r) {
		switch {
		case err != nil:
			return err
		case e.Note == "" && o.limit > 0 && shown == o.limit:
			a.note("there are more: continue with --from-revision=%d, or show all with --limit=0", e.Revision)
			return show.end()
		case e.Note == "":
			shown++
		}
		if err := show.event(e); err != nil {
			return err
		}
	}
	return show.end()
}

// rangeOf checks the flags.
func rangeOf(a *app, o historyOptions) (r operator.HistoryRequest, err error) {
	if o.limit < 0 || o.from < 0 || o.to < 0 {
		return r, ui.Usagef("--limit, --from-revision and --to-revision can't be negative")
	}
	if o.to > 0 && o.from > o.to {
		return r, ui.Usagef("--from-revision=%d is after --to-revision=%d", o.from, o.to)
	}
	r.From, r.To = o.from, o.to
	if r.Since, err = whenFlag(a, "since", o.since); err != nil {
		return r, err
	}
	if r.Until, err = whenFlag(a, "until", o.until); err != nil {
		return r, err
	}
	if r.Since.IsZero() && o.from == 0 && o.to == 0 {
		end := a.now()
		if !r.Until.IsZero() {
			end = r.Until
		}
		r.Since = end.Add(-defaultBack)
	}
	if !r.Until.IsZero() && r.Since.After(r.Until) {
		return r, ui.Usagef("--since (%s) is after --until (%s)", ui.Clock(r.Since), ui.Clock(r.Until))
	}
	r.Prefix, r.Namespace, r.Deletes = o.prefix, o.namespace, o.deletes
	return r, nil
}

// whenFlag reads a flag that names a moment; empty is none.
func whenFlag(a *app, name, value string) (time.Time, error) {
	if value == "" {
		return time.Time{}, nil
	}
	t, err := ui.ParseWhen(value, a.now())
	if err != nil {
		return time.Time{}, ui.Usagef("--%s: %w", name, err)
	}
	return t, nil
}

// changeOutput is one change, or a note.
type changeOutput struct {
	Time time.Time `json:"time,omitzero"`
	// Since is set if it came late: it was made at some time between the two.
	Since       time.Time    `json:"since,omitzero"`
	Incarnation string       `json:"incarnation,omitempty"`
	Revision    int64        `json:"revision,omitempty"`
	Change      string       `json:"change"`
	Key         string       `json:"key,omitempty"`
	KeyBase64   []byte       `json:"keyBase64,omitempty"` // of a key that is no text
	Object      *kube.Object `json:"object,omitempty"`
	Size        *int         `json:"size,omitempty"`
	Version     int64        `json:"version,omitempty"`
	Lease       int64        `json:"lease,omitempty"`
	Value       []byte       `json:"valueBase64,omitempty"`
	Note        string       `json:"note,omitempty"`
}

// historyView prints a change as it comes, however many there are.
type historyView struct {
	a      *app
	values bool
	begun  bool
}

const historyRow = "%-24s  %12s  %-6s  %10s  %s\n"

func (v *historyView) event(e operator.Change) error {
	if v.a.output == "json" {
		return v.json(e)
	}
	if !v.begun {
		v.begun = true
		if err := v.a.printf(historyRow, "TIME", "REVISION", "CHANGE", "SIZE", "KEY"); err != nil {
			return err
		}
	}
	if e.Note != "" {
		return v.a.printf("---- %s\n", e.Note)
	}
	change, size := "put", ui.Size(int64(len(e.Value)))
	if e.Deleted {
		change, size = "delete", "-"
	}
	what := ui.Readable(string(e.Key))
	if o, ok := v.object(e); ok {
		what += "  (" + o.String() + ")"
	}
	if !e.Since.IsZero() {
		what += "  [recorded late: made between " + ui.Clock(e.Since) + " and then]"
	}
	if err := v.a.printf(historyRow, ui.Moment(e.Time, time.Time{}), strconv.FormatInt(e.Revision, 10), change, size, what); err != nil {
		return err
	}
	if v.values && !e.Deleted {
		return v.a.printf("%s", indented(valueText(e.Value)))
	}
	return nil
}

// object says what a key holds; where the key doesn't know the kind, the value does.
func (v *historyView) object(e operator.Change) (kube.Object, bool) {
	o, ok := kube.ObjectOf(string(e.Key))
	if ok && strings.ToLower(o.Kind) == o.Kind {
		if k := kube.ReadValue(e.Value).Kind; k != "" {
			o.Kind = k
		}
	}
	return o, ok
}

func (v *historyView) json(e operator.Change) error {
	out := changeOutput{Time: e.Time, Since: e.Since, Incarnation: string(e.Incarnation), Revision: e.Revision,
		Change: "put", Version: e.Version, Lease: e.Lease, Note: e.Note}
	size := len(e.Value)
	switch {
	case e.Missing:
		out.Change = "missing"
	case e.Note != "":
		out.Change = "note"
	case e.Deleted:
		out.Change = "delete"
	default:
		out.Size = &size
	}
	if e.Note == "" {
		if out.Key = string(e.Key); !utf8.Valid(e.Key) {
			out.Key, out.KeyBase64 = "", e.Key
		}
		if o, ok := v.object(e); ok {
			out.Object = &o
		}
		if v.values {
			out.Value = e.Value
		}
	}
	line, err := json.Marshal(out)
	if err != nil {
		return fmt.Errorf("print: %w", err)
	}
	begin := ",\n"
	if !v.begun {
		v.begun, begin = true, "[\n"
	}
	return v.a.printf("%s%s", begin, line)
}

// end ends the list.
func (v *historyView) end() error {
	switch {
	case v.a.output != "json":
		return nil
	case !v.begun:
		return v.a.printf("[]\n")
	}
	return v.a.printf("\n]\n")
}

// valueText is a value for a screen.
func valueText(value []byte) string {
	switch k := kube.ReadValue(value); {
	case k.Form == "encrypted":
		return fmt.Sprintf("(encrypted by the API server: %s)", k.Provider)
	case k.Form == "protobuf":
		return fmt.Sprintf("%s %s in protocol buffers: %s", k.APIVersion, k.Kind, strconv.Quote(string(value)))
	case len(value) == 0:
		return "(empty)"
	case !utf8.Valid(value) || strings.ContainsFunc(string(value), func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' }):
		return strconv.Quote(string(value))
	}
	return string(value)
}

func indented(s string) string {
	return "    " + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n    ") + "\n"
}
