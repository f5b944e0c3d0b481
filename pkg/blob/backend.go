package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// Fill reads from r into buf, which grows up to limit bytes, until it is full or r ends. Backends use it.
func Fill(r io.Reader, buf []byte, limit int64) (data []byte, end bool, err error) {
	buf = buf[:0]
	for idle := 0; idle < 100; {
		if len(buf) == cap(buf) {
			if int64(cap(buf)) >= limit {
				return buf, false, nil
			}
			buf = append(make([]byte, 0, min(max(int64(cap(buf))*4, 32<<10), limit)), buf...)
		}
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if errors.Is(err, io.EOF) {
			return buf, true, nil
		}
		if err != nil {
			return buf, false, err
		}
		if n > 0 {
			idle = 0
		} else {
			idle++
		}
	}
	return buf, false, &BodyError{Err: io.ErrNoProgress}
}

// CheckContentRange checks that a server sends the bytes that were asked for, by its Content-Range, and returns the size of the object
// and that of the part. Backends use it.
func CheckContentRange(header string, r Range) (size, length int64, err error) {
	span, total, ok1 := strings.Cut(strings.TrimPrefix(header, "bytes "), "/")
	from, to, ok2 := strings.Cut(span, "-")
	if !ok1 || !ok2 {
		return 0, 0, fmt.Errorf("the server ignored the range: Content-Range %.100q", header)
	}
	var n [3]int64
	for i, field := range []string{from, to, total} {
		if n[i], err = strconv.ParseInt(field, 10, 64); err != nil {
			return 0, 0, fmt.Errorf("parse Content-Range %.100q: %w", header, err)
		}
	}
	want, err := CheckRange(r, n[2])
	if err != nil {
		return 0, 0, err
	}
	if n[0] != r.Offset || n[1]-n[0]+1 != want {
		return 0, 0, fmt.Errorf("the server sends bytes %.100q instead of %d at %d", span, want, r.Offset)
	}
	return n[2], want, nil
}

// Sleep waits for d, or for the end of ctx, whose error it then returns. Backends use it.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Fail wraps what a request of an operation returned. name is the object as the user would find it, and classify sets what the error means,
// and is not asked for an error of the caller's body or context, which says nothing of the store. Backends use it.
func Fail(ctx context.Context, op, name string, err error, classify func(e *Error)) error {
	if known, ok := err.(*Error); ok { //nolint:errorlint // what is wrapped already stays as it is
		return known
	}
	e := &Error{Op: op, Key: name, Err: err}
	var body *BodyError
	switch {
	case errors.As(err, &body):
	case ctx.Err() != nil:
		if !errors.Is(err, ctx.Err()) {
			e.Err = fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	default:
		classify(e)
	}
	return e
}
