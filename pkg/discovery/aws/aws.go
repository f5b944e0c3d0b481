// Package aws finds the other managers through EC2: they run on the machines to which the cluster's volumes are attached.
//
// It publishes nothing, as the volumes' tags and attachments say it all.
package aws

import (
	"context"
	"fmt"
	"net"
	"strconv"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/volume"
	ebs "github.com/etcd-manager/etcd-manager/pkg/volume/aws"
)

// EC2 is what is asked of EC2. Its methods may be called concurrently and any number of times; ebs.Client is one.
type EC2 interface {
	// Volumes returns the cluster's volumes; of all zones, if zone is empty.
	Volumes(ctx context.Context, zone string) ([]*volume.Volume, error)
	// Instances describes machines. Those that are unknown are missing in the answer.
	Instances(ctx context.Context, ids []string) (map[string]ebs.Instance, error)
}

// Source asks EC2. It may be used concurrently.
type Source struct {
	ec2      EC2
	grpcPort int
	watch    func([]*volume.Volume)
}

// New returns a source whose endpoints are the machines' addresses with the managers' gRPC port.
// watch, if not nil, is handed the volumes of each look, so that who is interested in their tags
// needs no request of its own.
func New(client EC2, grpcPort int, watch func([]*volume.Volume)) *Source {
	return &Source{ec2: client, grpcPort: grpcPort, watch: watch}
}

// Name returns "aws".
func (s *Source) Name() string { return "aws" }

// Publish does nothing.
func (s *Source) Publish(context.Context, []string) error { return nil }

// Find describes the cluster's volumes and the machines that hold them.
func (s *Source) Find(ctx context.Context) (map[cluster.NodeID][]string, error) {
	volumes, err := s.ec2.Volumes(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("find the cluster's volumes: %w", err)
	}
	if s.watch != nil {
		s.watch(volumes)
	}
	holders := map[cluster.NodeID]string{}
	var ids []string
	for _, v := range volumes {
		for _, a := range v.Attachments {
			if v.Node != "" && a.Instance != "" && (a.State == "attached" || a.State == "attaching") {
				holders[v.Node] = a.Instance
				ids = append(ids, a.Instance)
			}
		}
	}
	instances, err := s.ec2.Instances(ctx, ids)
	if err != nil {
		return nil, fmt.Errorf("find the machines with the cluster's volumes: %w", err)
	}
	found := map[cluster.NodeID][]string{}
	for id, instance := range holders {
		if address := instances[instance].Address; address != "" {
			found[id] = []string{net.JoinHostPort(address, strconv.Itoa(s.grpcPort))}
		}
	}
	return found, nil
}
