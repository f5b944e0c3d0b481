package peer

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/etcd-manager/etcd-manager/pkg/pki"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// access is who may call a method.
type access int

const (
	// anyManager: whoever has a manager's certificate, for this cluster. The method only looks.
	anyManager access = iota + 1
	// sender: only the node that the request says it comes from.
	sender
	// open: whoever has a manager's certificate. The request names no cluster, and the answer tells nothing of one.
	open
)

// methods are all that may be called. A method that isn't here is refused, whatever was registered.
var methods = map[string]access{
	protosv1.PeerService_Exchange_FullMethodName:       sender,
	protosv1.PeerService_ExchangeStream_FullMethodName: sender,
	protosv1.NodeService_Perform_FullMethodName:        sender,
	protosv1.NodeService_Observe_FullMethodName:        sender,
	protosv1.NodeService_Watch_FullMethodName:          anyManager,
	protosv1.NodeService_Reach_FullMethodName:          anyManager,
	protosv1.NodeService_Witness_FullMethodName:        anyManager,
	protosv1.RelayService_Get_FullMethodName:           anyManager,
	protosv1.RelayService_Stat_FullMethodName:          anyManager,
	protosv1.RelayService_List_FullMethodName:          anyManager,
	"/grpc.health.v1.Health/Check":                     open,
	"/grpc.health.v1.Health/Watch":                     open,
}

// gate checks who asks for what.
type gate struct {
	clusterName string
	certified   bool
}

func (g gate) check(ctx context.Context, method string, req any) error {
	allowed, known := methods[method]
	if !known {
		return status.Errorf(codes.PermissionDenied, "%.200q is no method that a manager may call", method)
	}
	if allowed == open {
		return nil
	}
	r, ok := req.(interface{ GetClusterName() string })
	if !ok {
		return status.Errorf(codes.PermissionDenied, "a request of %.200q names no cluster", method)
	}
	if r.GetClusterName() != g.clusterName {
		return status.Errorf(codes.FailedPrecondition,
			"the request is for cluster %.200q, but this manager belongs to cluster %q: check --cluster-name, and --grpc-port if several clusters share the node",
			r.GetClusterName(), g.clusterName)
	}
	if allowed != sender {
		return nil
	}
	from, must, err := senderOf(req)
	if err != nil || !must || !g.certified {
		return err
	}
	id, err := callerID(ctx)
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	if id != from {
		return status.Errorf(codes.PermissionDenied, "the request says that it comes from node %.200q, but its certificate is node %q's", from, id)
	}
	return nil
}

// senderOf returns the node that a request says it comes from. must is false for one that needn't say it, since it only looks.
func senderOf(req any) (id string, must bool, err error) {
	switch r := req.(type) {
	case *protosv1.ExchangeRequest:
		return r.GetFrom(), true, nil
	case *protosv1.PerformRequest:
		return r.GetLeader(), true, nil
	case *protosv1.ObserveRequest:
		return r.GetLeader(), r.GetTerm() != 0 || len(r.GetSummary()) > 0, nil
	}
	return "", false, status.Errorf(codes.PermissionDenied, "a request of type %T doesn't say from which node it is", req)
}

// callerID returns the node id in the certificate of the caller.
func callerID(ctx context.Context) (string, error) {
	p, ok := grpcpeer.FromContext(ctx)
	if !ok {
		return "", fmt.Errorf("the caller is unknown")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return "", fmt.Errorf("the caller has no certificate")
	}
	return pki.PeerID(info.State)
}
