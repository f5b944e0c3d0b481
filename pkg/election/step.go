package election

import (
	"fmt"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Step takes a message from another node. To a request there is exactly one response in the next Ready.
// An error means that the message was not looked at; it doesn't concern the machine.
func (m *Machine) Step(msg Message) error {
	switch {
	case !msg.Kind.valid():
		return fmt.Errorf("%w: %s", ErrMessage, msg.Kind)
	case msg.To != m.cfg.Self:
		return fmt.Errorf("%w: %s for %q came to %q", ErrMessage, msg.Kind, msg.To, m.cfg.Self)
	case msg.From == "" || msg.From == m.cfg.Self:
		return fmt.Errorf("%w: %s from %q", ErrMessage, msg.Kind, msg.From)
	case msg.Term == 0 && !msg.Kind.IsResponse():
		return fmt.Errorf("%w: %s from %q of term 0", ErrMessage, msg.Kind, msg.From)
	case !m.hard.Term.Reaches(msg.Term), msg.Term != 0 && !msg.Term.Reaches(m.hard.Term):
		return fmt.Errorf("%w: %s of %q has term %d, %q has term %d: too far apart for any history, so one of the two is corrupt",
			ErrTerm, msg.Kind, msg.From, msg.Term, m.cfg.Self, m.hard.Term)
	}
	switch msg.Kind {
	case MsgPreVote:
		m.stepPreVote(msg)
	case MsgVote:
		m.stepVote(msg)
	case MsgHeartbeat:
		m.stepHeartbeat(msg)
	case MsgTimeoutNow:
		m.stepTimeoutNow(msg)
	case MsgPreVoteResp:
		m.stepPreVoteResp(msg)
	case MsgVoteResp:
		m.stepVoteResp(msg)
	case MsgHeartbeatResp:
		m.stepHeartbeatResp(msg)
	case MsgTimeoutNowResp:
		m.stepTimeoutNowResp(msg)
	}
	return nil
}

// bound tells whether a promise, or its own lease, forbids the node to help the sender to a leadership.
func (m *Machine) bound(msg Message) bool {
	if m.role == Leader {
		return m.leaseLeft() > 0
	}
	if m.now >= m.promise.until {
		return false
	}
	// Whoever asks for votes in a later term doesn't lead any more in the term of the promise, and never will again.
	// The same goes for a leader that has resigned.
	p := m.promise
	released := p.leader != "" && (msg.From == p.leader || msg.Resigned == p.leader) && msg.Term > p.term
	return !released
}

func (m *Machine) stepPreVote(msg Message) {
	if msg.Term <= m.hard.Term || m.role == Leader || m.bound(msg) {
		m.reject(msg, MsgPreVoteResp)
		return
	}
	m.send(to(msg), Message{Kind: MsgPreVoteResp, Term: msg.Term})
}

func (m *Machine) stepVote(msg Message) {
	if msg.Term == m.hard.Term && m.hard.VotedFor == msg.From {
		m.send(to(msg), Message{Kind: MsgVoteResp, Term: m.hard.Term}) // it was given before, and stays given
		return
	}
	// A request that is refused for a promise must not raise the term either: that would depose the leader.
	if msg.Term < m.hard.Term || m.bound(msg) {
		m.reject(msg, MsgVoteResp)
		return
	}
	if msg.Term > m.hard.Term {
		m.follow(msg.Term, "")
	}
	if m.hard.VotedFor != "" || m.leader != "" {
		m.reject(msg, MsgVoteResp)
		return
	}
	m.hard.VotedFor = msg.From
	m.dirty = true
	m.heard = true
	m.waitFull()
	m.send(to(msg), Message{Kind: MsgVoteResp, Term: m.hard.Term})
}

func (m *Machine) stepHeartbeat(msg Message) {
	if msg.Term < m.hard.Term {
		m.reject(msg, MsgHeartbeatResp) // our higher term makes it step down
		return
	}
	// If more nodes run than are wanted, a term can have two leaders. The lower id stays.
	if msg.Term == m.hard.Term && m.leader != "" && m.leader < msg.From {
		m.reject(msg, MsgHeartbeatResp)
		return
	}
	m.follow(msg.Term, msg.From)
	m.promise = promise{leader: msg.From, term: msg.Term, until: m.now + uint64(m.cfg.ElectionTicks)}
	m.heard = true
	m.attempts = 0
	m.waitFull()
	m.send(to(msg), Message{Kind: MsgHeartbeatResp, Term: m.hard.Term, Sent: msg.Sent, Ineligible: !m.eligible})
}

func (m *Machine) stepTimeoutNow(msg Message) {
	if msg.Term > m.hard.Term {
		m.follow(msg.Term, "")
	}
	request := Message{From: m.cfg.Self, Term: msg.Term + 1, Resigned: msg.From}
	if msg.Term < m.hard.Term || m.role == Leader || !m.canCampaign() || m.bound(request) {
		m.reject(msg, MsgTimeoutNowResp)
		return
	}
	m.send(to(msg), Message{Kind: MsgTimeoutNowResp, Term: m.hard.Term})
	m.attempts = 0
	m.campaign(msg.From)
}

func (m *Machine) stepPreVoteResp(msg Message) {
	if msg.Reject {
		m.catchUp(msg)
		return
	}
	if m.role != PreCandidate || msg.Term != m.hard.Term+1 {
		return
	}
	m.votes[msg.From] = true
	if len(m.votes) >= m.quorum() {
		m.campaign("")
	}
}

func (m *Machine) stepVoteResp(msg Message) {
	if m.catchUp(msg) || m.role != Candidate || msg.Term != m.hard.Term || msg.Reject {
		return
	}
	m.votes[msg.From] = true
	if len(m.votes) >= m.quorum() {
		m.lead()
	}
}

func (m *Machine) stepHeartbeatResp(msg Message) {
	if m.catchUp(msg) || m.role != Leader || msg.Term != m.hard.Term {
		return
	}
	if msg.Reject {
		// The sender hears another leader of this term, which perhaps can't reach us itself.
		if msg.Leader != "" && msg.Leader < m.cfg.Self {
			m.follow(m.hard.Term, "")
			m.waitFull()
		}
		return
	}
	m.refuses[msg.From] = msg.Ineligible
	if msg.Sent <= m.now {
		m.acked[msg.From] = max(m.acked[msg.From], msg.Sent)
	}
}

func (m *Machine) stepTimeoutNowResp(msg Message) { m.catchUp(msg) }

// catchUp takes over a higher term. A node that led or wanted to campaigns again soon; those who still have a promise
// to it may vote for it.
func (m *Machine) catchUp(msg Message) bool {
	if msg.Term <= m.hard.Term {
		return false
	}
	again := m.role != Follower
	m.follow(msg.Term, "")
	if again {
		m.deadline = m.now + m.short()
	}
	return true
}

func (m *Machine) reject(msg Message, kind Kind) {
	m.send(to(msg), Message{Kind: kind, Term: m.hard.Term, Reject: true, Leader: m.leader})
}

func to(msg Message) []cluster.NodeID { return []cluster.NodeID{msg.From} }

// follow makes the node a follower in a term that is not below its own.
func (m *Machine) follow(term cluster.Term, leader cluster.NodeID) {
	if term > m.hard.Term {
		m.hard = Hard{Term: term}
		m.dirty = true
	}
	m.role = Follower
	m.leader = leader
	m.votes, m.acked, m.refuses = nil, nil, nil
}

// preCampaign asks whether a campaign could succeed, and starts it at once if the node's own vote is enough.
func (m *Machine) preCampaign() {
	if !m.canCampaign() {
		m.waitFull()
		return
	}
	// The node's own vote counts for a majority, so its own promise binds it too.
	if m.now < m.promise.until && !m.alone() {
		m.deadline = m.promise.until + m.short()
		return
	}
	m.role = PreCandidate
	m.leader = ""
	m.votes = map[cluster.NodeID]bool{m.cfg.Self: true}
	m.waitRetry()
	if len(m.votes) >= m.quorum() {
		m.campaign("")
		return
	}
	m.send(m.peers, Message{Kind: MsgPreVote, Term: m.hard.Term + 1})
}

// campaign raises the term and asks for votes in it. The caller has made sure that no promise stands against it.
func (m *Machine) campaign(resigned cluster.NodeID) {
	m.hard = Hard{Term: m.hard.Term + 1, VotedFor: m.cfg.Self}
	m.dirty = true
	m.role = Candidate
	m.leader = ""
	m.heard = true
	m.votes = map[cluster.NodeID]bool{m.cfg.Self: true}
	m.waitRetry()
	if len(m.votes) >= m.quorum() {
		m.lead()
		return
	}
	m.send(m.peers, Message{Kind: MsgVote, Term: m.hard.Term, Resigned: resigned})
}

// lead makes a candidate the leader. Its lease begins when a majority has answered its first heartbeat: a vote is no
// promise, so that an election that was split can be repeated at once.
func (m *Machine) lead() {
	m.role = Leader
	m.leader = m.cfg.Self
	m.votes = nil
	m.promise = promise{}
	m.attempts = 0
	m.grace = m.now
	m.acked = make(map[cluster.NodeID]uint64)
	m.refuses = make(map[cluster.NodeID]bool)
	m.beat(m.peers)
}
