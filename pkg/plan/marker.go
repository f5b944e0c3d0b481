package plan

import (
	"slices"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// unmarked writes the marker for a cluster that serves without one, so that nobody forms a second one in this store.
func (r *rules) unmarked() (Decision, bool) {
	s := r.o.Store
	if s.Error != "" || s.Marker.Phase != model.MarkerAbsent || !r.v.serving || !r.v.open || r.v.rival != "" ||
		r.locked() || len(r.v.members) == 0 {
		return none, false
	}
	return r.adopt("serves")
}

func (r *rules) adopt(how string) (Decision, bool) {
	return do(model.MarkFormed{Token: r.v.token, Create: true, Founders: r.membersAsNodes(), Version: r.runningVersion(nil)},
		"cluster %s %s, but the store has no etcd-cluster-created; it is written, so that no second cluster is formed", r.v.token, how)
}

// complete tells whether every member that any node here knows of is here and healthy, so that nobody else can have the cluster.
func (r *rules) complete() bool {
	for _, n := range r.v.nodes {
		names := append(nodeNames(n.State.Nodes), memberNames(n.Etcd.Members)...)
		for _, name := range names {
			x := r.o.Node(cluster.NodeID(name))
			if x == nil || x.State == nil || x.State.Token != r.v.token || !x.Etcd.Healthy {
				return false
			}
		}
	}
	return len(r.v.members) > 0
}

// record keeps the members in the state files in step with etcd's own list: it is what is known of them when etcd is down.
func (r *rules) record() (Decision, bool) {
	if !r.canChange() {
		return none, false
	}
	for _, m := range r.v.members {
		if m.Learner || m.Name == "" {
			return none, false
		}
	}
	for _, n := range r.v.nodes {
		if !n.Etcd.Healthy || isQuarantined(n) || n.Busy != "" || sameSet(nodeNames(n.State.Nodes), memberNames(r.v.members)) {
			continue
		}
		st := *n.State.Clone()
		st.Nodes, st.DesiredSize, st.NewCluster = r.membersAsNodes(), r.desired(), false
		return do(model.StartEtcd{Node: n.ID, State: st}, "the state file of node %s doesn't have the members that etcd has", n.ID)
	}
	return none, false
}

func memberNames(members []cluster.Member) []string {
	list := make([]string, len(members))
	for i, m := range members {
		list[i] = m.Name
	}
	slices.Sort(list)
	return list
}

// present puts the leader's term into the store, where the other side of a partition can see that somebody leads a cluster that serves.
func (r *rules) present() (Decision, bool) {
	s := r.o.Store
	if s.Error != "" || s.HolderError != "" || s.Holder.Mine || r.locked() || !r.v.serving {
		return none, false
	}
	return do(model.TakeTerm{}, "the leader says in the store that it leads")
}
