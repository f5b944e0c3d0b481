package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"
)

// Timeouts bounds what must not hang. 0 means the default of a field, a negative bound none.
type Timeouts struct {
	// Small bounds a Stat, the opening of a Get, a Put whose body is an io.Seeker of at most 1 MiB,
	// and each step of a List. The default is 30 s.
	Small time.Duration
	// Idle bounds the time without progress in a Put or in reading from a Get. As a Put makes
	// progress when its body is read, and a store may read a few parts ahead, Idle must be longer
	// than the slowest upload of a few parts may take. The default is 10 min.
	Idle time.Duration
	// Purge bounds a Purge. The default is 10 min.
	Purge time.Duration
}

// smallBody is the greatest size in bytes of a body that Timeouts.Small is meant for.
const smallBody = 1 << 20

// WithTimeouts returns a Store that ends operations of s which take too long with ErrTransient.
func WithTimeouts(s Store, t Timeouts) Store {
	return &limiter{s, Timeouts{
		Small: orDefault(t.Small, 30*time.Second),
		Idle:  orDefault(t.Idle, 10*time.Minute),
		Purge: orDefault(t.Purge, 10*time.Minute),
	}}
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

type limiter struct {
	s Store
	t Timeouts
}

// errTimeout is the cause of the contexts that limiter ends itself.
var errTimeout = errors.New("the store took too long")

// guard is a context that ends after a time, unless its clock rests.
type guard struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	d      time.Duration
}

func newGuard(ctx context.Context, d time.Duration) *guard {
	g := &guard{d: d}
	g.ctx, g.cancel = context.WithCancelCause(ctx)
	if d > 0 {
		g.timer = time.AfterFunc(d, func() { g.cancel(errTimeout) })
	}
	return g
}

// rest stops the clock, for as long as it is the caller that takes its time.
func (g *guard) rest() {
	if g.timer != nil {
		g.timer.Stop()
	}
}

func (g *guard) end() {
	g.rest()
	g.cancel(nil)
}

// error turns the end that the guard itself made into ErrTransient.
func (g *guard) error(op, key string, err error) error {
	if err == nil || err == io.EOF || !errors.Is(context.Cause(g.ctx), errTimeout) {
		return err
	}
	if errors.Is(err, errHangs) {
		return err // it says more
	}
	return &Error{Op: op, Key: key, Kind: ErrTransient, Err: fmt.Errorf("%w: no progress for %s", errTimeout, g.d)}
}

// Unwrap is for Locks.
func (l *limiter) Unwrap() Store { return l.s }

// Put implements Store.
func (l *limiter) Put(ctx context.Context, key string, body io.Reader, opts PutOptions) (Info, error) {
	g := newGuard(ctx, l.t.Idle)
	if isSmall(body) {
		g.end()
		g = newGuard(ctx, l.t.Small)
	} else {
		body = &beatReader{body, g}
	}
	defer g.end()
	info, err := l.s.Put(g.ctx, key, body, opts)
	return info, g.error("put", key, err)
}

func isSmall(body io.Reader) bool {
	seeker, ok := body.(io.Seeker)
	if !ok {
		return false
	}
	now, err := seeker.Seek(0, io.SeekCurrent)
	if err != nil {
		return false
	}
	end, err := seeker.Seek(0, io.SeekEnd)
	if err != nil {
		return false
	}
	if _, err := seeker.Seek(now, io.SeekStart); err != nil {
		return false
	}
	return end-now <= smallBody
}

// beatReader starts the clock anew whenever the body is read. While the body itself is slow the clock rests.
type beatReader struct {
	r io.Reader
	g *guard
}

func (b *beatReader) Read(p []byte) (int, error) {
	if b.g.timer == nil || !b.g.timer.Stop() {
		return b.r.Read(p)
	}
	defer b.g.timer.Reset(b.g.d)
	return b.r.Read(p)
}

// Get implements Store.
func (l *limiter) Get(ctx context.Context, key string, r Range) (io.ReadCloser, Info, error) {
	open := newGuard(ctx, l.t.Small)
	rc, info, err := l.s.Get(open.ctx, key, r)
	if err != nil {
		err = open.error("get", key, err)
		open.end()
		return nil, info, err
	}
	open.rest()
	return &idleReader{rc: rc, g: open, idle: l.t.Idle, key: key}, info, nil
}

// idleReader bounds each Read; the clock rests in between.
type idleReader struct {
	rc   io.ReadCloser
	g    *guard
	idle time.Duration
	key  string
}

func (r *idleReader) Read(p []byte) (int, error) {
	if r.idle <= 0 {
		return r.rc.Read(p)
	}
	t := time.AfterFunc(r.idle, func() { r.g.cancel(errTimeout) })
	defer t.Stop()
	n, err := r.rc.Read(p)
	if err != nil && err != io.EOF && errors.Is(context.Cause(r.g.ctx), errTimeout) {
		err = &Error{Op: "get", Key: r.key, Kind: ErrTransient, Err: fmt.Errorf("%w: no byte for %s", errTimeout, r.idle)}
	}
	return n, err
}

func (r *idleReader) Close() error {
	err := r.rc.Close()
	r.g.end()
	return err
}

// Stat implements Store.
func (l *limiter) Stat(ctx context.Context, key string) (Info, error) {
	g := newGuard(ctx, l.t.Small)
	defer g.end()
	info, err := l.s.Stat(g.ctx, key)
	return info, g.error("stat", key, err)
}

// List implements Store.
func (l *limiter) List(ctx context.Context, prefix string, opts ListOptions) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		g := newGuard(ctx, l.t.Small)
		defer g.end()
		for e, err := range l.s.List(g.ctx, prefix, opts) {
			g.rest()
			if !yield(e, g.error("list", prefix, err)) {
				return
			}
			if g.timer != nil {
				g.timer.Reset(g.d)
			}
		}
	}
}

// Purge implements Store.
func (l *limiter) Purge(ctx context.Context, prefix string, match func(string) bool) (int, error) {
	g := newGuard(ctx, l.t.Purge)
	defer g.end()
	n, err := l.s.Purge(g.ctx, prefix, match)
	return n, g.error("purge", prefix, err)
}

// Bounds of clearing up after what failed.
const (
	cleanupTimeout = 15 * time.Second
	cleanupAtEnd   = 3 * time.Second
)

// Cleanup is a context for clearing up after something that failed. It goes on although ctx has ended or ends, but from then on only for a
// few seconds: whoever ends it waits, a manager that is told to stop for example, and the store may be what hangs.
func Cleanup(ctx context.Context) (context.Context, context.CancelFunc) {
	c, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-c.Done():
		case <-time.After(cleanupAtEnd):
			cancel()
		}
	})
	return c, func() { stop(); cancel() }
}
