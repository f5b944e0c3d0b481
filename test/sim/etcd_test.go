package sim

import (
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// A much simplified etcd that keeps to raft's rules: a leader needs the votes of a majority of the members that its own log names, each
// with a log that isn't newer than its own; an entry is committed once a majority has it; who has too little is brought up to date.

// entry is one entry of a log: a client's write, a member list, or nothing (what a new leader writes first).
type entry struct {
	term    int
	write   int
	members []cluster.Member
	// list is the member list that holds from here on.
	list []cluster.Member
}

// dir is an etcd data dir. What etcd writes is synced before it answers.
type dir struct {
	made   bool // etcd has written to it
	member cluster.MemberID
	base   int64 // the revision before the first entry
	log    []entry
	start  int  // how many writes it was staged with
	dirty  bool // its log has a client's write that was never acknowledged
	keeps  int  // the minor version that all members kept to when it last heard of them
}

// members is the newest member list in the log. Each entry knows where it stands.
func (d *dir) members() []cluster.Member {
	if len(d.log) == 0 {
		return nil
	}
	return d.log[len(d.log)-1].list
}

// add appends an entry.
func (d *dir) add(e entry) {
	if e.list = e.members; e.list == nil {
		e.list = d.members()
	}
	d.log = append(slices.Clip(d.log), e)
}

func (d *dir) writes() []int {
	var list []int
	for _, e := range d.log {
		if e.write != 0 {
			list = append(list, e.write)
		}
	}
	return list
}

func (d *dir) revision() int64 { return d.base + int64(len(d.writes())) }

func (d *dir) lastTerm() int {
	if len(d.log) == 0 {
		return 0
	}
	return d.log[len(d.log)-1].term
}

// newer tells whether d's log is newer than o's.
func (d *dir) newer(o *dir) bool {
	return d.lastTerm() > o.lastTerm() || d.lastTerm() == o.lastTerm() && len(d.log) > len(o.log)
}

// written tells what etcd's log says when it is halted: a client's write, or a change of the members.
func (d *dir) written() bool {
	changes := 0
	for _, e := range d.log {
		if e.members != nil {
			changes++
		}
	}
	return d.dirty || len(d.writes()) > d.start || changes > 1
}

func hashOf(writes []int) uint32 {
	h := fnv.New32a()
	for _, x := range writes {
		fmt.Fprint(h, x, " ")
	}
	return h.Sum32()
}

// etcdProc is a process of etcd on a machine.
type etcdProc struct {
	token       cluster.Token
	as          *cluster.EtcdState
	version     string
	quarantined bool
	started     time.Time
	ready       time.Time // when it has loaded what it has
	answered    time.Time
	joined      time.Time // when it got its member
}

// raft is what is common to all members of a cluster.
type raft struct {
	token  cluster.Token
	term   int
	leader *node
	proc   *etcdProc // of the leader
	lostAt time.Time
	commit int
	match  map[cluster.MemberID]int // how much each has ever acknowledged
	begun  map[cluster.MemberID]bool
	keeps  int
	sick   time.Time // until then a restored etcd doesn't get well
}

func voters(members []cluster.Member) int {
	n := 0
	for _, m := range members {
		if !m.Learner {
			n++
		}
	}
	return n
}

func memberOf(members []cluster.Member, id cluster.MemberID) *cluster.Member {
	for i := range members {
		if members[i].ID == id {
			return &members[i]
		}
	}
	return nil
}

func memberID(token cluster.Token, name string, nonce int) cluster.MemberID {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s %s %d", token, name, nonce)
	return cluster.MemberID(h.Sum64() | 1)
}

func founding(token cluster.Token, nodes []cluster.EtcdNode) []cluster.Member {
	var list []cluster.Member
	for _, n := range nodes {
		list = append(list, cluster.Member{ID: memberID(token, n.Name, 0), Name: n.Name, PeerURLs: n.PeerURLs, ClientURLs: n.ClientURLs})
	}
	return list
}

// All that follows is called with the world's mu held.

func (w *world) raft(t cluster.Token) *raft {
	r := w.rafts[t]
	if r == nil {
		r = &raft{token: t, match: map[cluster.MemberID]int{}, begun: map[cluster.MemberID]bool{}, lostAt: time.Now()}
		w.rafts[t] = r
	}
	return r
}

// runs tells whether a machine's etcd takes part in a cluster.
func (n *node) runs(t cluster.Token) bool {
	return n.up && n.etcd != nil && n.etcd.token == t && n.disk.dirs[t] != nil && n.disk.dirs[t].made && !time.Now().Before(n.etcd.ready)
}

// quorum are the running voters that a leader reaches, itself included, if they are enough; else nil.
func (w *world) quorum(r *raft, lead *node) []*node {
	if lead == nil || !lead.runs(r.token) || time.Now().Before(r.sick) {
		return nil
	}
	members := lead.disk.dirs[r.token].members()
	var list []*node
	for _, x := range w.nodes {
		if !x.runs(r.token) || !w.both(lead, x) {
			continue
		}
		if m := memberOf(members, x.disk.dirs[r.token].member); m != nil && !m.Learner {
			list = append(list, x)
		}
	}
	if len(list) < cluster.Quorum(voters(members)) || !slices.Contains(list, lead) {
		return nil
	}
	return list
}

// lead is the leader of a cluster that can commit at this moment, or nil.
func (w *world) lead(r *raft) *node {
	if r.leader == nil || r.leader.etcd != r.proc || w.quorum(r, r.leader) == nil {
		return nil
	}
	return r.leader
}

// tickEtcd lets all clusters do what they do by themselves.
func (w *world) tickEtcd() {
	var tokens []cluster.Token
	for _, n := range w.nodes {
		if n.etcd == nil {
			continue
		}
		w.launchDue(n)
		if n.etcd != nil && !slices.Contains(tokens, n.etcd.token) {
			tokens = append(tokens, n.etcd.token)
		}
	}
	for _, t := range tokens {
		r := w.raft(t)
		if w.lead(r) == nil {
			if r.leader != nil {
				r.leader, r.proc, r.lostAt = nil, nil, time.Now()
				w.changedAll(t)
			}
			if time.Since(r.lostAt) >= time.Second+w.drawn(time.Second, "raft election") {
				w.elect(r)
			}
		}
		if w.lead(r) != nil {
			w.replicate(r)
		}
	}
}

// elect makes a leader if one can be made.
func (w *world) elect(r *raft) {
	first := int(w.draw(int64(len(w.nodes)), "raft candidate"))
	for i := range w.nodes {
		c := w.nodes[(first+i)%len(w.nodes)]
		if !c.runs(r.token) {
			continue
		}
		d := c.disk.dirs[r.token]
		m := memberOf(d.members(), d.member)
		if m == nil || m.Learner || w.quorum(r, c) == nil {
			continue
		}
		votes := 0
		for _, x := range w.quorum(r, c) {
			if !x.disk.dirs[r.token].newer(d) {
				votes++
			}
		}
		if votes < cluster.Quorum(voters(d.members())) {
			continue
		}
		r.term = max(r.term, d.lastTerm()) + 1
		r.leader, r.proc = c, c.etcd
		w.check(len(d.log) >= r.commit, "etcd's leader on %s in cluster %s lacks entries that were committed: it has %d of %d",
			c.id, w.name("T", string(r.token)), len(d.log), r.commit)
		w.propose(r, entry{})
		w.log("etcd of %s leads cluster %s", c.id, w.name("T", string(r.token)))
		w.changedAll(r.token)
		return
	}
}

// propose has the leader write an entry. It tells whether it is committed: on all members that are reached, or on just enough.
func (w *world) propose(r *raft, e entry) bool {
	l := w.lead(r)
	if l == nil {
		return false
	}
	d := l.disk.dirs[r.token]
	e.term = r.term
	d.add(e)
	members := d.members()
	need := cluster.Quorum(voters(members)) - 1
	if m := memberOf(members, d.member); m == nil || m.Learner {
		need++
	}
	lazy := e.write != 0 && w.draw(3, "lazy") == 0
	for _, x := range w.nodes {
		if x == l || !x.runs(r.token) || !w.both(l, x) {
			continue
		}
		m := memberOf(members, x.disk.dirs[r.token].member)
		if m == nil || m.Learner || lazy && need <= 0 {
			continue
		}
		need--
		w.bringUp(r, l, x)
	}
	r.match[d.member] = len(d.log)
	if need > 0 {
		return false
	}
	r.commit = max(r.commit, len(d.log))
	return true
}

// bringUp makes a member's log that of the leader.
func (w *world) bringUp(r *raft, l, x *node) {
	from, to := l.disk.dirs[r.token], x.disk.dirs[r.token]
	w.check(len(to.log) >= r.match[to.member],
		"member %s on %s of cluster %s has %d entries and has acknowledged %d: it was started without its data",
		to.member, x.id, w.name("T", string(r.token)), len(to.log), r.match[to.member])
	to.log, to.base, to.dirty = slices.Clip(from.log), from.base, to.dirty || from.dirty
	r.match[to.member] = len(to.log)
}

// learnTime is how long a member takes to catch up at most.
const learnTime = 4 * time.Second

// replicate is what a leader does all the time.
func (w *world) replicate(r *raft) {
	l := w.lead(r)
	d := l.disk.dirs[r.token]
	members := d.members()
	lowest, all := 99, true
	for _, x := range w.nodes {
		if !x.runs(r.token) || !w.both(l, x) {
			continue
		}
		m := memberOf(members, x.disk.dirs[r.token].member)
		if m == nil {
			w.exit(x, "the member has been removed from the cluster")
			continue
		}
		if m.Learner && time.Since(x.etcd.joined) < w.drawn(learnTime, "learn", string(x.id)) {
			continue
		}
		before := w.healthyIn(r, x)
		if w.bringUp(r, l, x); x.etcd == nil {
			continue
		}
		x.disk.dirs[r.token].keeps = r.keeps
		x.wellAt = time.Now()
		if x.etcd.answered.IsZero() {
			x.etcd.answered = time.Now()
			x.changed()
		}
		if m.Name == "" {
			next := slices.Clone(members)
			n := memberOf(next, m.ID)
			n.Name, n.ClientURLs = string(x.id), x.self().ClientURLs
			w.propose(r, entry{members: next})
			members = d.members()
			w.changedAll(r.token)
		} else if before != w.healthyIn(r, x) {
			x.changed()
		}
	}
	if n := len(d.log); n > r.commit { // what it had of another leader's
		r.commit = n
	}
	for _, m := range members {
		i := slices.IndexFunc(w.nodes, func(x *node) bool { return x.runs(r.token) && x.disk.dirs[r.token].member == m.ID })
		if i < 0 {
			all = false
			continue
		}
		lowest = min(lowest, minor(w.nodes[i].etcd.version))
	}
	if all && lowest > r.keeps {
		r.keeps = lowest
		w.changedAll(r.token)
	}
}

func minor(version string) int {
	v, err := cluster.ParseVersion(version)
	if err != nil {
		return 0
	}
	return v.Minor
}

// healthyIn tells whether a member answers what needs a quorum.
func (w *world) healthyIn(r *raft, x *node) bool {
	l := w.lead(r)
	return l != nil && x.runs(r.token) && w.both(l, x) && memberOf(l.disk.dirs[r.token].members(), x.disk.dirs[r.token].member) != nil &&
		!x.etcd.answered.IsZero()
}

func (w *world) healthy(x *node) bool {
	return x.etcd != nil && w.healthyIn(w.raft(x.etcd.token), x)
}

// launchDue gives an etcd that has loaded its member.
func (w *world) launchDue(n *node) {
	e := n.etcd
	if time.Now().Before(e.ready) {
		return
	}
	d := n.disk.dirs[e.token]
	if d == nil {
		w.exit(n, "its data dir is gone")
		return
	}
	if d.made {
		return
	}
	if e.as.NewCluster {
		w.found(n, d)
		return
	}
	r := w.raft(e.token)
	l := w.lead(r)
	if l == nil || !w.both(l, n) {
		w.exit(n, "no member of the cluster answers")
		return
	}
	for _, m := range l.disk.dirs[e.token].members() {
		if slices.Equal(m.PeerURLs, n.self().PeerURLs) {
			d.made, d.member, d.log, d.base = true, m.ID, nil, l.disk.dirs[e.token].base
			e.joined = time.Now()
			return
		}
	}
	w.exit(n, "it isn't in the cluster's member list")
}

// found is the first start of a founder. Its id follows from its name and the token, and it never starts twice under it: it would have
// forgotten what it has acknowledged and whom it has voted for. Etcd finds that out only from members that answer at this moment.
func (w *world) found(n *node, d *dir) {
	e, id := n.etcd, memberID(n.etcd.token, string(n.id), 0)
	if e.token != w.truth.legit && !slices.ContainsFunc(w.nodes, func(x *node) bool { return x.has(e.token) }) {
		delete(w.rafts, e.token) // nobody is left who has heard anything
	}
	r := w.raft(e.token)
	w.check(!r.begun[id], "founder %s of cluster %s is started again under its old id, without what it has acknowledged",
		n.id, w.name("T", string(e.token)))
	r.begun[id] = true
	d.made, d.member = true, id
	d.add(entry{members: founding(e.token, e.as.Nodes)})
	e.joined = time.Now()
}

// exit ends an etcd that nobody has asked to end.
func (w *world) exit(n *node, why string) {
	n.lastExit, n.restarts = why, n.restarts+1
	n.etcd, n.exitAt = nil, time.Now()
	n.changed()
}

// changedAll wakes those who look at the members of a cluster.
func (w *world) changedAll(t cluster.Token) {
	for _, n := range w.nodes {
		if n.etcd != nil && n.etcd.token == t {
			n.changed()
		}
	}
}

// write is a client at work: it asks one member.
func (w *world) write(n *node) {
	if n.etcd == nil || !n.runs(n.etcd.token) || n.etcd.quarantined {
		return
	}
	r := w.raft(n.etcd.token)
	l := w.lead(r)
	d := n.dir()
	if l == nil || !w.both(l, n) || n.etcd.answered.IsZero() {
		if w.draw(16, "dirty") == 0 && n.etcd != nil && !time.Now().Before(r.sick) {
			if m := memberOf(d.members(), d.member); m != nil && !m.Learner {
				d.dirty = true // a client tries, and hears nothing
			}
		}
		return
	}
	if m := memberOf(l.disk.dirs[r.token].members(), d.member); m == nil || m.Learner {
		return
	}
	if !w.truth.serves(r, l) {
		return
	}
	x := w.count()
	if !w.propose(r, entry{write: x}) {
		return
	}
	w.truth.acked(r, l, x)
}
