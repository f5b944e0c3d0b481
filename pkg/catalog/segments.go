package catalog

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// Incarnation names one life of an etcd cluster's revision counter: as long as it lasts, a revision
// means one state of the data. A restore begins a new one.
type Incarnation string

// UnmarshalText reads an incarnation from a stored object; one that can't name a directory is refused.
func (i *Incarnation) UnmarshalText(text []byte) error {
	*i = Incarnation(text)
	if len(text) == 0 {
		return nil
	}
	return validName("incarnation", string(text))
}

// SegmentName is the name of a segment. It tells of a listing alone which revisions are there, and whether they hang together.
type SegmentName struct {
	// First and Last are the revisions that it holds. One that only says that nothing has changed has Last = First - 1.
	First, Last int64
	// Ended is up to when it tells what happened, to the millisecond.
	Ended time.Time
	// Previous and Sum are the beginnings of the SHA-256 of the segment before (NoSegment where a chain begins) and of its own.
	Previous, Sum SegmentSum
}

// SegmentSum is the beginning of the SHA-256 over a segment's stored bytes, 16 hexadecimal digits.
type SegmentSum string

// NoSegment is what stands in place of a predecessor where a chain begins.
const NoSegment SegmentSum = "0000000000000000"

// NewSegmentSum makes one of a whole SHA-256; of an empty one it makes NoSegment.
func NewSegmentSum(sum []byte) SegmentSum {
	if len(sum) < 8 {
		return NoSegment
	}
	return SegmentSum(fmt.Sprintf("%x", sum[:8]))
}

// Begins tells whether a chain begins with it.
func (n SegmentName) Begins() bool { return n.Previous == NoSegment }

// String is the last part of the segment's key. Names sort by the revisions.
func (n SegmentName) String() string {
	return fmt.Sprintf("%019d-%019d-%013d-%s-%s", n.First, n.Last, n.Ended.UnixMilli(), n.Previous, n.Sum)
}

// ParseSegmentName reads what String writes.
func ParseSegmentName(s string) (SegmentName, error) {
	bad := func() (SegmentName, error) { return SegmentName{}, invalidf("%.200q is not the name of a segment", s) }
	parts := strings.Split(s, "-")
	if len(parts) != 5 || len(parts[0]) != 19 || len(parts[1]) != 19 || len(parts[2]) != 13 {
		return bad()
	}
	var numbers [3]int64
	for i := range numbers {
		n, err := strconv.ParseUint(parts[i], 10, 63)
		if err != nil {
			return bad()
		}
		numbers[i] = int64(n)
	}
	for _, sum := range parts[3:] {
		if len(sum) != 16 || strings.Trim(sum, "0123456789abcdef") != "" {
			return bad()
		}
	}
	n := SegmentName{First: numbers[0], Last: numbers[1], Ended: time.UnixMilli(numbers[2]).UTC(),
		Previous: SegmentSum(parts[3]), Sum: SegmentSum(parts[4])}
	if n.First < 1 || n.Last < n.First-1 || n.Last-n.First >= MaxSegmentRevisions {
		return bad()
	}
	return n, nil
}

// MaxSegmentRevisions bounds how many revisions a segment holds. So it is known where a listing has
// to begin to have the segment with a given one.
const MaxSegmentRevisions = 1 << 16

// MaxSegmentSize bounds a segment's stored bytes. One holds 8 MiB of changes, or a single larger transaction of up to 1 GiB.
const MaxSegmentSize = 1<<30 + 258<<20

// Segment is one row of the listing.
type Segment struct {
	SegmentName
	Incarnation Incarnation
	// Size is in bytes, as stored.
	Size int64
	// Modified is when it was stored, by the store's clock; zero if it was not listed.
	Modified time.Time
}

// KnownAt is up to when the segment tells what happened, as far as it can be told: the store cannot
// have had it before that, so a clock that was ahead does not make it younger than it is.
func (s Segment) KnownAt() time.Time {
	if !s.Modified.IsZero() && s.Modified.Before(s.Ended) {
		return s.Modified
	}
	return s.Ended
}

// Key is where it stands, relative to the store's base.
func (s Segment) Key() string { return segmentsPrefix(s.Incarnation) + s.SegmentName.String() }

