package peer

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/etcd-manager/etcd-manager/pkg/pki"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

const (
	// pingInterval and pingTimeout find out connections that lead nowhere although nobody has closed them.
	pingInterval = 10 * time.Second
	pingTimeout  = 3 * time.Second
	// window is fixed, as gRPC would else send a ping with every call to find a better one.
	window = 1 << 20
)

// NewServer returns the gRPC server on which managers talk to each other; services are still to be registered. With a nil tlsConfig
// it talks in the clear, to anybody.
//
// Requests that name another cluster are refused with FailedPrecondition. With TLS, a request that says from which node it
// comes must come with that node's certificate; others are refused with PermissionDenied.
func NewServer(clusterName string, tlsConfig *tls.Config, opts ...grpc.ServerOption) *grpc.Server {
	g := gate{clusterName: clusterName}
	creds := insecure.NewCredentials()
	if tlsConfig != nil {
		creds = credentials.NewTLS(tlsConfig)
		g.certified = true
	}
	base := []grpc.ServerOption{
		grpc.Creds(creds),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 6 * pingInterval, Timeout: pingTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingInterval / 2, PermitWithoutStream: true}),
		grpc.ConnectionTimeout(10 * time.Second),
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(window),
		grpc.ChainUnaryInterceptor(g.unary),
		grpc.ChainStreamInterceptor(g.stream),
	}
	return grpc.NewServer(append(base, opts...)...)
}

// gate checks who asks for what.
type gate struct {
	clusterName string
	certified   bool
}

func (g gate) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if err := g.check(ctx, req); err != nil {
		return nil, err
	}
	return handle(ctx, req)
}

func (g gate) stream(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	return handle(srv, gatedStream{s, g})
}

// gatedStream checks each request of a stream.
type gatedStream struct {
	grpc.ServerStream
	gate gate
}

// RecvMsg receives a request and checks it.
func (s gatedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return s.gate.check(s.Context(), m)
}

func (g gate) check(ctx context.Context, req any) error {
	if r, ok := req.(interface{ GetClusterName() string }); ok && r.GetClusterName() != g.clusterName {
		return status.Errorf(codes.FailedPrecondition,
			"the request is for cluster %q, but this manager belongs to cluster %q: check --cluster-name, and --grpc-port if several clusters share the node",
			r.GetClusterName(), g.clusterName)
	}
	var sender string
	switch r := req.(type) {
	case *protosv1.ExchangeRequest:
		sender = r.GetFrom()
	case *protosv1.PerformRequest:
		sender = r.GetLeader()
	case *protosv1.ObserveRequest:
		if r.GetTerm() == 0 {
			return nil // it only looks
		}
		sender = r.GetLeader()
	default:
		return nil
	}
	if !g.certified {
		return nil
	}
	id, err := callerID(ctx)
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	if id != sender {
		return status.Errorf(codes.PermissionDenied, "the request says that it comes from node %q, but its certificate is node %q's", sender, id)
	}
	return nil
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
