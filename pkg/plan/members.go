package plan

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// caughtUp is how many raft entries a learner may be behind the leader before its promotion is tried; etcd itself refuses below 90 %.
const caughtUp = 1000

// changing takes a backup before a change of the cluster, unless one was just taken or none can be taken now.
func (r *rules) changing(a model.Action, why string, args ...any) (Decision, bool) {
	d, ok := r.changeNow(a, fmt.Sprintf(why, args...))
	d.Key = fmt.Sprintf("%s; %s; %t", keyOf(why, args), model.Subject(d.Do), d.Waits)
	return d, ok
}

func (r *rules) changeNow(a model.Action, text string) (Decision, bool) {
	s := r.o.Store
	switch {
	case r.o.BackupRunning != "":
		return hold("%s; the backup that is being taken (%s) comes first", text, r.o.BackupRunning)
	case s.Error != "":
		return do(a, "%s; without a backup before it, as the store can't be reached", text)
	case r.o.Now.Before(r.o.BackupRetryAt):
		return do(a, "%s; without a backup before it, as the last attempt failed", text)
	case r.o.Now.Sub(s.NewestBackup).Abs() < time.Minute, r.o.Now.Sub(r.o.BackupDoneAt).Abs() < time.Minute:
		return do(a, "%s", text)
	}
	n := r.backupNode()
	if n == nil {
		return do(a, "%s; without a backup before it, as no member can give one", text)
	}
	return do(model.TakeBackup{Node: n.ID, Reason: "before-change"}, "%s; a backup first", text)
}

// canChange tells whether the member list may be changed at all: a leader, a quorum of healthy voters, clients let in, and no
// second cluster that serves.
func (r *rules) canChange() bool {
	all, healthy := r.v.voters()
	return r.v.serving && r.v.open && r.v.rival == "" && all > 0 && healthy >= cluster.Quorum(all)
}

