package sim

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// truth is what the world knows and no manager does: which cluster clients write to, what they were told is safe, and whom nodes have
// obeyed. All of it is guarded by the world's mu.
type truth struct {
	w        *world
	legit    cluster.Token
	past     map[cluster.Token]bool
	restores map[cluster.Token]*restore
	safe     []int // writes that clients were told are safe
	maxRev   int64
	marker   catalog.Marker
	named    map[cluster.Token]bool // by the marker, at some time
	// strict is true while two majorities of the wanted members always share a node.
	strict  bool
	leaders map[cluster.Term]cluster.NodeID
	heard   map[cluster.NodeID]leadership
	// forgotten is the highest term of a vote that went with its disk: up to there a node may vote twice.
	forgotten cluster.Term
	op        *catalog.Operation
	highest   cluster.Term // in the store's leader record
}

// restore is what is to be found in a restored cluster once clients are served from it.
type restore struct {
	writes []int
	op     string
	known  bool
	over   bool // it was taken back, or failed
}

func newTruth(w *world) truth {
	return truth{w: w, past: map[cluster.Token]bool{}, named: map[cluster.Token]bool{},
		restores: map[cluster.Token]*restore{}, leaders: map[cluster.Term]cluster.NodeID{},
		heard: map[cluster.NodeID]leadership{}, strict: true}
}

// elected: at most one node holds the lease of a term, and no two nodes hold a lease at once.
func (tr *truth) elected(n *node, term cluster.Term) {
	if old, ok := tr.leaders[term]; ok && tr.strict && term > tr.forgotten {
		tr.w.check(old == n.id, "term %d is led by %s and was led by %s", term, n.id, old)
	}
	tr.leaders[term] = n.id
	for _, x := range tr.w.nodes {
		if p := x.proc; tr.strict && term > tr.forgotten && x != n && p != nil && !p.standsStill() && p.owed == 0 {
			s := p.machine.State()
			tr.w.check(!s.Leads(), "%s has the lease of term %d, and that of %s for term %d hasn't ended", n.id, term, x.id, s.Term)
		}
	}
}

// obeyed: a node obeys no lower term than before, and one leader in a term.
func (tr *truth) obeyed(n *node, term cluster.Term, leader cluster.NodeID) {
	old := tr.heard[n.id]
	tr.w.check(term >= old.term, "%s obeys term %d of %s after term %d of %s", n.id, term, leader, old.term, old.leader)
	tr.w.check(term != old.term || leader == old.leader, "%s obeys %s and %s in term %d", n.id, leader, old.leader, term)
	if tr.strict && term > tr.forgotten {
		for id, h := range tr.heard {
			tr.w.check(h.term != term || h.leader == leader, "in term %d %s obeys %s and %s obeys %s", term, id, h.leader, n.id, leader)
		}
	}
	tr.heard[n.id] = leadership{term, leader}
}

// forget is what the loss of a disk does.
func (tr *truth) forget(n *node) {
	tr.forgotten = max(tr.forgotten, n.disk.vote.Term)
	delete(tr.heard, n.id)
}

const (
	markerKey  = "control/etcd-cluster-created"
	operations = "control/operations/"
)

