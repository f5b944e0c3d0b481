package election

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

var (
	// ErrConfig: the configuration, or the persisted state, can't be worked with.
	ErrConfig = errors.New("invalid election configuration")
	// ErrMessage: the message is not for this node, or not well formed. It was not looked at.
	ErrMessage = errors.New("invalid election message")
	// ErrTerm: the message has a term that can't be true. It was not looked at. errors.Is(ErrTerm, ErrMessage) holds.
	ErrTerm = fmt.Errorf("%w: corrupt term", ErrMessage)
	// ErrNotLeader: only a leader can do that.
	ErrNotLeader = errors.New("not the leader")
	// ErrNoSuccessor: leadership can't be given to that node.
	ErrNoSuccessor = errors.New("no such successor")
)

// shortTicks is the spread of the delay before a campaign where there is no reason to wait for a leader any longer.
const shortTicks = 4

// Config is how a machine is set up. All times are in ticks; how long a tick is, is the driver's choice, but all nodes
// of a cluster must choose the same.
type Config struct {
	// Self is this node.
	Self cluster.NodeID
	// WantedMembers is the member count of the spec. Zero means that it isn't known yet: then the node votes but
	// doesn't campaign. See Machine.SetWanted.
	WantedMembers int
	// Peers are the other nodes that are known. See Machine.SetPeers.
	Peers []cluster.NodeID
	// HeartbeatTicks is the time between two heartbeats of a leader.
	HeartbeatTicks int
	// LeaseTicks is how long an answered heartbeat lets its leader act, counted from when it was sent.
	// It is longer than HeartbeatTicks and shorter than ElectionTicks. The lease is safe as long as the clocks of two
	// nodes run at rates that differ by a factor of less than (ElectionTicks-1)/LeaseTicks.
	LeaseTicks int
	// ElectionTicks is how long an answered heartbeat binds the node that answered it, and the least time without
	// a heartbeat after which that node campaigns.
	ElectionTicks int
	// Rand returns a number from 0 to n-1. It spreads the campaigns of nodes that wait for the same event.
	// It is called from the machine's own methods only.
	Rand func(n int) int
}

func (c Config) validate() error {
	switch {
	case c.Self == "":
		return fmt.Errorf("%w: no node id", ErrConfig)
	case c.WantedMembers < 0:
		return fmt.Errorf("%w: wanted member count %d", ErrConfig, c.WantedMembers)
	case c.HeartbeatTicks < 1:
		return fmt.Errorf("%w: heartbeat of %d ticks; it must be 1 or more", ErrConfig, c.HeartbeatTicks)
	case c.LeaseTicks <= c.HeartbeatTicks:
		return fmt.Errorf("%w: lease of %d ticks; it must be longer than the heartbeat, %d", ErrConfig, c.LeaseTicks, c.HeartbeatTicks)
	case c.ElectionTicks <= c.LeaseTicks:
		return fmt.Errorf("%w: election timeout of %d ticks; it must be longer than the lease, %d", ErrConfig,
			c.ElectionTicks, c.LeaseTicks)
	case c.Rand == nil:
		return fmt.Errorf("%w: no source of randomness", ErrConfig)
	}
	return nil
}

// promise is what a node owes to a leader whose heartbeat it has answered: not to help another one before that tick.
type promise struct {
	// leader is empty if the node has restarted and doesn't know whose heartbeat it may have answered.
	leader cluster.NodeID
	term   cluster.Term
	until  uint64
}

// Machine is one node's part in the election. It is not safe for concurrent use. After each call of one of its methods
// the driver takes Ready and does what it says.
type Machine struct {
	cfg      Config
	wanted   int
	peers    []cluster.NodeID // sorted, without self
	eligible bool

	hard  Hard
	dirty bool
	out   []Message

	now    uint64 // ticks since start
	role   Role
	leader cluster.NodeID
	// votes are the nodes that have granted the (pre-)vote that this node asks for, itself included.
	votes   map[cluster.NodeID]bool
	promise promise
	// deadline is when the node campaigns, or campaigns again, unless a leader is heard before.
	deadline uint64
	// attempts counts campaigns since a leader was last heard; it spreads them further and further.
	attempts int
	// heard is true once a leader was heard, or a vote given, since start.
	heard bool
	// hurried is true once the shorter delay of a cold start was set.
	hurried bool

	// What only a leader has.
	beatAt  uint64                    // when the next heartbeats are due
	grace   uint64                    // when it was elected, or the wanted count changed: no step-down for a lease's time
	acked   map[cluster.NodeID]uint64 // the newest Sent that the node has answered
	refuses map[cluster.NodeID]bool   // has said that it is not eligible
}

