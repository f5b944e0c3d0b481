package election

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// A simulation of a whole cluster in real time, with everything that can go wrong on the way: messages that are lost,
// repeated, late and out of order; links that are cut in one direction or both; nodes that crash at any point
// between deciding, persisting and sending; nodes that stand still for a while; clocks that run at different rates.
// Whatever happens, it happens by the seed.

const (
	simTick      = 1000 // a tick of an exact clock, in units of real time
	simHeartbeat = 2
	simLease     = 7
	simElection  = 10
	// simDrift is how far a clock is off, in thousandths. Two of them differ by a factor of at most 1110/890 = 1.247, less
	// than the (10-1)/7 = 1.286 that Config.LeaseTicks states.
	simDrift = 110
)

type simConfig struct {
	seed    uint64
	nodes   int
	wanted  int
	ticks   int  // how long things go wrong, before everything is healed
	drift   int  // thousandths
	rewants bool // the wanted count changes on the way

	// What a broken driver or machine would do; see TestSimulationCatches.
	persistLate   bool
	stepBeforeDue bool // a node that stood still takes messages before the ticks that it owes
	sabotage      func(*Machine, *Message)
	forget        func(*Machine) // after a restart
}

type simNode struct {
	id       cluster.NodeID
	m        *Machine // nil while it is down
	disk     Hard
	life     int   // counts starts
	interval int64 // real time between two ticks
	paused   bool
	owed     int // ticks that were due while it stood still
	queued   []Message
	votes    map[cluster.Term]cluster.NodeID // what others may know of its votes
}

type simEvent struct {
	at  int64
	seq int
	do  func()
}

type simQueue []simEvent

func (q simQueue) Len() int { return len(q) }
func (q simQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q simQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *simQueue) Push(x any)   { *q = append(*q, x.(simEvent)) }
func (q *simQueue) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}

type sim struct {
	cfg   simConfig
	rng   *rand.Rand
	now   int64
	seq   int
	queue simQueue
	nodes []*simNode
	ids   []cluster.NodeID
	cut   map[[2]cluster.NodeID]bool
	loss  int // percent
	dup   int
	delay int64
	calm  bool // no more faults

	leaders map[cluster.Term]cluster.NodeID
	// What control/leader in the object store has.
	storeTerm   cluster.Term
	storeHolder cluster.NodeID

	violation string
	elections int
	trace     []string
}

// strict tells whether two majorities always share a node.
func (s *sim) strict() bool { return s.cfg.nodes <= s.cfg.wanted && !s.cfg.rewants }

func newSim(cfg simConfig) *sim {
	s := &sim{
		cfg: cfg, rng: rand.New(rand.NewPCG(cfg.seed, 7)), cut: map[[2]cluster.NodeID]bool{},
		leaders: map[cluster.Term]cluster.NodeID{}, delay: simTick / 4,
	}
	for i := range cfg.nodes {
		s.ids = append(s.ids, cluster.NodeID(rune('a'+i)))
	}
	for _, id := range s.ids {
		n := &simNode{id: id, votes: map[cluster.Term]cluster.NodeID{}}
		n.interval = simTick + int64(s.rng.IntN(2*cfg.drift+1)-cfg.drift)
		s.nodes = append(s.nodes, n)
		s.after(int64(s.rng.IntN(3*simTick)), func() { s.start(n) })
	}
	return s
}

func (s *sim) fail(format string, args ...any) {
	if s.violation == "" {
		s.violation = fmt.Sprintf("seed %d, time %d.%03d: ", s.cfg.seed, s.now/simTick, s.now%simTick) + fmt.Sprintf(format, args...)
	}
}

func (s *sim) note(format string, args ...any) {
	s.trace = append(s.trace, fmt.Sprintf("%d.%03d ", s.now/simTick, s.now%simTick)+fmt.Sprintf(format, args...))
	if len(s.trace) > 60 {
		s.trace = s.trace[1:]
	}
}

