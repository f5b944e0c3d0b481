package plan

import (
	"fmt"
	"slices"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Check says whether an action is safe for what was observed. It shares no reasoning with Next: it knows no rules, only what
// must never happen. A nil error means safe; anything else names the invariant (docs/design.md) that would be broken.
func Check(o *Observation, a Action, p Policy) error {
	if a == nil {
		return nil
	}
	if a.fenced() {
		if err := checkFenced(o, a, p); err != nil {
			return err
		}
	}
	if err := checkCounted(o, a); err != nil {
		return err
	}
	switch a := a.(type) {
	case CreateMarker:
		return checkCreate(o, a.Founders)
	case ReplaceMarker:
		return checkReplace(o, a)
	case StartAll:
		return checkStartAll(o, a)
	case StartEtcd:
		return checkStart(o, a)
	case MarkFormed:
		return checkFormed(o, a)
	case RemoveMember:
		return checkRemove(o, a)
	case AddLearner:
		return checkAdd(o, a)
	case Promote:
		return checkPromote(o, a)
	case UpdateMember:
		return checkUpdate(o, a)
	case SetAside:
		return checkSetAside(o, a)
	case RestartMember:
		return checkRestartMember(o, a)
	case StopMember:
		return checkStopMember(o, a)
	case EnableDowngrade:
		return checkDowngrade(o, a)
	case CancelDowngrade, Compact, Defragment, Disarm:
		return checkUpkeep(o, a)
	case TakeBackup:
		return checkSource(o, a.Node)
	case BeginRestore:
		return checkBegin(o, a)
	case SalvageData:
		return checkSalvage(o, a)
	case SafetyBackup:
		if err := checkOp(o, a.Op, OpSaving); err != nil {
			return err
		}
		return checkSource(o, a.Node)
	case ProveBackup:
		return checkOp(o, a.Op, OpProving)
	case StageBackup:
		return checkOp(o, a.Op, OpStaging)
	case StopAll:
		return checkStop(o, a)
	case SwitchAll:
		return checkSwitch(o, a, p)
	case HaltAll:
		return checkHalt(o, a)
	case VerifyAll:
		return checkOp(o, a.Op, OpVerifying)
	case RollbackAll:
		return checkRollback(o, a)
	case Advance:
		return checkAdvance(o, a, p)
	case FinishRestore:
		return checkFinish(o, a)
	}
	return nil
}

// checkFenced: what can't be taken back is done by the one who holds the leader record, in a store that can tell who does. Without the
// store only a commit goes on, and only if all who could obey another leader obey this one.
func checkFenced(o *Observation, a Action, p Policy) error {
	switch {
	case o.Store.Error != "":
		return checkUnwatched(o, a)
	case !o.Store.Holder.Mine:
		return fmt.Errorf("%s without holding the store's leader record", a)
	case !p.AllowUnfenced && (!o.Store.Fences || o.Store.Unsure != ""):
		return checkUnfenced(o, a)
	}
	return nil
}

// checkCreate: at most one cluster is ever formed for a store, and never instead of what was queued or is there.
func checkCreate(o *Observation, founders []cluster.EtcdNode) error {
	if o.Store.Marker.Phase != MarkerAbsent {
		return fmt.Errorf("a cluster was created for this store before (%s)", o.Store.Marker.Phase)
	}
	if len(o.Store.Commands) > 0 || len(o.Store.CommandErrors) > 0 || len(o.Store.ObjectErrors) > 0 || len(o.Store.FailedRestores) > 0 || unfinished(o) != nil {
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
func checkReplace(o *Observation, a ReplaceMarker) error {
	if o.Store.Marker.Phase != MarkerForming {
		return fmt.Errorf("the marker is %q, not forming", o.Store.Marker.Phase)
	}
	here := 0
	for _, f := range o.Store.Marker.Founders {
		if n := o.Node(cluster.NodeID(f.Name)); n != nil {
			here++
			if n.State != nil && !n.State.Quarantined {
				return fmt.Errorf("founder %s is not quarantined any more: clients may have written", f.Name)
			}
		}
	}
	if here >= cluster.Quorum(len(o.Store.Marker.Founders)) {
		return fmt.Errorf("%d of %d founders are here, they can go on", here, len(o.Store.Marker.Founders))
	}
	if o.Store.Spec != nil && len(a.Founders) < cluster.Quorum(o.Store.Spec.MemberCount) {
		return fmt.Errorf("%d founders are no majority of the %d that are wanted", len(a.Founders), o.Store.Spec.MemberCount)
	}
	return nil
}

// checkStartAll: only founders of the marker's cluster, quarantined, on nodes without a cluster.
func checkStartAll(o *Observation, a StartAll) error {
	m := o.Store.Marker
	if m.Phase != MarkerForming {
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
	return nil
}

// checkStart: a start keeps the node's cluster, never founds one, lets clients in only where they may be, and a restart leaves the
// others a quorum if clients are served.
func checkStart(o *Observation, a StartEtcd) error {
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
		return fmt.Errorf("clients would be let into cluster %s, of which the store doesn't say that it is formed and verified", a.State.Token)
	}
	if !a.Restart || !n.Etcd.Healthy {
		return nil
	}
	return checkRestart(o, a, lifts)
}

// mayRelease: the store says that no restore is under way and that the cluster is the right one.
func mayRelease(o *Observation, t cluster.Token) bool {
	m := o.Store.Marker
	return o.Store.Error == "" && unfinished(o) == nil && (m.Token == "" || m.Token == t)
}

// mayOpen: clients are in already, or the marker says formed.
func mayOpen(o *Observation, t cluster.Token) bool {
	for _, x := range o.Nodes {
		if x.State != nil && x.State.Token == t && !x.State.Quarantined {
			return true
		}
	}
	s := o.Store
	if s.Error != "" || unfinished(o) != nil {
		return false
	}
	return s.Marker.Phase == MarkerFormed && (s.Marker.Token == t || s.Marker.Token == "")
}

// checkRestart: with clients in, a restart leaves a quorum; only a member that opens may cost one for the moment, if all the others
// that could spare it are long dead.
func checkRestart(o *Observation, a StartEtcd, lifts bool) error {
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
func checkJoin(o *Observation, a StartEtcd) error {
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
func checkFormed(o *Observation, a MarkFormed) error {
	m := o.Store.Marker
	if a.Create {
		if m.Phase != MarkerAbsent || unfinished(o) != nil {
			return fmt.Errorf("the marker is %q, or a restore is under way", m.Phase)
		}
		if members := authority(o); members == nil || servingToken(o) != a.Token {
			return fmt.Errorf("cluster %s is not the one that serves", a.Token)
		}
		return nil
	}
	if m.Phase != MarkerForming || m.Token != a.Token {
		return fmt.Errorf("the marker is %q for token %s", m.Phase, m.Token)
	}
	healthy := 0
	for _, f := range m.Founders {
		if n := o.Node(cluster.NodeID(f.Name)); n != nil && n.State != nil && n.State.Token == m.Token && n.Etcd.Healthy && !n.Etcd.Learner {
			healthy++
		}
	}
	if healthy < cluster.Quorum(len(m.Founders)) {
		return fmt.Errorf("%d of %d founders are healthy", healthy, len(m.Founders))
	}
	return nil
}

// checkRemove: never below a quorum of healthy voters, before or after; never the last; never what was just seen well elsewhere.
func checkRemove(o *Observation, a RemoveMember) error {
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
func stillLoads(o *Observation, m *cluster.Member) bool {
	n := o.Node(cluster.NodeID(m.Name))
	if n == nil || n.State == nil || n.State.Token != servingToken(o) || calledCorrupt(o, m.ID) {
		return false
	}
	e := n.Etcd
	return e.Running && e.MemberID == 0 && e.UpFor > 0 && e.AnsweringFor == 0 && e.Restarts == 0 && e.UpFor < timeToLoad(o)
}

// checkAdd: one change at a time, on a healthy quorum, and only a node that has no data.
func checkAdd(o *Observation, a AddLearner) error {
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
func checkPromote(o *Observation, a Promote) error {
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
func checkUpdate(o *Observation, a UpdateMember) error {
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
func checkSetAside(o *Observation, a SetAside) error {
	n := o.Node(a.Node)
	if n == nil || n.State == nil || n.State.Token != a.Token || n.StateError != "" {
		return fmt.Errorf("node %s doesn't have cluster %s", a.Node, a.Token)
	}
	if n.State.NewCluster && n.State.Quarantined && o.Store.Error == "" && o.Store.Marker.Phase == MarkerForming && o.Store.Marker.Token != a.Token {
		return nil // an attempt to form that was given up; no client was ever let in
	}
	m := o.Store.Marker
	ready := slices.ContainsFunc(o.Store.Commands, func(c Command) bool { return c.Ready })
	if n.Holding && !n.Etcd.Running && ready && o.Store.Error == "" && unfinished(o) == nil && m.Phase == MarkerFormed && m.Token != "" && m.Token != a.Token {
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

// checkSource: a snapshot is read from a member that is well.
func checkSource(o *Observation, id cluster.NodeID) error {
	n := o.Node(id)
	if n == nil || n.State == nil || !n.Etcd.Healthy || n.Etcd.Learner || n.Holding {
		return fmt.Errorf("node %s has no healthy voter to read a snapshot from", id)
	}
	return nil
}

// ofQuorum: the node's etcd is in a quorum, as it has answered or refused a linearizable read. A learner calls itself healthy without one.
func ofQuorum(n cluster.NodeStatus) bool {
	return n.Etcd.Healthy && !n.Etcd.Learner && (n.Etcd.LeaderID != 0 || n.Etcd.Denied)
}

// servingToken is the token of the cluster that can be acted on: the marker's, if that is healthy here, else the only healthy one.
func servingToken(o *Observation) cluster.Token {
	found := map[cluster.Token]bool{}
	open := map[cluster.Token]bool{}
	for _, n := range o.Nodes {
		if n.State == nil || !ofQuorum(n) {
			continue
		}
		found[n.State.Token] = true
		if !n.Etcd.Quarantined {
			open[n.State.Token] = true
		}
	}
	if len(open) > 1 {
		return ""
	}
	if t := o.Store.Marker.Token; t != "" && found[t] {
		return t
	}
	if len(open) == 1 {
		found = open
	}
	if len(found) != 1 {
		return ""
	}
	for t := range found {
		return t
	}
	return ""
}

// authority is the member list of a healthy voter of the one cluster that serves; the leader's own if it answers.
func authority(o *Observation) []cluster.Member {
	t := servingToken(o)
	var list []cluster.Member
	for _, n := range o.Nodes {
		if n.State == nil || n.State.Token != t || !ofQuorum(n) || n.Etcd.Members == nil {
			continue
		}
		if list == nil || n.Etcd.LeaderID == n.Etcd.MemberID {
			list = n.Etcd.Members
		}
	}
	return list
}

func healthyMember(o *Observation, m cluster.Member) bool {
	t := servingToken(o)
	for _, n := range o.Nodes {
		same := n.Etcd.MemberID == m.ID || n.Etcd.Denied && string(n.ID) == m.Name
		if n.Etcd.Healthy && n.Etcd.Learner == m.Learner && same && n.State != nil && n.State.Token == t {
			return true
		}
	}
	return false
}
