package plan

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// observed is what the rules ask of an observation.
type observed struct{ *model.Observation }

// sorted returns the observation with its sets in order, so that the order in which nodes answered decides nothing. A restore that
// has ended is none.
func sorted(o *model.Observation) observed {
	c := *o
	if op := o.Store.Operation; op != nil && op.State.Ended() {
		c.Store.Operation = nil
	}
	c.Nodes = slices.Clone(o.Nodes)
	slices.SortFunc(c.Nodes, func(a, b cluster.NodeStatus) int { return cmp.Compare(a.ID, b.ID) })
	c.Missing = slices.Clone(o.Missing)
	slices.SortFunc(c.Missing, func(a, b model.MissingNode) int { return cmp.Compare(a.ID, b.ID) })
	return observed{&c}
}

// missing returns a node that is known but didn't answer. One that nobody knows has been missing for as long as the leader has
// seen the same nodes.
func (o observed) missing(name string) model.MissingNode {
	for _, m := range o.Missing {
		if string(m.ID) == name {
			return m
		}
	}
	return model.MissingNode{ID: cluster.NodeID(name), For: o.SettledFor}
}

// view is what an observation says of the etcd cluster that runs.
type view struct {
	token cluster.Token
	// nodes have a state file with that token.
	nodes []*cluster.NodeStatus
	// members is etcd's member list as the etcd leader tells it, else any healthy voter, sorted by name; nil if none can tell.
	members []cluster.Member
	// serving is true if an etcd leader exists and linearizable reads work somewhere.
	serving bool
	// open is true if clients were let in: a node's state file says that it isn't quarantined.
	open   bool
	leader cluster.MemberID
	// rival is another token whose cluster serves clients, or empty.
	rival cluster.Token
}

// look finds the current cluster: the token of the marker if a node has it, else that of most healthy voters, else of most nodes.
func look(o observed) view {
	weight := map[cluster.Token]int{}
	for _, n := range o.Nodes {
		if n.State == nil {
			continue
		}
		weight[n.State.Token]++
		if n.Etcd.Votes() {
			weight[n.State.Token] += 100
		}
	}
	var tokens []cluster.Token
	for t := range weight {
		tokens = append(tokens, t)
	}
	slices.Sort(tokens)
	var v view
	for _, t := range tokens {
		if v.token == "" || weight[t] > weight[v.token] {
			v.token = t
		}
	}
	if m := o.Store.Marker; m.Token != "" && weight[m.Token] > 0 {
		v.token = m.Token
	}
	return lookAt(o, v.token)
}