func (s *sim) after(d int64, do func()) {
	s.seq++
	heap.Push(&s.queue, simEvent{at: s.now + d, seq: s.seq, do: do})
}

// until runs the events up to a time, or up to a violation, or until done says so.
func (s *sim) until(end int64, done func() bool) bool {
	for len(s.queue) > 0 && s.queue[0].at <= end && s.violation == "" {
		e := heap.Pop(&s.queue).(simEvent)
		s.now = e.at
		e.do()
		if done != nil && done() {
			return true
		}
	}
	s.now = max(s.now, end)
	return false
}

func (s *sim) start(n *simNode) {
	if n.m != nil {
		return
	}
	m, err := New(Config{
		Self: n.id, WantedMembers: s.cfg.wanted, Peers: s.ids, HeartbeatTicks: simHeartbeat,
		LeaseTicks: simLease, ElectionTicks: simElection, Rand: s.rng.IntN,
	}, n.disk)
	if err != nil {
		s.fail("start %s: %v", n.id, err)
		return
	}
	if s.cfg.forget != nil {
		s.cfg.forget(m)
	}
	n.m = m
	n.life++
	n.paused, n.owed, n.queued = false, 0, nil
	s.note("start %s with %+v", n.id, n.disk)
	life := n.life
	var tick func()
	tick = func() {
		if n.life != life || n.m == nil {
			return
		}
		s.after(n.interval, tick)
		if n.paused {
			n.owed++
			return
		}
		s.input(n, func() { n.m.Tick() })
	}
	s.after(int64(s.rng.IntN(int(n.interval)))+1, tick)
}

func (s *sim) crash(n *simNode) {
	if n.m != nil {
		s.note("crash %s", n.id)
		n.m = nil
		n.life++
	}
}

// input gives the machine one input, does what its Ready says, and checks the invariants.
func (s *sim) input(n *simNode, f func()) {
	before := n.m.State()
	f()
	rd := n.m.Ready()
	after := n.m.State()
	if after.Term < before.Term {
		s.fail("term of %s went from %d back to %d", n.id, before.Term, after.Term)
	}
	if before.Role != after.Role || before.Term != after.Term {
		s.note("%s %s/%d -> %s/%d", n.id, before.Role, before.Term, after.Role, after.Term)
	}
	steps := []func(){func() { s.persist(n, rd) }, func() { s.send(n, rd.Messages) }}
	if s.cfg.persistLate {
		slices.Reverse(steps)
	}
	for _, step := range steps {
		if !s.calm && s.rng.IntN(1000) == 0 {
			s.crash(n)
			s.after(int64(s.rng.IntN(3*simElection*simTick)), func() { s.start(n) })
			return
		}
		step()
	}
	s.check(n, before, after)
}

func (s *sim) persist(n *simNode, rd Ready) {
	if rd.Hard == nil {
		return
	}
	if rd.Hard.Term < n.disk.Term {
		s.fail("%s persists term %d after %d", n.id, rd.Hard.Term, n.disk.Term)
	}
	n.disk = *rd.Hard
}

// send puts messages on the wire, and takes note of the votes that others now know of.
func (s *sim) send(n *simNode, msgs []Message) {
	for _, m := range msgs {
		if m.Kind == MsgVote {
			s.voted(n, m.Term, n.id)
		}
		if m.Kind == MsgVoteResp && !m.Reject {
			s.voted(n, m.Term, m.To)
		}
		if grants := m.Kind == MsgVoteResp && !m.Reject; grants && !s.cfg.persistLate && n.disk != (Hard{Term: m.Term, VotedFor: m.To}) {
			s.fail("%s says %v, but its disk has %+v", n.id, m, n.disk)
		}
		if n.disk.Term < m.Term && m.Kind != MsgPreVote && m.Kind != MsgPreVoteResp && !s.cfg.persistLate {
			s.fail("%s says %v, but its disk has %+v", n.id, m, n.disk)
		}
		copies := 1
		if !s.calm && s.rng.IntN(100) < s.dup {
			copies = 2
		}
		for range copies {
			if s.cut[[2]cluster.NodeID{m.From, m.To}] || !s.calm && s.rng.IntN(100) < s.loss {
				continue
			}
			d := s.rng.Int64N(s.delay + 1)
			if !s.calm && s.rng.IntN(20) == 0 {
				d *= int64(1 + s.rng.IntN(40)) // a straggler
			}
			s.after(d, func() { s.deliver(m) })
		}
	}
}

