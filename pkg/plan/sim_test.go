package plan

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

var (
	simSeeds = flag.Int("sim.seeds", 160, "how many clusters are simulated")
	simSeed  = flag.Int("sim.seed", -1, "simulate only this one, and print what happens")
)

// sim is one simulated world. The rules: at most one cluster is ever formed for the store; no acknowledged write is lost, except by a
// restore that was asked for; nothing is stopped before everything is staged; and when the faults end, it becomes what the spec says.
type sim struct {
	t       *testing.T
	seed    int
	rng     *rand.Rand
	now     time.Duration
	nodes   []*simNode
	store   simStore
	spec    cluster.Spec
	policy  model.Policy
	lead    []*simLeader
	faults  bool
	n       int
	trace   []string
	last    string
	did     map[string]int
	failed  bool
	dark    bool
	bargain bool // a restore was ended before it served, as another one was asked for

	legit    cluster.Token          // the cluster that clients write to
	past     map[cluster.Token]bool // those that they wrote to before
	restores map[cluster.Token]*simRestore
	sick     map[cluster.Token]time.Duration // until when a restored etcd doesn't get well
	keeps    map[cluster.Token]int           // the minor version that all members keep to
	downTo   map[cluster.Token]int           // for which a downgrade is enabled
	eager    map[cluster.Token]bool          // whether clients try to write to it meanwhile
	acked    map[int]bool                    // writes that clients were told are safe
	maxRev   int64
	wiped    map[cluster.NodeID]time.Duration
}

func (s *sim) count() int { s.n++; return s.n }

func (s *sim) log(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	if line == s.last {
		return
	}
	s.last = line
	s.trace = append(s.trace, fmt.Sprintf("%8s  ", s.now)+line)
}

func (s *sim) fail(format string, args ...any) {
	if s.failed {
		return
	}
	s.failed = true
	s.t.Errorf("seed %d: "+format, append([]any{s.seed}, args...)...)
	s.t.Logf("what happened (-sim.seed=%d):\n%s\n%s", s.seed, strings.Join(s.trace[max(0, len(s.trace)-60):], "\n"), s.picture())
}

func (s *sim) picture() string {
	var b strings.Builder
	for _, n := range s.nodes {
		st := s.status(n)
		state := "no state"
		if st.State != nil {
			state = fmt.Sprintf("token %s of %v quarantined=%v", st.State.Token, nodeNames(st.State.Nodes), st.State.Quarantined)
		}
		if n.state != nil {
			fmt.Fprintf(&b, "%s runs %s, state %s, keeps %d, downgrade %d\n", n.id, n.runs, n.state.EtcdVersion,
				s.keeps[n.state.Token], s.downTo[n.state.Token])
		}
		fmt.Fprintf(&b, "%s up=%v manager=%v side=%d store=%v term=%d: %s data=%v running=%v healthy=%v holding=%v members=%v\n",
			n.id, n.up, n.manager, n.side, n.store, n.term,
			state, st.DataPresent, st.Etcd.Running, st.Etcd.Healthy, st.Holding, memberNames(st.Etcd.Members))
		if j := n.journal; j != nil {
			fmt.Fprintf(&b, "  journal: %s %s written=%v\n", j.op, j.phase, j.written)
		}
	}
	fmt.Fprintf(&b, "marker %s %s, commands %v, operation %+v, spec %d, legit %s", s.store.marker.Phase,
		s.store.marker.Token, s.store.commands, s.store.op, s.spec.MemberCount, s.legit)
	return b.String()
}

func (s *sim) node(id cluster.NodeID) *simNode {
	for _, n := range s.nodes {
		if n.id == id {
			return n
		}
	}
	return nil
}

// TestSimulation runs whole clusters through faults.
func TestSimulation(t *testing.T) {
	did := map[string]int{}
	from, to := 0, *simSeeds
	if !testutil.IsLong() {
		to /= 4
	}
	if *simSeed >= 0 {
		from, to = *simSeed, *simSeed+1
	}
	failures := 0
	for seed := from; seed < to && failures < 3; seed++ {
		s := newSim(t, seed)
		s.play()
		if *simSeed >= 0 {
			t.Log("\n" + strings.Join(s.trace, "\n") + "\n" + s.picture())
		}
		if s.failed {
			failures++
		}
		for k, v := range s.did {
			did[k] += v
		}
	}
	t.Log(did)
	if *simSeed >= 0 || to < 100 {
		return
	}
	for _, what := range []string{"cluster formed", "converged", "restore done", "restore failed",
		"restore rolled-back", "restore served", "restore goes on after a write", "halted with a write",
		"salvaged", "advance without the store", "record from the journals", "record written late", "write acked",
		"wipe", "model.ReplaceMarker", "model.Promote", "model.RemoveMember", "model.SetAside",
		"model.RestartMember", "model.EnableDowngrade"} {
		if did[what] == 0 {
			t.Errorf("no simulated cluster came to: %s", what)
		}
	}
}

