// Package static finds the other managers in a fixed list, as --static-config gives it.
//
// It asks nobody and publishes nothing.
package static

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Node is one entry of the list.
type Node struct {
	ID cluster.NodeID
	// Hosts are the node's IP addresses (IPv6 with or without brackets) or DNS names, in the order in which they are tried.
	Hosts []string
}

// Source is the fixed list. It is immutable and may be used concurrently.
type Source struct {
	found map[cluster.NodeID][]string
}

// New checks the list and returns a source whose endpoints are each node's hosts with the managers' gRPC port.
func New(nodes []Node, grpcPort int) (*Source, error) {
	if grpcPort < 1 || grpcPort > 65535 {
		return nil, fmt.Errorf("static config: gRPC port %d is not between 1 and 65535", grpcPort)
	}
	found := make(map[cluster.NodeID][]string, len(nodes))
	owner := map[string]cluster.NodeID{}
	for i, n := range nodes {
		if n.ID == "" {
			return nil, fmt.Errorf("static config: node %d of %d has no id", i+1, len(nodes))
		}
		if _, ok := found[n.ID]; ok {
			return nil, fmt.Errorf("static config: node %q is listed twice", n.ID)
		}
		if len(n.Hosts) == 0 {
			return nil, fmt.Errorf("static config: node %q has no ip", n.ID)
		}
		for _, h := range n.Hosts {
			host, err := cleanHost(h)
			if err != nil {
				return nil, fmt.Errorf("static config: node %q: %w", n.ID, err)
			}
			endpoint := net.JoinHostPort(host, strconv.Itoa(grpcPort))
			if other, ok := owner[endpoint]; ok {
				return nil, fmt.Errorf("static config: nodes %q and %q both have ip %s", other, n.ID, h)
			}
			owner[endpoint] = n.ID
			found[n.ID] = append(found[n.ID], endpoint)
		}
	}
	return &Source{found: found}, nil
}

// cleanHost returns an IP address in its canonical form or a DNS name, without brackets, and refuses what can't be either.
func cleanHost(h string) (string, error) {
	bare := h
	if strings.HasPrefix(h, "[") && strings.HasSuffix(h, "]") {
		bare = h[1 : len(h)-1]
	}
	if a, err := netip.ParseAddr(bare); err == nil {
		if a.IsUnspecified() {
			return "", fmt.Errorf("ip %s is not the address of a node", h)
		}
		return a.String(), nil
	}
	if bare == "" || strings.ContainsAny(bare, ":/[] \t") {
		return "", fmt.Errorf("%q is neither an IP address nor a DNS name (a port is not given here)", h)
	}
	return bare, nil
}

// Name returns "static".
func (s *Source) Name() string { return "static" }

// Publish does nothing: the list is what it is.
func (s *Source) Publish(context.Context, []string) error { return nil }

// Find returns the list.
func (s *Source) Find(context.Context) (map[cluster.NodeID][]string, error) {
	found := make(map[cluster.NodeID][]string, len(s.found))
	for id, endpoints := range s.found {
		found[id] = slices.Clone(endpoints)
	}
	return found, nil
}