func (s *sim) voted(n *simNode, term cluster.Term, whom cluster.NodeID) {
	if old, ok := n.votes[term]; ok && old != whom {
		s.fail("%s voted for %s and %s in term %d", n.id, old, whom, term)
	}
	n.votes[term] = whom
}

func (s *sim) deliver(msg Message) {
	n := s.nodes[slices.Index(s.ids, msg.To)]
	if n.m == nil || s.cut[[2]cluster.NodeID{msg.From, msg.To}] {
		return
	}
	if n.paused {
		n.queued = append(n.queued, msg)
		return
	}
	if s.cfg.sabotage != nil {
		s.cfg.sabotage(n.m, &msg)
	}
	s.input(n, func() {
		if err := n.m.Step(msg); err != nil {
			s.fail("%s: %v", n.id, err)
		}
	})
}

// wake lets a node that stood still go on: first the ticks that it owes, all before it acts on anything, then the
// messages that came in the meantime.
func (s *sim) wake(n *simNode) {
	if !n.paused || n.m == nil {
		return
	}
	owed, queued := n.owed, n.queued
	n.owed, n.queued = 0, nil
	if s.cfg.stepBeforeDue {
		n.paused = false
		for _, m := range queued {
			s.deliver(m)
		}
		queued = nil
	}
	n.paused = true
	for range owed {
		if n.m != nil {
			s.input(n, func() { n.m.Tick() })
		}
	}
	n.paused = false
	if n.m != nil {
		s.check(n, n.m.State(), n.m.State())
	}
	for _, m := range queued {
		s.deliver(m)
	}
}

func (s *sim) check(n *simNode, before, after State) {
	if n.m == nil {
		return
	}
	if after.Role == Leader && after.Leader != n.id || after.LeaseLeft > 0 && after.Role != Leader || after.LeaseLeft > simLease {
		s.fail("%s is in state %+v", n.id, after)
	}
	if after.Role == Leader && before.Role != Leader {
		s.elections++
		if old, ok := s.leaders[after.Term]; ok && s.strict() {
			s.fail("term %d is led by %s and was led by %s", after.Term, n.id, old)
		}
		s.leaders[after.Term] = n.id
	}
	// A node that stands still does nothing with its lease, and when it goes on, it first takes the ticks that it owes.
	if !s.strict() || !after.Leads() || n.paused {
		return
	}
	for _, o := range s.nodes {
		if o != n && o.m != nil && !o.paused && o.m.State().Leads() {
			s.fail("%s leads in term %d and %s in term %d at once", n.id, after.Term, o.id, o.m.State().Term)
		}
	}
}

// claim is what a leader does before it acts: it takes its term in the store, or learns that it is taken.
func (s *sim) claim(n *simNode) {
	if n.m == nil || n.paused || !n.m.State().Leads() {
		return
	}
	term := n.m.State().Term
	switch {
	case term > s.storeTerm:
		s.storeTerm, s.storeHolder = term, n.id
	case s.storeHolder != n.id || term < s.storeTerm:
		s.input(n, func() { n.m.Exceed(s.storeTerm) })
	}
}

func (s *sim) claims() {
	for _, n := range s.nodes {
		if s.calm || s.rng.IntN(3) == 0 {
			s.claim(n)
		}
	}
	s.after(simTick, s.claims)
}