func newSim(t *testing.T, seed int) *sim {
	s := &sim{t: t, seed: seed, rng: rand.New(rand.NewPCG(7, uint64(seed))), did: map[string]int{},
		acked: map[int]bool{}, wiped: map[cluster.NodeID]time.Duration{}, faults: true,
		past: map[cluster.Token]bool{}, restores: map[cluster.Token]*simRestore{},
		sick: map[cluster.Token]time.Duration{}, eager: map[cluster.Token]bool{}, keeps: map[cluster.Token]int{},
		downTo: map[cluster.Token]int{}}
	s.store = simStore{up: true, backups: map[string]simBackup{"BAD": {corrupt: true}}}
	s.policy = model.DefaultPolicy("3.6.16")
	size := []int{1, 2, 3, 3, 3, 4, 5, 5}[s.rng.IntN(8)]
	for i := range size {
		s.nodes = append(s.nodes, &simNode{id: cluster.NodeID(rune('a' + i)), up: true, manager: true, store: true,
			dirs: map[cluster.Token]*simDir{}, trash: map[cluster.Token]*simDir{}})
	}
	s.spec.MemberCount = s.someSize()
	return s
}

// someSize is a member count for which there are enough nodes.
func (s *sim) someSize() int {
	var fit []int
	for _, n := range []int{1, 3, 5} {
		if n <= len(s.nodes) {
			fit = append(fit, n)
		}
	}
	return fit[s.rng.IntN(len(fit))]
}

// elect makes a node leader if it reaches a majority of the wanted; those that it reaches know its term from then on.
func (s *sim) elect(n *simNode) {
	if !n.up || !n.manager {
		return
	}
	l := &simLeader{node: n, instance: n.instance, started: s.now, settled: s.now, beatAt: s.now, beat: -1,
		seen: map[cluster.NodeID]time.Duration{}, retryAt: -time.Second}
	var reached []*simNode
	for _, x := range s.nodes {
		if l.reaches(x) {
			reached = append(reached, x)
			l.term = max(l.term, x.term)
		}
	}
	if len(reached) < cluster.Quorum(s.spec.MemberCount) {
		return
	}
	l.term++
	for s.termUsed(l.term) { // terms are voted for: two majorities of the wanted may still have the same one only if disjoint
		l.term++
	}
	for _, x := range reached {
		x.term = l.term
	}
	s.lead = append(s.lead, l)
	s.log("%s leads in term %d", n.id, l.term)
}

func (s *sim) termUsed(t cluster.Term) bool {
	return slices.ContainsFunc(s.lead, func(l *simLeader) bool { return l.term == t })
}

func (s *sim) depose(l *simLeader) {
	s.lead = slices.DeleteFunc(s.lead, func(x *simLeader) bool { return x == l })
}

func (s *sim) play() {
	calm := s.rng.IntN(3) == 0  // let some form undisturbed, so that later faults meet a cluster
	storm := s.rng.IntN(2) == 0 // forming and the commit of a restore are short: some worlds break down just then
	s.dark = s.rng.IntN(3) == 0 // and in some the store goes away just then, and often the leader with it
	for i := range 600 {
		if s.failed {
			return
		}
		if !calm || i > 120 {
			s.fault()
			for range 4 {
				if storm && s.delicate() {
					s.fault()
				}
			}
			switch {
			case s.dark && s.delicate():
				s.eclipse()
			case s.dark && s.store.op == nil && s.rng.IntN(80) == 0:
				s.queue()
				s.restartAll()
			}
			if storm && s.store.marker.Phase == model.MarkerForming && s.rng.IntN(12) == 0 {
				s.rout()
			}
		}
		s.tick()
	}
	s.settle()
}

// delicate tells whether a cluster is being formed or a restore is being committed.
func (s *sim) delicate() bool {
	op := s.store.op
	return s.store.marker.Phase == model.MarkerForming || op != nil &&
		slices.Contains([]model.OperationState{model.OpSalvaging, model.OpStopping, model.OpSwitching,
			model.OpVerifying, model.OpReverting}, op.State)
}

