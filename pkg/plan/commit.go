package plan

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// awayGrace is how long a node of the new cluster may be away in the middle of a commit before the others go on without it.
const awayGrace = 10 * time.Second

// laggardTime is how long a restored cluster that serves waits for its last members before the restore is called done.
const laggardTime = 2 * time.Minute

// deadline is how long a state of the commit may last.
func (r *rules) deadline(op *model.Operation) time.Duration {
	return r.p.CommitDeadline + cluster.LoadTime(op.Bytes)
}

// committing tells whether the old cluster may be stopped.
func committing(s model.OperationState) bool {
	return s == model.OpStopping || s == model.OpSwitching || s == model.OpVerifying || s == model.OpReverting
}

// muster is how the nodes of the new cluster stand in the middle of a commit.
type muster struct {
	quorum int
	// ready have what was staged; those that are switched are among them, and those that have joined the restored cluster since.
	ready, switched []*cluster.NodeStatus
	// lost answer and have nothing of it.
	lost []string
	// away don't answer; late is one of them that may be back in a moment.
	away []string
	late string
	// mute can't tell whether they have run on the restored data: those that are away, and those that have lost their disk.
	mute []string
}

func (r *rules) muster(op *model.Operation) muster {
	m := muster{quorum: cluster.Quorum(len(op.Nodes))}
	for _, f := range op.Nodes {
		n := r.o.Node(cluster.NodeID(f.Name))
		if n == nil {
			m.away, m.mute = append(m.away, f.Name), append(m.mute, f.Name)
			if r.o.missing(f.Name).For < awayGrace {
				m.late = f.Name
			}
			continue
		}
		st := staged(n, op)
		switch {
		case n.State != nil && n.State.Token == op.Token:
			m.ready, m.switched = append(m.ready, n), append(m.switched, n)
		case st != nil && st.Hash == op.Hash && st.Revision == op.Revision:
			m.ready = append(m.ready, n)
		default:
			m.lost = append(m.lost, f.Name)
			if n.State == nil || n.State.Token != op.OldToken {
				m.mute = append(m.mute, f.Name)
			}
		}
	}
	for i, n := range r.o.Nodes {
		if n.State != nil && n.State.Token == op.Token && !wants(op, n.ID) {
			m.ready, m.switched = append(m.ready, &r.o.Nodes[i]), append(m.switched, &r.o.Nodes[i])
		}
	}
	return m
}

// wants tells whether a node is one of the new cluster's.
func wants(op *model.Operation, id cluster.NodeID) bool {
	return slices.ContainsFunc(op.Nodes, func(f cluster.EtcdNode) bool { return f.Name == string(id) })
}

// joined is a node that the restored cluster has taken in since it serves, or "".
func (r *rules) joined(op *model.Operation) cluster.NodeID {
	for _, n := range r.o.Nodes {
		if n.State != nil && n.State.Token == op.Token && staged(&n, op) == nil {
			return n.ID
		}
	}
	return ""
}

// served tells whether the restored cluster answers clients, as far as is seen from here.
func (r *rules) served(op *model.Operation) bool { return lookAt(r.o, op.Token).serving }

// final tells whether there is no way back: clients have written, or the store names the restored cluster as the one there is.
func (r *rules) final(op *model.Operation) bool {
	return op.Written || len(op.Verified) > 0 && r.o.Store.Marker.Token == op.Token
}

// overruled tells whether those that are away count as lost: they have been silent for long, and the operator waits for another restore.
func (r *rules) overruled(op *model.Operation, m muster) bool {
	return r.waiting(op) && r.silent(m)
}

func (r *rules) silent(m muster) bool {
	return !slices.ContainsFunc(m.away, func(name string) bool {
		miss := r.o.missing(name)
		return miss.Foreign || miss.For < r.p.HolderLease
	})
}

// waiting tells whether another restore is to follow.
func (r *rules) waiting(op *model.Operation) bool {
	return slices.ContainsFunc(r.o.Store.Commands, func(c model.Command) bool { return c.Ready && c.Name != op.ID })
}

