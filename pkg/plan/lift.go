package plan

import (
	"slices"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// lift lets clients in once the store says that the cluster is formed. With the store away only what was begun is ended.
func (r *rules) lift() (Decision, bool) {
	quarantined := slices.ContainsFunc(r.v.nodes, isQuarantined)
	s := r.o.Store
	switch {
	case !quarantined || !r.v.serving:
		return none, false
	case r.v.open:
	case s.Error == "" && s.Marker.Phase == model.MarkerAbsent && r.complete() && len(r.v.members) > 0:
		return r.adopt("is quarantined, all its members are here")
	case s.Error != "":
		return needs(cluster.Attention{Kind: cluster.AttentionStore},
			"the cluster is quarantined, and it can't be read whether it is formed, so clients are not let in: %s", figure{s.Error})
	case s.Marker.Phase == model.MarkerAbsent:
		return needs(cluster.Attention{NoCommand: "bring the members that are missing back; then clients are let in"},
			"the cluster %s is quarantined and the store has no marker, so clients are not let in before all its members are here and healthy", r.v.token)
	case s.Marker.Phase != model.MarkerFormed, s.Marker.Token != "" && s.Marker.Token != r.v.token:
		return needs(r.markerAttention(), "the cluster %s is quarantined, but the store's marker names cluster %s, so clients are not let in; "+
			"if what runs is right: %sconfirm-cluster %s", r.v.token, s.Marker.Token, ctl, r.v.token)
	}
	return r.liftNext()
}

func isQuarantined(n *cluster.NodeStatus) bool {
	return n.State.Quarantined || n.Etcd.Running && n.Etcd.Quarantined
}

// liftNext opens one member, followers first, so that the first follower serves while the leader still leads.
func (r *rules) liftNext() (Decision, bool) {
	var next, starting *cluster.NodeStatus
	for _, n := range r.v.nodes {
		switch {
		case n.Holding && r.o.Store.Error != "":
		case !n.Etcd.Healthy && starts(n, Database(r.o.Observation)) && (r.v.open || !isQuarantined(n)):
			starting = n
		case !isQuarantined(n):
		case next == nil, next.Etcd.MemberID == r.v.leader:
			next = n
		}
	}
	switch {
	case starting != nil:
		return hold("clients are let in one node after the other; node %s starts", starting.ID)
	case next == nil:
		return none, false
	}
	st := *next.State.Clone()
	st.NewCluster, st.Quarantined = false, false
	return do(model.StartEtcd{Node: next.ID, State: st, Restart: true},
		"the cluster is formed and healthy; node %s opens its client URLs", next.ID)
}

// held lets etcd run again on a node that was held for a restore which has ended without it, unless the marker names another
// cluster: then its data are of before.
func (r *rules) held() (Decision, bool) {
	s := r.o.Store
	if s.Error != "" || s.Operation != nil || s.Marker.Token != "" && s.Marker.Token != r.v.token {
		return none, false
	}
	for _, n := range r.v.nodes {
		if heldSuperseded(*n) {
			return do(model.StartEtcd{Node: n.ID, State: *n.State.Clone()},
				"the cluster isn't superseded any more; the etcd of node %s starts again", n.ID)
		}
		if n.Holding {
			return do(model.StartEtcd{Node: n.ID, State: *n.State.Clone()},
				"node %s was held for a restore that is over; its etcd goes on", n.ID)
		}
	}
	return none, false
}
