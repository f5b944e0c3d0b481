package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// firstFor36 is the oldest 3.5 from which a cluster may go to 3.6: older ones bring removed members back to life.
const firstFor36 = 26

// runner is a member that runs, with its node and version.
type runner struct {
	member cluster.Member
	node   *cluster.NodeStatus
	runs   cluster.Version
}

// runners are all members, each healthy, open to clients and of one mind about the members; or why
// nothing may be restarted now. The followers come first, by name, and the etcd leader last.
func (r *rules) runners() ([]runner, string) {
	var list []runner
	for _, m := range r.v.members {
		n := r.v.node(r.o, m)
		if n == nil || m.Learner || n.State == nil || n.State.Token != r.v.token {
			return nil, fmt.Sprintf("member %s isn't here", label(m))
		}
		v, err := cluster.ParseVersion(n.Etcd.Version)
		switch {
		case !n.Etcd.Healthy:
			return nil, fmt.Sprintf("member %s on node %s isn't healthy", label(m), n.ID)
		case n.Holding || isQuarantined(n) || n.Busy != "":
			return nil, fmt.Sprintf("node %s is busy", n.ID)
		case err != nil:
			return nil, fmt.Sprintf("node %s doesn't tell which etcd runs", n.ID)
		case r.behind(n) > caughtUp:
			return nil, fmt.Sprintf("node %s still catches up", n.ID)
		}
		list = append(list, runner{m, n, v})
	}
	slices.SortStableFunc(list, func(a, b runner) int { return r.worth(a.member) - r.worth(b.member) })
	return list, ""
}

// disagree names a member that has another member list than the others have, or is "": after a
// change of the version removed members may come back to life in one list and not in another.
func disagree(list []runner) string {
	for _, x := range list {
		if !slices.EqualFunc(sortedIDs(x.node.Etcd.Members), sortedIDs(list[0].node.Etcd.Members),
			func(a, b cluster.MemberID) bool { return a == b }) {
			return fmt.Sprintf("the members on nodes %s and %s don't agree on who the members are (%v, %v)", list[0].node.ID, x.node.ID,
				memberNames(list[0].node.Etcd.Members), memberNames(x.node.Etcd.Members))
		}
	}
	return ""
}

func sortedIDs(members []cluster.Member) []cluster.MemberID {
	var ids []cluster.MemberID
	for _, m := range members {
		ids = append(ids, m.ID)
	}
	slices.Sort(ids)
	return ids
}

// mayRoll tells whether this is a time for restarts that nobody is in a hurry for: the store says
// what is wanted, and no restore is recorded.
func (r *rules) mayRoll() bool {
	s := r.o.Store
	return r.canChange() && s.Error == "" && s.Operation == nil && r.spec != nil && (s.Marker.Token == "" || s.Marker.Token == r.v.token)
}

// version brings the members to the wanted version: one member at a time, followers first, one minor version at a time.
func (r *rules) version() (Decision, bool) {
	if !r.mayRoll() || r.spec.EtcdVersion == "" || r.badSpec() != "" {
		return none, false
	}
	want, err := cluster.ParseVersion(r.spec.EtcdVersion)
	if err != nil {
		return none, false
	}
	list, why := r.runners()
	if why != "" {
		if r.isVersionPending(want) {
			return hold("etcd %s is wanted, but %s; no member is restarted meanwhile", want, why)
		}
		return none, false
	}
	low, high := list[0].runs, list[0].runs
	for _, x := range list {
		if x.runs.Compare(low) < 0 {
			low = x.runs
		}
		if x.runs.Compare(high) > 0 {
			high = x.runs
		}
	}
	switch {
	case low.Compare(want) == 0 && high.Compare(want) == 0:
		return r.versionDone(list, want)
	case high.Minor-low.Minor > 1:
		return needs(cluster.Attention{NoCommand: "run the same minor version on all members; the wanted one is then gone to by itself"},
			"the members run etcd from %s to %s, which never go together; nothing is changed", low, high)
	case want.Minor >= high.Minor && want.Minor > low.Minor:
		return r.up(list, low.Minor, want)
	case low.Minor == high.Minor && want.Minor < low.Minor:
		return r.down(list, low.Minor, want)
	case low.Minor < high.Minor: // a way up that was given up, or a way down that has begun
		return r.back(list, low.Minor, want)
	}
	return r.patch(list, want)
}

// isVersionPending tells whether a member that is seen runs another minor version than the wanted one.
func (r *rules) isVersionPending(want cluster.Version) bool {
	return slices.ContainsFunc(r.v.nodes, func(n *cluster.NodeStatus) bool {
		v, err := cluster.ParseVersion(n.Etcd.Version)
		return err == nil && !v.SameMinor(want)
	})
}

