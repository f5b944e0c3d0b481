package election

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// A small world, of which everything that can happen is tried: three nodes, short timeouts, and a budget of ticks,
// campaigns, crashes and resignations. A message that was once sent can arrive at any later time, any number of
// times, or never. A campaign may begin whenever the node's own promises allow it, as if the pre-vote had
// succeeded; so what is found to hold does not depend on pre-votes or on chance.

const (
	enumLease    = 2
	enumElection = 3
)

type budget struct{ ticks, campaigns, crashes, resigns int }

var enumIDs = []cluster.NodeID{"a", "b", "c"}

type world struct {
	nodes [3]*Machine
	disks [3]Hard
	mail  []uint64 // what was sent and may still matter, encoded and sorted
	left  budget
	// oldVotes keeps votes of a node's earlier campaigns; that makes many more worlds.
	oldVotes bool
	leaders  []string // "term node", sorted; only grows
	parent   *world
	msg      Message // what led here from parent: a message, or what was done to msg.To
	action   string
}

func enumConfig(id cluster.NodeID) Config {
	return Config{
		Self: id, WantedMembers: 3, Peers: enumIDs, HeartbeatTicks: 1, LeaseTicks: enumLease,
		ElectionTicks: enumElection, Rand: func(int) int { return 0 },
	}
}

func (m *Machine) clone() *Machine {
	c := *m
	c.votes, c.acked, c.refuses = maps.Clone(m.votes), maps.Clone(m.acked), maps.Clone(m.refuses)
	return &c
}

// enumeration explores worlds breadth first.
type enumeration struct {
	seed  maphash.Seed
	seen  map[uint64]bool
	queue []*world
	buf   [512]byte
	steps int
	limit int // of different worlds; 0 means none
	// sabotage breaks a rule, see TestEnumerationCatches; it is called before each message and tick.
	sabotage func(m *Machine, msg *Message)
	restart  func(m *Machine)
	late     bool // crash between sending and persisting

	violation string
}

func newWorld(b budget) *world {
	w := &world{left: b, oldVotes: b.ticks+b.resigns == 0}
	for i, id := range enumIDs {
		m, err := New(enumConfig(id), Hard{})
		if err != nil {
			panic(err)
		}
		m.deadline = math.MaxUint64
		w.nodes[i] = m
	}
	return w
}

// act makes the world that follows if f is done to node i, and puts it into the queue if it is a new one.
func (e *enumeration) act(w *world, i int, msg Message, what string, spend func(*budget), f func(*world, *Machine)) {
	next := *w
	next.parent, next.msg, next.action = w, msg, what
	next.mail = slices.Clone(w.mail)
	next.nodes[i] = w.nodes[i].clone()
	spend(&next.left)
	f(&next, next.nodes[i])
	e.finish(&next, i)
	e.add(&next)
}

// finish takes node i's Ready.
func (e *enumeration) finish(w *world, i int) {
	m := w.nodes[i]
	m.deadline = math.MaxUint64
	rd := m.Ready()
	if rd.Hard != nil {
		if rd.Hard.Term < w.disks[i].Term || rd.Hard.Term == w.disks[i].Term && w.disks[i].VotedFor != "" &&
			rd.Hard.VotedFor != w.disks[i].VotedFor {
			e.fail(w, fmt.Sprintf("%s persists %+v after %+v", m.cfg.Self, *rd.Hard, w.disks[i]))
		}
		w.disks[i] = *rd.Hard
	}
	for _, msg := range rd.Messages {
		if msg.Kind == MsgVoteResp && !msg.Reject && !e.late && w.disks[i] != (Hard{Term: msg.Term, VotedFor: msg.To}) {
			e.fail(w, fmt.Sprintf("%v, but the disk has %+v", msg, w.disks[i]))
		}
		// Of two heartbeats between the same nodes, or two answers, the later sent can do all that the earlier can.
		code := encode(msg)
		same := func(c uint64) bool { return uint32(c) == uint32(code) }
		if at := slices.IndexFunc(w.mail, same); at >= 0 {
			code = max(code, w.mail[at])
			w.mail = slices.Delete(w.mail, at, at+1)
		}
		at, _ := slices.BinarySearch(w.mail, code)
		w.mail = slices.Insert(w.mail, at, code)
	}
	w.mail = slices.DeleteFunc(w.mail, func(code uint64) bool { return w.obsolete(decode(code)) })
}

// obsolete tells whether a message can't change anything any more, except that it tells somebody of a higher term,
// which only ever ends a leadership.
func (w *world) obsolete(msg Message) bool {
	i := slices.Index(enumIDs, msg.To)
	m, disk := w.nodes[i], w.disks[i]
	switch msg.Kind {
	case MsgVote:
		return msg.Term < disk.Term || msg.Term == disk.Term && disk.VotedFor == msg.From
	case MsgHeartbeat, MsgTimeoutNow:
		return msg.Term < disk.Term
	case MsgVoteResp:
		if w.oldVotes && m.role == Candidate && !msg.Reject {
			return false
		}
		return msg.Reject && msg.Term <= disk.Term || msg.Term < m.hard.Term || msg.Term == m.hard.Term &&
			(m.role != Candidate || m.votes[msg.From])
	case MsgHeartbeatResp:
		return msg.Reject && msg.Term <= disk.Term || msg.Term < m.hard.Term || msg.Term == m.hard.Term && m.role != Leader
	}
	return true
}