// rout makes all founders but one crash.
func (s *sim) rout() {
	for i, f := range s.store.marker.Founders {
		if n := s.node(cluster.NodeID(f.Name)); n.up && i > 0 {
			s.log("%s crashes", n.id)
			n.up, n.manager, n.offAt = false, false, s.now
		}
	}
}

// eclipse takes the store away in the middle of a commit, and now and then the leader.
func (s *sim) eclipse() {
	if s.rng.IntN(4) == 0 && s.store.up {
		s.log("store away")
		s.store.up = false
	}
	if len(s.lead) > 0 && s.rng.IntN(12) == 0 {
		n := s.lead[s.rng.IntN(len(s.lead))].node
		s.killManager(n)
		s.startManager(n)
	}
}

// tick lets a little time pass, leaders act, and a client write.
func (s *sim) tick() {
	s.now += time.Duration(s.rng.IntN(4000)) * time.Millisecond
	s.lead = slices.DeleteFunc(s.lead, func(l *simLeader) bool { return !l.alive() })
	if len(s.lead) == 0 || s.rng.IntN(100) == 0 {
		s.elect(s.nodes[s.rng.IntN(len(s.nodes))])
	}
	for range 3 {
		if len(s.lead) > 0 {
			s.step(s.lead[s.rng.IntN(len(s.lead))])
		}
		for _, n := range s.nodes {
			if n.waits {
				s.startEtcd(n)
			}
		}
		s.run()
		if s.rng.IntN(2) == 0 {
			s.write()
		}
		s.watch()
	}
	s.write()
	s.watch()
}

// write is a client at work wherever it finds an etcd that answers.
func (s *sim) write() {
	for _, g := range s.groups() {
		if !g.open {
			if n := g.nodes[s.rng.IntN(len(g.nodes))]; s.eager[g.token] && s.rng.IntN(16) == 0 {
				n.dir().dirty = true // a client tries, and hears nothing
			}
			continue
		}
		switch {
		case s.legit == "" && s.restores[g.token] == nil:
			s.legit = g.token
			s.did["cluster formed"]++
		case g.token != s.legit && !s.past[g.token]:
			s.served(g)
		case g.token != s.legit:
			s.fail("cluster %s takes a write, but %s is the cluster", g.token, s.legit)
		}
		if s.failed {
			return
		}
		w := s.count()
		s.propose(g, simEntry{write: w})
		if s.rng.IntN(8) == 0 && !s.remembers(g) { // what is lost stays lost
			return
		}
		s.acked[w] = true
		s.did["write acked"]++
		rev := g.head.revision()
		if rev <= s.maxRev {
			s.fail("the revision went back from %d to %d", s.maxRev, rev)
		}
		s.maxRev = rev
	}
}

// remembers asserts that a cluster has all that clients were told is safe.
func (s *sim) remembers(g *group) bool {
	have := g.head.writes()
	for x := range s.acked {
		if !have[x] {
			s.fail("write %d was acknowledged and is lost in cluster %s", x, g.token)
			return false
		}
	}
	return true
}

// watch asserts what must be so at every moment.
func (s *sim) watch() {
	open := map[cluster.Token]bool{}
	for _, g := range s.groups() {
		if g.open {
			open[g.token] = true
		}
	}
	if len(open) > 1 {
		s.fail("two clusters serve: %v", slices.Collect(maps.Keys(open)))
	}
}

func (s *sim) wipedSince(id cluster.NodeID, d time.Duration) bool {
	at, ok := s.wiped[id]
	return ok && s.now-at < d
}

// quietLimit is how long something may keep a node out of sight while its etcd could serve: less than the leader's lease in the
// store, after which members that can't be seen count as gone, by design.
const quietLimit = 150 * time.Second

