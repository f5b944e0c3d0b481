package plan

import (
	"fmt"
	"slices"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// relocated explains a cluster whose members are all right but have other addresses than they know
// of each other, so that they find no quorum: the machines were moved together. Etcd learns
// addresses only by a change of the member list, for which it needs the quorum. Nothing is lost,
// and the way out loses nothing: of a quorum of members the one with the newest log has every write
// that was ever acknowledged.
func (r *rules) relocated(words string) (Decision, bool) {
	names := r.voterNames()
	var moved []string
	here := 0
	for _, n := range r.v.nodes {
		if !n.DataPresent || !slices.Contains(names, string(n.ID)) {
			continue
		}
		here++
		if before := r.formerURLs(n); before != nil {
			moved = append(moved, fmt.Sprintf("node %s is at %s now, not at %s", n.ID,
				strings.Join(n.Self.PeerURLs, ","), strings.Join(before, ",")))
		}
	}
	quorum := cluster.Quorum(len(names))
	if len(moved) == 0 || here < quorum || len(names)-len(moved) >= quorum {
		return none, false
	}
	return needs(cluster.Attention{Kind: cluster.AttentionQuorum, Command: recoverCommand},
		"etcd has no quorum, but nothing is lost: %d of %d members are here, under other addresses than they know of each other (%s). Either give the masters their "+
			"former addresses back, or make a new cluster of the same data at the new addresses: %s. It goes on with the member that has the newest log, and that has "+
			"every write that was acknowledged; no backup is needed. (%s)", here, len(names), strings.Join(moved, "; "),
		recoverCommand, words)
}

// voterNames are the members by the newest list that a node here can tell: etcd's own, else a state file.
func (r *rules) voterNames() []string {
	var newest *cluster.NodeStatus
	for _, n := range r.v.nodes {
		if len(n.Etcd.Members) > 0 && (newest == nil || newer(n, newest)) {
			newest = n
		}
	}
	if newest == nil {
		return nodeNames(r.v.nodes[0].State.Nodes)
	}
	var names []string
	for _, m := range newest.Etcd.Members {
		if !m.Learner {
			names = append(names, m.Name)
		}
	}
	return names
}

// formerURLs are the peer URLs under which others know a node, if they aren't those that it has; else nil.
func (r *rules) formerURLs(n *cluster.NodeStatus) []string {
	for _, x := range r.v.nodes {
		for _, m := range x.Etcd.Members {
			if m.Name == string(n.ID) && len(m.PeerURLs) > 0 && !sameSet(m.PeerURLs, n.Self.PeerURLs) {
				return m.PeerURLs
			}
		}
		if known := x.State.Node(string(n.ID)); x.ID != n.ID && len(x.Etcd.Members) == 0 && known != nil &&
			!sameSet(known.PeerURLs, n.Self.PeerURLs) {
			return known.PeerURLs
		}
	}
	return nil
}

// newer tells whether the log of one node goes further than that of another one, as raft compares them.
func newer(a, b *cluster.NodeStatus) bool {
	if a.Etcd.RaftTerm != b.Etcd.RaftTerm {
		return a.Etcd.RaftTerm > b.Etcd.RaftTerm
	}
	return a.Etcd.RaftIndex > b.Etcd.RaftIndex
}
