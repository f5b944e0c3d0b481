package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// body is an open object, read either way. It ends a read that makes no progress, and what breaks off becomes ErrTransient.
type body struct {
	f   *fallback
	key string
	a   answer
	rc  io.ReadCloser
}

// Read bounds each read of the object; the clock rests in between.
func (b *body) Read(p []byte) (int, error) {
	t := time.AfterFunc(b.f.stall, func() { b.a.cancel(errStalled) })
	n, err := b.rc.Read(p)
	t.Stop()
	if err != nil && err != io.EOF {
		err = b.broke(err)
	}
	return n, err
}

// broke says that reading may be tried again, unless it was the reader that gave up.
func (b *body) broke(err error) error {
	switch cause := context.Cause(b.a.ctx); {
	case errors.Is(cause, errStalled):
		err = fmt.Errorf("%w (%s): %v", errStalled, b.f.stall, err)
	case cause != nil:
		return err
	}
	if b.a.way == direct {
		b.f.memory.unreadable(err)
	}
	// The cause's own kind is hidden: a denial in the middle, when credentials have run out, need not be the leader's too.
	return &blob.Error{Op: "get", Key: b.key, Kind: blob.ErrTransient, Err: fmt.Errorf("reading was interrupted: %v", err)}
}

// Close ends the attempt too.
func (b *body) Close() error {
	err := b.rc.Close()
	b.a.cancel(nil)
	return err
}