// encode makes a number of a message; there is exactly one for each.
func encode(m Message) uint64 {
	id := func(n cluster.NodeID) uint64 { return uint64(slices.Index(enumIDs, n) + 1) }
	return uint64(m.Kind) | id(m.From)<<4 | id(m.To)<<6 | id(m.Leader)<<8 | id(m.Resigned)<<10 | uint64(bit(m.Reject))<<12 |
		uint64(m.Term)<<16 | m.Sent<<32
}

func decode(c uint64) Message {
	id := func(n uint64) cluster.NodeID { return [...]cluster.NodeID{"", "a", "b", "c"}[n&3] }
	return Message{
		Kind: Kind(c & 15), From: id(c >> 4), To: id(c >> 6), Leader: id(c >> 8), Resigned: id(c >> 10), Reject: c>>12&1 == 1,
		Term: cluster.Term(c >> 16 & 0xffff), Sent: c >> 32,
	}
}

func (e *enumeration) fail(w *world, what string) {
	if e.violation != "" {
		return
	}
	var path []string
	for ; w != nil; w = w.parent {
		if w.msg.Kind != 0 {
			path = append(path, w.msg.String()+w.action)
		} else {
			path = append(path, string(w.msg.To)+" "+w.action)
		}
	}
	slices.Reverse(path)
	e.violation = what + "\n" + strings.Join(path, "\n")
}

func (e *enumeration) add(w *world) {
	e.steps++
	leads := 0
	for i, m := range w.nodes {
		if m.role != Leader {
			continue
		}
		if m.leaseLeft() > 0 {
			leads++
		}
		l := fmt.Sprintf("%d %s", m.hard.Term, enumIDs[i])
		if !slices.Contains(w.leaders, l) {
			w.leaders = append(slices.Clone(w.leaders), l)
			slices.Sort(w.leaders)
		}
	}
	for i := 1; i < len(w.leaders); i++ {
		if w.leaders[i][:2] == w.leaders[i-1][:2] {
			e.fail(w, fmt.Sprintf("two leaders of one term: %v", w.leaders))
		}
	}
	if leads > 1 {
		e.fail(w, "two leases are valid at once")
	}
	k := maphash.Bytes(e.seed, w.key(e.buf[:0]))
	if e.seen[k] || e.limit > 0 && len(e.seen) >= e.limit {
		return
	}
	e.seen[k] = true
	e.queue = append(e.queue, w)
}

// key is all that matters for what can happen next.
func (w *world) key(b []byte) []byte {
	num := func(v uint64) { b = append(b, byte(v)) }
	str := func(s cluster.NodeID) { b = append(b, (string(s) + "-")[0]) }
	for i, m := range w.nodes {
		num(uint64(w.disks[i].Term))
		str(w.disks[i].VotedFor)
		num(uint64(m.hard.Term))
		str(m.hard.VotedFor)
		b = append(b, byte(m.role))
		str(m.leader)
		if m.promise.until > m.now {
			str(m.promise.leader)
			num(uint64(m.promise.term))
			num(m.promise.until)
		}
		b = append(b, '|')
		for _, id := range enumIDs {
			sent, ok := m.acked[id]
			b = append(b, bit(m.votes[id])|bit(ok)<<1|byte(sent)<<2)
		}
		if m.role == Leader {
			num(m.grace)
		}
	}
	for _, code := range w.mail {
		b = binary.LittleEndian.AppendUint64(b, code)
	}
	for _, n := range []int{w.left.ticks, w.left.campaigns, w.left.crashes, w.left.resigns} {
		num(uint64(n))
	}
	return b
}

func bit(v bool) byte {
	if v {
		return 1
	}
	return 0
}

// explore tries everything that can be done in each world, until there is no new one.
func (e *enumeration) explore(start *world) {
	e.seed = maphash.MakeSeed()
	e.seen = map[uint64]bool{}
	e.add(start)
	for len(e.queue) > 0 && e.violation == "" {
		w := e.queue[0]
		e.queue = e.queue[1:]
		e.expand(w)
	}
}

