package node

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// Register adds the agent's service to a gRPC server, which checks cluster name and certificates.
func (a *Agent) Register(s grpc.ServiceRegistrar) {
	protosv1.RegisterNodeServiceServer(s, &service{agent: a, witnessing: make(chan struct{}, witnessesAtOnce), reaching: make(chan struct{}, reachesAtOnce)})
}

type service struct {
	protosv1.UnimplementedNodeServiceServer
	agent *Agent
	// witnessing and reaching bound how many questions are answered at once.
	witnessing, reaching chan struct{}
}

// Observe returns the node's status.
func (s *service) Observe(ctx context.Context, req *protosv1.ObserveRequest) (*protosv1.NodeStatus, error) {
	if req.GetTerm() != 0 {
		admitted, err := s.agent.records.heed(cluster.Term(req.GetTerm()), cluster.NodeID(req.GetLeader()))
		if err != nil {
			return nil, toStatus(err)
		}
		if admitted {
			s.agent.summaries.note(req.GetSummary(), req.GetTerm())
		}
	}
	if req.GetFresh() {
		s.agent.etcd.probe(ctx, 0)
	}
	return wire.StatusToProto(s.agent.Status(ctx)), nil
}

// Watch sends an event at once and after every change. Changes that come close together are one event.
func (s *service) Watch(_ *protosv1.WatchRequest, stream grpc.ServerStreamingServer[protosv1.WatchEvent]) error {
	for {
		changed, n := s.agent.Changed()
		if err := stream.Send(&protosv1.WatchEvent{Sequence: n}); err != nil {
			return err
		}
		select {
		case <-stream.Context().Done():
			return nil
		case <-changed:
		}
	}
}

// progressInterval is how often a caller hears of an action that takes long.
const progressInterval = 500 * time.Millisecond

// Perform does one action and streams its progress.
func (s *service) Perform(req *protosv1.PerformRequest, stream grpc.ServerStreamingServer[protosv1.PerformEvent]) error {
	t, err := s.agent.begin(req)
	if err != nil {
		return toStatus(err)
	}
	tick := time.NewTicker(progressInterval)
	defer tick.Stop()
	for {
		select {
		case <-t.done:
			if t.err != nil {
				return toStatus(t.err)
			}
			return stream.Send(t.result)
		case <-stream.Context().Done():
			return nil // the action goes on
		case <-tick.C:
			if p := t.latest(); p != nil {
				if err := stream.Send(p); err != nil {
					return err
				}
			}
		}
	}
}

// toStatus picks the gRPC code by which the leader tells what to do: Aborted, its term is over; DataLoss, it can never succeed;
// Unavailable, try again.
func toStatus(err error) error {
	switch {
	case errors.Is(err, cluster.ErrLowerTerm):
		return status.Error(codes.Aborted, err.Error())
	case permanent(err):
		return status.Error(codes.DataLoss, err.Error())
	}
	return status.Error(codes.Unavailable, err.Error())
}
