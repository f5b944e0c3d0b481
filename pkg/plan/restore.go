package plan

import (
	"fmt"
	"slices"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// stepDeadline is how long a node that takes part in a restore may be away, before anything was stopped, until the restore is given up.
const stepDeadline = 2 * time.Minute

// prepareBase is how long proving or staging may take while a cluster serves; what it takes to go
// through its database comes on top, as often as it is fetched, checked, changed and written.
const prepareBase = time.Hour

// prepareDeadline is how long a state of a restore may last before anything is stopped.
func (r *rules) prepareDeadline() time.Duration { return PrepareTime(Database(r.o.Observation)) }

// PrepareTime is how long a node may take for a step of a restore, a backup, or a rewrite of a database of that size.
func PrepareTime(bytes int64) time.Duration { return prepareBase + 4*copies*cluster.LoadTime(bytes) }

// bump is what a restore adds to the revision at least, so that every old watch is told to start over.
const bump = 1_000_000_000

// Bump returns the number of revisions that a restore adds.
func Bump() uint64 { return bump }

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
func (r *rules) mayServeElsewhere(c model.Command) (Decision, bool) {
	s := r.o.Store
	if r.v.token != "" && (r.v.serving || s.Marker.Token == "" || s.Marker.Token == r.v.token) {
		if r.v.serving || !r.o.away(r.v.token, r.p.HolderLease) {
			return none, false
		}
		return hold("the restore of %s waits: members of the cluster that can't be reached from here may still be serving; after %s without an answer they count as gone", c.What(), round(r.p.HolderLease))
	}
	if s.Marker.Phase == model.MarkerAbsent {
		return none, false // there never was a cluster
	}
	if id := r.o.recentlyMissing(r.p.HolderLease); id != "" {
		return hold("the restore of %s waits: a cluster was created before, and node %s, which doesn't answer, may have it and be serving; after %s without an answer it counts as gone", c.What(), id, round(r.p.HolderLease))
	}
	h := s.Holder
	switch {
	case h.Mine, h.Node == "", h.UnchangedFor >= r.p.HolderLease:
	case r.o.Node(h.Node) != nil && len(r.o.Missing) == 0:
	default:
		return hold("the restore of %s waits: members of the cluster that can't be reached from here may still be serving; the store last heard of their leader %s ago, after %s they count as gone",
			c.What(), round(h.UnchangedFor), round(r.p.HolderLease))
	}
	return none, false
}

// operation goes on with the restore that is under way, wherever it was left.
func (r *rules) operation() (Decision, bool) {
	op := r.o.Store.Operation
	if op == nil {
		return none, false
	}
	if r.o.Store.Error != "" {
		if d, ok := r.waitForStore(op); ok {
			return d, true
		} else if !r.unwatched {
			return none, false
		}
	}
	preparing := slices.Contains([]model.OperationState{model.OpSalvaging, model.OpProving, model.OpStaging, model.OpSaving}, op.State)
	switch {
	case preparing && op.Withdrawn:
		return giveUp(op, "withdrawn by the operator")
	case preparing && op.Waiting != "" && r.o.Now.Before(op.RetryAt):
		d, ok := needs(cluster.Attention{Kind: cluster.AttentionRestore, Command: deleteCommand(op.ID)},
			"restore %s waits and has stopped nothing: %s", op.ID, op.Waiting)
		d.Waits = true // so that the cluster that serves is looked after meanwhile
		return d, ok
	case r.o.Now.Before(op.RetryAt):
		return hold("restore %s (%s): the last step failed and is tried again %s", op.ID, op.State,
			figure{cluster.In(op.RetryAt.Sub(r.o.Now))})
	case op.State == model.OpSalvaging && op.Reason != "":
		return r.instead(op, "%s", op.Reason)
	case preparing && op.Reason != "":
		return giveUp(op, "%s", op.Reason)
	case preparing:
		if d, ok := r.awayBeforeCommit(op); ok {
			return d, true
		}
		return r.prepare(op)
	case op.State == model.OpReverting:
		return r.revert(op)
	case committing(op.State):
		return r.commit(op)
	}
	return alarm("restore %s is in state %q, which this version doesn't know; it has to be led by the version that wrote it",
		op.ID, op.State)
}

// untouched tells whether a restore is recorded that has changed nothing yet of the open cluster
// that it is to replace. While it waits, that cluster is healed where neither its members, nor
// their disks, nor what they run change: the restore counts on all three.
func (r *rules) untouched() bool {
	op := r.o.Store.Operation
	return op != nil && r.o.Store.Error == "" && r.v.serving && r.v.open && r.v.token == op.OldToken && r.v.token != op.Token &&
		slices.Contains([]model.OperationState{model.OpSalvaging, model.OpProving, model.OpStaging}, op.State)
}

// instead goes on with the backup that is to be restored if the source's data can't be used, or gives up.
func (r *rules) instead(op *model.Operation, reason string, args ...any) (Decision, bool) {
	if op.Source.OrBackup == "" {
		return giveUp(op, reason, args...)
	}
	next := *op
	next.Backup = op.Source.OrBackup
	return do(model.Advance{Op: next, To: model.OpProving}, "%s can't be used (%s); %s is restored in its stead",
		op.Source.What(), fmt.Sprintf(reason, args...), op.Source.Instead())
}

// giveUp ends a restore that can't go on; nothing was stopped yet.
func giveUp(op *model.Operation, reason string, args ...any) (Decision, bool) {
	reason = fmt.Sprintf(reason, args...)
	return do(model.FinishRestore{Op: *op, To: model.OpFailed, Reason: reason},
		"the restore of %s can't go on: %s; nothing was stopped", op.What(), reason)
}

// awayBeforeCommit gives up on a restore when one of its nodes stays away, or when it takes too long.
func (r *rules) awayBeforeCommit(op *model.Operation) (Decision, bool) {
	if r.v.open && r.v.token != op.OldToken && r.v.token != op.Token {
		return giveUp(op, "cluster %s is here, which wasn't when the restore began; queue the restore again if it is to be replaced",
			r.v.token)
	}
	if r.v.serving && op.StateFor > r.prepareDeadline() {
		return giveUp(op, "it was not through with %s after %s", op.State, r.prepareDeadline())
	}
	for _, f := range op.Nodes {
		if d, ok := r.awaitNode(op, f.Name, giveUp); ok {
			return d, true
		}
	}
	if op.State == model.OpSalvaging && op.Backup == "" {
		if d, ok := r.awaitNode(op, string(op.Source.Node), r.instead); ok {
			return d, true
		}
	}
	if src := r.o.Node(op.Source.Node); src != nil && where(src, op.Source.Token) == current && lookAt(r.o, op.Source.Token).serving {
		return giveUp(op, "%s", hasQuorum) // it has come back, and has more than the one node's data
	}
	return none, false
}

// awaitNode waits for a node, and gives up in that way when it has been away for long.
func (r *rules) awaitNode(op *model.Operation, name string,
	giveUp func(*model.Operation, string, ...any) (Decision, bool)) (Decision, bool) {
	if r.o.Node(cluster.NodeID(name)) != nil {
		return none, false
	}
	if miss := r.o.missing(name); miss.For > stepDeadline {
		return giveUp(op, "node %s went away while it was prepared and has not answered for %s", name, round(miss.For))
	}
	return hold("restore %s (%s) waits for node %s", op.ID, op.State, name)
}

// prepare does what can be done while the old cluster serves.
func (r *rules) prepare(op *model.Operation) (Decision, bool) {
	switch op.State {
	case model.OpSalvaging:
		return r.salvage(op)
	case model.OpProving:
		var left []cluster.NodeID
		for _, f := range op.Nodes {
			if id := cluster.NodeID(f.Name); !slices.Contains(op.Proven, id) {
				left = append(left, id)
			}
		}
		if len(left) > 0 {
			return do(model.ProveBackup{Op: *op, Nodes: left},
				"backup %s is fetched and proven on %s before anything is touched", op.What(), ids(left))
		}
		return do(model.Advance{Op: *op, To: model.OpStaging}, "backup %s is proven on %s", op.What(), cluster.Count(len(op.Nodes), "node"))
	case model.OpStaging:
		var left []model.StartEtcd
		var first *cluster.StagedDir
		for _, f := range op.Nodes {
			n := r.o.Node(cluster.NodeID(f.Name))
			st := staged(n, op)
			if st == nil {
				left = append(left, model.StartEtcd{Node: n.ID, State: restoredState(op)})
				continue
			}
			if first == nil {
				first = st
			} else if st.Hash != first.Hash || st.Revision != first.Revision {
				return giveUp(op, "the staged data differ: %s has revision %d hash %d, another node revision %d hash %d",
					n.ID, st.Revision, st.Hash, first.Revision, first.Hash)
			}
		}
		if len(left) > 0 {
			return do(model.StageBackup{Op: *op, Starts: left},
				"backup %s is proven; the new data dir is built on %s while etcd serves", op.What(), cluster.Count(len(left), "node"))
		}
		next := *op
		next.Revision, next.Hash, next.Bytes = first.Revision, first.Hash, first.SizeBytes
		return do(model.Advance{Op: next, To: model.OpSaving}, "revision %d is staged on %s with the same hash",
			first.Revision, cluster.Count(len(op.Nodes), "node"))
	}
	return r.save(op)
}

// salvage has a backup made of the source.
func (r *rules) salvage(op *model.Operation) (Decision, bool) {
	if op.Backup != "" {
		return do(model.Advance{Op: *op, To: model.OpProving},
			"the data of cluster %s on node %s are in the store as backup %s", op.Source.Token, op.Source.Node, op.Backup)
	}
	if where(r.o.Node(op.Source.Node), op.Source.Token) == nowhere {
		return r.instead(op, "node %s doesn't have a data dir of cluster %s any more", op.Source.Node, op.Source.Token)
	}
	return do(model.SalvageData{Op: *op, Node: op.Source.Node}, "a backup is made of %s, with everything in its log", op.What())
}

// save takes the last backup of the old cluster and makes sure of everything before the first etcd is stopped.
func (r *rules) save(op *model.Operation) (Decision, bool) {
	if op.RevisionBefore >= op.Revision {
		return giveUp(op, "clients have seen revision %d, and what is staged only reaches revision %d", op.RevisionBefore, op.Revision)
	}
	for _, n := range r.o.Nodes {
		if n.State != nil && n.State.Token != op.Token && n.Etcd.Revision >= op.Revision {
			return giveUp(op, "clients have seen revision %d on node %s, and what is staged only reaches revision %d",
				n.Etcd.Revision, n.ID, op.Revision)
		}
	}
	if id := r.unstaged(op); id != "" {
		return giveUp(op, "node %s doesn't have the staged data any more", id)
	}
	if !op.SafetyTried && r.v.token == op.OldToken && op.OldToken != "" {
		if n := r.backupNode(); n != nil {
			return do(model.SafetyBackup{Op: *op, Node: n.ID},
				"the cluster as it is now is backed up first, so that the restore can be undone")
		}
		recent := slices.ContainsFunc(r.v.nodes, func(n *cluster.NodeStatus) bool {
			return !r.v.serving && r.mayComeUp(n)
		})
		if recent {
			return hold("restore %s waits a moment for the old cluster to be healthy, to back it up", op.ID)
		}
	}
	if r.oldMayServe(op) || r.v.serving && r.o.away(op.OldToken, 0) || r.unknownCluster(op) && r.o.recentlyMissing(r.p.HolderLease) != "" {
		return hold("restore %s waits: members that can't be reached from here may be serving", op.ID)
	}
	return do(model.Advance{Op: *op, To: model.OpStopping}, "everything is staged and proven; now etcd is stopped")
}

// oldMayServe tells whether members of the old cluster that can't be reached from here may be serving. Who its members are is known from
// those that are here. When none is, anyone may be one; until somebody has switched, which nobody is told before this is answered.
func (r *rules) oldMayServe(op *model.Operation) bool {
	if r.o.away(op.OldToken, r.p.HolderLease) {
		return true
	}
	if op.OldToken == "" || len(lookAt(r.o, op.OldToken).nodes) > 0 || len(lookAt(r.o, op.Token).nodes) > 0 {
		return false
	}
	return r.o.recentlyMissing(r.p.HolderLease) != "" || slices.ContainsFunc(op.Nodes, func(f cluster.EtcdNode) bool {
		return r.o.Node(cluster.NodeID(f.Name)) == nil && r.o.missing(f.Name).For < r.p.HolderLease
	})
}

// unknownCluster tells whether a cluster was created that isn't the one which is to be replaced: whoever doesn't answer may have it.
func (r *rules) unknownCluster(op *model.Operation) bool {
	m := r.o.Store.Marker
	return m.Phase != model.MarkerAbsent && (op.OldToken == "" || m.Token != "" && m.Token != op.OldToken)
}

// unstaged is the first node of the new cluster that has neither staged nor switched, or "".
func (r *rules) unstaged(op *model.Operation) string {
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

func staged(n *cluster.NodeStatus, op *model.Operation) *cluster.StagedDir {
	for i := range n.Staged {
		if n.Staged[i].Operation == op.ID && n.Staged[i].Token == op.Token {
			return &n.Staged[i]
		}
	}
	return nil
}

// restoredState is the state file of the restored cluster's members. They start with their client
// URLs open: what a quarantine would prove was proven on the staged data, and a second start over a
// large database would cost as much as the first.
func restoredState(op *model.Operation) cluster.EtcdState {
	return cluster.EtcdState{Token: op.Token, Nodes: op.Nodes, DesiredSize: op.Size, EtcdVersion: op.Version}
}