func segmentsPrefix(i Incarnation) string { return changesPrefix + string(i) + "/" }

// PutSegment stores a segment under its name. One that is there already, of the same size, is the same: its name has its checksum.
func (c *Catalog) PutSegment(ctx context.Context, i Incarnation, name SegmentName, data []byte) error {
	if err := validName("incarnation", string(i)); err != nil {
		return err
	}
	key := segmentsPrefix(i) + name.String()
	_, err := c.store.Put(ctx, key, bytes.NewReader(data), blob.PutOptions{IfAbsent: true})
	if errors.Is(err, ErrConflict) {
		if have, serr := c.store.Stat(ctx, key); serr == nil && have.Size == int64(len(data)) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", key, err)
	}
	return nil
}

// Segments lists the segments of an incarnation in the order of their revisions, beginning with all that can hold revision from; 0 means
// from the first. Names that aren't a segment's are passed over. No object is read. After an error the sequence ends.
func (c *Catalog) Segments(ctx context.Context, i Incarnation, from int64) iter.Seq2[Segment, error] {
	return func(yield func(Segment, error) bool) {
		if err := validName("incarnation", string(i)); err != nil {
			yield(Segment{}, err)
			return
		}
		after := ""
		if first := from - MaxSegmentRevisions; first > 0 {
			after = segmentsPrefix(i) + fmt.Sprintf("%019d", first)
		}
		for s, err := range c.listSegments(ctx, i, after) {
			if err == nil && s.Last < from && (s.Last >= s.First || s.First < from) {
				continue
			}
			if !yield(s, err) {
				return
			}
		}
	}
}

// SegmentsAfter lists the segments whose names come behind that of one, in the order of Segments. It costs one request where nothing, or
// little, is new.
func (c *Catalog) SegmentsAfter(ctx context.Context, i Incarnation, name SegmentName) iter.Seq2[Segment, error] {
	return func(yield func(Segment, error) bool) {
		if err := validName("incarnation", string(i)); err != nil {
			yield(Segment{}, err)
			return
		}
		for s, err := range c.listSegments(ctx, i, segmentsPrefix(i)+name.String()) {
			if !yield(s, err) {
				return
			}
		}
	}
}

// listSegments yields what is a segment's name behind a key.
func (c *Catalog) listSegments(ctx context.Context, i Incarnation, after string) iter.Seq2[Segment, error] {
	return func(yield func(Segment, error) bool) {
		prefix := segmentsPrefix(i)
		for e, err := range c.store.List(ctx, prefix, blob.ListOptions{After: after}) {
			if err != nil {
				yield(Segment{}, fmt.Errorf("list segments: %w", err))
				return
			}
			n, err := ParseSegmentName(strings.TrimPrefix(e.Key, prefix))
			if err != nil {
				continue
			}
			if !yield(Segment{SegmentName: n, Incarnation: i, Size: e.Size, Modified: e.Modified}, nil) {
				return
			}
		}
	}
}

// OpenSegment returns a segment's stored bytes as a stream, and how many there are by the store's
// word. That they are what the name says is for the caller to check. Nothing of them is held in
// memory here.
func (c *Catalog) OpenSegment(ctx context.Context, s Segment) (io.ReadCloser, int64, error) {
	r, info, err := c.store.Get(ctx, s.Key(), blob.Range{})
	if err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", s.Key(), err)
	}
	if info.Size > MaxSegmentSize {
		_ = r.Close() // nothing was read of it
		return nil, 0, corrupt(s.Key(), segmentWay, fmt.Errorf("it is larger than %d bytes", MaxSegmentSize))
	}
	return r, max(info.Size, 0), nil
}

const segmentWay = "restore a point before it: etcd-manager-ctl restore-backup --to-revision"

// maxFruitless is how many groups of segments in a row may be refused before the rest isn't tried.
const maxFruitless = 3

func notLocked(err error) []error {
	_, rest := blob.SplitLocked(err)
	return rest
}

