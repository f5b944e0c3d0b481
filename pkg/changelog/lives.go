package changelog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Lives says which life serves, and which others there are.
type Lives struct {
	// Serving is the life that serves; empty if the store doesn't tell.
	Serving catalog.Incarnation
	// From is the revision with which it began, as far as its record tells; 0 if it doesn't.
	From int64
	// Why says in words why it isn't known; empty if it is.
	Why string
}

// ServingLife finds out from the store alone which life serves. The record that whoever keeps the changes has written says it, as
// long as the marker names no other cluster. Else the restore that made the marker's cluster does, or the revisions: a restore
// raises them by so much that the order of lives shows. Where all of that leaves it open, Why says so, and nothing is guessed.
func (a *Archive) ServingLife(ctx context.Context, recent []Known) (Lives, error) {
	token, err := a.markerToken(ctx)
	if err != nil {
		return Lives{}, err
	}
	s, err := a.Catalog.Serving(ctx)
	switch {
	case err == nil && (token == "" || s.Token == "" || s.Token == token):
		return a.livesFrom(ctx, s.Incarnation)
	case err != nil && !errors.Is(err, catalog.ErrNotFound) && !recordUnusable(err):
		return Lives{}, err
	}
	records, problems, err := a.Catalog.Incarnations(ctx)
	if err != nil {
		return Lives{}, err
	}
	if token != "" {
		op, err := a.restoreOf(ctx, token)
		if err != nil {
			return Lives{}, err
		}
		if op != "" {
			for _, r := range records {
				if r.Origin != nil && r.Origin.Operation == op {
					return Lives{Serving: r.ID, From: r.Revision}, nil
				}
			}
			return Lives{Why: fmt.Sprintf("restore %s has begun another incarnation, of which nothing is in the store yet", op)}, nil
		}
	}
	if len(problems) > 0 { // it may be the one that serves
		return Lives{Why: problems[0].Err.Error()}, nil
	}
	return livesByRevision(records, recent), nil
}

func (a *Archive) livesFrom(ctx context.Context, id catalog.Incarnation) (Lives, error) {
	r, err := a.Catalog.Incarnation(ctx, id)
	switch {
	case err == nil, errors.Is(err, catalog.ErrNotFound), recordUnusable(err):
		return Lives{Serving: id, From: r.Revision}, nil
	}
	return Lives{}, err
}

// markerToken is the token of the cluster that was formed, or restored last; empty where the marker tells none.
func (a *Archive) markerToken(ctx context.Context) (cluster.Token, error) {
	m, _, err := a.Catalog.Marker(ctx)
	switch {
	case err == nil:
		return m.Token, nil
	case errors.Is(err, catalog.ErrNotFound), errors.Is(err, cluster.ErrCorrupt), errors.Is(err, cluster.ErrFuture):
		return "", nil
	}
	return "", err
}

// restoreOf is the restore that made the cluster of a token; empty if none that is known did.
func (a *Archive) restoreOf(ctx context.Context, token cluster.Token) (string, error) {
	ops, _, err := a.Catalog.Operations(ctx)
	if err != nil {
		return "", err
	}
	for _, op := range ops {
		if op.NewToken == token && op.Kind == catalog.KindRestore {
			return op.ID, nil
		}
	}
	return "", nil
}

// restoreGap is the least by which the revisions of two lives differ of which the one came out of a restore of the other:
// half of what a restore raises them by, as the rest may have been written since.
const restoreGap = 500_000_000

// livesByRevision decides by the revisions that are known of each life.
func livesByRevision(records []catalog.IncarnationRecord, recent []Known) Lives {
	type span struct{ low, high int64 }
	spans := map[catalog.Incarnation]span{}
	note := func(id catalog.Incarnation, low, high int64) {
		s, ok := spans[id]
		if !ok || low < s.low {
			s.low = low
		}
		s.high = max(s.high, high)
		spans[id] = s
	}
	for _, r := range records {
		note(r.ID, r.Revision, r.Revision)
	}
	for _, k := range recent {
		if k.Life != "" {
			note(k.Life, k.revision(), k.most())
		}
	}
	if len(spans) == 0 {
		return Lives{Why: "no backup in the store names its cluster"}
	}
	var top catalog.Incarnation
	for id, s := range spans {
		if top == "" || cmp.Or(cmp.Compare(s.high, spans[top].high), strings.Compare(string(id), string(top))) > 0 {
			top = id
		}
	}
	for id, s := range spans {
		if id != top && s.high > spans[top].low-restoreGap {
			return Lives{Why: fmt.Sprintf("the store has changes or backups of the incarnations %s and %s, and nothing that shows which one serves", top, id)}
		}
	}
	return Lives{Serving: top, From: spans[top].low}
}

// lifeFinder finds the lives of backups, and reads each record once.
type lifeFinder struct {
	c       *catalog.Catalog
	names   []catalog.Incarnation
	listed  bool
	records map[catalog.Incarnation]*catalog.IncarnationRecord
	// unknown are the records that can't be used.
	unknown map[catalog.Incarnation]error
}

// at is the incarnation that a cluster lived in at a moment: the last one that had begun; empty if a record that can't be used would
// have to tell. What another one's changes would be put on would become what never was.
func (f *lifeFinder) at(ctx context.Context, clusterID uint64, at time.Time) (catalog.Incarnation, error) {
	if !f.listed {
		names, err := f.c.IncarnationNames(ctx)
		if err != nil {
			return "", err
		}
		f.names, f.listed = names, true
		f.records, f.unknown = map[catalog.Incarnation]*catalog.IncarnationRecord{}, map[catalog.Incarnation]error{}
	}
	for _, n := range slices.Backward(livesAmong(f.names, clusterID)[1:]) {
		r, err := f.record(ctx, lifeName(clusterID, n))
		if recordUnusable(err) {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		if r != nil && r.Holds(at) {
			return r.ID, nil
		}
	}
	return lifeName(clusterID, 1), nil
}

// record is nil if there is none.
func (f *lifeFinder) record(ctx context.Context, id catalog.Incarnation) (*catalog.IncarnationRecord, error) {
	if r, ok := f.records[id]; ok {
		return r, nil
	}
	if err, ok := f.unknown[id]; ok {
		return nil, err
	}
	r, err := f.c.Incarnation(ctx, id)
	switch {
	case err == nil:
		f.records[id] = &r
	case errors.Is(err, catalog.ErrNotFound):
		f.records[id] = nil
	case recordUnusable(err):
		f.unknown[id] = err
		return nil, err
	default:
		return nil, err
	}
	return f.records[id], nil
}
