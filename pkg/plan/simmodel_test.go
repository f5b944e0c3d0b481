package plan

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// The model world of the simulation: machines with disks, a much simplified etcd, and a store with compare-and-swap.

// simEntry is one entry of etcd's log: a client's write or a new member list.
type simEntry struct {
	write   int
	members []cluster.Member
}

// simDir is an etcd data dir.
type simDir struct {
	member cluster.MemberID
	base   int64 // the revision before the first entry
	log    []simEntry
	keeps  int  // the minor version that all members kept to when it last heard of them
	start  int  // how many writes it was staged with
	dirty  bool // its log has a client's write that was never acknowledged
}

// written tells what etcd's log says when it is halted: a client's write, or a change of the members, which only a cluster that lives has.
func (d *simDir) written() bool {
	writes := d.count()
	return d.dirty || writes > d.start || len(d.log) > writes+1
}

func (d *simDir) members() []cluster.Member {
	for _, e := range slices.Backward(d.log) {
		if e.members != nil {
			return e.members
		}
	}
	return nil
}

func (d *simDir) writes() map[int]bool {
	set := map[int]bool{}
	for _, e := range d.log {
		if e.members == nil {
			set[e.write] = true
		}
	}
	return set
}

func (d *simDir) revision() int64 { return d.base + int64(d.count()) }

// count is how many writes there are.
func (d *simDir) count() int {
	n := 0
	for _, e := range d.log {
		if e.members == nil {
			n++
		}
	}
	return n
}

// simJournal is what a node remembers of a restore.
type simJournal struct {
	op      string
	phase   string // "" (begun), staged, stopped, switched, halted, reverted
	token   cluster.Token
	rev     int64
	hash    uint32
	log     []simEntry
	wrong   bool // what it comes up with isn't what was staged
	old     *cluster.EtcdState
	written bool
	record  *model.Operation // as the leader gave it with Stop
}

func (j *simJournal) is(op string, phases ...string) bool {
	return j != nil && j.op == op && slices.Contains(phases, j.phase)
}

// simNode is one machine.
type simNode struct {
	id       cluster.NodeID
	up       bool // the machine
	manager  bool // the daemon; etcd outlives it
	side     int  // of a partition
	store    bool // reaches the store
	instance int  // of the daemon
	queue    map[string]bool
	queued   bool          // has read the queue
	offAt    time.Duration // when the machine went off
	seenAt   time.Duration // when nothing kept it out of sight

	// disk
	state   *cluster.EtcdState
	dirs    map[cluster.Token]*simDir
	trash   map[cluster.Token]*simDir
	journal *simJournal
	waits   bool // etcd isn't started: the store says that its data were replaced while it was off
	term    cluster.Term

	// etcd's process
	running     bool
	runs        string // the version
	quarantined bool
	wellAt      time.Duration // when it was last healthy or started
}

func (n *simNode) dir() *simDir {
	if n.state == nil {
		return nil
	}
	return n.dirs[n.state.Token]
}

func (n *simNode) holding() bool {
	return n.journal != nil && (n.journal.phase == "stopped" || n.journal.phase == "halted")
}

// serving tells whether the node's etcd takes part in its cluster.
func (n *simNode) serving() bool { return n.up && n.running && n.dir() != nil }

// simBackup is one in the store.
type simBackup struct {
	log     []simEntry
	rev     int64
	at      time.Duration
	corrupt bool
}

type simStore struct {
	up          bool
	marker      model.Marker
	markerVer   int
	leaderTerm  cluster.Term
	leaderNode  cluster.NodeID
	leaderInst  string
	leaderBeat  int
	commands    []model.Command
	op          *model.Operation
	opVer       int
	opSince     time.Duration
	failed      []string
	rolledBack  []model.Operation
	backups     map[string]simBackup
	newest      time.Duration
	haveBackups bool
	highest     int64
}

// group is the part of an etcd cluster that is connected on one side.
type group struct {
	token   cluster.Token
	nodes   []*simNode
	head    *simDir // the longest log
	members []cluster.Member
	quorum  bool
	open    bool // a client can reach a member
	leader  cluster.MemberID
}

func voterCount(members []cluster.Member) int {
	n := 0
	for _, m := range members {
		if !m.Learner {
			n++
		}
	}
	return n
}

