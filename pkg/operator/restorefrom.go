package operator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// later is how many segments behind a point are brought along: they may say how long leases of the point were granted for.
const later = 32

// RestoreFrom queues a restore that was planned with another store, a copy of this one for example: what it needs is brought into this
// store first, checked byte by byte. What is here already isn't brought again, so a call that was interrupted goes on with the next one.
// The point becomes a revision, so the managers restore exactly what the plan names. Nothing is removed from either store.
func (c *Client) RestoreFrom(ctx context.Context, from *Client, p *RestorePlan, transfers Transfers) (Queued, error) {
	if from.Store() == c.Store() {
		return Queued{}, invalidf("both stores are %s", c.Store())
	}
	if err := c.managed(ctx); err != nil {
		return Queued{}, err
	}
	r := request{change: p.Request.Spec, options: p.Request.Options.stored()}
	switch {
	case p.Path != nil && !p.target.IsZero():
		r.backup, r.options.ToRevision = p.Path.Base, p.Path.Revision
	case p.Backup != nil:
		r.backup = p.Backup.Name
	default:
		return Queued{}, invalidf("the plan is incomplete: PlanRestore has failed")
	}
	r.options.AcceptLoss = false // a revision is reached exactly, or not at all
	unpin, err := c.bringBackup(ctx, from, r.backup, p.Request.Options.ForceForeign, transfers)
	defer func() { unpin() }() // in any case: it does nothing if nothing was pinned
	if err != nil {
		return Queued{}, err
	}
	if r.options.ToRevision != 0 {
		if err := c.bringChanges(ctx, from, p.Path, transfers); err != nil {
			return Queued{}, err
		}
	}
	if err := c.bringSpec(ctx, from); err != nil {
		return Queued{}, err
	}
	q, err := c.enqueue(ctx, r) // which keeps the backup from then on
	if err != nil || r.options.ToRevision == 0 {
		return q, err
	}
	// From now on retention removes no changes. What it has removed since they were brought is brought again.
	if err := c.bringChanges(ctx, from, p.Path, transfers); err != nil {
		return q, fmt.Errorf("the restore is queued as %s and will be carried out, but it could not be made sure that no change that it needs was "+
			"removed meanwhile (delete-command %s withdraws it): %w", q.Command.Name, q.Command.Name, err)
	}
	return q, nil
}

// bringBackup copies a backup from another store. What is here already under its name is read and compared, and replaced if it isn't the
// same. It is pinned until unpin is called, since it may be older than what retention keeps here.
func (c *Client) bringBackup(ctx context.Context, from *Client, name string, foreign bool, transfers Transfers) (unpin func(), err error) {
	unpin = func() {}
	b, _, err := from.backup(ctx, name)
	if err != nil {
		return unpin, err
	}
	have, err := c.Backups(ctx)
	if err != nil {
		return unpin, err
	}
	here, there := have.Find(name)
	if there && !(b.HasManifest && here.HasManifest) { // nothing says which bytes it must have
		_, _, err := c.backup(ctx, name)
		return unpin, err
	}
	if !foreign {
		b.others = have.Backups
		if err := c.refuseForeign(ctx, b); err != nil {
			return unpin, err
		}
	}
	// A pin of the other store comes only when all else is here, and one there that a command holds doesn't come at all. A hold here may
	// end with the command that has it.
	release, err := c.catalog.HoldBackup(ctx, name, "restore-backup --from brings it from "+from.Store())
	if err != nil {
		return unpin, err
	}
	unpin = func() {
		ctx, cancel := c.limit(context.WithoutCancel(ctx))
		defer cancel()
		_ = release(ctx) // it stays pinned then, which list-backups shows
	}
	if pin, err := c.catalog.Pin(ctx, name); err == nil {
		here.Pinned = pin.Owner == ""
	}
	progress, over := transfers.begin("bring", name)
	defer over()
	if err := c.catalog.CopyBackup(ctx, from.catalog, b.Backup, counted(progress, b.Size)); err != nil {
		return unpin, fmt.Errorf("bring backup %s from %s: %w", name, from.Store(), err)
	}
	return unpin, c.catalog.CopyNotes(ctx, from.catalog, b.Backup, here)
}

// bringChanges copies the segments of a path, and some behind it, unless they are here.
func (c *Client) bringChanges(ctx context.Context, from *Client, path *Path, transfers Transfers) error {
	list := slices.Clone(path.Chain.Segments)
	if len(list) == 0 {
		return nil
	}
	first, last := list[0], list[len(list)-1]
	for s, err := range from.catalog.SegmentsAfter(ctx, path.Incarnation, last.SegmentName) {
		if err != nil {
			return err
		}
		if list = append(list, s); len(list) >= len(path.Chain.Segments)+later {
			break
		}
	}
	last = list[len(list)-1]
	have := map[catalog.SegmentName]int64{}
	for s, err := range c.catalog.Segments(ctx, path.Incarnation, first.First) {
		if err != nil {
			return err
		}
		if s.String() > last.String() {
			break
		}
		have[s.SegmentName] = s.Size
	}
	for _, s := range list {
		if size, ok := have[s.SegmentName]; ok && size != s.Size {
			return fmt.Errorf("%s is damaged in %s: it has %d bytes, and %d in %s; delete it here, then try again", s.Key(), c.Store(), size, s.Size,
				from.Store())
		}
	}
	list = slices.DeleteFunc(list, func(s catalog.Segment) bool { _, ok := have[s.SegmentName]; return ok })
	var total int64
	for _, s := range list {
		total += s.Size
	}
	progress, over := transfers.begin("bring", "changes")
	defer over()
	if err := c.catalog.CopyIncarnation(ctx, from.catalog, path.Incarnation); err != nil {
		return err
	}
	via := counted(progress, total)
	for _, s := range list {
		if err := c.catalog.CopySegment(ctx, from.catalog, s, via); err != nil {
			return fmt.Errorf("bring the changes from %s: %w", from.Store(), err)
		}
	}
	return nil
}

// bringSpec writes the other store's spec if there is none here, as in a store that was lost and made again.
func (c *Client) bringSpec(ctx context.Context, from *Client) error {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	if _, _, err := c.catalog.Spec(ctx); !errors.Is(err, ErrNotFound) {
		return err
	}
	spec, _, err := from.catalog.Spec(ctx)
	if errors.Is(err, ErrNotFound) {
		return nil // the queue says so
	}
	if err != nil {
		return err
	}
	if !cluster.ValidMemberCount(spec.MemberCount) {
		return nil
	}
	if _, err = c.catalog.CreateSpec(ctx, spec); errors.Is(err, catalog.ErrConflict) {
		return nil
	}
	return err
}

// counted reports what goes through.
func counted(progress func(done, total int64), total int64) catalog.Via {
	var done int64
	return func(r io.Reader) io.Reader {
		return readerFunc(func(p []byte) (int, error) {
			n, err := r.Read(p)
			done += int64(n)
			progress(done, total)
			return n, err
		})
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
