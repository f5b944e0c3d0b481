package manager

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// Member is a connection to one member of etcd; *client.Client is one.
type Member interface {
	changelog.Source
	// IsMember makes sure that it is this member that answers.
	IsMember(ctx context.Context, id cluster.MemberID) error
	Status(ctx context.Context) (client.Status, error)
	AddLearner(ctx context.Context, peerURLs []string) (cluster.Member, error)
	Promote(ctx context.Context, id cluster.MemberID) error
	Remove(ctx context.Context, id cluster.MemberID) error
	UpdatePeerURLs(ctx context.Context, id cluster.MemberID, peerURLs []string) error
	MoveLeader(ctx context.Context, to cluster.MemberID) error
	Downgrade(ctx context.Context, action client.DowngradeAction, version string) error
	Compact(ctx context.Context, revision int64, physical bool) error
	Raise(ctx context.Context, alarm cluster.Alarm) error
	Disarm(ctx context.Context, alarm cluster.Alarm) error
	// Raw is what transactions are made through.
	Raw() *clientv3.Client
}

// etcdClients finds members to talk to and connects to them.
type etcdClients struct {
	*shared
	// streams dials for the recorder of changes, another endpoint each time.
	streams client.Streams
}

// speakers are the healthy voter to talk to (the etcd leader if it answers), and another one. While TLS is turned on node by node, a manager that
// is without it can't talk to all of them.
func (e *etcdClients) speakers(o *model.Observation) (first, second *cluster.NodeStatus) {
	return speakers(o, func(n *cluster.NodeStatus) bool {
		return e.m.cfg.ClientTLS != nil || !strings.HasPrefix(cmp.Or(urlsOf(n)...), "https:")
	})
}

// speakers are two healthy voters of which something is true, etcd's leader first if it is one.
func speakers(o *model.Observation, may func(*cluster.NodeStatus) bool) (first, second *cluster.NodeStatus) {
	for i := range o.Nodes {
		n := &o.Nodes[i]
		if !n.Etcd.Votes() || n.State == nil || !may(n) {
			continue
		}
		switch {
		case first == nil:
			first = n
		case n.Etcd.MemberID == n.Etcd.LeaderID && !n.Etcd.Denied, first.Etcd.Denied && !n.Etcd.Denied:
			first, second = n, first
		case second == nil:
			second = n
		}
	}
	return first, second
}

// dial connects to a node's etcd on the client URLs that it listens on, and makes sure that it is that member which answers.
func (e *etcdClients) dial(ctx context.Context, n *cluster.NodeStatus) (Member, error) {
	urls := urlsOf(n)
	if len(urls) == 0 {
		return nil, fmt.Errorf("node %s isn't in its own state", n.ID)
	}
	c, err := e.dialURLs(urls, e.m.cfg.Peers.Addresses(n.ID), e.one)
	if err != nil {
		return nil, err
	}
	if err := c.IsMember(ctx, n.Etcd.MemberID); err != nil {
		return nil, errors.Join(fmt.Errorf("ask node %s: %w", n.ID, err), c.Close())
	}
	return c, nil
}

// urlsOf are the client URLs on which a node's etcd listens.
func urlsOf(n *cluster.NodeStatus) []string {
	self := n.State.Node(string(n.ID))
	if self == nil {
		return nil
	}
	urls := self.ClientURLs
	if n.Etcd.Quarantined {
		urls = self.QuarantinedClientURLs
	}
	for _, m := range n.Etcd.Members {
		if n.Etcd.Outdated && m.ID == n.Etcd.MemberID && len(m.ClientURLs) > 0 {
			urls = m.ClientURLs // it was started with others than those that it is to have now
		}
	}
	return urls
}

// dialer connects to a member in one of two ways.
type dialer func(endpoints []string, tlsConf *tls.Config) (Member, error)

// one is for single questions, stream for following the changes.
func (e *etcdClients) one(endpoints []string, tlsConf *tls.Config) (Member, error) {
	if e.m.cfg.Dial != nil {
		return e.m.cfg.Dial(endpoints, tlsConf)
	}
	return connected(client.Dial(endpoints, tlsConf))
}

func (e *etcdClients) stream(endpoints []string, tlsConf *tls.Config) (Member, error) {
	if e.m.cfg.Dial != nil {
		return e.m.cfg.Dial(endpoints, tlsConf)
	}
	return connected(e.streams.Dial(endpoints, tlsConf))
}

// connected keeps a nil pointer from becoming a Member that isn't nil.
func connected(c *client.Client, err error) (Member, error) {
	if err != nil {
		return nil, err
	}
	return c, nil
}

// dialURLs connects to the member with these client URLs on the machine with these addresses, in the way that is wanted. Names are
// checked against its certificate, but not resolved.
func (e *etcdClients) dialURLs(urls, addresses []string, dial dialer) (Member, error) {
	endpoints := client.MemberEndpoints(urls, addresses)
	if e.m.cfg.ClientTLS == nil || len(urls) == 0 || strings.HasPrefix(urls[0], "http:") {
		return dial(endpoints, nil)
	}
	var hosts []string
	for _, s := range urls {
		if u, err := url.Parse(s); err == nil {
			hosts = append(hosts, u.Hostname())
		}
	}
	return dial(endpoints, e.m.cfg.ClientTLS(hosts...))
}

func (e *etcdClients) dialers(members [][]string) []changelog.Dialer {
	var dialers []changelog.Dialer
	for _, urls := range members {
		dialers = append(dialers, func(context.Context) (changelog.Source, error) { return e.dialURLs(urls, nil, e.stream) })
	}
	return dialers
}
