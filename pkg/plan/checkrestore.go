package plan

import (
	"fmt"
	"slices"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// checkCounted: until a restore has stopped anything it counts on the members, and on the data dirs, that there were when it began.
func checkCounted(o *Observation, a Action) error {
	op := unfinished(o)
	if op == nil || op.State != OpSalvaging && op.State != OpProving && op.State != OpStaging && op.State != OpSaving {
		return nil
	}
	start, ok := a.(StartEtcd)
	switch a.(type) {
	case AddLearner, Promote, UpdateMember, RemoveMember, SetAside:
	default:
		if !ok || !start.MayBeEmpty {
			return nil
		}
	}
	return fmt.Errorf("restore %s counts on the members and data dirs that there are", op.ID)
}

// checkOp: the step belongs to the restore that is recorded, in the state in which it is recorded.
func checkOp(o *Observation, op Operation, states ...OperationState) error {
	rec := o.Store.Operation
	if rec == nil || rec.ID != op.ID || rec.Token != op.Token || !slices.Contains(states, rec.State) {
		return fmt.Errorf("no restore %s in state %v is recorded", op.ID, states)
	}
	return nil
}

// checkUnwatched: without the store a commit may go on if every node that takes part in it, and every member of the old cluster that
// anyone knows of, answers this leader.
func checkUnwatched(o *Observation, a Action) error {
	rec := o.Store.Operation
	allowed := false
	inCommit := map[OperationState]bool{OpStopping: true, OpSwitching: true, OpVerifying: true, OpReverting: true}
	switch a := a.(type) {
	case StopAll, SwitchAll, HaltAll, RollbackAll:
		allowed = true
	case Advance:
		allowed = inCommit[a.To]
	}
	if rec == nil || !allowed || !inCommit[rec.State] {
		return fmt.Errorf("%s without the store: no one could be fenced off", a)
	}
	return checkHeard(o, a, "without the store")
}

// checkUnfenced: in a store that doesn't fence, or of which that isn't known yet, nothing is done but to end a commit that is under way.
func checkUnfenced(o *Observation, a Action) error {
	why := "on a store that ignores conditional puts"
	if o.Store.Fences {
		why = "before it is known whether the store fences"
	} else if len(o.Store.Apart) > 0 {
		why = fmt.Sprintf("on a store that doesn't fence off node %s", o.Store.Apart[0].Node)
	}
	switch a.(type) {
	case StopAll, SwitchAll, HaltAll, RollbackAll, Advance, FinishRestore:
	default:
		return fmt.Errorf("%s %s", a, why)
	}
	rec := o.Store.Operation
	if rec == nil || rec.State != OpStopping && rec.State != OpSwitching && rec.State != OpVerifying && rec.State != OpReverting {
		return fmt.Errorf("%s %s", a, why)
	}
	return checkHeard(o, a, why)
}

// checkHeard: every node that takes part in the operation, and every member of the old cluster that anyone knows of, answers this leader.
func checkHeard(o *Observation, a Action, without string) error {
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
func wentBack(o *Observation) string {
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

// checkBegin: one restore at a time and none beside a backup, for a command that is queued, with a data dir of its own.
func checkBegin(o *Observation, a BeginRestore) error {
	if unfinished(o) != nil {
		return fmt.Errorf("restore %s is under way", o.Store.Operation.ID)
	}
	i := slices.IndexFunc(o.Store.Commands, func(c Command) bool { return c.Name == a.Command })
	if i < 0 {
		return fmt.Errorf("command %s isn't queued", a.Command)
	}
	c := o.Store.Commands[i]
	first, backup := OpProving, c.Backup
	switch {
	case c.Backup != "":
	case a.Op.Source.Token == "" && c.Source.OrBackup != "":
		backup = c.Source.OrBackup
	default:
		first = OpSalvaging
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
func checkSalvaged(o *Observation, src Source) error {
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
func checkSalvage(o *Observation, a SalvageData) error {
	if err := checkOp(o, a.Op, OpSalvaging); err != nil {
		return err
	}
	rec := o.Store.Operation
	if rec.Backup != "" || a.Node != rec.Source.Node {
		return fmt.Errorf("restore %s has backup %q, or is not of data on node %s", rec.ID, rec.Backup, a.Node)
	}
	return checkSalvaged(o, rec.Source)
}

// has: the node has the staged data, or has switched to them.
func has(n *cluster.NodeStatus, op *Operation) bool {
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

// ready: at least so many nodes of the new cluster answer and have the staged data, or have switched to them.
func ready(o *Observation, least int) error {
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
		return fmt.Errorf("node %s doesn't answer or has not staged revision %d with hash %d; %d of %d have", missing, op.Revision, op.Hash, count, len(op.Nodes))
	}
	return nil
}

// lives: the restored cluster has a quorum, as one of its voters says; with a name, that of the node.
func lives(o *Observation, name string) bool {
	for _, n := range o.Nodes {
		if n.State != nil && n.State.Token == o.Store.Operation.Token && ofQuorum(n) && (name == "" || name == string(n.ID)) {
			return true
		}
	}
	return false
}

// unseen: by the state file of any node of the old cluster, could those that were not heard for a while still be a quorum of it?
// If a node here is healthy, they are. If nobody here has the old cluster but there was one, anyone who is silent may have it.
func unseen(o *Observation, p Policy) error {
	mark := o.Store.Marker
	other := mark.Phase != MarkerAbsent && mark.Token != "" && mark.Token != o.Store.Operation.OldToken
	if op := o.Store.Operation; op.State == OpSaving && (other || op.OldToken == "" && mark.Phase != MarkerAbsent) {
		for _, m := range o.Missing {
			if m.For < p.HolderLease {
				return fmt.Errorf("node %s may have the cluster that was created before, and be serving", m.ID)
			}
		}
	}
	told := o.Store.Operation.OldToken == ""
	for _, n := range o.Nodes {
		told = told || n.State != nil && (n.State.Token == o.Store.Operation.OldToken || n.State.Token == o.Store.Operation.Token)
		if n.State == nil || n.State.Token != o.Store.Operation.OldToken {
			continue
		}
		silent := 0
		for _, m := range n.State.Nodes {
			if o.Node(cluster.NodeID(m.Name)) != nil {
				continue
			}
			if quiet(o, m.Name) < p.HolderLease || n.Etcd.Healthy && !n.Etcd.Learner {
				silent++
			}
		}
		if silent > 0 && silent >= len(n.State.Nodes)/2+1 {
			return fmt.Errorf("%d of %d members of the old cluster are out of reach and may be serving", silent, len(n.State.Nodes))
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

// checkStop: nothing that runs is stopped for something that isn't proven and staged, on every node of the new cluster that answers as long
// as none has switched, and always on a quorum of them.
func checkStop(o *Observation, a StopAll) error {
	if err := checkOp(o, a.Op, OpStopping, OpSwitching, OpVerifying); err != nil {
		return err
	}
	for _, id := range a.Nodes {
		if n := o.Node(id); n != nil && n.State != nil && n.State.Token == a.Op.Token {
			return fmt.Errorf("node %s has the restored data already", id)
		}
	}
	op := o.Store.Operation
	if op.State == OpVerifying {
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
		least = max(least, len(op.Nodes)/2+1)
	}
	return ready(o, least)
}

// checkSwitch: the old cluster is stopped, wherever it may be a quorum, before any node starts the new one.
func checkSwitch(o *Observation, a SwitchAll, p Policy) error {
	if err := checkOp(o, a.Op, OpSwitching, OpVerifying); err != nil {
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
	if op.State == OpSwitching {
		if err := ready(o, len(op.Nodes)/2+1); err != nil {
			return err
		}
	}
	return unseen(o, p)
}

// checkAdvance: each state is only reached when what it stands on is there.
func checkAdvance(o *Observation, a Advance, p Policy) error {
	before := map[OperationState][]OperationState{
		OpProving: {OpSalvaging}, OpStaging: {OpProving}, OpSaving: {OpStaging}, OpStopping: {OpSaving}, OpSwitching: {OpStopping, OpReverting},
		OpVerifying: {OpSwitching}, OpReverting: {OpStopping, OpSwitching, OpVerifying, OpReverting},
	}
	if err := checkOp(o, a.Op, before[a.To]...); err != nil {
		return err
	}
	op := o.Store.Operation
	if a.Op.Written != op.Written && (op.State != OpReverting || a.To != OpSwitching) || a.Op.Unwritten != op.Unwritten && a.To != OpReverting {
		return fmt.Errorf("whether clients have written isn't known in state %s", op.State)
	}
	if a.Op.Backup != op.Backup && (op.State != OpSalvaging || op.Backup != "" || a.Op.Backup != op.Source.OrBackup) {
		return fmt.Errorf("restore %s is of backup %q, not of %q", op.ID, op.Backup, a.Op.Backup)
	}
	switch a.To {
	case OpProving:
		if a.Op.Backup == "" {
			return fmt.Errorf("restore %s has no backup yet", op.ID)
		}
	case OpStaging:
		for _, f := range op.Nodes {
			if !slices.Contains(op.Proven, cluster.NodeID(f.Name)) {
				return fmt.Errorf("node %s has not proven the backup", f.Name)
			}
		}
	case OpSaving:
		return checkStaged(o, a.Op)
	case OpStopping:
		return checkFirstStop(o, p)
	case OpSwitching:
		if op.State == OpReverting {
			return checkForward(o, a)
		}
		for _, n := range o.Nodes {
			if n.State != nil && n.State.Token != op.Token && n.Etcd.Running {
				return fmt.Errorf("node %s still runs an etcd of before", n.ID)
			}
		}
		if err := ready(o, len(op.Nodes)/2+1); err != nil {
			return err
		}
		return unseen(o, p)
	case OpVerifying:
		switched := 0
		for _, n := range o.Nodes {
			if n.State != nil && n.State.Token == op.Token {
				switched++
			}
		}
		if switched < len(op.Nodes)/2+1 && !lives(o, "") {
			return fmt.Errorf("%d of %d nodes have switched", switched, len(op.Nodes))
		}
	case OpReverting:
		return checkBack(o, a, p)
	}
	return nil
}

// checkFirstStop: before the first etcd is stopped all is staged, on every node, and nobody out of sight serves.
func checkFirstStop(o *Observation, p Policy) error {
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
func checkForward(o *Observation, a Advance) error {
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
func checkBack(o *Observation, a Advance, p Policy) error {
	op := o.Store.Operation
	switch {
	case op.Written:
		return fmt.Errorf("clients have written to the restored data")
	case o.Store.Marker.Token == op.Token && len(op.Verified) > 0 && op.State != OpReverting:
		return fmt.Errorf("the store's marker names the restored cluster")
	}
	unknown, away, asTold := "", 0, op.State == OpStopping
	for _, n := range o.Nodes {
		if n.State == nil || n.State.Token != op.Token {
			continue
		}
		if lives(o, string(n.ID)) && op.State != OpReverting && !spoiled(o) {
			return fmt.Errorf("the restored cluster serves, as node %s says", n.ID)
		}
		asTold = false
		if i := slices.IndexFunc(n.Staged, func(s cluster.StagedDir) bool { return s.Operation == op.ID }); i < 0 || !n.Staged[i].Halted || n.Staged[i].Written {
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
	case away >= len(op.Nodes)/2+1:
		return fmt.Errorf("%d of %d nodes can't be asked and may have served clients from the restored data", away, len(op.Nodes))
	case a.Op.Unwritten && unknown != "":
		return fmt.Errorf("node %s isn't halted, or has a client's write", unknown)
	}
	return nil
}

// spoiled: a member of the restored cluster shows other data than were staged, or two of them have come up each on its own.
func spoiled(o *Observation) bool {
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

// quiet is how long a node hasn't been heard.
func quiet(o *Observation, name string) (d time.Duration) {
	d = o.SettledFor
	for _, x := range o.Missing {
		if string(x.ID) == name {
			d = x.For
			if x.Foreign {
				d = 0
			}
		}
	}
	return d
}

// checkHalt: only what is being taken back is halted.
func checkHalt(o *Observation, a HaltAll) error {
	if err := checkOp(o, a.Op, OpReverting); err != nil {
		return err
	}
	if o.Store.Operation.Written {
		return fmt.Errorf("clients have written to the restored data")
	}
	return nil
}

// checkRollback: what was given up is recorded as given up, and no client's write is in it.
func checkRollback(o *Observation, a RollbackAll) error {
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
	if err := checkOp(o, a.Op, OpReverting); err != nil {
		return err
	}
	if rec := o.Store.Operation; !rec.Unwritten || rec.Written {
		return fmt.Errorf("it isn't known whether clients have written to the restored data")
	}
	return nil
}

// checkStaged: all nodes have staged the same, and it is what the record will say.
func checkStaged(o *Observation, op Operation) error {
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

// checkFinish: failed means that nothing was stopped; done that it serves, or that another restore follows on what can't be taken
// back; rolled back that the old data are back.
func checkFinish(o *Observation, a FinishRestore) error {
	rec := o.Store.Operation
	switch a.To {
	case OpFailed:
		if a.Reason == "" {
			return fmt.Errorf("restore %s would fail without a reason", a.Op.ID)
		}
		return checkOp(o, a.Op, OpSalvaging, OpProving, OpStaging, OpSaving)
	case OpDone:
		if rec != nil && (rec.Written || rec.Token == o.Store.Marker.Token && len(rec.Verified) > 0) && slices.ContainsFunc(o.Store.Commands, func(c Command) bool { return c.Ready && c.Name != rec.ID }) {
			return checkOp(o, a.Op, OpSwitching, OpVerifying)
		}
		if err := checkOp(o, a.Op, OpVerifying); err != nil {
			return err
		}
		if !lives(o, "") {
			return fmt.Errorf("the restored cluster doesn't serve")
		}
		return nil
	case OpRolledBack:
		if err := checkOp(o, a.Op, OpReverting); err != nil {
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
