package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"

	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/discovery/aws"
	"github.com/etcd-manager/etcd-manager/pkg/discovery/seeds"
	"github.com/etcd-manager/etcd-manager/pkg/discovery/static"
	"github.com/etcd-manager/etcd-manager/pkg/discovery/store"
	"github.com/etcd-manager/etcd-manager/pkg/manager"
	"github.com/etcd-manager/etcd-manager/pkg/node"
	"github.com/etcd-manager/etcd-manager/pkg/peer"
	"github.com/etcd-manager/etcd-manager/pkg/relay"
	ebs "github.com/etcd-manager/etcd-manager/pkg/volume/aws"
)

// listen opens the managers' port; that it can't be is found before anything is started.
func listen(o *options) (net.Listener, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(o.address, fmt.Sprint(o.grpcPort)))
	switch {
	case errors.Is(err, errAddrNotAvail):
		return nil, fmt.Errorf("--address=%s isn't an address of this machine: %w", o.address, err)
	case errors.Is(err, errAddrInUse):
		return nil, fmt.Errorf("--grpc-port=%d is in use on %s: %w; another manager may run already", o.grpcPort, o.address, err)
	case err != nil:
		return nil, fmt.Errorf("listen for managers: %w", err)
	}
	return l, nil
}

func (d *daemon) sources() ([]peer.Source, error) {
	o := d.o
	if o.static != nil {
		var nodes []static.Node
		for _, n := range o.static.Nodes {
			nodes = append(nodes, static.Node{ID: cluster.NodeID(n.ID), Hosts: n.IP})
		}
		s, err := static.New(nodes, o.grpcPort)
		return []peer.Source{s}, err
	}
	sources := []peer.Source{store.New(d.id, &discoveryRecords{catalog: d.catalog, store: d.o.backupStore})}
	if d.volume != nil && d.volume.ebs != nil {
		sources = append(sources, aws.New(ebs.Machines{Client: d.volume.ebs}, o.grpcPort, d.volume.seen.put))
	}
	if o.seeds != "" {
		sources = append(sources, seeds.New(o.seeds))
	}
	if others := d.formerMembers(); len(others) > 0 {
		s, err := static.New(others, o.grpcPort)
		if err != nil {
			klog.Warningf("the members in the state file can't be used to find other managers: %v", err)
			return sources, nil
		}
		sources = append(sources, s)
	}
	return sources, nil
}

// formerMembers are the other members in the state file, by the hosts of their peer URLs: by them the managers find each other although the
// store is away. Members on this same address (a demo) are left out, since the port can't be told.
func (d *daemon) formerMembers() []static.Node {
	var nodes []static.Node
	for _, n := range d.agent.Members() {
		var hosts []string
		for _, s := range n.PeerURLs {
			if u, err := url.Parse(s); err == nil && u.Hostname() != d.o.address {
				hosts = append(hosts, u.Hostname())
			}
		}
		if n.Name != string(d.id) && len(hosts) > 0 {
			nodes = append(nodes, static.Node{ID: cluster.NodeID(n.Name), Hosts: hosts})
		}
	}
	return nodes
}

// knownSize is how many members the cluster of this node's data is to have; 0 if it belongs to none. By that a leader can be
// elected while the store is away or its spec can't be used.
func (d *daemon) knownSize(ctx context.Context) int {
	s := d.agent.Status(ctx).State
	if s == nil {
		return 0
	}
	return max(s.DesiredSize, len(s.Nodes))
}

func (d *daemon) openPeers(ctx context.Context) error {
	o := d.o
	sources, err := d.sources()
	if err != nil {
		return err
	}
	endpoint := d.listener.Addr().String()
	info := peer.Info{ID: d.id, Endpoints: []string{endpoint}, Addresses: []string{o.address}}
	names := func(id cluster.NodeID) []string { return []string{string(id) + o.dnsSuffix} }
	if o.usesNames() {
		info.HostNames = names(d.id)
	}
	cfg := peer.Config{
		ClusterName: o.clusterName, Self: info, Instance: d.instance, Sources: sources, PollSlow: o.pollInterval,
		Votes: voteStore{node.Votes(o.dataDir)}, Loopback: endpoint, Wanted: d.knownSize(ctx),
		Lead: func(ctx context.Context, term cluster.Term) { d.manager.Lead(ctx, term) },
	}
	if o.usesNames() {
		cfg.HostNames = names
	}
	var serverTLS *tls.Config
	if !o.insecure {
		serverTLS = d.keeper.ManagerServer()
		cfg.TLS = func(id cluster.NodeID) (*tls.Config, error) { return d.keeper.ManagerClient(string(id)), nil }
	}
	if d.peers, err = peer.New(cfg); err != nil {
		return err
	}
	if d.manager, err = manager.New(d.managerConfig()); err != nil {
		return err
	}
	d.server = peer.NewServer(o.clusterName, serverTLS)
	d.peers.Register(d.server)
	d.agent.Register(d.server)
	// Managers that talk in the clear talk to anybody. A backup is given out then only if etcd gives its data to anybody too.
	if !o.insecure || o.etcdInsecure {
		relay.NewServer(d.store).Register(d.server)
	}
	grpc_health_v1.RegisterHealthServer(d.server, health.NewServer())
	return nil
}
