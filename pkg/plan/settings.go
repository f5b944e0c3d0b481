package plan

import (
	"slices"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// settings restarts the members whose settings have really changed, one after the other, followers first.
func (r *rules) settings() (Decision, bool) {
	if !r.mayRoll() || r.o.Store.SettingsError != "" {
		return none, false
	}
	want := r.o.Store.Settings
	if err := want.Validate(); err != nil {
		return alarm("the settings in the store can't be used, so none are changed: %v", err)
	}
	if !slices.ContainsFunc(r.v.nodes, func(n *cluster.NodeStatus) bool { return changedSettings(n, want) != "" && r.memberOf(n) != nil }) {
		return none, false
	}
	list, why := r.runners()
	if why != "" {
		return hold("settings of etcd have changed, but %s; no member is restarted meanwhile", why)
	}
	i := slices.IndexFunc(list, func(x runner) bool { return changedSettings(x.node, want) != "" })
	switch why := disagree(list); {
	case why != "":
		return alarm("settings of etcd have changed, but %s", why)
	case i < 0:
		return none, false
	case len(list) == 2:
		return alarm("settings of etcd have changed, but of two members none can be restarted without an outage; waiting for a third")
	}
	n := list[i].node
	version := cluster.NearestVersion(n.Etcd.Version, n.Versions)
	if version == "" {
		return alarm("settings of etcd have changed, but node %s has no etcd like %s any more, which runs; install it under /opt/etcd-v%s", n.ID, n.Etcd.Version, n.Etcd.Version)
	}
	a := RestartMember{Node: n.ID, State: *n.State.Clone(), Settings: want, Why: "settings"}
	if a.Settings == nil {
		a.Settings = cluster.Settings{}
	}
	a.State.EtcdVersion, a.State.NewCluster, a.State.Nodes = version, false, r.membersAsNodes()
	text := "%s (%d of %d members have them)"
	done := 0
	for _, x := range list {
		if changedSettings(x.node, want) == "" {
			done++
		}
	}
	if done > 0 {
		return do(a, text, changedSettings(n, want), done, len(list))
	}
	return r.changing(a, text, changedSettings(n, want), done, len(list))
}

// changedSettings says what has changed for a node's etcd since it was started, or is "".
func changedSettings(n *cluster.NodeStatus, want cluster.Settings) string {
	switch {
	case !n.Settings.Equal(want):
		return "the settings of etcd on node " + string(n.ID) + " are to be [" + want.String() + "] and not [" + n.Settings.String() + "]"
	case n.Etcd.Outdated:
		return "flags or ETCD_ variables of the manager on node " + string(n.ID) + " have changed since its etcd was started"
	}
	return ""
}
