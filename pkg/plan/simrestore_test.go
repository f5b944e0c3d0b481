package plan

import (
	"slices"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// actRestore turns the steps of a restore into requests.
func (s *sim) actRestore(l *simLeader, a Action) []func() bool {
	st := &s.store
	// swapOp replaces the record if it is still the one that was read.
	swapOp := func(change func(op *Operation)) bool {
		if !s.storeUp(l.node) || st.opVer != l.op || st.op == nil {
			return false
		}
		op := *st.op
		op.Proven = slices.Clone(op.Proven)
		before := op.State
		change(&op)
		if op.State != before {
			st.opSince = s.now
			s.restoreMoved(before, &op)
		}
		st.op = &op
		st.opVer++
		l.op = st.opVer
		return true
	}
	each := func(nodes []cluster.NodeID, f func(n *simNode)) []func() bool {
		var steps []func() bool
		for _, i := range s.rng.Perm(len(nodes)) {
			steps = append(steps, func() bool { s.ask(l, nodes[i], f); return true })
		}
		return steps
	}
	starts := func(list []StartEtcd) []cluster.NodeID {
		var ids []cluster.NodeID
		for _, x := range list {
			ids = append(ids, x.Node)
		}
		return ids
	}
	switch a := a.(type) {
	case BeginRestore:
		return one(func() bool {
			if s.storeUp(l.node) && st.op == nil && st.opVer == l.op {
				op := a.Op
				st.op, st.opSince = &op, s.now
				st.opVer++
			}
			return false
		})
	case ProveBackup:
		var steps []func() bool
		for _, id := range a.Nodes {
			steps = append(steps, func() bool {
				b, ok := st.backups[a.Op.Backup]
				if n := s.node(id); !l.reaches(n) || !s.storeUp(n) {
					return true
				}
				return swapOp(func(op *Operation) {
					if !ok || b.corrupt {
						op.Reason = "backup can't be proven"
					} else if !slices.Contains(op.Proven, id) {
						op.Proven = append(op.Proven, id)
					}
				})
			})
		}
		return steps
	case StageBackup:
		return each(starts(a.Starts), func(n *simNode) { s.stage(n, a.Op) })
	case SafetyBackup:
		return one(func() bool {
			if s.takeBackup(l, a.Node) || s.rng.IntN(4) == 0 {
				swapOp(func(op *Operation) { op.SafetyTried = true })
			}
			return false
		})
	case StopAll:
		return each(a.Nodes, func(n *simNode) {
			s.stopped(n, a.Op)
			n.running, n.holding = false, true
		})
	case SwitchAll:
		return each(starts(a.Starts), func(n *simNode) { s.switchNode(n, a.Op) })
	case RollbackAll:
		return each(a.Nodes, func(n *simNode) {
			if n.state != nil && n.state.Token == a.Op.Token {
				delete(n.dirs, a.Op.Token)
				n.state = n.prev[a.Op.ID]
			}
			n.holding = false
			n.running = n.state != nil
			n.quarantined = n.state != nil && n.state.Quarantined
			n.wellAt = s.now
		})
	case Advance:
		return one(func() bool {
			return swapOp(func(op *Operation) {
				op.State, op.Revision, op.Hash = a.To, a.Op.Revision, a.Op.Hash
				if a.Reason != "" {
					op.Reason = a.Reason
				}
			})
		})
	case FinishRestore:
		return []func() bool{
			func() bool {
				if a.To != OpDone {
					return true
				}
				if !s.storeUp(l.node) || st.markerVer != l.marker || st.opVer != l.op {
					return false
				}
				if st.marker.Token != a.Op.Token {
					st.marker = Marker{Phase: MarkerFormed, Token: a.Op.Token, Founders: a.Op.Nodes, Version: a.Op.Version}
					st.markerVer++
					l.marker = st.markerVer
				}
				return true
			},
			func() bool {
				if !s.storeUp(l.node) || st.opVer != l.op {
					return false
				}
				s.endCommand(a.Op.ID, a.Reason, a.To != OpDone)
				return true
			},
			func() bool {
				if swapOp(func(op *Operation) { op.State = a.To }) {
					if a.To == OpRolledBack {
						st.rolledBack = append(st.rolledBack, *st.op)
					}
					st.op = nil
				}
				return false
			},
		}
	}
	panic("no such action")
}

func (s *sim) stage(n *simNode, op Operation) {
	b, ok := s.store.backups[op.Backup]
	if !ok || !s.storeUp(n) {
		return
	}
	rev := max(b.rev, op.RevisionBefore) + bump
	x := simStaged{dir: cluster.StagedDir{Token: op.Token, Revision: rev, Hash: simHash(b.log)}, log: slices.Clone(b.log)}
	if s.faults && s.rng.IntN(40) == 0 && len(x.log) > 0 { // a bad disk
		x.dir.Hash++
	}
	n.staged[op.ID] = x
}

// switchNode makes the staged data current; the old data dir stays where it is.
func (s *sim) switchNode(n *simNode, op Operation) {
	if n.state != nil && n.state.Token == op.Token {
		if n.holding {
			n.holding, n.running, n.wellAt = false, true, s.now
		}
		return
	}
	x, ok := n.staged[op.ID]
	if !ok {
		return
	}
	n.prev[op.ID] = n.state
	st := op.state(true)
	var log []simEntry
	for _, e := range x.log {
		if e.members == nil {
			log = append(log, e)
		}
	}
	d := &simDir{member: simMemberID(op.Token, string(n.id), 0), log: append(log, simEntry{members: foundingMembers(op.Token, op.Nodes)})}
	d.base = x.dir.Revision - int64(len(d.writes()))
	n.dirs[op.Token] = d
	n.state = st.Clone()
	delete(n.staged, op.ID)
	n.holding, n.running, n.quarantined, n.wellAt = false, true, true, s.now
}

// stopped asserts that nothing is stopped for something that isn't staged on all nodes.
func (s *sim) stopped(n *simNode, op Operation) {
	if !n.serving() {
		return
	}
	for _, f := range op.Nodes {
		x := s.node(cluster.NodeID(f.Name))
		_, ok := x.staged[op.ID]
		if !ok && (x.state == nil || x.state.Token != op.Token) && !s.wipedSince(x.id, 10*time.Minute) {
			s.fail("%s is stopped though %s has nothing staged", n.id, x.id)
		}
	}
}

// restoreMoved follows the record: from lifting on the restored data are the ones that count.
func (s *sim) restoreMoved(before OperationState, op *Operation) {
	s.log("restore %s: %s -> %s %s", op.ID, before, op.State, op.Reason)
	s.did["restore "+string(op.State)]++
	if op.State == OpLifting {
		s.store.highest = max(s.store.highest, op.Revision)
		s.legit = op.Token
		s.acked = map[int]bool{}
		for _, e := range s.store.backups[op.Backup].log {
			if e.members == nil {
				s.acked[e.write] = true
			}
		}
		s.maxRev = max(s.maxRev, op.Revision)
		if op.Revision < s.maxRev {
			s.fail("a restore rewinds the revision")
		}
	}
}
