package blob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"time"
)

// RetryPolicy says how often and how patiently Retry tries.
type RetryPolicy struct {
	// Attempts is the greatest number of attempts, the first included; 0 means 5.
	Attempts int
	// Base is the mean pause after the first failure; it doubles with each further one. 0 means 200 ms.
	Base time.Duration
	// Max bounds a pause; 0 means 5 s.
	Max time.Duration
	// Rand returns numbers in [0, 1) for the jitter; nil means the standard source.
	Rand func() float64
}

func (p RetryPolicy) withDefaults() RetryPolicy {
	if p.Attempts == 0 {
		p.Attempts = 5
	}
	if p.Base == 0 {
		p.Base = 200 * time.Millisecond
	}
	if p.Max == 0 {
		p.Max = 5 * time.Second
	}
	if p.Rand == nil {
		p.Rand = rand.Float64
	}
	return p
}

// Retry returns a Store that tries operations of s again that failed with ErrTransient, until the context ends.
//
// A Put is only tried again if its body is an io.Seeker. If the answer to a conditional Put was
// lost and the next attempt finds the condition failed, the object is read: if it holds exactly the
// body, the first attempt has succeeded after all. So the body of a conditional put should be its
// writer's own. A Get goes on where the reader broke off, as long as the object is the same
// version. A List goes on behind the last entry that was yielded. A Purge starts over, which is
// harmless.
func Retry(s Store, p RetryPolicy) Store { return &retrier{s, p.withDefaults()} }

type retrier struct {
	s Store
	p RetryPolicy
}

// pause waits before attempt n, counted from 0, and reports whether there is to be one.
func (r *retrier) pause(ctx context.Context, n int, err error) bool {
	if n+1 >= r.p.Attempts || !errors.Is(err, ErrTransient) || ctx.Err() != nil {
		return false
	}
	d := min(r.p.Base<<min(n, 20), r.p.Max)
	d = time.Duration(float64(d) * (0.5 + r.p.Rand()))
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < d {
		return false // The error at hand says more than the end of the context.
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Unwrap is for Locks.
func (r *retrier) Unwrap() Store { return r.s }

// Put implements Store.
func (r *retrier) Put(ctx context.Context, key string, body io.Reader, opts PutOptions) (Info, error) {
	seeker, ok := body.(io.Seeker)
	if !ok {
		return r.s.Put(ctx, key, body, opts)
	}
	start, err := seeker.Seek(0, io.SeekCurrent)
	if err != nil {
		return r.s.Put(ctx, key, body, opts)
	}
	for n := 0; ; n++ {
		info, err := r.s.Put(ctx, key, body, opts)
		if n > 0 && errors.Is(err, ErrPreconditionFailed) {
			if found, same := r.holds(ctx, key, body, seeker, start); same {
				return found, nil
			}
			return info, err
		}
		if err == nil || !r.pause(ctx, n, err) {
			return info, err
		}
		if _, serr := seeker.Seek(start, io.SeekStart); serr != nil {
			return info, err
		}
	}
}

// holds reports whether the object's content is the body's, byte by byte.
func (r *retrier) holds(ctx context.Context, key string, body io.Reader, seeker io.Seeker, start int64) (Info, bool) {
	if _, err := seeker.Seek(start, io.SeekStart); err != nil {
		return Info{}, false
	}
	rc, info, err := r.Get(ctx, key, Range{})
	if err != nil {
		return Info{}, false
	}
	defer rc.Close()
	return info, sameContent(rc, body)
}

func sameContent(a, b io.Reader) bool {
	bufA, bufB := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, errA := io.ReadFull(a, bufA)
		m, errB := io.ReadFull(b, bufB)
		if !bytes.Equal(bufA[:n], bufB[:m]) {
			return false
		}
		endA, endB := isEnd(errA), isEnd(errB)
		if endA && endB {
			return true
		}
		if endA != endB || errA != nil || errB != nil {
			return false
		}
	}
}

// isEnd tells io.ReadFull's short read at the true end from an error that came from the reader itself.
func isEnd(err error) bool { return err == io.EOF || err == io.ErrUnexpectedEOF }

// Get implements Store.
func (r *retrier) Get(ctx context.Context, key string, rg Range) (io.ReadCloser, Info, error) {
	for n := 0; ; n++ {
		rc, info, err := r.s.Get(ctx, key, rg)
		if err == nil {
			length, rerr := CheckRange(rg, info.Size)
			if rerr != nil {
				return rc, info, nil
			}
			return &retryReader{ctx: ctx, r: r, key: key, rc: rc, info: info, offset: rg.Offset, left: length}, info, nil
		}
		if !r.pause(ctx, n, err) {
			return nil, info, err
		}
	}
}

// retryReader opens the object again where it broke off.
type retryReader struct {
	ctx          context.Context
	r            *retrier
	key          string
	rc           io.ReadCloser
	info         Info
	offset, left int64
	failures     int
}

func (g *retryReader) Read(p []byte) (int, error) {
	n, err := g.rc.Read(p)
	g.offset += int64(n)
	g.left -= int64(n)
	if n > 0 {
		g.failures = 0
	}
	if err == nil || err == io.EOF || g.left <= 0 {
		return n, err
	}
	for g.r.pause(g.ctx, g.failures, err) {
		g.failures++
		rc, info, oerr := g.r.s.Get(g.ctx, g.key, Range{Offset: g.offset, Length: g.left})
		if oerr != nil {
			err = oerr
			continue
		}
		if info.Version != g.info.Version {
			rc.Close()
			return n, &Error{Op: "get", Key: g.key, Err: fmt.Errorf("the object was replaced while it was read: %w", err)}
		}
		_ = g.rc.Close() // It has failed already.
		g.rc = rc
		return n, nil
	}
	return n, err
}

func (g *retryReader) Close() error { return g.rc.Close() }

// Stat implements Store.
func (r *retrier) Stat(ctx context.Context, key string) (Info, error) {
	for n := 0; ; n++ {
		info, err := r.s.Stat(ctx, key)
		if err == nil || !r.pause(ctx, n, err) {
			return info, err
		}
	}
}

// List implements Store.
func (r *retrier) List(ctx context.Context, prefix string, opts ListOptions) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for n := 0; ; n++ {
			var failed error
			for e, err := range r.s.List(ctx, prefix, opts) {
				if err != nil {
					failed = err
					break
				}
				n = 0
				opts.After = e.Key
				if !yield(e, nil) {
					return
				}
			}
			if failed == nil {
				return
			}
			if !r.pause(ctx, n, failed) {
				yield(Entry{}, failed)
				return
			}
		}
	}
}

// Purge implements Store.
func (r *retrier) Purge(ctx context.Context, prefix string, match func(string) bool) (int, error) {
	total := 0
	for n := 0; ; n++ {
		gone, err := r.s.Purge(ctx, prefix, match)
		total += gone
		// With a denial among the errors another attempt would be denied again.
		if err == nil || errors.Is(err, ErrDenied) || !r.pause(ctx, n, err) {
			return total, err
		}
	}
}
