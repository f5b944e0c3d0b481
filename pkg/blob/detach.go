package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"sync"
	"time"
)

const (
	// maxStuck is how many operations may hang at once before no more are begun.
	maxStuck = 16
	// grace is how long an operation may take to say itself that its context has ended.
	grace = 100 * time.Millisecond
	// closeWait bounds the closing of a reader.
	closeWait = 10 * time.Second
)

// Uninterruptible is a Store whose operations may block in the kernel whatever becomes of their
// context, as those on a frozen or lost file system do.
type Uninterruptible interface {
	Store
	// Uninterruptible does nothing; it marks the type.
	Uninterruptible()
}

// Detach returns a Store whose operations end with their context even while s hangs, with
// ErrTransient if it was the time that ended. It returns s itself unless that is Uninterruptible.
// What hangs goes on in a goroutine of its own, never touches the caller's body, function or buffer
// again, and at most 16 of them do so: then operations fail at once. It belongs below WithTimeouts.
func Detach(s Store) Store {
	if _, ok := s.(Uninterruptible); !ok {
		return s
	}
	return &detacher{s: s}
}

type detacher struct {
	s     Store
	mu    sync.Mutex
	stuck int
}

// String is the store's own URL.
func (d *detacher) String() string { return fmt.Sprint(d.s) }

// errHangs is the cause of what is given up.
var errHangs = errors.New("the file system hangs")

func (d *detacher) hangs(op, key string, kind, cause error) error {
	return &Error{Op: op, Key: strings.TrimSuffix(fmt.Sprint(d.s), "/") + "/" + key, Kind: kind, Err: fmt.Errorf("%w: %w", errHangs, cause)}
}

// errand is one operation on its goroutine.
type errand struct {
	calls            chan func()
	ran, gone, done  chan struct{}
	ended, abandoned bool // under the detacher's mutex
}

// onCaller has the caller run f, and reports false if the caller is gone: then f isn't run any more.
func (e *errand) onCaller(f func()) bool {
	select {
	case <-e.gone:
		return false
	default:
	}
	select {
	case e.calls <- f:
	case <-e.gone:
		return false
	}
	select {
	case <-e.ran:
		return true
	case <-e.gone:
		return false
	}
}

// run does work on a goroutine of its own and waits for it, or for the end of ctx. Only after nil are the results of work to be read. If
// the caller is gone before, drop is called where it is given.
func (d *detacher) run(ctx context.Context, op, key string, work func(*errand), drop func()) error {
	d.mu.Lock()
	stuck := d.stuck
	d.mu.Unlock()
	if stuck >= maxStuck {
		return d.hangs(op, key, ErrTransient, fmt.Errorf("%d operations are without an answer", stuck))
	}
	e := &errand{calls: make(chan func()), ran: make(chan struct{}, 1), gone: make(chan struct{}), done: make(chan struct{})}
	defer close(e.gone)
	go func() {
		work(e)
		d.mu.Lock()
		e.ended = true
		abandoned := e.abandoned
		d.mu.Unlock()
		if abandoned {
			if drop != nil {
				drop()
			}
			d.mu.Lock()
			d.stuck--
			d.mu.Unlock()
		}
		close(e.done)
	}()
	ended := ctx.Done()
	var last <-chan time.Time
	for {
		select {
		case f := <-e.calls:
			f()
			e.ran <- struct{}{}
		case <-e.done:
			return nil
		case <-ended:
			ended = nil
			t := time.NewTimer(grace)
			defer t.Stop()
			last = t.C
		case <-last:
			if d.abandon(e) {
				return d.gaveUp(ctx, op, key)
			}
			<-e.done
			return nil
		}
	}
}

// abandon reports whether the operation is still under way; it counts as stuck from then on.
func (d *detacher) abandon(e *errand) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e.ended {
		return false
	}
	e.abandoned = true
	d.stuck++
	return true
}

// gaveUp is the error of what was given up. That the caller wanted no more says nothing of the store.
func (d *detacher) gaveUp(ctx context.Context, op, key string) error {
	cause := context.Cause(ctx)
	if errors.Is(cause, errTimeout) || errors.Is(cause, context.DeadlineExceeded) {
		return d.hangs(op, key, ErrTransient, fmt.Errorf("no answer in time: %w", cause))
	}
	return d.hangs(op, key, nil, fmt.Errorf("given up: %w", cause))
}

