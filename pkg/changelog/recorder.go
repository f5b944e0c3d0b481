package changelog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	"github.com/etcd-manager/etcd-manager/pkg/repeat"
)

// Source is the etcd whose changes are kept; *client.Client is one. All methods may be called concurrently.
type Source interface {
	// Revision is the cluster's newest, and the cluster's id; it fails without a quorum.
	Revision(ctx context.Context) (revision int64, clusterID uint64, err error)
	// WatchAll streams all changes from a revision on.
	WatchAll(ctx context.Context, from int64) (*client.Changes, error)
	// LeaseTTL is for how many seconds a lease was granted; 0 if it is gone.
	LeaseTTL(ctx context.Context, id int64) (int64, error)
	// Close ends the connection.
	Close() error
}

// Dialer connects to one member. It should do no I/O: a member that is away is found out by the first question.
type Dialer func(ctx context.Context) (Source, error)

// Config is what a Recorder needs.
type Config struct {
	ClusterName string
	// Node and Term are the leadership that records.
	Node        cluster.NodeID
	Term        cluster.Term
	ToolVersion string
	// Token is the cluster's, empty if this process runs no etcd. Unfenced means that the store
	// fences nothing, so that terms order nothing.
	Token    cluster.Token
	Unfenced bool
	// Catalog is where segments go; what it seals backups with, segments are sealed with too.
	Catalog *catalog.Catalog
	// Members are ways to connect to single members that serve, those first that are to be used first. It must not block. Where one is
	// silent the next one is used; a connection to several members would send a part of the questions to the silent one.
	Members func() []Dialer
	// Origin tells where the cluster came from; it is asked when an incarnation begins. nil means that nobody knows.
	Origin func(ctx context.Context) *catalog.Origin
	// Dir is where segments wait if the store is away, SpillBytes how much of them (default 256
	// MiB). Empty means that only a few wait, in memory.
	Dir        string
	SpillBytes int64
	// Interval is how long a change waits at most until it is on its way to the store (default 5
	// s), SegmentBytes how many bytes of changes make a segment before that (default 8 MiB), Idle
	// how long nothing has to happen until a segment says so (default 2 min).
	Interval     time.Duration
	SegmentBytes int
	Idle         time.Duration
	// Gap is called when changes were lost, or a new chain begins on which no backup stands yet: a
	// full backup is needed. It must not block.
	Gap func(reason string)
	// Made, if not nil, is called with each segment that is on its way to the store. It must not block, nor change the data.
	Made func(i catalog.Incarnation, name catalog.SegmentName, data []byte)
	// Now is the clock (default time.Now).
	Now func() time.Time
}

// Defaults of a Config.
const (
	DefaultInterval = 5 * time.Second
	defaultSpill    = 256 << 20
	defaultSegment  = 8 << 20
	defaultIdle     = 2 * time.Minute
)

// Status is what a recorder says of itself.
type Status struct {
	Incarnation catalog.Incarnation
	// Seen is the newest revision that came, Archived the newest that the store has, Until up to when it has everything.
	Seen, Archived int64
	Until          time.Time
	// Waiting segments are not in the store yet; Spilled bytes of them are on the disk.
	Waiting int
	Spilled int64
	// UnknownLeases have keys in the store, and their TTL isn't known yet.
	UnknownLeases int
	// Segments and Bytes were stored by this recorder.
	Segments, Bytes int64
	// Gaps were found by this recorder; LastGap says what was lost.
	Gaps    int
	LastGap string
	// Error says why the store doesn't get anything, or why nothing is recorded, in words for the operator; empty if all is well.
	Error string
}

// Recorder keeps the changes of one cluster. It is made for one leadership and one etcd cluster.
type Recorder struct {
	cfg Config

	mu     sync.Mutex
	status Status
	out    *outbox
	// chainBegan is the revision after which the newest chain begins; 0 if the recorder goes on with one.
	chainBegan int64
	// recorded is the id of the etcd cluster whose changes are recorded; 0 before that is known.
	recorded uint64
	// flushes wait for the goroutine of Run, which asked wakes up.
	flushes []*flushing
	asked   chan struct{}
	ended   bool

	// What follows belongs to the goroutine of Run. member counts the changes from one member to the next.
	member   int
	origin   origin
	prev     []byte // SHA-256 of the segment before, nil where a chain begins
	begins   string
	b        *builder
	pending  time.Time // when the oldest change in b came; zero if there is none
	lastSeal time.Time
	// late is the revision up to which changes were made before they could come, at some time from seen on.
	late int64
	seen time.Time
	// kept is when the newest segment ends that was handed on.
	kept time.Time
	book *leaseBook
	// patience is how long the member that is connected may be silent, silent how many were so one after the other.
	patience time.Duration
	silent   int
}

