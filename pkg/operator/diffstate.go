package operator

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/operator/database"
	"github.com/etcd-manager/etcd-manager/pkg/operator/extsort"
)

// sortMemory is how much each of the two sorts holds in memory, in bytes.
const sortMemory = 48 << 20

// differ is one comparison.
type differ struct {
	c *Client
	r DiffRequest
	d *Difference
	// dir is for the sorts and the backups; exe is the program that reads these.
	dir, exe string
	emit     func(DiffEntry) error
}

// compare finds the differences of two planned states.
func (c *Client) compare(ctx context.Context, d *Difference, r DiffRequest, visit func(DiffEntry) error) (err error) {
	dir, remove, err := database.Scratch(r.TempDir)
	if err != nil {
		return err
	}
	defer remove()
	exe, err := executable()
	if err != nil {
		return err
	}
	g := &grouper{d: d, groups: map[DiffGroup]*DiffCount{}}
	x := &differ{c: c, r: r, d: d, dir: dir, exe: exe, emit: func(e DiffEntry) error {
		g.add(e)
		if visit == nil {
			return nil
		}
		return visit(e)
	}}
	if err := x.run(ctx); err != nil {
		return err
	}
	g.finish()
	return nil
}

func (x *differ) run(ctx context.Context) error {
	a, b := &x.d.A, &x.d.B
	if life := a.life(); life != "" && life == b.life() {
		from, to := min(a.Revision, b.Revision), max(a.Revision, b.Revision)
		chain, ok, err := x.c.archive.Between(ctx, life, from, to)
		if err != nil {
			return err
		}
		if ok {
			x.d.Joined, x.d.Segments, x.d.Bytes = true, len(chain.Segments), chain.Size()
			if err := x.afford(chain.Size()); err != nil {
				return err
			}
			return x.joined(ctx, chain, from, to)
		}
	}
	x.d.Bytes = x.cost(a) + x.cost(b)
	if err := x.afford(x.d.Bytes); err != nil {
		return err
	}
	return x.apart(ctx)
}

// cost is how much is stored of what leads to a state, in bytes.
func (x *differ) cost(s *DiffSide) (n int64) {
	if s.Plan != nil {
		return s.Plan.Manifest.Stored.Size + s.Plan.Chain.Size()
	}
	return s.Point.Backup.Size
}

func (x *differ) afford(n int64) error {
	if most := x.r.MostBytes; most > 0 && n > most {
		return &CostlyError{Bytes: n, Most: most}
	}
	return nil
}

// joined compares by the changes between the two alone. They tell which keys were there before; what these were only the older state does.
func (x *differ) joined(ctx context.Context, chain changelog.Chain, from, to int64) (err error) {
	events := extsort.New(x.dir, sortMemory)
	defer func() { err = errors.Join(err, events.Close()) }()
	filter := newKeyFilter()
	progress, over := x.r.Transfers.begin("read", "changes")
	err = x.c.archive.Changes(ctx, chain, from, to, func(n int64) { progress(n, chain.Size()) }, func(e changelog.Event) error {
		filter.add(e.Key)
		return events.Add(recordOf(e, x.r.Values))
	})
	over()
	if err != nil {
		return err
	}
	older := extsort.New(x.dir, sortMemory)
	defer func() { err = errors.Join(err, older.Close()) }()
	backwards := x.d.A.Revision > x.d.B.Revision
	if x.r.Values && from != to {
		side := &x.d.A
		if backwards {
			side = &x.d.B
		}
		if err := x.state(ctx, side, older, filter.has); err != nil {
			return err
		}
	}
	old, stop := latest(older)
	defer stop()
	return eachKey(events, func(key []byte, first, last state) error {
		var was *state
		if x.r.Values {
			if was, err = old(key); err != nil {
				return err
			}
		}
		return x.difference(key, first.existedAt(from), !last.deleted, was, &last, backwards)
	})
}

// difference emits a key of which the changes tell whether it was there before and after.
func (x *differ) difference(key []byte, before, after bool, was, is *state, backwards bool) error {
	if !before && !after {
		return nil
	}
	if !after {
		is = nil
	}
	if !before {
		was = nil
	} else if x.r.Values && was == nil {
		return fmt.Errorf("by the changes key %q was there at revision %d, by the backup before it wasn't: one of them isn't what etcd had", key,
			min(x.d.A.Revision, x.d.B.Revision))
	}
	if backwards {
		before, after, was, is = after, before, is, was
	}
	e := DiffEntry{Key: key, Kind: Changed, Old: was.value(), New: is.value()}
	switch {
	case !before:
		e.Kind = Added
	case !after:
		e.Kind = Removed
	default:
		e.SameValue = was != nil && is != nil && was.sum == is.sum
	}
	return x.emit(e)
}

