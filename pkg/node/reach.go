package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// reachPatience is how long a connection may take, from one master to another.
const reachPatience = 1500 * time.Millisecond

const (
	// maxReached is how many URLs are tried for one request: a member has a few. reachesAtOnce is how many requests are answered at once.
	maxReached    = 16
	maxURL        = 1 << 10 // bytes
	reachesAtOnce = 16
)

// Reach tells which URL can't be reached from here. Nothing need listen there yet: a member that is to join hasn't started. A refusal comes from the
// right machine, and is as good as an answer.
func (s *service) Reach(ctx context.Context, req *protosv1.ReachRequest) (*protosv1.ReachResponse, error) {
	if n := len(req.GetUrls()); n > maxReached {
		return nil, status.Errorf(codes.InvalidArgument, "%d URLs are too many for one member", n)
	}
	select {
	case s.reaching <- struct{}{}:
		defer func() { <-s.reaching }()
	default:
		return nil, status.Error(codes.ResourceExhausted, "too many questions at once")
	}
	for _, u := range req.GetUrls() {
		if err := reach(ctx, u); err != nil {
			return &protosv1.ReachResponse{Problem: err.Error()}, nil
		}
	}
	return &protosv1.ReachResponse{}, nil
}

func reach(ctx context.Context, s string) error {
	if len(s) > maxURL {
		return fmt.Errorf("a URL has %d bytes", len(s))
	}
	u, err := url.Parse(s)
	if err != nil {
		return fmt.Errorf("parse URL %q: %w", s, err)
	}
	ctx, cancel := context.WithTimeout(ctx, reachPatience)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", u.Host)
	switch {
	case err == nil:
		return c.Close()
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil
	}
	return fmt.Errorf("reach %s: %w", s, err)
}