// membersAsNodes is etcd's member list as it goes into state files.
func (r *rules) membersAsNodes() []cluster.EtcdNode {
	var list []cluster.EtcdNode
	for _, m := range r.v.members {
		if node := r.v.node(r.o, m); node != nil {
			list = append(list, node.Self.Clone())
			continue
		}
		list = append(list, cluster.EtcdNode{Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, TLS: r.v.nodes[0].Self.TLS})
	}
	slices.SortFunc(list, func(a, b cluster.EtcdNode) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

func (r *rules) desired() int {
	if r.spec != nil {
		return r.spec.MemberCount
	}
	return len(r.v.members)
}

// runningVersion is the version that the others run, in the nearest patch that the node has; a nil
// node has them all. Where they run several, in the middle of a change, it is the oldest: that one
// understands all that the others may tell it.
func (r *rules) runningVersion(n *cluster.NodeStatus) string {
	oldest := ""
	for _, x := range r.v.nodes {
		v, err := cluster.ParseVersion(x.State.EtcdVersion)
		if err != nil || !x.Etcd.Healthy {
			continue
		}
		if o, err := cluster.ParseVersion(oldest); err != nil || v.Compare(o) < 0 {
			oldest = x.State.EtcdVersion
		}
	}
	if oldest == "" {
		return r.p.DefaultVersion
	}
	if n != nil {
		if v := cluster.NearestVersion(oldest, n.Versions); v != "" {
			return v
		}
	}
	return oldest
}

// strayNode frees nodes that still carry a membership which the cluster doesn't have any more. Data of another cluster only go
// if the marker confirms that this one is the store's.
func (r *rules) strayNode() (Decision, bool) {
	if !r.canChange() {
		return none, false
	}
	for i := range r.o.Nodes {
		n := &r.o.Nodes[i]
		if n.State == nil || n.StateError != "" || r.memberOf(n) != nil || !r.mayFree(n) {
			continue
		}
		return do(model.SetAside{Node: n.ID, Token: n.State.Token, Reason: "not a member"},
			"node %s has data of a membership that the cluster doesn't have; it is set aside", n.ID)
	}
	return none, false
}

// mayFree tells whether a node's data may be set aside for the cluster that serves: they are of this cluster, or the marker says
// that this one is the right one; and no restore may need them.
func (r *rules) mayFree(n *cluster.NodeStatus) bool {
	s := r.o.Store
	switch {
	case n.Etcd.Votes(), n.Holding && s.Error != "":
		return false
	case n.State.Token == r.v.token:
		return true
	}
	return s.Error == "" && s.Marker.Phase == model.MarkerFormed && s.Marker.Token == r.v.token
}

// memberOf is the member that lives on a node, or nil.
func (r *rules) memberOf(n *cluster.NodeStatus) *cluster.Member {
	for i, m := range r.v.members {
		switch {
		case n.State != nil && n.State.Token != r.v.token:
			continue
		case n.Etcd.MemberID != 0 && n.Etcd.MemberID == m.ID:
			return &r.v.members[i]
		case m.Name == string(n.ID) && (n.Etcd.MemberID == 0 || !n.Etcd.Running):
			return &r.v.members[i]
		case m.Name == "" && slices.ContainsFunc(m.PeerURLs, func(u string) bool { return slices.Contains(n.Self.PeerURLs, u) }):
			return &r.v.members[i]
		}
	}
	return nil
}

// moved tells etcd about a node whose address has changed.
func (r *rules) moved() (Decision, bool) {
	if !r.canChange() {
		return none, false
	}
	for _, m := range r.v.members {
		n := r.v.node(r.o, m)
		if n == nil || n.State == nil || n.State.Token != r.v.token || !n.DataPresent || n.Etcd.MemberID != m.ID && n.Etcd.MemberID != 0 {
			continue
		}
		if n.Etcd.Outdated {
			continue // it listens where it did before, until it is restarted in its turn
		}
		if r.taken(m, n.Self.PeerURLs) {
			continue // etcd refuses it until the member that was there before is gone
		}
		if len(n.Self.PeerURLs) > 0 && !sameSet(m.PeerURLs, n.Self.PeerURLs) && r.o.ProbeErrors[n.ID] == "" {
			return do(model.UpdateMember{Member: m.ID, Name: m.Name, PeerURLs: n.Self.PeerURLs},
				"node %s is reached at %v now, not at %v", n.ID, n.Self.PeerURLs, m.PeerURLs)
		}
	}
	return none, false
}

// taken tells whether another member is known under one of these URLs.
func (r *rules) taken(m cluster.Member, urls []string) bool {
	return slices.ContainsFunc(r.v.members, func(x cluster.Member) bool {
		return x.ID != m.ID && slices.ContainsFunc(x.PeerURLs, func(u string) bool { return slices.Contains(urls, u) })
	})
}

func sameSet(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	for _, x := range a {
		if !slices.Contains(b, x) {
			return false
		}
	}
	return true
}

// deadMember removes one member that can't come back by itself, if its place can be filled.
func (r *rules) deadMember() (Decision, bool) {
	if !r.canChange() {
		return none, false
	}
	all, _ := r.v.voters()
	var stuck string
	var stuckOn cluster.NodeID
	for _, m := range r.v.members {
		why := r.dead(m)
		if why == "" {
			continue
		}
		n := r.v.node(r.o, m)
		here := n != nil && n.StateError == "" && !DiskFull(n) // on a full disk it could not join again
		since := r.gone(m)
		if n != nil {
			since = n.Etcd.UnhealthyFor
		}
		if r.o.BackupRunning != "" && since >= 2*r.p.MemberDeadline && (here || r.spare() != nil) {
			return do(model.RemoveMember{Member: m.ID, Name: m.Name},
				"%s; the backup that is being taken (%s) is not waited for any longer", why, r.o.BackupRunning)
		}
		if here || r.successor(m) != nil || r.spare() != nil || r.spec != nil && all > r.spec.MemberCount {
			return r.changing(model.RemoveMember{Member: m.ID, Name: m.Name}, "%s", why)
		}
		stuck, stuckOn = cmp.Or(stuck, why), cmp.Or(stuckOn, cluster.NodeID(m.Name))
	}
	if stuck != "" {
		return needs(cluster.Attention{Node: stuckOn},
			"%s; there is no other master to take its place, so it stays in the member list", stuck)
	}
	return none, false
}

// dead says why a member can't come back by itself, or "".
func (r *rules) dead(m cluster.Member) string {
	if r.v.healthy(m) || slices.Contains(r.o.Alive, m.ID) {
		return ""
	}
	n := r.v.node(r.o, m)
	if n == nil {
		if x := r.successor(m); x != nil {
			return fmt.Sprintf("node %s is at the address of member %s, with an empty disk and another name, so the member can't come back",
				x.ID, label(m))
		}
		miss := r.gone(m)
		if miss < r.p.MemberDeadline || !r.settled() {
			return ""
		}
		return fmt.Sprintf("member %s hasn't answered for %s", label(m), round(miss))
	}
	ours := n.State != nil && n.State.Token == r.v.token
	switch {
	case n.Holding, n.Busy == cluster.BusyDefragment:
		return ""
	case n.StateError != "":
		if n.Etcd.UnhealthyFor < r.p.MemberDeadline {
			return ""
		}
		return fmt.Sprintf("node %s can't read its own state: %s", n.ID, n.StateError)
	case n.State == nil:
		return fmt.Sprintf("the disk of node %s is empty, so member %s can't come back", n.ID, m.ID)
	case !ours:
		return "" // strayNode decides over its data first
	case !n.DataPresent && !n.Etcd.Running:
		return fmt.Sprintf("the data dir of node %s is gone, so member %s can't come back", n.ID, m.ID)
	case r.overdue(n, r.p.MemberDeadline) && r.settled():
		return fmt.Sprintf("member %s on node %s has been unhealthy for %s: %s", m.ID, n.ID, round(n.Etcd.UnhealthyFor), figure{reason(n)})
	}
	return ""
}

// reason says why a member isn't well, as far as its node tells.
func reason(n *cluster.NodeStatus) string {
	if DiskFull(n) {
		return diskWords(n)
	}
	return cmp.Or(n.Etcd.Error, "no reason known")
}

// settled tells whether the same nodes have answered for a while. Those that a partition kept apart don't come back in the same instant,
// and a member that was cut off from the others has been unhealthy ever since, but is well a moment after it reaches them.
func (r *rules) settled() bool {
	return r.o.SettledFor >= min(r.p.FormGrace, r.p.MemberDeadline)
}

// successor is an empty node under another name at the member's own address: the machine has lost its name with its disk. Nobody else
// can be at that address.
func (r *rules) successor(m cluster.Member) *cluster.NodeStatus {
	if r.o.Node(cluster.NodeID(m.Name)) != nil {
		return nil
	}
	for i := range r.o.Nodes {
		n := &r.o.Nodes[i]
		if n.State == nil && n.StateError == "" && len(n.Self.PeerURLs) > 0 && sameSet(n.Self.PeerURLs, m.PeerURLs) {
			return n
		}
	}
	return nil
}

// gone is how long the node of a member hasn't answered, neither its manager nor its etcd. A node on which other software answers is alive.
func (r *rules) gone(m cluster.Member) time.Duration {
	miss := r.o.missing(m.Name)
	if miss.Foreign {
		return 0
	}
	if miss.EtcdFor > 0 {
		return min(miss.For, miss.EtcdFor)
	}
	return miss.For
}

func label(m cluster.Member) string {
	if m.Name != "" {
		return m.Name
	}
	return fmt.Sprintf("%v", m.PeerURLs)
}

// spare is a node that could become a member, or nil. One that has failed to join comes after those that haven't, and not before its time.
func (r *rules) spare() *cluster.NodeStatus {
	var best *cluster.NodeStatus
	rank := func(n *cluster.NodeStatus) int {
		rank := 2 * r.o.JoinFailures[n.ID].Times
		if r.o.StartFailing[n.ID] > 0 {
			rank++
		}
		return rank
	}
	for i := range r.o.Nodes {
		n := &r.o.Nodes[i]
		if !r.couldJoin(n) || r.joinsIn(n) > 0 {
			continue
		}
		if best == nil || rank(n) < rank(best) {
			best = n
		}
	}
	return best
}

// running says how many members there are.
func running(n int) string {
	if n == 1 {
		return "1 member runs"
	}
	return fmt.Sprintf("%d members run", n)
}

// named tells whether the member list has an entry for the node.
func (r *rules) named(n *cluster.NodeStatus) bool {
	for _, m := range r.v.members {
		if m.Name == string(n.ID) || slices.ContainsFunc(m.PeerURLs, func(u string) bool { return slices.Contains(n.Self.PeerURLs, u) }) {
			return true
		}
	}
	return false
}

// tooMany removes one member if more exist than are wanted: an unhealthy one first, the etcd leader last, else the last by name.
func (r *rules) tooMany() (Decision, bool) {
	all, healthy := r.v.voters()
	if !r.canChange() || r.badSpec() != "" || all <= r.spec.MemberCount {
		return none, false
	}
	for _, m := range r.v.members {
		if r.o.missing(m.Name).Foreign {
			return alarm("%d members run and %d are wanted, but node %s still runs other software; none is removed before it runs this",
				all, r.spec.MemberCount, m.Name)
		}
	}
	victims := slices.Clone(r.v.members)
	slices.Reverse(victims)
	slices.SortStableFunc(victims, func(a, b cluster.Member) int { return r.worth(a) - r.worth(b) })
	m := victims[0]
	if r.v.healthy(m) && healthy-1 < cluster.Quorum(all-1) {
		return alarm("%d members run and %d are wanted, but only %d are healthy; none is removed", all, r.spec.MemberCount, healthy)
	}
	return r.changing(model.RemoveMember{Member: m.ID, Name: m.Name}, "%d members run and %d are wanted; %s goes", all,
		r.spec.MemberCount, label(m))
}

// worth orders members by what is lost with them.
func (r *rules) worth(m cluster.Member) int {
	switch {
	case !r.v.healthy(m):
		return 0
	case m.ID != r.v.leader:
		return 1
	}
	return 2
}

// tooFew adds one member, as a learner, if fewer exist than are wanted and a node is there for it.
func (r *rules) tooFew() (Decision, bool) {
	all, healthy := r.v.voters()
	if !r.canChange() || r.badSpec() != "" || all >= r.spec.MemberCount || healthy < all {
		return none, false
	}
	n := r.spare()
	if n == nil {
		for _, x := range r.o.Nodes {
			if f := r.o.JoinFailures[x.ID]; r.couldJoin(&x) && f.Times > 0 {
				return needs(cluster.Attention{Kind: cluster.AttentionMember, Node: x.ID},
					"%d of %d members; node %s has failed to join %s and is tried again %s: %s",
					all, r.spec.MemberCount, x.ID, cluster.Times(f.Times), figure{cluster.In(r.joinsIn(&x))}, figure{f.Why})
			}
			if x.State == nil && DiskFull(&x) && !r.named(&x) {
				return needs(cluster.Attention{Kind: cluster.AttentionDisk, Node: x.ID},
					"%d of %d members; node %s can't be added, as %s", all, r.spec.MemberCount, x.ID, diskWords(&x))
			}
			if e := r.o.ProbeErrors[x.ID]; e != "" && !r.named(&x) {
				return needs(cluster.Attention{Node: x.ID}, "%d of %d members; node %s can't be added: %s", all,
					r.spec.MemberCount, x.ID, e)
			}
			if x.StateError != "" && !r.named(&x) {
				return needs(cluster.Attention{Node: x.ID},
					"%d of %d members; node %s can't be added, it has a state file or data dir that can't be used: %s",
					all, r.spec.MemberCount, x.ID, x.StateError)
			}
		}
		return none, false
	}
	if want := r.runningVersion(n); cluster.NearestVersion(want, n.Versions) == "" {
		return needs(cluster.Attention{Kind: cluster.AttentionVersion, Node: n.ID,
			NoCommand: "install that etcd on the node, or start another master that has it"},
			"node %s can't join: it has no etcd like %s; install it under /opt/etcd-v%s", n.ID, want, want)
	}
	return r.changing(model.AddLearner{Node: n.ID, PeerURLs: n.Self.PeerURLs}, "%s and %d are wanted; node %s joins",
		running(all), r.spec.MemberCount, n.ID)
}