func findMember(members []cluster.Member, id cluster.MemberID) *cluster.Member {
	for i := range members {
		if members[i].ID == id {
			return &members[i]
		}
	}
	return nil
}

// groups are all etcd clusters that run, side by side.
func (s *sim) groups() []*group {
	var list []*group
	for _, n := range s.nodes {
		if !n.serving() {
			continue
		}
		var g *group
		for _, x := range list {
			if x.token == n.state.Token && x.nodes[0].side == n.side {
				g = x
			}
		}
		if g == nil {
			g = &group{token: n.state.Token}
			list = append(list, g)
		}
		g.nodes = append(g.nodes, n)
	}
	for _, g := range list {
		for _, n := range g.nodes {
			if g.head == nil || len(n.dir().log) > len(g.head.log) {
				g.head = n.dir()
			}
		}
		g.members = g.head.members()
		in := 0
		for _, n := range g.nodes {
			m := findMember(g.members, n.dir().member)
			if m == nil || m.Learner {
				continue
			}
			in++
			if g.leader == 0 {
				g.leader = m.ID
			}
			g.open = g.open || !n.quarantined
		}
		g.quorum = in > 0 && in >= cluster.Quorum(voterCount(g.members)) && s.now >= s.sick[g.token]
		g.open = g.open && g.quorum
	}
	return list
}

func (s *sim) groupOf(n *simNode) *group {
	for _, g := range s.groups() {
		if slices.Contains(g.nodes, n) {
			return g
		}
	}
	return nil
}

// propose commits an entry in a group that has a quorum: on all of its voters, or on just enough.
func (s *sim) propose(g *group, e simEntry) bool {
	if !g.quorum {
		return false
	}
	need := cluster.Quorum(voterCount(g.members))
	lazy := e.members == nil && s.rng.IntN(3) == 0
	log := append(slices.Clone(g.head.log), e)
	for _, i := range s.rng.Perm(len(g.nodes)) {
		n := g.nodes[i]
		m := findMember(g.members, n.dir().member)
		if m == nil || lazy && (m.Learner || need <= 0) {
			continue
		}
		if !m.Learner {
			need--
		}
		n.dir().log = slices.Clone(log)
	}
	g.head = &simDir{base: g.head.base, log: log}
	g.members = g.head.members()
	return true
}

// run lets etcd do what it does by itself: catch up, publish names, notice a removal, be healthy or not.
func (s *sim) run() {
	for _, g := range s.groups() {
		if !g.quorum {
			continue
		}
		for _, n := range g.nodes {
			m := findMember(g.members, n.dir().member)
			if m == nil {
				n.running = false // "the member has been removed"
				continue
			}
			n.dir().log = slices.Clone(g.head.log)
			n.dir().base = g.head.base
			n.wellAt = s.now
			if m.Name == "" {
				members := slices.Clone(g.members)
				findMember(members, m.ID).Name = string(n.id)
				s.propose(g, simEntry{members: members})
			}
		}
		s.settleVersion(g)
		for _, n := range g.nodes {
			if findMember(g.members, n.dir().member) != nil {
				n.dir().keeps = s.keeps[g.token]
			}
		}
	}
}

// launch starts etcd's process in the version that the state names. No etcd starts on data of a
// cluster that keeps to a newer minor version, or to one that is two older.
func (s *sim) launch(n *simNode, quarantined bool) {
	t := n.state.Token
	n.running, n.quarantined, n.wellAt, n.runs = true, quarantined, s.now, n.state.EtcdVersion
	d := n.dir()
	if d == nil {
		return
	}
	switch keeps, minor := d.keeps, minorOf(n.runs); {
	case keeps == 0 || minor >= keeps && minor <= keeps+1:
	default:
		s.fail("node %s starts etcd %s in cluster %s, which keeps to 3.%d", n.id, n.runs, t, keeps)
	}
}