// versionDone ends a downgrade that was enabled and isn't wanted any more.
func (r *rules) versionDone(list []runner, want cluster.Version) (Decision, bool) {
	if t := downgradeTarget(list); t != nil && t.Minor < want.Minor {
		return do(model.CancelDowngrade{}, "etcd's downgrade to %d.%d is enabled, but %s is wanted and runs", t.Major, t.Minor, want)
	}
	return none, false
}

// downgradeTarget is the version to which etcd's downgrade is enabled, or nil.
func downgradeTarget(list []runner) *cluster.Version {
	for _, x := range list {
		if v, err := cluster.ParseVersion(x.node.Etcd.DowngradeTarget); err == nil {
			return &v
		}
	}
	return nil
}

// clusterMinor is the minor version that all members keep to, as all of them say; -1 if they don't.
func clusterMinor(list []runner) int {
	minor := -1
	for i, x := range list {
		v, err := cluster.ParseVersion(x.node.Etcd.ClusterVersion)
		if err != nil || i > 0 && v.Minor != minor {
			return -1
		}
		minor = v.Minor
	}
	return minor
}

// nodesOf are the nodes of members.
func nodesOf(list []runner) []*cluster.NodeStatus {
	var nodes []*cluster.NodeStatus
	for _, x := range list {
		nodes = append(nodes, x.node)
	}
	return nodes
}

// newest is the newest patch of a minor version that all nodes have, at least of that patch, or "" and what is missing.
func (r *rules) newest(list []runner, minor, patch int) (string, string) {
	nodes := nodesOf(list)
	best, lacking := "", ""
	for _, s := range nodes[0].Versions {
		v, err := cluster.ParseVersion(s)
		if err != nil || v.Minor != minor || v.Patch < patch || v.Unsafe() != "" {
			continue
		}
		if !slices.ContainsFunc(nodes, func(n *cluster.NodeStatus) bool { return !slices.Contains(n.Versions, s) }) {
			best = s // they are in ascending order
		}
	}
	if best != "" {
		return best, ""
	}
	for _, n := range nodes {
		if !slices.ContainsFunc(n.Versions, func(s string) bool {
			v, err := cluster.ParseVersion(s)
			return err == nil && v.Minor == minor && v.Patch >= patch
		}) {
			lacking = fmt.Sprintf("node %s has no etcd 3.%d (it has %s)", n.ID, minor,
				join(n.Versions, func(s string) string { return s }, ", "))
			break
		}
	}
	if lacking == "" {
		lacking = fmt.Sprintf("no patch version of etcd 3.%d is on all of the nodes", minor)
	}
	if patch > 0 {
		return "", fmt.Sprintf("%s, and it has to be 3.%d.%d or newer; install the same one under /opt/etcd-v3.%d.… on each",
			lacking, minor, patch, minor)
	}
	return "", fmt.Sprintf("%s; install the same one under /opt/etcd-v3.%d.… on each", lacking, minor)
}

// hop picks the version to run in a minor version on the way to the wanted one.
func (r *rules) hop(list []runner, minor int, want cluster.Version) (string, string) {
	if minor == want.Minor {
		return r.suitable(want, list)
	}
	return r.newest(list, minor, 0)
}

func (r *rules) suitable(want cluster.Version, list []runner) (string, string) {
	return r.pick(want.String(), nodesOf(list))
}

// up goes from a minor version to the next. Every version on the whole way has to be there before the first step.
func (r *rules) up(list []runner, from int, want cluster.Version) (Decision, bool) {
	if t := downgradeTarget(list); t != nil && t.Minor < want.Minor {
		return do(model.CancelDowngrade{}, "etcd's downgrade to %d.%d is enabled, but %s is wanted", t.Major, t.Minor, want)
	}
	for minor := from + 1; minor <= want.Minor; minor++ {
		if _, missing := r.hop(list, minor, want); missing != "" {
			return alarm("etcd 3.%d can't become %s: %s; nothing is changed", from, want, missing)
		}
	}
	if minor := clusterMinor(list); minor != from {
		return hold("etcd %s is wanted; waiting until all members say that they keep to 3.%d", want, from)
	}
	if old := slices.IndexFunc(list, func(x runner) bool {
		return x.runs.Minor < 6 &&
			(x.runs.Minor < 5 || x.runs.Patch < firstFor36)
	}); want.Minor >= 6 && old >= 0 {
		better, missing := r.newest(list, 5, firstFor36)
		switch {
		case missing != "":
			return alarm("etcd 3.6 is only run by members that all run 3.5.%d or newer before, and node %s runs %s: %s; nothing is changed",
				firstFor36, list[old].node.ID, list[old].runs, missing)
		case from == 5:
			return r.roll(list, better, want, func(x runner) bool { return x.runs.Minor == 5 && x.runs.Patch < firstFor36 })
		case from == 4:
			return r.roll(list, better, want, func(x runner) bool { return x.runs.Minor < 5 })
		}
	}
	target, _ := r.hop(list, from+1, want)
	return r.roll(list, target, want, func(x runner) bool { return x.runs.Minor == from })
}

