package safety

import (
	"fmt"
	"slices"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// checkHeard: every node that takes part in the operation, and every member of the old cluster that anyone knows of, answers this leader.
func checkHeard(o *model.Observation, a model.Action, without string) error {
	rec := o.Store.Operation
	knows := map[string]bool{}
	for _, n := range o.Nodes {
		knows[string(n.ID)] = n.Operation == rec.ID || n.State != nil && n.State.Token == rec.Token
		for _, s := range n.Staged {
			if s.Operation == rec.ID && s.Token == rec.Token {
				knows[string(n.ID)] = true
			}
		}
	}
	asked := namesIn(rec.Nodes)
	for _, n := range o.Nodes {
		if n.State == nil || n.State.Token != rec.OldToken {
			continue
		}
		asked = append(asked, namesIn(n.State.Nodes)...)
		for _, m := range n.Etcd.Members {
			if m.Name != "" {
				asked = append(asked, m.Name)
			}
		}
	}
	for _, name := range asked {
		if !knows[name] {
			return fmt.Errorf("%s %s: node %s doesn't answer, or knows nothing of it", a, without, name)
		}
	}
	return nil
}

// wentBack: a node that was held for the restore has its old data again.
func wentBack(o *model.Observation) string {
	rec := o.Store.Operation
	for _, n := range o.Nodes {
		if n.ID == rec.Source.Node && !slices.Contains(namesIn(rec.Nodes), string(n.ID)) {
			continue // it may only have given its data
		}
		has := n.Holding || n.State != nil && n.State.Token == rec.Token
		for _, s := range n.Staged {
			has = has || s.Operation == rec.ID
		}
		if n.Operation == rec.ID && !has {
			return string(n.ID)
		}
	}
	return ""
}

// ready: at least so many nodes of the new cluster answer and have the staged data, or have switched to them.
func ready(o *model.Observation, least int) error {
	op := o.Store.Operation
	count, missing := 0, ""
	for _, f := range op.Nodes {
		if has(o.Node(cluster.NodeID(f.Name)), op) {
			count++
		} else if missing == "" {
			missing = f.Name
		}
	}
	for _, n := range o.Nodes {
		stranger := !slices.ContainsFunc(op.Nodes, func(f cluster.EtcdNode) bool { return f.Name == string(n.ID) })
		if stranger && n.State != nil && n.State.Token == op.Token {
			count++ // it took the place of one of them
		}
	}
	if count < least && !op.Written && !lives(o, "") {
		return fmt.Errorf("node %s doesn't answer or has not staged revision %d with hash %d; %d of %d have", missing,
			op.Revision, op.Hash, count, len(op.Nodes))
	}
	return nil
}

// lives: the restored cluster has a quorum, as one of its voters says; with a name, that of the node.
func lives(o *model.Observation, name string) bool {
	for _, n := range o.Nodes {
		if n.State != nil && n.State.Token == o.Store.Operation.Token && ofQuorum(n) && (name == "" || name == string(n.ID)) {
			return true
		}
	}
	return false
}

// unseen: by the state file of any node of the old cluster, could those that were not heard for a while still be a quorum of it?
// If a node here is healthy, they are. If nobody here has the old cluster but there was one, anyone who is silent may have it.
func unseen(o *model.Observation, p model.Policy) error {
	mark := o.Store.Marker
	other := mark.Phase != model.MarkerAbsent && mark.Token != "" && mark.Token != o.Store.Operation.OldToken
	if op := o.Store.Operation; op.State == model.OpSaving && (other || op.OldToken == "" && mark.Phase != model.MarkerAbsent) {
		for _, m := range o.Missing {
			if m.For < p.HolderLease {
				return fmt.Errorf("node %s may have the cluster that was created before, and be serving", m.ID)
			}
		}
	}
	told, alone := o.Store.Operation.OldToken == "", mayBeAlone(o)
	for _, n := range o.Nodes {
		told = told || n.State != nil && (n.State.Token == o.Store.Operation.OldToken || n.State.Token == o.Store.Operation.Token)
		if n.State == nil || n.State.Token != o.Store.Operation.OldToken {
			continue
		}
		silent, lately, outdated := 0, "", false
		for _, m := range n.State.Nodes {
			if x := o.Node(cluster.NodeID(m.Name)); x != nil {
				op := o.Store.Operation
				outdated = outdated || x.State == nil || x.State.Token != op.OldToken && x.State.Token != op.Token
				continue
			}
			if quiet(o, m.Name) < p.HolderLease {
				lately = m.Name
			}
			if quiet(o, m.Name) < p.HolderLease || n.Etcd.Healthy && !n.Etcd.Learner {
				silent++
			}
		}
		if silent > 0 && silent >= cluster.Quorum(len(n.State.Nodes)) {
			return fmt.Errorf("%d of %d members of the old cluster are out of reach and may be serving", silent, len(n.State.Nodes))
		}
		if alone && outdated && lately != "" {
			return fmt.Errorf("node %s is out of reach and may be serving alone: what node %s knows of the old cluster's members is of before",
				lately, n.ID)
		}
	}
	if told {
		return nil
	}
	suspects := namesIn(o.Store.Operation.Nodes)
	for _, m := range o.Missing {
		suspects = append(suspects, string(m.ID))
	}
	for _, name := range suspects {
		if o.Node(cluster.NodeID(name)) == nil && quiet(o, name) < p.HolderLease {
			return fmt.Errorf("nobody here knows the members of the old cluster; node %s may be one, and be serving", name)
		}
	}
	return nil
}

// mayBeAlone: nobody here is in a quorum of the old cluster, and nobody has the new one's data, so that a member elsewhere may be all
// there is.
func mayBeAlone(o *model.Observation) bool {
	op := o.Store.Operation
	return !slices.ContainsFunc(o.Nodes, func(n cluster.NodeStatus) bool {
		return n.State != nil && (n.State.Token == op.Token || n.State.Token == op.OldToken && ofQuorum(n))
	})
}

// checkStop: nothing that runs is stopped for something that isn't proven and staged, on every node of the new cluster that answers as long
// as none has switched, and always on a quorum of them.
func checkStop(o *model.Observation, a model.StopAll) error {
	if err := checkOp(o, a.Op, model.OpStopping, model.OpSwitching, model.OpVerifying); err != nil {
		return err
	}
	for _, id := range a.Nodes {
		if n := o.Node(id); n != nil && n.State != nil && n.State.Token == a.Op.Token {
			return fmt.Errorf("node %s has the restored data already", id)
		}
	}
	op := o.Store.Operation
	if op.State == model.OpVerifying {
		return nil // a quorum runs on the restored data, seen or not
	}
	least := len(op.Nodes)/2 + 1
	if !slices.ContainsFunc(o.Nodes, func(n cluster.NodeStatus) bool { return n.State != nil && n.State.Token == op.Token }) {
		least = 0
		for _, f := range op.Nodes {
			if o.Node(cluster.NodeID(f.Name)) != nil {
				least++
			}
		}
		least = max(least, cluster.Quorum(len(op.Nodes)))
	}
	return ready(o, least)
}

// checkSwitch: the old cluster is stopped, wherever it may be a quorum, before any node starts the new one.
func checkSwitch(o *model.Observation, a model.SwitchAll, p model.Policy) error {
	if err := checkOp(o, a.Op, model.OpSwitching, model.OpVerifying); err != nil {
		return err
	}
	for _, n := range o.Nodes {
		if (n.State == nil || n.State.Token != a.Op.Token) && n.Etcd.Running {
			return fmt.Errorf("node %s still runs an etcd of before", n.ID)
		}
	}
	op := o.Store.Operation
	if id := wentBack(o); id != "" && !op.Written {
		return fmt.Errorf("node %s has its old data back already", id)
	}
	for _, s := range a.Starts {
		switch {
		case s.State.Token != op.Token || s.State.Quarantined || s.State.NewCluster:
			return fmt.Errorf("node %s would not start on the restored data, open to clients", s.Node)
		case !has(o.Node(s.Node), op):
			return fmt.Errorf("node %s has not staged revision %d with hash %d", s.Node, op.Revision, op.Hash)
		case !slices.ContainsFunc(op.Nodes, func(f cluster.EtcdNode) bool { return f.Name == string(s.Node) }):
			return fmt.Errorf("node %s is no member of the new cluster", s.Node)
		}
	}
	if op.State == model.OpSwitching {
		if err := ready(o, cluster.Quorum(len(op.Nodes))); err != nil {
			return err
		}
	}
	return unseen(o, p)
}

// checkFirstStop: before the first etcd is stopped all is staged, on every node, and nobody out of sight serves.
func checkFirstStop(o *model.Observation, p model.Policy) error {
	op := o.Store.Operation
	for _, n := range o.Nodes {
		if n.State != nil && n.State.Token != op.Token && n.Etcd.Revision >= op.Revision {
			return fmt.Errorf("the revision would go back from %d to %d", n.Etcd.Revision, op.Revision)
		}
	}
	if err := ready(o, len(op.Nodes)); err != nil {
		return err
	}
	return unseen(o, p)
}

// checkForward: a restore that was to be taken back only goes on because of a client's write.
func checkForward(o *model.Observation, a model.Advance) error {
	for _, n := range o.Nodes {
		if n.State == nil || n.State.Token != a.Op.Token || o.Store.Operation.Unwritten || !a.Op.Written || wentBack(o) != "" {
			continue
		}
		i := slices.IndexFunc(n.Staged, func(s cluster.StagedDir) bool { return s.Operation == a.Op.ID })
		if i < 0 || n.Staged[i].Halted && n.Staged[i].Written {
			return nil // one that has none was taken in by a cluster that lives
		}
	}
	return fmt.Errorf("nothing says that clients have written to the restored data")
}

// checkBack: what serves isn't taken back, nor what clients may have written to. Whether they have is only known when all who could
// tell are halted.
func checkBack(o *model.Observation, a model.Advance, p model.Policy) error {
	op := o.Store.Operation
	switch {
	case op.Written:
		return fmt.Errorf("clients have written to the restored data")
	case o.Store.Marker.Token == op.Token && len(op.Verified) > 0 && op.State != model.OpReverting:
		return fmt.Errorf("the store's marker names the restored cluster")
	}
	unknown, away, asTold := "", 0, op.State == model.OpStopping
	for _, n := range o.Nodes {
		if n.State == nil || n.State.Token != op.Token {
			continue
		}
		if lives(o, string(n.ID)) && op.State != model.OpReverting && !spoiled(o) {
			return fmt.Errorf("the restored cluster serves, as node %s says", n.ID)
		}
		asTold = false
		if i := slices.IndexFunc(n.Staged, func(s cluster.StagedDir) bool { return s.Operation == op.ID }); i < 0 ||
			!n.Staged[i].Halted || n.Staged[i].Written {
			unknown = string(n.ID)
		}
	}
	for _, c := range o.Store.Commands {
		asTold = asTold || c.Ready && c.Name != op.ID // the operator wants something else
	}
	for _, f := range op.Nodes {
		n := o.Node(cluster.NodeID(f.Name))
		switch {
		case n == nil && (!asTold || quiet(o, f.Name) < p.HolderLease):
			away++
		case n != nil && !asTold && !has(n, op) && (n.State == nil || n.State.Token != op.OldToken):
			away++ // a disk that may have had anything
		}
	}
	switch {
	case wentBack(o) != "":
		return nil // that was only done because nothing could be lost by it
	case away >= cluster.Quorum(len(op.Nodes)):
		return fmt.Errorf("%d of %d nodes can't be asked and may have served clients from the restored data", away, len(op.Nodes))
	case a.Op.Unwritten && unknown != "":
		return fmt.Errorf("node %s isn't halted, or has a client's write", unknown)
	}
	return nil
}

// spoiled: a member of the restored cluster shows other data than were staged, or two of them have come up each on its own.
func spoiled(o *model.Observation) bool {
	op := o.Store.Operation
	for _, f := range op.Nodes {
		n := o.Node(cluster.NodeID(f.Name))
		if n == nil || !lives(o, f.Name) {
			continue
		}
		if n.Etcd.Revision < op.Revision {
			return true
		}
		for _, g := range op.Nodes {
			x := o.Node(cluster.NodeID(g.Name))
			if x == nil || !lives(o, g.Name) || n.Etcd.Members == nil || x.Etcd.Members == nil {
				continue
			}
			known := false
			for _, m := range n.Etcd.Members {
				known = known || m.ID == x.Etcd.MemberID
			}
			for _, m := range x.Etcd.Members {
				known = known || m.ID == n.Etcd.MemberID
			}
			if !known {
				return true
			}
		}
	}
	return false // what serves is as it should be
}

// checkHalt: only what is being taken back is halted.
func checkHalt(o *model.Observation, a model.HaltAll) error {
	if err := checkOp(o, a.Op, model.OpReverting); err != nil {
		return err
	}
	if o.Store.Operation.Written {
		return fmt.Errorf("clients have written to the restored data")
	}
	return nil
}

// checkRollback: what was given up is recorded as given up, and no client's write is in it.
func checkRollback(o *model.Observation, a model.RollbackAll) error {
	for _, id := range a.Nodes {
		n := o.Node(id)
		if n != nil && slices.ContainsFunc(n.Staged, func(s cluster.StagedDir) bool { return s.Operation == a.Op.ID && s.Written }) {
			return fmt.Errorf("node %s has a client's write on the restored data", id)
		}
	}
	for _, op := range o.Store.RolledBack {
		if op.ID != a.Op.ID || op.Token != a.Op.Token || unfinished(o) != nil {
			continue
		}
		if len(a.Nodes) > len(op.Nodes)/2 {
			return fmt.Errorf("%d nodes were enough to serve clients with the restored data", len(a.Nodes))
		}
		return nil
	}
	if err := checkOp(o, a.Op, model.OpReverting); err != nil {
		return err
	}
	if rec := o.Store.Operation; !rec.Unwritten || rec.Written {
		return fmt.Errorf("it isn't known whether clients have written to the restored data")
	}
	return nil
}