// fault breaks or mends something now and then.
func (s *sim) fault() {
	n := s.nodes[s.rng.IntN(len(s.nodes))]
	switch s.rng.IntN(200) {
	case 0, 1: // the daemon dies, etcd stays
		s.killManager(n)
	case 2, 3, 4, 5, 6:
		s.startManager(n)
	case 7, 8: // power
		s.log("%s crashes", n.id)
		if n.up {
			n.up, n.manager, n.offAt = false, false, s.now
		}
	case 9, 10, 11, 12, 13, 14:
		s.boot(n)
	case 15, 16:
		s.wipe(n)
	case 17:
		s.log("partition")
		for _, x := range s.nodes {
			x.side = s.rng.IntN(2)
		}
	case 18, 19:
		for _, x := range s.nodes {
			x.side = 0
		}
	case 20:
		s.log("store away")
		s.store.up = false
	case 21:
		s.log("store away for %s", n.id)
		n.store = false
	case 22, 23, 24, 25:
		s.store.up = true
		for _, x := range s.nodes {
			x.store = true
		}
	case 26:
		s.queue()
	case 31:
		if len(s.store.commands) > 0 && s.rng.IntN(3) == 0 {
			s.log("command %s is withdrawn", s.store.commands[0].Name)
			s.store.commands = s.store.commands[1:]
		}
	case 27:
		s.restartAll()
	case 28:
		s.spec.MemberCount = s.someSize()
		s.log("spec %d", s.spec.MemberCount)
	case 32, 33:
		s.spec.EtcdVersion = []string{"", "3.5.29", "3.6.16", "3.7.3", "3.4.23"}[s.rng.IntN(5)]
		s.log("spec version %q", s.spec.EtcdVersion)
	case 29, 30: // time passes
		s.now += time.Duration(s.rng.IntN(25)) * time.Second
	}
	whole := s.store.up && !slices.ContainsFunc(s.nodes, func(x *simNode) bool { return x.side != 0 || !x.store })
	for _, x := range s.nodes {
		if x.manager && whole {
			x.seenAt = s.now
		}
		if s.now-x.seenAt < quietLimit {
			continue
		}
		s.mend()
		s.startManager(x)
	}
}

func (s *sim) mend() {
	s.store.up = true
	for _, x := range s.nodes {
		x.side, x.store = 0, true
	}
}

func (s *sim) restartAll() {
	s.log("all managers restart")
	for _, x := range s.nodes {
		s.killManager(x)
		s.startManager(x)
	}
}

func (s *sim) killManager(n *simNode) {
	if n.manager {
		s.log("%s: manager dies", n.id)
		n.manager = false
	}
}

func (s *sim) startManager(n *simNode) {
	if !n.up || n.manager {
		return
	}
	s.log("%s: manager starts", n.id)
	n.manager, n.queued = true, false
	n.instance++
	if s.storeUp(n) {
		n.waits = n.state != nil && !n.running && s.replaced(n)
	}
	s.startEtcd(n)
}

// startEtcd is what a daemon does by itself: it starts the etcd that is there, unless it is held, or waits.
func (s *sim) startEtcd(n *simNode) {
	n.waits = n.waits && n.state != nil && (!s.storeUp(n) || s.replaced(n))
	if n.up && n.manager && n.state != nil && !n.running && !n.waits && !n.holding() {
		s.launch(n, n.state.Quarantined)
	}
}

// replaced tells whether the store says that another cluster is the one now than that of a node that was off in the meantime.
func (s *sim) replaced(n *simNode) bool {
	st, t := &s.store, n.state.Token
	committed := st.op != nil && slices.Contains([]model.OperationState{model.OpStopping, model.OpSwitching, model.OpVerifying},
		st.op.State) && st.op.Token != t
	makes := st.op != nil && st.op.Token == t
	return committed || st.marker.Phase == model.MarkerFormed && st.marker.Token != t && !makes
}

func (s *sim) boot(n *simNode) {
	if !n.up {
		if s.now-n.offAt >= quietLimit {
			s.mend() // it counts as gone; that it comes back and sees nobody and no store is beyond what can be dealt with
		}
		n.up, n.running = true, false
		s.startManager(n)
	}
}

// wipe takes a node's disk away, unless with it a quorum of the disks that have every write would be gone: of the cluster that clients
// write to, of the one that the marker names, and of the one that is being restored.
func (s *sim) wipe(n *simNode) {
	tokens := []cluster.Token{s.legit, s.store.marker.Token}
	if op := s.store.op; op != nil {
		tokens = append(tokens, op.Token)
	}
	for _, t := range tokens {
		if !s.spares(n, t) {
			return
		}
	}
	s.log("%s: disk wiped", n.id)
	s.did["wipe"]++
	s.wiped[n.id] = s.now
	n.state, n.journal, n.dirs, n.trash = nil, nil, map[cluster.Token]*simDir{}, map[cluster.Token]*simDir{}
	n.waits, n.running, n.term = false, false, 0
	s.killManager(n)
	n.up = true
	s.startManager(n)
}

// spares tells whether a cluster can do without a node's disk.
func (s *sim) spares(n *simNode, token cluster.Token) bool {
	var head *simDir
	for _, x := range s.nodes {
		if d := x.dirs[token]; d != nil && (head == nil || len(d.log) > len(head.log)) {
			head = d
		}
	}
	if head == nil {
		return true
	}
	full := 0
	for _, x := range s.nodes {
		d := x.dirs[token]
		if x == n || d == nil || len(d.log) < len(head.log) {
			continue
		}
		if m := findMember(head.members(), d.member); m != nil && !m.Learner {
			full++
		}
	}
	return full >= cluster.Quorum(voterCount(head.members()))
}

