package plan

import (
	"fmt"
	"slices"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// checkOp: the step belongs to the restore that is recorded, in the state in which it is recorded.
func checkOp(o *Observation, op Operation, states ...OperationState) error {
	rec := o.Store.Operation
	if rec == nil || rec.ID != op.ID || rec.Token != op.Token || !slices.Contains(states, rec.State) {
		return fmt.Errorf("no restore %s in state %v is recorded", op.ID, states)
	}
	return nil
}

// checkBegin: one restore at a time, for a command that is queued, with a data dir of its own.
func checkBegin(o *Observation, a BeginRestore) error {
	if o.underWay() != nil {
		return fmt.Errorf("restore %s is under way", o.Store.Operation.ID)
	}
	if !slices.ContainsFunc(o.Store.Commands, func(c Command) bool { return c.Name == a.Command }) {
		return fmt.Errorf("command %s isn't queued", a.Command)
	}
	if a.Op.State != OpProving || a.Op.Token == "" || a.Op.Token == a.Op.OldToken || len(a.Op.Nodes) == 0 {
		return fmt.Errorf("restore %s would not begin with proving, into a data dir of its own", a.Op.ID)
	}
	if o.Store.HighestRevision > a.Op.RevisionBefore {
		return fmt.Errorf("revision %d was reached before, the restore knows of %d", o.Store.HighestRevision, a.Op.RevisionBefore)
	}
	for _, n := range o.Nodes {
		if n.State != nil && n.State.Token == a.Op.Token {
			return fmt.Errorf("node %s already has cluster %s", n.ID, a.Op.Token)
		}
	}
	return nil
}

// ready: every node of the new cluster answers and has the staged data, or has switched to them.
func ready(o *Observation) error {
	op := o.Store.Operation
	for _, f := range op.Nodes {
		n := o.Node(cluster.NodeID(f.Name))
		if n == nil {
			return fmt.Errorf("node %s doesn't answer", f.Name)
		}
		ok := n.State != nil && n.State.Token == op.Token
		for _, s := range n.Staged {
			ok = ok || s.Operation == op.ID && s.Token == op.Token && s.Hash == op.Hash && s.Revision == op.Revision
		}
		if !ok {
			return fmt.Errorf("node %s has not staged revision %d with hash %d", f.Name, op.Revision, op.Hash)
		}
	}
	return nil
}

// unseen: by the state file of any node of the old cluster, could those that were not heard for a while still be a quorum of it?
// If a node here is healthy, they are. If nobody here has the old cluster but there was one, anyone who is silent may have it.
func unseen(o *Observation, p Policy) error {
	if op := o.Store.Operation; op.OldToken == "" && op.State == OpSaving && o.Store.Marker.Phase != MarkerAbsent {
		for _, m := range o.Missing {
			if m.For < p.HolderLease {
				return fmt.Errorf("node %s may have the cluster that was created before, and be serving", m.ID)
			}
		}
	}
	for _, n := range o.Nodes {
		if n.State == nil || n.State.Token != o.Store.Operation.OldToken {
			continue
		}
		silent := 0
		for _, m := range n.State.Nodes {
			if o.Node(cluster.NodeID(m.Name)) != nil {
				continue
			}
			quiet := o.SettledFor
			for _, x := range o.Missing {
				if string(x.ID) == m.Name {
					quiet = x.For
				}
			}
			if quiet < p.HolderLease || n.Etcd.Healthy {
				silent++
			}
		}
		if silent > 0 && silent >= len(n.State.Nodes)/2+1 {
			return fmt.Errorf("%d of %d members of the old cluster are out of reach and may be serving", silent, len(n.State.Nodes))
		}
	}
	return nil
}

// checkStop: nothing that runs is stopped for something that isn't proven and staged on every node of the new cluster.
func checkStop(o *Observation, a StopAll) error {
	if err := checkOp(o, a.Op, OpStopping, OpSwitching, OpVerifying, OpLifting); err != nil {
		return err
	}
	for _, id := range a.Nodes {
		if n := o.Node(id); n != nil && n.State != nil && n.State.Token == a.Op.Token {
			return fmt.Errorf("node %s has the restored data already", id)
		}
	}
	if o.Store.Operation.State == OpLifting {
		return nil // clients are let in elsewhere already
	}
	return ready(o)
}

// checkSwitch: the old cluster is stopped, wherever it may be, before any node starts the new one.
func checkSwitch(o *Observation, a SwitchAll, p Policy) error {
	if err := checkOp(o, a.Op, OpSwitching); err != nil {
		return err
	}
	for _, n := range o.Nodes {
		if (n.State == nil || n.State.Token != a.Op.Token) && n.Etcd.Running {
			return fmt.Errorf("node %s still runs an etcd of before", n.ID)
		}
	}
	for _, s := range a.Starts {
		if !s.State.Quarantined || s.State.Token != a.Op.Token {
			return fmt.Errorf("node %s would not start quarantined on the restored data", s.Node)
		}
	}
	if err := ready(o); err != nil {
		return err
	}
	return unseen(o, p)
}

// checkAdvance: each state is only reached when what it stands on is there.
func checkAdvance(o *Observation, a Advance, p Policy) error {
	before := map[OperationState][]OperationState{
		OpStaging: {OpProving}, OpSaving: {OpStaging}, OpStopping: {OpSaving}, OpSwitching: {OpStopping},
		OpVerifying: {OpSwitching}, OpLifting: {OpVerifying}, OpReverting: {OpStopping, OpSwitching, OpVerifying},
	}
	if err := checkOp(o, a.Op, before[a.To]...); err != nil {
		return err
	}
	op := o.Store.Operation
	switch a.To {
	case OpStaging:
		for _, f := range op.Nodes {
			if !slices.Contains(op.Proven, cluster.NodeID(f.Name)) {
				return fmt.Errorf("node %s has not proven the backup", f.Name)
			}
		}
	case OpSaving:
		return checkStaged(o, a.Op)
	case OpStopping:
		for _, n := range o.Nodes {
			if n.State != nil && n.State.Token != op.Token && n.Etcd.Revision >= op.Revision {
				return fmt.Errorf("the revision would go back from %d to %d", n.Etcd.Revision, op.Revision)
			}
		}
		if err := ready(o); err != nil {
			return err
		}
		return unseen(o, p)
	case OpLifting:
		return checkVerified(o)
	case OpReverting:
		return checkClosed(o, a.Op.Token)
	}
	return nil
}

// checkClosed: no client can have written to the restored data.
func checkClosed(o *Observation, t cluster.Token) error {
	for _, n := range o.Nodes {
		if n.State != nil && n.State.Token == t && !n.State.Quarantined {
			return fmt.Errorf("node %s has let clients in on the restored data", n.ID)
		}
	}
	return nil
}

// checkRollback: what was given up is recorded as given up, and no client has seen it.
func checkRollback(o *Observation, a RollbackAll) error {
	over := slices.ContainsFunc(o.Store.RolledBack, func(op Operation) bool { return op.ID == a.Op.ID && op.Token == a.Op.Token })
	if err := checkOp(o, a.Op, OpReverting); err != nil && (!over || o.underWay() != nil) {
		return err
	}
	return checkClosed(o, a.Op.Token)
}

// checkStaged: all nodes have staged the same, and it is what the record will say.
func checkStaged(o *Observation, op Operation) error {
	for _, f := range op.Nodes {
		n := o.Node(cluster.NodeID(f.Name))
		if n == nil || !slices.Contains(n.Staged, cluster.StagedDir{Operation: op.ID, Token: op.Token, Revision: op.Revision, Hash: op.Hash}) {
			return fmt.Errorf("node %s has not staged revision %d with hash %d", f.Name, op.Revision, op.Hash)
		}
	}
	return nil
}

// checkVerified: all nodes run the restored data, with an etcd leader, at least the staged revision, and the right members.
func checkVerified(o *Observation) error {
	op := o.Store.Operation
	for _, f := range op.Nodes {
		n := o.Node(cluster.NodeID(f.Name))
		if n == nil || n.State == nil || n.State.Token != op.Token || !n.Etcd.Healthy || n.Etcd.Revision < op.Revision || len(n.Etcd.Members) != len(op.Nodes) {
			return fmt.Errorf("node %s doesn't run the restored data as it should", f.Name)
		}
	}
	return nil
}

// checkFinish: failed means that nothing was stopped; done that clients were let in; rolled back that the old data are back.
func checkFinish(o *Observation, a FinishRestore) error {
	switch a.To {
	case OpFailed:
		if a.Reason == "" {
			return fmt.Errorf("restore %s would fail without a reason", a.Op.ID)
		}
		return checkOp(o, a.Op, OpProving, OpStaging, OpSaving)
	case OpDone:
		for _, n := range o.Nodes {
			if n.State != nil && n.State.Token == a.Op.Token && n.State.Quarantined {
				return fmt.Errorf("node %s is still quarantined", n.ID)
			}
		}
		return checkOp(o, a.Op, OpLifting)
	case OpRolledBack:
		for _, n := range o.Nodes {
			if n.Holding || n.State != nil && n.State.Token == a.Op.Token {
				return fmt.Errorf("node %s doesn't have the old data back", n.ID)
			}
		}
		return checkOp(o, a.Op, OpReverting)
	}
	return fmt.Errorf("restore %s can't end as %s", a.Op.ID, a.To)
}