// patch changes the patch version only, in whichever direction.
func (r *rules) patch(list []runner, want cluster.Version) (Decision, bool) {
	target, missing := r.suitable(want, list)
	if missing != "" {
		return alarm("etcd %s is wanted: %s; nothing is changed", want, missing)
	}
	if d, ok := r.roll(list, target, want, func(x runner) bool { return x.runs.String() != target }); ok || target == want.String() {
		return d, ok
	}
	for _, x := range list {
		if slices.Contains(x.node.Versions, want.String()) {
			for _, y := range list {
				if !slices.Contains(y.node.Versions, want.String()) {
					return alarm("etcd %s is wanted and %s runs: node %s has no %s (it has %s); install it under /opt/etcd-v%s",
						want, target, y.node.ID, want,
						join(y.node.Versions, func(s string) string { return s }, ", "), want)
				}
			}
		}
	}
	return none, false // nobody has exactly that one, so the nearest is run
}

// down goes from a minor version, which all run, to the one before, with etcd's own downgrade.
func (r *rules) down(list []runner, from int, want cluster.Version) (Decision, bool) {
	for minor := from; minor > want.Minor; minor-- {
		if !cluster.Downgradable(minor) {
			return needs(cluster.Attention{Command: ctl + fmt.Sprintf("configure-cluster --etcd-version=%s --allow-outage", want)},
				"etcd 3.%d can't become %s while it runs, as etcd has no downgrade from 3.%d; nothing is changed; it takes a restore into %s, with an outage: etcd-manager-ctl --backup-store=URL configure-cluster --etcd-version=%s --allow-outage", from, want, minor, want, want)
		}
		if _, missing := r.hop(list, minor-1, want); missing != "" {
			return alarm("etcd 3.%d can't become %s: %s; nothing is changed", from, want, missing)
		}
	}
	below := from - 1
	target := downgradeTarget(list)
	switch minor := clusterMinor(list); {
	case minor == from && target == nil:
		if why := disagree(list); why != "" {
			return alarm("%s; etcd %s is wanted, but no version is changed before that is cleared up", why, want)
		}
		return r.changing(model.EnableDowngrade{Version: fmt.Sprintf("3.%d.0", below)},
			"etcd 3.%d runs and %s is wanted; etcd's own downgrade to 3.%d begins", from, want, below)
	case target == nil: // etcd may raise that to what all run at any moment
		return hold("etcd %s is wanted; waiting until all members say that they keep to 3.%d, before etcd's downgrade can begin",
			want, from)
	case target.Minor != below:
		return do(model.CancelDowngrade{}, "etcd's downgrade to %s is enabled, which isn't the way to %s", target, want)
	case minor != below:
		return hold("etcd's downgrade to 3.%d is enabled; waiting until all members keep to it", below)
	}
	return r.back(list, below, want)
}

// back takes the members that run a newer minor version than all keep to back to that one.
func (r *rules) back(list []runner, to int, want cluster.Version) (Decision, bool) {
	if minor := clusterMinor(list); minor != to {
		return hold("etcd %s is wanted; waiting until all members say that they keep to 3.%d", want, to)
	}
	for _, x := range list {
		if v, err := cluster.ParseVersion(x.node.Etcd.StorageVersion); err == nil && v.Minor > to {
			return hold("etcd %s is wanted; waiting until the data of node %s are as 3.%d has them", want, x.node.ID, to)
		}
	}
	target, missing := r.hop(list, to, want)
	if missing != "" {
		return alarm("the members can't become etcd 3.%d again: %s", to, missing)
	}
	return r.roll(list, target, want, func(x runner) bool { return x.runs.Minor > to })
}

