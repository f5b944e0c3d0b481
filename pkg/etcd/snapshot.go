package etcd

import (
	"context"
	"io"
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

// NewSnapshot makes a snapshot of a stream of size bytes, hash included. cancel ends the stream; it is called by Close, perhaps more than once.
func NewSnapshot(version string, size int64, stream io.Reader, cancel context.CancelFunc) *Snapshot {
	return &Snapshot{Version: version, Size: size, VerifyReader: VerifyStream(stream, size), stream: stream, cancel: cancel}
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