// stored looks at what was written to the store.
func (tr *truth) stored(p *proc, key string, data []byte) {
	w := tr.w
	switch {
	case key == markerKey:
		m, _, err := w.catalog.Marker(context.Background())
		if err != nil {
			w.fail("the marker can't be read: %v", err)
			return
		}
		w.log("marker: %s %s by %s", m.Phase, w.name("T", string(m.Token)), p.n.id)
		r := tr.restores[m.Token]
		w.check(tr.legit == "" || m.Token == tr.legit || r != nil,
			"the marker names a new cluster, and clients write to %s", w.name("T", string(tr.legit)))
		tr.marker, tr.named[m.Token] = m, true
		if m.Phase == catalog.PhaseFormed {
			w.did["marker formed"]++
		}
	case strings.HasPrefix(key, operations):
		op, err := catalog.DecodeOperation(key, data)
		if err != nil || op.Kind != catalog.KindRestore {
			return
		}
		if tr.op == nil || tr.op.ID != op.ID || tr.op.State != op.State {
			w.log("restore %s: %s %s (%s) by %s", w.name("R", op.ID), op.State, op.Reason, w.name("T", string(op.NewToken)), p.n.id)
			w.did["restore "+string(op.State)]++
		}
		if tr.op != nil && tr.op.ID == op.ID && op.State.Committing() && !tr.op.State.Committing() {
			tr.commits(&op)
		}
		tr.op = &op
		r := tr.restores[op.NewToken]
		if r == nil && op.NewToken != "" {
			r = &restore{op: op.ID}
			tr.restores[op.NewToken] = r
		}
		if r != nil && (op.State == catalog.StateRolledBack || op.State == catalog.StateFailed) {
			w.check(op.NewToken != tr.legit, "restore %s ends as %s, and clients write to what it made", w.name("R", op.ID), op.State)
			r.over = true
		}
	case key == "control/leader":
		r, _, err := w.catalog.Leader(context.Background())
		if err == nil {
			w.check(r.Term >= tr.highest, "the term in the store goes back from %d to %d", tr.highest, r.Term)
			tr.highest = max(tr.highest, r.Term)
		}
	}
}

// commits: a restore stops nothing before a majority of its members has proven and staged it.
func (tr *truth) commits(op *catalog.Operation) {
	have := 0
	for _, m := range op.Members {
		n := tr.w.node(cluster.NodeID(m.Name))
		x := n.disk.opNow()
		staged := x != nil && x.id == op.ID && x.phase != phaseBegun && x.phase != phaseProven
		if staged || !n.wiped.IsZero() && time.Since(n.wiped) < 10*time.Minute {
			have++
		}
	}
	tr.w.check(have == len(op.Members),
		"restore %s goes to %s, and only %d of %d nodes have it staged", op.ID, op.State, have, len(op.Members))
}

// started looks at an etcd that has just been started.
func (tr *truth) started(n *node) {
	w, e := tr.w, n.etcd
	m := tr.marker
	r := tr.restores[e.token]
	if e.as.NewCluster {
		w.check(tr.named[e.token] || r != nil,
			"%s starts a founder of cluster %s, which no marker names", n.id, w.name("T", string(e.token)))
	}
	w.check(e.quarantined || m.Token == e.token && m.Phase == catalog.PhaseFormed || r != nil || e.token == tr.legit || tr.past[e.token],
		"%s starts cluster %s open to clients, and the marker says %s %s", n.id, w.name("T", string(e.token)),
		m.Phase, w.name("T", string(m.Token)))
}

// staged notes what a restore brings.
func (tr *truth) staged(_ *node, op *journalOp, writes []int) {
	r := tr.restores[op.token]
	if r == nil {
		tr.w.fail("restore %s is staged, and the store has no record of it", op.id)
		return
	}
	if b, err := tr.w.backup(op.backup); err == nil {
		tr.w.check(slices.Equal(b.Writes, writes), "restore %s stages %d writes, and its backup has %d", op.id, len(writes), len(b.Writes))
	}
	tr.w.check(!r.known || slices.Equal(r.writes, writes), "restore %s is staged with other data on another node", op.id)
	r.writes, r.known = slices.Clone(writes), true
}

// stops: nothing that serves is stopped for a restore that is over.
func (tr *truth) stops(n *node, op *journalOp) {
	if n.etcd == nil || op.record == nil {
		return
	}
	rec, err := catalog.DecodeOperation("journal", op.record)
	if err != nil {
		return
	}
	r := tr.restores[rec.NewToken]
	tr.w.check(r != nil && !r.over, "%s is stopped for restore %s, which is over", n.id, op.id)
}

