package plan

import (
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	"github.com/etcd-manager/etcd-manager/pkg/plan/safety"
)

// simLeader is one leadership: it observes, decides and acts in steps between which anything can happen.
type simLeader struct {
	node      *simNode
	instance  int
	term      cluster.Term
	started   time.Duration
	seen      map[cluster.NodeID]time.Duration // last answer
	settled   time.Duration
	reach     string
	seenOp    *model.Operation // the record as it was read
	seenVer   int
	seenSince time.Duration
	beat      int
	beatAt    time.Duration
	retryAt   time.Duration
	doneAt    time.Duration
	done      bool

	o         *model.Observation
	readStore bool        // the store answered
	last      model.Store // what it said last
	mem       simRecord
	haveN     bool
	haveS     bool
	marker    int // versions as they were read
	op        int
	decision  Decision
	steps     []func() bool // what is left of the action; false ends it
}

func (l *simLeader) inst() string { return fmt.Sprintf("%s-%d-%d", l.node.id, l.instance, l.term) }

// alive tells whether the process that leads is still there.
func (l *simLeader) alive() bool { return l.node.up && l.node.manager && l.node.instance == l.instance }

// reaches tells whether a leader can talk to a node's daemon.
func (l *simLeader) reaches(n *simNode) bool { return n.up && n.manager && n.side == l.node.side }

func (s *sim) storeUp(n *simNode) bool { return s.store.up && n.store }

var simStart = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func (s *sim) clock(d time.Duration) time.Time { return simStart.Add(d) }

// observeNodes and observeStore each fill in a half of the observation, at moments of their own.
func (s *sim) observeNodes(l *simLeader) {
	o := l.o
	reach := ""
	for _, n := range s.nodes {
		if l.reaches(n) {
			l.seen[n.id] = s.now
			o.Nodes = append(o.Nodes, s.status(n))
			reach += string(n.id) + " "
			continue
		}
		last, ok := l.seen[n.id]
		if !ok {
			last = l.started
		}
		o.Missing = append(o.Missing, model.MissingNode{ID: n.id, For: s.now - last})
	}
	if reach != l.reach {
		l.reach, l.settled = reach, s.now
	}
	o.Now, o.Self, o.Term = s.clock(s.now), l.node.id, l.term
	o.SettledFor = s.now - l.settled
	o.FreshToken = cluster.Token(fmt.Sprintf("T%d", s.count()))
	o.BackupRetryAt = s.clock(l.retryAt)
	if l.done {
		o.BackupDoneAt, o.BackupBegunAt = s.clock(l.doneAt), s.clock(l.doneAt)
	}
	l.haveN = true
}

func (s *sim) observeStore(l *simLeader) {
	st := &s.store
	o := l.o
	l.haveS = true
	o.Store.Fences = true
	l.readStore = s.storeUp(l.node)
	if !l.readStore {
		o.Store = l.last
		o.Store.Error = "unavailable"
		return
	}
	mine := st.leaderInst == l.inst()
	if mine {
		st.leaderBeat++ // the heartbeat goes on while the leader lives
	}
	if st.leaderBeat != l.beat {
		l.beat, l.beatAt = st.leaderBeat, s.now
	}
	o.Store.Holder = model.Holder{Term: st.leaderTerm, Node: st.leaderNode, Mine: mine, UnchangedFor: s.now - l.beatAt}
	o.Store.Marker = st.marker
	spec := s.spec
	o.Store.Spec = &spec
	if !l.node.queued {
		l.node.queued, l.node.queue = true, map[string]bool{}
		for _, c := range st.commands {
			l.node.queue[c.Name] = true
		}
	}
	for _, c := range st.commands {
		c.Ready = l.node.queue[c.Name]
		o.Store.Commands = append(o.Store.Commands, c)
	}
	o.Store.FailedRestores = slices.Clone(st.failed)
	o.Store.RolledBack = slices.Clone(st.rolledBack)
	o.Store.NewestBackupKnown, o.Store.HighestRevision = true, st.highest
	if st.haveBackups {
		o.Store.NewestBackup = s.clock(st.newest)
	}
	l.marker, l.last = st.markerVer, o.Store
	l.seenOp, l.seenVer, l.seenSince = st.op, st.opVer, st.opSince
}

