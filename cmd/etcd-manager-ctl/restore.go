package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/spelling"
)

// latest is the name by which the newest good backup of the life that serves can be asked for, wherever the name of a backup is.
const latest = "latest"

// resolve replaces latest by the name of the backup that it means. It is the only place that knows what it means.
func (a *app) resolve(ctx context.Context, c *catalog.Catalog, l catalog.BackupList, name string) (string, error) {
	if name != latest || slices.Contains(l.Names(), latest) {
		return name, nil
	}
	n, err := a.archive(c).NewestGood(ctx, l, a.now())
	var open *changelog.UndecidedError
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		return "", a.noBackup(l, latest)
	case errors.As(err, &open):
		return "", a.undecided(open)
	case err != nil:
		return "", err
	}
	for _, note := range n.Notes {
		a.note("latest: %s", note)
	}
	return n.Name, nil
}

// undecided shows what may be meant, and how to say which.
func (a *app) undecided(e *changelog.UndecidedError) error {
	text := e.Error()
	for _, k := range e.Candidates {
		text += fmt.Sprintf("\n  this one:  %s", a.ctl("restore-backup", k.Name, "--dry-run"))
		if k.Life != "" {
			text += fmt.Sprintf("\n  with the changes of its life:  %s", a.ctl("restore-backup", k.Name, "--latest", "--dry-run"))
		}
	}
	return &undecidedError{text, e}
}

// undecidedError is an UndecidedError with the commands to choose.
type undecidedError struct {
	text  string
	cause error
}

func (e *undecidedError) Error() string { return e.text }
func (e *undecidedError) Unwrap() error { return e.cause }

func (a *app) restoreCommand() *cobra.Command {
	var r request
	var to targetFlags
	cmd := &cobra.Command{
		Use: "restore-backup [NAME|latest]", Short: "Queue the restore of a backup, or of any revision or second", Args: atMostOne,
		Long: `Queue the restore of a backup with the current spec, or of a point behind one: a second, a revision, or all that was kept. The backup that a point
is reached from is found by itself unless NAME says which; --dry-run shows it, and what would be lost.

Unless --now is given it does not start at once: the managers look into
the queue when they start, so restart them (docker stop, kill, a roll of the masters) when the moment has come.
The backup is proven to be good, and staged on every node, before the running cluster is touched; a restore that is done can be taken back with undo-restore.

--member-count and --etcd-version are written into the cluster spec too: else the restored cluster would be changed back to it.`,
		Example: `  etcd-manager-ctl --backup-store=s3://bucket/prefix restore-backup latest --now --wait
  etcd-manager-ctl --backup-store=s3://bucket/prefix restore-backup --to-time=12:03:06 --dry-run`,
		RunE: func(cmd *cobra.Command, args []string) error {
			r.change.read(cmd)
			t, err := to.target(cmd, a.now())
			if err != nil {
				return err
			}
			if r.options.AcceptLoss && (!t.Latest || len(args) == 1) {
				return ui.Usagef("--accept-loss is for --latest alone: every other point is reached exactly or refused")
			}
			if len(args) == 1 {
				r.backup = args[0]
			} else if t.IsZero() && to.before == "" {
				return ui.Usagef("restore-backup needs the name of a backup (see list-backups), or --to-time, --to-revision, --latest or --before")
			}
			return a.restore(cmd.Context(), r, t, to)
		},
		ValidArgsFunction: a.complete(restorableNames),
	}
	r.addFlags(cmd, false)
	to.add(cmd)
	f := cmd.Flags()
	f.BoolVar(&r.options.KeepMasterleases, "keep-masterleases", false, "keep the API servers' master leases, also those of servers that are gone")
	f.StringArrayVar(&r.options.DropPrefixes, "drop-prefix", nil, "leave out the keys with this `prefix`; may be repeated")
	f.BoolVar(&r.options.AcceptLoss, "accept-loss", false, "with --latest: go to what the store has, though it isn't certain that this is all that clients were told of")
	f.BoolVar(&r.options.ForceForeign, "force-foreign", false, "restore it although it is another cluster's backup")
	return cmd
}

// backupNames lists the newest first: that is the one that is wanted most often.
func backupNames(ctx context.Context, c *catalog.Catalog) ([]string, error) {
	l, err := c.Backups(ctx)
	names := l.Names()
	slices.Reverse(names)
	return names, err
}

func restorableNames(ctx context.Context, c *catalog.Catalog) ([]string, error) {
	names, err := backupNames(ctx, c)
	if len(names) > 0 {
		names = append(names, latest)
	}
	return names, err
}

func (a *app) restore(ctx context.Context, r request, t changelog.Target, to targetFlags) error {
	if err := a.format("json"); err != nil {
		return err
	}
	if r.backup != "" {
		if err := catalog.ValidBackupName(r.backup); err != nil {
			return &ui.UsageError{Err: err}
		}
	}
	for _, p := range r.options.DropPrefixes {
		if p == "" {
			return ui.Usagef("--drop-prefix is empty: that would drop every key")
		}
	}
	c, err := a.openCatalog(ctx)
	if err != nil {
		return err
	}
	if to.before != "" {
		before, err := a.lastBefore(ctx, c, to.before, false, changelog.Target{})
		if err != nil {
			return err
		}
		a.note("%s was last deleted behind revision %d (%s shows the details)", to.before, before.Revision, a.ctl("before", to.before))
		t.Revision = before.Revision
	}
	if r.backup == "" {
		return a.restoreTo(ctx, c, r, t, to.dryRun)
	}
	chosen, err := a.choose(ctx, c, r.backup)
	if err != nil {
		return err
	}
	if !r.options.ForceForeign {
		if err := a.refuseForeign(ctx, c, chosen); err != nil {
			return err
		}
	}
	if r.backup == latest {
		a.note("latest: %s", a.describeBackup(chosen))
	}
	r.backup = chosen.backup.Name
	if !t.IsZero() || to.dryRun && chosen.manifest != nil {
		t.Backup = r.backup
		return a.restoreTo(ctx, c, r, t, to.dryRun)
	}
	if to.dryRun {
		return a.printf("this would be restored: %s; it has no manifest, so its revision isn't known before it is read (inspect shows it)\n", a.describeBackup(chosen))
	}
	return a.enqueue(ctx, c, r)
}

