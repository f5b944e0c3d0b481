package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

func restoreCommand(a *app) *cobra.Command {
	var q queueFlags
	var to targetFlags
	var from string
	cmd := &cobra.Command{
		Use: "restore-backup [NAME|latest]", Short: "Queue the restore of a backup, or of any revision or time", Args: atMostOne,
		Long: `Queue the restore of a backup with the current spec, or of a point after a backup: a time, a revision,
or everything that was kept. For a point, the command chooses the backup to begin with, unless NAME names it.
--dry-run shows it, and what would be lost. With --from, backup and point are those of another store, a copy of this
one for example: what is needed is brought from there into this store first. "latest" and --latest mean what that
store has last.

Without --now the restore does not start at once: the managers read the queue when they start. Restart them (docker
stop, kill, a rolling update of the masters) when you want the restore. Every node checks the backup and stages the
new data before the running cluster is touched. undo-restore undoes a restore that is done.

--member-count and --etcd-version are written to the cluster spec too: otherwise the managers would change the
restored cluster back.`,
		Example: `  etcd-manager-ctl --backup-store=s3://bucket/prefix restore-backup latest --now --wait
  etcd-manager-ctl --backup-store=s3://bucket/prefix restore-backup --to-time=12:03:06 --dry-run`,
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := to.target(cmd, a.now())
			if err != nil {
				return err
			}
			r := operator.RestoreRequest{Target: t, Before: to.before, Spec: q.change.read(cmd), Options: q.options}
			if from != "" {
				return restoreFrom(cmd.Context(), a, from, r, args, to.dryRun, q.wait)
			}
			if r.Options.AcceptLoss && (!t.Latest || len(args) == 1) {
				return ui.Usagef("--accept-loss is for --latest alone: every other point is reached exactly or refused")
			}
			if len(args) == 1 {
				r.Backup = args[0]
			} else if t.IsZero() && to.before == "" {
				return ui.Usagef("restore-backup needs the name of a backup (see list-backups), or --to-time, --to-revision, --latest or --before")
			}
			if slices.Contains(r.Options.DropPrefixes, "") {
				return ui.Usagef("--drop-prefix is empty: that would drop every key")
			}
			return runRestore(cmd.Context(), a, r, to.dryRun, q.wait)
		},
		ValidArgsFunction: a.complete(restorableNames),
	}
	q.add(cmd, false)
	to.add(cmd)
	f := cmd.Flags()
	f.BoolVar(&to.dryRun, "dry-run", false,
		"only show what would be restored, from which backup, what would be lost, and how long it takes; nothing is queued")
	f.StringVar(&from, "from", "", "bring the backup, and the changes to the point, from the store of this `URL` first (docs/copy.md)")
	f.BoolVar(&q.options.KeepMasterleases, "keep-masterleases", false,
		"keep the API servers' master leases, also those of servers that are gone")
	f.StringArrayVar(&q.options.DropPrefixes, "drop-prefix", nil, "leave out the keys with this `prefix`; may be repeated")
	f.BoolVar(&q.options.AcceptLoss, "accept-loss", false,
		"with --latest: restore what the store has, although acknowledged writes may be missing")
	f.BoolVar(&q.options.ForceForeign, "force-foreign", false, "restore the backup although it is of another cluster")
	return cmd
}

// restoreFrom restores what another store has into the cluster of this one.
func restoreFrom(ctx context.Context, a *app, url string, r operator.RestoreRequest, args []string, dryRun, wait bool) error {
	if err := a.format("json"); err != nil {
		return err
	}
	if len(args) == 1 {
		r.Backup = args[0]
	} else if r.Target.IsZero() && r.Before == "" {
		return ui.Usagef("restore-backup --from=%s needs the name of a backup there, latest, or --to-time, --to-revision, --latest or "+
			"--before", url)
	}
	if slices.Contains(r.Options.DropPrefixes, "") {
		return ui.Usagef("--drop-prefix is empty: that would drop every key")
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	open := a.openCopy
	if open == nil {
		open = a.open
	}
	from, err := operator.Open(ctx, operator.Config{Store: url, Open: open, Identities: a.identities, KMS: a.kms, Timeout: a.timeout,
		Now: a.now, Program: a.build.Version})
	if err != nil {
		return fmt.Errorf("--from: %w", a.explain(err))
	}
	p, err := from.PlanRestore(ctx, r)
	sayPlanned(a, p)
	if err != nil {
		return err
	}
	if dryRun {
		return restoreDryRun(ctx, a, from, p)
	}
	if p.Path != nil {
		a.note("this is restored from %s:\n%s", url, strings.TrimSuffix(planned(p.Path).text(), "\n"))
	}
	queued, err := c.RestoreFrom(ctx, from, p, a.transfers())
	if err != nil {
		return err
	}
	return a.sayAndFollow(ctx, c, queued, wait)
}

func runRestore(ctx context.Context, a *app, r operator.RestoreRequest, dryRun, wait bool) error {
	if err := a.format("json"); err != nil {
		return err
	}
	if r.Backup != "" {
		if err := catalog.ValidBackupName(r.Backup); err != nil {
			return &ui.UsageError{Err: err}
		}
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	p, err := c.PlanRestore(ctx, r)
	sayPlanned(a, p)
	if err != nil {
		return err
	}
	if dryRun {
		return restoreDryRun(ctx, a, c, p)
	}
	pv := c.Preview(ctx, p, previewBefore)
	if p.Path != nil {
		a.note("this is restored:\n%s", strings.TrimSuffix(planned(p.Path).text(), "\n"))
	}
	if pv.Difference != nil || pv.Costly {
		a.note("  changes:  %s", previewText(a, pv))
	}
	if r.Target.Latest {
		a.note("What is written from the beginning of the restore until etcd stops is not in it: if no write may be missing, stop the API servers first.")
	}
	queued, err := c.Restore(ctx, p)
	if err != nil {
		return err
	}
	return a.sayAndFollow(ctx, c, queued, wait)
}

// sayPlanned tells what was found out on the way.
func sayPlanned(a *app, p *operator.RestorePlan) {
	sayLocated(a, p.Before, p.Request.Before, p.Notes)
	if p.Backup != nil && p.Request.Backup == operator.Latest {
		a.note("latest: %s", describeBackup(a, *p.Backup))
	}
}

// restoreDryRun says what would be restored.
func restoreDryRun(ctx context.Context, a *app, c *operator.Client, p *operator.RestorePlan) error {
	if err := c.Estimate(ctx, p); err != nil {
		return err
	}
	if p.Path == nil {
		return a.printf("this would be restored: %s; it has no manifest, so its revision is only known after it was read (inspect shows it)\n",
			describeBackup(a, *p.Backup))
	}
	o := planned(p.Path)
	pv := c.Preview(ctx, p, previewDry)
	o.Changes, o.ChangesLeftOut, o.changes = changesOf(pv), pv.LeftOut, previewText(a, pv)
	if a.output == "json" {
		return a.printJSON(o)
	}
	return a.printf("this would be restored:\n%s", o.text())
}

// describeBackup says in one line what a backup is.
func describeBackup(a *app, b operator.Backup) string {
	words := []string{b.Name}
	if !b.Time.IsZero() {
		words = append(words, ui.Ago(a.now().Sub(b.Time)))
	}
	if m := b.Manifest; m != nil {
		words = append(words, fmt.Sprintf("revision %d", m.Revision))
		if m.Reason != "" {
			words = append(words, "taken as "+m.Reason)
		}
	}
	return strings.Join(append(words, ui.Size(b.Size)), ", ")
}
