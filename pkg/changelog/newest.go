package changelog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// recentAsked is how many of the last backups are asked for their life and revision: the last by name, by the store's
// clock, and those dated in the future, each.
const recentAsked = candidatesAsked

// manifestsAtOnce is how many manifests are read at the same time.
const manifestsAtOnce = 8

// Known is a backup with what its manifest says of it.
type Known struct {
	catalog.Backup
	// Manifest is nil if it has none, or none that can be used.
	Manifest *catalog.Manifest
	// Life is the incarnation that it is of; empty if nobody knows: another tool has made it, or it was imported.
	Life catalog.Incarnation
	// problem says why the manifest can't be used.
	problem error
}

// compareKnown orders backups of one life by revision, and by time only where the revision leaves it open.
func compareKnown(a, b Known) int {
	return cmp.Or(cmp.Compare(a.revision(), b.revision()), cmp.Compare(a.most(), b.most()), a.At().Compare(b.At()),
		strings.Compare(a.Name, b.Name))
}

func (k Known) revision() int64 {
	if k.Manifest == nil {
		return 0
	}
	return k.Manifest.Revision
}

func (k Known) most() int64 {
	if k.Manifest == nil {
		return 0
	}
	return max(k.Manifest.Revision, k.Manifest.RevisionAtMost)
}

// manifests reads those of some backups. What the store refuses is an error; a manifest that can't be used makes only its backup unknown.
func (a *Archive) manifests(ctx context.Context, backups []catalog.Backup) ([]Known, error) {
	list := make([]Known, len(backups))
	errs := make([]error, len(backups))
	slots := make(chan struct{}, manifestsAtOnce)
	var wg sync.WaitGroup
	for i, b := range backups {
		list[i] = Known{Backup: b}
		if !b.HasManifest {
			continue
		}
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			m, err := a.Catalog.Manifest(ctx, b.Name)
			switch {
			case err == nil:
				list[i].Manifest = m
			case errors.Is(err, cluster.ErrCorrupt), errors.Is(err, cluster.ErrFuture), errors.Is(err, catalog.ErrNotFound):
				list[i].problem = err
			default:
				errs[i] = err
			}
		})
	}
	wg.Wait()
	return list, errors.Join(errs...)
}

// know reads the manifests of some backups and finds out which lives they are of.
func (a *Archive) know(ctx context.Context, backups []catalog.Backup) ([]Known, error) {
	list, err := a.manifests(ctx, backups)
	if err != nil {
		return nil, err
	}
	lives := lifeFinder{c: a.Catalog}
	for i := range list {
		m := list[i].Manifest
		if m == nil || m.ClusterID == 0 {
			continue
		}
		id, err := lives.at(ctx, uint64(m.ClusterID), m.Started)
		if err != nil {
			return nil, err
		}
		list[i].Life = id
	}
	return list, nil
}

// LifeOf is the life of a backup; empty if nobody knows, also because it is gone.
func (a *Archive) LifeOf(ctx context.Context, name string) (catalog.Incarnation, error) {
	k, err := a.know(ctx, []catalog.Backup{{Name: name, HasManifest: true}})
	if err != nil {
		return "", err
	}
	return k[0].Life, nil
}

// HighestRevision is the highest one that any of the last backups may have, of whatever life: clients may have seen it. It takes one or two
// listings and some manifests, however much is kept. Older backups of lives that restores have ended don't count:
// the records of those restores name higher revisions, and whoever restores must look at them too.
func (a *Archive) HighestRevision(ctx context.Context) (most int64, err error) {
	now := time.Now()
	list, err := a.Catalog.RecentBackups(ctx, now)
	if err != nil {
		return 0, err
	}
	recent, err := a.manifests(ctx, list.Recent(now, recentAsked))
	for _, k := range recent {
		most = max(most, k.most())
	}
	return most, err
}

// CopyOf is the manifest of a good backup that has all of a cluster up to its newest revision; nil if there is none among the last backups,
// which one or two listings find.
func (a *Archive) CopyOf(ctx context.Context, clusterName string, clusterID uint64, revision int64) (*catalog.Manifest, error) {
	list, err := a.Catalog.RecentBackups(ctx, time.Now())
	if err != nil {
		return nil, err
	}
	recent, err := a.know(ctx, list.Recent(time.Now(), recentAsked))
	if err != nil {
		return nil, err
	}
	life, err := lifeAt(ctx, a.Catalog, clusterID, time.Now())
	if err != nil {
		return nil, err
	}
	for _, k := range slices.Backward(recent) {
		m := k.Manifest
		if k.Sound() && m != nil && m.ClusterName == clusterName && uint64(m.ClusterID) == clusterID &&
			k.Life == life && m.Revision == revision {
			return m, nil
		}
	}
	return nil, nil
}

