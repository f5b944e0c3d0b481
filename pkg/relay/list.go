package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// entriesSent is how many names go into one message: far below gRPC's limit, however long they are.
const entriesSent = 1000

// List sends the names of an incarnation's segments.
func (s *Server) List(req *protosv1.RelayListRequest, stream grpc.ServerStreamingServer[protosv1.RelayListResponse]) error {
	if !catalog.IsSegmentsPrefix(req.GetPrefix()) {
		return status.Errorf(codes.InvalidArgument, "%q is not a directory of segments; only these are listed", req.GetPrefix())
	}
	release, err := s.slot()
	if err != nil {
		return err
	}
	defer release()
	page := &protosv1.RelayListResponse{}
	for e, err := range s.store.List(stream.Context(), req.GetPrefix(), blob.ListOptions{After: req.GetAfter()}) {
		if err != nil {
			return toStatus(err)
		}
		page.Entries = append(page.Entries, &protosv1.RelayEntry{Key: e.Key, SizeBytes: e.Size})
		if len(page.Entries) < entriesSent {
			continue
		}
		if err := stream.Send(page); err != nil {
			return err
		}
		page = &protosv1.RelayListResponse{}
	}
	return stream.Send(page)
}

// List implements blob.Store. Where the primary fails in the middle, the leader's listing goes on behind the last name.
func (f *fallback) List(ctx context.Context, prefix string, opts blob.ListOptions) iter.Seq2[blob.Entry, error] {
	if !catalog.IsSegmentsPrefix(prefix) || f.leads() {
		return f.Store.List(ctx, prefix, opts)
	}
	return func(yield func(blob.Entry, error) bool) {
		more, own := f.listInto(&opts, yield, f.Store.List(ctx, prefix, opts))
		if !more || own == nil {
			return
		}
		l, err := f.leader()
		if err == nil {
			more, err = f.listInto(&opts, yield, remote{leader: l, clusterName: f.clusterName}.list(ctx, prefix, opts))
		}
		if more && err != nil {
			yield(blob.Entry{}, bothFailed("list", prefix, [2]error{direct: own, relayed: err}))
		}
	}
}

// listInto hands a listing's entries on, and moves opts behind the last one. more is false when nobody wants any.
func (f *fallback) listInto(opts *blob.ListOptions, yield func(blob.Entry, error) bool,
	from iter.Seq2[blob.Entry, error]) (more bool, err error) {
	for e, err := range from {
		if err != nil {
			return true, err
		}
		opts.After = e.Key
		if !yield(e, nil) {
			return false, nil
		}
	}
	return true, nil
}

// list yields what another manager lists. Names that aren't below the prefix, or not in order, are refused: they are not ours to trust.
func (r remote) list(ctx context.Context, prefix string, opts blob.ListOptions) iter.Seq2[blob.Entry, error] {
	return func(yield func(blob.Entry, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := r.client().List(ctx, &protosv1.RelayListRequest{ClusterName: r.clusterName, Prefix: prefix, After: opts.After})
		for last := opts.After; err == nil; {
			var page *protosv1.RelayListResponse
			if page, err = stream.Recv(); err == io.EOF {
				return
			}
			for _, e := range page.GetEntries() {
				if !strings.HasPrefix(e.GetKey(), prefix) || e.GetKey() <= last || e.GetSizeBytes() < 0 {
					err = fmt.Errorf("it lists %q after %q", e.GetKey(), last)
					break
				}
				last = e.GetKey()
				if !yield(blob.Entry{Info: blob.Info{Key: last, Size: e.GetSizeBytes()}}, nil) {
					return
				}
			}
		}
		yield(blob.Entry{}, r.fail(ctx, "list", prefix, err))
	}
}

// leads tells that there is nobody else to ask.
func (f *fallback) leads() bool {
	_, err := f.leader()
	return errors.Is(err, ErrSelf)
}