// settleVersion is what etcd's leader does by itself: the members keep to the oldest version that
// runs, or to that of a downgrade, which ends when all run it.
func (s *sim) settleVersion(g *group) {
	lowest, highest := 99, 0
	for _, m := range g.members {
		var n *simNode
		for _, x := range g.nodes {
			if x.dir().member == m.ID {
				n = x
			}
		}
		if n == nil {
			return
		}
		lowest, highest = min(lowest, minorOf(n.runs)), max(highest, minorOf(n.runs))
	}
	t := g.token
	switch to := s.downTo[t]; {
	case to > 0 && highest == to:
		delete(s.downTo, t)
	case to > 0 && s.rng.IntN(3) == 0:
		s.keeps[t] = to
	case to == 0 && lowest > s.keeps[t] && s.rng.IntN(3) == 0:
		s.keeps[t] = lowest
	}
}

// downgrade begins or ends etcd's own downgrade, in the cluster that the leader saw.
func (s *sim) downgrade(l *simLeader, a model.Action) bool {
	token := look(sorted(l.o)).token
	for _, g := range s.groups() {
		if g.token != token || g.nodes[0].side != l.node.side || !g.quorum {
			continue
		}
		e, ok := a.(model.EnableDowngrade)
		switch {
		case !ok:
			delete(s.downTo, token)
		case minorOf(e.Version) == s.keeps[token]-1 && minorOf(e.Version) >= 5:
			s.downTo[token] = minorOf(e.Version)
		}
		return true
	}
	return false
}

func simMemberID(token cluster.Token, name string, nonce int) cluster.MemberID {
	h := fnv.New64()
	fmt.Fprintf(h, "%s %s %d", token, name, nonce)
	return cluster.MemberID(h.Sum64()&0xffffffffff | 1)
}

func foundingMembers(token cluster.Token, nodes []cluster.EtcdNode) []cluster.Member {
	var list []cluster.Member
	for _, n := range nodes {
		list = append(list, cluster.Member{ID: simMemberID(token, n.Name, 0), Name: n.Name, PeerURLs: n.PeerURLs, ClientURLs: n.ClientURLs})
	}
	return list
}

// status is what a node says of itself.
func (s *sim) status(n *simNode) cluster.NodeStatus {
	st := cluster.NodeStatus{ID: n.id, Instance: fmt.Sprintf("%s-%d", n.id, n.instance), Self: etcdNode(string(n.id)),
		Term: n.term, State: n.state.Clone(),
		DataPresent: n.dir() != nil, Versions: []string{"3.4.23", "3.5.29", "3.6.16", "3.7.3"}, Holding: n.holding()}
	if j := n.journal; j != nil {
		st.Operation = j.op
		if j.phase != "" && j.phase != "reverted" && j.token != "" {
			st.Staged = []cluster.StagedDir{{Operation: j.op, Token: j.token, Revision: j.rev, Hash: j.hash,
				Switched: j.is(j.op, "switched", "halted"), Halted: j.phase == "halted", Written: j.written}}
		}
	}
	for t, d := range n.trash {
		st.Trash = append(st.Trash, cluster.TrashEntry{Token: t, RaftTerm: 1, RaftIndex: uint64(len(d.log))})
	}
	slices.SortFunc(st.Trash, func(a, b cluster.TrashEntry) int { return strings.Compare(string(a.Token), string(b.Token)) })
	e := &st.Etcd
	e.Running = n.running && n.state != nil
	e.Quarantined = e.Running && n.quarantined
	if d := n.dir(); d != nil {
		e.MemberID = d.member
		e.AppliedIndex = uint64(len(d.log)) * 10
		e.Revision = d.revision()
	}
	e.UnhealthyFor = s.now - n.wellAt
	if e.Running {
		e.Version = n.runs
	}
	if !n.serving() {
		return st
	}
	g := s.groupOf(n)
	e.RaftIndex = uint64(len(g.head.log)) * 10
	m := findMember(g.members, n.dir().member)
	if g.quorum && m != nil {
		e.Healthy, e.UnhealthyFor, e.LeaderID, e.Learner = true, 0, g.leader, m.Learner
		e.Members = slices.Clone(g.members)
		e.ClusterVersion = fmt.Sprintf("3.%d.0", s.keeps[n.state.Token])
		if to := s.downTo[n.state.Token]; to > 0 {
			e.DowngradeTarget = fmt.Sprintf("3.%d.0", to)
		}
	} else if m != nil && m.Learner { // it keeps the last leader that it has heard of
		e.Healthy, e.UnhealthyFor, e.LeaderID, e.Learner = true, 0, m.ID+1, true
	}
	return st
}
