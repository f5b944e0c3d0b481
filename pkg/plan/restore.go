package plan

import (
	"fmt"
	"slices"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// stepDeadline is how long a node that takes part in a restore may be away, before anything was stopped, until the restore is given up.
const stepDeadline = 2 * time.Minute

// prepareDeadline is how long proving or staging may take while a cluster serves; all that time nothing is healed or backed up.
const prepareDeadline = time.Hour

// bump is what a restore adds to the revision at least, so that every old watch is told to start over.
const bump = 1_000_000_000

// Bump returns the number of revisions that a restore adds.
func Bump() uint64 { return bump }

// command starts the newest queued restore that may start, and marks the older ones superseded.
func (r *rules) command() (Decision, bool) {
	s := r.o.Store
	if s.Error != "" {
		return none, false
	}
	var ready []Command
	for _, c := range s.Commands {
		if (c.Ready || r.v.token == "") && c.Name != r.tried {
			ready = append(ready, c)
		}
	}
	if len(ready) == 0 || r.v.serving && r.locked() {
		return none, false
	}
	if len(ready) > 1 {
		c, by := ready[0], ready[len(ready)-1]
		return do(FailCommand{Command: c.Name, Backup: c.Backup, Reason: "superseded by " + by.Name}, "the restore of %s was queued before that of %s, which wins", c.Backup, by.Backup)
	}
	if r.o.BackupRunning != "" && r.v.serving {
		return hold("the restore of %s starts when the backup that is being taken (%s) is done", ready[0].Backup, r.o.BackupRunning)
	}
	return r.begin(ready[0])
}

// begin picks the nodes and the version for a restore.
func (r *rules) begin(c Command) (Decision, bool) {
	spec := c.Spec
	if spec.MemberCount == 0 && r.spec != nil {
		spec.MemberCount = r.spec.MemberCount
	}
	if spec.EtcdVersion == "" {
		spec.EtcdVersion = r.wantedVersion()
	}
	fail := func(why string) (Decision, bool) {
		return do(FailCommand{Command: c.Name, Backup: c.Backup, Reason: why}, "the restore of %s can't succeed: %s", c.Backup, why)
	}
	if !cluster.ValidMemberCount(spec.MemberCount) {
		return fail(fmt.Sprintf("it asks for %d members; only 1, 3, 5, 7 or 9 are formed", spec.MemberCount))
	}
	if r.v.serving && r.o.away(r.v.token, 0) {
		return none, false // what serves are members that couldn't be stopped from here
	}
	if d, ok := r.mayServeElsewhere(c); ok {
		return d, true
	}
	nodes, wait := r.founders(spec.MemberCount, func(n *cluster.NodeStatus) bool { return n.State != nil && n.State.Token == r.v.token })
	switch {
	case nodes == nil && r.v.serving:
		return none, false // what serves is looked after meanwhile
	case nodes == nil:
		return hold("waiting to restore %s: %s", c.Backup, wait)
	}
	version, missing := r.version(spec.EtcdVersion, nodes)
	if version == "" {
		return fail(missing)
	}
	op := Operation{ID: c.Name, Backup: c.Backup, State: OpProving, Nodes: selves(nodes), Token: r.o.FreshToken,
		OldToken: r.v.token, Version: version, Size: spec.MemberCount}
	op.RevisionBefore = r.o.Store.HighestRevision
	for _, n := range r.o.Nodes {
		op.RevisionBefore = max(op.RevisionBefore, n.Etcd.Revision)
	}
	return do(BeginRestore{Command: c.Name, Op: op}, "the restore of %s was queued and may start; %d masters are here", c.Backup, len(nodes))
}

func (r *rules) wantedVersion() string {
	if r.spec != nil && r.spec.EtcdVersion != "" {
		return r.spec.EtcdVersion
	}
	for _, n := range r.v.nodes {
		if n.State.EtcdVersion != "" {
			return n.State.EtcdVersion
		}
	}
	return r.p.DefaultVersion
}

// mayServeElsewhere holds a restore back while members that can't be reached could still be serving clients.
func (r *rules) mayServeElsewhere(c Command) (Decision, bool) {
	s := r.o.Store
	if r.v.token != "" {
		if r.v.serving || !r.o.away(r.v.token, r.p.HolderLease) {
			return none, false
		}
		return hold("the restore of %s waits: members of the cluster that can't be reached from here may still be serving; after %s without an answer they count as gone", c.Backup, round(r.p.HolderLease))
	}
	if s.Marker.Phase == MarkerAbsent {
		return none, false // there never was a cluster
	}
	if id := r.o.recentlyMissing(r.p.HolderLease); id != "" {
		return hold("the restore of %s waits: a cluster was created before, and node %s, which doesn't answer, may have it and be serving; after %s without an answer it counts as gone", c.Backup, id, round(r.p.HolderLease))
	}
	h := s.Holder
	switch {
	case h.Mine, h.Node == "", h.UnchangedFor >= r.p.HolderLease:
	case r.o.Node(h.Node) != nil && len(r.o.Missing) == 0:
	default:
		return hold("the restore of %s waits: members of the cluster that can't be reached from here may still be serving; the store last heard of their leader %s ago, after %s they count as gone",
			c.Backup, round(h.UnchangedFor), round(r.p.HolderLease))
	}
	return none, false
}

// operation goes on with the restore that is under way, wherever it was left.
func (r *rules) operation() (Decision, bool) {
	op := r.o.Store.Operation
	if op == nil || r.o.Store.Error != "" {
		if op != nil {
			return alarm("the restore %s goes on when the store is back: %s", op.ID, r.o.Store.Error)
		}
		return none, false
	}
	if r.o.Now.Before(op.RetryAt) {
		return hold("restore %s (%s): the last step failed and is tried again in %s", op.ID, op.State, round(op.RetryAt.Sub(r.o.Now)))
	}
	switch op.State {
	case OpProving, OpStaging, OpSaving:
		if op.Reason != "" {
			return giveUp(op, "%s", op.Reason)
		}
		if d, ok := r.awayBeforeCommit(op); ok {
			return d, true
		}
		return r.prepare(op)
	case OpStopping, OpSwitching, OpVerifying:
		if op.Reason != "" || op.StateFor > r.p.CommitDeadline {
			reason := op.Reason
			if reason == "" {
				reason = fmt.Sprintf("the restored cluster did not come up within %s", r.p.CommitDeadline)
			}
			return r.takeBack(op, "%s", reason)
		}
		return r.commit(op)
	case OpLifting:
		return r.liftRestored(op)
	case OpReverting:
		return r.revert(op)
	}
	return alarm("restore %s is in state %q, which this version doesn't know; it has to be led by the version that wrote it", op.ID, op.State)
}

// giveUp ends a restore that can't go on; nothing was stopped yet.
func giveUp(op *Operation, reason string, args ...any) (Decision, bool) {
	reason = fmt.Sprintf(reason, args...)
	return do(FinishRestore{Op: *op, To: OpFailed, Reason: reason}, "the restore of %s can't go on: %s; nothing was stopped", op.Backup, reason)
}

// takeBack begins the way back to the old data.
func (r *rules) takeBack(op *Operation, reason string, args ...any) (Decision, bool) {
	reason = fmt.Sprintf(reason, args...)
	if lookAt(r.o, op.Token).open {
		return alarm("restore %s (%s): %s; it is not taken back, as a node has let clients in", op.ID, op.State, reason)
	}
	return do(Advance{Op: *op, To: OpReverting, Reason: reason}, "the restore of %s is taken back: %s", op.Backup, reason)
}

// awayBeforeCommit gives up on a restore when one of its nodes stays away, or when it takes too long.
func (r *rules) awayBeforeCommit(op *Operation) (Decision, bool) {
	if r.v.open && r.v.token != op.OldToken && r.v.token != op.Token {
		return giveUp(op, "cluster %s is here, which wasn't when the restore began; queue the restore again if it is to be replaced", r.v.token)
	}
	if r.v.serving && op.StateFor > prepareDeadline {
		return giveUp(op, "it was not through with %s after %s", op.State, prepareDeadline)
	}
	for _, f := range op.Nodes {
		if r.o.Node(cluster.NodeID(f.Name)) != nil {
			continue
		}
		if miss := r.o.missing(f.Name); miss.For > stepDeadline {
			return giveUp(op, "node %s went away while it was prepared and has not answered for %s", f.Name, round(miss.For))
		}
		return hold("restore %s (%s) waits for node %s", op.ID, op.State, f.Name)
	}
	return none, false
}

// prepare does what can be done while the old cluster serves.
func (r *rules) prepare(op *Operation) (Decision, bool) {
	switch op.State {
	case OpProving:
		var left []cluster.NodeID
		for _, f := range op.Nodes {
			if id := cluster.NodeID(f.Name); !slices.Contains(op.Proven, id) {
				left = append(left, id)
			}
		}
		if len(left) > 0 {
			return do(ProveBackup{Op: *op, Nodes: left}, "backup %s is fetched and proven on %s before anything is touched", op.Backup, ids(left))
		}
		return do(Advance{Op: *op, To: OpStaging}, "backup %s is proven on all %d nodes", op.Backup, len(op.Nodes))
	case OpStaging:
		var left []StartEtcd
		var first *cluster.StagedDir
		for _, f := range op.Nodes {
			n := r.o.Node(cluster.NodeID(f.Name))
			st := staged(n, op)
			if st == nil {
				left = append(left, StartEtcd{Node: n.ID, State: op.state(true)})
				continue
			}
			if first == nil {
				first = st
			} else if st.Hash != first.Hash || st.Revision != first.Revision {
				return giveUp(op, "the staged data differ: %s has revision %d hash %d, another node revision %d hash %d", n.ID, st.Revision, st.Hash, first.Revision, first.Hash)
			}
		}
		if len(left) > 0 {
			return do(StageBackup{Op: *op, Starts: left}, "backup %s is proven; %d nodes build the new data dir while etcd serves", op.Backup, len(left))
		}
		next := *op
		next.Revision, next.Hash = first.Revision, first.Hash
		return do(Advance{Op: next, To: OpSaving}, "all %d nodes have staged revision %d with the same hash", len(op.Nodes), first.Revision)
	}
	return r.save(op)
}

// save takes the last backup of the old cluster and makes sure of everything before the first etcd is stopped.
func (r *rules) save(op *Operation) (Decision, bool) {
	if op.RevisionBefore >= op.Revision {
		return giveUp(op, "clients have seen revision %d, and what is staged only reaches revision %d", op.RevisionBefore, op.Revision)
	}
	for _, n := range r.o.Nodes {
		if n.State != nil && n.State.Token != op.Token && n.Etcd.Revision >= op.Revision {
			return giveUp(op, "clients have seen revision %d on node %s, and what is staged only reaches revision %d", n.Etcd.Revision, n.ID, op.Revision)
		}
	}
	if id := r.unstaged(op); id != "" {
		return giveUp(op, "node %s doesn't have the staged data any more", id)
	}
	if !op.SafetyTried && r.v.token == op.OldToken && op.OldToken != "" {
		if n := r.backupNode(); n != nil {
			return do(SafetyBackup{Op: *op, Node: n.ID}, "the cluster as it is now is backed up first, so that the restore can be undone")
		}
		recent := slices.ContainsFunc(r.v.nodes, func(n *cluster.NodeStatus) bool {
			return !r.v.serving && n.Etcd.Running && n.Etcd.UnhealthyFor < startTime
		})
		if recent {
			return hold("restore %s waits a moment for the old cluster to be healthy, to back it up", op.ID)
		}
	}
	if r.o.away(op.OldToken, r.p.HolderLease) || r.v.serving && r.o.away(op.OldToken, 0) ||
		op.OldToken == "" && r.o.Store.Marker.Phase != MarkerAbsent && r.o.recentlyMissing(r.p.HolderLease) != "" {
		return hold("restore %s waits: members that can't be reached from here may be serving", op.ID)
	}
	return do(Advance{Op: *op, To: OpStopping}, "everything is staged and proven; now etcd is stopped")
}

// unstaged is the first node of the new cluster that has neither staged nor switched, or "".
func (r *rules) unstaged(op *Operation) string {
	for _, f := range op.Nodes {
		n := r.o.Node(cluster.NodeID(f.Name))
		if n == nil || n.State != nil && n.State.Token == op.Token {
			continue
		}
		if st := staged(n, op); st == nil || st.Hash != op.Hash || st.Revision != op.Revision {
			return f.Name
		}
	}
	return ""
}

func staged(n *cluster.NodeStatus, op *Operation) *cluster.StagedDir {
	for i := range n.Staged {
		if n.Staged[i].Operation == op.ID && n.Staged[i].Token == op.Token {
			return &n.Staged[i]
		}
	}
	return nil
}

// state is the state file of the restored cluster's members.
func (op *Operation) state(quarantined bool) cluster.EtcdState {
	return cluster.EtcdState{Token: op.Token, Nodes: op.Nodes, DesiredSize: op.Size, EtcdVersion: op.Version, Quarantined: quarantined}
}

// commit is the only time in which nobody is served.
func (r *rules) commit(op *Operation) (Decision, bool) {
	for _, f := range op.Nodes {
		if r.o.Node(cluster.NodeID(f.Name)) == nil {
			return hold("restore %s (%s) waits for node %s", op.ID, op.State, f.Name)
		}
	}
	if op.State == OpVerifying {
		return r.verify(op)
	}
	if id := r.unstaged(op); id != "" {
		return r.takeBack(op, "node %s doesn't have the staged data any more", id)
	}
	if d, ok := r.stopOthers(op, true); ok {
		return d, true
	}
	if r.o.away(op.OldToken, r.p.HolderLease) {
		return hold("restore %s (%s): members that can't be reached from here may be serving", op.ID, op.State)
	}
	if op.State == OpStopping {
		return do(Advance{Op: *op, To: OpSwitching}, "etcd is stopped everywhere")
	}
	var left []StartEtcd
	for _, f := range op.Nodes {
		n := r.o.Node(cluster.NodeID(f.Name))
		if n.State == nil || n.State.Token != op.Token || n.Holding {
			left = append(left, StartEtcd{Node: n.ID, State: op.state(true)})
		}
	}
	if len(left) > 0 {
		return do(SwitchAll{Op: *op, Starts: left}, "%d nodes switch to the staged data", len(left))
	}
	return do(Advance{Op: *op, To: OpVerifying}, "all nodes have switched")
}

// stopOthers stops every etcd that isn't of the restored cluster; with hold also those that are down, so that they stay so.
func (r *rules) stopOthers(op *Operation, hold bool) (Decision, bool) {
	var stop []cluster.NodeID
	for _, n := range r.o.Nodes {
		other := n.State != nil && n.State.Token != op.Token || n.State == nil && n.Etcd.Running
		if other && (n.Etcd.Running || hold && !n.Holding) {
			stop = append(stop, n.ID)
		}
	}
	if len(stop) == 0 {
		return none, false
	}
	return do(StopAll{Op: *op, Nodes: stop}, "etcd is stopped on %s", ids(stop))
}

// verify looks at the restored cluster before a client does.
func (r *rules) verify(op *Operation) (Decision, bool) {
	for _, f := range op.Nodes {
		if n := r.o.Node(cluster.NodeID(f.Name)); n.State == nil || n.State.Token != op.Token {
			return r.takeBack(op, "node %s doesn't have the restored data any more", f.Name)
		}
	}
	if d, ok := r.stopOthers(op, false); ok {
		return d, true
	}
	want := nodeNames(op.Nodes)
	for _, f := range op.Nodes {
		n := r.o.Node(cluster.NodeID(f.Name))
		switch {
		case !n.Etcd.Healthy || n.Etcd.LeaderID == 0 || n.Etcd.Members == nil:
			return hold("restore %s: etcd on %s is starting", op.ID, f.Name)
		case n.Etcd.Revision < op.Revision:
			return r.takeBack(op, "etcd on %s came up with revision %d, staged was %d", f.Name, n.Etcd.Revision, op.Revision)
		case slices.ContainsFunc(n.Etcd.Members, func(m cluster.Member) bool { return m.Name == "" }):
			// A member publishes its name through raft when it has started.
			return hold("restore %s: not every member has published its name yet, as %s knows them", op.ID, f.Name)
		case !sameSet(memberNames(n.Etcd.Members), want):
			return r.takeBack(op, "etcd on %s knows the members %v instead of %v", f.Name, memberNames(n.Etcd.Members), want)
		}
	}
	return do(Advance{Op: *op, To: OpLifting}, "all %d members run on the restored data and agree", len(op.Nodes))
}

// liftRestored lets clients in and then closes the books. From here on there is no way back: clients may have written.
func (r *rules) liftRestored(op *Operation) (Decision, bool) {
	r.v = lookAt(r.o, op.Token)
	if d, ok := r.stopOthers(op, false); ok {
		return d, true
	}
	if d, ok := r.liftNext(); ok {
		return d, true
	}
	if !r.v.serving && op.StateFor <= r.p.CommitDeadline {
		return hold("restore %s: the members start with their client URLs open", op.ID)
	}
	return do(FinishRestore{Op: *op, To: OpDone}, "the restored cluster is open to clients")
}

// revert brings the old data back on every node that was stopped or has switched.
func (r *rules) revert(op *Operation) (Decision, bool) {
	var left []cluster.NodeID
	for _, n := range r.o.Nodes {
		if n.Holding || n.State != nil && n.State.Token == op.Token {
			left = append(left, n.ID)
		}
	}
	if lookAt(r.o, op.Token).open {
		return alarm("restore %s is to be taken back, but a node has let clients in on the restored data; a person has to decide", op.ID)
	}
	if len(left) > 0 {
		return do(RollbackAll{Op: *op, Nodes: left}, "%s go back to the data from before the restore", ids(left))
	}
	waiting := slices.ContainsFunc(r.o.Store.Commands, func(c Command) bool { return c.Ready && c.Name != op.ID })
	away := ""
	for _, f := range op.Nodes {
		if r.o.Node(cluster.NodeID(f.Name)) == nil {
			away = f.Name
			waiting = waiting && r.o.missing(f.Name).For >= r.p.HolderLease
		}
	}
	old := lookAt(r.o, op.OldToken)
	if away != "" && !old.serving && !waiting {
		words := fmt.Sprintf("restore %s is being taken back; node %s may still have the restored data and doesn't answer; it is waited for, or for another restore: etcd-manager-ctl --backup-store=URL restore-backup NAME, then restart the managers", op.ID, away)
		return Decision{Why: words, Alarm: op.StateFor > r.p.CommitDeadline}, true
	}
	return do(FinishRestore{Op: *op, To: OpRolledBack, Reason: op.Reason}, "the old data are back")
}

// leftover takes a node back that was away when a restore was rolled back.
func (r *rules) leftover() (Decision, bool) {
	if r.o.Store.Error != "" {
		return none, false
	}
	for _, op := range r.o.Store.RolledBack {
		var left []cluster.NodeID
		for _, n := range r.o.Nodes {
			if n.State != nil && n.State.Token == op.Token {
				left = append(left, n.ID)
			}
		}
		if len(left) > 0 && !lookAt(r.o, op.Token).open {
			return do(RollbackAll{Op: op, Nodes: left}, "%s were away when restore %s was taken back", ids(left), op.ID)
		}
	}
	return none, false
}
