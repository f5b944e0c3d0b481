package peer

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/election"
	"github.com/etcd-manager/etcd-manager/pkg/repeat"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// rivalAge is how long ago an instance must have been replaced for a message of it to prove that it still lives. A message that
// was under way when its process ended is not that old.
const rivalAge = time.Second

// node is what is known of another node. It is guarded by Peers.mu.
type node struct {
	said repeat.Limiter // of the problem, whose words may be others each time
	id   cluster.NodeID
	link *link
	// found are the endpoints that each source gives for it.
	found map[string][]string
	// instance was heard last; former are those before it, and when each was replaced first.
	instance string
	former   map[string]time.Time
	// rivalUntil is how long the last evidence counts that two processes share the node id.
	rivalUntil time.Time
	// view is the digest of what the node knew when it was heard last.
	view uint64

	connected bool
	foreign   bool // other software answers
	refused   bool // it answers, but won't have us, or isn't who we look for
	timeouts  int  // in a row
	lastSeen  time.Time
	problem   string
	logged    string    // the problem that the log shows
	downSince time.Time // zero if connected
	// corruptTerm is true once it was said that the node's term and the own one can't both be true.
	corruptTerm bool
}

// maxFormer is how many former instances of a node are remembered, maxInstance how long the name of one may be, in bytes.
const (
	maxFormer   = 64
	maxInstance = 128
)

// replaced remembers a former instance, in the place of the oldest one if there are many.
func (n *node) replaced(instance string, at time.Time) {
	if len(n.former) >= maxFormer {
		oldest := ""
		for i, t := range n.former {
			if oldest == "" || t.Before(n.former[oldest]) {
				oldest = i
			}
		}
		delete(n.former, oldest)
	}
	n.former[instance] = at
}

func (n *node) isRival() bool { return time.Now().Before(n.rivalUntil) }

// other returns an instance of the node that isn't this one.
func (n *node) other(instance string) string {
	if n.instance != instance {
		return n.instance
	}
	var latest string
	for i, at := range n.former {
		if i != instance && (latest == "" || at.After(n.former[latest])) {
			latest = i
		}
	}
	return latest
}

func (n *node) peer(i Info) Peer {
	if i.ID == "" {
		i = Info{ID: n.id, Endpoints: n.endpoints(Info{})}
	}
	return Peer{
		Info: i.clone(), Instance: n.instance, Connected: n.connected, Foreign: n.foreign, Rival: n.isRival(), LastSeen: n.lastSeen,
		Problem: n.problem,
	}
}

// endpoints returns where the node may be found: what it says itself first, then what sources say.
func (n *node) endpoints(i Info) []string {
	endpoints := slices.Clone(i.Endpoints)
	for _, source := range slices.Sorted(maps.Keys(n.found)) {
		for _, e := range n.found[source] {
			if !slices.Contains(endpoints, e) {
				endpoints = append(endpoints, e)
			}
		}
	}
	return endpoints
}

// report logs the node's problem, once, unless it is fresh and may pass.
func (n *node) report(urgent bool) {
	if n.downSince.IsZero() {
		n.downSince = time.Now()
	}
	if n.logged == n.problem || n.problem == "" || !urgent && time.Since(n.downSince) < problemLogAfter {
		return
	}
	n.logged = n.problem
	n.said.Warningf("problem", "Not connected to the manager of node %s (%s): %s", n.id, strings.Join(n.link.last, ", "), n.problem)
}

// ensure returns the node, which it adds if it isn't known, and whether it did. It returns nil if there is no way to connect to it. mu is held.
func (p *Peers) ensure(id cluster.NodeID) (n *node, added bool) {
	if n := p.nodes[id]; n != nil {
		return n, false
	}
	if len(p.nodes) >= maxNodes {
		p.said.Warningf("too many nodes", "node %.60q is not added: %d managers are known already, which is too many for one cluster", id, maxNodes)
		return nil, false
	}
	l, err := newLink(p, id, nil)
	if err != nil {
		p.said.Warningf("link to "+string(id), "%v", err)
		return nil, false
	}
	n = &node{id: id, link: l, found: map[string][]string{}, former: map[string]time.Time{}}
	p.nodes[id] = n
	return n, true
}

// Forget has all managers forget a node that is gone for good, also those that hear of it later. A node that comes back says so itself, and is known
// again. One that is connected, or that only a source tells of, isn't forgotten.
func (p *Peers) Forget(id cluster.NodeID) {
	p.mu.Lock()
	n, known := p.nodes[id], p.view.infos[id]
	if id == p.cfg.Self.ID || n != nil && n.connected || known.ID == "" || known.gone() {
		p.mu.Unlock()
		return
	}
	klog.Infof("Node %s is forgotten: it is no member and hasn't answered for long. If its manager starts again it is known again", id)
	recount := p.bury(Info{ID: id, Incarnation: known.Incarnation + 1})
	p.gossip(nil)
	p.notify()
	p.mu.Unlock()
	if recount {
		p.electorate()
	}
}

// bury takes in that a node is forgotten, and tells whether the nodes are others now. mu is held.
func (p *Peers) bury(i Info) bool {
	p.view.put(i)
	n := p.nodes[i.ID]
	return n != nil && p.leave(n)
}

// leave drops a node that others have forgotten, once it isn't connected here either: this manager may notice last that it is
// gone. It tells whether the nodes are others now. mu is held.
func (p *Peers) leave(n *node) bool {
	i, heard := p.view.infos[n.id]
	if n.connected || !heard || !i.gone() {
		return false
	}
	if len(n.found) > 0 {
		n.link.setEndpoints(n.endpoints(Info{}))
		return false
	}
	delete(p.nodes, n.id)
	n.link.close()
	return true
}