// apart builds both states and compares them key by key.
func (x *differ) apart(ctx context.Context) (err error) {
	var sorts [2]*extsort.Sorter
	for i, side := range []*DiffSide{&x.d.A, &x.d.B} {
		sorts[i] = extsort.New(x.dir, sortMemory)
		defer func() { err = errors.Join(err, sorts[i].Close()) }()
		if err := x.state(ctx, side, sorts[i], nil); err != nil {
			return err
		}
	}
	a, stopA := states(sorts[0])
	defer stopA()
	b, stopB := states(sorts[1])
	defer stopB()
	was, err := a()
	if err != nil {
		return err
	}
	is, err := b()
	for err == nil && (was != nil || is != nil) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		order := orderOf(was, is)
		switch {
		case order < 0:
			err = x.emit(DiffEntry{Key: was.key, Kind: Removed, Old: was.value()})
		case order > 0:
			err = x.emit(DiffEntry{Key: is.key, Kind: Added, New: is.value()})
		case !was.same(is):
			err = x.emit(DiffEntry{Key: is.key, Kind: Changed, Old: was.value(), New: is.value(), SameValue: was.sum == is.sum})
		}
		if err == nil && order <= 0 {
			was, err = a()
		}
		if err == nil && order >= 0 {
			is, err = b()
		}
	}
	return err
}

// orderOf compares the keys of two states; one that isn't there comes last.
func orderOf(a, b *state) int {
	switch {
	case a == nil:
		return 1
	case b == nil:
		return -1
	}
	return bytes.Compare(a.key, b.key)
}

// state sorts what leads to a state; only keys that want picks, which may be nil.
func (x *differ) state(ctx context.Context, s *DiffSide, out *extsort.Sorter, want func(key []byte) bool) error {
	path := filepath.Join(x.dir, "snapshot.db")
	p := s.Plan
	if p == nil { // of another tool: all that is in it
		p = &changelog.Plan{Base: s.Point.Base()}
	}
	b := s.Point.Backup
	if b == nil || b.Name != p.Base {
		found, _, err := x.c.backup(ctx, p.Base)
		if err != nil {
			return err
		}
		b = &found
	}
	if b.Manifest != nil && x.r.Values { // the values come once more in the sort
		if err := database.CheckSpace(x.dir, 2*b.Manifest.Raw.Size); err != nil {
			return err
		}
	}
	if _, err := x.c.fetchFile(ctx, *b, path, x.r.Transfers); err != nil {
		return err
	}
	_, over := x.r.Transfers.begin("read", "backup "+p.Base)
	defer over()
	err := x.c.archive.State(ctx, p, x.exe, path, nil, func(e changelog.Event) error {
		if want != nil && !want(e.Key) {
			return nil
		}
		return out.Add(recordOf(e, x.r.Values))
	})
	if err != nil {
		return database.Judged(path, err)
	}
	return os.Remove(path)
}

// state is what one change made of a key.
type state struct {
	key      []byte
	revision int64
	deleted  bool
	created  int64
	lease    int64
	// sum is the beginning of the value's SHA-256.
	sum  [sumSize]byte
	kept []byte
}

const sumSize = 16

// recordOf is the record of a change, in which the value is kept only if it is wanted.
func recordOf(e changelog.Event, values bool) extsort.Record {
	flags := byte(0)
	if e.Deleted {
		flags = 1
	}
	b := append(make([]byte, 0, 64), flags)
	b = binary.AppendVarint(b, e.CreateRevision)
	b = binary.AppendVarint(b, e.Lease)
	sum := sha256.Sum256(e.Value)
	b = append(b, sum[:sumSize]...)
	if values {
		b = append(b, e.Value...)
	}
	return extsort.Record{Key: e.Key, Order: e.Revision, Value: b}
}

// stateOf reads a record. It holds nothing of it.
func stateOf(r extsort.Record) state {
	s := state{key: bytes.Clone(r.Key), revision: r.Order}
	b := r.Value
	s.deleted, b = b[0] == 1, b[1:]
	var n int
	s.created, n = binary.Varint(b)
	b = b[n:]
	s.lease, n = binary.Varint(b)
	b = b[n:]
	copy(s.sum[:], b)
	s.kept = append([]byte{}, b[sumSize:]...)
	return s
}

// existedAt tells of the first change behind a revision whether the key was there at it.
func (s *state) existedAt(revision int64) bool { return s.deleted || s.created <= revision }

func (s *state) same(o *state) bool {
	return s.revision == o.revision && s.created == o.created && s.lease == o.lease && s.sum == o.sum
}

func (s *state) value() *DiffValue {
	if s == nil {
		return nil
	}
	return &DiffValue{Revision: s.revision, Created: s.created, Lease: s.lease, Value: s.kept}
}

// eachKey visits the keys of a sort with the first and the last of their changes.
func eachKey(s *extsort.Sorter, visit func(key []byte, first, last state) error) error {
	var first, last *state
	flush := func() error {
		if first == nil {
			return nil
		}
		return visit(first.key, *first, *last)
	}
	for r, err := range s.Sorted() {
		if err != nil {
			return err
		}
		x := stateOf(r)
		if first == nil || !bytes.Equal(first.key, x.key) {
			if err := flush(); err != nil {
				return err
			}
			first = &x
		}
		last = &x
	}
	return flush()
}
