package changelog

import (
	"context"
	"errors"
	"slices"
	"sort"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// stored is what a plan needs of the list of backups.
type stored struct {
	catalog.BackupList
	// whole is whether these are all, and not only the last ones and the one that is named.
	whole bool
}

// stored lists the backups. Of very many only those are held that every plan looks at: near finds the others.
func (a *Archive) stored(ctx context.Context, t Target) (stored, error) {
	list, whole, err := a.Catalog.LastBackups(ctx, time.Now(), recentAsked)
	if err != nil || t.Backup == "" || catalog.ValidBackupName(t.Backup) != nil || slices.Contains(list.Names(), t.Backup) {
		return stored{list, whole}, err
	}
	b, err := a.Catalog.BackupNamed(ctx, t.Backup)
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		return stored{list, whole}, nil
	case err != nil:
		return stored{}, err
	}
	list.Backups = append([]catalog.Backup{b}, list.Backups...)
	return stored{list, whole}, nil
}

// soundWith are the good ones with a manifest. s is not to be used any more.
func (s stored) soundWith() stored {
	s.Backups = slices.DeleteFunc(s.Backups, func(b catalog.Backup) bool { return !b.HasManifest || !b.Sound() })
	return s
}

// wanted tells which backups of the store are of the kind that the list has: with a manifest, and good ones if any of these is.
func (s stored) wanted() func(catalog.Backup) bool {
	sound := slices.ContainsFunc(s.Backups, catalog.Backup.Sound)
	return func(b catalog.Backup) bool { return b.HasManifest && (b.Sound() || !sound) }
}

// near are the backups around a target, by name. Times and revisions mostly grow with the names; where a clock was wrong
// they don't, so what is found is only where to look. all are those that will do.
func (a *Archive) near(ctx context.Context, all stored, t Target) ([]catalog.Backup, error) {
	list := all.Backups
	if t.Backup != "" {
		return list, nil
	}
	n := len(list)
	switch {
	case !t.Time.IsZero() && !all.whole:
		return a.Catalog.BackupsUntil(ctx, t.Time, candidatesAsked, all.wanted())
	case !t.Time.IsZero():
		n = sort.Search(len(list), func(i int) bool { return list[i].Time.After(t.Time) })
	case t.Revision > 0 && !all.whole:
		higher, err := a.timeBehind(ctx, t.Revision, all.wanted())
		if err != nil {
			return nil, err
		}
		return a.Catalog.BackupsUntil(ctx, higher, candidatesAsked, all.wanted())
	case t.Revision > 0:
		var err error
		if n, err = a.indexBehind(ctx, list, t.Revision); err != nil {
			return nil, err
		}
	}
	return slices.Clone(list[max(0, n-candidatesAsked):n]), nil
}

// withHigher are backups with a higher revision, from the first one on, where revisions grow with the names. Of very many it has only so
// many as are asked for one to begin with.
func (a *Archive) withHigher(ctx context.Context, all stored, revision int64) ([]catalog.Backup, error) {
	if !all.whole {
		higher, err := a.timeBehind(ctx, revision, all.wanted())
		if err != nil {
			return nil, err
		}
		return a.Catalog.BackupsFrom(ctx, higher, candidatesAsked, all.wanted())
	}
	n, err := a.indexBehind(ctx, all.Backups, revision)
	return all.Backups[min(n, len(all.Backups)):], err
}

// indexBehind is the index of the first backup with a higher revision, where revisions grow with the names. Where those at the end say
// nothing, since their manifests can't be used, it is that of the first of these.
func (a *Archive) indexBehind(ctx context.Context, list []catalog.Backup, revision int64) (int, error) {
	return a.asked().indexBehind(ctx, list, revision)
}

// askedRevisions remembers during one search what the manifests say.
type askedRevisions struct {
	*Archive
	known map[string]int64 // by backup; silent if its manifest can't be used
}

const silent = -1

func (a *Archive) asked() *askedRevisions { return &askedRevisions{a, map[string]int64{}} }

// of is the revision of a backup, or silent.
func (r *askedRevisions) of(ctx context.Context, name string) (int64, error) {
	if n, ok := r.known[name]; ok {
		return n, nil
	}
	m, err := r.Catalog.Manifest(ctx, name)
	switch {
	case err == nil:
		r.known[name] = m.Revision
	case unreadable(err), errors.Is(err, catalog.ErrNotFound):
		r.known[name] = silent
	default:
		return 0, err
	}
	return r.known[name], nil
}