// merge takes in what another node knows, and tells whether nodes were added or forgotten. mu is held.
func (p *Peers) merge(known []*protosv1.PeerInfo, from cluster.NodeID) (added bool) {
	before := p.view.digest
	now := time.Now()
	for _, m := range known {
		i := infoFromProto(m)
		if !i.believable(now) {
			p.said.Warningf("unbelievable from "+string(from), "what node %s says of node %.60q is not believed: the id, or the number of addresses, or the time can't be right", from, i.ID)
			continue
		}
		if i.ID == p.cfg.Self.ID {
			p.claimed(i)
			continue
		}
		if i.ID == "" || i.Incarnation <= p.view.infos[i.ID].Incarnation {
			continue
		}
		i.Endpoints = slices.DeleteFunc(i.Endpoints, func(e string) bool { return checkEndpoint(e) != nil })
		if i.gone() {
			added = p.bury(i) || added
			continue
		}
		n, fresh := p.ensure(i.ID)
		if n == nil {
			continue
		}
		p.view.put(i)
		n.link.setEndpoints(n.endpoints(i))
		if fresh {
			added = true
			p.startLink(n.link)
		}
	}
	if p.view.digest != before {
		var except *node
		if from != "" {
			except = p.nodes[from]
		}
		p.gossip(except)
		p.notify()
	}
	return added
}

// claimed handles what another node believes about our own. What we say ourselves goes above it. mu is held.
func (p *Peers) claimed(i Info) {
	if i.Incarnation < p.self.Incarnation || i.Incarnation == p.self.Incarnation && p.self.same(i) {
		return
	}
	// Two processes that share the id would go on outbidding each other; while that may be so, once in a while is enough.
	if p.rivalUntil.IsZero() || time.Since(time.Unix(0, p.self.Incarnation)) > p.cfg.KeepAlive {
		p.view.put(Info{ID: i.ID, Incarnation: i.Incarnation})
		p.setSelf(p.self)
	}
	p.probe(i.Endpoints)
}

// gossip makes all links tell what has changed, except the one from which we have it. mu is held.
func (p *Peers) gossip(except *node) {
	for _, n := range p.nodes {
		if n != except {
			n.link.poke()
		}
	}
}

// observe records that an instance of the node was heard. mu is held.
func (p *Peers) observe(n *node, instance string) {
	now := time.Now()
	n.lastSeen = now
	if n.instance == instance {
		return
	}
	at, wasFormer := n.former[instance]
	if n.instance != "" {
		if _, ok := n.former[n.instance]; !ok {
			n.replaced(n.instance, now)
		}
	}
	before := n.instance
	n.instance = instance
	p.notify()
	if !wasFormer || now.Sub(at) < rivalAge {
		return
	}
	if !n.isRival() {
		klog.Errorf("Two managers claim to be node %s at the same time (instances %s and %s); neither may vote or lead. Stop one, or give it a node id of its own",
			n.id, instance, before)
	}
	n.rivalUntil = now.Add(p.rivalHold())
}

// rivalHold is how long a proof of two processes with one node id counts: each is heard several times in that.
func (p *Peers) rivalHold() time.Duration { return 3 * p.cfg.KeepAlive }

// selfRival records a proof that another process has our node id. This one doesn't lead until there has been none for a while.
func (p *Peers) selfRival(instance string) {
	p.mu.Lock()
	first := p.rivalUntil.IsZero()
	p.rivalUntil = time.Now().Add(p.rivalHold())
	if first {
		klog.Errorf("Another manager (instance %s) claims to be node %s as this one does (instance %s); neither may lead. Stop one, or give it a node id of its own",
			instance, p.cfg.Self.ID, p.cfg.Instance)
		p.spawn(p.outliveRival)
	}
	p.mu.Unlock()
	if first {
		p.eligibility()
	}
}

// outliveRival waits until there has been no sign of a rival for a while.
func (p *Peers) outliveRival(ctx context.Context) {
	for {
		p.mu.Lock()
		left := time.Until(p.rivalUntil)
		if left <= 0 {
			p.rivalUntil = time.Time{}
			p.mu.Unlock()
			klog.Infof("The other manager that claimed to be node %s is gone", p.cfg.Self.ID)
			p.eligibility()
			return
		}
		p.mu.Unlock()
		timer := time.NewTimer(left)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// eligibility tells the election whether this node may lead.
func (p *Peers) eligibility() {
	p.elect.do(func(m *election.Machine) {
		p.mu.Lock()
		yes := !p.resigns && p.rivalUntil.IsZero()
		p.mu.Unlock()
		m.SetEligible(yes)
	})
}

// electorate tells the election who takes part.
func (p *Peers) electorate() {
	p.elect.do(func(m *election.Machine) {
		var ids []cluster.NodeID
		p.mu.Lock()
		for id, n := range p.nodes {
			if !n.foreign && !n.refused {
				ids = append(ids, id)
			}
		}
		p.mu.Unlock()
		m.SetPeers(ids)
	})
}

// elected takes in the state of the election. It is called with the elector's lock held.
func (p *Peers) elected(s election.State) {
	if s.Leads() {
		p.lead.grant(s.Term)
	}
	leader := s.Leader
	if leader == p.cfg.Self.ID && !s.Leads() {
		leader = "" // elected, but without a lease
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.leader == leader && p.term == s.Term {
		return
	}
	if p.leader != leader && leader != "" && leader != p.cfg.Self.ID {
		klog.Infof("Node %s leads, in term %d", leader, s.Term)
	}
	p.leader, p.term = leader, s.Term
	p.notify()
}
