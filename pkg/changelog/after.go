package changelog

import (
	"context"
	"errors"
	"slices"
	"sort"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// After is the first good backup behind a revision or a time; nil if there is none, or the target is neither.
func (a *Archive) After(ctx context.Context, t Target) (*Known, error) {
	var list []catalog.Backup
	switch {
	case t.Revision > 0:
		all, err := a.Catalog.Backups(ctx)
		if err != nil {
			return nil, err
		}
		list = soundWith(all).Backups
		n, err := a.behindRevision(ctx, list, t.Revision)
		if err != nil {
			return nil, err
		}
		list = list[n:]
	case !t.Time.IsZero():
		var err error
		list, err = a.Catalog.BackupsFrom(ctx, t.Time, candidatesAsked,
			func(b catalog.Backup) bool { return b.HasManifest && b.Sound() && b.Time.After(t.Time) })
		if err != nil {
			return nil, err
		}
	}
	known, err := a.know(ctx, list[:min(len(list), candidatesAsked)])
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(known, func(k Known) bool {
		return k.Manifest != nil && (t.Life == "" || k.Life == t.Life) && k.revision() >= t.Revision
	})
	if i < 0 {
		return nil, nil
	}
	return &known[i], nil
}

// behindRevision is the index of the first backup with a higher revision, where revisions grow with the names.
func (a *Archive) behindRevision(ctx context.Context, list []catalog.Backup, revision int64) (n int, err error) {
	n = sort.Search(len(list), func(i int) bool {
		for ; i < len(list); i++ { // one whose manifest can't be used says nothing; the next one does
			m, merr := a.Catalog.Manifest(ctx, list[i].Name)
			if merr == nil {
				return m.Revision > revision
			}
			if !errors.Is(merr, cluster.ErrCorrupt) && !errors.Is(merr, cluster.ErrFuture) && !errors.Is(merr, catalog.ErrNotFound) {
				err = merr
				return true
			}
		}
		return true
	})
	return n, err
}
