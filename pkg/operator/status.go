package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/operator/health"
)

// What bounds the requests of one look at a cluster.
const (
	statusesRead, commandsRead, operationsRead = 16, 16, 4
	// coverBack is how far back gaps are looked for, tried from the first, and coverSegments how many segments are listed at most.
	coverSegments = 20000
	// verifiedBack is how far back the last verification is looked for.
	verifiedBack = 50 * time.Hour
)

var coverBack = [...]time.Duration{24 * time.Hour, 4 * time.Hour, time.Hour}

// HealthOptions narrow what is read for Health.
type HealthOptions struct {
	// Brief leaves out what takes more than a handful of requests: what can be restored, and commands and records.
	Brief bool
}

// Health says how the cluster does, from the store alone: about 20 small requests, and one for each thousand segments of the last day. An
// error says that the store doesn't answer; anything else that can't be read is in the report.
func (c *Client) Health(ctx context.Context, o HealthOptions) (health.Report, error) {
	f, err := c.Facts(ctx, o)
	if err != nil {
		return health.Report{}, err
	}
	return health.Judge(f), nil
}

// Facts reads what a report is made of, for one who knows more than the store, as a manager does. It takes what Health takes.
func (c *Client) Facts(ctx context.Context, o HealthOptions) (health.Facts, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	f := health.Facts{Store: c.Store(), Now: c.Now()}
	l, err := c.catalog.ControlListing(ctx)
	if notThere(err) {
		return f, &EmptyStoreError{Store: c.Store(), Missing: true}
	}
	if err != nil {
		return f, err
	}
	r := reading{ctx: ctx, c: c.catalog, f: &f}
	if o.Brief {
		return f, r.brief(l)
	}
	r.leader(l)
	r.control(l)
	r.commands(l)
	r.operations(l)
	r.backups()
	if err := r.wait(); err != nil {
		return f, err
	}
	c.cover(ctx, &f)
	return f, nil
}

// brief reads what the leader says, and the rest only if that isn't recent.
func (r *reading) brief(l catalog.ControlListing) error {
	r.leader(l)
	if err := r.wait(); err != nil {
		return err
	}
	if statusIsFresh(r.f) && l.Marker.Exists() {
		r.f.Marker = &catalog.Marker{Phase: catalog.PhaseFormed, Time: l.Marker.Modified}
		return nil
	}
	r.control(l)
	r.operations(l)
	r.backups()
	return r.wait()
}

func (r *reading) wait() error {
	r.wg.Wait()
	slices.Sort(r.f.Problems)
	return r.err
}

// statusIsFresh tells whether the leader's word is recent enough to be taken for the newest backup.
func statusIsFresh(f *health.Facts) bool {
	return f.Status != nil && f.Status.Backups != nil && f.Now.Sub(f.LeaderAt) < 3*time.Minute
}

// reading reads objects side by side.
type reading struct {
	ctx context.Context
	c   *catalog.Catalog
	f   *health.Facts

	wg  sync.WaitGroup
	mu  sync.Mutex
	err error
}

// do reads something beside the others. What can't be used is noted; what isn't there, isn't.
func (r *reading) do(read func() error) {
	r.wg.Go(func() {
		err := read()
		r.mu.Lock()
		defer r.mu.Unlock()
		switch {
		case err == nil, errors.Is(err, catalog.ErrNotFound):
		case Unreadable(err), errors.Is(err, catalog.ErrDenied):
			r.f.Problems = append(r.f.Problems, err.Error())
		case r.err == nil:
			r.err = err
		}
	})
}

// set changes the facts.
func (r *reading) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

// leader reads the leader record, with what the leader shows.
func (r *reading) leader(l catalog.ControlListing) {
	r.f.LeaderAt = l.Leader.Modified
	if l.Leader.Exists() {
		r.do(func() error {
			rec, s, problem, err := r.c.LeaderStatus(r.ctx)
			if err == nil {
				r.f.Leader, r.f.Status = &rec, s
			}
			return cmp.Or(err, problem)
		})
	}
}

// control reads the other single objects.
func (r *reading) control(l catalog.ControlListing) {
	ctx, f := r.ctx, r.f
	if l.Spec.Exists() {
		r.do(func() error {
			s, _, err := r.c.Spec(ctx)
			if err == nil {
				f.Spec = &s
			}
			return err
		})
	}
	if l.Marker.Exists() {
		r.do(func() error {
			m, _, err := r.c.Marker(ctx)
			if err != nil {
				m = catalog.Marker{Phase: catalog.PhaseFormed, Time: l.Marker.Modified} // it is there, so nothing is formed
			}
			f.Marker = &m
			return err
		})
	}
	if l.Superseded.Exists() {
		r.do(func() error {
			s, err := r.c.Superseded(ctx)
			if err == nil {
				f.Superseded = &s
			}
			return err
		})
		r.do(func() error {
			e, err := r.c.Ended(ctx)
			if err == nil {
				f.Ending = &e
			}
			return err
		})
	}
	if l.Copy.Exists() {
		r.do(func() error {
			x, _, err := r.c.CopyRecord(ctx)
			if err == nil {
				f.Copy = &x
			}
			return err
		})
	}
	if l.Settings.Exists() {
		r.do(func() (err error) {
			f.Settings, _, err = r.c.Settings(ctx)
			return err
		})
	}
	if l.Survivors.Exists() {
		r.do(func() error {
			s, err := r.c.Survivors(ctx)
			if err == nil {
				f.Survivors = &s
			}
			return err
		})
	}
	for _, o := range newest(l.Statuses, statusesRead) {
		r.do(func() error {
			s, err := r.c.Status(ctx, cluster.NodeID(o.Name))
			if err == nil {
				r.set(func() { f.Own = append(f.Own, health.OwnStatus{Status: s, Written: o.Modified}) })
			}
			return err
		})
	}
}

