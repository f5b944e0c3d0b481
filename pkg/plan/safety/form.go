package safety

import (
	"fmt"
	"slices"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// checkCreate: at most one cluster is ever formed for a store, and never instead of what was queued or is there.
func checkCreate(o *model.Observation, founders []cluster.EtcdNode) error {
	if o.Store.Marker.Phase != model.MarkerAbsent {
		return fmt.Errorf("a cluster was created for this store before (%s)", o.Store.Marker.Phase)
	}
	if len(o.Store.Commands) > 0 || len(o.Store.CommandErrors) > 0 || len(o.Store.ObjectErrors) > 0 ||
		len(o.Store.FailedRestores) > 0 || unfinished(o) != nil {
		return fmt.Errorf("a restore is queued or under way, or has failed")
	}
	for _, n := range o.Nodes {
		if n.State != nil || n.StateError != "" {
			return fmt.Errorf("node %s already belongs to an etcd cluster", n.ID)
		}
	}
	for _, m := range o.Missing {
		if m.Foreign {
			return fmt.Errorf("node %s runs other software, which may have a cluster", m.ID)
		}
	}
	if o.Store.Spec != nil && len(founders) < cluster.Quorum(o.Store.Spec.MemberCount) {
		return fmt.Errorf("%d founders are no majority of the %d that are wanted", len(founders), o.Store.Spec.MemberCount)
	}
	if len(founders) == 0 {
		return fmt.Errorf("no founders")
	}
	return nil
}

// checkReplace: forming starts over only while no client can have been let in and the first founders can't form without it.
func checkReplace(o *model.Observation, a model.ReplaceMarker) error {
	m := o.Store.Marker
	if m.Phase != model.MarkerForming {
		return fmt.Errorf("the marker is %q, not forming", m.Phase)
	}
	here, blank, able := 0, 0, 0
	for _, f := range m.Founders {
		n := o.Node(cluster.NodeID(f.Name))
		if n == nil {
			continue
		}
		here++
		switch {
		case n.StateError != "":
			able++ // it may have its data still
		case n.State == nil:
			blank++
		case !n.State.Quarantined:
			return fmt.Errorf("founder %s is not quarantined any more: clients may have written", f.Name)
		case n.State.Token == m.Token && (n.Etcd.Healthy || n.Etcd.UnhealthyFor < moment):
			able++
		}
	}
	enough := cluster.Quorum(len(m.Founders))
	switch {
	case blank == 0 && here >= enough, able >= enough:
		return fmt.Errorf("%d of %d founders are here, they can go on", here, len(m.Founders))
	case blank == len(m.Founders):
		return fmt.Errorf("none of the %d founders has begun, they can all be started", blank)
	case o.Store.Spec != nil && len(a.Founders) < cluster.Quorum(o.Store.Spec.MemberCount):
		return fmt.Errorf("%d founders are no majority of the %d that are wanted", len(a.Founders), o.Store.Spec.MemberCount)
	}
	return nil
}

// checkStartAll: only founders of the marker's cluster, quarantined, on nodes without a cluster; and all founders are here and none has
// begun. Else one that has no data may have lost what it has acknowledged to the others, and it would have its old id.
func checkStartAll(o *model.Observation, a model.StartAll) error {
	m := o.Store.Marker
	if m.Phase != model.MarkerForming {
		return fmt.Errorf("the marker is %q, not forming", m.Phase)
	}
	for _, s := range a.Starts {
		n := o.Node(s.Node)
		switch {
		case n == nil:
			return fmt.Errorf("node %s doesn't answer", s.Node)
		case n.State != nil:
			return fmt.Errorf("node %s already belongs to cluster %s", s.Node, n.State.Token)
		case s.State.Token != m.Token:
			return fmt.Errorf("token %s isn't the marker's %s", s.State.Token, m.Token)
		case !s.State.Quarantined || !s.State.NewCluster:
			return fmt.Errorf("a founder that isn't quarantined")
		case !slices.ContainsFunc(m.Founders, func(f cluster.EtcdNode) bool { return f.Name == string(s.Node) }):
			return fmt.Errorf("node %s is no founder", s.Node)
		}
	}
	for _, f := range m.Founders {
		switch n := o.Node(cluster.NodeID(f.Name)); {
		case n == nil:
			return fmt.Errorf("founder %s doesn't answer and may have begun, so one without data may have lost them", f.Name)
		case n.StateError != "":
			return fmt.Errorf("founder %s may have begun, so one without data may have lost them: %s", f.Name, n.StateError)
		case n.State != nil:
			return fmt.Errorf("founder %s has begun, so one without data may have lost them", f.Name)
		}
	}
	return nil
}

// checkStart: a start keeps the node's cluster, never founds one, lets clients in only where they may be, and a restart leaves the
// others a quorum if clients are served.
func checkStart(o *model.Observation, a model.StartEtcd) error {
	n := o.Node(a.Node)
	switch {
	case n == nil:
		return fmt.Errorf("node %s doesn't answer", a.Node)
	case n.StateError != "":
		return fmt.Errorf("node %s has something that can't be read: %s", a.Node, n.StateError)
	case a.State.NewCluster && (n.State == nil || !n.State.NewCluster):
		return fmt.Errorf("founding is for StartAll")
	case n.Holding && !mayRelease(o, a.State.Token):
		return fmt.Errorf("node %s is held for a restore", a.Node)
	case n.State == nil:
		return checkJoin(o, a)
	case n.State.Token != a.State.Token:
		return fmt.Errorf("node %s would change from cluster %s to %s", a.Node, n.State.Token, a.State.Token)
	case a.MayBeEmpty && n.DataPresent:
		return fmt.Errorf("node %s has data", a.Node)
	case a.MayBeEmpty:
		return checkJoin(o, a)
	}
	lifts := (n.State.Quarantined || n.Etcd.Running && n.Etcd.Quarantined) && !a.State.Quarantined
	if lifts && !mayOpen(o, a.State.Token) {
		return fmt.Errorf("clients would be let into cluster %s, of which the store doesn't say that it is formed and verified",
			a.State.Token)
	}
	if !a.Restart || !n.Etcd.Healthy {
		return nil
	}
	return checkRestart(o, a, lifts)
}

// mayRelease: the store says that no restore is under way and that the cluster is the right one.
func mayRelease(o *model.Observation, t cluster.Token) bool {
	m := o.Store.Marker
	return o.Store.Error == "" && unfinished(o) == nil && (m.Token == "" || m.Token == t)
}

// mayOpen: clients are in already, or the marker says formed.
func mayOpen(o *model.Observation, t cluster.Token) bool {
	for _, x := range o.Nodes {
		if x.State != nil && x.State.Token == t && !x.State.Quarantined {
			return true
		}
	}
	s := o.Store
	if s.Error != "" || unfinished(o) != nil {
		return false
	}
	return s.Marker.Phase == model.MarkerFormed && (s.Marker.Token == t || s.Marker.Token == "")
}

// checkRestart: with clients in, a restart leaves a quorum; only a member that opens may cost one for the moment, if all the others
// that could spare it are long dead.
func checkRestart(o *model.Observation, a model.StartEtcd, lifts bool) error {
	n := o.Node(a.Node)
	voters, others, soon, open := 0, 0, 0, false
	for _, m := range n.Etcd.Members {
		if m.Learner {
			continue
		}
		voters++
		for _, x := range o.Nodes {
			switch {
			case x.ID == a.Node || x.Etcd.MemberID != m.ID || x.State == nil || x.State.Token != a.State.Token:
			case x.Etcd.Healthy && !x.Etcd.Learner:
				others++
			case mayRecover(o, x.Etcd) && !x.Holding:
				soon++
			}
		}
	}
	for _, x := range o.Nodes {
		open = open || x.State != nil && x.State.Token == a.State.Token && x.Etcd.Running && !x.Etcd.Quarantined
	}
	if open && voters > 1 && others < cluster.Quorum(voters) && !(lifts && soon == 0) {
		return fmt.Errorf("with node %s restarting only %d of %d members would be healthy", a.Node, others, voters)
	}
	return nil
}

// checkJoin: a node starts empty only as a member that is in the list of the running cluster and has never started.
func checkJoin(o *model.Observation, a model.StartEtcd) error {
	n := o.Node(a.Node)
	for _, x := range o.Nodes {
		if x.State == nil || x.State.Token != a.State.Token || !x.Etcd.Healthy || x.Etcd.Learner {
			continue
		}
		for _, m := range x.Etcd.Members {
			if m.Name == "" && slices.ContainsFunc(m.PeerURLs, func(u string) bool { return slices.Contains(n.Self.PeerURLs, u) }) {
				return nil
			}
		}
	}
	return fmt.Errorf("node %s isn't in the member list of a healthy cluster %s as one that has never started", a.Node, a.State.Token)
}

// checkFormed: a majority of the founders is healthy under the marker's token; without a marker, a quorum of its members.
func checkFormed(o *model.Observation, a model.MarkFormed) error {
	m := o.Store.Marker
	if a.Create {
		if m.Phase != model.MarkerAbsent || unfinished(o) != nil {
			return fmt.Errorf("the marker is %q, or a restore is under way", m.Phase)
		}
		if members := authority(o); members == nil || servingToken(o) != a.Token {
			return fmt.Errorf("cluster %s is not the one that serves", a.Token)
		}
		return nil
	}
	if m.Phase != model.MarkerForming || m.Token != a.Token {
		return fmt.Errorf("the marker is %q for token %s", m.Phase, m.Token)
	}
	healthy := 0
	for _, f := range m.Founders {
		if n := o.Node(cluster.NodeID(f.Name)); n != nil && n.State != nil && n.State.Token == m.Token &&
			n.Etcd.Healthy && !n.Etcd.Learner {
			healthy++
		}
	}
	if healthy < cluster.Quorum(len(m.Founders)) {
		return fmt.Errorf("%d of %d founders are healthy", healthy, len(m.Founders))
	}
	return nil
}
