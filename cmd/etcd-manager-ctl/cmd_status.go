package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
	"github.com/etcd-manager/etcd-manager/pkg/operator/health"
)

// watchEvery is how often --watch looks at the store.
const watchEvery = 5 * time.Second

func statusCommand(a *app) *cobra.Command {
	watch := false
	var endpoints []string
	c := &cobra.Command{
		Use: "status", Short: "Show how the cluster does, and what to do, from the store alone", Args: noArgs,
		Long: `Show how the cluster does: members, managers, what is under way or waits, backups, what can be restored, what ends, and what
to do. It only reads the store, so it needs no route to the masters and works without a leader, too. What the managers know
is at most about a minute old there. With --endpoints it asks the managers themselves, and no store.

Exit codes: 0 healthy, 1 degraded, 2 it needs you, 3 it can't be told (the store doesn't answer, or no cluster is there).`,
		Example: `  etcd-manager-ctl --backup-store=s3://bucket/prefix status
  etcd-manager-ctl --backup-store=s3://bucket/prefix status --watch
  etcd-manager-ctl --backup-store=s3://bucket/prefix status -o json
  etcd-manager-ctl status --endpoints=10.0.0.1:9101,10.0.0.2:9101,10.0.0.3:9101`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.format("json", "yaml"); err != nil {
				return err
			}
			if watch && (a.output != "" || !a.outTerminal) {
				return ui.Usagef("--watch draws on a terminal: leave it out for --output and for a pipe")
			}
			if len(endpoints) > 0 {
				if watch {
					return ui.Usagef("--watch looks at the store, and --endpoints at managers; give one of them")
				}
				return askManagers(cmd.Context(), a, endpoints)
			}
			if watch {
				return watchStatus(cmd.Context(), a)
			}
			r, err := lookAtHealth(cmd.Context(), a)
			if err != nil {
				return err
			}
			if err := printReport(a, r, func(w io.Writer) { drawStatus(w, r) }); err != nil {
				return err
			}
			return byVerdict(r.Verdict)
		},
	}
	c.Flags().StringSliceVar(&endpoints, "endpoints", nil,
		"ask the managers at these `addresses` (HOST:PORT of --etcd-manager-metrics-port) instead of the store")
	c.Flags().BoolVar(&watch, "watch", false, "look again every 5s and redraw, until it is interrupted")
	return c
}

// verdictError has the exit code of a verdict. What is wrong was printed.
type verdictError struct{ code int }

func (e *verdictError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// byVerdict is nil if all is well.
func byVerdict(v health.Verdict) error {
	if v == health.Healthy {
		return nil
	}
	return &verdictError{v.ExitCode()}
}

// lookAtHealth looks at the cluster once. A store of which nothing is known is a report, too; an error is about the command line.
func lookAtHealth(ctx context.Context, a *app) (health.Report, error) {
	c, err := a.client(ctx)
	var r health.Report
	if err == nil {
		r, err = c.Health(ctx, operator.HealthOptions{})
	}
	var usage *ui.UsageError
	var config *operator.ConfigError
	if err == nil || errors.As(err, &usage) || errors.As(err, &config) {
		return r, err
	}
	kind, why := whyUnknown(a, err)
	return health.CannotTell(a.store, a.now(), kind, why, ""), nil
}

// whyUnknown says why nothing is known of a store.
func whyUnknown(a *app, err error) (kind, why string) {
	var empty *operator.EmptyStoreError
	switch {
	case errors.As(err, &empty) && empty.Missing:
		return health.KindStoreSilent, "T" + strings.TrimPrefix(empty.Error(), "t")
	case errors.As(err, &empty):
		return health.KindStoreEmpty, empty.Error()
	case errors.Is(err, catalog.ErrDenied):
		return health.KindStoreRefuses, "The store refuses access; check the credentials and the permissions of this machine: " + err.Error()
	case errors.Is(err, context.DeadlineExceeded):
		return health.KindStoreSilent, fmt.Sprintf("The store didn't answer within %s (--timeout)", a.timeout)
	}
	return health.KindStoreSilent, "The store can't be read: " + err.Error()
}

// printReport prints what -o asks for.
func printReport(a *app, v any, draw func(io.Writer)) error {
	switch a.output {
	case "json":
		return a.printJSON(v)
	case "yaml":
		text, err := yaml.Marshal(v)
		if err != nil {
			return fmt.Errorf("print: %w", err)
		}
		return a.printf("%s", text)
	}
	var b bytes.Buffer
	draw(&b)
	return a.printf("%s", b.String())
}

// watchStatus redraws in place until ctx ends: the cursor goes to the top, each line is replaced, and what is below is cleared.
func watchStatus(ctx context.Context, a *app) error {
	for first := true; ; first = false {
		r, err := lookAtHealth(ctx, a)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		var b bytes.Buffer
		drawStatus(&b, r)
		clear := "\x1b[H"
		if first {
			clear = "\x1b[2J\x1b[H"
		}
		text := strings.ReplaceAll(b.String(), "\n", "\x1b[K\n")
		if err := a.printf("%s%s\x1b[J", clear, text); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchEvery):
		}
	}
}

