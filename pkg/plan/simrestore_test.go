package plan

import (
	"fmt"
	"slices"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// simRestore is what the world knows of a restore: what is to be found in it once clients are served from it.
type simRestore struct {
	op     string
	writes map[int]bool
	over   bool // it was taken back, or failed: nobody may ever be served from it
}

// simRecord is a leader's memory of the restore under way, for when the store is away.
type simRecord struct {
	op      *model.Operation
	since   time.Duration
	unsaved bool // the store doesn't have it
}

// knowsOp fills in the restore under way, as the leader knows it: from the store, from its memory, or from the nodes' journals.
func (s *sim) knowsOp(l *simLeader) {
	o, st := l.o, &s.store
	if l.readStore {
		if l.mem.op != nil && (l.seenOp == nil || l.seenOp.ID != l.mem.op.ID || !l.mem.unsaved) {
			l.mem = simRecord{}
		}
		l.op = l.seenVer
		switch {
		case l.mem.op == nil && l.seenOp != nil:
			l.mem = simRecord{op: l.seenOp, since: l.seenSince}
		// what could only be remembered is written now
		case l.mem.op != nil && st.leaderInst == l.inst() && st.opVer == l.seenVer && s.storeUp(l.node):
			st.op, st.opSince = l.mem.op, l.mem.since
			st.opVer++
			l.op, l.mem.unsaved = st.opVer, false
			s.did["record written late"]++
		}
	} else if l.mem.op == nil {
		s.recall(l)
	}
	if l.mem.op == nil {
		return
	}
	op := *l.mem.op
	op.StateFor = s.now - l.mem.since
	op.Proven, op.Verified = slices.Clone(op.Proven), slices.Clone(op.Verified)
	op.Withdrawn = o.Store.Error == "" && !slices.ContainsFunc(o.Store.Commands, func(c model.Command) bool { return c.Name == op.ID })
	o.Store.Operation = &op
}

// recall takes the record from the journals of the nodes that answered.
func (s *sim) recall(l *simLeader) {
	held := false
	for _, x := range l.o.Nodes {
		held = held || x.Holding
	}
	for _, x := range l.o.Nodes {
		j := s.node(x.ID).journal
		if held && j.is(x.Operation, "stopped", "switched", "halted") && j.record != nil &&
			(l.mem.op == nil || j.op > l.mem.op.ID || j.op == l.mem.op.ID && opOrder[j.record.State] > opOrder[l.mem.op.State]) {
			l.mem = simRecord{op: j.record, since: s.now, unsaved: true}
		}
	}
	if l.mem.op != nil {
		s.did["record from the journals"]++
		s.log("%s recalls restore %s in state %s", l.node.id, l.mem.op.ID, l.mem.op.State)
	}
}

var opOrder = map[model.OperationState]int{model.OpStopping: 1, model.OpSwitching: 2, model.OpVerifying: 3, model.OpReverting: 4}

// swapOp changes the record if it is still the one that was read. In a commit the leader goes on with what it remembers if the store
// doesn't answer.
func (s *sim) swapOp(l *simLeader, change func(op *model.Operation)) bool {
	st := &s.store
	if l.mem.op == nil {
		return false
	}
	op := *l.mem.op
	op.Proven, op.Verified = slices.Clone(op.Proven), slices.Clone(op.Verified)
	before := op.State
	change(&op)
	since := l.mem.since
	if op.State != before {
		since = s.now
	}
	switch {
	case s.storeUp(l.node) && !l.mem.unsaved:
		if st.opVer != l.op || st.op == nil {
			return false
		}
		st.op, st.opSince = &op, since
		st.opVer++
		l.op = st.opVer
		l.mem = simRecord{op: &op, since: since}
	case committing(before) && committing(op.State):
		l.mem = simRecord{op: &op, since: since, unsaved: true}
		s.did["advance without the store"]++
	default:
		return false
	}
	if op.State != before {
		s.restoreMoved(before, &op)
	}
	return true
}

// actRestore turns the steps of a restore into requests.
func (s *sim) actRestore(l *simLeader, a model.Action) []func() bool {
	st := &s.store
	each := func(nodes []cluster.NodeID, f func(n *simNode)) []func() bool {
		var steps []func() bool
		for _, i := range s.rng.Perm(len(nodes)) {
			steps = append(steps, func() bool { s.ask(l, nodes[i], f); return true })
		}
		return steps
	}
	starts := func(list []model.StartEtcd) []cluster.NodeID {
		var ids []cluster.NodeID
		for _, x := range list {
			ids = append(ids, x.Node)
		}
		return ids
	}
	switch a := a.(type) {
	case model.BeginRestore:
		return one(func() bool {
			if s.storeUp(l.node) && st.op == nil && st.opVer == l.op {
				op := a.Op
				st.op, st.opSince = &op, s.now
				st.opVer++
				s.restores[op.Token] = &simRestore{op: op.ID}
			}
			return false
		})
	case model.SalvageData:
		return one(func() bool { return s.salvage(l, a) })
	case model.ProveBackup:
		var steps []func() bool
		for _, id := range a.Nodes {
			steps = append(steps, func() bool {
				b, ok := st.backups[a.Op.Backup]
				if n := s.node(id); !l.reaches(n) || !s.storeUp(n) {
					return true
				}
				return s.swapOp(l, func(op *model.Operation) {
					if !ok || b.corrupt {
						op.Reason = "backup can't be proven"
					} else if !slices.Contains(op.Proven, id) {
						op.Proven = append(op.Proven, id)
					}
				})
			})
		}
		return steps
	case model.StageBackup:
		return each(starts(a.Starts), func(n *simNode) { s.stage(n, a.Op) })
	case model.SafetyBackup:
		return one(func() bool {
			if s.takeBackup(l, a.Node) || s.rng.IntN(4) == 0 {
				s.swapOp(l, func(op *model.Operation) { op.SafetyTried = true })
			}
			return false
		})
	case model.StopAll:
		return each(a.Nodes, func(n *simNode) { s.stop(n, a.Op) })
	case model.SwitchAll:
		return each(starts(a.Starts), func(n *simNode) { s.switchNode(n, a.Op) })
	case model.HaltAll:
		return each(a.Nodes, func(n *simNode) { s.halt(n, a.Op.ID) })
	case model.VerifyAll:
		return one(func() bool {
			s.swapOp(l, func(op *model.Operation) { op.Verified = append(op.Verified, a.Nodes...) })
			return false
		})
	case model.RollbackAll:
		return each(a.Nodes, func(n *simNode) { s.rollback(n, a.Op) })
	case model.Advance:
		return one(func() bool {
			return s.swapOp(l, func(op *model.Operation) {
				op.State, op.Revision, op.Hash, op.Reason = a.To, a.Op.Revision, a.Op.Hash, a.Reason
				op.Written, op.Unwritten, op.Backup = a.Op.Written, a.Op.Unwritten, a.Op.Backup
			})
		})
	case model.FinishRestore:
		return s.finish(l, a)
	}
	panic("no such action")
}

// finish writes marker, command and record, one after the other, and has the nodes forget what they needed to go back.
func (s *sim) finish(l *simLeader, a model.FinishRestore) []func() bool {
	st := &s.store
	steps := []func() bool{
		func() bool {
			if a.To != model.OpDone {
				return true
			}
			if !s.storeUp(l.node) || st.markerVer != l.marker || st.opVer != l.op {
				return false
			}
			if st.marker.Token != a.Op.Token {
				st.marker = model.Marker{Phase: model.MarkerFormed, Token: a.Op.Token, Founders: a.Op.Nodes, Version: a.Op.Version}
				st.markerVer++
				l.marker = st.markerVer
			}
			return true
		},
		func() bool {
			if !s.storeUp(l.node) || st.opVer != l.op {
				return false
			}
			s.endCommand(a.Op.ID, a.Reason, a.To != model.OpDone)
			return true
		},
		func() bool {
			if !s.swapOp(l, func(op *model.Operation) { op.State = a.To }) {
				return false
			}
			switch a.To {
			case model.OpRolledBack:
				st.rolledBack = append(st.rolledBack, *st.op)
				s.restores[a.Op.Token].over = true
			case model.OpFailed:
				s.restores[a.Op.Token].over = true
			case model.OpDone:
				s.bargain = s.bargain || a.Op.State != model.OpVerifying || a.Op.Written
				st.highest = max(st.highest, a.Op.Revision)
			}
			st.op, l.mem = nil, simRecord{}
			return true
		},
	}
	for _, n := range s.nodes {
		steps = append(steps, func() bool { s.ask(l, n.id, func(n *simNode) { s.discard(n, a.Op.ID) }); return true })
	}
	return steps
}

// salvage makes a backup of a data dir.
func (s *sim) salvage(l *simLeader, a model.SalvageData) bool {
	n := s.node(a.Node)
	if !l.reaches(n) || !s.storeUp(n) {
		return false
	}
	d := n.trash[a.Op.Source.Token]
	if n.state != nil && n.state.Token == a.Op.Source.Token {
		d = n.dir()
		if g := s.groupOf(n); g != nil && g.quorum && findMember(g.members, n.dir().member) != nil && s.rng.IntN(2) == 0 {
			return false // it has come back in the meantime, and the node says so
		}
	}
	if !s.enter(n, a.Op.ID) {
		return false
	}
	name := fmt.Sprintf("S%d", s.count())
	return s.swapOp(l, func(op *model.Operation) {
		if d == nil {
			op.Reason = "the data dir is gone"
			return
		}
		s.store.backups[name] = simBackup{log: slices.Clone(d.log), rev: d.revision(), at: s.now}
		s.store.highest = max(s.store.highest, d.revision())
		op.Backup = name
		s.did["salvaged"]++
	})
}

// enter gives the journal's entry of a restore; what is left of an earlier one is cleared away, unless etcd is held for it.
func (s *sim) enter(n *simNode, op string) bool {
	if j := n.journal; j != nil && j.op != op {
		if j.phase == "stopped" || j.phase == "halted" {
			return false
		}
		s.discard(n, j.op)
	}
	if n.journal == nil {
		n.journal = &simJournal{op: op}
	}
	return true
}

func (s *sim) stage(n *simNode, op model.Operation) {
	b, ok := s.store.backups[op.Backup]
	if !ok || !s.storeUp(n) || !s.enter(n, op.ID) || n.journal.phase != "" {
		return
	}
	j := n.journal
	j.phase, j.token, j.rev, j.hash, j.log = "staged", op.Token, max(b.rev, op.RevisionBefore)+bump, simHash(b.log), nil
	for _, e := range b.log {
		if e.members == nil {
			j.log = append(j.log, e)
		}
	}
	s.restores[op.Token].writes = (&simDir{log: j.log}).writes()
	if !s.faults {
		return
	}
	switch s.rng.IntN(60) {
	case 0: // a bad disk
		j.hash++
	case 1, 2: // nobody noticed
		j.wrong = true
	}
	if _, known := s.sick[op.Token]; !known { // some don't come up, and some of those do later
		s.sick[op.Token], s.eager[op.Token] = 0, s.rng.IntN(4) == 0
		if s.rng.IntN(3) == 0 {
			s.sick[op.Token] = s.now + time.Duration(s.rng.IntN(600))*time.Second
		}
	}
}

// stop holds etcd. A node that has switched is further than that.
func (s *sim) stop(n *simNode, op model.Operation) {
	s.stopped(n, op)
	if !s.enter(n, op.ID) {
		return
	}
	j := n.journal
	if j.phase == "switched" || j.phase == "halted" {
		return
	}
	if j.phase != "stopped" {
		j.old = n.state.Clone()
	}
	j.phase, j.record = "stopped", &op
	n.running, n.waits = false, false
}

// switchNode makes the staged data current; the old data dir stays where it is.
func (s *sim) switchNode(n *simNode, op model.Operation) {
	j := n.journal
	switch {
	case j.is(op.ID, "switched", "halted"):
		if !n.running {
			j.phase, j.written = "switched", false
			s.launch(n, false)
		}
		return
	case j == nil || j.op != op.ID || j.token != op.Token || n.running:
		return
	case j.phase == "staged" && n.state == nil:
		j.old, j.record = nil, &op
	case j.phase != "stopped":
		return
	}
	if n.dirs[op.Token] == nil {
		d := &simDir{member: simMemberID(op.Token, string(n.id), 0),
			log: append(slices.Clone(j.log), simEntry{members: foundingMembers(op.Token, op.Nodes)})}
		d.start = d.count()
		d.base = j.rev - int64(d.start)
		if j.wrong {
			d.base -= 5000
		}
		n.dirs[op.Token] = d
	}
	st := restoredState(&op)
	n.state, j.phase = st.Clone(), "switched"
	s.launch(n, false)
}

// halt stops what was switched, and looks into its log.
func (s *sim) halt(n *simNode, op string) {
	if !n.journal.is(op, "switched") {
		return
	}
	n.running = false
	n.journal.phase, n.journal.written = "halted", n.dir() != nil && n.dir().written()
	if n.journal.written {
		s.did["halted with a write"]++
	}
}

// rollback brings the old data back, unless clients have written to the new ones.
func (s *sim) rollback(n *simNode, op model.Operation) {
	s.halt(n, op.ID)
	j := n.journal
	if !j.is(op.ID, "stopped", "halted") || j.written {
		return
	}
	n.state, j.phase = j.old.Clone(), "reverted"
	if n.running, n.wellAt = false, s.now; n.state != nil {
		s.launch(n, n.state.Quarantined)
	}
}

// discard ends the journal's entry: after a success the old data go into the trash can, else the staged ones go.
func (s *sim) discard(n *simNode, op string) {
	j := n.journal
	if j == nil || j.op != op || j.phase == "stopped" || j.phase == "halted" {
		return
	}
	current := n.state != nil && n.state.Token == j.token
	if j.phase == "switched" && j.old != nil && n.state.Token != j.old.Token {
		n.toTrash(j.old.Token)
	} else if !current {
		delete(n.dirs, j.token)
	}
	n.journal = nil
}

func (n *simNode) toTrash(t cluster.Token) {
	if d := n.dirs[t]; d != nil {
		n.trash[t] = d
	}
	delete(n.dirs, t)
}

// stopped asserts that nothing is stopped for something that isn't staged on all nodes, nor for a restore that is over.
func (s *sim) stopped(n *simNode, op model.Operation) {
	if !n.serving() {
		return
	}
	if s.restores[op.Token].over {
		s.fail("%s is stopped for restore %s, which is over", n.id, op.ID)
	}
	for _, f := range op.Nodes {
		x := s.node(cluster.NodeID(f.Name))
		has := x.journal.is(op.ID, "staged", "stopped", "switched", "halted") || x.state != nil && x.state.Token == op.Token
		if !has && op.State == model.OpStopping && !s.wipedSince(x.id, 10*time.Minute) {
			s.fail("%s is stopped though %s has nothing staged", n.id, x.id)
		}
	}
}

// restoreMoved follows the record.
func (s *sim) restoreMoved(before model.OperationState, op *model.Operation) {
	s.log("restore %s: %s -> %s %s", op.ID, before, op.State, op.Reason)
	s.did["restore "+string(op.State)]++
	if before == model.OpReverting && op.State == model.OpSwitching {
		s.did["restore goes on after a write"]++
	}
}

// served is the moment in which a restored cluster takes its first write: from now on its data are the ones that count.
func (s *sim) served(g *group) {
	r := s.restores[g.token]
	if r == nil || r.over {
		s.fail("cluster %s takes a write, but %s is the cluster", g.token, s.legit)
		return
	}
	s.log("clients write to the data of restore %s", r.op)
	s.did["restore served"]++
	if old := s.restores[s.legit]; old != nil {
		old.over = true
	}
	s.past[s.legit] = true
	s.legit = g.token
	s.acked = map[int]bool{}
	for w := range r.writes {
		s.acked[w] = true
	}
}