// DeleteSegments removes these segments of one incarnation (every version, on a versioned bucket)
// in batches, and returns how many went. Those that are gone are a success. It lists hardly more
// than what it removes, however many segments there are.
func (c *Catalog) DeleteSegments(ctx context.Context, i Incarnation, names []SegmentName) (int, error) {
	if len(names) == 0 {
		return 0, nil
	}
	if err := validName("incarnation", string(i)); err != nil {
		return 0, err
	}
	keys := make([]string, 0, len(names))
	for _, n := range names {
		keys = append(keys, segmentsPrefix(i)+n.String())
	}
	slices.Sort(keys)
	doomed := make(map[string]bool, len(keys))
	for _, key := range keys {
		doomed[key] = true
	}
	total, fruitless := 0, 0
	var errs []error
	for _, prefix := range coverKeys(keys, len(segmentsPrefix(i))) {
		n, err := c.store.Purge(ctx, prefix, func(key string) bool { return doomed[key] })
		total += n
		if err != nil {
			errs = append(errs, fmt.Errorf("delete segments: %w", err))
			if n > 0 {
				fruitless = 0
			} else {
				fruitless++
			}
			// One object that can't be deleted says nothing of the others; where nothing goes, the rest would fare no better.
			_, whole := blob.SplitRefused(errors.Join(notLocked(err)...))
			denied := errors.Join(whole...)
			if errors.Is(denied, ErrDenied) || errors.Is(denied, ErrTransient) || fruitless >= maxFruitless || ctx.Err() != nil {
				break
			}
		}
	}
	return total, errors.Join(errs...)
}

// coverDigits is how many digits at the end of a revision a prefix may leave open: a thousand revisions are a page of a listing at most.
const coverDigits = 3

// coverKeys finds prefixes that all of these sorted keys of segments have, and few others: those
// behind the last one can be very many. start is where the revisions begin in the keys.
func coverKeys(keys []string, start int) []string {
	if len(keys) == 0 {
		return nil
	}
	first, last := keys[0], keys[len(keys)-1]
	p := commonPrefix(first, last)
	if len(p) >= start+19-coverDigits || len(keys) == 1 {
		return []string{p}
	}
	// All that begin with a digit below the last key's lie before it; only among those with its own digit are keys behind it.
	var out []string
	at := len(p)
	for len(keys) > 0 {
		n := 1
		for n < len(keys) && keys[n][at] == keys[0][at] {
			n++
		}
		if n == len(keys) {
			return append(out, coverKeys(keys, start)...)
		}
		out = append(out, keys[0][:at+1])
		keys = keys[n:]
	}
	return out
}

// IncarnationRecord says of an incarnation where it came from.
type IncarnationRecord struct {
	ID Incarnation `json:"id"`
	// ClusterName and ClusterID tell whose it is.
	ClusterName string `json:"clusterName"`
	ClusterID   HexID  `json:"clusterId"`
	// Began is when its changes began to be kept, and Revision the newest one then.
	Began    time.Time `json:"began"`
	Revision int64     `json:"revision"`
	// Origin is nil for a cluster that didn't come from a restore, or of which that isn't known.
	Origin *Origin `json:"origin,omitempty"`
}

// clockSlack is how much the clocks of who begins an incarnation and of who takes a backup may differ.
const clockSlack = 2 * time.Minute

// Holds tells whether the incarnation had begun at a moment, so that a backup from then is of it or of a later one.
func (r IncarnationRecord) Holds(at time.Time) bool { return !at.Before(r.Began.Add(-clockSlack)) }

// Origin is where an incarnation branched off from another.
type Origin struct {
	// Operation is the restore that began it, Backup what it restored, and Reached the revision of
	// the old incarnation to which its data go.
	Operation string `json:"operation,omitempty"`
	Backup    string `json:"backup,omitempty"`
	Reached   int64  `json:"reached,omitempty"`
	// Incarnation is the one that the restored data are from; Replaced the one that served until then. Either is empty if not known.
	Incarnation Incarnation `json:"incarnation,omitempty"`
	Replaced    Incarnation `json:"replaced,omitempty"`
}

const (
	incarnationFile    = "_incarnation.json"
	incarnationVersion = 1
	incarnationWay     = "delete the object; it only has the origin of the incarnation, and is written again while that serves"
)

type incarnationJSON struct {
	Version int `json:"version"`
	IncarnationRecord
}

// IncarnationOf names the first incarnation of an etcd cluster.
func IncarnationOf(clusterID uint64) Incarnation { return Incarnation(fmt.Sprintf("%016x", clusterID)) }

