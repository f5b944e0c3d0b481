package changelog

import (
	"context"
	"errors"
	"slices"
	"sort"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// laterThan tells whether a backup is of a later revision; known is false if its manifest can't be used.
func (a *Archive) laterThan(ctx context.Context, name string, revision int64) (later, known bool, err error) {
	m, err := a.Catalog.Manifest(ctx, name)
	switch {
	case err == nil:
		return m.Revision > revision, true, nil
	case errors.Is(err, cluster.ErrCorrupt), errors.Is(err, cluster.ErrFuture), errors.Is(err, catalog.ErrNotFound):
		return false, false, nil
	}
	return false, false, err
}

// nearRevision are the backups around a revision where only the first and the last of very many are known: it halves the time between
// them, and asks one backup each time.
func (a *Archive) nearRevision(ctx context.Context, list []catalog.Backup, revision int64) ([]catalog.Backup, error) {
	sound := slices.ContainsFunc(list, catalog.Backup.Sound)
	want := func(b catalog.Backup) bool { return b.HasManifest && (b.Sound() || !sound) }
	var from, to time.Time
	for _, b := range list {
		if b.Time.IsZero() {
			continue
		}
		if from.IsZero() || b.Time.Before(from) {
			from = b.Time
		}
		if b.Time.After(to) {
			to = b.Time
		}
	}
	var failed error
	seconds := sort.Search(int(to.Sub(from)/time.Second)+1, func(i int) bool {
		var some []catalog.Backup
		if failed == nil {
			some, failed = a.Catalog.BackupsFrom(ctx, from.Add(time.Duration(i)*time.Second), candidatesAsked, want)
		}
		for _, b := range some {
			var later, known bool
			if later, known, failed = a.laterThan(ctx, b.Name, revision); failed != nil || known {
				return failed != nil || later
			}
		}
		return true
	})
	if failed != nil {
		return nil, failed
	}
	// Several may be of that second, so one more second is looked at.
	return a.Catalog.BackupsUntil(ctx, from.Add(time.Duration(seconds)*time.Second), candidatesAsked, want)
}