// drawStatus prints a report for people.
func drawStatus(out io.Writer, r health.Report) {
	fmt.Fprintf(out, "%s in %s: %s\n", cmp.Or(r.ClusterName, "the cluster"), r.Store, verdictWords(r.Verdict))
	if len(r.Findings) == 0 {
		fmt.Fprintf(out, "%s\n", r.Summary)
	}
	for _, f := range r.Findings {
		since := ""
		if !f.Since.IsZero() {
			since = " (since " + ui.Clock(f.Since) + ")"
		}
		fmt.Fprintf(out, "  %s %s\n", mark(f.Severity), f.Text+since)
		if f.Command == "" && f.NoCommand != "" {
			fmt.Fprintf(out, "      what to do: %s\n", f.NoCommand)
		}
	}
	if len(r.Commands) > 0 {
		fmt.Fprintln(out, "\nCommands to copy:")
		for _, c := range r.Commands {
			fmt.Fprintf(out, "  %s\n", c)
		}
	}
	if r.Formed == "unknown" {
		return
	}
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	if len(r.Standbys) > 0 {
		_ = w.Flush()
		drawStandbys(out, r)
		return
	}
	clusterRows(row, r)
	backupRows(row, r)
	for _, e := range r.Endings {
		row("ends", "%s", endingWords(e))
	}
	_ = w.Flush()
	if len(r.Nodes) > 0 {
		fmt.Fprintln(out)
		drawNodes(out, r)
	}
}

func verdictWords(v health.Verdict) string {
	switch v {
	case health.Healthy:
		return "healthy"
	case health.Degraded:
		return "DEGRADED"
	case health.NeedsYou:
		return "NEEDS YOU"
	}
	return "CAN'T TELL"
}

func mark(v health.Verdict) string {
	switch v {
	case health.NeedsYou:
		return "!!"
	case health.Degraded:
		return "! "
	}
	return "? "
}

type rowFunc func(name, format string, args ...any)

// clusterRows are about members, managers and what is under way.
func clusterRows(row rowFunc, r health.Report) {
	wanted, spec := "", ""
	if r.MembersWanted > 0 {
		wanted = fmt.Sprintf(", %d wanted", r.MembersWanted)
	}
	if r.Spec != nil && r.Spec.EtcdVersion != "" {
		spec = ", wanted " + r.Spec.EtcdVersion
	}
	healthy := "not known"
	if r.MembersKnown {
		healthy = fmt.Sprintf("%d healthy", r.MembersHealthy)
	}
	row("members", "%s%s", healthy, wanted)
	if len(r.Versions) > 0 {
		row("etcd", "%s%s", strings.Join(r.Versions, ", "), spec)
	}
	switch l := r.Leader; {
	case l == nil:
		row("leader", "none has ever written to this store")
	case l.Current:
		row("leader", "node %s, term %d, heard %s ago", l.Node, l.Term, ageOf(l.AgeSeconds))
	default:
		row("leader", "none; the last was node %s, term %d, %s ago", l.Node, l.Term, ageOf(l.AgeSeconds))
	}
	if r.Doing != "" {
		row("now", "%s", r.Doing)
	}
	if o := r.Operation; o != nil {
		text := fmt.Sprintf("%s %s", o.ID, o.State)
		if o.Percent != nil {
			text += fmt.Sprintf(" %d%%", *o.Percent)
		}
		if why := cmp.Or(o.Waiting, o.Reason); why != "" {
			text += ": " + why
		}
		row(string(o.Kind), "%s", text)
	}
	for _, c := range r.Waiting {
		what := c.Kind
		if c.Backup != "" {
			what += " of " + c.Backup
		}
		row("waiting", "%s: %s waits for %s", c.Name, what, c.For)
	}
	if o := r.Ended; o != nil {
		row("last "+string(o.Kind), "%s %s, %s", o.ID, o.State, ui.Ago(r.At.Sub(o.Since)))
	}
}

// copyText says in one line how a copy of the store does.
func copyText(r health.Report, c health.Copy) string {
	text := c.Name + ": "
	switch {
	case c.LagSeconds != nil:
		text += fmt.Sprintf("changes up to %s, %s behind", ui.Clock(c.Until), ageOf(*c.LagSeconds))
	case c.NewestBackup.IsZero():
		text += "nothing was copied yet"
	default:
		text += "no changes"
	}
	if !c.NewestBackup.IsZero() {
		text += fmt.Sprintf("; newest backup %s", ui.Ago(r.At.Sub(c.NewestBackup)))
	}
	if c.Missing > 0 {
		text += fmt.Sprintf("; %d backups to be copied", c.Missing)
	}
	if c.Error != "" {
		text += "; FAILING"
	}
	return text
}