// NewRecorder returns a recorder. It starts nothing.
func NewRecorder(cfg Config) (*Recorder, error) {
	if cfg.Catalog == nil || cfg.Members == nil {
		return nil, errors.New("record changes: a catalog and ways to connect to etcd are needed")
	}
	if cfg.Interval <= 0 {
		cfg.Interval = DefaultInterval
	}
	if cfg.SpillBytes <= 0 {
		cfg.SpillBytes = defaultSpill
	}
	if cfg.SegmentBytes <= 0 {
		cfg.SegmentBytes = defaultSegment
	}
	if cfg.Idle <= 0 {
		cfg.Idle = defaultIdle
	}
	if cfg.Gap == nil {
		cfg.Gap = func(string) {}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Recorder{cfg: cfg, book: newLeaseBook(), asked: make(chan struct{}, 1)}, nil
}

// Status returns the newest status.
func (r *Recorder) Status() Status {
	r.mu.Lock()
	s, out, began := r.status, r.out, r.chainBegan
	r.mu.Unlock()
	if out == nil {
		return s
	}
	var err error
	s.Waiting, s.Spilled, err = out.waiting()
	out.mu.Lock()
	if out.stored.Sum != "" {
		s.Archived, s.Until = out.stored.Last, out.stored.Ended
	}
	// The revisions before a chain's beginning don't lack: they are in a backup, were restored from one, or were reported as a gap.
	if s.Waiting == 0 {
		s.Archived = max(s.Archived, began)
	}
	s.Segments, s.Bytes = out.count, out.bytes
	out.mu.Unlock()
	switch {
	case err != nil && s.Error != "":
		s.Error += ": " + err.Error()
	case err != nil:
		s.Error = err.Error()
	}
	return s
}

func (r *Recorder) set(f func(*Status)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.status)
}

// ErrOtherCluster means that another etcd cluster answers than the one whose changes were kept so far: a restore has taken its place.
var ErrOtherCluster = errors.New("another etcd cluster answers now")

// flushTimeout is how long Run goes on when its context has ended, to store what came last.
const flushTimeout = 3 * time.Second

// Run records until ctx ends; then it stores what it has, for a few seconds at most. It ends with
// ErrOtherCluster when the cluster is another one, and when what it had spilled can't be read any
// more: another recorder begins where the store ends. Everything else is tried again.
func (r *Recorder) Run(ctx context.Context) error {
	const first, last = 250 * time.Millisecond, 10 * time.Second
	var wg sync.WaitGroup
	deliverCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer wg.Wait()
	defer stop()
	defer r.endFlushes(errEnded)
	delay, said := first, repeat.Limiter{}
	for {
		began := time.Now()
		err := r.session(ctx, func(o *outbox) { wg.Go(func() { o.deliver(deliverCtx) }) })
		if ctx.Err() != nil {
			r.finish(ctx)
			return nil
		}
		if errors.Is(err, ErrOtherCluster) || errors.Is(err, errLost) {
			r.finish(ctx)
			return err
		}
		if err == nil {
			continue
		}
		if time.Since(began) > last {
			delay = first
		}
		r.set(func(s *Status) { s.Error = err.Error() })
		said.Warningf("changes", "changes: %v; trying again", err) // the text may be another one each time
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		case <-r.asked: // somebody waits for everything to be in the store
		}
		delay = min(2*delay, last)
	}
}

// finish stores what came last.
func (r *Recorder) finish(ctx context.Context) {
	if r.out == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	r.lastSeal = time.Time{} // also if there is nothing to tell but that nothing came
	err := r.cut(ctx)
	if err == nil {
		err = r.out.drain(ctx)
	}
	if err != nil {
		err = errors.Join(err, r.out.park())
		klog.Warningf("changes: the newest are not in the store: %v", err)
	}
}

