package changelog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
)

// Wanted says which values are wanted.
type Wanted struct {
	// Key is a key, or what all keys begin with if Prefix is true.
	Key    string
	Prefix bool
	// Match, if not nil, picks keys among those that begin with the prefix.
	Match func(key []byte) bool
	// Dying, if not nil, tells of a value whether its object was being deleted already. Of such a key the last value before that is kept
	// too, if Prefix is true.
	Dying func(value []byte) (time.Time, bool)
}

// dying tells whether the object of a key was being deleted.
func (w Wanted) dying(kv *mvccpb.KeyValue) bool {
	if w.Dying == nil {
		return false
	}
	_, is := w.Dying(kv.Value)
	return is
}

func (w Wanted) match(key []byte) bool {
	if !w.Prefix {
		return string(key) == w.Key
	}
	return strings.HasPrefix(string(key), w.Key) && (w.Match == nil || w.Match(key))
}

// Fetching says how a backup is read, if one has to be.
type Fetching struct {
	// Executable is a program that has database.ValuesCommand as a hidden subcommand: a process of its own reads the database.
	Executable string
	// Dir is where the decompressed backup stands for a while, in a directory of its own. Fetch
	// brings it to a path at which nothing stands.
	Dir   string
	Fetch func(ctx context.Context, backup, path string) error
}

// Extracted is what was there at a point.
type Extracted struct {
	// Plan says how the point was reached. Revision is the point.
	Plan *Plan
	// Values are sorted by key.
	Values []*mvccpb.KeyValue
	// Before has, by key, what values that were being deleted were before that, as far as it lies behind the backup.
	Before map[string]*mvccpb.KeyValue
	// FromBackup is true if the backup itself was read; a single key that was changed behind it doesn't need that.
	FromBackup bool
}

// AbsentError says that a key wasn't there. It is catalog.ErrNotFound.
type AbsentError struct {
	Key      string
	Revision int64
	// Deleted is the deletion that took it away; its revision is 0 if it wasn't there before
	// either, or the deletion is older than the backup.
	Deleted Happened
}

// Error says so, and how to have it as it was.
func (e *AbsentError) Error() string {
	s := fmt.Sprintf("%s isn't there at revision %d", e.Key, e.Revision)
	if d := e.Deleted; d.Revision != 0 {
		s += fmt.Sprintf(": it was deleted by revision %d, at %s; use --at-revision=%d for its value before that",
			d.Revision, d.Time.Format(moment), d.Revision-1)
	}
	return s
}

// Unwrap gives catalog.ErrNotFound.
func (e *AbsentError) Unwrap() error { return catalog.ErrNotFound }

// Extract reads a key, or all keys of a prefix, as they were at a point. All values are held in
// memory. For a single key it looks into the changes first, the newest first, and fetches the
// backup only if it was not changed since. A single key that isn't there is an *AbsentError.
func (a *Archive) Extract(ctx context.Context, t Target, w Wanted, f Fetching) (*Extracted, error) {
	p, err := a.Plan(ctx, t)
	if err != nil {
		return nil, err
	}
	x := &Extracted{Plan: p}
	if !w.Prefix {
		e, err := a.newestChange(ctx, p, w)
		switch {
		case err != nil:
			return nil, err
		case e != nil && e.Deleted:
			return nil, &AbsentError{Key: w.Key, Revision: p.Revision, Deleted: happened(*e)}
		case e != nil:
			x.Values = []*mvccpb.KeyValue{e.keyValue()}
			return x, nil
		}
	}
	x.FromBackup = true
	state, err := a.baseValues(ctx, p, w, f)
	if err != nil {
		return nil, err
	}
	if w.Prefix {
		x.Before = map[string]*mvccpb.KeyValue{}
		if err := a.bringForward(ctx, p, w, state, x.Before); err != nil {
			return nil, err
		}
	}
	for _, kv := range state {
		x.Values = append(x.Values, kv)
	}
	slices.SortFunc(x.Values, func(a, b *mvccpb.KeyValue) int { return strings.Compare(string(a.Key), string(b.Key)) })
	if !w.Prefix && len(x.Values) == 0 {
		return nil, &AbsentError{Key: w.Key, Revision: p.Revision}
	}
	return x, nil
}

func (e Event) keyValue() *mvccpb.KeyValue {
	return &mvccpb.KeyValue{Key: e.Key, Value: e.Value, CreateRevision: e.CreateRevision, ModRevision: e.Revision,
		Version: e.Version, Lease: e.Lease}
}

// newestChange is the last one of a key up to the plan's revision; nil if there is none behind the backup.
func (a *Archive) newestChange(ctx context.Context, p *Plan, w Wanted) (*Event, error) {
	list := slices.Clone(p.Chain.Segments)
	slices.Reverse(list)
	list = slices.DeleteFunc(list, func(s catalog.Segment) bool { return s.Last < s.First || s.First > p.Revision })
	var found *Event
	var lowest int64
	var looked Happened
	_, err := a.segmentsBackwards(ctx, list, Range{To: p.Revision, Match: w.match}, &lowest, &looked,
		func(events []Event, _ time.Time) bool {
			if n := len(events); n > 0 && events[n-1].Note == "" {
				found = &events[n-1]
			}
			return found == nil
		})
	return found, err
}

// baseValues are those of the backup. What came later than the plan's revision is passed over, as a
// snapshot can be a little ahead of what its manifest promises.
func (a *Archive) baseValues(ctx context.Context, p *Plan, w Wanted, f Fetching) (_ map[string]*mvccpb.KeyValue, err error) {
	dir, err := os.MkdirTemp(f.Dir, "etcd-extract-")
	if err != nil {
		return nil, fmt.Errorf("make temporary directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	path := filepath.Join(dir, "snapshot.db")
	if err := f.Fetch(ctx, p.Base, path); err != nil {
		return nil, err
	}
	state := map[string]*mvccpb.KeyValue{}
	err = database.Values(ctx, f.Executable, path, database.ValuesOptions{Prefix: []byte(w.Key), Revision: p.Revision},
		func(kv *mvccpb.KeyValue) error {
			if w.match(kv.Key) {
				state[string(kv.Key)] = kv
			}
			return nil
		})
	if err != nil {
		return nil, fmt.Errorf("backup %s: %w", p.Base, err)
	}
	return state, nil
}

// bringForward applies the plan's changes in their order. before gets what dying values were before.
func (a *Archive) bringForward(ctx context.Context, p *Plan, w Wanted, state, before map[string]*mvccpb.KeyValue) error {
	behind := p.Chain.Base
	r := Range{To: p.Revision, Match: w.match}
	needed := slices.DeleteFunc(slices.Clone(p.Chain.Segments), func(s catalog.Segment) bool { return !hasChanges(s, p.Revision) })
	for c, err := range a.contents(ctx, needed) {
		if err != nil {
			return err
		}
		events, err := a.events(ctx, c, r, behind)
		if err != nil {
			return err
		}
		behind = max(behind, c.Segment.Last)
		for _, e := range events {
			have := state[string(e.Key)]
			switch {
			case have != nil && have.ModRevision >= e.Revision: // the backup is ahead
			case e.Deleted:
				delete(state, string(e.Key))
				delete(before, string(e.Key))
			default:
				kv := e.keyValue()
				switch {
				case !w.dying(kv):
					delete(before, string(e.Key))
				case have != nil && !w.dying(have):
					before[string(e.Key)] = have
				}
				state[string(e.Key)] = kv
			}
		}
	}
	return nil
}
