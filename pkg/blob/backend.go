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