// CreateIncarnation writes the record of an incarnation; ErrConflict if there is one.
func (c *Catalog) CreateIncarnation(ctx context.Context, r IncarnationRecord) error {
	if err := validName("incarnation", string(r.ID)); err != nil {
		return err
	}
	data, err := encodeOwn(incarnationJSON{Version: incarnationVersion, IncarnationRecord: r})
	if err != nil {
		return err
	}
	_, err = c.write(ctx, segmentsPrefix(r.ID)+incarnationFile, data, blob.PutOptions{IfAbsent: true})
	return err
}

// Incarnation reads the record of one; ErrNotFound if there is none.
func (c *Catalog) Incarnation(ctx context.Context, id Incarnation) (IncarnationRecord, error) {
	if err := validName("incarnation", string(id)); err != nil {
		return IncarnationRecord{}, err
	}
	key := segmentsPrefix(id) + incarnationFile
	data, _, err := c.read(ctx, key, incarnationWay)
	if err != nil {
		return IncarnationRecord{}, err
	}
	var j incarnationJSON
	if err := decodeOwn(key, incarnationWay, data, incarnationVersion, &j); err != nil {
		return IncarnationRecord{}, err
	}
	if j.ID != id {
		return IncarnationRecord{}, corrupt(key, incarnationWay, fmt.Errorf("it is the record of incarnation %q", j.ID))
	}
	return j.IncarnationRecord, nil
}

// IncarnationNames lists the incarnations of which changes, or a record, are there. No object is read.
func (c *Catalog) IncarnationNames(ctx context.Context) ([]Incarnation, error) {
	var list []Incarnation
	for e, err := range c.store.List(ctx, changesPrefix, blob.ListOptions{Delimiter: "/"}) {
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", changesPrefix, err)
		}
		id := strings.TrimSuffix(strings.TrimPrefix(e.Key, changesPrefix), "/")
		if e.Prefix && validName("incarnation", id) == nil {
			list = append(list, Incarnation(id))
		}
	}
	return list, nil
}

// Incarnations returns the records of all incarnations of which changes are kept, in the order in
// which they began, and by name what can't be read.
func (c *Catalog) Incarnations(ctx context.Context) ([]IncarnationRecord, []Problem, error) {
	var list []IncarnationRecord
	var problems []Problem
	for e, err := range c.store.List(ctx, changesPrefix, blob.ListOptions{Delimiter: "/"}) {
		if err != nil {
			return nil, nil, fmt.Errorf("list %s: %w", changesPrefix, err)
		}
		id := Incarnation(strings.TrimSuffix(strings.TrimPrefix(e.Key, changesPrefix), "/"))
		if !e.Prefix || validName("incarnation", string(id)) != nil {
			continue
		}
		r, err := c.Incarnation(ctx, id)
		switch {
		case errors.Is(err, ErrNotFound): // its segments tell all that is needed
			list = append(list, IncarnationRecord{ID: id})
		case unreadable(err), errors.Is(err, ErrDenied): // the other ones are of use all the same
			problems = append(problems, Problem{Name: string(id), Object: segmentsPrefix(id) + incarnationFile, Err: err})
			list = append(list, IncarnationRecord{ID: id})
		case err != nil:
			return nil, nil, err
		default:
			list = append(list, r)
		}
	}
	sortIncarnations(list)
	return list, problems, nil
}

func sortIncarnations(list []IncarnationRecord) {
	slices.SortFunc(list, func(a, b IncarnationRecord) int {
		return cmp.Or(a.Began.Compare(b.Began), cmp.Compare(a.Revision, b.Revision), strings.Compare(string(a.ID), string(b.ID)))
	})
}

// DeleteIncarnation removes the record of an incarnation of which no segment is left.
func (c *Catalog) DeleteIncarnation(ctx context.Context, id Incarnation) error {
	if err := validName("incarnation", string(id)); err != nil {
		return err
	}
	key := segmentsPrefix(id) + incarnationFile
	if _, err := c.store.Purge(ctx, key, func(k string) bool { return k == key }); err != nil {
		return fmt.Errorf("delete incarnation %s: %w", id, err)
	}
	return nil
}
