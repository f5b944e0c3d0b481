package changelog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/etcd-manager/etcd-manager/pkg/atomicfile"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// errLost means that a segment that waited on the disk isn't there any more as it was written.
var errLost = errors.New("changes that waited on this disk for the store can't be read; they are read from etcd again")

// errFull means that no more segments can be kept until the store takes some.
var errFull = errors.New("no more changes can be kept here until the store accepts some")

const (
	// inMemory is how many segments wait in memory for the store before they are written to the disk.
	inMemory = 2
	// keepFree is how much of the disk is left to etcd.
	keepFree = 1 << 30
	// putTimeout bounds one attempt to store a segment; large ones get more.
	putTimeout = time.Minute
)

// outbox keeps segments that are ready until the store has them, in their order: a few in memory, more on the disk.
type outbox struct {
	catalog     *catalog.Catalog
	incarnation catalog.Incarnation
	// dir is where segments are spilled to; empty means that none are.
	dir   string
	limit int64
	// made, if not nil, gets each segment that is taken.
	made func(catalog.Incarnation, catalog.SegmentName, []byte)

	mu      sync.Mutex
	items   []outItem
	memory  int
	spilled int64
	err     error
	// stored is the newest that the store has, in this process's life.
	stored catalog.SegmentName
	count  int64
	bytes  int64
	wake   chan struct{}
	// taken is closed when the store has taken one, emptied when it has taken the last one, lost when one can't be read any more.
	taken    chan struct{}
	emptied  chan struct{}
	lost     chan struct{}
	storedAt time.Time
}

type outItem struct {
	name catalog.SegmentName
	size int64
	// data is nil if it is on the disk.
	data []byte
}

func newOutbox(c *catalog.Catalog, i catalog.Incarnation, dir string, limit int64) *outbox {
	if dir != "" {
		dir = filepath.Join(dir, string(i))
	}
	return &outbox{catalog: c, incarnation: i, dir: dir, limit: limit, wake: make(chan struct{}, 1),
		taken: make(chan struct{}), emptied: make(chan struct{}), lost: make(chan struct{})}
}

func (o *outbox) path(n catalog.SegmentName) string { return filepath.Join(o.dir, n.String()) }

// patience is how long a segment waits for a store that answers, before it is written to the disk.
const patience = 2 * time.Second

// push takes a segment. errFull says that it didn't.
func (o *outbox) push(ctx context.Context, s sealed) error {
	o.mu.Lock()
	if o.memory >= inMemory && o.err == nil {
		taken := o.taken
		o.mu.Unlock()
		select {
		case <-taken:
		case <-ctx.Done():
		case <-time.After(patience):
		}
		o.mu.Lock()
	}
	defer o.mu.Unlock()
	it := outItem{name: s.name, size: int64(len(s.data)), data: s.data}
	if o.memory >= inMemory {
		if o.dir == "" || o.spilled+it.size > o.limit || !o.room(it.size) {
			return errFull
		}
		if err := os.MkdirAll(o.dir, 0o700); err != nil {
			return fmt.Errorf("%w: %w", errFull, err)
		}
		if err := atomicfile.Write(o.path(s.name), s.data, 0o600); err != nil {
			return fmt.Errorf("%w: %w", errFull, err)
		}
		it.data = nil
		o.spilled += it.size
	} else {
		o.memory++
	}
	o.items = append(o.items, it)
	if o.made != nil {
		o.made(o.incarnation, s.name, s.data)
	}
	select {
	case o.wake <- struct{}{}:
	default:
	}
	return nil
}

// room tells whether the disk can take so many bytes and etcd still has its own.
func (o *outbox) room(n int64) bool {
	var s unix.Statfs_t
	dir := o.dir
	for unix.Statfs(dir, &s) != nil {
		if dir == filepath.Dir(dir) {
			return true
		}
		dir = filepath.Dir(dir)
	}
	return int64(s.Bavail)*int64(s.Bsize) >= n+keepFree //nolint:unconvert // other systems have other types
}

// park brings what waits in memory to the disk, for the next process.
func (o *outbox) park() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, it := range o.items {
		if it.data == nil || o.dir == "" {
			continue
		}
		if err := os.MkdirAll(o.dir, 0o700); err != nil {
			return fmt.Errorf("keep changes: %w", err)
		}
		if err := atomicfile.Write(o.path(it.name), it.data, 0o600); err != nil {
			return fmt.Errorf("keep changes: %w", err)
		}
		o.items[i].data = nil
		o.memory--
		o.spilled += it.size
	}
	return nil
}

