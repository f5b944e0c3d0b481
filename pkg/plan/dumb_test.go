package plan

import (
	"errors"
	"fmt"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// dumbOver looks at forming that starts over.
func dumbOver(o *model.Observation) error {
	here, begun, well, open := 0, 0, 0, false
	for _, f := range o.Store.Marker.Founders {
		for _, n := range o.Nodes {
			if string(n.ID) != f.Name {
				continue
			}
			here++
			if n.State != nil || n.StateError != "" {
				begun++
			}
			if n.State != nil && n.State.Token == o.Store.Marker.Token && n.Etcd.Healthy {
				well++
			}
		}
	}
	for _, n := range o.Nodes {
		open = open || n.State != nil && !n.State.Quarantined
	}
	all := len(o.Store.Marker.Founders)
	goesOn := 2*well > all || begun == here && 2*here > all || begun == 0 && here == all
	if o.Store.Marker.Phase != model.MarkerForming || goesOn || open {
		return errors.New("starts over though the first cluster can go on or has served")
	}
	return nil
}

// dumb says what is wrong with an action. It is the third writing of the same invariants, after Next and Check, and uses nothing of
// theirs: long-winded loops over the observation, one predicate after the other.
func dumb(o *model.Observation, a model.Action, p model.Policy) error {
	if a == nil {
		return nil
	}
	lasting := false // can't be taken back
	switch a.(type) {
	case model.CreateMarker, model.ReplaceMarker, model.StartAll, model.MarkFormed, model.BeginRestore,
		model.SalvageData, model.ProveBackup, model.StageBackup, model.SafetyBackup, model.StopAll, model.SwitchAll,
		model.HaltAll, model.RollbackAll, model.Advance, model.FinishRestore, model.FailCommand,
		model.RestartMember, model.StopMember, model.ReleaseVolume, model.EnableDowngrade, model.CancelDowngrade,
		model.Compact, model.Defragment, model.Disarm, model.PutBack,
		model.EndWrites, model.StopSuperseded, model.ReportStopped:
		lasting = true
	}
	away := o.Store.Error != ""
	switch {
	case lasting && away:
		if err := dumbAlone(o, a); err != nil {
			return err
		}
	case lasting && !o.Store.Holder.Mine:
		return errors.New("another leader may hold the term")
	case lasting && (!o.Store.Fences || o.Store.Unsure != "") && !p.AllowUnfenced:
		if _, ends := a.(model.FinishRestore); ends {
			break // what has been switched and verified is only written down
		}
		if err := dumbAlone(o, a); err != nil {
			return fmt.Errorf("the store lies: %w", err)
		}
	}
	op := o.Store.Operation
	underWay := op != nil && op.State != model.OpDone && op.State != model.OpFailed && op.State != model.OpRolledBack
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
	if err := dumbSuperseded(o, a); err != nil {
		return err
	}
	switch a := a.(type) {
	case model.CreateMarker:
		if o.Store.Marker.Phase != model.MarkerAbsent || len(states) > 0 || len(broken) > 0 || len(o.Store.Commands) > 0 || underWay {
			return errors.New("a second cluster, or one instead of a restore")
		}
		if len(o.Store.CommandErrors) > 0 || len(o.Store.FailedRestores) > 0 {
			return errors.New("an empty cluster instead of a restore")
		}
		if o.Store.Spec == nil || 2*len(a.Founders) <= o.Store.Spec.MemberCount {
			return errors.New("founded by a minority")
		}
	case model.ReplaceMarker:
		return dumbOver(o)
	case model.StartAll:
		for _, f := range o.Store.Marker.Founders {
			blank := false
			for _, n := range o.Nodes {
				blank = blank || string(n.ID) == f.Name && n.State == nil && n.StateError == "" && !n.DataPresent
			}
			if !blank {
				return errors.New("founds beside one who may have heard of what a founder has lost")
			}
		}
		for _, s := range a.Starts {
			if o.Store.Marker.Phase != model.MarkerForming || s.State.Token != o.Store.Marker.Token ||
				!s.State.Quarantined || !s.State.NewCluster {
				return errors.New("founds without the marker's word")
			}
		}
	case model.StartEtcd:
		return dumbStart(o, a, underWay)
	case model.MarkFormed:
		well := 0
		for _, n := range o.Nodes {
			if n.State != nil && n.State.Token == a.Token && n.Etcd.Healthy && !n.Etcd.Learner {
				well++
			}
		}
		if a.Create && (o.Store.Marker.Phase != model.MarkerAbsent || well == 0 || underWay) {
			return errors.New("makes a marker for nothing, or in the place of another")
		}
		if !a.Create && (o.Store.Marker.Phase != model.MarkerForming || o.Store.Marker.Token != a.Token ||
			2*well <= len(o.Store.Marker.Founders)) {
			return errors.New("formed without a majority of the founders")
		}
	case model.AddLearner, model.Promote, model.RemoveMember, model.UpdateMember:
		return dumbMembers(o, a, underWay)
	case model.RestartMember, model.StopMember, model.ReleaseVolume, model.EnableDowngrade, model.CancelDowngrade,
		model.Compact, model.Defragment, model.Disarm:
		if underWay {
			early := op.State == model.OpSalvaging || op.State == model.OpProving || op.State == model.OpStaging
			_, history := a.(model.Compact)
			_, alarm := a.(model.Disarm)
			if !early || !history && !alarm || states[op.OldToken] == 0 {
				return errors.New("tends members in the middle of a restore")
			}
		}
		return dumbTend(o, a)
	case model.SetAside:
		return dumbAside(o, a, underWay)
	case model.TakeBackup, model.SafetyBackup:
		for _, n := range o.Nodes {
			var id cluster.NodeID
			if b, ok := a.(model.TakeBackup); ok {
				id = b.Node
			}
			if b, ok := a.(model.SafetyBackup); ok {
				id = b.Node
			}
			if n.ID == id && (!n.Etcd.Healthy || n.Etcd.Learner) {
				return errors.New("a backup of what isn't healthy")
			}
		}
	case model.PutBack:
		if underWay || len(o.Store.Commands) > 0 {
			return errors.New("writes keys into data that are about to be replaced")
		}
		queued, healthy := false, false
		for _, p := range o.Store.PutBacks {
			queued = queued || p.Name == a.Command
		}
		for _, n := range o.Nodes {
			healthy = healthy || n.ID == a.Node && n.Etcd.Healthy && !n.Etcd.Learner && n.State != nil && !n.State.Quarantined
		}
		if !queued || !healthy {
			return errors.New("writes keys that nobody asked for, or through no healthy member")
		}
	case model.BeginRestore:
		for _, n := range o.Nodes {
			if n.Etcd.Revision > a.Op.RevisionBefore || o.Store.HighestRevision > a.Op.RevisionBefore {
				return errors.New("the revision will go back")
			}
		}
		if underWay || len(o.Store.Commands) == 0 || states[a.Op.Token] > 0 {
			return errors.New("a restore beside another, or of nothing, or into data that are there")
		}
		if (a.Op.Backup == "") != (a.Op.State == model.OpSalvaging) || (a.Op.Backup == "") != (a.Op.Source.Node != "") {
			return errors.New("a restore of neither a backup nor a data dir")
		}
		for _, c := range o.Store.Commands {
			if c.Name == a.Command && a.Op.Backup != c.Backup && (c.Backup != "" || a.Op.Backup != c.Source.OrBackup) {
				return errors.New("a restore of what wasn't asked for")
			}
		}
		return dumbSource(o, a.Op.Source)
	case model.SalvageData:
		if !underWay || op.State != model.OpSalvaging || op.Backup != "" || a.Node != op.Source.Node {
			return errors.New("salvages what the record doesn't name, or twice")
		}
		return dumbSource(o, op.Source)
	case model.RollbackAll:
		for _, id := range a.Nodes {
			for _, n := range o.Nodes {
				for _, s := range n.Staged {
					if n.ID == id && s.Operation == a.Op.ID && s.Written {
						return errors.New("rolls back what clients have written to")
					}
				}
			}
		}
		for _, x := range o.Store.RolledBack {
			if x.Token == a.Op.Token && !underWay && 2*len(a.Nodes) <= len(x.Nodes) {
				return nil
			}
		}
		if op == nil || op.Token != a.Op.Token || op.State != model.OpReverting || !op.Unwritten || op.Written {
			return errors.New("rolls back what nobody gave up, or what clients may have written to")
		}
	case model.ProveBackup, model.StageBackup, model.StopAll, model.SwitchAll, model.HaltAll, model.VerifyAll,
		model.Advance, model.FinishRestore:
		if !underWay {
			return errors.New("no restore is under way")
		}
		return dumbRestore(o, a)
	}
	return nil
}

// dumbAlone says why something lasting must not be done without the store.
func dumbAlone(o *model.Observation, a model.Action) error {
	op := o.Store.Operation
	switch x := a.(type) {
	case model.StopAll, model.SwitchAll, model.HaltAll, model.RollbackAll:
	case model.Advance:
		if x.To == model.OpStaging || x.To == model.OpSaving || x.To == model.OpStopping || x.To == model.OpProving {
			return errors.New("begins a commit without the store")
		}
	default:
		return errors.New("the store is away")
	}
	if op == nil || op.State != model.OpStopping && op.State != model.OpSwitching && op.State != model.OpVerifying &&
		op.State != model.OpReverting {
		return errors.New("the store is away and no commit is under way")
	}
	var names []string
	for _, f := range op.Nodes {
		names = append(names, f.Name)
	}
	for _, n := range o.Nodes {
		if n.State == nil || n.State.Token != op.OldToken {
			continue
		}
		for _, f := range n.State.Nodes {
			names = append(names, f.Name)
		}
		for _, m := range n.Etcd.Members {
			if m.Name != "" {
				names = append(names, m.Name)
			}
		}
	}
	for _, name := range names {
		here := false
		for _, n := range o.Nodes {
			trace := n.Operation == op.ID || len(n.Staged) > 0 && n.Staged[0].Operation == op.ID || n.State != nil &&
				n.State.Token == op.Token
			here = here || string(n.ID) == name && trace
		}
		if !here {
			return fmt.Errorf("the store is away, and %s can't be asked", name)
		}
	}
	return nil
}

// dumbSource says why nothing must be salvaged from there.
func dumbSource(o *model.Observation, src model.Source) error {
	if src.Node == "" {
		return nil
	}
	for _, n := range o.Nodes {
		if n.ID != src.Node {
			continue
		}
		if n.State != nil && n.State.Token == src.Token && n.DataPresent {
			for _, x := range o.Nodes {
				if x.State != nil && x.State.Token == src.Token && x.Etcd.Healthy && !x.Etcd.Learner {
					return errors.New("salvages from a cluster that has a quorum")
				}
			}
			return nil
		}
		for _, t := range n.Trash {
			if t.Token == src.Token {
				return nil
			}
		}
	}
	return errors.New("salvages what isn't there")
}

func dumbStart(o *model.Observation, a model.StartEtcd, underWay bool) error {
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
	case n.Holding && (o.Store.Error != "" || underWay):
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
					if x.Etcd.Healthy && !x.Etcd.Learner && x.State.Token == a.State.Token && m.Name == "" && u == n.Self.PeerURLs[0] {
						return nil
					}
				}
			}
		}
		return errors.New("joins a cluster that doesn't expect it")
	}
	if n.State.Quarantined && !a.State.Quarantined && !open {
		formed := o.Store.Error == "" && !underWay && o.Store.Marker.Phase == model.MarkerFormed &&
			(o.Store.Marker.Token == a.State.Token || o.Store.Marker.Token == "")
		if !formed {
			return errors.New("lets clients into what isn't formed or verified")
		}
	}
	return nil
}