// waitForStore decides whether a restore goes on while the store is away: only in the middle of a commit, and only if all who know of
// it answer, so that nobody else can be acting.
func (r *rules) waitForStore(op *model.Operation) (Decision, bool) {
	if !committing(op.State) {
		return needs(cluster.Attention{Kind: cluster.AttentionStore},
			"the restore %s goes on when the store is back: %s", op.ID, figure{r.o.Store.Error})
	}
	who := r.unheard(op)
	switch {
	case who == "":
		r.unwatched = true
		return none, false
	case r.served(op):
		return r.leave(op, op.Token)
	case lookAt(r.o, op.OldToken).serving:
		return r.leave(op, op.OldToken)
	}
	return needs(cluster.Attention{Kind: cluster.AttentionStore},
		"the restore %s (%s) goes on when the store is back, or when every node of it can be asked, which %s can't: %s",
		op.ID, op.State, who, figure{r.o.Store.Error})
}

// unheard is a node of the new cluster, or a member of the old one, that doesn't answer or doesn't know of the restore; "" if there
// is none. One that knows nothing of it may have been told by somebody else that it is over.
func (r *rules) unheard(op *model.Operation) string {
	names := nodeNames(op.Nodes)
	for _, n := range r.o.Nodes {
		if n.State != nil && n.State.Token == op.OldToken {
			names = append(append(names, nodeNames(n.State.Nodes)...), memberNames(n.Etcd.Members)...)
		}
	}
	for _, name := range names {
		n := r.o.Node(cluster.NodeID(name))
		if name != "" && (n == nil || n.Operation != op.ID && staged(n, op) == nil && (n.State == nil || n.State.Token != op.Token)) {
			return name
		}
	}
	return ""
}

// commit goes on with a restore for which etcd is or will be stopped.
func (r *rules) commit(op *model.Operation) (Decision, bool) {
	m := r.muster(op)
	late := op.StateFor > r.deadline(op)
	if !r.final(op) && !r.served(op) {
		if why := r.trouble(op, late); why != "" {
			return r.takeBack(op, m, "%s", why)
		}
	}
	step := r.change
	if op.State == model.OpVerifying {
		step = r.verify
	}
	d, ok := step(op, m)
	if ok && d.Do == nil && r.final(op) && late {
		return r.stuck(op, m, d.Why)
	}
	return d, ok
}

// trouble says why a restored cluster that doesn't serve is taken back, or "".
func (r *rules) trouble(op *model.Operation, late bool) string {
	switch id := r.reverted(op); {
	case id != "":
		return fmt.Sprintf("node %s has its old data back already", id)
	case op.Reason != "":
		return op.Reason
	case late && !r.justServed(op):
		return fmt.Sprintf("the restored cluster did not come up within %s", r.deadline(op))
	}
	return ""
}

// justServed tells whether the restored cluster was seen to serve and has lost its etcd leader only now.
func (r *rules) justServed(op *model.Operation) bool {
	return len(op.Verified) > 0 && slices.ContainsFunc(lookAt(r.o, op.Token).nodes, r.mayComeUp)
}

// stuck is for a restored cluster from which there is no way back and that doesn't come up. Another restore may take its place.
func (r *rules) stuck(op *model.Operation, m muster, why string) (Decision, bool) {
	if r.overruled(op, m) && r.o.Store.Error == "" {
		return do(model.FinishRestore{Op: *op, To: model.OpDone},
			"%s; clients may have written to the restored data, so it ends here, and the next restore takes its place", why)
	}
	return needs(cluster.Attention{Command: undoCommand},
		"%s; clients may have written to the restored data, so it is not taken back; bring its members back, or ask for what was before: %s", why, undoCommand)
}

