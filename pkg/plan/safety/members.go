package safety

import (
	"fmt"
	"slices"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// checkRemove: never below a quorum of healthy voters, before or after; never the last; never what was just seen well elsewhere.
func checkRemove(o *model.Observation, a model.RemoveMember) error {
	members := authority(o)
	if members == nil {
		return fmt.Errorf("no healthy member with a leader tells the member list, or two clusters do")
	}
	voters, left := 0, 0
	var victim *cluster.Member
	for i, m := range members {
		if m.ID == a.Member {
			victim = &members[i]
		}
		if m.Learner {
			continue
		}
		voters++
		if m.ID != a.Member && healthyMember(o, m) {
			left++
		}
	}
	if victim == nil || victim.Learner {
		return nil // gone already, or a learner, which has no vote
	}
	for _, m := range o.Missing {
		if m.Foreign && string(m.ID) == victim.Name {
			return fmt.Errorf("member %s is run by other software and may be well", a.Member)
		}
	}
	if s := o.Store.Spec; s != nil && voters <= s.MemberCount && stillLoads(o, victim) {
		return fmt.Errorf("member %s is loading its database", a.Member)
	}
	if voters == 1 {
		return fmt.Errorf("member %s is the last voter", a.Member)
	}
	if left < cluster.Quorum(voters-1) {
		return fmt.Errorf("without member %s only %d of %d voters would be healthy", a.Member, left, voters-1)
	}
	healthyNow := left
	if healthyMember(o, *victim) {
		healthyNow++
	}
	if healthyNow < cluster.Quorum(voters) {
		return fmt.Errorf("only %d of %d voters are healthy", healthyNow, voters)
	}
	return nil
}

// stillLoads: the process of a member exists, has never answered, and has had no time yet to read the largest database that there is. One
// that etcd calls corrupt is not spared.
func stillLoads(o *model.Observation, m *cluster.Member) bool {
	n := o.Node(cluster.NodeID(m.Name))
	if n == nil || n.State == nil || n.State.Token != servingToken(o) || calledCorrupt(o, m.ID) {
		return false
	}
	e := n.Etcd
	return e.Running && e.MemberID == 0 && e.UpFor > 0 && e.AnsweringFor == 0 && e.Restarts == 0 && e.UpFor < timeToLoad(o)
}

// checkAdd: one change at a time, on a healthy quorum, and only a node that has no data.
func checkAdd(o *model.Observation, a model.AddLearner) error {
	n := o.Node(a.Node)
	if n == nil || n.State != nil || n.StateError != "" {
		return fmt.Errorf("node %s doesn't answer or has data", a.Node)
	}
	if len(a.PeerURLs) == 0 || o.ProbeErrors[a.Node] != "" {
		return fmt.Errorf("node %s can't be reached by its peer URLs %v: %s", a.Node, a.PeerURLs, o.ProbeErrors[a.Node])
	}
	members := authority(o)
	if members == nil {
		return fmt.Errorf("no healthy member with a leader tells the member list, or two clusters do")
	}
	voters, healthy := 0, 0
	for _, m := range members {
		if m.Learner || m.Name == "" {
			return fmt.Errorf("member %s isn't settled yet", m.ID)
		}
		if m.Name == string(a.Node) {
			return fmt.Errorf("node %s is still member %s", a.Node, m.ID)
		}
		voters++
		if healthyMember(o, m) {
			healthy++
		}
	}
	if healthy < cluster.Quorum(voters) {
		return fmt.Errorf("only %d of %d voters are healthy", healthy, voters)
	}
	return nil
}

// checkPromote: what becomes a voter is a learner that runs, and with it there is still a quorum.
func checkPromote(o *model.Observation, a model.Promote) error {
	voters, well := 1, 0
	found := false
	for _, m := range authority(o) {
		if m.ID == a.Member {
			found = m.Learner
			continue
		}
		if m.Learner {
			continue
		}
		voters++
		if healthyMember(o, m) {
			well++
		}
	}
	for _, n := range o.Nodes {
		if n.Etcd.MemberID == a.Member && n.Etcd.Running && n.Etcd.AppliedIndex > 0 {
			well++
		}
	}
	if !found || well < cluster.Quorum(voters) {
		return fmt.Errorf("member %s is no learner that runs, or %d of %d would be well", a.Member, well, voters)
	}
	return nil
}

// checkUpdate: a bad peer URL can take the cluster down, so it is only set if nothing is known against it.
func checkUpdate(o *model.Observation, a model.UpdateMember) error {
	if authority(o) == nil {
		return fmt.Errorf("no healthy member with a leader tells the member list, or two clusters do")
	}
	for _, n := range o.Nodes {
		if n.Etcd.MemberID == a.Member && o.ProbeErrors[n.ID] != "" {
			return fmt.Errorf("node %s can't be reached at %v: %s", n.ID, a.PeerURLs, o.ProbeErrors[n.ID])
		}
		if n.Etcd.MemberID == a.Member && n.Etcd.Outdated {
			return fmt.Errorf("the etcd of node %s was started with other URLs, and listens there still", n.ID)
		}
	}
	if len(a.PeerURLs) == 0 {
		return fmt.Errorf("member %s would have no peer URL", a.Member)
	}
	return nil
}

// checkSetAside: never the data of a healthy member, never the only data there are, never on a guess which cluster is the right one.
func checkSetAside(o *model.Observation, a model.SetAside) error {
	n := o.Node(a.Node)
	if n == nil || n.State == nil || n.State.Token != a.Token || n.StateError != "" {
		return fmt.Errorf("node %s doesn't have cluster %s", a.Node, a.Token)
	}
	if n.State.NewCluster && n.State.Quarantined && o.Store.Error == "" &&
		o.Store.Marker.Phase == model.MarkerForming && o.Store.Marker.Token != a.Token {
		return nil // an attempt to form that was given up; no client was ever let in
	}
	if a.NeverServed {
		return fmt.Errorf("clients may have been let into cluster %s, whose data node %s has", a.Token, a.Node)
	}
	m := o.Store.Marker
	ready := slices.ContainsFunc(o.Store.Commands, func(c model.Command) bool { return c.Ready })
	if n.Holding && !n.Etcd.Running && ready && o.Store.Error == "" && unfinished(o) == nil &&
		m.Phase == model.MarkerFormed && m.Token != "" && m.Token != a.Token {
		return nil // held for a restore that is over and has put another cluster in its place; another is asked for
	}
	members := authority(o)
	if members == nil {
		return fmt.Errorf("no healthy cluster is there that could do without the data of node %s", a.Node)
	}
	if n.Holding && (o.Store.Error != "" || unfinished(o) != nil) {
		return fmt.Errorf("node %s is held for a restore", a.Node)
	}
	if n.Etcd.Healthy && n.Etcd.Denied {
		return fmt.Errorf("node %s doesn't say who it is, and serves", a.Node)
	}
	if n.Etcd.Healthy && n.Etcd.LeaderID != 0 && n.Etcd.MemberID != 0 {
		for _, m := range n.Etcd.Members {
			if m.ID == n.Etcd.MemberID && !m.Learner {
				return fmt.Errorf("node %s is a healthy voter", a.Node)
			}
		}
	}
	return nil
}
