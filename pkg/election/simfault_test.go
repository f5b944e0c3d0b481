package election

import (
	"flag"
	"slices"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

var simSeeds = flag.Int("seeds", 20, "how many seeds of each kind of cluster are simulated")

// fault does one bad thing, or undoes some, and plans the next. The leader is hit more often than its share.
func (s *sim) fault() {
	if s.calm {
		return
	}
	s.after(int64(s.rng.IntN(8*simTick)), s.fault)
	n := s.nodes[s.rng.IntN(len(s.nodes))]
	if s.rng.IntN(2) == 0 {
		for _, l := range s.nodes {
			if l.m != nil && l.m.State().Role == Leader {
				n = l
			}
		}
	}
	back := int64(s.rng.IntN(4 * simElection * simTick))
	switch s.rng.IntN(15) {
	case 0, 1:
		s.crash(n)
		s.after(back, func() { s.start(n) })
	case 2: // a quick restart
		s.crash(n)
		s.start(n)
	case 3: // from and to one node
		s.split([]cluster.NodeID{n.id}, true, true)
		s.after(back, func() { s.cut = map[[2]cluster.NodeID]bool{} })
	case 4: // one way
		out := s.rng.IntN(2) == 0
		s.split([]cluster.NodeID{n.id}, out, !out)
		s.after(back, func() { s.cut = map[[2]cluster.NodeID]bool{} })
	case 5: // two halves
		var group []cluster.NodeID
		for _, id := range s.ids {
			if s.rng.IntN(2) == 0 {
				group = append(group, id)
			}
		}
		s.split(group, true, true)
		s.after(back, func() { s.cut = map[[2]cluster.NodeID]bool{} })
	case 6: // one link
		s.cut[[2]cluster.NodeID{n.id, s.ids[s.rng.IntN(len(s.ids))]}] = true
	case 7:
		s.cut = map[[2]cluster.NodeID]bool{}
	case 8:
		n.paused = n.m != nil
		s.after(back/2, func() { s.wake(n) })
	case 9:
		s.loss, s.dup = s.rng.IntN(4)*s.rng.IntN(15), s.rng.IntN(30)
		s.delay = 1 + s.rng.Int64N(int64(simTick*(1+s.rng.IntN(5))))
	case 10:
		n.interval = simTick + int64(s.rng.IntN(2*s.cfg.drift+1)-s.cfg.drift)
	default:
		s.order(n)
	}
}

// order is what a driver or an operator does with a node that is up.
func (s *sim) order(n *simNode) {
	if n.m == nil || n.paused {
		return
	}
	other := s.ids[s.rng.IntN(len(s.ids))]
	switch s.rng.IntN(6) {
	case 0:
		s.input(n, func() { _ = n.m.TransferLeadership(other) }) // refused if it doesn't lead, or has no such peer
	case 1:
		s.input(n, func() { n.m.Resign() })
	case 2:
		s.input(n, func() { n.m.SetEligible(s.rng.IntN(2) == 0) })
	case 3, 4: // also where it isn't so
		for _, o := range s.nodes {
			if o.m != nil && !o.paused && s.rng.IntN(2) == 0 {
				s.input(o, func() { o.m.PeerDown(n.id) })
			}
		}
	case 5:
		if s.cfg.rewants {
			s.input(n, func() { _ = n.m.SetWanted(1 + 2*s.rng.IntN(3)) })
		}
	}
}

func (s *sim) split(group []cluster.NodeID, out, in bool) {
	for _, a := range s.ids {
		for _, b := range s.ids {
			from, to := slices.Contains(group, a), slices.Contains(group, b)
			if out && from && !to || in && to && !from {
				s.cut[[2]cluster.NodeID{a, b}] = true
			}
		}
	}
}

// heal ends all faults.
func (s *sim) heal() {
	s.calm = true
	s.cut = map[[2]cluster.NodeID]bool{}
	s.delay = simTick / 4
	for _, n := range s.nodes {
		s.start(n)
		s.wake(n)
		s.input(n, func() { n.m.SetEligible(true) })
		if s.cfg.rewants {
			s.input(n, func() { _ = n.m.SetWanted(s.cfg.wanted) })
		}
	}
}

// settled tells whether one node leads, all follow it, and the store knows it.
func (s *sim) settled() bool {
	var leader *simNode
	for _, n := range s.nodes {
		if n.m.State().Leads() {
			if leader != nil {
				return false
			}
			leader = n
		}
	}
	if leader == nil || s.storeHolder != leader.id || s.storeTerm != leader.m.State().Term {
		return false
	}
	for _, n := range s.nodes {
		if st := n.m.State(); st.Leader != leader.id || st.Term != leader.m.State().Term {
			return false
		}
	}
	return true
}

// run is one whole simulation; it returns how many ticks it took after healing until there was one leader.
func (s *sim) run() int64 {
	s.after(0, s.fault)
	s.after(simTick, s.claims)
	s.until(int64(s.cfg.ticks)*simTick, nil)
	if s.violation != "" {
		return 0
	}
	s.heal()
	healed := s.now
	if s.cfg.nodes < cluster.Quorum(s.cfg.wanted) {
		s.until(healed+100*simTick, nil)
		if s.elections > 0 && !s.cfg.rewants {
			s.fail("%d of %d nodes elected a leader", s.cfg.nodes, s.cfg.wanted)
		}
		return 0
	}
	// Stragglers from before are still on their way for a while, hence the generous bound.
	if !s.until(healed+livenessTicks*simTick, s.settled) {
		s.fail("no leader %d ticks after everything was healed", livenessTicks)
		return 0
	}
	took := (s.now - healed) / simTick
	// It stays so. Stragglers may cost one more election.
	s.until(s.now+200*simTick, nil)
	if !s.settled() {
		s.fail("the leader was lost again")
	}
	before := s.elections
	s.until(s.now+200*simTick, nil)
	if s.elections != before {
		s.fail("a leader was elected while nothing was wrong")
	}
	return took
}

// livenessTicks is the number of ticks after which there must be a leader once all nodes run and hear each other.
const livenessTicks = 6 * simElection

func (s *sim) mustHold(t *testing.T) {
	t.Helper()
	if s.violation != "" {
		t.Fatalf("%d nodes, %d wanted: %s\n%s", s.cfg.nodes, s.cfg.wanted, s.violation, strings.Join(s.trace, "\n"))
	}
}

func TestSimulation(t *testing.T) {
	elections, worst := 0, int64(0)
	for nodes := 1; nodes <= 7; nodes++ {
		for _, wanted := range []int{1, 3, 5} {
			for seed := range *simSeeds {
				s := newSim(simConfig{
					seed: uint64(seed), nodes: nodes, wanted: wanted, ticks: 600, drift: simDrift,
					rewants: nodes != wanted && seed%4 == 0,
				})
				worst = max(worst, s.run())
				s.mustHold(t)
				elections += s.elections
			}
		}
	}
	t.Logf("%d clusters, %d elections, at most %d ticks from healing to one leader", 21**simSeeds, elections, worst)
}

// TestSimulationCatches breaks one rule at a time, in the driver or in the machine, and wants to see it found.
// It shows that TestSimulation can fail.
func TestSimulationCatches(t *testing.T) {
	for _, c := range []struct {
		name  string
		want  string // in the violation
		wreck func(*simConfig)
	}{
		{"messages are sent before the state is persisted", "voted for", func(c *simConfig) { c.persistLate = true }},
		{"a vote is forgotten", "voted for", func(c *simConfig) {
			c.sabotage = func(m *Machine, _ *Message) { m.hard.VotedFor = "" }
		}},
		{"voters don't keep their promise", "at once", func(c *simConfig) {
			c.sabotage = func(m *Machine, _ *Message) { m.promise = promise{} }
		}},
		{"voters don't wait after a restart", "at once", func(c *simConfig) {
			c.forget = func(m *Machine) { m.promise = promise{} }
		}},
		{"one vote of three is enough", "is led by", func(c *simConfig) {
			c.sabotage = func(m *Machine, _ *Message) { m.wanted = 1 }
		}},
		{"clocks differ by more than is stated", "at once", func(c *simConfig) { c.drift = 500 }},
		{"messages are taken before the ticks that are owed", "at once", func(c *simConfig) { c.stepBeforeDue = true }},
	} {
		t.Run(c.name, func(t *testing.T) {
			for seed := range uint64(3000) {
				cfg := simConfig{seed: seed, nodes: 3, wanted: 3, ticks: 600, drift: simDrift}
				c.wreck(&cfg)
				s := newSim(cfg)
				s.after(0, s.fault)
				s.until(int64(cfg.ticks)*simTick, nil)
				if s.violation != "" && strings.Contains(s.violation, c.want) {
					t.Log(s.violation)
					return
				}
			}
			t.Fatal("not found")
		})
	}
}