// change stops the old cluster and switches to the staged data. It is the only time in which nobody is served.
func (r *rules) change(op *model.Operation, m muster) (Decision, bool) {
	forth := r.final(op) || r.served(op)
	few := len(m.ready) < m.quorum && !forth
	switch {
	case few && len(m.ready)+len(m.away) >= m.quorum:
		return hold("restore %s (%s) waits for node %s", op.ID, op.State, m.away[0])
	case few, len(m.lost) > 0 && len(m.switched) == 0 && !forth:
		return r.takeBack(op, m, "node %s doesn't have the staged data any more", m.lost[0])
	case m.late != "" && len(m.switched) == 0:
		return hold("restore %s (%s) waits for node %s", op.ID, op.State, m.late)
	}
	if d, ok := r.stopOthers(op); ok {
		return d, true
	}
	if r.oldMayServe(op) {
		return hold("restore %s (%s): members that can't be reached from here may be serving", op.ID, op.State)
	}
	if op.State == model.OpStopping {
		return do(model.Advance{Op: *op, To: model.OpSwitching}, "etcd is stopped everywhere%s", without(m.away))
	}
	if d, ok := r.switchTo(op, m); ok {
		return d, true
	}
	if len(m.switched) < m.quorum && !r.served(op) {
		return hold("restore %s (%s) waits for more than %d of %d nodes", op.ID, op.State, len(m.switched), len(op.Nodes))
	}
	return do(model.Advance{Op: *op, To: model.OpVerifying}, "%d of %d nodes have switched", len(m.switched), len(op.Nodes))
}

func without(away []string) string {
	if len(away) == 0 {
		return ""
	}
	return " but on " + strings.Join(away, ", ") + ", which don't answer"
}

// stopOthers stops every etcd that isn't of the restored cluster, also those that are down, so that they stay so.
func (r *rules) stopOthers(op *model.Operation) (Decision, bool) {
	var stop []cluster.NodeID
	for _, n := range r.o.Nodes {
		other := n.State != nil && n.State.Token != op.Token || n.State == nil && n.Etcd.Running
		if other && (n.Etcd.Running || !n.Holding) {
			stop = append(stop, n.ID)
		}
	}
	if len(stop) == 0 {
		return none, false
	}
	return do(model.StopAll{Op: *op, Nodes: stop}, "etcd is stopped on %s", ids(stop))
}

// switchTo has those switch that are ready and haven't yet, or were halted.
func (r *rules) switchTo(op *model.Operation, m muster) (Decision, bool) {
	var left []model.StartEtcd
	for _, n := range m.ready {
		if wants(op, n.ID) && (n.State == nil || n.State.Token != op.Token || n.Holding) {
			left = append(left, model.StartEtcd{Node: n.ID, State: restoredState(op)})
		}
	}
	if len(left) == 0 {
		return none, false
	}
	return do(model.SwitchAll{Op: *op, Starts: left}, "the staged data take their place on %s", cluster.Count(len(left), "node"))
}

// verify waits until the restored cluster serves, with as many of its members as come.
func (r *rules) verify(op *model.Operation, m muster) (Decision, bool) {
	forth, served := r.final(op), r.served(op)
	if wrong := r.wrong(op); wrong != "" && !forth {
		return r.takeBack(op, m, "%s", wrong)
	}
	var well []cluster.NodeID
	var lag []string
	for _, f := range op.Nodes {
		if n := r.o.Node(cluster.NodeID(f.Name)); n != nil && runsOn(op, n) && named(n) {
			well = append(well, n.ID)
			continue
		}
		lag = append(lag, f.Name)
	}
	if served && (len(lag) == 0 || op.StateFor >= laggardTime && !r.laggardLoads(lag) || op.Reason != "" && !forth) {
		return r.conclude(op, well, lag)
	}
	if len(m.ready)+len(m.away) < m.quorum && !forth && !served {
		return r.takeBack(op, m, "node %s doesn't have the restored data any more", m.lost[0])
	}
	if d, ok := r.stopOthers(op); ok {
		return d, true
	}
	if len(m.switched) < len(m.ready) && r.oldMayServe(op) {
		return hold("restore %s (%s): members that can't be reached from here may be serving", op.ID, op.State)
	}
	if d, ok := r.switchTo(op, m); ok {
		return d, true
	}
	if served {
		return hold("restore %s: the restored cluster serves; not well yet: %s", op.ID, strings.Join(lag, ", "))
	}
	return hold("restore %s: etcd is starting; not well yet: %s", op.ID, strings.Join(lag, ", "))
}

