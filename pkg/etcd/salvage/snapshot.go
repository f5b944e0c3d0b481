package salvage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"os"

	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

// fileSnapshot makes the same stream of the first size bytes of a database that nobody writes to. Closing it closes the file.
func fileSnapshot(ctx context.Context, f *os.File, size int64, version string) *etcd.Snapshot {
	ctx, cancel := context.WithCancel(ctx)
	context.AfterFunc(ctx, func() { _ = f.Close() }) // it was only read
	h := sha256.New()
	db := io.TeeReader(&contextReader{ctx, io.NewSectionReader(f, 0, size)}, h)
	stream := io.MultiReader(db, &lateReader{make: func() []byte { return h.Sum(nil) }})
	return etcd.NewSnapshot(version, size+etcd.HashSize, stream, cancel)
}

// contextReader says what ended the reading, rather than that the file is closed.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if err != nil && err != io.EOF && c.ctx.Err() != nil {
		err = context.Cause(c.ctx)
	}
	return n, err
}

// lateReader makes its content when it is read for the first time.
type lateReader struct {
	make func() []byte
	rest *bytes.Reader
}

func (l *lateReader) Read(p []byte) (int, error) {
	if l.rest == nil {
		l.rest = bytes.NewReader(l.make())
	}
	return l.rest.Read(p)
}
