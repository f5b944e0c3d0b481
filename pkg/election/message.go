package election

import (
	"fmt"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Kind says what a message is. The numbers are fixed: they are what goes over the wire.
type Kind uint8

// Each request has exactly one response, which Step makes at once, so that a transport can send it as the reply of the
// same call.
const (
	// MsgPreVote asks whether a campaign in Term could succeed. It raises nobody's term.
	MsgPreVote Kind = 1
	// MsgPreVoteResp answers MsgPreVote. Granted, it repeats the term asked for; rejected, it has the sender's own term.
	MsgPreVoteResp Kind = 2
	// MsgVote asks for the vote in Term.
	MsgVote Kind = 3
	// MsgVoteResp answers MsgVote.
	MsgVoteResp Kind = 4
	// MsgHeartbeat says that From leads in Term.
	MsgHeartbeat Kind = 5
	// MsgHeartbeatResp answers MsgHeartbeat. If it isn't a rejection, the sender promises to vote for nobody else
	// within its election timeout.
	MsgHeartbeatResp Kind = 6
	// MsgTimeoutNow says that From, the leader of Term, has resigned and wants To to campaign at once.
	MsgTimeoutNow Kind = 7
	// MsgTimeoutNowResp answers MsgTimeoutNow.
	MsgTimeoutNowResp Kind = 8
)

var kindNames = [...]string{
	MsgPreVote: "PreVote", MsgPreVoteResp: "PreVoteResp",
	MsgVote: "Vote", MsgVoteResp: "VoteResp",
	MsgHeartbeat: "Heartbeat", MsgHeartbeatResp: "HeartbeatResp",
	MsgTimeoutNow: "TimeoutNow", MsgTimeoutNowResp: "TimeoutNowResp",
}

// String returns the kind's name.
func (k Kind) String() string {
	if !k.valid() {
		return fmt.Sprintf("Kind(%d)", uint8(k))
	}
	return kindNames[k]
}

// IsResponse tells whether a message of this kind answers a request.
func (k Kind) IsResponse() bool { return k.valid() && k%2 == 0 }

func (k Kind) valid() bool { return k >= MsgPreVote && k <= MsgTimeoutNowResp }

// Message is what nodes say to each other. It is plain data. The transport must make sure that From is who it says.
type Message struct {
	Kind Kind
	From cluster.NodeID
	To   cluster.NodeID
	// Term is the sender's term; in MsgPreVote and in a granted MsgPreVoteResp the term that is asked for.
	Term cluster.Term
	// Reject is true in a response that says no.
	Reject bool
	// Leader, in a rejecting response, is the leader that the sender hears in its own term; empty if none.
	Leader cluster.NodeID
	// Resigned, in MsgVote, is the leader of an earlier term that has resigned in the candidate's favor; empty if none.
	// Voters needn't keep their promise to it any longer.
	Resigned cluster.NodeID
	// Sent, in MsgHeartbeat, is the leader's tick count at the time of sending; the response repeats it.
	Sent uint64
	// Ineligible, in MsgHeartbeatResp, says that the sender will not campaign, so leadership can't be given to it.
	Ineligible bool
}

// String prints the message in one line.
func (m Message) String() string {
	s := fmt.Sprintf("%s->%s %s term=%d", m.From, m.To, m.Kind, m.Term)
	if m.Reject {
		s += " reject"
	}
	if m.Leader != "" {
		s += " leader=" + string(m.Leader)
	}
	if m.Resigned != "" {
		s += " resigned=" + string(m.Resigned)
	}
	if m.Kind == MsgHeartbeat || m.Kind == MsgHeartbeatResp && !m.Reject {
		s += fmt.Sprintf(" sent=%d", m.Sent)
	}
	if m.Ineligible {
		s += " ineligible"
	}
	return s
}

// Hard is the state that must survive a crash. The zero value means that nothing was ever persisted.
type Hard struct {
	// Term is the highest term seen.
	Term cluster.Term
	// VotedFor is the node that got this node's vote in Term; empty if none has.
	VotedFor cluster.NodeID
}

// Ready is what the driver has to do now, in this order: first make Hard durable (written and synced), then send Messages.
//
// If Hard can't be made durable, nothing of this Ready may be sent, nor of any later one, and the machine must not be
// used on: try to persist the same Hard again, or discard the machine and make a new one from what the disk has.
type Ready struct {
	// Hard is nil if it has not changed since the last Ready.
	Hard *Hard
	// Messages may be lost, repeated, delayed and reordered by the transport.
	Messages []Message
}

// Empty tells whether there is nothing to do.
func (r Ready) Empty() bool { return r.Hard == nil && len(r.Messages) == 0 }

// Split takes the response to a request of that node out of the messages, for a transport which sends it as the reply
// of the call that brought the request. The response is nil if there is none. The rest is to be sent on its own.
// The order of Ready holds for both.
func (r Ready) Split(request Message) (response *Message, rest []Message) {
	for _, m := range r.Messages {
		if response == nil && request.Kind.valid() && !request.Kind.IsResponse() && m.Kind == request.Kind+1 && m.To == request.From {
			response = &m
			continue
		}
		rest = append(rest, m)
	}
	return response, rest
}

// Role is what a node is at the moment.
type Role uint8

const (
	// Follower hears a leader, or waits for one.
	Follower Role = iota
	// PreCandidate asks whether a campaign could succeed.
	PreCandidate
	// Candidate asks for votes.
	Candidate
	// Leader was elected. Whether it may act depends on its lease as well: see State.Leads.
	Leader
)

// String returns the role's name.
func (r Role) String() string {
	switch r {
	case Follower:
		return "Follower"
	case PreCandidate:
		return "PreCandidate"
	case Candidate:
		return "Candidate"
	case Leader:
		return "Leader"
	}
	return fmt.Sprintf("Role(%d)", uint8(r))
}

// State is what the machine knows at the moment. It may be acted on once the Ready that came with it is persisted.
type State struct {
	Role Role
	Term cluster.Term
	// Leader is the leader of Term; empty if unknown.
	Leader cluster.NodeID
	// LeaseLeft is the number of ticks, counted from the latest Tick, for which no other node can hold a valid lease.
	// It is zero for everyone but a leader that a majority has answered.
	LeaseLeft int
}

// Leads tells whether the node leads and holds its lease, which is when it may act as a leader.
func (s State) Leads() bool { return s.Role == Leader && s.LeaseLeft > 0 }
