package safety

import (
	"fmt"
	"slices"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// checkRestartMember: a member that serves is only restarted while all others are well, in a version that may run beside what the others
// run and on the data that are there; one that isn't well, in the version that the others run.
func checkRestartMember(o *model.Observation, a model.RestartMember) error {
	n := o.Node(a.Node)
	switch {
	case n == nil || n.State == nil || n.StateError != "" || !n.DataPresent:
		return fmt.Errorf("node %s has no member to restart", a.Node)
	case servingToken(o) == "" && !n.Etcd.Healthy && len(n.State.Nodes) == 1 &&
		n.State.Nodes[0].Name == string(a.Node) && !n.Holding && unfinished(o) == nil &&
		a.State.Token == n.State.Token && a.State.EtcdVersion == n.State.EtcdVersion &&
		a.State.Quarantined == n.State.Quarantined && !a.State.NewCluster && len(a.State.Nodes) == 1:
		return a.Settings.Validate() // the only member, and it serves nobody
	case n.State.Token != a.State.Token || servingToken(o) != a.State.Token:
		return fmt.Errorf("node %s has cluster %s, and not the one that serves", a.Node, n.State.Token)
	case n.Holding || unfinished(o) != nil:
		return fmt.Errorf("node %s is held, or a restore is under way", a.Node)
	case a.State.NewCluster || a.State.Quarantined != n.State.Quarantined:
		return fmt.Errorf("a restart of node %s would found a cluster or change who may reach it", a.Node)
	case !slices.Contains(n.Versions, a.State.EtcdVersion):
		return fmt.Errorf("node %s has no etcd %s", a.Node, a.State.EtcdVersion)
	}
	if err := a.Settings.Validate(); err != nil {
		return err
	}
	members, rest, sick := authority(o), 0, ""
	self := false
	for _, m := range members {
		if m.Learner {
			return fmt.Errorf("member %s is still a learner", m.ID)
		}
		if n.Etcd.MemberID == m.ID || n.Etcd.MemberID == 0 && m.Name == string(n.ID) {
			self = true
			continue
		}
		rest++
		if !healthyMember(o, m) {
			sick = m.Name
		}
	}
	switch {
	case !self:
		return fmt.Errorf("node %s is no member", a.Node)
	case n.Etcd.Healthy && (sick != "" || rest == 1):
		return fmt.Errorf("node %s would be restarted while %d others are members and %q isn't well", a.Node, rest, sick)
	}
	for _, x := range o.Nodes {
		if x.State != nil && x.State.Token == a.State.Token && x.Etcd.Healthy && len(x.Etcd.Members) != len(members) && n.Etcd.Healthy {
			return fmt.Errorf("nodes don't agree on who the members are")
		}
	}
	return checkVersion(o, n, a.State.EtcdVersion)
}

// checkVersion: what may run on a node's data, beside the others. It works on the numbers alone.
func checkVersion(o *model.Observation, n *cluster.NodeStatus, version string) error {
	to := minorOf(version)
	v, err := cluster.ParseVersion(version)
	if err != nil || v.Unsafe() != "" || to < 0 {
		return fmt.Errorf("etcd %s is never run", version)
	}
	if n.Etcd.Healthy && n.Etcd.Version == version {
		return nil
	}
	pinned := to >= minorOf(n.Etcd.Version) // nothing may raise what the cluster keeps to above what is to run
	for _, x := range o.Nodes {
		if x.State == nil || x.State.Token != n.State.Token || !x.Etcd.Healthy {
			continue
		}
		pinned = pinned || x.ID != n.ID && minorOf(x.Etcd.Version) <= to || minorOf(x.Etcd.DowngradeTarget) == to
		runs := minorOf(x.Etcd.Version)
		patch, err := cluster.ParseVersion(x.Etcd.Version)
		switch {
		case err != nil:
			return fmt.Errorf("node %s doesn't tell its version", x.ID)
		case runs-to > 1 || to-runs > 1:
			return fmt.Errorf("etcd %s beside %s on node %s", version, x.Etcd.Version, x.ID)
		case to >= 6 && runs == 5 && patch.Patch < 26:
			return fmt.Errorf("etcd %s while node %s runs %s: removed members would come back to life", version, x.ID, x.Etcd.Version)
		}
		same := minorOf(n.Etcd.Version) == to || !n.Etcd.Healthy && runs == to
		keeps := minorOf(x.Etcd.ClusterVersion)
		switch {
		case keeps < 0 && to < runs && !same, keeps > to:
			return fmt.Errorf("etcd %s doesn't start on data of a cluster that keeps to %q", version, x.Etcd.ClusterVersion)
		case keeps >= 0 && to > keeps+1:
			return fmt.Errorf("etcd %s in a cluster that keeps to %s", version, x.Etcd.ClusterVersion)
		case x.ID == n.ID && minorOf(x.Etcd.StorageVersion) > to:
			return fmt.Errorf("etcd %s can't read data of storage version %s", version, x.Etcd.StorageVersion)
		}
	}
	if !pinned {
		return fmt.Errorf("etcd %s while all others run a newer minor version and no downgrade is enabled", version)
	}
	return nil
}

// allWell: every voter of the one cluster that serves is healthy, none is a learner, and there is no restore.
func allWell(o *model.Observation) error {
	members := authority(o)
	if len(members) == 0 || unfinished(o) != nil {
		return fmt.Errorf("no one cluster serves, or a restore is under way")
	}
	for _, m := range members {
		if m.Learner || !healthyMember(o, m) {
			return fmt.Errorf("member %s isn't a healthy voter", m.ID)
		}
	}
	return nil
}

// checkDowngrade: one minor version down, from one that knows how, with all members well and on the same minor version.
func checkDowngrade(o *model.Observation, a model.EnableDowngrade) error {
	if err := allWell(o); err != nil {
		return err
	}
	to, t := minorOf(a.Version), servingToken(o)
	for _, n := range o.Nodes {
		if n.State == nil || n.State.Token != t || !n.Etcd.Healthy {
			continue
		}
		if runs := minorOf(n.Etcd.Version); runs != to+1 || runs < 6 {
			return fmt.Errorf("etcd's downgrade to %s where node %s runs %s", a.Version, n.ID, n.Etcd.Version)
		}
	}
	return nil
}

// checkUpkeep: what is done to databases and alarms never makes a cluster lose its quorum, the newest data, or a warning that still holds.
func checkUpkeep(o *model.Observation, a model.Action) error {
	members, t := authority(o), servingToken(o)
	if members == nil {
		return fmt.Errorf("no healthy member with a leader tells the member list, or two clusters do")
	}
	var here []*cluster.NodeStatus
	for i, n := range o.Nodes {
		if n.State != nil && n.State.Token == t && n.Etcd.Healthy {
			here = append(here, &o.Nodes[i])
		}
	}
	if err := checkBeside(o, a, t); err != nil {
		return err
	}
	switch a := a.(type) {
	case model.Compact:
		for _, n := range here {
			if a.Revision > n.Etcd.Revision && !n.Etcd.Learner {
				return fmt.Errorf("compaction to revision %d, beyond what node %s has (%d)", a.Revision, n.ID, n.Etcd.Revision)
			}
		}
		if !slices.ContainsFunc(here, func(n *cluster.NodeStatus) bool {
			return slices.ContainsFunc(n.Etcd.Alarms, func(x cluster.Alarm) bool { return x.Type == cluster.AlarmNoSpace })
		}) {
			return fmt.Errorf("compaction though there is room")
		}
	case model.Defragment:
		return checkDefragment(o, a, members, here)
	case model.Disarm:
		if a.Alarm.Member == cluster.SupersededMember && (o.Store.Superseded != nil || o.Store.SupersededError != "") {
			return fmt.Errorf("the cluster is superseded, as far as is known")
		}
		if a.Alarm.Type == cluster.AlarmCorrupt && a.Alarm.Member == 0 {
			return fmt.Errorf("it isn't known whose data are corrupt")
		}
		for _, m := range members {
			if a.Alarm.Type == cluster.AlarmCorrupt && m.ID == a.Alarm.Member {
				return fmt.Errorf("member %s, whose data are corrupt, is still in the cluster", m.ID)
			}
		}
		for _, n := range here {
			if a.Alarm.Type == cluster.AlarmNoSpace && n.Etcd.DBQuota > 0 && n.Etcd.DBSize >= n.Etcd.DBQuota {
				return fmt.Errorf("the database of node %s is still at its quota", n.ID)
			}
		}
	}
	return nil
}

// checkBeside: beside a restore nothing is tended but alarms and history of the cluster that is to
// be replaced, before any of it is stopped.
func checkBeside(o *model.Observation, a model.Action, serving cluster.Token) error {
	op := unfinished(o)
	if op == nil {
		return nil
	}
	switch a.(type) {
	case model.Compact, model.Disarm:
		if early := op.State == model.OpSalvaging || op.State == model.OpProving ||
			op.State == model.OpStaging; early && op.OldToken == serving {
			return nil
		}
	}
	return fmt.Errorf("restore %s is under way", op.ID)
}

// checkDefragment: only a healthy member, one at a time. While clients can write, with all members
// well and never one of two; while etcd refuses all writes for want of room, a quorum of healthy
// voters is enough.
func checkDefragment(o *model.Observation, a model.Defragment, members []cluster.Member, here []*cluster.NodeStatus) error {
	n := o.Node(a.Node)
	if n == nil || !slices.Contains(here, n) {
		return fmt.Errorf("node %s isn't a healthy member", a.Node)
	}
	refuses := false
	for _, x := range here {
		if x.ID != a.Node && x.Busy == cluster.BusyDefragment {
			return fmt.Errorf("the database of node %s is being rewritten", x.ID)
		}
		refuses = refuses || slices.ContainsFunc(x.Etcd.Alarms, func(x cluster.Alarm) bool { return x.Type == cluster.AlarmNoSpace })
	}
	if !refuses {
		if len(members) == 2 {
			return fmt.Errorf("with node %s stopped the other one of two would be no quorum", a.Node)
		}
		return allWell(o)
	}
	voters, healthy := 0, 0
	for _, m := range members {
		if m.Learner {
			continue
		}
		voters++
		if healthyMember(o, m) {
			healthy++
		}
	}
	if healthy < cluster.Quorum(voters) || n.Etcd.Learner {
		return fmt.Errorf("only %d of %d voters are healthy, or node %s isn't one", healthy, voters, a.Node)
	}
	return nil
}

// checkStopMember: only what etcd itself calls corrupt, and only beside a quorum of healthy voters that it doesn't.
func checkStopMember(o *model.Observation, a model.StopMember) error {
	n, members := o.Node(a.Node), authority(o)
	if n == nil || n.State == nil || n.State.Token != servingToken(o) || unfinished(o) != nil {
		return fmt.Errorf("node %s has no member of the cluster that serves, or a restore is under way", a.Node)
	}
	voters, others := 0, 0
	for _, m := range members {
		if m.Learner {
			continue
		}
		voters++
		if healthyMember(o, m) && !calledCorrupt(o, m.ID) {
			others++
		}
	}
	switch {
	case !calledCorrupt(o, n.Etcd.MemberID):
		return fmt.Errorf("nobody says that the data of node %s are corrupt", a.Node)
	case others < cluster.Quorum(voters):
		return fmt.Errorf("only %d of %d voters are healthy and not called corrupt", others, voters)
	}
	return nil
}

// calledCorrupt tells whether a healthy member of the cluster that serves has the alarm.
func calledCorrupt(o *model.Observation, id cluster.MemberID) bool {
	t := servingToken(o)
	for _, n := range o.Nodes {
		if n.State == nil || n.State.Token != t || !n.Etcd.Healthy {
			continue
		}
		for _, a := range n.Etcd.Alarms {
			if a.Type == cluster.AlarmCorrupt && a.Member == id {
				return true
			}
		}
	}
	return false
}