// lookAt gathers what is known of the cluster with that token.
func lookAt(o observed, token cluster.Token) view {
	v := view{token: token}
	if token == "" {
		return v
	}
	for i := range o.Nodes {
		n := &o.Nodes[i]
		if n.State == nil {
			continue
		}
		if n.State.Token != token {
			if serves(n) {
				v.rival = n.State.Token
			}
			continue
		}
		v.nodes = append(v.nodes, n)
		v.open = v.open || !n.State.Quarantined
		if !n.Etcd.Votes() {
			continue
		}
		v.serving = true
		lead := n.Etcd.MemberID != 0 && n.Etcd.MemberID == n.Etcd.LeaderID
		if v.leader == 0 || lead {
			v.leader = n.Etcd.LeaderID
		}
		if n.Etcd.Members != nil && (v.members == nil || lead) {
			v.members = n.Etcd.Members
		}
	}
	v.members = slices.Clone(v.members)
	slices.SortFunc(v.members, func(a, b cluster.Member) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return v
}

// serves tells whether a node's etcd answers clients.
func serves(n *cluster.NodeStatus) bool {
	return n.Etcd.Votes() && !n.Etcd.Quarantined
}

// node returns the node that a member lives on: by member id, else by name, else by a peer URL.
func (v *view) node(o observed, m cluster.Member) *cluster.NodeStatus {
	for _, n := range v.nodes {
		if n.Etcd.MemberID != 0 && n.Etcd.MemberID == m.ID {
			return n
		}
	}
	for i := range o.Nodes {
		n := &o.Nodes[i]
		if m.Name != "" && string(n.ID) == m.Name {
			return n
		}
		for _, u := range m.PeerURLs {
			if m.Name == "" && slices.Contains(n.Self.PeerURLs, u) {
				return n
			}
		}
	}
	return nil
}

// mayComeUp tells whether a node's etcd was started so lately, for the size of its database, that it may still become a healthy voter.
func (r *rules) mayComeUp(n *cluster.NodeStatus) bool {
	return n.Etcd.Running && !n.Etcd.Learner && starts(n, Database(r.o.Observation))
}

// healthy tells whether a member answers. A voter that still takes itself for a learner doesn't.
func (v *view) healthy(m cluster.Member) bool {
	for _, n := range v.nodes {
		same := n.Etcd.MemberID == m.ID || n.Etcd.Denied && string(n.ID) == m.Name
		if same && n.Etcd.Healthy && (m.Learner || !n.Etcd.Learner) {
			return true
		}
	}
	return false
}

func (v *view) voters() (all, healthy int) {
	for _, m := range v.members {
		if m.Learner {
			continue
		}
		all++
		if v.healthy(m) {
			healthy++
		}
	}
	return all, healthy
}

// away tells whether, by what any node with that token knows of its members, enough of them to be a quorum are out of reach
// and haven't been so for long. The zero duration means: however long. Of a list that is outdated one is enough, if nobody here serves.
func (o observed) away(token cluster.Token, long time.Duration) bool {
	unserved := long > 0 && !lookAt(o, token).serving
	for _, n := range o.Nodes {
		if n.State == nil || n.State.Token != token {
			continue
		}
		var byState, byEtcd []string
		for _, m := range n.State.Nodes {
			byState = append(byState, m.Name)
		}
		for _, m := range n.Etcd.Members {
			if !m.Learner {
				byEtcd = append(byEtcd, m.Name)
			}
		}
		if o.quorumAway(byState, long) || o.quorumAway(byEtcd, long) {
			return true
		}
		if unserved && o.outdated(token, byState) && o.someAway(byState, long) {
			return true
		}
	}
	return false
}

// outdated tells whether a list of members is of before: one that it names answers, and has data neither of that cluster nor of the
// restore that replaces it. Then the list says nothing of quorums: one who is silent may have removed all the others, and serve alone.
func (o observed) outdated(token cluster.Token, names []string) bool {
	return slices.ContainsFunc(names, func(name string) bool {
		n, op := o.Node(cluster.NodeID(name)), o.Store.Operation
		switch {
		case n == nil:
			return false
		case n.State == nil:
			return true
		}
		return n.State.Token != token && (op == nil || n.State.Token != op.Token)
	})
}

// someAway tells whether any of these is out of reach and hasn't been so for long.
func (o observed) someAway(names []string, long time.Duration) bool {
	return slices.ContainsFunc(names, func(name string) bool {
		if o.Node(cluster.NodeID(name)) != nil {
			return false
		}
		m := o.missing(name)
		return m.Foreign || m.For < long
	})
}

// recentlyMissing is a known node that hasn't been silent for that long, or "".
func (o observed) recentlyMissing(long time.Duration) cluster.NodeID {
	for _, m := range o.Missing {
		if m.Foreign || m.For < long {
			return m.ID
		}
	}
	return ""
}

func (o observed) quorumAway(names []string, long time.Duration) bool {
	away := 0
	for _, name := range names {
		if o.Node(cluster.NodeID(name)) != nil {
			continue
		}
		if m := o.missing(name); m.Foreign || long == 0 || m.For < long {
			away++
		}
	}
	return len(names) > 0 && away >= cluster.Quorum(len(names))
}

func join[T any](list []T, f func(T) string, sep string) string {
	parts := make([]string, len(list))
	for i, x := range list {
		parts[i] = f(x)
	}
	return strings.Join(parts, sep)
}

func ids(nodes []cluster.NodeID) string {
	return join(nodes, func(n cluster.NodeID) string { return string(n) }, ",")
}