func dumbMembers(o *model.Observation, a model.Action, underWay bool) error {
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
		if !n.Etcd.Quarantined && !n.Etcd.Learner {
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
			if r, ok := a.(model.RemoveMember); ok {
				gone = r.Member == m.ID
			}
			if r, ok := a.(model.Promote); ok {
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
		if _, ok := a.(model.AddLearner); ok && learners > 0 {
			return errors.New("two changes at once")
		}
	}
	if r, ok := a.(model.RemoveMember); ok {
		for _, m := range o.Missing {
			if m.Foreign && string(m.ID) == r.Name {
				return errors.New("removes what runs under other software")
			}
		}
	}
	if r, ok := a.(model.AddLearner); ok {
		for _, n := range o.Nodes {
			if n.ID == r.Node && (n.State != nil || n.StateError != "") {
				return errors.New("adds a node that has data")
			}
		}
	}
	return nil
}

func dumbAside(o *model.Observation, a model.SetAside, underWay bool) error {
	var n *cluster.NodeStatus
	served := false
	for i := range o.Nodes {
		x := &o.Nodes[i]
		if x.ID == a.Node {
			n = x
		}
		served = served || x.State != nil && x.Etcd.Healthy && !x.Etcd.Learner && !x.State.Quarantined && x.ID != a.Node &&
			(x.State.Token == a.Token || o.Store.Error == "" && o.Store.Marker.Token == x.State.Token)
	}
	switch {
	case n == nil || n.State == nil || n.StateError != "":
		return errors.New("sets aside what isn't known")
	case n.State.NewCluster && n.State.Quarantined && o.Store.Error == "" &&
		o.Store.Marker.Phase == model.MarkerForming && o.Store.Marker.Token != a.Token && !underWay:
		return nil // an attempt that was given up
	case a.NeverServed:
		return errors.New("lets data go that may have served")
	case n.Holding && !n.Etcd.Running && o.Store.Error == "" && !underWay && len(o.Store.Commands) > 0 &&
		o.Store.Marker.Phase == model.MarkerFormed && o.Store.Marker.Token != "" && o.Store.Marker.Token != a.Token:
		return nil // what was stopped for a restore that is over
	case n.Etcd.Healthy && !n.Etcd.Learner:
		return errors.New("sets a healthy member aside")
	case !served:
		return errors.New("sets aside what may be the only data")
	case underWay && o.Store.Error == "":
		return errors.New("sets aside in the middle of a restore")
	}
	return nil
}

func dumbRestore(o *model.Observation, a model.Action) error {
	op := o.Store.Operation
	all := len(op.Nodes)
	staged, switched, oldRuns, away, heldBack, serve, bad, wrote, unasked, back, wiped := 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
	for _, f := range op.Nodes {
		here := false
		for _, n := range o.Nodes {
			here = here || string(n.ID) == f.Name
		}
		if !here {
			away++
		}
	}
	for _, n := range o.Nodes {
		isNew, member := n.State != nil && n.State.Token == op.Token, false
		for _, f := range op.Nodes {
			member = member || f.Name == string(n.ID)
		}
		halted, written, staging := false, false, false
		for _, s := range n.Staged {
			if s.Operation == op.ID && s.Token == op.Token {
				halted, written = s.Halted, s.Written
				staging = s.Hash == op.Hash && s.Revision == op.Revision
			}
		}
		switch {
		case isNew:
			switched++
		case staging && member:
			staged++
		}
		if n.State != nil && !isNew && n.Etcd.Running {
			oldRuns++
		}
		if member && !isNew && !staging && (n.State == nil || n.State.Token != op.OldToken) {
			wiped++
		}
		if n.Operation == op.ID && len(n.Staged) == 0 && !n.Holding && !isNew && (member || op.Source.Node != n.ID) {
			back++
		}
		if (n.Holding && n.Operation == op.ID || isNew) && !written {
			heldBack++
		}
		if isNew && n.Etcd.Healthy && !n.Etcd.Learner && (n.Etcd.LeaderID != 0 || n.Etcd.Denied) {
			serve++
			if member && n.Etcd.Revision < op.Revision {
				bad++
			}
			for _, x := range o.Nodes {
				apart := x.ID != n.ID && x.State != nil && x.State.Token == op.Token && x.Etcd.Healthy && len(x.Etcd.Members) > 0
				for _, m := range n.Etcd.Members {
					apart = apart && m.ID != x.Etcd.MemberID
				}
				for _, m := range x.Etcd.Members {
					apart = apart && m.ID != n.Etcd.MemberID
				}
				if apart {
					bad++
				}
			}
		}
		if isNew && (written || len(n.Staged) == 0) {
			wrote++
		}
		if isNew && !halted {
			unasked++
		}
	}
	next := false
	for _, c := range o.Store.Commands {
		next = next || c.Ready && c.Name != op.ID
	}
	have := staged + switched
	final := op.Written || o.Store.Marker.Token == op.Token && len(op.Verified) > 0
	inCommit := op.State == model.OpStopping || op.State == model.OpSwitching || op.State == model.OpVerifying
	switch a := a.(type) {
	case model.StopAll:
		for _, id := range a.Nodes {
			for _, n := range o.Nodes {
				if n.ID == id && n.State != nil && n.State.Token == op.Token {
					return errors.New("stops the restored cluster")
				}
			}
		}
		if !inCommit || op.State != model.OpVerifying && 2*have <= all && !op.Written && serve == 0 {
			return errors.New("stops before enough is staged")
		}
	case model.SwitchAll:
		if back > 0 && !op.Written {
			return errors.New("switches beside a node that has gone back")
		}
		if oldRuns > 0 || op.State != model.OpSwitching && op.State != model.OpVerifying ||
			op.State == model.OpSwitching && 2*have <= all && !op.Written && serve == 0 {
			return errors.New("switches before the old one is stopped and enough is staged")
		}
		for _, s := range a.Starts {
			if s.State.Quarantined || s.State.Token != op.Token {
				return errors.New("starts something else")
			}
		}
	case model.HaltAll:
		if op.State != model.OpReverting || op.Written || op.Unwritten {
			return errors.New("halts what isn't being taken back, or what was halted before")
		}
	case model.VerifyAll:
		if op.State != model.OpVerifying {
			return errors.New("compares before it is to run")
		}
	case model.Advance:
		switch {
		case a.To == model.OpProving && a.Op.Backup == "":
			return errors.New("proves nothing")
		case a.Op.Backup != op.Backup && (a.To != model.OpProving || a.Op.Backup != op.Source.OrBackup):
			return errors.New("becomes the restore of something else")
		case a.To == model.OpStopping && have < all:
			return errors.New("goes on to stop before all is staged")
		case a.To == model.OpStopping && op.RevisionBefore >= op.Revision:
			return errors.New("the revision goes back")
		case a.To == model.OpSwitching && op.State == model.OpReverting && (wrote == 0 || !a.Op.Written || op.Unwritten):
			return errors.New("goes on though nobody has written")
		case a.To == model.OpSwitching && op.State != model.OpReverting && (oldRuns > 0 || 2*have <= all && !op.Written && serve == 0):
			return errors.New("switches what isn't stopped or not staged")
		case a.To == model.OpVerifying && 2*switched <= all && serve == 0:
			return errors.New("verifies what a minority has")
		case a.To == model.OpReverting && op.State != model.OpReverting && final:
			return errors.New("takes back what the store names as the cluster")
		case a.To == model.OpReverting && (op.Written || !inCommit && op.State != model.OpReverting):
			return errors.New("takes back what clients have written to, or what was never begun")
		case a.To == model.OpReverting && op.State != model.OpReverting && serve > 0 && bad == 0:
			return errors.New("takes back what serves")
		case a.To == model.OpReverting && 2*(away+wiped) > all && !next && back == 0 && (op.State != model.OpStopping || switched > 0):
			return errors.New("takes back what may be serving elsewhere")
		case a.To == model.OpReverting && a.Op.Unwritten && unasked+wrote > 0 && back == 0:
			return errors.New("says that nobody has written, and hasn't asked all or has heard otherwise")
		case a.Op.Unwritten && a.To != model.OpReverting, a.Op.Written && !op.Written && a.To != model.OpSwitching:
			return errors.New("knows whether clients have written from nowhere")
		}
	case model.FinishRestore:
		switch {
		case a.To == model.OpFailed && op.State != model.OpSalvaging && op.State != model.OpProving &&
			op.State != model.OpStaging && op.State != model.OpSaving:
			return errors.New("fails after the stop, with no way back")
		case a.To == model.OpDone && op.State != model.OpVerifying && !(final && next):
			return errors.New("done before it was verified")
		case a.To == model.OpDone && serve == 0 && !(final && next):
			return errors.New("done and it doesn't serve")
		case a.To == model.OpRolledBack && (op.State != model.OpReverting || heldBack > 0 || !op.Unwritten):
			return errors.New("rolled back and not all have the old data")
		}
	}
	return nil
}
