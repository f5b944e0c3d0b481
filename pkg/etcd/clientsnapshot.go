package etcd

import (
	"context"
	"errors"
	"io"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

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
