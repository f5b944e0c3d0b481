package plan

import (
	"slices"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// settings restarts the members whose settings have really changed, one after the other, followers first.
func (r *rules) settings() (Decision, bool) {
	if !r.mayRoll() || r.o.Store.SettingsError != "" {
		return none, false
	}
	want := r.o.Store.Settings
	if err := want.Validate(); err != nil {
		return needs(cluster.Attention{Command: unsetCommand}, "the settings in the store can't be used, so none are changed: %v", err)
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
		return needs(cluster.Attention{Node: n.ID},
			"settings of etcd have changed, but node %s has no etcd like %s any more, which runs; install it under /opt/etcd-v%s",
			n.ID, n.Etcd.Version, n.Etcd.Version)
	}
	a := model.RestartMember{Node: n.ID, State: *n.State.Clone(), Settings: want, Why: model.RestartSettings}
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

// otherSettings starts a member that isn't well with the settings that are wanted, if it has
// others: it may be these that keep it from starting. That costs nobody anything, and it is how an
// operator takes back what didn't do, with one master too. From its deadline on a member is
// replaced, and the one that joins in its place gets what is wanted.
func (r *rules) otherSettings() (Decision, bool) {
	s := r.o.Store
	want := s.Settings
	if s.Error != "" || s.SettingsError != "" || s.Operation != nil || r.v.token == "" || s.Marker.Token != "" &&
		s.Marker.Token != r.v.token || want.Validate() != nil {
		return none, false
	}
	lets := slices.ContainsFunc(r.v.nodes, func(n *cluster.NodeStatus) bool { return n.Etcd.Votes() && !isQuarantined(n) }) // clients in
	for _, n := range r.v.nodes {
		switch {
		case n.Etcd.Healthy || !n.DataPresent || n.Holding || n.Busy != "" || n.StateError != "" || isQuarantined(n) ||
			n.Settings.Equal(want):
			continue
		case !r.overdue(n, min(startBase, r.p.MemberDeadline/2)) || cluster.NearestVersion(n.State.EtcdVersion, n.Versions) == "":
			continue
		case !r.overdue(n, r.p.MemberDeadline) && r.canChange() && lets && r.isVoter(n) &&
			!r.accused(n.Etcd.MemberID) && sameMinor(n.State.EtcdVersion, r.runningVersion(n)):
		case !r.v.serving && len(n.State.Nodes) == 1 && n.State.Nodes[0].Name == string(n.ID):
		default:
			continue
		}
		a := model.RestartMember{Node: n.ID, State: *n.State.Clone(), Settings: want, Why: model.RestartSettings}
		if a.Settings == nil {
			a.Settings = cluster.Settings{}
		}
		a.State.NewCluster = false
		if r.v.serving { // the state may name what another version stands in for
			a.State.EtcdVersion = cluster.NearestVersion(n.State.EtcdVersion, n.Versions)
		}
		return do(a, "etcd on node %s doesn't get well with the settings [%s]; it is started with those that are wanted, [%s]",
			n.ID, n.Settings, want)
	}
	return none, false
}

func sameMinor(a, b string) bool {
	x, err := cluster.ParseVersion(a)
	y, err2 := cluster.ParseVersion(b)
	return err == nil && err2 == nil && x.Minor == y.Minor
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