// New returns a machine in the role of a follower. Hard is what was persisted last; its zero value says that nothing
// ever was.
//
// A node that restarts may have answered a heartbeat just before it went down, and the leader counts on that answer.
// So it votes for nobody, and doesn't campaign, for ElectionTicks, unless Hard is zero: as a heartbeat is only answered
// after its term is persisted, a node without persisted state has never answered one. That makes the first start of
// a cluster quick. (Nor does the only node of a cluster of one wait, as there is nobody whom it could have answered.)
func New(cfg Config, hard Hard) (*Machine, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if hard.Term == 0 && hard.VotedFor != "" {
		return nil, fmt.Errorf("%w: vote for %q in term 0", ErrConfig, hard.VotedFor)
	}
	m := &Machine{cfg: cfg, wanted: cfg.WantedMembers, eligible: true, hard: hard}
	if hard != (Hard{}) {
		m.promise = promise{term: hard.Term, until: uint64(cfg.ElectionTicks)}
	}
	m.waitFull()
	m.SetPeers(cfg.Peers)
	return m, nil
}

// State returns what the machine knows at the moment.
func (m *Machine) State() State {
	return State{Role: m.role, Term: m.hard.Term, Leader: m.leader, LeaseLeft: m.leaseLeft()}
}

// Ready returns what has to be done since it was last called, and forgets it.
func (m *Machine) Ready() Ready {
	var r Ready
	if m.dirty {
		h := m.hard
		r.Hard = &h
	}
	r.Messages = m.out
	m.dirty, m.out = false, nil
	return r
}

// Tick tells the machine that one tick has passed. A driver that was held up calls it once for each tick that
// it owes, and does so before it steps any message: else a promise that is made late would end too early.
func (m *Machine) Tick() {
	m.now++
	if m.role == Leader {
		if m.now >= max(m.quorumSent(), m.grace)+uint64(m.cfg.LeaseTicks) {
			// A majority may be free to elect another by the time that our clock shows as the next tick.
			m.follow(m.hard.Term, "")
			m.waitFull()
			return
		}
		if m.now >= m.beatAt {
			m.beat(m.peers)
		}
		return
	}
	if m.leader != "" && m.now >= m.promise.until {
		m.leader = ""
	}
	if m.now >= m.deadline {
		m.preCampaign()
	}
}

// SetPeers sets the other nodes that are known and messages are sent to. Self and repetitions are ignored.
// Answers that have already come from a node which is no longer listed still count.
func (m *Machine) SetPeers(ids []cluster.NodeID) {
	var peers, added []cluster.NodeID
	for _, id := range ids {
		if id == "" || id == m.cfg.Self || slices.Contains(peers, id) {
			continue
		}
		peers = append(peers, id)
		if !slices.Contains(m.peers, id) {
			added = append(added, id)
		}
	}
	slices.Sort(peers)
	slices.Sort(added)
	m.peers = peers
	if m.role == Leader && len(added) > 0 {
		m.send(added, m.heartbeat())
	}
	m.hurry()
}

// SetWanted sets the wanted member count, of which a majority elects. It must be 1 or more.
// While nodes work with different counts, their majorities need not share a node.
func (m *Machine) SetWanted(n int) error {
	if n < 1 {
		return fmt.Errorf("%w: wanted member count %d", ErrConfig, n)
	}
	if n == m.wanted {
		return nil
	}
	m.wanted = n
	if m.role == Leader {
		m.grace = m.now
	}
	m.hurry()
	return nil
}

// SetEligible says whether the node may lead; it may at start. A node that may not still votes. A leader resigns.
func (m *Machine) SetEligible(yes bool) {
	if m.eligible == yes {
		return
	}
	m.eligible = yes
	if yes {
		m.hurry()
		return
	}
	switch m.role {
	case Leader:
		m.Resign()
	case PreCandidate, Candidate:
		m.follow(m.hard.Term, "")
	}
}

// PeerDown is a hint that a node's process has ended, for example as the connection to it broke. If that node led,
// the next campaign comes a few ticks after this node's promise to it ends, not after the whole randomized timeout.
// A wrong hint does no harm: promises are kept, here and by the others.
func (m *Machine) PeerDown(id cluster.NodeID) {
	if id == "" || m.role == Leader || id != m.leader {
		return
	}
	m.leader = ""
	m.attempts = 0
	m.deadline = min(m.deadline, max(m.now, m.promise.until)+m.short())
}

// TransferLeadership makes a leader step down, and the node `to` campaign at once, without waiting for any timeout.
// The node stops leading in any case once this returns without an error.
func (m *Machine) TransferLeadership(to cluster.NodeID) error {
	if m.role != Leader {
		return fmt.Errorf("transfer leadership to %q: %w", to, ErrNotLeader)
	}
	if !slices.Contains(m.peers, to) || m.refuses[to] {
		return fmt.Errorf("transfer leadership to %q: %w", to, ErrNoSuccessor)
	}
	m.resign(to)
	return nil
}