func (e *enumeration) expand(w *world) {
	free := func(*budget) {}
	for _, code := range w.mail {
		msg := decode(code)
		i := slices.Index(enumIDs, msg.To)
		e.act(w, i, msg, "", free, func(_ *world, m *Machine) {
			if e.sabotage != nil {
				e.sabotage(m, &msg)
			}
			_ = m.Step(msg) // all of them are well formed
		})
		if e.late && w.left.crashes > 0 {
			e.act(w, i, msg, ", crash before it is persisted", func(b *budget) { b.crashes-- }, func(x *world, m *Machine) {
				_ = m.Step(msg)
				m.dirty = false
				e.finish(x, i)
				e.boot(x, i)
			})
		}
	}
	for i, m := range w.nodes {
		id := enumIDs[i]
		if w.left.campaigns > 0 && m.role != Leader && m.now >= m.promise.until {
			e.act(w, i, Message{To: id}, "campaigns", func(b *budget) { b.campaigns-- }, func(_ *world, m *Machine) { m.campaign("") })
		}
		if w.left.crashes > 0 && m.hard.Term > 0 {
			e.act(w, i, Message{To: id}, "restarts", func(b *budget) { b.crashes-- }, func(x *world, _ *Machine) { e.boot(x, i) })
		}
		if w.left.resigns > 0 && m.role == Leader {
			e.act(w, i, Message{To: id}, "resigns", func(b *budget) { b.resigns-- }, func(_ *world, m *Machine) {
				m.resign(enumIDs[(i+1)%len(enumIDs)])
			})
		}
	}
	if w.left.ticks > 0 {
		e.tick(w)
	}
}

// boot replaces node i by one that was started from its disk at this moment.
func (e *enumeration) boot(w *world, i int) {
	m, err := New(enumConfig(enumIDs[i]), w.disks[i])
	if err != nil {
		e.fail(w, err.Error())
		return
	}
	if e.restart != nil {
		e.restart(m)
	}
	// Let its clock show what the others' show, so that worlds can be compared.
	if m.promise.until > 0 {
		m.promise.until += w.nodes[i].now
	}
	m.now = w.nodes[i].now
	w.nodes[i] = m
}

func (e *enumeration) tick(w *world) {
	next := *w
	next.parent, next.msg, next.action = w, Message{To: "all"}, "tick"
	next.mail = slices.Clone(w.mail)
	next.left.ticks--
	for i := range next.nodes {
		next.nodes[i] = w.nodes[i].clone()
		next.nodes[i].Tick()
		e.finish(&next, i)
	}
	e.add(&next)
}

// exploreFrom explores all worlds in which a is the first to campaign; as the nodes are alike, that is no restriction.
func (e *enumeration) exploreFrom(b budget) {
	w := newWorld(b)
	w.nodes[0].campaign("")
	e.finish(w, 0)
	e.explore(w)
}

func TestEnumeration(t *testing.T) {
	for _, b := range []budget{
		{campaigns: 1, crashes: 2},
		{campaigns: 2},
		{ticks: 4, campaigns: 1},
		{ticks: 3, campaigns: 1, crashes: 1},
		{ticks: 2, campaigns: 1, resigns: 1},
	} {
		e := &enumeration{}
		e.exploreFrom(b)
		t.Logf("%+v: %d worlds, %d steps", b, len(e.seen), e.steps)
		if e.violation != "" {
			t.Fatalf("%+v: %s", b, e.violation)
		}
	}
}

// TestEnumerationCatches breaks one rule at a time and wants to see it found.
func TestEnumerationCatches(t *testing.T) {
	for _, c := range []struct {
		name string
		want string
		b    budget
		e    enumeration
	}{
		{"messages are sent before the state is persisted", "two leaders of one term", budget{campaigns: 2, crashes: 1},
			enumeration{late: true}},
		{"a vote is forgotten", "persists", budget{campaigns: 2},
			enumeration{sabotage: func(m *Machine, _ *Message) { m.hard.VotedFor = "" }}},
		{"voters don't keep their promise", "two leases", budget{campaigns: 1},
			enumeration{sabotage: func(m *Machine, _ *Message) { m.promise = promise{} }}},
		{"voters don't wait after a restart", "two leases", budget{campaigns: 1, crashes: 1},
			enumeration{restart: func(m *Machine) { m.promise = promise{} }}},
		{"the lease counts from the answer", "two leases", budget{ticks: 3, campaigns: 1},
			enumeration{sabotage: func(m *Machine, msg *Message) {
				if msg.Kind == MsgHeartbeatResp {
					msg.Sent = m.now
				}
			}}},
		{"the lease is as long as the promise and one tick more", "two leases", budget{ticks: 3, campaigns: 1},
			enumeration{sabotage: func(m *Machine, _ *Message) {
				m.cfg.LeaseTicks = enumElection + 1
			}}},
		{"one vote of three is enough", "two lea", budget{campaigns: 1},
			enumeration{sabotage: func(m *Machine, _ *Message) { m.wanted = 1 }}},
		{"everybody is released by a resignation", "two leases", budget{campaigns: 1, resigns: 1},
			enumeration{sabotage: func(m *Machine, msg *Message) {
				if msg.Kind == MsgVote {
					msg.Resigned = m.promise.leader
				}
			}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.e.limit = 100000
			c.e.exploreFrom(c.b)
			if !strings.Contains(c.e.violation, c.want) || c.e.violation == "" {
				t.Fatalf("not found in %d worlds: %s", len(c.e.seen), c.e.violation)
			}
			t.Logf("%d worlds: %s", len(c.e.seen), c.e.violation)
		})
	}
}
