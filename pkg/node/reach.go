package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"syscall"
	"time"

	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// reachPatience is how long a connection may take, from one master to another.
const reachPatience = 1500 * time.Millisecond

// Reach tells which URL can't be reached from here. Nothing need listen there yet: a member that is to join hasn't started. A refusal comes from the
// right machine, and is as good as an answer.
func (s *service) Reach(ctx context.Context, req *protosv1.ReachRequest) (*protosv1.ReachResponse, error) {
	for _, u := range req.GetUrls() {
		if err := reach(ctx, u); err != nil {
			return &protosv1.ReachResponse{Problem: err.Error()}, nil
		}
	}
	return &protosv1.ReachResponse{}, nil
}

func reach(ctx context.Context, s string) error {
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
