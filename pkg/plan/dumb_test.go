package plan

import (
	"errors"
	"fmt"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// dumb says what is wrong with an action. It is the third writing of the same invariants, after Next and Check, and uses nothing of
// theirs: long-winded loops over the observation, one predicate after the other.
func dumb(o *Observation, a Action, p Policy) error {
	if a == nil {
		return nil
	}
	lasting := false // can't be taken back
	switch a.(type) {
	case CreateMarker, ReplaceMarker, StartAll, MarkFormed, BeginRestore, ProveBackup, StageBackup, SafetyBackup, StopAll, SwitchAll, RollbackAll, Advance, FinishRestore, FailCommand:
		lasting = true
	}
	switch {
	case lasting && o.Store.Error != "":
		return errors.New("the store is away")
	case lasting && !o.Store.Holder.Mine:
		return errors.New("another leader may hold the term")
	case lasting && !o.Store.Fences && !p.AllowUnfenced:
		return errors.New("the store lies")
	}
	op := o.Store.Operation
	underWay := op != nil && op.State != OpDone && op.State != OpFailed && op.State != OpRolledBack
	states := map[cluster.Token]int{}
	broken := map[cluster.NodeID]bool{}
	for _, n := range o.Nodes {
		if n.State != nil {
			states[n.State.Token]++
		}
		if n.StateError != "" {
			broken[n.ID] = true
		}
	}
	switch a := a.(type) {
	case CreateMarker:
		if o.Store.Marker.Phase != MarkerAbsent || len(states) > 0 || len(broken) > 0 || len(o.Store.Commands) > 0 || underWay {
			return errors.New("a second cluster, or one instead of a restore")
		}
		if len(o.Store.CommandErrors) > 0 || len(o.Store.FailedRestores) > 0 {
			return errors.New("an empty cluster instead of a restore")
		}
		if o.Store.Spec == nil || 2*len(a.Founders) <= o.Store.Spec.MemberCount {
			return errors.New("founded by a minority")
		}
	case ReplaceMarker:
		here, open := 0, false
		for _, f := range o.Store.Marker.Founders {
			for _, n := range o.Nodes {
				if string(n.ID) == f.Name {
					here++
				}
			}
		}
		for _, n := range o.Nodes {
			open = open || n.State != nil && !n.State.Quarantined
		}
		if o.Store.Marker.Phase != MarkerForming || 2*here > len(o.Store.Marker.Founders) || open {
			return errors.New("starts over though the first cluster can go on or has served")
		}
	case StartAll:
		for _, s := range a.Starts {
			for _, n := range o.Nodes {
				if n.ID == s.Node && (n.State != nil || n.StateError != "" || n.DataPresent) {
					return errors.New("founds on data")
				}
			}
			if o.Store.Marker.Phase != MarkerForming || s.State.Token != o.Store.Marker.Token || !s.State.Quarantined || !s.State.NewCluster {
				return errors.New("founds without the marker's word")
			}
		}
	case StartEtcd:
		return dumbStart(o, a, underWay)
	case MarkFormed:
		well := 0
		for _, n := range o.Nodes {
			if n.State != nil && n.State.Token == a.Token && n.Etcd.Healthy {
				well++
			}
		}
		if a.Create && (o.Store.Marker.Phase != MarkerAbsent || well == 0 || underWay) {
			return errors.New("makes a marker for nothing, or in the place of another")
		}
		if !a.Create && (o.Store.Marker.Phase != MarkerForming || o.Store.Marker.Token != a.Token || 2*well <= len(o.Store.Marker.Founders)) {
			return errors.New("formed without a majority of the founders")
		}
	case AddLearner, Promote, RemoveMember, UpdateMember:
		return dumbMembers(o, a, underWay)
	case SetAside:
		return dumbAside(o, a, underWay)
	case TakeBackup, SafetyBackup:
		for _, n := range o.Nodes {
			var id cluster.NodeID
			if b, ok := a.(TakeBackup); ok {
				id = b.Node
			}
			if b, ok := a.(SafetyBackup); ok {
				id = b.Node
			}
			if n.ID == id && !n.Etcd.Healthy {
				return errors.New("a backup of what isn't healthy")
			}
		}
	case BeginRestore:
		for _, n := range o.Nodes {
			if n.Etcd.Revision > a.Op.RevisionBefore || o.Store.HighestRevision > a.Op.RevisionBefore {
				return errors.New("the revision will go back")
			}
		}
		if underWay || len(o.Store.Commands) == 0 || states[a.Op.Token] > 0 {
			return errors.New("a restore beside another, or of nothing, or into data that are there")
		}
	case RollbackAll:
		for _, n := range o.Nodes {
			if n.State != nil && n.State.Token == a.Op.Token && !n.State.Quarantined {
				return errors.New("rolls back what clients have written to")
			}
		}
		ended := false
		for _, x := range o.Store.RolledBack {
			ended = ended || x.Token == a.Op.Token && !underWay
		}
		if !ended && (op == nil || op.Token != a.Op.Token || op.State != OpReverting) {
			return errors.New("rolls back what nobody gave up")
		}
	case ProveBackup, StageBackup, StopAll, SwitchAll, Advance, FinishRestore:
		if !underWay {
			return errors.New("no restore is under way")
		}
		return dumbRestore(o, a)
	}
	return nil
}

func dumbStart(o *Observation, a StartEtcd, underWay bool) error {
	var n *cluster.NodeStatus
	open := false // clients are in
	for i := range o.Nodes {
		x := &o.Nodes[i]
		if x.ID == a.Node {
			n = x
		}
		open = open || x.State != nil && x.State.Token == a.State.Token && !x.State.Quarantined
	}
	switch {
	case n == nil || n.StateError != "":
		return errors.New("no node, or one that can't be read")
	case n.State != nil && n.State.Token != a.State.Token:
		return errors.New("changes the node's cluster")
	case n.State != nil && n.DataPresent && a.MayBeEmpty:
		return errors.New("may overwrite data")
	case n.Holding && (o.Store.Error != "" || underWay && (o.Store.Operation.State != OpLifting || o.Store.Operation.Token != a.State.Token)):
		return errors.New("starts what a restore has stopped")
	case n.Holding && !underWay && o.Store.Marker.Token != "" && o.Store.Marker.Token != a.State.Token:
		return errors.New("starts what a restore has replaced")
	case n.State == nil && a.State.NewCluster:
		return errors.New("founds on its own")
	case a.Restart && n.Etcd.Running && !n.Etcd.Quarantined && !n.State.Quarantined:
		return errors.New("restarts what serves, for nothing")
	}
	if n.State == nil {
		for _, x := range o.Nodes {
			for _, m := range x.Etcd.Members {
				for _, u := range m.PeerURLs {
					if x.Etcd.Healthy && x.State.Token == a.State.Token && m.Name == "" && u == n.Self.PeerURLs[0] {
						return nil
					}
				}
			}
		}
		return errors.New("joins a cluster that doesn't expect it")
	}
	if n.State.Quarantined && !a.State.Quarantined && !open {
		formed := o.Store.Error == "" && !underWay && o.Store.Marker.Phase == MarkerFormed && (o.Store.Marker.Token == a.State.Token || o.Store.Marker.Token == "")
		verified := o.Store.Error == "" && underWay && o.Store.Operation.State == OpLifting && o.Store.Operation.Token == a.State.Token
		if !formed && !verified {
			return errors.New("lets clients into what isn't formed or verified")
		}
	}
	return nil
}

func dumbMembers(o *Observation, a Action, underWay bool) error {
	if underWay && o.Store.Error == "" {
		return errors.New("changes members in the middle of a restore")
	}
	serving := map[cluster.Token]bool{}
	well := map[cluster.MemberID]bool{}
	for _, n := range o.Nodes {
		if n.State == nil || !n.Etcd.Healthy {
			continue
		}
		well[n.Etcd.MemberID] = true
		if !n.Etcd.Quarantined {
			serving[n.State.Token] = true
		}
	}
	if len(serving) != 1 {
		return fmt.Errorf("%d clusters serve", len(serving))
	}
	for _, n := range o.Nodes {
		if n.State == nil || !n.Etcd.Healthy || !serving[n.State.Token] {
			continue
		}
		// by what any healthy member believes, a majority is well before and after
		voters, healthy, after, healthyAfter, learners := 0, 0, 0, 0, 0
		for _, m := range n.Etcd.Members {
			gone, grows := false, false
			if r, ok := a.(RemoveMember); ok {
				gone = r.Member == m.ID
			}
			if r, ok := a.(Promote); ok {
				grows = r.Member == m.ID
			}
			if m.Learner {
				learners++
			}
			if !m.Learner {
				voters++
				if well[m.ID] {
					healthy++
				}
			}
			if (!m.Learner || grows) && !gone {
				after++
				if well[m.ID] {
					healthyAfter++
				}
			}
		}
		if 2*healthy <= voters || 2*healthyAfter <= after {
			return fmt.Errorf("%d of %d before, %d of %d after", healthy, voters, healthyAfter, after)
		}
		if _, ok := a.(AddLearner); ok && learners > 0 {
			return errors.New("two changes at once")
		}
	}
	if r, ok := a.(RemoveMember); ok {
		for _, m := range o.Missing {
			if m.Foreign && string(m.ID) == r.Name {
				return errors.New("removes what runs under other software")
			}
		}
	}
	if r, ok := a.(AddLearner); ok {
		for _, n := range o.Nodes {
			if n.ID == r.Node && (n.State != nil || n.StateError != "") {
				return errors.New("adds a node that has data")
			}
		}
	}
	return nil
}

func dumbAside(o *Observation, a SetAside, underWay bool) error {
	var n *cluster.NodeStatus
	served := false
	for i := range o.Nodes {
		x := &o.Nodes[i]
		if x.ID == a.Node {
			n = x
		}
		served = served || x.State != nil && x.Etcd.Healthy && !x.State.Quarantined && x.ID != a.Node &&
			(x.State.Token == a.Token || o.Store.Error == "" && o.Store.Marker.Token == x.State.Token)
	}
	switch {
	case n == nil || n.State == nil || n.StateError != "":
		return errors.New("sets aside what isn't known")
	case n.State.NewCluster && n.State.Quarantined && o.Store.Error == "" && o.Store.Marker.Phase == MarkerForming && o.Store.Marker.Token != a.Token && !underWay:
		return nil // an attempt that was given up
	case n.Etcd.Healthy && !n.Etcd.Learner:
		return errors.New("sets a healthy member aside")
	case !served:
		return errors.New("sets aside what may be the only data")
	case underWay && o.Store.Error == "":
		return errors.New("sets aside in the middle of a restore")
	}
	return nil
}

func dumbRestore(o *Observation, a Action) error {
	op := o.Store.Operation
	staged, switched, running, held := 0, 0, 0, 0
	for _, n := range o.Nodes {
		if n.State != nil && n.State.Token != op.Token && n.Etcd.Running {
			running++ // the old one
		}
		if n.Holding {
			held++
		}
		for _, f := range op.Nodes {
			if f.Name != string(n.ID) {
				continue
			}
			if n.State != nil && n.State.Token == op.Token {
				switched++
				continue
			}
			for _, s := range n.Staged {
				if s.Hash == op.Hash && s.Revision == op.Revision && s.Token == op.Token {
					staged++
				}
			}
		}
	}
	complete := staged+switched == len(op.Nodes)
	switch a := a.(type) {
	case StopAll:
		for _, id := range a.Nodes {
			for _, n := range o.Nodes {
				if n.ID == id && n.State != nil && n.State.Token == op.Token {
					return errors.New("stops the restored cluster")
				}
			}
		}
		if op.State != OpLifting && !complete || op.State == OpProving || op.State == OpStaging || op.State == OpSaving || op.State == OpReverting {
			return errors.New("stops before all is staged")
		}
	case SwitchAll:
		if !complete || running > 0 || op.State != OpSwitching {
			return errors.New("switches before all is stopped")
		}
	case Advance:
		switch {
		case a.To == OpStopping && !complete:
			return errors.New("goes on to stop before all is staged")
		case a.To == OpStopping && op.RevisionBefore >= op.Revision:
			return errors.New("the revision goes back")
		case a.To == OpLifting && switched != len(op.Nodes):
			return errors.New("lifts before all have switched")
		case a.To == OpReverting && (op.State == OpLifting || op.State == OpSaving):
			return errors.New("takes back what clients have written to, or what was never begun")
		}
	case FinishRestore:
		switch {
		case a.To == OpFailed && op.State != OpProving && op.State != OpStaging && op.State != OpSaving:
			return errors.New("fails after the stop, with no way back")
		case a.To == OpDone && op.State != OpLifting:
			return errors.New("done before it was verified")
		case a.To == OpRolledBack && (op.State != OpReverting || held > 0 || switched > 0):
			return errors.New("rolled back and not all have the old data")
		}
	}
	return nil
}
