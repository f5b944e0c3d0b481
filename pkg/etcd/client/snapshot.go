package client

import (
	"context"
	"errors"
	"io"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

// Snapshot opens the stream. The context covers the whole of it.
func (c *Client) Snapshot(ctx context.Context) (*etcd.Snapshot, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := c.maint.Snapshot(ctx, &etcdserverpb.SnapshotRequest{}, grpc.ForceCodecV2(newSnapshotCodec()))
	if err != nil {
		cancel()
		return nil, c.wrap("open snapshot", err)
	}
	r := &snapshotStream{recv: stream.RecvMsg, wrap: c.wrap}
	if err := r.recv(&r.message); err != nil {
		cancel()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, c.wrap("open snapshot", err)
	}
	// What remains doesn't count the hash.
	size := int64(r.message.remaining) + int64(r.message.left) + etcd.HashSize
	return etcd.NewSnapshot(r.message.version, size, r, cancel), nil
}

// snapshotStream makes a reader of the messages.
type snapshotStream struct {
	recv    func(message any) error
	wrap    func(string, error) error
	message snapshotMessage
}

func (s *snapshotStream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for s.message.left == 0 {
		err := s.recv(&s.message)
		if errors.Is(err, io.EOF) {
			return 0, io.EOF
		}
		if err != nil {
			return 0, s.wrap("read snapshot", err)
		}
	}
	return s.message.Read(p), nil
}