// queue has the operator ask for a restore: of a good backup, of a corrupt one, of one that isn't there, of a survivor's data, of
// data in a trash can.
func (s *sim) queue() {
	c := model.Command{Name: fmt.Sprintf("r%06d", s.count()), Backup: "BAD", Spec: cluster.Spec{MemberCount: s.someSize()}}
	switch names := slices.Sorted(maps.Keys(s.store.backups)); s.rng.IntN(8) {
	case 0:
	case 1:
		c.Backup = "MISSING"
	case 2, 3:
		c.Backup, c.Source = "", s.someSource()
		if s.rng.IntN(3) == 0 && len(names) > 0 {
			c.Source.OrBackup = names[s.rng.IntN(len(names))]
		}
	default:
		c.Backup = names[s.rng.IntN(len(names))]
	}
	if c.Backup == "" && c.Source.Token == "" {
		return
	}
	s.store.commands = append(s.store.commands, c)
	s.log("command %s restores %s with %d members", c.Name, c.What(), c.Spec.MemberCount)
}

// someSource is a data dir that an operator may want to go on with.
func (s *sim) someSource() model.Source {
	n := s.nodes[s.rng.IntN(len(s.nodes))]
	tokens := slices.Sorted(maps.Keys(n.trash))
	switch {
	case len(tokens) > 0 && s.rng.IntN(2) == 0:
		src := model.Source{Node: n.id, Token: tokens[s.rng.IntN(len(tokens))]}
		if s.rng.IntN(2) == 0 {
			src.Node = ""
		}
		return src
	case n.state != nil && !s.restoreOver(n.state.Token):
		return model.Source{Node: n.id, Token: n.state.Token}
	}
	return model.Source{}
}

func (s *sim) restoreOver(t cluster.Token) bool { return s.restores[t] != nil && s.restores[t].over }

// settle ends all faults and waits for the cluster to be what the spec says.
func (s *sim) settle() {
	s.log("the faults end")
	s.faults = false
	if s.spec.EtcdVersion == "3.4.23" { // which is refused
		s.spec.EtcdVersion = ""
	}
	s.mend()
	for _, n := range s.nodes {
		s.boot(n)
		s.killManager(n)
		s.startManager(n)
	}
	s.store.failed = nil // the operator has read why
	s.lead = nil
	for range 2500 {
		s.tick()
		if s.failed {
			return
		}
		if s.legit == "" && len(s.store.failed) > 0 {
			s.store.failed = nil
		}
		if st := &s.store; s.bargain && st.op == nil && len(st.commands) == 0 && !s.someoneServes() {
			s.askAgain()
		}
		if s.settled() {
			for _, g := range s.groups() {
				s.remembers(g)
			}
			s.did["converged"]++
			return
		}
	}
	s.fail("it doesn't become what is wanted")
}

// askAgain has the operator do what the alarm says, after a restore was ended in favor of another that came to nothing.
func (s *sim) askAgain() {
	for _, name := range slices.Sorted(maps.Keys(s.store.backups)) {
		if !s.store.backups[name].corrupt {
			c := model.Command{Name: fmt.Sprintf("r%06d", s.count()), Backup: name, Spec: s.spec}
			s.store.commands = append(s.store.commands, c)
			s.log("command %s restores %s, as nobody is served", c.Name, name)
			break
		}
	}
	for _, n := range s.nodes {
		s.killManager(n)
		s.startManager(n)
	}
	s.lead = nil
}

// someoneServes tells whether clients are served.
func (s *sim) someoneServes() bool {
	return slices.ContainsFunc(s.groups(), func(g *group) bool { return g.open })
}

// settled tells whether the cluster is what the spec says.
func (s *sim) settled() bool {
	if len(s.store.commands) > 0 || s.store.op != nil || s.store.marker.Phase != model.MarkerFormed || s.store.marker.Token != s.legit {
		return false
	}
	members := 0
	for _, n := range s.nodes {
		if n.state == nil {
			continue
		}
		st := s.status(n)
		if v := s.spec.EtcdVersion; v != "" && n.runs != v {
			return false
		}
		if !st.Etcd.Healthy || st.Etcd.Quarantined || st.State.Quarantined || st.Etcd.Learner ||
			n.state.Token != s.legit || len(st.State.Nodes) != s.spec.MemberCount || len(st.Etcd.Members) != s.spec.MemberCount {
			return false
		}
		members++
	}
	return members == s.spec.MemberCount
}
