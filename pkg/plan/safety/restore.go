package safety

import (
	"fmt"
	"slices"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// checkOp: the step belongs to the restore that is recorded, in the state in which it is recorded.
func checkOp(o *model.Observation, op model.Operation, states ...model.OperationState) error {
	rec := o.Store.Operation
	if rec == nil || rec.ID != op.ID || rec.Token != op.Token || !slices.Contains(states, rec.State) {
		return fmt.Errorf("no restore %s in state %v is recorded", op.ID, states)
	}
	return nil
}

// checkBegin: one restore at a time and none beside a backup, for a command that is queued, with a data dir of its own.
func checkBegin(o *model.Observation, a model.BeginRestore) error {
	if unfinished(o) != nil {
		return fmt.Errorf("restore %s is under way", o.Store.Operation.ID)
	}
	i := slices.IndexFunc(o.Store.Commands, func(c model.Command) bool { return c.Name == a.Command })
	if i < 0 {
		return fmt.Errorf("command %s isn't queued", a.Command)
	}
	c := o.Store.Commands[i]
	first, backup := model.OpProving, c.Backup
	switch {
	case c.Backup != "":
	case a.Op.Source.Token == "" && c.Source.OrBackup != "":
		backup = c.Source.OrBackup
	default:
		first = model.OpSalvaging
		if a.Op.Source.Token == "" || a.Op.Source.Token != c.Source.Token || c.Source.Node != "" && a.Op.Source.Node != c.Source.Node {
			return fmt.Errorf("restore %s would not be of the data that command %s names", a.Op.ID, c.Name)
		}
		if err := checkSalvaged(o, a.Op.Source); err != nil {
			return err
		}
	}
	if a.Op.State != first || a.Op.Backup != backup || a.Op.Token == "" || a.Op.Token == a.Op.OldToken || len(a.Op.Nodes) == 0 {
		return fmt.Errorf("restore %s would not begin with %s, into a data dir of its own", a.Op.ID, first)
	}
	if o.Store.HighestRevision > a.Op.RevisionBefore {
		return fmt.Errorf("revision %d was reached before, the restore knows of %d", o.Store.HighestRevision, a.Op.RevisionBefore)
	}
	for _, n := range o.Nodes {
		if n.Busy == cluster.BusyReleasing {
			return fmt.Errorf("node %s is about to give up its volume", n.ID)
		}
		if n.State != nil && n.State.Token == a.Op.Token {
			return fmt.Errorf("node %s already has cluster %s", n.ID, a.Op.Token)
		}
		if o.BackupRunning != "" && n.State != nil && n.State.Token == a.Op.OldToken && ofQuorum(n) {
			return fmt.Errorf("a backup (%s) is being taken", o.BackupRunning)
		}
	}
	return nil
}

// checkSalvaged: the data are there, and nobody is served from them.
func checkSalvaged(o *model.Observation, src model.Source) error {
	n := o.Node(src.Node)
	if n == nil {
		return fmt.Errorf("node %s doesn't answer", src.Node)
	}
	if n.State != nil && n.State.Token == src.Token && n.DataPresent {
		for _, x := range o.Nodes {
			if x.State != nil && x.State.Token == src.Token && ofQuorum(x) {
				return fmt.Errorf("cluster %s has a quorum; it would lose what the others have", src.Token)
			}
		}
		return nil
	}
	for _, e := range n.Trash {
		if e.Token == src.Token {
			return nil
		}
	}
	return fmt.Errorf("node %s has no data of cluster %s", src.Node, src.Token)
}

// checkSalvage: a backup is made once, of the data that the record names.
func checkSalvage(o *model.Observation, a model.SalvageData) error {
	if err := checkOp(o, a.Op, model.OpSalvaging); err != nil {
		return err
	}
	rec := o.Store.Operation
	if rec.Backup != "" || a.Node != rec.Source.Node {
		return fmt.Errorf("restore %s has backup %q, or is not of data on node %s", rec.ID, rec.Backup, a.Node)
	}
	return checkSalvaged(o, rec.Source)
}

// checkSource: a snapshot is read from a member that is well.
func checkSource(o *model.Observation, id cluster.NodeID) error {
	n := o.Node(id)
	if n == nil || n.State == nil || !n.Etcd.Healthy || n.Etcd.Learner || n.Holding {
		return fmt.Errorf("node %s has no healthy voter to read a snapshot from", id)
	}
	return nil
}

// has: the node has the staged data, or has switched to them.
func has(n *cluster.NodeStatus, op *model.Operation) bool {
	if n == nil {
		return false
	}
	for _, s := range n.Staged {
		if s.Operation == op.ID && s.Token == op.Token && s.Hash == op.Hash && s.Revision == op.Revision {
			return true
		}
	}
	return n.State != nil && n.State.Token == op.Token
}

// checkStaged: all nodes have staged the same, and it is what the record will say.
func checkStaged(o *model.Observation, op model.Operation) error {
	for _, f := range op.Nodes {
		n := o.Node(cluster.NodeID(f.Name))
		if n == nil || !slices.ContainsFunc(n.Staged, func(s cluster.StagedDir) bool {
			return s.Operation == op.ID && s.Token == op.Token && s.Revision == op.Revision && s.Hash == op.Hash
		}) {
			return fmt.Errorf("node %s has not staged revision %d with hash %d", f.Name, op.Revision, op.Hash)
		}
	}
	return nil
}

// checkAdvance: each state is only reached when what it stands on is there.
func checkAdvance(o *model.Observation, a model.Advance, p model.Policy) error {
	before := map[model.OperationState][]model.OperationState{
		model.OpProving: {model.OpSalvaging}, model.OpStaging: {model.OpProving}, model.OpSaving: {model.OpStaging},
		model.OpStopping: {model.OpSaving}, model.OpSwitching: {model.OpStopping, model.OpReverting},
		model.OpVerifying: {model.OpSwitching}, model.OpReverting: {model.OpStopping, model.OpSwitching,
			model.OpVerifying, model.OpReverting},
	}
	if err := checkOp(o, a.Op, before[a.To]...); err != nil {
		return err
	}
	op := o.Store.Operation
	if a.Op.Written != op.Written && (op.State != model.OpReverting || a.To != model.OpSwitching) ||
		a.Op.Unwritten != op.Unwritten && a.To != model.OpReverting {
		return fmt.Errorf("whether clients have written isn't known in state %s", op.State)
	}
	if a.Op.Backup != op.Backup && (op.State != model.OpSalvaging || op.Backup != "" || a.Op.Backup != op.Source.OrBackup) {
		return fmt.Errorf("restore %s is of backup %q, not of %q", op.ID, op.Backup, a.Op.Backup)
	}
	switch a.To {
	case model.OpProving:
		if a.Op.Backup == "" {
			return fmt.Errorf("restore %s has no backup yet", op.ID)
		}
	case model.OpStaging:
		for _, f := range op.Nodes {
			if !slices.Contains(op.Proven, cluster.NodeID(f.Name)) {
				return fmt.Errorf("node %s has not proven the backup", f.Name)
			}
		}
	case model.OpSaving:
		return checkStaged(o, a.Op)
	case model.OpStopping:
		return checkFirstStop(o, p)
	case model.OpSwitching:
		if op.State == model.OpReverting {
			return checkForward(o, a)
		}
		for _, n := range o.Nodes {
			if n.State != nil && n.State.Token != op.Token && n.Etcd.Running {
				return fmt.Errorf("node %s still runs an etcd of before", n.ID)
			}
		}
		if err := ready(o, cluster.Quorum(len(op.Nodes))); err != nil {
			return err
		}
		return unseen(o, p)
	case model.OpVerifying:
		switched := 0
		for _, n := range o.Nodes {
			if n.State != nil && n.State.Token == op.Token {
				switched++
			}
		}
		if switched < cluster.Quorum(len(op.Nodes)) && !lives(o, "") {
			return fmt.Errorf("%d of %d nodes have switched", switched, len(op.Nodes))
		}
	case model.OpReverting:
		return checkBack(o, a, p)
	}
	return nil
}

// checkFinish: failed means that nothing was stopped; done that it serves, or that another restore follows on what can't be taken
// back; rolled back that the old data are back.
func checkFinish(o *model.Observation, a model.FinishRestore) error {
	rec := o.Store.Operation
	switch a.To {
	case model.OpFailed:
		if a.Reason == "" {
			return fmt.Errorf("restore %s would fail without a reason", a.Op.ID)
		}
		return checkOp(o, a.Op, model.OpSalvaging, model.OpProving, model.OpStaging, model.OpSaving)
	case model.OpDone:
		if rec != nil && (rec.Written || rec.Token == o.Store.Marker.Token && len(rec.Verified) > 0) &&
			slices.ContainsFunc(o.Store.Commands, func(c model.Command) bool { return c.Ready && c.Name != rec.ID }) {
			return checkOp(o, a.Op, model.OpSwitching, model.OpVerifying)
		}
		if err := checkOp(o, a.Op, model.OpVerifying); err != nil {
			return err
		}
		if !lives(o, "") {
			return fmt.Errorf("the restored cluster doesn't serve")
		}
		return nil
	case model.OpRolledBack:
		if err := checkOp(o, a.Op, model.OpReverting); err != nil {
			return err
		}
		if !rec.Unwritten {
			return fmt.Errorf("it isn't known whether clients have written to the restored data")
		}
		for _, n := range o.Nodes {
			kept := slices.ContainsFunc(n.Staged, func(s cluster.StagedDir) bool { return s.Operation == rec.ID && s.Written })
			if (n.Holding && n.Operation == rec.ID || n.State != nil && n.State.Token == a.Op.Token) && !kept {
				return fmt.Errorf("node %s doesn't have the old data back", n.ID)
			}
		}
		return nil
	}
	return fmt.Errorf("restore %s can't end as %s", a.Op.ID, a.To)
}