// newest are the n that were written last, by the store's clock.
func newest(list []catalog.Object, n int) []catalog.Object {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(x, y catalog.Object) int { return y.Modified.Compare(x.Modified) })
	return list[:min(len(list), n)]
}

// commands reads what is queued, oldest first, and what it waits for.
func (r *reading) commands(l catalog.ControlListing) {
	recorded := map[string]bool{}
	for _, o := range l.Operations {
		recorded[o.Name] = true
	}
	list := slices.DeleteFunc(slices.Clone(l.Commands), func(o catalog.Object) bool { return recorded[o.Name] })
	rest := len(list) - commandsRead
	for _, o := range list[:min(len(list), commandsRead)] {
		r.do(func() error {
			cmd, err := r.c.Command(r.ctx, o.Name)
			row := health.Command{Name: o.Name, Kind: "unknown", For: "it can't be read"}
			switch {
			case errors.Is(err, catalog.ErrNotFound):
				return nil
			case err == nil:
				row = waitingCommand(cmd)
			}
			r.set(func() {
				r.f.Waiting = append(r.f.Waiting, row)
				slices.SortFunc(r.f.Waiting, func(x, y health.Command) int { return cmp.Compare(x.Name, y.Name) })
			})
			return err
		})
	}
	if rest > 0 {
		r.set(func() {
			r.f.Problems = append(r.f.Problems, fmt.Sprintf("%d more commands are queued; list-commands shows them", rest))
		})
	}
}

func waitingCommand(cmd catalog.Command) health.Command {
	row := health.Command{Name: cmd.Name, Kind: "restore", Backup: cmd.Backup, For: "a restart of the managers"}
	switch {
	case cmd.Create != nil:
		row.Kind, row.For = "backup", "the leader to see it, and a cluster that serves"
		if p := cmd.Create.Progress; p != nil {
			row.For = "node " + string(p.Node) + " takes it"
			if p.Error != "" {
				row.For = "the next attempt; the last one failed: " + p.Error
			}
		}
	case cmd.Options.Now:
		row.For = "the leader to see it"
	}
	if cmd.Source != nil {
		row.Kind = "recover"
	}
	return row
}

// operations reads the records that were written last: the one under way is among them.
func (r *reading) operations(l catalog.ControlListing) {
	for _, o := range newest(l.Operations, operationsRead) {
		r.do(func() error {
			op, _, err := r.c.Operation(r.ctx, o.Name)
			if err != nil {
				return err
			}
			r.set(func() {
				switch f := r.f; {
				case !op.State.Final():
					f.Running = &op
				case f.Ended == nil || op.Finished.After(f.Ended.Finished):
					f.Ended = &op
				}
			})
			return nil
		})
	}
}

// backups lists the newest ones, and as far back as the last verification is.
func (r *reading) backups() {
	r.do(func() error {
		list, err := r.c.RecentBackups(r.ctx, r.f.Now)
		if err != nil {
			return err
		}
		have := map[string]bool{}
		for _, b := range list.Backups {
			have[b.Name] = true
		}
		if _, tried := list.LastTried(r.f.Now); !tried && len(list.Backups) > 0 {
			more, err := r.c.BackupsFrom(r.ctx, r.f.Now.Add(-verifiedBack), coverSegments,
				func(b catalog.Backup) bool { return !b.ProofAt.IsZero() && !have[b.Name] })
			if err != nil {
				return err
			}
			list.Backups = append(more, list.Backups...)
		}
		r.f.Backups, r.f.BackupsRead = list, true
		return nil
	})
}

// cover finds out what can be restored to the second. That it isn't known is no failure.
func (c *Client) cover(ctx context.Context, f *health.Facts) {
	s, err := c.catalog.Serving(ctx)
	if errors.Is(err, ErrNotFound) {
		return // no changes are kept
	}
	for _, back := range coverBack {
		if err != nil {
			break
		}
		var list []catalog.Backup
		if list, err = c.backupsSince(ctx, f.Now.Add(-back)); err != nil {
			break
		}
		if len(f.Taken) == 0 {
			f.Taken = list
		}
		f.Coverage, err = c.archive.Coverage(ctx, s.Incarnation, list, f.Now.Add(-back), coverSegments)
		if !errors.Is(err, changelog.ErrTooMany) {
			break
		}
		err = nil
		f.CoverageNote = "there are too many segments to be looked at; verify-backup --chain reads them"
	}
	if err != nil {
		f.CoverageNote = "what can be restored to the second was not found out: " + err.Error()
	} else if f.Coverage != nil {
		f.CoverageNote = ""
	}
}

// backupsSince are the backups since a moment, and the one before.
func (c *Client) backupsSince(ctx context.Context, since time.Time) ([]catalog.Backup, error) {
	good := func(b catalog.Backup) bool { return b.HasManifest && b.Sound() }
	before, err := c.catalog.BackupsUntil(ctx, since, 1, good)
	if err != nil {
		return nil, err
	}
	after, err := c.catalog.BackupsFrom(ctx, since, coverSegments, func(catalog.Backup) bool { return true }) // the others are only marked
	if err != nil {
		return nil, err
	}
	if len(before) > 0 && len(after) > 0 && after[0].Name == before[0].Name {
		after = after[1:]
	}
	return append(before, after...), nil
}