// lentBody is the caller's body, which is read on the caller's goroutine only.
type lentBody struct {
	e *errand
	r io.Reader
}

func (b lentBody) Read(p []byte) (n int, err error) {
	if !b.e.onCaller(func() { n, err = b.r.Read(p) }) {
		return 0, errHangs
	}
	return n, err
}

// Put implements Store.
func (d *detacher) Put(ctx context.Context, key string, body io.Reader, opts PutOptions) (Info, error) {
	var info Info
	var err error
	if gone := d.run(ctx, "put", key, func(e *errand) { info, err = d.s.Put(ctx, key, lentBody{e, body}, opts) }, nil); gone != nil {
		return Info{}, gone
	}
	return info, err
}

// Get implements Store.
func (d *detacher) Get(ctx context.Context, key string, r Range) (io.ReadCloser, Info, error) {
	var rc io.ReadCloser
	var info Info
	var err error
	gone := d.run(ctx, "get", key, func(*errand) { rc, info, err = d.s.Get(ctx, key, r) }, func() {
		if err == nil {
			rc.Close()
		}
	})
	if gone != nil {
		return nil, Info{}, gone
	}
	if err != nil {
		return nil, info, err
	}
	return &detachedReader{d: d, ctx: ctx, key: key, rc: rc}, info, nil
}

// readBuffer bounds how much one Read takes.
const readBuffer = 256 << 10

// detachedReader reads into a buffer of its own, so that a Read that hangs can't write to the caller's.
type detachedReader struct {
	d   *detacher
	ctx context.Context
	key string
	rc  io.ReadCloser
	buf []byte
	// failed is set once a Read was given up, which then closes rc.
	failed error
}

func (r *detachedReader) Read(p []byte) (int, error) {
	if r.failed != nil {
		return 0, r.failed
	}
	size := min(len(p), readBuffer)
	if size > len(r.buf) {
		r.buf = make([]byte, size)
	}
	var n int
	var err error
	buf := r.buf[:size]
	r.failed = r.d.run(r.ctx, "get", r.key, func(*errand) { n, err = r.rc.Read(buf) }, func() { r.rc.Close() })
	if r.failed != nil {
		return 0, r.failed
	}
	return copy(p, buf[:n]), err
}

func (r *detachedReader) Close() error {
	if r.failed != nil {
		return nil // what hangs closes it
	}
	ctx, cancel := context.WithTimeout(r.ctx, closeWait)
	defer cancel()
	var err error
	r.failed = r.d.run(ctx, "get", r.key, func(*errand) { err = r.rc.Close() }, nil)
	if r.failed != nil {
		return r.failed
	}
	return err
}

// Stat implements Store.
func (d *detacher) Stat(ctx context.Context, key string) (Info, error) {
	var info Info
	var err error
	if gone := d.run(ctx, "stat", key, func(*errand) { info, err = d.s.Stat(ctx, key) }, nil); gone != nil {
		return Info{}, gone
	}
	return info, err
}

// List implements Store.
func (d *detacher) List(ctx context.Context, prefix string, opts ListOptions) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		stopped := false
		gone := d.run(ctx, "list", prefix, func(e *errand) {
			for entry, err := range d.s.List(ctx, prefix, opts) {
				more := false
				if !e.onCaller(func() { more = yield(entry, err); stopped = !more }) || !more {
					return
				}
			}
		}, nil)
		if gone != nil && !stopped {
			yield(Entry{}, gone)
		}
	}
}

// Purge implements Store.
func (d *detacher) Purge(ctx context.Context, prefix string, match func(string) bool) (int, error) {
	n := 0
	var err error
	gone := d.run(ctx, "purge", prefix, func(e *errand) {
		n, err = d.s.Purge(ctx, prefix, func(key string) (ok bool) { return e.onCaller(func() { ok = match(key) }) && ok })
	}, nil)
	if gone != nil {
		return 0, gone
	}
	return n, err
}