// roll restarts the next member that needs it in a version.
func (r *rules) roll(list []runner, target string, want cluster.Version, due func(runner) bool) (Decision, bool) {
	i := slices.IndexFunc(list, due)
	if i < 0 {
		return none, false
	}
	begun := 0
	for _, x := range list {
		if !due(x) {
			begun++
		}
	}
	x := list[i]
	switch why := disagree(list); {
	case why != "":
		return alarm("%s; etcd %s is wanted, but no version is changed before that is cleared up", why, want)
	case slices.Contains(r.o.VersionsFailed, target):
		return alarm("etcd %s is wanted, but a member didn't get well with %s and was put back; look at etcd's log on that node, then restart the managers to have it tried again", want, target)
	case len(list) == 2:
		return alarm("etcd %s is wanted, but of two members none can be restarted without an outage; waiting for a third", want)
	}
	a := model.RestartMember{Node: x.node.ID, State: *x.node.State.Clone(), Why: model.RestartVersion}
	a.State.EtcdVersion, a.State.NewCluster = target, false
	text := fmt.Sprintf("etcd %s runs on node %s and %s is wanted; it becomes %s (%d of %d are done)", x.runs,
		x.node.ID, want, target, begun, len(list))
	if begun > 0 {
		return do(a, "%s", text)
	}
	return r.changing(a, "%s", text)
}

// fallBack puts a member back to the version that all others run when it doesn't get well with a
// new one. Before, nothing is lost by it: all still keep to the old version.
func (r *rules) fallBack() (Decision, bool) {
	if !r.canChange() || r.o.Store.Operation != nil || slices.ContainsFunc(r.v.members, func(m cluster.Member) bool { return m.Learner }) {
		return none, false
	}
	var others string
	for _, n := range r.v.nodes {
		if !n.Etcd.Healthy {
			continue
		}
		if others != "" && n.Etcd.Version != others {
			return none, false
		}
		others = n.Etcd.Version
	}
	old, err := cluster.ParseVersion(others)
	if err != nil || !r.settled() {
		return none, false
	}
	for _, n := range r.v.nodes {
		tried, err := cluster.ParseVersion(n.State.EtcdVersion)
		if err != nil || n.Etcd.Healthy || n.Holding || !n.DataPresent || isQuarantined(n) ||
			!r.overdue(n, r.p.MemberDeadline/2) || !r.isVoter(n) ||
			tried.Compare(old) == 0 || !slices.Contains(n.Versions, others) || !r.keepsTo(old) {
			continue
		}
		a := model.RestartMember{Node: n.ID, State: *n.State.Clone(), Why: model.RestartFallBack}
		a.State.EtcdVersion, a.State.NewCluster = others, false
		return do(a, "node %s didn't get well with etcd %s within %s (%s); it goes back to %s, which all others run",
			n.ID, tried, round(n.Etcd.UnhealthyFor), n.Etcd.Error, others)
	}
	return none, false
}

// isVoter tells whether the data on a node are those of a voter.
func (r *rules) isVoter(n *cluster.NodeStatus) bool {
	return slices.ContainsFunc(r.v.members, func(m cluster.Member) bool {
		return !m.Learner && (n.Etcd.MemberID == m.ID || n.Etcd.MemberID == 0 && m.Name == string(n.ID))
	})
}

// keepsTo tells whether all healthy members say that they keep to no newer minor version.
func (r *rules) keepsTo(v cluster.Version) bool {
	return !slices.ContainsFunc(r.v.nodes, func(n *cluster.NodeStatus) bool {
		c, err := cluster.ParseVersion(n.Etcd.ClusterVersion)
		return n.Etcd.Healthy && (err != nil || c.Minor > v.Minor)
	})
}

// standIn says that another version runs than the one that is asked for, and which nodes lack that one; or is "".
func (r *rules) standIn() string {
	if r.spec == nil || r.spec.EtcdVersion == "" {
		return ""
	}
	want, err := cluster.ParseVersion(r.spec.EtcdVersion)
	if err != nil || want.Unsafe() != "" && !want.Replaceable() {
		return ""
	}
	var runs []string
	var lack []cluster.NodeID
	for _, n := range r.v.nodes {
		v, err := cluster.ParseVersion(n.Etcd.Version)
		if err != nil || !n.Etcd.Votes() || v.Compare(want) == 0 || !v.SameMinor(want) {
			continue
		}
		if !slices.Contains(runs, v.String()) {
			runs = append(runs, v.String())
		}
		if !slices.Contains(n.Versions, want.String()) {
			lack = append(lack, n.ID)
		}
	}
	slices.SortFunc(lack, cmp.Compare)
	switch text := strings.Join(runs, " and "); {
	case len(runs) == 0:
	case want.Unsafe() != "":
		return fmt.Sprintf("; etcd %s is asked for, which is never run (%s); %s runs in its place", want, want.Unsafe(), text)
	case len(lack) > 0:
		return fmt.Sprintf("; etcd %s is asked for and %s runs in its place; nodes without %s: %s", want, text, want, ids(lack))
	}
	return ""
}
