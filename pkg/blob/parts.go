package blob

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"
)

// Parts says how a large body is cut into parts and sent. Backends use it.
type Parts struct {
	// Size is that of each part but the last, in bytes; some servers want all of them to be the same. Most is how many there may be, and
	// AtOnce how many are sent at once.
	Size         int64
	Most, AtOnce int
	// Read, if not nil, is called with each part in order, before it is sent.
	Read func(data []byte)
	// Send sends a part, beside others. Numbers begin at 1. data belongs to it until it returns.
	Send func(ctx context.Context, number int, data []byte) error
}

// SendAll sends first and the rest of body, with first and AtOnce buffers in all. It returns the size of all parts
// in bytes, and their number.
// The error is a *BodyError if the body can't be read or is too long, else that of Send.
func (p Parts) SendAll(ctx context.Context, first []byte, body io.Reader) (size int64, n int, err error) {
	g, gctx := errgroup.WithContext(ctx)
	free := make(chan []byte, p.AtOnce+1)
	for range p.AtOnce {
		free <- nil
	}
	data := first
	if int64(len(first)) > p.Size {
		body = io.MultiReader(bytes.NewReader(first[p.Size:]), body)
		data = first[:p.Size:p.Size]
	}
	err = func() error {
		for end := false; len(data) > 0; {
			if n == p.Most {
				return &BodyError{Err: fmt.Errorf("the body is longer than %d parts of %d bytes", p.Most, p.Size)}
			}
			n++
			size += int64(len(data))
			if p.Read != nil {
				p.Read(data)
			}
			number, sending := n, data
			g.Go(func() error {
				defer func() { free <- sending }()
				return p.Send(gctx, number, sending)
			})
			if end {
				return nil
			}
			var buf []byte
			select {
			case buf = <-free:
			case <-gctx.Done():
				return nil // Wait returns why.
			}
			if buf == nil {
				buf = make([]byte, 0, p.Size) // nearly always it is filled
			}
			var err error
			if data, end, err = Fill(body, buf, p.Size); err != nil {
				return err
			}
		}
		return nil
	}()
	if err != nil {
		// The body's error is the cause; what the parts under way then return is not.
		g.Go(func() error { return err })
	}
	if werr := g.Wait(); err == nil {
		err = werr
	}
	return size, n, err
}