func (r *askedRevisions) indexBehind(ctx context.Context, list []catalog.Backup, revision int64) (n int, err error) {
	n = sort.Search(len(list), func(i int) bool {
		higher, herr := r.higher(ctx, list[i:], revision)
		if herr != nil {
			err = herr
		}
		return higher
	})
	return n, err
}

// higher tells whether the first backup of a list has a higher revision. One whose manifest can't be used says nothing, and the next
// one does; if none can be used, it is true.
func (r *askedRevisions) higher(ctx context.Context, list []catalog.Backup, revision int64) (bool, error) {
	i, err := r.speaks(ctx, list)
	return err != nil || i == len(list) || r.known[list[i].Name] > revision, err
}

// speaks is the index of the first backup whose manifest can be used, or the length of the list.
func (r *askedRevisions) speaks(ctx context.Context, list []catalog.Backup) (int, error) {
	for i, b := range list {
		if n, err := r.of(ctx, b.Name); err != nil || n != silent {
			return i, err
		}
	}
	return len(list), nil
}

// pageAsked is how many backups timeBehind lists at once: about as many as a store lists with one request.
const pageAsked = 256

// timeBehind is a time that comes after all backups up to a revision, and not after the first one with a higher revision, where revisions
// grow with the names. However many backups there are, it holds few, and takes a few requests more each time they double.
func (a *Archive) timeBehind(ctx context.Context, revision int64, want func(catalog.Backup) bool) (time.Time, error) {
	asked := a.asked()
	// In seconds: before low none has a higher revision, and the first one from high on has, if there is one. It ends in 2242.
	low, high := int64(0), int64(1)<<33
	s := timeSearch{revision: revision}
	for low < high {
		try := s.next(low, high)
		page, err := a.Catalog.BackupsFrom(ctx, time.Unix(try, 0), pageAsked, want)
		if err != nil {
			return time.Time{}, err
		}
		higher, err := asked.higher(ctx, page, revision)
		if err != nil {
			return time.Time{}, err
		}
		if higher {
			high, s.atHigh = try, asked.first(page)
			continue
		}
		n := len(page)
		if last, err := asked.of(ctx, page[n-1].Name); err != nil {
			return time.Time{}, err
		} else if last == silent || last > revision {
			if n, err = asked.indexBehind(ctx, page, revision); err != nil {
				return time.Time{}, err
			}
		}
		// Where the rest of the page says nothing, what is behind the page decides.
		if next, err := asked.speaks(ctx, page[n:]); err != nil || n+next < len(page) {
			return page[min(n+next, len(page)-1)].Time, err
		}
		low = max(page[n-1].Time.Unix(), low+1) // others of this second may be behind the page
		s.atLow, s.page = asked.known[page[n-1].Name], page[n-1].Time.Unix()-page[0].Time.Unix()
	}
	return time.Unix(high, 0).UTC(), nil
}

// first is the revision of the first backup of a list of which that was asked; silent if none was.
func (r *askedRevisions) first(list []catalog.Backup) int64 {
	for _, b := range list {
		if n, ok := r.known[b.Name]; ok && n != silent {
			return n
		}
	}
	return silent
}

// timeSearch chooses where a revision is looked for, in seconds: the oldest backups first, then the newest ones, and then where it would
// be if revisions grew evenly; every other time in the middle, as they may not.
type timeSearch struct {
	revision int64
	tries    int
	// atLow and atHigh are the revisions at the ends, silent or 0 if not known; page is how many seconds the last page covered.
	atLow, atHigh, page int64
}

func (s *timeSearch) next(low, high int64) int64 {
	s.tries++
	now, try := time.Now().Unix(), low+(high-low)/2
	switch {
	case s.tries == 1:
		return low
	case s.tries == 2:
		try = now - s.page // the newest ones
	case low < now && now < high:
		try = now
	case s.tries%2 == 1 && s.atLow > 0 && s.atHigh > s.atLow && s.revision >= s.atLow:
		// Half a page before, so that the page has it.
		try = low + int64(float64(high-low)*float64(s.revision-s.atLow)/float64(s.atHigh-s.atLow)) - s.page/2
	}
	return min(max(try, low), high-1)
}
