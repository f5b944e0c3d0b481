package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// remote reads files of backups through another manager. What it opens ends with the context.
type remote struct {
	leader      Leader
	clusterName string
}

func (r remote) client() protosv1.RelayServiceClient {
	return protosv1.NewRelayServiceClient(r.leader.Conn)
}

func (r remote) stat(ctx context.Context, key string) (blob.Info, error) {
	o, err := r.client().Stat(ctx, &protosv1.RelayStatRequest{ClusterName: r.clusterName, Key: key})
	if err != nil {
		return blob.Info{}, r.fail(ctx, "stat", key, err)
	}
	return infoFromProto(key, o), nil
}

func (r remote) get(ctx context.Context, key string, rg blob.Range) (io.ReadCloser, blob.Info, error) {
	stream, err := r.client().Get(ctx, &protosv1.RelayGetRequest{ClusterName: r.clusterName, Key: key,
		Offset: rg.Offset, Length: rg.Length})
	if err != nil {
		return nil, blob.Info{}, r.fail(ctx, "get", key, err)
	}
	first, err := stream.Recv()
	if err == nil && first.GetObject() == nil || err == io.EOF {
		err = errors.New("the answer doesn't say what the object is")
	}
	if err != nil {
		return nil, blob.Info{}, r.fail(ctx, "get", key, err)
	}
	info := infoFromProto(key, first.GetObject())
	left, err := blob.CheckRange(rg, info.Size)
	if err != nil {
		return nil, blob.Info{}, r.fail(ctx, "get", key, status.Error(codes.InvalidArgument, err.Error()))
	}
	return &remoteBody{ctx: ctx, r: r, key: key, recv: stream.Recv, left: left}, info, nil
}

func infoFromProto(key string, o *protosv1.RelayObject) blob.Info {
	i := blob.Info{Key: key, Size: o.GetSizeBytes(), Version: o.GetVersion()}
	if n := o.GetModifiedUnixNanos(); n != 0 {
		i.Modified = time.Unix(0, n).UTC()
	}
	return i
}

// remoteBody reads the messages of a stream and holds them to the announced length.
type remoteBody struct {
	ctx   context.Context
	r     remote
	key   string
	recv  func() (*protosv1.RelayGetResponse, error)
	chunk []byte
	left  int64
	err   error
}

// Read returns the next bytes, and io.EOF only after the last of those that were asked for.
func (b *remoteBody) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(b.chunk) == 0 && b.err == nil {
		b.next()
	}
	if len(b.chunk) == 0 {
		return 0, b.err
	}
	n := copy(p, b.chunk)
	b.chunk = b.chunk[n:]
	return n, nil
}

// next receives a message, or sets err.
func (b *remoteBody) next() {
	m, err := b.recv()
	b.chunk = m.GetData()
	b.left -= int64(len(b.chunk))
	switch {
	case err == io.EOF && b.left == 0:
		b.err = io.EOF
	case err == io.EOF:
		b.err = b.r.fail(b.ctx, "get", b.key, fmt.Errorf("%d bytes are missing: %w", b.left, io.ErrUnexpectedEOF))
	case err != nil:
		b.err = b.r.fail(b.ctx, "get", b.key, err)
	case b.left < 0:
		b.chunk, b.err = nil, b.r.fail(b.ctx, "get", b.key, errors.New("it sent more bytes than it announced"))
	}
}

// Close does nothing: the stream ends with its context.
func (b *remoteBody) Close() error { return nil }

// fail wraps what a call returned. Who gave the request up himself learns why.
func (r remote) fail(ctx context.Context, op, key string, err error) error {
	e := &blob.Error{Op: op, Key: key}
	if ctx.Err() != nil {
		e.Err = fmt.Errorf("through node %s: %w", r.leader.Node, context.Cause(ctx))
		if errors.Is(e.Err, errStalled) {
			e.Kind = blob.ErrTransient
		}
		return e
	}
	e.Kind = kindOf(err)
	e.Err = fmt.Errorf("through node %s: %w", r.leader.Node, plain(err))
	return e
}

// kindOf is the other direction of toStatus. What it doesn't know, such as a manager that doesn't relay because it is older, may be
// different with the next leader.
func kindOf(err error) error {
	s := status.Code(err)
	for _, k := range kinds {
		if s == k.code {
			return k.kind
		}
	}
	if s == codes.Unknown {
		return nil
	}
	return blob.ErrTransient
}

// plain takes gRPC's decoration off.
func plain(err error) error {
	s, ok := status.FromError(err)
	switch {
	case !ok:
		return err
	case s.Code() == codes.Unimplemented:
		return errors.New("it serves no backups: it is another version, or the managers use no TLS (--insecure)")
	}
	return errors.New(s.Message())
}
