package manager

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// reachAgain is how long the answer holds whether a node's peer URLs can be reached.
const reachAgain = 10 * time.Second

// reached is what was found out about a node's peer URLs.
type reached struct {
	urls    string
	at      time.Time
	problem string
}

// prober finds out which nodes the members reach. Only the loop uses it.
type prober struct {
	*shared
	// reached is what was found out of nodes that may join.
	reached map[cluster.NodeID]reached
}

// probeURLs finds out whether the peer URLs that are to go into the member list can be reached from every member: a wrong one there can cost the
// quorum. It asks only when one may be due: a node without data where members are wanted, or a node with other URLs than its member has.
func (p *prober) probeURLs(ctx context.Context, o *model.Observation, spec *cluster.Spec) {
	var members []cluster.Member
	var hosts []cluster.NodeID
	for _, n := range o.Nodes {
		if n.Etcd.Votes() {
			members = n.Etcd.Members
			hosts = append(hosts, n.ID)
		}
	}
	if len(members) == 0 || spec == nil {
		return
	}
	for _, n := range o.Nodes {
		i := slices.IndexFunc(members, func(m cluster.Member) bool { return m.ID == n.Etcd.MemberID || m.Name == string(n.ID) })
		joins := n.State == nil && i < 0 && len(members) < spec.MemberCount
		moved := n.State != nil && i >= 0 && !slices.Equal(members[i].PeerURLs, n.Self.PeerURLs)
		if !joins && !moved {
			continue
		}
		if problem := p.reach(ctx, n, hosts); problem != "" {
			if o.ProbeErrors == nil {
				o.ProbeErrors = map[cluster.NodeID]string{}
			}
			o.ProbeErrors[n.ID] = problem
		}
	}
}

// reach asks all the hosts at once whether they reach a node, or remembers it.
func (p *prober) reach(ctx context.Context, n cluster.NodeStatus, hosts []cluster.NodeID) string {
	urls := strings.Join(n.Self.PeerURLs, ",")
	if r, ok := p.reached[n.ID]; ok && r.urls == urls && time.Since(r.at) < reachAgain {
		return r.problem
	}
	ctx, cancel := context.WithTimeout(ctx, observeTimeout)
	defer cancel()
	var mu sync.Mutex
	var problems []string
	var wg sync.WaitGroup
	for _, from := range hosts {
		wg.Go(func() {
			if why := p.reachFrom(ctx, from, n.Self.PeerURLs); why != "" {
				mu.Lock()
				defer mu.Unlock()
				problems = append(problems, fmt.Sprintf("from node %s: %s", from, why))
			}
		})
	}
	wg.Wait()
	slices.Sort(problems)
	problem := strings.Join(problems, "; ")
	if problem != "" {
		problem = "its peer URLs can't be reached " + problem
	}
	p.reached[n.ID] = reached{urls, time.Now(), problem}
	return problem
}

// reachFrom asks one node. A manager that doesn't know the question has no say.
func (p *prober) reachFrom(ctx context.Context, id cluster.NodeID, urls []string) string {
	c, err := p.m.cfg.Peers.Conn(id)
	if err != nil {
		return err.Error()
	}
	r, err := protosv1.NewNodeServiceClient(c).Reach(ctx, &protosv1.ReachRequest{ClusterName: p.m.cfg.ClusterName, Urls: urls})
	switch {
	case status.Code(err) == codes.Unimplemented:
		return ""
	case err != nil:
		return "it doesn't say"
	}
	return r.GetProblem()
}
