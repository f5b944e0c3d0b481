package changelog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// FlushError says that the store may lack changes that clients were told of.
type FlushError struct {
	// Stored is the revision up to which the store has everything. 0 means that this isn't known either.
	Stored int64
	// Newest is the revision that the cluster had when the flush began; 0 if no quorum said it.
	// Then nobody knows whether the store lacks anything.
	Newest int64
	// Err is what went wrong.
	Err error
}

// Error says both.
func (e *FlushError) Error() string {
	if e.Newest == 0 {
		return fmt.Sprintf("the store has everything up to revision %d; whether etcd has more isn't known: %v", e.Stored, e.Err)
	}
	return fmt.Sprintf("the store has everything up to revision %d of %d: %v", e.Stored, e.Newest, e.Err)
}

// Unwrap gives the cause.
func (e *FlushError) Unwrap() error { return e.Err }

// errEnded means that nothing is recorded any more.
var errEnded = errors.New("the recording of changes has ended")

// flushing is somebody who waits until everything up to a revision is on its way to the store.
type flushing struct {
	upTo   int64
	answer chan error
	// since is when that revision had come; leases that aren't known are waited for a little longer.
	since time.Time
}

// leasePatience is how long a flush waits for leases whose TTL was asked for.
const leasePatience = time.Second

// Flush brings everything into the store that a quorum had acknowledged when it was called, and
// returns up to which revision that is. Members that are silent don't stop it as long as one
// answers. An error is a *FlushError.
func (r *Recorder) Flush(ctx context.Context) (int64, error) {
	r.mu.Lock()
	id := r.recorded
	r.mu.Unlock()
	newest, _, err := newestRevision(ctx, r.cfg.Members, id)
	if err == nil {
		err = r.flushTo(ctx, newest)
	}
	if err != nil {
		return 0, &FlushError{Stored: r.Status().Archived, Newest: newest, Err: err}
	}
	return newest, nil
}

func (r *Recorder) flushTo(ctx context.Context, revision int64) error {
	f := &flushing{upTo: revision, answer: make(chan error, 1)}
	r.mu.Lock()
	if r.ended {
		r.mu.Unlock()
		return errEnded
	}
	r.flushes = append(r.flushes, f)
	r.mu.Unlock()
	select {
	case r.asked <- struct{}{}:
	default:
	}
	defer r.removeFlush(f)
	select {
	case err := <-f.answer:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("etcd's changes up to revision %d have not arrived: %w", revision, context.Cause(ctx)), r.failing())
	}
	r.mu.Lock()
	out := r.out
	r.mu.Unlock()
	return out.drain(ctx)
}

// failing is why nothing is recorded; nil if all is well.
func (r *Recorder) failing() error {
	if s := r.Status(); s.Error != "" {
		return errors.New(s.Error)
	}
	return nil
}

func (r *Recorder) removeFlush(f *flushing) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flushes = slices.DeleteFunc(r.flushes, func(o *flushing) bool { return o == f })
}

func (r *Recorder) flushWanted() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.flushes) > 0
}

// flushDue are those whose changes have come.
func (r *Recorder) flushDue() []*flushing {
	r.mu.Lock()
	defer r.mu.Unlock()
	var due []*flushing
	for _, f := range r.flushes {
		// What was learned of leases needs a segment, and that the word of etcd that nothing else has come.
		if r.b.last < f.upTo || len(r.book.told) > 0 && r.b.started.IsZero() {
			continue
		}
		if f.since.IsZero() {
			f.since = time.Now()
		}
		if len(r.book.open) == 0 || time.Since(f.since) >= leasePatience {
			due = append(due, f)
		}
	}
	return due
}

func (r *Recorder) answerFlushes(due []*flushing) {
	for _, f := range due {
		f.answer <- nil
		r.removeFlush(f)
	}
}

// endFlushes answers all that wait: nothing more is recorded.
func (r *Recorder) endFlushes(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	for _, f := range r.flushes {
		f.answer <- err
	}
	r.flushes = nil
}

// askAgain is the pause after no member could say the newest revision, as while etcd elects a leader.
const askAgain = 250 * time.Millisecond

// NewestRevision asks all members at once for the cluster's newest revision and takes the first answer, which is linearizable: it covers
// everything that was acknowledged before the call. So it doesn't matter which member answers, also where several share a name: a quorum
// has said it. It asks again until the context ends.
func NewestRevision(ctx context.Context, members func() []Dialer) (revision int64, clusterID uint64, err error) {
	return newestRevision(ctx, members, 0)
}

// newestRevision is NewestRevision of one cluster, if only isn't 0: what a member of another one answers, which is found at the same
// address, says nothing of this one.
func newestRevision(ctx context.Context, members func() []Dialer, only uint64) (revision int64, clusterID uint64, err error) {
	err = errors.New("no member of etcd serves")
	for {
		revision, clusterID, rerr := firstRevision(ctx, members(), only)
		if rerr == nil {
			return revision, clusterID, nil
		}
		if ctx.Err() == nil || !errors.Is(rerr, context.Cause(ctx)) {
			err = rerr
		}
		select {
		case <-ctx.Done():
			return 0, 0, fmt.Errorf("no member could report the newest revision: %w", errors.Join(err, context.Cause(ctx)))
		case <-time.After(askAgain):
		}
	}
}

func firstRevision(ctx context.Context, members []Dialer, only uint64) (int64, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, silenceOfSome)
	defer cancel()
	type answer struct {
		revision int64
		cluster  uint64
		err      error
	}
	ch := make(chan answer, len(members))
	for _, dial := range members {
		go func() {
			src, err := dial(ctx)
			if err != nil {
				ch <- answer{err: err}
				return
			}
			defer src.Close()
			revision, cluster, err := src.Revision(ctx)
			if err == nil && only != 0 && cluster != only {
				err = fmt.Errorf("a member of another cluster (%x, not %x) answers", cluster, only)
			}
			ch <- answer{revision, cluster, err}
		}()
	}
	err := errors.New("no member of etcd serves")
	for range members {
		a := <-ch
		if a.err == nil {
			return a.revision, a.cluster, nil
		}
		err = a.err
	}
	return 0, 0, err
}
