package changelog

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

// Source is the etcd whose changes are kept; *etcd.Client is one. All methods may be called concurrently.
type Source interface {
	// Revision is the cluster's newest, and the cluster's id; it fails without a quorum.
	Revision(ctx context.Context) (revision int64, clusterID uint64, err error)
	// WatchAll streams all changes from a revision on.
	WatchAll(ctx context.Context, from int64) (*etcd.Changes, error)
	// LeaseTTL is for how many seconds a lease was granted; 0 if it is gone.
	LeaseTTL(ctx context.Context, id int64) (int64, error)
	// Close ends the connection.
	Close() error
}

// Config is what a Recorder needs.
type Config struct {
	ClusterName string
	// Node and Term are the leadership that records.
	Node        cluster.NodeID
	Term        cluster.Term
	ToolVersion string
	// Token is the cluster's, empty if this process runs no etcd. Unfenced means that the store fences nothing, so that terms order nothing.
	Token    cluster.Token
	Unfenced bool
	// Catalog is where segments go; what it seals backups with, segments are sealed with too.
	Catalog *catalog.Catalog
	// Dial connects to members that serve.
	Dial func(ctx context.Context) (Source, error)
	// Origin tells where the cluster came from; it is asked when an incarnation begins. nil means that nobody knows.
	Origin func(ctx context.Context) *catalog.Origin
	// Dir is where segments wait if the store is away, SpillBytes how much of them (default 256 MiB). Empty means that only a few wait, in memory.
	Dir        string
	SpillBytes int64
	// Interval is how long a change waits at most until it is on its way to the store (default 5 s), SegmentBytes how many bytes of changes make a
	// segment before that (default 8 MiB), Idle how long nothing has to happen until a segment says so (default 2 min).
	Interval     time.Duration
	SegmentBytes int
	Idle         time.Duration
	// Gap is called when changes were lost, or a new chain begins on which no backup stands yet: a full backup is needed. It must not block.
	Gap func(reason string)
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
	// flush asks the goroutine of Run to hand on what it has; it answers once etcd has said that nothing is lacking.
	flush chan chan error

	// What follows belongs to the goroutine of Run.
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
	ttls map[int64]int64
	// ttlsAgain is from when on leases are asked for again.
	ttlsAgain time.Time
}