// step lets a leadership do its next small step.
func (s *sim) step(l *simLeader) {
	switch {
	case len(l.steps) > 0:
		f := l.steps[0]
		l.steps = l.steps[1:]
		if !f() {
			l.steps, l.o = nil, nil
		} else if len(l.steps) == 0 {
			l.o = nil
		}
	case l.o == nil:
		l.o, l.haveN, l.haveS = &model.Observation{}, false, false
		s.half(l, s.rng.IntN(2) == 0)
	case !l.haveN || !l.haveS:
		s.half(l, !l.haveN)
		s.knowsOp(l)
		for _, n := range l.o.Nodes {
			if n.Term > l.term && s.rng.IntN(2) == 0 { // it hears of a newer leader, if late
				s.depose(l)
				return
			}
		}
		spec := s.spec
		l.decision = Next(l.o, &spec, s.policy)
		s.log("%s term %d: %v (%s)", l.node.id, l.term, l.decision.Do, l.decision.Why)
		if err := safety.Check(l.o, l.decision.Do, s.policy); err != nil {
			s.fail("Check refuses %s: %v", l.decision.Do, err)
		}
		if err := dumb(l.o, l.decision.Do, s.policy); err != nil {
			s.fail("dumb refuses %s: %v", l.decision.Do, err)
		}
		if l.decision.Do == nil {
			l.o = nil
			return
		}
		s.did[fmt.Sprintf("%T", l.decision.Do)]++
		l.steps = s.act(l, l.decision.Do)
	}
}

func (s *sim) half(l *simLeader, nodes bool) {
	if nodes {
		s.observeNodes(l)
	} else {
		s.observeStore(l)
	}
}

// ask carries out a request on a node if it is reached and hasn't obeyed a higher term.
func (s *sim) ask(l *simLeader, id cluster.NodeID, f func(n *simNode)) bool {
	n := s.node(id)
	if n == nil || !l.reaches(n) || n.term > l.term {
		return false
	}
	n.term = l.term
	f(n)
	return true
}

func one(f func() bool) []func() bool { return []func() bool{f} }

// act turns an action into steps. Every step stands for one request; the leader may die before any of them.
func (s *sim) act(l *simLeader, a model.Action) []func() bool {
	st := &s.store
	swapMarker := func(m model.Marker) func() bool {
		return func() bool {
			if !s.storeUp(l.node) || st.markerVer != l.marker {
				return false
			}
			st.marker = m
			st.markerVer++
			return true
		}
	}
	switch a := a.(type) {
	case model.TakeTerm:
		return one(func() bool {
			switch {
			case !s.storeUp(l.node):
			case st.leaderTerm >= l.term && st.leaderInst != l.inst():
				s.depose(l)
			default:
				st.leaderTerm, st.leaderNode, st.leaderInst = l.term, l.node.id, l.inst()
				st.leaderBeat++
			}
			return false
		})
	case model.CreateMarker:
		return one(swapMarker(model.Marker{Phase: model.MarkerForming, Token: a.Token, Founders: a.Founders, Version: a.Version}))
	case model.ReplaceMarker:
		return one(swapMarker(model.Marker{Phase: model.MarkerForming, Token: a.Token, Founders: a.Founders, Version: a.Version}))
	case model.MarkFormed:
		m := l.o.Store.Marker
		if a.Create {
			m = model.Marker{Token: a.Token, Founders: a.Founders, Version: a.Version}
		}
		m.Phase = model.MarkerFormed
		return one(swapMarker(m))
	case model.StartEtcd:
		return one(func() bool { return s.ask(l, a.Node, func(n *simNode) { s.start(n, a) }) })
	case model.StartAll:
		var steps []func() bool
		for _, x := range a.Starts {
			steps = append(steps, func() bool { s.ask(l, x.Node, func(n *simNode) { s.start(n, x) }); return true })
		}
		return steps
	case model.SetAside:
		return one(func() bool {
			return s.ask(l, a.Node, func(n *simNode) {
				if n.state != nil && n.state.Token == a.Token {
					n.toTrash(a.Token)
					n.state, n.running, n.waits, n.journal = nil, false, false, nil
				}
			})
		})
	case model.TakeBackup:
		return one(func() bool {
			if !s.takeBackup(l, a.Node) {
				l.retryAt = s.now + 30*time.Second
			}
			return false
		})
	case model.RestartMember:
		return one(func() bool {
			return s.ask(l, a.Node, func(n *simNode) {
				if n.state != nil && n.state.Token == a.State.Token && n.dir() != nil && !n.holding() {
					n.state, n.waits = a.State.Clone(), false
					s.launch(n, a.State.Quarantined)
				}
			})
		})
	case model.EnableDowngrade, model.CancelDowngrade:
		return one(func() bool { return s.downgrade(l, a) })
	case model.AddLearner, model.Promote, model.RemoveMember, model.UpdateMember:
		return one(func() bool { return s.changeMembers(l, a) })
	case model.FailCommand:
		return one(func() bool {
			if s.storeUp(l.node) {
				s.endCommand(a.Command, a.Backup+": "+a.Reason, a.SupersededBy == "")
			}
			return false
		})
	}
	return s.actRestore(l, a)
}