// choice is a backup that was looked at.
type choice struct {
	backup   catalog.Backup
	info     catalog.BackupInfo
	manifest *catalog.Manifest // nil for backups of other tools
	others   []catalog.Backup  // all other backups, oldest first
}

// describeBackup says in one line what a backup is.
func (a *app) describeBackup(ch choice) string {
	words := []string{ch.backup.Name}
	if !ch.backup.Time.IsZero() {
		words = append(words, ui.Ago(a.now().Sub(ch.backup.Time)))
	}
	if m := ch.manifest; m != nil {
		words = append(words, fmt.Sprintf("revision %d", m.Revision))
		if m.Reason != "" {
			words = append(words, "taken as "+m.Reason)
		}
	}
	return strings.Join(append(words, ui.Size(ch.backup.Size)), ", ")
}

// choose makes sure that there is something to restore, and helps with the name if there isn't.
func (a *app) choose(ctx context.Context, c *catalog.Catalog, name string) (choice, error) {
	ctx, cancel := a.limit(ctx)
	defer cancel()
	l, err := c.Backups(ctx)
	if err != nil {
		return choice{}, err
	}
	if name, err = a.resolve(ctx, c, l, name); err != nil {
		return choice{}, err
	}
	i := slices.Index(l.Names(), name)
	if i < 0 {
		return choice{}, a.noBackup(l, name)
	}
	ch := choice{backup: l.Backups[i], others: slices.Delete(slices.Clone(l.Backups), i, i+1)}
	if ch.info, err = c.BackupInfo(ctx, name); err != nil {
		return choice{}, fmt.Errorf("backup %s can't be restored: %w", name, err)
	}
	ch.manifest, err = c.Manifest(ctx, name)
	if errors.Is(err, catalog.ErrNotFound) {
		return ch, nil
	}
	if err != nil {
		return choice{}, fmt.Errorf("backup %s can't be restored: %w", name, err)
	}
	if have, want := ch.backup.Size, ch.manifest.Stored.Size; have != want {
		kind := cluster.ErrCorrupt
		if have < want {
			kind = backup.ErrTruncated
		}
		return choice{}, &backup.Error{Backup: name, Kind: kind, Where: ch.manifest.DataFile(), Err: fmt.Errorf("it has %d bytes, the manifest says %d", have, want)}
	}
	return ch, nil
}

// noBackup says what there is instead.
func (a *app) noBackup(l catalog.BackupList, name string) error {
	message := fmt.Sprintf("there is no backup %q in %s", name, a.store)
	if name == latest {
		message = fmt.Sprintf("there is no backup in %s", a.store)
	}
	for _, left := range l.Leftovers {
		if left.Name == name {
			message = fmt.Sprintf("the backup %q in %s is incomplete: %s is missing", name, a.store, left.Missing)
		}
	}
	near := spelling.Closest(name, l.Names(), 3)
	newest, ok := l.NewestAny()
	switch {
	case len(near) > 0:
		message += "; did you mean " + strings.Join(near, ", ") + "?"
	case ok:
		message += "; the newest is " + newest.Name
	case name == latest:
		message += ": check the URL"
	default:
		message += ": there is none at all; check the URL"
	}
	return &notFoundError{message}
}

// foreignLook is how many of the other backups are asked whose they are.
const foreignLook = 5

// refuseForeign fails if the newest other backups name a cluster, and none of them the one that this backup names. The managers, who know their
// own name, check it too; here it is found before a restart.
func (a *app) refuseForeign(ctx context.Context, c *catalog.Catalog, ch choice) error {
	if ch.manifest == nil || ch.manifest.ClusterName == "" {
		return nil
	}
	ctx, cancel := a.limit(ctx)
	defer cancel()
	other, looked := "", 0
	for i := len(ch.others) - 1; i >= 0 && looked < foreignLook; i-- {
		b := ch.others[i]
		if !b.HasManifest {
			continue
		}
		looked++
		m, err := c.Manifest(ctx, b.Name)
		switch {
		case ctx.Err() != nil, errors.Is(err, catalog.ErrDenied), errors.Is(err, catalog.ErrTransient):
			return err
		case err != nil || m.ClusterName == "": // it tells nothing
		case m.ClusterName == ch.manifest.ClusterName:
			return nil
		case other == "":
			other = m.ClusterName
		}
	}
	if other == "" {
		return nil
	}
	return fmt.Errorf("backup %s is of cluster %q, the other backups in %s are of %q: nothing was queued; if this cluster shall get the other one's data, add --force-foreign",
		ch.backup.Name, ch.manifest.ClusterName, a.store, other)
}
