package plan

import (
	"fmt"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// learner brings a member that was added but isn't a voter yet to its end, before anything else is changed.
func (r *rules) learner() (Decision, bool) {
	if !r.canChange() {
		return none, false
	}
	for _, m := range r.v.members {
		if !m.Learner && m.Name != "" {
			continue
		}
		n := r.v.node(r.o, m)
		if n == nil {
			return r.learnerGone(m)
		}
		remove := model.RemoveMember{Member: m.ID, Name: m.Name}
		ours := n.State != nil && n.State.Token == r.v.token
		switch {
		case n.StateError != "":
			return needs(cluster.Attention{Node: n.ID}, "node %s can't join: %s", n.ID, n.StateError)
		case n.State != nil && (!ours || n.Holding) && !r.mayFree(n):
			return needs(cluster.Attention{Kind: cluster.AttentionClusters, Node: n.ID},
				"node %s can't join: it has data of cluster %s, and the store doesn't say that they aren't needed; move its data dir away if they aren't", n.ID, n.State.Token)
		case n.State != nil && !ours:
			return do(model.SetAside{Node: n.ID, Token: n.State.Token, Reason: "data of another cluster"},
				"node %s still has data of another cluster", n.ID)
		case m.Name == "" && m.Learner && r.o.StartFailing[n.ID] >= r.p.MemberDeadline:
			return do(failed(remove, n), "member %s was added for node %s, which hasn't started it in %s; see the log of its manager",
				m.ID, n.ID, round(r.o.StartFailing[n.ID]))
		case m.Name == "" && m.Learner && ours && (n.Etcd.MemberID == 0 || n.Etcd.MemberID == m.ID) && r.failsToJoin(n):
			return do(failed(remove, n), "member %s was added for node %s, whose etcd doesn't stay up (it ended %s): %s",
				m.ID, n.ID, figure{cluster.Times(n.Etcd.Restarts)}, figure{n.Etcd.Error})
		case m.Name == "" && (n.State == nil || !n.Etcd.Running && !n.DataPresent):
			return do(model.StartEtcd{Node: n.ID, MayBeEmpty: true, State: r.joinState(n)},
				"member %s was added for node %s, which starts and catches up", m.ID, n.ID)
		case !ours, !n.DataPresent && !n.Etcd.Running:
			return do(remove, "learner %s has lost its data, so it can't catch up; it is added anew", n.ID)
		case n.Etcd.MemberID != 0 && n.Etcd.MemberID != m.ID && !n.Etcd.Healthy:
			return do(model.SetAside{Node: n.ID, Token: n.State.Token, Reason: "data of an earlier membership"},
				"node %s still has data of an earlier membership", n.ID)
		case m.Learner && r.behind(n) <= caughtUp && n.Etcd.Running && n.Etcd.MemberID == m.ID && n.Etcd.AppliedIndex > 0:
			return do(model.Promote{Member: m.ID, Name: string(n.ID)}, "learner %s has caught up", n.ID)
		case m.Learner && r.failsToJoin(n):
			return do(failed(remove, n), "member %s on node %s was added but doesn't get well: %s", m.ID, n.ID, figure{n.Etcd.Error})
		}
		return hold("member %s on node %s catches up (%d raft entries behind)", m.ID, n.ID, figure{r.behind(n)})
	}
	return none, false
}

// failed says that a member is removed since its node failed to join.
func failed(a model.RemoveMember, n *cluster.NodeStatus) model.RemoveMember {
	a.Failed, a.Why = n.ID, n.Etcd.Error
	return a
}

// failsToJoin tells whether a member that was added has had its time: its etcd ends over and over,
// doesn't run, or doesn't catch up. What it takes to send it the database, and to load that, is
// part of its time.
func (r *rules) failsToJoin(n *cluster.NodeStatus) bool {
	e := n.Etcd
	switch {
	case e.UnhealthyFor < r.p.MemberDeadline:
		return false
	case !e.Running, e.Restarts >= crashes:
		return true
	}
	return e.UnhealthyFor >= stuckFactor*r.p.MemberDeadline+copies*cluster.LoadTime(Database(r.o.Observation)) &&
		!loads(n, Database(r.o.Observation))
}

// learnerGone deals with a member that was added and of whose node nothing is seen.
func (r *rules) learnerGone(m cluster.Member) (Decision, bool) {
	if !m.Learner {
		return needs(cluster.Attention{Command: fmt.Sprintf("etcdctl member remove %s", m.ID)},
			"member %s (%s) was added by someone else and has never started; start it, or remove it: etcdctl member remove %s",
			m.ID, label(m), m.ID)
	}
	gone := r.gone(m)
	if m.Name == "" {
		gone = r.o.SettledFor // its node could be any of those that are missing
		for _, miss := range r.o.Missing {
			gone = min(gone, miss.For)
		}
	}
	if gone >= r.p.MemberDeadline {
		return do(model.RemoveMember{Member: m.ID, Name: m.Name}, "learner %s (%s) was added but its node is gone", m.ID, label(m))
	}
	return hold("learner %s (%s) was added and its node doesn't answer", m.ID, label(m))
}

func (r *rules) behind(n *cluster.NodeStatus) uint64 {
	var lead uint64
	for _, x := range r.v.nodes {
		lead = max(lead, x.Etcd.RaftIndex)
	}
	return lead - min(lead, n.Etcd.AppliedIndex)
}

// joinState is the state of a node that joins the running cluster.
func (r *rules) joinState(n *cluster.NodeStatus) cluster.EtcdState {
	return cluster.EtcdState{Token: r.v.token, DesiredSize: r.desired(), EtcdVersion: r.runningVersion(n), Nodes: r.membersAsNodes()}
}

func (r *rules) couldJoin(n *cluster.NodeStatus) bool {
	return n.State == nil && n.StateError == "" && !r.named(n) && r.o.ProbeErrors[n.ID] == "" && !DiskFull(n)
}

// longestJoin bounds how long a node that fails to join waits for its next attempt.
const longestJoin = time.Hour

// joinsIn is how long a node that failed to join waits still: the longer, the more often it has failed.
func (r *rules) joinsIn(n *cluster.NodeStatus) time.Duration {
	f := r.o.JoinFailures[n.ID]
	if f.Times == 0 {
		return 0
	}
	return min(r.p.MemberDeadline<<min(f.Times-1, 10), longestJoin) - f.For
}

// stuckFactor times the member deadline is what a learner gets to catch up before it is given up.
const stuckFactor = 10