// begin finds out where the store's chain ends.
func (r *Recorder) begin(ctx context.Context, src Source, newest int64, clusterID uint64) error {
	h, err := findHead(ctx, r.cfg.Catalog, src, clusterID, newest)
	if err != nil {
		return err
	}
	newest = h.newest
	if h.fresh {
		rec := catalog.IncarnationRecord{ID: h.incarnation, ClusterName: r.cfg.ClusterName,
			ClusterID: catalog.HexID(clusterID), Began: r.cfg.Now().UTC(), Revision: newest}
		if r.cfg.Origin != nil {
			rec.Origin = r.cfg.Origin(ctx)
		}
		if err := r.cfg.Catalog.CreateIncarnation(ctx, rec); err != nil && !errors.Is(err, catalog.ErrConflict) {
			return err
		}
	}
	if err := r.tellServing(ctx, h.incarnation, clusterID, newest); err != nil {
		return err
	}
	r.origin = origin{incarnation: h.incarnation, clusterName: r.cfg.ClusterName, clusterID: clusterID,
		node: r.cfg.Node, term: r.cfg.Term, toolVersion: r.cfg.ToolVersion}
	out := newOutbox(r.cfg.Catalog, h.incarnation, r.cfg.Dir, r.cfg.SpillBytes)
	out.made = r.cfg.Made
	head, err := out.adopt(h.name)
	if err != nil {
		return err
	}
	switch {
	case head.Sum != "":
		sum, beginning, size, err := r.digestOf(ctx, out, head)
		if err != nil {
			return err
		}
		r.prev, r.b, r.seen, r.kept = sum, newBuilderAt(head.Last, head.Ended), head.Ended, head.Ended
		if c, err := readHeader(catalog.Segment{SegmentName: head, Incarnation: h.incarnation}, beginning, size); err == nil &&
			catalog.NewSegmentSum(sum) == head.Sum {
			r.book.resume(c.Header.GetUnknownLeases())
		}
		if catalog.NewSegmentSum(r.prev) != head.Sum { // nothing can lead through it
			why := fmt.Sprintf("segment %s, the last one before, is damaged", head)
			r.beginChain(head.Last, head.Ended, why)
			r.cfg.Gap(why)
		}
		r.leaveFuture()
	case h.base > 0 && h.base <= newest:
		r.beginChain(h.base, h.baseTime, "there are no changes after the backup at its beginning")
	default:
		r.beginChain(newest, r.cfg.Now(), "changes are kept from here on")
		r.cfg.Gap("changes are kept from now on; a backup is needed to which they can be applied")
	}
	r.lastSeal = r.cfg.Now()
	r.mu.Lock()
	r.recorded = clusterID
	r.out, r.status = out, Status{Incarnation: h.incarnation, Seen: r.b.last, Archived: h.name.Last, Until: h.name.Ended}
	r.mu.Unlock()
	klog.Infof("changes: recording incarnation %s after revision %d (newest %d)", h.incarnation, r.b.last, newest)
	return nil
}

// tellServing records that this incarnation serves. That somebody with a higher term has written another one is that one's to know, and
// what can't be read isn't written over. Changes are kept all the same.
func (r *Recorder) tellServing(ctx context.Context, i catalog.Incarnation, clusterID uint64, newest int64) error {
	s := catalog.Serving{Incarnation: i, ClusterName: r.cfg.ClusterName, ClusterID: catalog.HexID(clusterID),
		Token: r.cfg.Token, Revision: newest, Node: r.cfg.Node}
	if !r.cfg.Unfenced {
		s.Term = r.cfg.Term
	}
	err := r.cfg.Catalog.PutServing(ctx, s)
	if errors.Is(err, catalog.ErrFenced) || errors.Is(err, cluster.ErrFuture) || errors.Is(err, catalog.ErrDenied) {
		klog.Warningf("changes: %v", err)
		return nil
	}
	return err
}

func (r *Recorder) beginChain(last int64, seen time.Time, why string) {
	r.b, r.seen, r.kept, r.prev, r.begins = newBuilder(last), seen, seen, nil, why
	r.mu.Lock()
	defer r.mu.Unlock()
	r.chainBegan = last
}

// leaveFuture begins a new chain, and asks for a backup, where the one so far ends in the future: a
// clock was ahead. Times never go back within a chain, so everything would have the same time in it
// until the clocks get there.
func (r *Recorder) leaveFuture() {
	now := r.cfg.Now()
	ahead := r.kept.Sub(now)
	if ahead <= clockSlack {
		return
	}
	why := fmt.Sprintf("the changes up to revision %d are dated %s ahead of the clock of node %s: a clock is or was wrong",
		r.b.first-1, ahead.Round(time.Second), r.cfg.Node)
	klog.Warningf("changes: %s; another chain begins", why)
	r.beginChain(r.b.first-1, now, why)
	r.cfg.Gap(why)
}

// digestOf reads the segment that the next one is to name, and holds only its beginning.
func (r *Recorder) digestOf(ctx context.Context, out *outbox, n catalog.SegmentName) (sum, head []byte, size int64, err error) {
	if slices.Contains(out.names(), n) {
		data, err := readSpilled(out, n)
		if err != nil {
			return nil, nil, 0, err
		}
		return digest(bytes.NewReader(data))
	}
	s := catalog.Segment{SegmentName: n, Incarnation: r.origin.incarnation}
	src, _, err := r.cfg.Catalog.OpenSegment(ctx, s)
	if err != nil {
		return nil, nil, 0, err
	}
	defer src.Close()
	if sum, head, size, err = digest(src); err != nil {
		return nil, nil, 0, fmt.Errorf("read %s: %w", s.Key(), err)
	}
	return sum, head, size, nil
}
