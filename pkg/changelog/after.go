package changelog

import (
	"context"
	"slices"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// After is the first good backup behind a revision or a time; nil if there is none, or the target is neither.
func (a *Archive) After(ctx context.Context, t Target) (*Known, error) {
	var list []catalog.Backup
	switch {
	case t.Revision > 0:
		all, err := a.stored(ctx, t)
		if err != nil {
			return nil, err
		}
		if list, err = a.withHigher(ctx, all.soundWith(), t.Revision); err != nil {
			return nil, err
		}
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
