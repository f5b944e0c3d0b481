package changelog

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
)

// session is one connection to etcd: it begins where the last one, or the store, ends.
func (r *Recorder) session(ctx context.Context, start func(*outbox)) error {
	members := r.cfg.Members()
	if len(members) == 0 {
		return errors.New("no member of etcd serves")
	}
	r.patience = r.patienceWith(len(members))
	src, err := members[r.member%len(members)](ctx)
	if err != nil {
		r.member++
		return err
	}
	defer src.Close()
	newest, id, err := revision(ctx, src, r.patience)
	if err != nil {
		r.member++
		r.silent++
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
		return fmt.Errorf("etcd has only revision %d, but %d was seen: %w", newest, r.b.last, ErrOtherCluster)
	}
	r.late = newest
	err = r.follow(ctx, src)
	var gone *client.CompactedError
	var skipped *client.SkippedError
	switch {
	case errors.As(err, &gone):
		return r.skip(ctx, src, gone.Revision, "were compacted by etcd before they could be kept")
	case errors.As(err, &skipped) && skipped.Next > skipped.After:
		return r.skip(ctx, src, skipped.Next, "were left out by etcd, which sent the changes after them")
	}
	if errors.Is(err, errFull) {
		klog.Warningf("changes: %v; recording stops until it does", err)
		r.set(func(s *Status) { s.Error = err.Error() })
		return r.out.drain(ctx)
	}
	if err != nil {
		r.member++
	}
	return err
}

// skip begins a new chain after revisions that etcd won't send: those before the one that is next. what says what has become of them.
func (r *Recorder) skip(ctx context.Context, src Source, next int64, what string) error {
	if err := r.cut(ctx); err != nil {
		return err
	}
	newest, _, err := revision(ctx, src, r.patience)
	if err != nil {
		return err
	}
	why := fmt.Sprintf("the changes from revision %d to %d %s", r.b.last+1, next-1, what)
	h, err := findHead(ctx, r.cfg.Catalog, src, r.origin.clusterID, newest)
	if err == nil && h.incarnation == r.origin.incarnation && h.base >= next-1 && h.base <= newest && h.base > r.b.last {
		why += fmt.Sprintf("; a backup has revision %d", h.base)
		r.beginChain(h.base, h.baseTime, why)
	} else {
		r.beginChain(newest, r.cfg.Now(), why)
		defer r.cfg.Gap(why)
	}
	klog.Warningf("changes: %s", why)
	r.set(func(s *Status) { s.Gaps++; s.LastGap, s.Seen = why, r.b.last })
	return errors.New(why)
}

// silence is how long a stream may bring nothing although its progress is asked for every second: a member whose machine has gone doesn't
// end the connection, and the system takes a quarter of an hour to give it up. etcd may compact what is lacking long before. Where another
// member can be asked, less will do, and where somebody waits for the store to have everything, still less.
const (
	silence         = 15 * time.Second
	silenceOfSome   = 5 * time.Second
	silenceOfFlush  = 1500 * time.Millisecond
	longestPatience = 15 * time.Second
)

// patienceWith says how long the member that is connected to next may be silent. It grows while all are, as on a machine that is busy.
func (r *Recorder) patienceWith(members int) time.Duration {
	patience := silence
	switch {
	case members > 1 && r.flushWanted():
		patience = silenceOfFlush
	case members > 1:
		patience = silenceOfSome
	}
	return min(patience<<min(r.silent/members, 4), longestPatience)
}

// revision asks for the newest one, with patience that ends.
func revision(ctx context.Context, src Source, patience time.Duration) (int64, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return src.Revision(ctx)
}

type arrival struct {
	batch client.Batch
	// at is when it came: what the recorder does meanwhile, as sealing a segment, makes no change later.
	at  time.Time
	err error
}