// Resign makes a leader step down and asks the eligible peer that it heard last, if there is one, to take over;
// that peer is returned. It does nothing if the node doesn't lead.
//
// A node that shuts down calls SetEligible(false), which includes this, sends what Ready has, and ends.
func (m *Machine) Resign() cluster.NodeID {
	if m.role != Leader {
		return ""
	}
	var best cluster.NodeID
	for _, id := range m.peers { // sorted, so that the lowest id wins a tie
		sent, ok := m.acked[id]
		if ok && !m.refuses[id] && (best == "" || sent > m.acked[best]) {
			best = id
		}
	}
	m.resign(best)
	return best
}

func (m *Machine) resign(to cluster.NodeID) {
	m.follow(m.hard.Term, "")
	m.waitFull()
	if to != "" {
		m.send([]cluster.NodeID{to}, Message{Kind: MsgTimeoutNow, Term: m.hard.Term})
	}
}

// Exceed tells the machine that the store shows that term as taken by somebody else. The node doesn't lead in that term
// or a lower one any more; if it did, or was about to, it campaigns again soon, in a higher one. A term that no history leads to
// is ignored.
func (m *Machine) Exceed(term cluster.Term) {
	if term < m.hard.Term || !m.hard.Term.TakesOver(term) {
		return
	}
	again := m.role == Leader || m.role == Candidate
	if term > m.hard.Term || again {
		m.follow(term, "")
	}
	if again {
		m.attempts = 0
		m.deadline = m.now + m.short()
	}
}

// quorum is the number of distinct nodes that elect and keep a leader; 0 if the wanted count isn't known.
func (m *Machine) quorum() int {
	if m.wanted == 0 {
		return 0
	}
	return cluster.Quorum(m.wanted)
}

// quorumSent is the latest tick of sending such that a majority, this leader included, has answered a heartbeat sent
// then or later; 0 if there is none.
func (m *Machine) quorumSent() uint64 {
	others := m.quorum() - 1
	if others == 0 {
		return m.now
	}
	if len(m.acked) < others {
		return 0
	}
	sent := slices.Sorted(maps.Values(m.acked))
	return sent[len(sent)-others]
}

func (m *Machine) leaseLeft() int {
	if m.role != Leader || len(m.acked) < m.quorum()-1 {
		return 0
	}
	end := m.quorumSent() + uint64(m.cfg.LeaseTicks)
	if end <= m.now {
		return 0
	}
	return int(end - m.now)
}

// short is a delay of a few ticks.
func (m *Machine) short() uint64 { return uint64(1 + m.cfg.Rand(shortTicks)) }

// waitFull sets the campaign to after a whole randomized election timeout.
func (m *Machine) waitFull() {
	m.deadline = m.now + uint64(m.cfg.ElectionTicks+m.cfg.Rand(m.cfg.ElectionTicks))
}

// waitRetry sets the next campaign if the present one doesn't succeed: soon at first, then ever later.
func (m *Machine) waitRetry() {
	m.attempts++
	d := m.cfg.ElectionTicks
	if m.attempts < 16 {
		d = min(d, 1<<m.attempts)
	}
	m.deadline = m.now + uint64(d+m.cfg.Rand(d))
}

// hurry shortens the wait of a node which has just started, never heard a leader, and knows as many nodes as are wanted.
func (m *Machine) hurry() {
	if m.role != Follower || m.heard || m.hurried || m.wanted == 0 || len(m.peers)+1 < m.wanted {
		return
	}
	m.hurried = true
	if m.alone() {
		m.deadline = m.now
		return
	}
	m.deadline = min(m.deadline, max(m.now, m.promise.until)+m.short())
}

// alone tells whether the node is all there is, and all that is wanted.
func (m *Machine) alone() bool { return m.wanted == 1 && len(m.peers) == 0 }

// canCampaign is false at the end of all terms, which only a corrupt vote could bring about.
func (m *Machine) canCampaign() bool {
	return m.eligible && m.wanted > 0 && m.hard.Term < cluster.MaxTerm
}

func (m *Machine) send(to []cluster.NodeID, msg Message) {
	msg.From = m.cfg.Self
	for _, id := range to {
		msg.To = id
		m.out = append(m.out, msg)
	}
}

func (m *Machine) heartbeat() Message {
	return Message{Kind: MsgHeartbeat, Term: m.hard.Term, Sent: m.now}
}

func (m *Machine) beat(to []cluster.NodeID) {
	m.beatAt = m.now + uint64(m.cfg.HeartbeatTicks)
	m.send(to, m.heartbeat())
}