// ForProof is what ToProve needs of the list of backups, and the one that was tried last. It lists all and holds few.
func (a *Archive) ForProof(ctx context.Context, now time.Time) (catalog.BackupList, error) {
	list, _, err := a.Catalog.LastBackups(ctx, now, recentAsked)
	return list, err
}

// ToProve is the backup that is to be proven next: of the good ones of the life that serves the
// newest that was never tried, or else the newest. Where it isn't known which life serves, all
// lives count. It is empty if there is no good backup.
func (a *Archive) ToProve(ctx context.Context, list catalog.BackupList, now time.Time) (string, error) {
	recent, err := a.know(ctx, list.Recent(now, recentAsked))
	if err != nil {
		return "", err
	}
	lives, err := a.ServingLife(ctx, recent)
	if err != nil {
		return "", err
	}
	sound := slices.DeleteFunc(recent, func(k Known) bool { return !k.Sound() })
	if own := ofLife(sound, lives.Serving); lives.Serving != "" && len(own) > 0 {
		sound = own
	}
	if len(sound) == 0 {
		return "", nil
	}
	untried := func(k Known) int {
		if k.ProofAt.IsZero() {
			return 1
		}
		return 0
	}
	return slices.MaxFunc(sound, func(x, y Known) int { return cmp.Or(cmp.Compare(untried(x), untried(y)), compareKnown(x, y)) }).Name, nil
}

// Lost is what the store has of the life that serves, where a plan goes to another one.
type Lost struct {
	// From is the revision with which it began, Began when, both as far as its record tells.
	From  int64
	Began time.Time
	// Reach is the newest revision of it in the store, Until when it is known to have been the newest; 0 if there is nothing.
	Reach int64
	Until time.Time
	// Backup is its good backup with the highest revision; empty if there is none.
	Backup string
}

// LostWith says what of the life that serves a plan gives up; nil if it is the plan's own, or isn't known.
func (a *Archive) LostWith(ctx context.Context, p *Plan) (*Lost, error) {
	if p.Serving == "" || p.Serving == p.Incarnation {
		return nil, nil
	}
	lost := &Lost{}
	r, err := a.Catalog.Incarnation(ctx, p.Serving)
	if err == nil {
		lost.From, lost.Began = r.Revision, r.Began
	} else if !errors.Is(err, catalog.ErrNotFound) && !unreadable(err) {
		return nil, err
	}
	if own := slices.DeleteFunc(ofLife(p.recent, p.Serving), func(k Known) bool { return !k.Sound() }); len(own) > 0 {
		k := slices.MaxFunc(own, compareKnown)
		lost.Backup, lost.Reach, lost.Until = k.Name, k.revision(), k.Manifest.Started
	}
	s, err := newestSegment(ctx, a.Catalog, p.Serving, lost.Reach)
	if err != nil {
		return nil, err
	}
	if s.Sum != "" && s.Last >= lost.Reach {
		lost.Reach, lost.Until = s.Last, s.Ended
	}
	return lost, nil
}

// Newest is the answer to the question for the newest good backup of the life that serves.
type Newest struct {
	Known
	// Notes say in words what was passed over and may be meant: backups dated in the future, or of unknown life.
	Notes []string
}

// UndecidedError says that it is not known which backup is the newest, and which may be meant. It is permanent: cluster.ErrPermanent.
type UndecidedError struct {
	Reason string
	// Candidates are the newest good backup of each life, and of those whose life nobody knows; the last one written first.
	Candidates []Known
}

// Error says why, and names the candidates.
func (e *UndecidedError) Error() string {
	s := "it isn't known which backup is the newest: " + e.Reason
	for i, c := range e.Candidates {
		sep := ", "
		if i == 0 {
			sep = "; name one of them: "
		}
		s += sep + c.Name + " (" + c.describe() + ")"
	}
	return s
}

// Unwrap gives cluster.ErrPermanent.
func (e *UndecidedError) Unwrap() error { return cluster.ErrPermanent }

func (k Known) describe() string {
	switch {
	case k.Life != "":
		return fmt.Sprintf("incarnation %s, revision %d", k.Life, k.revision())
	case k.Manifest != nil:
		return fmt.Sprintf("imported, revision %d", k.revision())
	}
	return "of another tool, so its incarnation and revision aren't known"
}

