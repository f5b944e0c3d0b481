package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"net"
	"sync"
	"time"
)

const (
	// hangsAfter is how long an operation may be without any progress before it counts as one that hangs.
	hangsAfter = 30 * time.Second
	// remembered is how long it still counts that an operation ended without an answer: it is about to be tried again.
	remembered = 50 * time.Second
)

// Hangs knows which operations of a store are without an answer, and for how long. That another one
// has an answer says nothing: a file system that is frozen answers reads, and a server may hang in
// some of what it does. It may be asked concurrently.
type Hangs struct {
	mu      sync.Mutex
	pending map[*pending]bool
	// gaveUp is what has ended without an answer, by what it was.
	gaveUp map[string]ended
}

// ended is an operation that was given up, once or several times in a row.
type ended struct{ since, at time.Time }

// pending is an operation that is under way.
type pending struct {
	h    *Hangs
	what string
	// last is when it last made progress; waiting is true while it waits for its caller.
	last    time.Time
	waiting bool
}

// WatchHangs returns a Store that tells h which operations of s make no progress. It belongs directly above WithTimeouts.
func WatchHangs(s Store) (Store, *Hangs) {
	h := &Hangs{pending: map[*pending]bool{}, gaveUp: map[string]ended{}}
	return &watched{s, h}, h
}

// Problem says what hangs and for how long; empty if nothing does.
func (h *Hangs) Problem() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	now, oldest, since := time.Now(), "", time.Time{}
	note := func(what string, t time.Time) {
		if now.Sub(t) >= hangsAfter && (oldest == "" || t.Before(since)) {
			oldest, since = what, t
		}
	}
	for p := range h.pending {
		if !p.waiting {
			note(p.what, p.last)
		}
	}
	for what, e := range h.gaveUp {
		if now.Sub(e.at) < remembered {
			note(what, e.since)
		}
	}
	if oldest == "" {
		return ""
	}
	return fmt.Sprintf("it hangs: %s has been without an answer for %s", oldest, now.Sub(since).Truncate(time.Second))
}

func (h *Hangs) begin(op, key string) *pending {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := &pending{h: h, what: op + " " + key, last: time.Now()}
	h.pending[p] = true
	return p
}

// progressed starts the clock of p anew.
func (p *pending) progressed() {
	p.h.mu.Lock()
	defer p.h.mu.Unlock()
	p.last = time.Now()
}

// waits stops the clock, for as long as it is the caller that takes its time; goesOn starts it again.
func (p *pending) waits()  { p.setWaiting(true) }
func (p *pending) goesOn() { p.setWaiting(false) }

func (p *pending) setWaiting(waiting bool) {
	p.h.mu.Lock()
	defer p.h.mu.Unlock()
	p.waiting, p.last = waiting, time.Now()
}

// end takes p off the list. An error that came from the store is an answer too; that the caller wanted no more says nothing.
func (p *pending) end(ctx context.Context, err error) {
	p.h.mu.Lock()
	defer p.h.mu.Unlock()
	if !p.h.pending[p] {
		return
	}
	delete(p.h.pending, p)
	now := time.Now()
	maps.DeleteFunc(p.h.gaveUp, func(_ string, e ended) bool { return now.Sub(e.at) >= remembered })
	switch e, again := p.h.gaveUp[p.what]; {
	case err != nil && unanswered(ctx, err):
		if !again {
			e.since = p.last
		}
		e.at = now
		p.h.gaveUp[p.what] = e
	case err != nil && (ctx.Err() != nil || errors.Is(err, context.Canceled)):
	default:
		delete(p.h.gaveUp, p.what)
	}
}

// unanswered tells whether it was the time that ended an operation: its own, its caller's, or that of a request.
func unanswered(ctx context.Context, err error) bool {
	var n net.Error
	return errors.Is(ctx.Err(), context.DeadlineExceeded) || errors.Is(err, errTimeout) || errors.Is(err, errHangs) &&
		errors.Is(err, ErrTransient) || errors.As(err, &n) && n.Timeout()
}

type progressKey struct{}

// Progressed is called by a backend when bytes of an operation have gone to the store or have come from it. ctx is the operation's.
func Progressed(ctx context.Context) {
	if p, ok := ctx.Value(progressKey{}).(*pending); ok {
		p.progressed()
	}
}

func (p *pending) in(ctx context.Context) context.Context {
	return context.WithValue(ctx, progressKey{}, p)
}

type watched struct {
	s Store
	h *Hangs
}

// Unwrap is for Locks.
func (w *watched) Unwrap() Store { return w.s }

// Put implements Store.
func (w *watched) Put(ctx context.Context, key string, body io.Reader, opts PutOptions) (Info, error) {
	p := w.h.begin("put", key)
	var lent io.Reader = &watchedBody{body, p}
	if s, ok := body.(io.Seeker); ok {
		lent = seekWatchedBody{&watchedBody{body, p}, s}
	}
	info, err := w.s.Put(p.in(ctx), key, lent, opts)
	p.end(ctx, err)
	return info, err
}

// watchedBody is the caller's body: that it is read is progress, and while it is slow the store isn't to blame.
type watchedBody struct {
	r io.Reader
	p *pending
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.p.waits()
	defer b.p.goesOn()
	return b.r.Read(p)
}

// seekWatchedBody keeps a body seekable.
type seekWatchedBody struct {
	*watchedBody
	io.Seeker
}

// Get implements Store.
func (w *watched) Get(ctx context.Context, key string, r Range) (io.ReadCloser, Info, error) {
	p := w.h.begin("get", key)
	rc, info, err := w.s.Get(p.in(ctx), key, r)
	if err != nil {
		p.end(ctx, err)
		return nil, info, err
	}
	p.waits()
	return &watchedReader{ctx: ctx, rc: rc, p: p}, info, nil
}

type watchedReader struct {
	ctx context.Context
	rc  io.ReadCloser
	p   *pending
	err error
}

func (r *watchedReader) Read(b []byte) (int, error) {
	r.p.goesOn()
	n, err := r.rc.Read(b)
	if err != nil && err != io.EOF {
		r.err = err
		r.p.end(r.ctx, err)
	} else {
		r.p.waits()
	}
	return n, err
}

func (r *watchedReader) Close() error {
	err := r.rc.Close()
	r.p.end(r.ctx, errors.Join(r.err, err))
	return err
}

// Stat implements Store.
func (w *watched) Stat(ctx context.Context, key string) (Info, error) {
	p := w.h.begin("stat", key)
	info, err := w.s.Stat(p.in(ctx), key)
	p.end(ctx, err)
	return info, err
}

// List implements Store.
func (w *watched) List(ctx context.Context, prefix string, opts ListOptions) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		p := w.h.begin("list", prefix)
		var failed error
		defer func() { p.end(ctx, failed) }()
		for e, err := range w.s.List(p.in(ctx), prefix, opts) {
			failed = err
			if err != nil {
				p.end(ctx, err) // an answer, however long the caller takes over it
			}
			p.waits()
			if !yield(e, err) {
				return
			}
			p.goesOn()
		}
	}
}

// Purge implements Store.
func (w *watched) Purge(ctx context.Context, prefix string, match func(string) bool) (int, error) {
	p := w.h.begin("purge", prefix)
	n, err := w.s.Purge(p.in(ctx), prefix, func(key string) bool {
		p.progressed()
		return match(key)
	})
	p.end(ctx, err)
	return n, err
}
