package page

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/operator/health"
)

const (
	// readEvery is how often the store is read at most while somebody looks, readSoon while something is under way or waits. A store for
	// which a look takes long is read less often: for a twentieth of the time.
	readEvery, readSoon = 30 * time.Second, 10 * time.Second
	readShare           = 20
	// readTimeout bounds a reading. A page waits for the first one, and a little for a later one, then it shows what it has.
	readTimeout          = 30 * time.Second
	firstWait, laterWait = 4 * time.Second, time.Second
)

// errNotYet says that the first reading is under way.
var errNotYet = errors.New("it has not answered yet; load the page again in some seconds")

// errEmptied says that a store has nothing of the cluster that was in it. A place where a file system was mounted looks so.
var errEmptied = errors.New("it has nothing of the cluster any more that was in it; is the file system mounted?")

// Reader keeps what was read of a store, and reads it again if somebody looks and it is old: nobody looks, nothing is read. One reading is
// under way at a time. It may be used concurrently.
type Reader struct {
	base context.Context //nolint:containedctx // a reading outlives who asked for it, but not this
	read func(context.Context) (health.Facts, error)

	mu      sync.Mutex
	facts   health.Facts
	at      time.Time // of the last success
	tried   time.Time // when the last one ended
	took    time.Duration
	err     error
	reading chan struct{} // closed when the one under way has ended; nil if none is
}

// NewReader makes a reader; its readings end with base at the latest.
func NewReader(base context.Context, read func(context.Context) (health.Facts, error)) *Reader {
	return &Reader{base: base, read: read}
}

// Look returns what was read last, and when: zero if never. The error is why the last attempt has failed. It returns within seconds.
func (r *Reader) Look(ctx context.Context) (health.Facts, time.Time, error) {
	r.mu.Lock()
	if r.reading == nil && time.Since(r.tried) >= r.pause() {
		r.begin()
	}
	reading, wait := r.reading, laterWait
	if r.at.IsZero() {
		wait = firstWait
	}
	r.mu.Unlock()
	if reading != nil {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-reading:
		case <-t.C:
		case <-ctx.Done():
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil && r.at.IsZero() {
		return r.facts, r.at, errNotYet
	}
	return r.facts, r.at, r.err
}

// pause is for how long what was read is good enough.
func (r *Reader) pause() time.Duration {
	every := readEvery
	if r.at.IsZero() || r.facts.Running != nil || len(r.facts.Waiting) > 0 {
		every = readSoon
	}
	if r.err != nil {
		return min(max(readSoon, readShare*r.took), readEvery) // it may be back at any moment
	}
	return max(every, readShare*r.took)
}

// begin reads beside who looks. The lock is held.
func (r *Reader) begin() {
	done := make(chan struct{})
	r.reading = done
	go func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(r.base, readTimeout)
		defer cancel()
		began := time.Now()
		f, err := r.read(ctx)
		r.mu.Lock()
		defer r.mu.Unlock()
		if err == nil && f.Blank() && !r.at.IsZero() && !r.facts.Blank() {
			err = errEmptied
		}
		r.reading, r.tried, r.took, r.err = nil, time.Now(), time.Since(began), err
		if err == nil {
			r.facts, r.at = f, began
		}
	}()
}

// Latest keeps what a manager has said last. It is asked when somebody looks, by one at a time: a disk that hangs may keep the answer back
// for ever. It may be used concurrently.
type Latest[T any] struct {
	ask func() T

	mu     sync.Mutex
	said   T
	at     time.Time
	asking chan struct{} // closed when the question under way is answered; nil if none is
}

// NewLatest asks by ask, which may hang.
func NewLatest[T any](ask func() T) *Latest[T] { return &Latest[T]{ask: ask} }

// Look returns the answer, or after a second the last one, and when that was given: zero if never.
func (l *Latest[T]) Look(ctx context.Context) (T, time.Time) {
	l.mu.Lock()
	if l.asking == nil {
		done := make(chan struct{})
		l.asking = done
		go func() {
			defer close(done)
			said := l.ask()
			l.mu.Lock()
			defer l.mu.Unlock()
			l.said, l.at, l.asking = said, time.Now(), nil
		}()
	}
	asking := l.asking
	l.mu.Unlock()
	t := time.NewTimer(laterWait)
	defer t.Stop()
	select {
	case <-asking:
	case <-t.C:
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.said, l.at
}
