package blob

import (
	"context"
	"io"
	"iter"
	"time"
)

// Event is one finished operation of a Store.
type Event struct {
	// Op is the operation ("put", "get", "stat", "list", "purge").
	Op string
	// Key is the key or prefix as the caller gave it.
	Key string
	// Bytes is the number of bytes that the caller's body gave or its reader took.
	Bytes int64
	// Duration is the time from the call to the end, for "get" to Close, for "list" to the end of the sequence.
	Duration time.Duration
	// Err is the result; of a "get" also the error of reading.
	Err error
}

// Observe returns a Store that calls f after every operation of s, concurrently. It is where metrics and logs hang.
func Observe(s Store, f func(Event)) Store { return &observer{s, f} }

type observer struct {
	s Store
	f func(Event)
}

// Unwrap is for Locks.
func (o *observer) Unwrap() Store { return o.s }

// Put implements Store.
func (o *observer) Put(ctx context.Context, key string, body io.Reader, opts PutOptions) (Info, error) {
	start := time.Now()
	counted := &countReader{r: body}
	var wrapped io.Reader = counted
	if s, ok := body.(io.Seeker); ok {
		wrapped = seekCountReader{counted, s}
	}
	info, err := o.s.Put(ctx, key, wrapped, opts)
	o.f(Event{"put", key, counted.n, time.Since(start), err})
	return info, err
}

type countReader struct {
	r io.Reader
	n int64
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// seekCountReader keeps a body seekable, which Retry needs.
type seekCountReader struct {
	*countReader
	io.Seeker
}

// Get implements Store.
func (o *observer) Get(ctx context.Context, key string, r Range) (io.ReadCloser, Info, error) {
	start := time.Now()
	rc, info, err := o.s.Get(ctx, key, r)
	if err != nil {
		o.f(Event{"get", key, 0, time.Since(start), err})
		return nil, info, err
	}
	return &observedReader{countReader: countReader{r: rc}, c: rc, done: func(n int64, err error) {
		o.f(Event{"get", key, n, time.Since(start), err})
	}}, info, nil
}

type observedReader struct {
	countReader
	c    io.Closer
	err  error
	done func(int64, error)
}

func (o *observedReader) Read(p []byte) (int, error) {
	n, err := o.countReader.Read(p)
	if err != nil && err != io.EOF {
		o.err = err
	}
	return n, err
}

func (o *observedReader) Close() error {
	err := o.c.Close()
	if o.done != nil {
		o.done(o.n, o.err)
		o.done = nil
	}
	return err
}

// Stat implements Store.
func (o *observer) Stat(ctx context.Context, key string) (Info, error) {
	start := time.Now()
	info, err := o.s.Stat(ctx, key)
	o.f(Event{"stat", key, 0, time.Since(start), err})
	return info, err
}

// List implements Store.
func (o *observer) List(ctx context.Context, prefix string, opts ListOptions) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		start := time.Now()
		var failed error
		defer func() { o.f(Event{"list", prefix, 0, time.Since(start), failed}) }()
		for e, err := range o.s.List(ctx, prefix, opts) {
			failed = err
			if !yield(e, err) {
				return
			}
		}
	}
}

// Purge implements Store.
func (o *observer) Purge(ctx context.Context, prefix string, match func(string) bool) (int, error) {
	start := time.Now()
	n, err := o.s.Purge(ctx, prefix, match)
	o.f(Event{"purge", prefix, 0, time.Since(start), err})
	return n, err
}