// restarts: of a cluster that serves, the managers never have so many members down at once that it loses its quorum.
func (tr *truth) restarts(n *node, s *cluster.EtcdState) {
	w := tr.w
	if n.etcd == nil || n.etcd.version == s.EtcdVersion && n.etcd.quarantined == s.Quarantined || n.etcd.quarantined || !w.healthy(n) {
		return
	}
	r := w.raft(s.Token)
	members := w.lead(r).disk.dirs[s.Token].members()
	down := 1
	for _, x := range w.nodes {
		if x != n && x.stopped && x.disk.state != nil && x.disk.state.Token == s.Token && !w.healthy(x) {
			down++
		}
	}
	all := voters(members)
	w.check(all < 3 || all-down >= cluster.Quorum(all),
		"%s is restarted while %d of %d members are down for the same reason", n.id, down-1, all)
	n.stopped = true
	w.did["restarted in order"]++
}

// setAside: a member that the cluster counts on keeps its data.
func (tr *truth) setAside(n *node, t cluster.Token) {
	w := tr.w
	if t != tr.legit || n.etcd == nil || !w.healthy(n) {
		return
	}
	m := memberOf(n.dir().members(), n.dir().member)
	w.check(m == nil || m.Learner, "%s is a healthy member of the cluster that clients write to, and its data are set aside", n.id)
}

// removes: a member that is healthy is only removed if enough others are.
func (tr *truth) removes(r *raft, members []cluster.Member, id cluster.MemberID) {
	w := tr.w
	left, all := 0, 0
	for _, m := range members {
		if m.Learner || m.ID == id {
			continue
		}
		all++
		if slices.ContainsFunc(w.nodes, func(x *node) bool { return x.runs(r.token) && x.dir().member == m.ID && w.healthy(x) }) {
			left++
		}
	}
	w.check(all == 0 || left >= cluster.Quorum(all), "member %s of cluster %s is removed, and %d of the %d others are healthy", id,
		w.name("T", string(r.token)), left, all)
}

// serves tells whether clients may write to a cluster, and follows which one they write to.
func (tr *truth) serves(r *raft, l *node) bool {
	w := tr.w
	switch {
	case r.token == tr.legit:
	case tr.legit == "" && tr.restores[r.token] == nil:
		w.check(tr.marker.Token == r.token,
			"clients write to cluster %s, and the marker names %s", w.name("T", string(r.token)), w.name("T", string(tr.marker.Token)))
		tr.legit = r.token
		w.did["cluster formed"]++
	case tr.past[r.token]:
		w.fail("cluster %s takes a write, and it was replaced by %s", w.name("T", string(r.token)), w.name("T", string(tr.legit)))
	default:
		x := tr.restores[r.token]
		if x == nil || x.over || !x.known {
			w.fail("cluster %s takes a write, and %s is the cluster", w.name("T", string(r.token)), w.name("T", string(tr.legit)))
			return false
		}
		w.log("clients write to what restore %s has made", w.name("R", x.op))
		w.did["restore served"]++
		tr.past[tr.legit] = true
		tr.legit, tr.safe = r.token, slices.Clone(x.writes)
		tr.remembers(l.disk.dirs[r.token])
	}
	return w.violation == ""
}

// acked: what was told to be safe is there, and revisions only grow.
func (tr *truth) acked(r *raft, l *node, x int) {
	w, d := tr.w, l.disk.dirs[r.token]
	tr.safe = append(tr.safe, x)
	rev := d.revision()
	w.check(rev > tr.maxRev, "the revision goes back from %d to %d", tr.maxRev, rev)
	tr.maxRev = rev
	w.did["write acknowledged"]++
	if x%8 == 0 {
		tr.remembers(d)
	}
}

func (tr *truth) remembers(d *dir) {
	have := map[int]bool{}
	for _, x := range d.writes() {
		have[x] = true
	}
	for _, x := range tr.safe {
		if !have[x] {
			tr.w.check(false, "write %d was acknowledged and is lost", x)
			return
		}
	}
	tr.w.checks++
}

// watch asserts what must be so at every moment.
func (tr *truth) watch() {
	w := tr.w
	var open []cluster.Token
	for _, n := range w.nodes {
		if n.etcd == nil {
			continue
		}
		if w.healthy(n) {
			n.stopped = false
			if !n.etcd.quarantined && !slices.Contains(open, n.etcd.token) {
				open = append(open, n.etcd.token)
			}
		}
	}
	w.check(len(open) <= 1, "two clusters serve at once: %d", len(open))
}
