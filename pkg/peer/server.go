package peer

import (
	"context"
	"crypto/tls"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

const (
	// pingInterval and pingTimeout find out connections that lead nowhere although nobody has closed them.
	pingInterval = 10 * time.Second
	pingTimeout  = 3 * time.Second
	// window is fixed, as gRPC would else send a ping with every call to find a better one.
	window = 1 << 20
	// What one connection may ask for at a time, and how large a request and its head may be, in bytes.
	maxStreams = 256
	maxRequest = 4 << 20
	maxHead    = 16 << 10
)

// NewServer returns the gRPC server on which managers talk to each other; services are still to be registered. With a nil tlsConfig
// it talks in the clear, to anybody.
//
// Requests that name another cluster are refused with FailedPrecondition. With TLS, a request that says from which node it
// comes must come with that node's certificate; others are refused with PermissionDenied, as are methods that nobody has given a rule.
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
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxHeaderListSize(maxHead),
		grpc.ChainUnaryInterceptor(g.unary),
		grpc.ChainStreamInterceptor(g.stream),
	}
	return grpc.NewServer(append(base, opts...)...)
}

func (g gate) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if err := g.check(ctx, info.FullMethod, req); err != nil {
		return nil, err
	}
	return handle(ctx, req)
}

func (g gate) stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	if _, known := methods[info.FullMethod]; !known {
		return g.check(s.Context(), info.FullMethod, nil)
	}
	return handle(srv, gatedStream{s, g, info.FullMethod})
}

// gatedStream checks each request of a stream.
type gatedStream struct {
	grpc.ServerStream
	gate   gate
	method string
}

// RecvMsg receives a request and checks it.
func (s gatedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return s.gate.check(s.Context(), s.method, m)
}