// receive hands on what comes until the stream or the context ends.
func receive(ctx context.Context, stream *client.Changes, now func() time.Time) <-chan arrival {
	arrivals := make(chan arrival, 8)
	go func() {
		for {
			b, err := stream.Next()
			a := arrival{b, now(), err}
			select {
			case arrivals <- a:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return arrivals
}

// following is one stream of changes and what was asked beside it.
type following struct {
	r      *Recorder
	src    Source
	stream *client.Changes
	// asked is when progress was asked for, heard when something came.
	asked, heard time.Time
	leases       asker
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
	arrivals := receive(ctx, stream, r.cfg.Now)
	f := &following{r: r, src: src, stream: stream, heard: time.Now(), leases: asker{book: r.book}}
	// What came is kept, whatever ends the connection.
	defer func() {
		f.leases.end()
		cctx, stop := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
		defer stop()
		if cerr := r.cut(cctx); cerr != nil && err == nil {
			err = cerr
		}
	}()
	tick := time.NewTicker(min(time.Second, r.cfg.Interval/4))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case a := <-arrivals:
			err := r.take(ctx, a.batch, a.at)
			if err = errors.Join(err, a.err); err != nil {
				return err
			}
			f.heard, r.silent = time.Now(), 0
		case a := <-f.leases.answers:
			f.leases.take(a)
		case <-r.asked:
			// The patience with a member that is silent already ends sooner now.
			r.patience = min(r.patience, r.patienceWith(len(r.cfg.Members())))
			if err := stream.AskProgress(); err != nil {
				return err
			}
		case <-tick.C:
			if err := f.tick(); err != nil {
				return err
			}
		}
		if err := f.proceed(ctx); err != nil {
			return err
		}
	}
}

// tick looks whether all goes on.
func (f *following) tick() error {
	r := f.r
	select {
	case <-r.out.lost:
		_, _, err := r.out.waiting()
		return err
	default:
	}
	if time.Since(f.heard) > r.patience {
		r.silent++
		return fmt.Errorf("etcd has sent nothing for %s; trying another connection", r.patience)
	}
	if now := r.cfg.Now(); now.Sub(f.asked) >= time.Second || r.flushWanted() {
		f.asked = now
		return f.stream.AskProgress()
	}
	return nil
}

// proceed asks for leases, and hands on what is due.
func (f *following) proceed(ctx context.Context) error {
	r := f.r
	if f.leases.settle(r.b.last) && r.pending.IsZero() {
		r.pending = r.cfg.Now()
	}
	f.leases.ask(ctx, f.src)
	r.set(func(s *Status) { s.UnknownLeases = len(r.book.open) })
	if due := r.flushDue(); len(due) > 0 {
		if err := r.cut(ctx); err != nil {
			return err
		}
		r.answerFlushes(due)
	}
	return r.cutIfDue(ctx)
}

// take adds what came at once, at a time.
func (r *Recorder) take(ctx context.Context, b client.Batch, now time.Time) error {
	for _, t := range b.Transactions {
		if err := r.b.add(t); err != nil {
			return err
		}
		r.book.see(t)
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

// cutIfDue ends the segment when its time has come: a little before a change would have waited for
// the whole interval, or when nothing has happened for long.
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
	if r.b == nil || r.b.started.IsZero() || r.b.empty() && len(r.book.told) == 0 && r.cfg.Now().Sub(r.lastSeal) < r.cfg.Idle {
		return nil
	}
	s, err := r.seal(ctx)
	if err == nil {
		err = r.out.push(ctx, s)
	}
	// Without it there is no going on; what it held is asked for again.
	if err != nil {
		r.book.lost(r.b.first)
		r.b, r.pending, r.seen = newBuilderAt(r.b.first-1, r.kept), time.Time{}, r.kept
		return err
	}
	klog.V(4).Infof("changes: revisions %d to %d in %d bytes, %s", s.name.First, s.name.Last, len(s.data), hex.EncodeToString(s.sum[:4]))
	r.book.stored()
	r.prev, r.begins, r.kept = s.sum, "", s.name.Ended
	r.b, r.pending, r.lastSeal = newBuilderAt(s.name.Last, r.kept), time.Time{}, r.cfg.Now()
	r.leaveFuture()
	return nil
}

// seal ends the segment with what is known of leases by now.
func (r *Recorder) seal(ctx context.Context) (sealed, error) {
	for _, l := range r.book.entries() {
		if err := r.b.lease(l); err != nil {
			return sealed{}, err
		}
	}
	r.b.unknown = r.book.owed()
	return r.b.seal(ctx, r.origin, r.prev, r.begins, r.cfg.Catalog.Sealer())
}
