package plan

import (
	"fmt"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// leave goes on to the other rules, with the cluster that serves now: the restore's record waits for the store.
func (r *rules) leave(op *model.Operation, token cluster.Token) (Decision, bool) {
	r.unwatched, r.v = false, lookAt(r.o, token)
	r.pending = fmt.Sprintf("; the record of restore %s waits for the store", op.ID)
	return none, false
}

// reverted is a node that was held or halted for the restore and has its old data back, or "". It was only taken back because no
// client's write can have been lost by it; so the others follow. A node that only gave its data for the backup is none.
func (r *rules) reverted(op *model.Operation) cluster.NodeID {
	for _, n := range r.o.Nodes {
		if n.ID == op.Source.Node && !wants(op, n.ID) {
			continue
		}
		if n.Operation == op.ID && staged(&n, op) == nil && !n.Holding && (n.State == nil || n.State.Token != op.Token) {
			return n.ID
		}
	}
	return ""
}

// takeBack begins the way back to the old data. Whether it may be gone to the end is decided when the restored etcd is halted.
func (r *rules) takeBack(op *model.Operation, m muster, reason string, args ...any) (Decision, bool) {
	reason = fmt.Sprintf(reason, args...)
	next := *op
	next.Unwritten = r.reverted(op) != ""
	if len(m.mute) >= m.quorum && !next.Unwritten {
		next.Unwritten = op.State == model.OpStopping && len(m.switched) == 0 && r.silent(m) // nobody was told to switch
		if !next.Unwritten && !r.overruled(op, m) {
			return alarm("restore %s (%s): %s; it is not taken back before %s can be asked, as clients may have been served by them from the restored data", op.ID, op.State, reason, strings.Join(m.mute, ", "))
		}
	}
	return do(model.Advance{Op: next, To: model.OpReverting, Reason: reason}, "the restore of %s is taken back: %s", op.What(), reason)
}

// revert brings the old data back on every node that was stopped or has switched, once it is certain that no client has written to
// the restored data.
func (r *rules) revert(op *model.Operation) (Decision, bool) {
	m := r.muster(op)
	if !op.Unwritten {
		return r.halt(op, m)
	}
	var left []cluster.NodeID
	for _, n := range r.o.Nodes {
		if (n.Holding && n.Operation == op.ID || n.State != nil && n.State.Token == op.Token) && !wrote(&n, op) {
			left = append(left, n.ID)
		}
	}
	if len(left) > 0 {
		return do(model.RollbackAll{Op: *op, Nodes: left}, "%s go back to the data from before the restore", ids(left))
	}
	old := lookAt(r.o, op.OldToken)
	if len(m.away) > 0 && !old.serving && !r.overruled(op, m) {
		words := fmt.Sprintf("restore %s is being taken back; node %s may still have the restored data and doesn't answer; it is waited for, or for another restore: %s", op.ID, m.away[len(m.away)-1], restoreCommand)
		return Decision{Why: words, Key: words, Alarm: op.StateFor > r.p.CommitDeadline,
			Attention: cluster.Attention{Command: restoreCommand}}, true
	}
	switch {
	case r.o.Store.Error != "" && old.serving:
		return r.leave(op, op.OldToken)
	case r.o.Store.Error != "":
		return hold("restore %s is taken back; it ends when the store is back: %s", op.ID, figure{r.o.Store.Error})
	}
	return do(model.FinishRestore{Op: *op, To: model.OpRolledBack, Reason: op.Reason}, "the old data are back")
}

// halt stops the restored etcd wherever it may run and reads from its log which way it goes. An acknowledged write, and every change of
// the members, is in the log of one member of every quorum; so if none of those that are here has one, and the others are no quorum,
// there is none.
func (r *rules) halt(op *model.Operation, m muster) (Decision, bool) {
	var run []cluster.NodeID
	why := ""
	next := *op
	if id := r.reverted(op); id != "" {
		next.Unwritten = true
		return do(model.Advance{Op: next, To: model.OpReverting, Reason: op.Reason},
			"node %s has its old data back already; the others follow", id)
	}
	if id := r.joined(op); id != "" {
		why = fmt.Sprintf("node %s has joined the restored cluster", id)
	}
	for _, n := range r.o.Nodes {
		if n.State == nil || n.State.Token != op.Token {
			continue
		}
		st := staged(&n, op)
		switch {
		case st == nil:
		case wrote(&n, op):
			why = fmt.Sprintf("clients have written to the restored data, as the log of node %s says", n.ID)
		case !st.Halted:
			run = append(run, n.ID)
		}
	}
	switch {
	case why != "":
		next.Written = true
		return do(model.Advance{Op: next, To: model.OpSwitching, Reason: "clients have written to the restored data"},
			"%s; it goes on and is not taken back", why)
	case len(run) > 0:
		return do(model.HaltAll{Op: *op, Nodes: run},
			"etcd is stopped on %s, to see whether clients have written to the restored data", ids(run))
	case len(m.mute) >= m.quorum && r.overruled(op, m):
		next.Unwritten = true
		return do(model.Advance{Op: next, To: model.OpReverting, Reason: op.Reason},
			"%s count as lost, as another restore waits; the old data are brought back", strings.Join(m.mute, ", "))
	case len(m.mute) >= m.quorum:
		return needs(cluster.Attention{Command: restoreCommand},
			"restore %s is to be taken back (%s), but %s can't be asked and may have served clients from the restored data; they are waited for, or another restore: %s", op.ID, op.Reason, strings.Join(m.mute, ", "), restoreCommand)
	}
	next.Unwritten = true
	return do(model.Advance{Op: next, To: model.OpReverting, Reason: op.Reason},
		"no client has written to the restored data; the old data are brought back")
}

// leftover takes a node back that was away when a restore was rolled back. What has a client's write is left to strayNode, which
// keeps it in the trash can.
func (r *rules) leftover() (Decision, bool) {
	if r.o.Store.Error != "" {
		return none, false
	}
	for _, op := range r.o.Store.RolledBack {
		var left []cluster.NodeID
		have := 0
		for _, n := range r.o.Nodes {
			if n.State == nil || n.State.Token != op.Token {
				continue
			}
			have++
			if !wrote(&n, &op) {
				left = append(left, n.ID)
			}
		}
		switch {
		case len(left) == 0:
		case have >= cluster.Quorum(len(op.Nodes)):
			return needs(cluster.Attention{Kind: cluster.AttentionClusters},
				"%s have the data of restore %s, which was taken back without them, and may have served clients with it; a person has to decide which data are right", ids(left), op.ID)
		default:
			return do(model.RollbackAll{Op: op, Nodes: left}, "%s were away when restore %s was taken back", ids(left), op.ID)
		}
	}
	return none, false
}