// NewestGood is the newest good backup of the life that serves. Good is what no proof has found
// bad. Where the store doesn't tell which life serves, or a backup whose life nobody knows is
// younger than all of that life, it is an *UndecidedError. In a store in which no backup tells its
// life it is the youngest one. It is catalog.ErrNotFound if there is no backup at all.
func (a *Archive) NewestGood(ctx context.Context, list catalog.BackupList, now time.Time) (Newest, error) {
	recent, err := a.know(ctx, list.Recent(now, recentAsked))
	if err != nil {
		return Newest{}, err
	}
	if len(recent) == 0 {
		return Newest{}, fmt.Errorf("there is no backup: %w", catalog.ErrNotFound)
	}
	sound := soundOnly(recent)
	lives, err := a.ServingLife(ctx, recent)
	if err != nil {
		return Newest{}, err
	}
	n := Newest{Notes: futureNotes(list, now)}
	if lives.Serving == "" && !slices.ContainsFunc(recent, func(k Known) bool { return k.Life != "" }) {
		n.Known = slices.MaxFunc(sound, func(x, y Known) int { return cmp.Or(compareYoung(x, y, now), compareKnown(x, y)) })
		return n, nil
	}
	if lives.Serving == "" {
		return Newest{}, &UndecidedError{Reason: lives.Why, Candidates: eachLife(sound)}
	}
	own := ofLife(sound, lives.Serving)
	if len(own) == 0 {
		return Newest{}, &UndecidedError{Reason: fmt.Sprintf("incarnation %s serves, and no good backup of it is among the last ones",
			lives.Serving), Candidates: eachLife(sound)}
	}
	n.Known = slices.MaxFunc(own, compareKnown)
	for _, k := range sound {
		if k.Life != "" || !k.At().After(n.At()) {
			continue
		}
		if k.Manifest == nil && !k.HasManifest {
			return Newest{}, &UndecidedError{Reason: fmt.Sprintf("%s is younger than all backups of incarnation %s, which serves",
				k.Name, lives.Serving), Candidates: eachLife(sound)}
		}
		if k.problem != nil {
			n.Notes = append(n.Notes, fmt.Sprintf("%s is younger, and can't be used: %v", k.Name, k.problem))
		} else {
			n.Notes = append(n.Notes, fmt.Sprintf("%s is younger, but was imported, so it is not of the cluster that serves", k.Name))
		}
	}
	return n, nil
}

// compareYoung orders by time; what is dated in the future comes before all else.
func compareYoung(a, b Known, now time.Time) int {
	future := func(k Known) int {
		if k.At().After(now.Add(catalog.FutureSlack)) {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(future(a), future(b)), a.At().Compare(b.At()), strings.Compare(a.Name, b.Name))
}

// futureShown is how many backups dated in the future are named.
const futureShown = 3

func futureNotes(list catalog.BackupList, now time.Time) []string {
	names := list.DatedInFuture(now)
	if len(names) == 0 {
		return nil
	}
	more := ""
	if n := len(names) - futureShown; n > 0 {
		more = fmt.Sprintf(" and %d more", n)
	}
	return []string{fmt.Sprintf("dated in the future, because a clock is or was wrong: %s%s",
		strings.Join(names[:min(len(names), futureShown)], ", "), more)}
}

// soundOnly leaves out what was found bad, unless nothing else is there.
func soundOnly(list []Known) []Known {
	out := slices.DeleteFunc(slices.Clone(list), func(k Known) bool { return !k.Sound() })
	if len(out) == 0 {
		return list
	}
	return out
}

func ofLife(list []Known, life catalog.Incarnation) []Known {
	return slices.DeleteFunc(slices.Clone(list), func(k Known) bool { return k.Life != life })
}

// eachLife picks the newest one of each life, and of those of unknown life; the last one written first.
func eachLife(list []Known) []Known {
	best := map[catalog.Incarnation]Known{}
	for _, k := range list {
		if have, ok := best[k.Life]; !ok || k.Life != "" && compareKnown(k, have) > 0 || k.Life == "" && k.At().After(have.At()) {
			best[k.Life] = k
		}
	}
	var out []Known
	for _, k := range best {
		out = append(out, k)
	}
	slices.SortFunc(out, func(x, y Known) int {
		return cmp.Or(y.Modified.Compare(x.Modified), strings.Compare(y.Name, x.Name))
	})
	return out
}
