package node

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

const (
	// witnessPatience is how long the store may take to show what it has.
	witnessPatience = 10 * time.Second
	// witnessesAtOnce is how many questions are answered at once.
	witnessesAtOnce = 4
)

// Witness tells what this node's own store shows of what another node has just done in its. What the leader relays would say nothing.
func (s *service) Witness(ctx context.Context, req *protosv1.WitnessRequest) (*protosv1.WitnessResponse, error) {
	if s.agent.cfg.Direct == nil {
		return nil, status.Error(codes.Unimplemented, "this node has no store of its own")
	}
	select {
	case s.witnessing <- struct{}{}:
		defer func() { <-s.witnessing }()
	default:
		return nil, status.Error(codes.ResourceExhausted, "too many questions at once")
	}
	ctx, cancel := context.WithTimeout(ctx, witnessPatience)
	defer cancel()
	t := s.agent.cfg.Direct.Witness(ctx, catalog.Question{Key: req.GetKey(), Value: req.GetValue(), Reply: req.GetReply(), Lock: req.GetLock()})
	return &protosv1.WitnessResponse{Store: s.agent.cfg.StoreName, Problem: t.Problem, Found: t.Found, Held: t.Held, Replaced: t.Replaced}, nil
}