// laggardLoads tells whether one that isn't well yet is loading the restored database.
func (r *rules) laggardLoads(lag []string) bool {
	return slices.ContainsFunc(lag, func(name string) bool {
		n := r.o.Node(cluster.NodeID(name))
		return n != nil && loads(n, Database(r.o.Observation))
	})
}

// runsOn tells whether a node runs as a healthy voter of the restored cluster. One that refuses the manager, as the restored data have
// users, doesn't say more.
func runsOn(op *model.Operation, n *cluster.NodeStatus) bool {
	return n.State != nil && n.State.Token == op.Token && n.Etcd.Votes() && (n.Etcd.Members != nil || n.Etcd.Denied)
}

// named tells whether a member has published its name, which it does through raft when it has started.
func named(n *cluster.NodeStatus) bool {
	return n.Etcd.Denied || slices.ContainsFunc(n.Etcd.Members,
		func(m cluster.Member) bool { return m.ID == n.Etcd.MemberID && m.Name == string(n.ID) })
}

// wrong says how the restored cluster has come up otherwise than it was staged, or "": with other data, or as two clusters. Other
// members than were staged are no such sign: while the store is away some may have been replaced.
func (r *rules) wrong(op *model.Operation) string {
	var up []*cluster.NodeStatus
	for _, f := range op.Nodes {
		n := r.o.Node(cluster.NodeID(f.Name))
		if n == nil || !runsOn(op, n) || n.Etcd.Denied {
			continue
		}
		if n.Etcd.Revision < op.Revision {
			return fmt.Sprintf("etcd on %s came up with revision %d, staged was %d", n.ID, n.Etcd.Revision, op.Revision)
		}
		for _, x := range up {
			if !lists(n, x) && !lists(x, n) {
				return fmt.Sprintf("etcd on %s knows the members %v and etcd on %s knows %v", x.ID,
					memberNames(x.Etcd.Members), n.ID, memberNames(n.Etcd.Members))
			}
		}
		up = append(up, n)
	}
	return ""
}

// lists tells whether one member knows another.
func lists(n, other *cluster.NodeStatus) bool {
	return slices.ContainsFunc(n.Etcd.Members, func(m cluster.Member) bool { return m.ID == other.Etcd.MemberID })
}

// conclude has the members compared with what was staged, for the record, and ends the restore.
func (r *rules) conclude(op *model.Operation, well []cluster.NodeID, lag []string) (Decision, bool) {
	var left []cluster.NodeID
	for _, id := range well {
		if !slices.Contains(op.Verified, id) {
			left = append(left, id)
		}
	}
	if len(left) > 0 {
		return do(model.VerifyAll{Op: *op, Nodes: left},
			"the restored cluster serves; %s compare what they hold with what was staged", ids(left))
	}
	if r.o.Store.Error != "" {
		return r.leave(op, op.Token)
	}
	words := ""
	if len(lag) > 0 {
		words = "; not well are " + strings.Join(lag, ", ") + ", which are dealt with like any other member"
	}
	return do(model.FinishRestore{Op: *op, To: model.OpDone}, "the restored cluster serves on %d of %d members%s",
		len(op.Nodes)-len(lag), len(op.Nodes), words)
}

// wrote tells whether the log of a node, read when it was halted, has a client's write.
func wrote(n *cluster.NodeStatus, op *model.Operation) bool {
	st := staged(n, op)
	return st != nil && st.Halted && st.Written
}
