package etcd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Snapshot is a stream of a member's database as "etcdctl snapshot save" writes it: the bytes of the
// database and then 32 bytes of SHA-256 over them. Read returns io.EOF only if the stream is complete and
// the hash is right; else ErrBadSnapshot or what broke the stream. It must be closed.
type Snapshot struct {
	// Version is the storage version of the member ("3.6.0"). It is empty before 3.6, and in the first seconds of a
	// cluster's life.
	Version string
	// Size is the number of bytes that are to come, hash included; 0 if unknown.
	Size int64

	*VerifyReader
	stream io.Reader
	cancel context.CancelFunc
}

// Unverified is the same stream for a reader that checks the hash itself, which saves doing it twice. It ends with io.EOF also where it
// was cut short. Closing it closes the snapshot.
func (s *Snapshot) Unverified() io.ReadCloser {
	return struct {
		io.Reader
		io.Closer
	}{s.stream, s}
}

// Close ends the stream. It may be called at any time and more than once.
func (s *Snapshot) Close() error {
	s.cancel()
	return nil
}

// Snapshot opens the stream. The context covers the whole of it.
func (c *Client) Snapshot(ctx context.Context) (*Snapshot, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := c.maint.Snapshot(ctx, &etcdserverpb.SnapshotRequest{})
	if err != nil {
		cancel()
		return nil, c.wrap("open snapshot", err)
	}
	r := &snapshotStream{recv: stream.Recv, wrap: c.wrap}
	first, err := stream.Recv()
	if err != nil {
		cancel()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, c.wrap("open snapshot", err)
	}
	r.rest = first.Blob
	// What remains doesn't count the hash.
	size := int64(first.RemainingBytes) + int64(len(first.Blob)) + hashSize
	return &Snapshot{Version: first.Version, Size: size, VerifyReader: VerifyStream(r, size), stream: r, cancel: cancel}, nil
}

// snapshotStream makes a reader of the messages.
type snapshotStream struct {
	recv func() (*etcdserverpb.SnapshotResponse, error)
	wrap func(string, error) error
	rest []byte
}

func (s *snapshotStream) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		m, err := s.recv()
		if errors.Is(err, io.EOF) {
			return 0, io.EOF
		}
		if err != nil {
			return 0, s.wrap("read snapshot", err)
		}
		s.rest = m.Blob
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// fileSnapshot makes the same stream of the first size bytes of a database that nobody writes to. Closing it closes the file.
func fileSnapshot(ctx context.Context, f *os.File, size int64, version string) *Snapshot {
	ctx, cancel := context.WithCancel(ctx)
	context.AfterFunc(ctx, func() { _ = f.Close() }) // it was only read
	h := sha256.New()
	db := io.TeeReader(&contextReader{ctx, io.NewSectionReader(f, 0, size)}, h)
	stream := io.MultiReader(db, &lateReader{make: func() []byte { return h.Sum(nil) }})
	return &Snapshot{Version: version, Size: size + hashSize, VerifyReader: VerifyStream(stream, size+hashSize), stream: stream, cancel: cancel}
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