// start is the node's part of StartEtcd: it never changes the cluster that a node belongs to.
func (s *sim) start(n *simNode, a model.StartEtcd) {
	if n.state != nil && n.state.Token != a.State.Token {
		return
	}
	d := n.dirs[a.State.Token]
	if d == nil {
		switch {
		case !a.MayBeEmpty:
			return
		case a.State.NewCluster:
			members := foundingMembers(a.State.Token, a.State.Nodes)
			d = &simDir{member: simMemberID(a.State.Token, string(n.id), 0), log: []simEntry{{members: members}}}
		default:
			d = s.joinDir(n, a.State.Token)
			if d == nil {
				return
			}
		}
		n.dirs[a.State.Token] = d
	}
	n.state = a.State.Clone()
	n.waits = false
	if j := n.journal; n.holding() { // the restore is over
		j.phase = "reverted"
		if j.token == a.State.Token {
			j.phase = "switched"
		}
	}
	if !n.running || a.Restart {
		s.launch(n, a.State.Quarantined)
	}
}

// joinDir is the empty data dir of a member that was added for the node; etcd asks its peers which one it is.
func (s *sim) joinDir(n *simNode, token cluster.Token) *simDir {
	for _, g := range s.groups() {
		if g.token != token || g.nodes[0].side != n.side {
			continue
		}
		for _, m := range g.members {
			if m.PeerURLs[0] == etcdNode(string(n.id)).PeerURLs[0] {
				return &simDir{member: m.ID, base: g.head.base}
			}
		}
	}
	return nil
}

func (s *sim) takeBackup(l *simLeader, id cluster.NodeID) bool {
	n := s.node(id)
	if !l.reaches(n) || !s.storeUp(n) || !n.serving() {
		return false
	}
	g := s.groupOf(n)
	m := findMember(g.members, n.dir().member)
	if !g.quorum || m == nil || m.Learner {
		return false
	}
	s.store.backups[fmt.Sprintf("B%d", s.count())] = simBackup{log: slices.Clone(n.dir().log), rev: n.dir().revision(), at: s.now}
	s.store.highest = max(s.store.highest, n.dir().revision())
	s.store.newest, s.store.haveBackups = s.now, true
	l.done, l.doneAt = true, s.now
	return true
}

// changeMembers asks the etcd that the leader saw for another member list; etcd itself refuses what would cost the quorum.
func (s *sim) changeMembers(l *simLeader, a model.Action) bool {
	token := look(sorted(l.o)).token
	for _, g := range s.groups() {
		if g.token != token || g.nodes[0].side != l.node.side || !g.quorum {
			continue
		}
		members := slices.Clone(g.members)
		started := 0
		for _, n := range g.nodes {
			if m := findMember(members, n.dir().member); m != nil && !m.Learner {
				started++
			}
		}
		switch a := a.(type) {
		case model.AddLearner:
			for _, m := range members {
				if m.PeerURLs[0] == a.PeerURLs[0] {
					return false
				}
			}
			members = append(members, cluster.Member{ID: simMemberID(token, string(a.Node), s.count()),
				PeerURLs: a.PeerURLs, Learner: true})
		case model.Promote:
			m := findMember(members, a.Member)
			if m == nil || !m.Learner {
				return false
			}
			m.Learner = false
		case model.RemoveMember:
			m := findMember(members, a.Member)
			if m == nil {
				return false
			}
			left := started
			for _, n := range g.nodes {
				if n.dir().member == a.Member && !m.Learner {
					left--
				}
			}
			voters := voterCount(members)
			if !m.Learner {
				voters--
			}
			if voters == 0 || left < cluster.Quorum(voters) {
				return false // strict reconfiguration check
			}
			members = slices.DeleteFunc(members, func(m cluster.Member) bool { return m.ID == a.Member })
		}
		return s.propose(g, simEntry{members: members})
	}
	return false
}

func (s *sim) endCommand(name, why string, failed bool) {
	before := len(s.store.commands)
	s.store.commands = slices.DeleteFunc(s.store.commands, func(c model.Command) bool { return c.Name == name })
	if failed && len(s.store.commands) < before {
		s.store.failed = append(s.store.failed, name+": "+why)
	}
}

func simHash(log []simEntry) uint32 {
	h := fnv.New32()
	for _, e := range log {
		if e.members == nil {
			fmt.Fprint(h, e.write, " ")
		}
	}
	return h.Sum32()
}
