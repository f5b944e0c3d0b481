package relay

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

const (
	// chunk is how many bytes go into one message. Messages of a stream are far below gRPC's limit of 4 MiB.
	chunk = 256 << 10
	// maxStreams is how many objects are given out at a time. A cluster has at most a handful of nodes, and each reads one.
	maxStreams = 8
)

// Server gives out the files of backups from a store. Its methods may be called concurrently.
type Server struct {
	protosv1.UnimplementedRelayServiceServer

	store blob.Store
	slots chan struct{}
}

// NewServer returns a server of a store. The store must be the one that this node reaches itself, never one made by Fallback: two
// nodes would ask each other in a circle.
func NewServer(store blob.Store) *Server {
	return &Server{store: store, slots: make(chan struct{}, maxStreams)}
}

// Register adds the service to a gRPC server, which checks cluster name and certificates.
func (s *Server) Register(r grpc.ServiceRegistrar) { protosv1.RegisterRelayServiceServer(r, s) }

// Stat describes a file of a backup.
func (s *Server) Stat(ctx context.Context, req *protosv1.RelayStatRequest) (*protosv1.RelayObject, error) {
	if err := checkKey(req.GetKey()); err != nil {
		return nil, err
	}
	info, err := s.store.Stat(ctx, req.GetKey())
	if err != nil {
		return nil, toStatus(err)
	}
	return objectProto(info), nil
}

// Get sends a file of a backup, or a part of it, in constant memory.
func (s *Server) Get(req *protosv1.RelayGetRequest, stream grpc.ServerStreamingServer[protosv1.RelayGetResponse]) error {
	if err := checkKey(req.GetKey()); err != nil {
		return err
	}
	release, err := s.slot()
	if err != nil {
		return err
	}
	defer release()
	ctx := stream.Context()
	body, info, err := s.store.Get(ctx, req.GetKey(), blob.Range{Offset: req.GetOffset(), Length: req.GetLength()})
	if err != nil {
		return toStatus(err)
	}
	defer body.Close()
	if p, ok := peer.FromContext(ctx); ok {
		klog.V(2).Infof("%s reads %s through this node, from byte %d of %d", p.Addr, req.GetKey(), req.GetOffset(), info.Size)
	}
	if err := stream.Send(&protosv1.RelayGetResponse{Object: objectProto(info)}); err != nil {
		return err
	}
	return send(stream, body)
}

// slot takes one of the streams that may be open at a time.
func (s *Server) slot() (release func(), err error) {
	select {
	case s.slots <- struct{}{}:
		return func() { <-s.slots }, nil
	default:
		return nil, status.Errorf(codes.ResourceExhausted, "this node already serves %d objects; try again", maxStreams)
	}
}

// send streams the body to its end. Every message gets bytes of its own, as gRPC may hold one after Send has returned.
func send(stream grpc.ServerStreamingServer[protosv1.RelayGetResponse], body io.Reader) error {
	for {
		data := make([]byte, chunk)
		n, err := io.ReadFull(body, data)
		if n > 0 {
			if serr := stream.Send(&protosv1.RelayGetResponse{Data: data[:n]}); serr != nil {
				return serr
			}
		}
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF: // ReadFull's own; a reader's comes wrapped into a *blob.Error
			return nil
		case err != nil:
			return toStatus(err)
		}
	}
}

func checkKey(key string) error {
	if err := blob.CheckKey(key); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if !catalog.IsBackupFile(key) {
		return status.Errorf(codes.InvalidArgument, "%q is not a file of a backup; only these are served", key)
	}
	return nil
}

func objectProto(i blob.Info) *protosv1.RelayObject {
	o := &protosv1.RelayObject{SizeBytes: i.Size, Version: i.Version}
	if !i.Modified.IsZero() {
		o.ModifiedUnixNanos = i.Modified.UnixNano()
	}
	return o
}

// toStatus picks the code by which the other side tells the kinds of errors apart; see kindOf.
func toStatus(err error) error {
	for _, k := range kinds {
		if errors.Is(err, k.kind) {
			return status.Error(k.code, err.Error())
		}
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	return status.Error(codes.Unknown, fmt.Sprint(err))
}

// kinds are the kinds of errors of a store that pass through the relay.
var kinds = []struct {
	kind error
	code codes.Code
}{
	{blob.ErrNotFound, codes.NotFound},
	{blob.ErrDenied, codes.PermissionDenied},
	{blob.ErrInvalid, codes.InvalidArgument},
	{blob.ErrTransient, codes.Unavailable},
}