// NewRecorder returns a recorder. It starts nothing.
func NewRecorder(cfg Config) (*Recorder, error) {
	if cfg.Catalog == nil || cfg.Dial == nil {
		return nil, errors.New("record changes: a catalog and a way to connect to etcd are needed")
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
	return &Recorder{cfg: cfg, ttls: map[int64]int64{}, flush: make(chan chan error)}, nil
}

// Status returns the newest status.
func (r *Recorder) Status() Status {
	r.mu.Lock()
	s, out := r.status, r.out
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

// Flush brings everything into the store that was changed until now.
func (r *Recorder) Flush(ctx context.Context) error {
	answer := make(chan error, 1)
	select {
	case r.flush <- answer:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-answer:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	r.mu.Lock()
	out := r.out
	r.mu.Unlock()
	return out.drain(ctx)
}

// ErrOtherCluster means that another etcd cluster answers than the one whose changes were kept so far: a restore has taken its place.
var ErrOtherCluster = errors.New("another etcd cluster answers now")

// flushTimeout is how long Run goes on when its context has ended, to store what came last.
const flushTimeout = 3 * time.Second

// Run records until ctx ends; then it stores what it has, for a few seconds at most. It ends with ErrOtherCluster when the cluster is another one, and
// when what it had spilled can't be read any more: another recorder begins where the store ends. Everything else is tried again.
func (r *Recorder) Run(ctx context.Context) error {
	const first, last = 250 * time.Millisecond, 10 * time.Second
	var wg sync.WaitGroup
	deliverCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer wg.Wait()
	defer stop()
	delay, said := first, ""
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
			delay, said = first, ""
		}
		r.set(func(s *Status) { s.Error = err.Error() })
		if err.Error() != said {
			said = err.Error()
			klog.Warningf("changes: %v; trying again", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(delay):
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

// session is one connection to etcd: it begins where the last one, or the store, ends.
func (r *Recorder) session(ctx context.Context, start func(*outbox)) error {
	src, err := r.cfg.Dial(ctx)
	if err != nil {
		return err
	}
	defer src.Close()
	newest, id, err := revision(ctx, src)
	if err != nil {
		return err
	}
	switch {
	case r.out == nil:
		if err := r.begin(ctx, src, newest, id); err != nil {
			return err
		}
		start(r.out)
	case id != r.origin.clusterID:
		return ErrOtherCluster
	case newest < r.b.last:
		return fmt.Errorf("etcd has only revision %d and %d was seen: %w", newest, r.b.last, ErrOtherCluster)
	}
	r.late = newest
	err = r.follow(ctx, src)
	var gone *etcd.CompactedError
	if errors.As(err, &gone) {
		return r.skip(ctx, src, gone)
	}
	if errors.Is(err, errFull) {
		klog.Warningf("changes: %v; recording stops until it does", err)
		r.set(func(s *Status) { s.Error = err.Error() })
		return r.out.drain(ctx)
	}
	return err
}

// begin finds out where the store's chain ends.
func (r *Recorder) begin(ctx context.Context, src Source, newest int64, clusterID uint64) error {
	h, err := findHead(ctx, r.cfg.Catalog, src, clusterID, newest)
	if err != nil {
		return err
	}
	newest = h.newest
	if h.fresh {
		rec := catalog.IncarnationRecord{ID: h.incarnation, ClusterName: r.cfg.ClusterName, ClusterID: catalog.HexID(clusterID), Began: r.cfg.Now().UTC(), Revision: newest}
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
	r.origin = origin{incarnation: h.incarnation, clusterName: r.cfg.ClusterName, clusterID: clusterID, node: r.cfg.Node, term: r.cfg.Term, toolVersion: r.cfg.ToolVersion}
	out := newOutbox(r.cfg.Catalog, h.incarnation, r.cfg.Dir, r.cfg.SpillBytes)
	head, err := out.adopt(h.name)
	if err != nil {
		return err
	}
	switch {
	case head.Sum != "":
		if r.prev, err = r.sumOf(ctx, out, head); err != nil {
			return err
		}
		r.b, r.seen, r.kept = newBuilderAt(head.Last, head.Ended), head.Ended, head.Ended
		if catalog.NewSegmentSum(r.prev) != head.Sum { // nothing can lead through it
			why := fmt.Sprintf("segment %s, the last one before, is damaged", head)
			r.beginChain(head.Last, head.Ended, why)
			r.cfg.Gap(why)
		}
		r.leaveFuture()
	case h.base > 0 && h.base <= newest:
		r.beginChain(h.base, h.baseTime, "no changes behind the backup at its beginning are here")
	default:
		r.beginChain(newest, r.cfg.Now(), "changes are kept from here on")
		r.cfg.Gap("changes are kept from now on; a backup is needed that they can be put on")
	}
	r.lastSeal = r.cfg.Now()
	r.mu.Lock()
	r.out, r.status = out, Status{Incarnation: h.incarnation, Seen: r.b.last, Archived: h.name.Last, Until: h.name.Ended}
	r.mu.Unlock()
	klog.Infof("changes: recording incarnation %s behind revision %d (newest %d)", h.incarnation, r.b.last, newest)
	return nil
}

// tellServing records that this incarnation serves. That somebody with a higher term has written another one is that one's to know.
func (r *Recorder) tellServing(ctx context.Context, i catalog.Incarnation, clusterID uint64, newest int64) error {
	s := catalog.Serving{Incarnation: i, ClusterName: r.cfg.ClusterName, ClusterID: catalog.HexID(clusterID), Token: r.cfg.Token, Revision: newest, Node: r.cfg.Node}
	if !r.cfg.Unfenced {
		s.Term = r.cfg.Term
	}
	err := r.cfg.Catalog.PutServing(ctx, s)
	if errors.Is(err, catalog.ErrFenced) || errors.Is(err, cluster.ErrFuture) {
		klog.Warningf("changes: %v", err)
		return nil
	}
	return err
}

func (r *Recorder) beginChain(last int64, seen time.Time, why string) {
	r.b, r.seen, r.kept, r.prev, r.begins = newBuilder(last), seen, seen, nil, why
}

// leaveFuture begins a new chain, and asks for a backup, where the one so far ends in the future: a clock was ahead. Times never go back within a chain, so
// everything would have the same time in it until the clocks get there.
func (r *Recorder) leaveFuture() {
	now := r.cfg.Now()
	ahead := r.kept.Sub(now)
	if ahead <= clockSlack {
		return
	}
	why := fmt.Sprintf("the changes up to revision %d are dated %s ahead of the clock of node %s: a clock is or was wrong", r.b.first-1, ahead.Round(time.Second), r.cfg.Node)
	klog.Warningf("changes: %s; another chain begins", why)
	r.beginChain(r.b.first-1, now, why)
	r.cfg.Gap(why)
}

// sumOf is the whole checksum of the segment that the next one is to name.
func (r *Recorder) sumOf(ctx context.Context, out *outbox, n catalog.SegmentName) ([]byte, error) {
	for _, w := range out.names() {
		if w == n {
			data, err := readSpilled(out, n)
			if err != nil {
				return nil, err
			}
			return sumOf(data), nil
		}
	}
	data, err := r.cfg.Catalog.ReadSegment(ctx, catalog.Segment{SegmentName: n, Incarnation: r.origin.incarnation})
	if err != nil {
		return nil, err
	}
	return sumOf(data), nil
}

// skip begins a new chain behind what etcd has dropped.
func (r *Recorder) skip(ctx context.Context, src Source, gone *etcd.CompactedError) error {
	if err := r.cut(ctx); err != nil {
		return err
	}
	newest, _, err := revision(ctx, src)
	if err != nil {
		return err
	}
	why := fmt.Sprintf("the changes from revision %d to %d were compacted by etcd before they could be kept", r.b.last+1, gone.Revision-1)
	h, err := findHead(ctx, r.cfg.Catalog, src, r.origin.clusterID, newest)
	if err == nil && h.incarnation == r.origin.incarnation && h.base >= gone.Revision-1 && h.base <= newest && h.base > r.b.last {
		why += fmt.Sprintf("; a backup has revision %d", h.base)
		r.beginChain(h.base, h.baseTime, why)
	} else {
		r.beginChain(newest, r.cfg.Now(), why)
		defer r.cfg.Gap(why)
	}
	klog.Warningf("changes: %s", why)
	r.set(func(s *Status) { s.Gaps++; s.LastGap = why })
	return errors.New(why)
}

// silence is how long a stream may bring nothing although its progress is asked for every second: a member whose machine has gone doesn't end the
// connection, and the system takes a quarter of an hour to give it up. etcd may compact what is lacking long before.
const silence = 15 * time.Second

// revision asks for the newest one, with patience that ends.
func revision(ctx context.Context, src Source) (int64, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	return src.Revision(ctx)
}

// follow takes over what comes until the stream breaks.
func (r *Recorder) follow(ctx context.Context, src Source) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := src.WatchAll(ctx, r.b.last+1)
	if err != nil {
		return err
	}
	defer stream.Close()
	type arrival struct {
		batch etcd.Batch
		err   error
	}
	arrivals := make(chan arrival)
	go func() {
		for {
			b, err := stream.Next()
			select {
			case arrivals <- arrival{b, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	// What came is kept, whatever ends the connection.
	defer func() {
		cctx, stop := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
		defer stop()
		if cerr := r.cut(cctx); cerr != nil && err == nil {
			err = cerr
		}
	}()
	tick := time.NewTicker(min(time.Second, r.cfg.Interval/4))
	defer tick.Stop()
	asked, heard := time.Time{}, time.Now()
	var f flushing
	defer func() { f.end(errors.New("the connection to etcd broke; try again")) }()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case a := <-arrivals:
			if a.err != nil {
				return a.err
			}
			if err := r.take(ctx, src, a.batch); err != nil {
				return err
			}
			heard = time.Now()
		case answer := <-r.flush:
			if err := f.begin(ctx, src, stream, answer); err != nil {
				return err
			}
		case <-tick.C:
			select {
			case <-r.out.lost:
				_, _, err := r.out.waiting()
				return err
			default:
			}
			if time.Since(heard) > silence {
				return fmt.Errorf("etcd has told nothing for %s; another connection is made", silence)
			}
			if now := r.cfg.Now(); now.Sub(asked) >= time.Second {
				asked = now
				if err := stream.AskProgress(); err != nil {
					return err
				}
			}
		}
		if f.due(r.b.last) {
			if err := r.cut(ctx); err != nil {
				return err
			}
			f.end(nil)
		}
		if err := r.cutIfDue(ctx); err != nil {
			return err
		}
	}
}

// flushing is somebody who waits until everything up to a revision is on its way to the store.
type flushing struct {
	upTo    int64
	answers []chan error
}

func (f *flushing) begin(ctx context.Context, src Source, stream *etcd.Changes, answer chan error) error {
	newest, _, err := revision(ctx, src)
	if err != nil {
		answer <- err
		return nil
	}
	f.upTo = max(f.upTo, newest)
	f.answers = append(f.answers, answer)
	return stream.AskProgress()
}

func (f *flushing) due(last int64) bool { return len(f.answers) > 0 && last >= f.upTo }

func (f *flushing) end(err error) {
	for _, a := range f.answers {
		a <- err
	}
	f.answers = nil
}

// take adds what came at once.
func (r *Recorder) take(ctx context.Context, src Source, b etcd.Batch) error {
	now := r.cfg.Now()
	for _, t := range b.Transactions {
		for _, e := range t.Events {
			if id := e.Kv.Lease; id != 0 && !r.b.leases[id] {
				if err := r.b.lease(id, r.ttl(ctx, src, id)); err != nil {
					return err
				}
			}
		}
		if err := r.b.add(t); err != nil {
			return err
		}
		if r.pending.IsZero() {
			r.pending = now
		}
		if t.Revision == r.late {
			if err := r.b.mark(now, r.seen); err != nil {
				return err
			}
			r.seen = now
		}
		if r.b.content.Len() >= r.cfg.SegmentBytes || r.b.last-r.b.first+1 >= catalog.MaxSegmentRevisions {
			if err := r.b.mark(now, r.since()); err != nil {
				return err
			}
			if err := r.cut(ctx); err != nil {
				return err
			}
		}
	}
	// A revision that is ahead of what came says that more is on its way.
	if len(b.Transactions) > 0 || b.Revision == r.b.last {
		if err := r.b.mark(now, r.since()); err != nil {
			return err
		}
		if r.b.last >= r.late {
			r.seen = now
		}
	}
	r.set(func(s *Status) { s.Seen, s.Error = r.b.last, "" })
	return nil
}

// since is from when on the newest revision can have been made; zero if it came as it was made.
func (r *Recorder) since() time.Time {
	if r.b.last > r.late || r.b.empty() {
		return time.Time{}
	}
	return r.seen
}

// ttlTimeout bounds the question for a lease: changes must not wait for it.
const ttlTimeout = 2 * time.Second

// maxTTLs bounds how many leases are remembered.
const maxTTLs = 1 << 16

// ttlPause is for how long no lease is asked for after an answer didn't come: there may be hundreds, and changes would come ever later.
const ttlPause = 10 * time.Second

// ttl asks for a lease once. One that is gone, or of which nothing can be learned, is 0.
func (r *Recorder) ttl(ctx context.Context, src Source, id int64) int64 {
	if ttl, ok := r.ttls[id]; ok {
		return ttl
	}
	if r.cfg.Now().Before(r.ttlsAgain) {
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, ttlTimeout)
	defer cancel()
	ttl, err := src.LeaseTTL(ctx, id)
	if err != nil {
		klog.V(2).Infof("changes: lease %x: %v", id, err)
		if ctx.Err() != nil {
			r.ttlsAgain = r.cfg.Now().Add(ttlPause)
		}
		return 0
	}
	if len(r.ttls) >= maxTTLs {
		clear(r.ttls)
	}
	r.ttls[id] = ttl
	return ttl
}

// cutIfDue ends the segment when its time has come: a little before a change would have waited for the whole interval, or when nothing has happened for long.
func (r *Recorder) cutIfDue(ctx context.Context) error {
	now := r.cfg.Now()
	switch {
	case !r.pending.IsZero() && now.Sub(r.pending) >= r.cfg.Interval*8/10:
	case r.pending.IsZero() && now.Sub(r.lastSeal) >= r.cfg.Idle && !r.b.started.IsZero():
		if waiting, _, _ := r.out.waiting(); waiting > 0 {
			return nil
		}
	default:
		return nil
	}
	return r.cut(ctx)
}

// cut ends the segment, unless it has nothing to say, and hands it on.
func (r *Recorder) cut(ctx context.Context) error {
	if r.b == nil || r.b.started.IsZero() || r.b.empty() && r.cfg.Now().Sub(r.lastSeal) < r.cfg.Idle {
		return nil
	}
	s, err := r.b.seal(ctx, r.origin, r.prev, r.begins, r.cfg.Catalog.Sealer())
	if err == nil {
		err = r.out.push(ctx, s)
	}
	// Without it there is no going on; what it held is asked for again.
	if err != nil {
		r.b, r.pending, r.seen = newBuilderAt(r.b.first-1, r.kept), time.Time{}, r.kept
		return err
	}
	klog.V(4).Infof("changes: revisions %d to %d in %d bytes, %s", s.name.First, s.name.Last, len(s.data), hex.EncodeToString(s.sum[:4]))
	r.prev, r.begins, r.kept = s.sum, "", s.name.Ended
	r.b, r.pending, r.lastSeal = newBuilderAt(s.name.Last, r.kept), time.Time{}, r.cfg.Now()
	r.leaveFuture()
	return nil
}
