package plan

import (
	"slices"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// canBeFilled is the smallest cluster that keeps its data while one member is filled again.
const canBeFilled = 3

// release tells a node to give its data volume up for another one, which it is ready for. It comes
// back without data, like one that has lost its disk, so nothing else may be the matter with any
// member. Where members are lacking, other rules see to that.
func (r *rules) release() (Decision, bool) {
	s := r.o.Store
	if !r.canChange() || s.Error != "" || s.Operation != nil || s.Marker.Token != "" && s.Marker.Token != r.v.token {
		return none, false
	}
	i := slices.IndexFunc(r.o.Nodes, func(n cluster.NodeStatus) bool { return n.Release != nil && r.memberOf(&n) != nil })
	if i < 0 {
		return none, false
	}
	n := r.o.Nodes[i]
	wanted := canBeFilled
	if n.State != nil {
		wanted = max(wanted, n.State.DesiredSize)
	}
	if r.spec != nil {
		wanted = max(wanted, r.spec.MemberCount)
	}
	if len(r.v.members) < wanted {
		return none, false
	}
	const text = "volume %s of node %s is to be replaced by %s"
	list, why := r.runners()
	if why == "" {
		why = disagree(list)
	}
	if why == "" {
		why = underRestore(list)
	}
	if why != "" {
		return hold(text+", but %s; the node keeps it meanwhile", n.Release.Volume, n.ID, n.Release.Replacement, why)
	}
	return do(model.ReleaseVolume{Node: n.ID, Volume: n.Release.Volume, Replacement: n.Release.Replacement},
		text+", and every member is a healthy voter, so the node gives it up", n.Release.Volume, n.ID, n.Release.Replacement)
}

// underRestore names a node whose journal has a restore that isn't over for it, or is "".
func underRestore(list []runner) string {
	for _, x := range list {
		if x.node.Operation != "" {
			return "restore " + x.node.Operation + " isn't over on node " + string(x.node.ID)
		}
	}
	return ""
}