// adopt takes over what an earlier process has spilled, if it follows on head; everything else is removed. It returns the newest of it.
func (o *outbox) adopt(head catalog.SegmentName) (catalog.SegmentName, error) {
	if o.dir == "" {
		return head, nil
	}
	entries, err := os.ReadDir(filepath.Dir(o.dir))
	if errors.Is(err, os.ErrNotExist) {
		return head, nil
	}
	if err != nil {
		return head, fmt.Errorf("read spilled changes: %w", err)
	}
	for _, e := range entries {
		if e.Name() != string(o.incarnation) {
			_ = os.RemoveAll(filepath.Join(filepath.Dir(o.dir), e.Name())) // of a cluster that is gone
		}
	}
	files, err := os.ReadDir(o.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return head, fmt.Errorf("read spilled changes: %w", err)
	}
	var segments []catalog.Segment
	for _, f := range files {
		n, err := catalog.ParseSegmentName(strings.TrimSpace(f.Name()))
		info, ierr := f.Info()
		if err != nil || ierr != nil {
			_ = os.Remove(filepath.Join(o.dir, f.Name()))
			continue
		}
		segments = append(segments, catalog.Segment{SegmentName: n, Incarnation: o.incarnation, Size: info.Size()})
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range segments {
		if head.Sum != "" && s.Previous == head.Sum && s.First == head.Last+1 && o.sound(s.SegmentName) {
			o.items = append(o.items, outItem{name: s.SegmentName, size: s.Size})
			o.spilled += s.Size
			head = s.SegmentName
			continue
		}
		_ = os.Remove(o.path(s.SegmentName))
	}
	return head, nil
}

// sound tells whether a spilled segment is what its name says. One that has suffered is asked for again.
func (o *outbox) sound(n catalog.SegmentName) bool {
	data, err := readSpilled(o, n)
	return err == nil && catalog.NewSegmentSum(sumOf(data)) == n.Sum
}

// deliver stores what is there, in order, until ctx ends or one is lost. Only a store that takes a segment brings it to the next one.
func (o *outbox) deliver(ctx context.Context) {
	const first, last = 250 * time.Millisecond, 15 * time.Second
	delay := time.Duration(0)
	for ctx.Err() == nil {
		it, ok := o.next()
		if !ok {
			select {
			case <-ctx.Done():
				return
			case <-o.wake:
			}
			continue
		}
		err := o.store(ctx, it)
		o.done(it, err)
		if err == nil {
			delay = 0
			continue
		}
		if errors.Is(err, errLost) {
			close(o.lost)
			return
		}
		delay = min(max(first, 2*delay), last)
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
	}
}

func (o *outbox) next() (outItem, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.items) == 0 {
		return outItem{}, false
	}
	return o.items[0], true
}

func (o *outbox) store(ctx context.Context, it outItem) error {
	data := it.data
	if data == nil {
		var err error
		if data, err = readSpilled(o, it.name); err != nil {
			return fmt.Errorf("%w: %w", errLost, err)
		}
		if catalog.NewSegmentSum(sumOf(data)) != it.name.Sum {
			return fmt.Errorf("%w: %s is damaged", errLost, o.path(it.name))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, putTimeout+time.Duration(len(data)>>20)*time.Second)
	defer cancel()
	return o.catalog.PutSegment(ctx, o.incarnation, it.name, data)
}

func (o *outbox) done(it outItem, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.err = err
	if err != nil {
		return
	}
	o.items = o.items[1:]
	o.stored, o.storedAt = it.name, time.Now()
	o.count++
	o.bytes += it.size
	if it.data != nil {
		o.memory--
	} else {
		o.spilled -= it.size
		_ = os.Remove(o.path(it.name)) // one that stays is removed at the next start
	}
	close(o.taken)
	o.taken = make(chan struct{})
	if len(o.items) == 0 {
		close(o.emptied)
		o.emptied = make(chan struct{})
	}
}

// drain waits until everything is stored.
func (o *outbox) drain(ctx context.Context) error {
	for {
		o.mu.Lock()
		left, emptied, err := len(o.items), o.emptied, o.err
		o.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%d segments wait for the store: %w", left, context.Cause(ctx)), err)
		case <-o.lost:
			return err
		case <-emptied:
		}
	}
}

// waiting names what the store doesn't have yet.
func (o *outbox) waiting() (segments int, spilled int64, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.items), o.spilled, o.err
}

// names are those of all that waits.
func (o *outbox) names() []catalog.SegmentName {
	o.mu.Lock()
	defer o.mu.Unlock()
	names := make([]catalog.SegmentName, 0, len(o.items))
	for _, it := range o.items {
		names = append(names, it.name)
	}
	return slices.Clip(names)
}