// backupRows are about what is stored.
func backupRows(row rowFunc, r health.Report) {
	if b := r.Backup; b != nil {
		text := fmt.Sprintf("%s, %s old, %s", b.Name, ageOf(b.AgeSeconds), ui.Size(b.SizeBytes))
		if b.IntervalSeconds > 0 {
			text += fmt.Sprintf(", every %s", ageOf(b.IntervalSeconds))
		}
		if b.Stored > 0 {
			text += fmt.Sprintf(" (%d in the store)", b.Stored)
		}
		row("newest backup", "%s", text)
	} else if r.Formed != "no" {
		row("newest backup", "none")
	}
	switch v := r.Verification; {
	case v == nil || v.Backup == "":
		if r.Formed != "no" {
			row("verified", "no backup yet")
		}
	case v.Bad != "":
		row("verified", "%s is BAD, %s ago", v.Backup, ageOf(v.AgeSeconds))
	default:
		row("verified", "%s is good, %s ago", v.Backup, ageOf(v.AgeSeconds))
	}
	if a := r.Archive; a != nil && !a.Until.IsZero() {
		text := fmt.Sprintf("in the store up to %s, %s behind", ui.Clock(a.Until), ageOf(a.LagSeconds))
		if a.SpilledBytes > 0 {
			text += fmt.Sprintf("; %s wait on the leader's disk", ui.Size(a.SpilledBytes))
		}
		row("changes", "%s", text)
	}
	if r.CopyOf != "" {
		row("copy of", "%s", r.CopyOf)
	}
	for _, c := range r.Copies {
		row("copy", "%s", copyText(r, c))
	}
	if w := r.Window; w != nil && !w.From.IsZero() {
		row("any second", "from %s to %s can be restored", ui.Clock(w.From), ui.Clock(w.Until))
		for _, g := range w.Gaps {
			until := "the next backup"
			if !g.Until.IsZero() {
				until = ui.Clock(g.Until)
			}
			row("", "but not between %s and %s", ui.Clock(g.From), until)
		}
		if w.KeptSince.Before(w.From) {
			row("", "changes are kept since %s; before %s nothing was looked at", ui.Clock(w.KeptSince), ui.Clock(w.From))
		}
	} else if w != nil && w.Note != "" {
		row("any second", "%s", w.Note)
	}
}

func endingWords(e health.Ending) string {
	var nodes []string
	for _, n := range e.Nodes {
		nodes = append(nodes, string(n))
	}
	text := fmt.Sprintf("%s in %d days (node %s)", e.What, e.Days, strings.Join(nodes, ", "))
	if e.Days < 0 {
		text = fmt.Sprintf("%s has ended, at %s (node %s)", e.What, ui.Clock(e.At), strings.Join(nodes, ", "))
	}
	switch {
	case e.Problem != "":
		text += "; its renewal fails: " + e.Problem
	case e.Renewed:
		text += "; it is renewed before"
	}
	return text
}

// ageOf prints seconds as the tool prints ages.
func ageOf(n int64) string { return ui.Age(time.Duration(n) * time.Second) }

func drawNodes(out io.Writer, r health.Report) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tROLE\tVERSION\tHEALTH\tDATABASE\tBEHIND\tDISK FREE\tMANAGER\tSEEN")
	for _, n := range r.Nodes {
		health, lag, role := "healthy", "-", cmp.Or(n.Role, "-")
		switch {
		case n.Silent && n.SilentSeconds > 0:
			health = "no answer for " + ageOf(n.SilentSeconds)
		case n.Silent:
			health = "no answer"
		case n.Role == catalog.RoleNone:
			health = "no member"
		case !n.Running:
			health = "not running"
		case !n.Healthy:
			health = "NOT healthy"
		case n.Quarantined:
			health = "quarantined"
		}
		if n.Healthy {
			lag = fmt.Sprint(n.Lag)
		}
		if n.Silent {
			role = "-"
		}
		if !r.MembersKnown {
			health = "was " + health
		}
		for _, a := range n.Alarms {
			health += ", " + a
		}
		database, disk := "-", "-"
		if n.DBSize > 0 {
			database = ui.Size(n.DBSize)
		}
		if n.DiskTotal > 0 {
			disk = fmt.Sprintf("%s (%d%%)", ui.Size(n.DiskFree), 100*n.DiskFree/n.DiskTotal)
		}
		seen := "-"
		if n.SeenBy != "" && !n.Silent {
			seen = ageOf(n.SeenSeconds) + " ago"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", n.Node, role, cmp.Or(n.Version, "-"), health, database, lag, disk,
			cmp.Or(n.Manager, "-"), seen)
	}
	_ = w.Flush()
}
