package peer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/election"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// inMemory runs a test in virtual time. What is measured is what waits, not what computes.
func inMemory(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newWorld(t, "")) })
}

// startAll starts managers that find each other through a store.
func (w *world) startAll(s *sharedStore, wanted int, ids ...cluster.NodeID) []*manager {
	w.t.Helper()
	var ms []*manager
	for _, id := range ids {
		ms = append(ms, w.start(id, wanted, nil, withSource(s.source(id))))
	}
	return ms
}

func withSource(s Source) option { return func(c *Config) { c.Sources = append(c.Sources, s) } }

func TestColdStart(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		w.strict = true
		ms := w.startAll(&sharedStore{}, 3, "a", "b", "c")
		known := w.eventually(2*time.Second, "everyone connected", func() bool { return allConnected(ms...) })
		elected := w.eventually(2*time.Second, "a leader", func() bool { return w.agreed(ms...) != nil })
		t.Logf("connected after %v, leader after %v more", known, elected)
	})
}

func TestSingleNodeLeadsAtOnce(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		a := w.start("a", 1, nil)
		took := w.eventually(500*time.Millisecond, "a leader", func() bool { return w.agreed(a) == a })
		t.Logf("leader after %v", took)
	})
}

func TestWantedUnknownElectsNobody(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		ms := w.startAll(&sharedStore{}, 0, "a", "b", "c")
		time.Sleep(time.Minute)
		if l := w.leaders(); len(l) != 0 {
			t.Fatalf("%v lead although nobody knows how many members are wanted", l)
		}
		for _, m := range ms {
			m.peers.SetWanted(3)
		}
		w.awaitLeader(3*time.Second, ms...)
	})
}

func TestLeaderKilled(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		w.strict = true
		ms := w.startAll(&sharedStore{}, 3, "a", "b", "c")
		leader := w.awaitLeader(5*time.Second, ms...)
		start := time.Now()
		leader.kill()
		w.awaitLeader(2500*time.Millisecond, others(ms, leader)...)
		t.Logf("process ended: another leads after %v", time.Since(start))
	})
}

func TestLeaderCutOff(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		w.strict = true // the old leader's work must end before the new one's begins
		ms := w.startAll(&sharedStore{}, 3, "a", "b", "c")
		for range 5 {
			leader := w.awaitLeader(10*time.Second, ms...)
			rest := others(ms, leader)
			start := time.Now()
			w.part([]*manager{leader}, rest)
			w.awaitLeader(4*time.Second, rest...)
			t.Logf("cut off: another leads after %v", time.Since(start))
			w.heal()
			w.eventually(10*time.Second, "everyone connected", func() bool { return allConnected(ms...) })
		}
		w.awaitLeader(10*time.Second, ms...)
	})
}

// TestSplitOfFive: two of five, and three of five, are a majority of the wanted three. Each side may elect; the store's fence
// decides which of the two leaders acts. After the split there is one.
func TestSplitOfFive(t *testing.T) {
	for _, before := range []bool{true, false} {
		inMemory(t, func(t *testing.T, w *world) {
			w.lax = true
			s := &sharedStore{}
			var ms []*manager
			if before {
				// The net is split before anybody has met anybody.
				groups := []*manager{{id: "a"}, {id: "b"}, {id: "c"}, {id: "d"}, {id: "e"}}
				w.part(groups[:2], groups[2:])
			}
			ms = w.startAll(s, 3, "a", "b", "c", "d", "e")
			if !before {
				w.awaitLeader(10*time.Second, ms...)
				w.part(ms[:2], ms[2:])
			}
			w.awaitLeader(15*time.Second, ms[:2]...)
			w.awaitLeader(15*time.Second, ms[2:]...)
			w.heal()
			w.eventually(20*time.Second, "exactly one leader", func() bool { return w.agreed(ms...) != nil })
			w.part(ms[:3], ms[3:])
			w.awaitLeader(15*time.Second, ms[:3]...)
			w.awaitLeader(15*time.Second, ms[3:]...)
			w.heal()
			w.eventually(20*time.Second, "exactly one leader", func() bool { return w.agreed(ms...) != nil })
			time.Sleep(time.Minute)
			if w.agreed(ms...) == nil {
				t.Fatalf("leaders a minute later: %v", w.leaders())
			}
		})
	}
}

func TestMinorityElectsNobody(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		w.strict = true
		ms := w.startAll(&sharedStore{}, 5, "a", "b", "c", "d", "e")
		w.awaitLeader(10*time.Second, ms...)
		w.part(ms[:2], ms[2:])
		w.awaitLeader(10*time.Second, ms[2:]...)
		time.Sleep(time.Minute)
		for _, m := range ms[:2] {
			if id, _ := m.peers.Leader(); id != "" {
				t.Errorf("%s, of two out of five, believes that %s leads", m.id, id)
			}
		}
	})
}

func TestRestartKeepsVotes(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		w.strict = true
		s := &sharedStore{}
		ms := w.startAll(s, 3, "a", "b", "c")
		var last cluster.Term
		for range 4 {
			leader := w.awaitLeader(10*time.Second, ms...)
			if _, term := leader.peers.Leader(); term < last {
				t.Fatalf("term %d after %d", term, last)
			} else {
				last = term
			}
			for i, m := range ms { // all at once, as after a power cut; memVotes refuses to take a vote back
				m.kill()
				ms[i] = w.startAt(m.id, m.addr, 3, m.votes, withSource(s.source(m.id)))
			}
		}
		leader := w.awaitLeader(10*time.Second, ms...)
		if _, term := leader.peers.Leader(); term <= last {
			t.Fatalf("term %d after a restart in term %d", term, last)
		}
	})
}

// TestGossip: everyone knows one other, by a seed, and all get to know all.
func TestGossip(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		a := w.start("a", 5, nil)
		ms := []*manager{a}
		for _, id := range []cluster.NodeID{"b", "c", "d", "e"} {
			seed := &fakeSource{name: "seed"}
			seed.set("a", a.addr)
			ms = append(ms, w.start(id, 5, nil, withSource(seed)))
		}
		took := w.eventually(3*time.Second, "everyone connected to everyone", func() bool { return allConnected(ms...) })
		t.Logf("after %v", took)
		w.awaitLeader(5*time.Second, ms...)
		for _, m := range ms {
			if e := m.peers.HostEntries(); len(e) != 5 || !slices.Equal(e["d.example.com"], []string{"127.0.0.1"}) {
				t.Errorf("host entries of %s: %v", m.id, e)
			}
		}
		// What a node says of itself later reaches all, and wins over what is older.
		self := ms[3].peers.Self()
		self.Addresses = []string{"10.9.9.9"}
		if err := ms[3].peers.SetSelf(self); err != nil {
			t.Fatal(err)
		}
		w.eventually(time.Second, "the new address everywhere", func() bool {
			return !slices.ContainsFunc(ms, func(m *manager) bool {
				return !slices.Equal(m.peers.HostEntries()["d.example.com"], []string{"10.9.9.9"})
			})
		})
	})
}

// TestMoved: a node that comes back elsewhere is found through the store, and what the others tell it of its past doesn't stay.
func TestMoved(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		s := &sharedStore{}
		ms := w.startAll(s, 3, "a", "b", "c")
		w.awaitLeader(5*time.Second, ms...)
		old := ms[2]
		old.kill()
		ms[2] = w.start("c", 3, old.votes, withSource(s.source("c")))
		w.awaitLeader(10*time.Second, ms...)
		w.eventually(5*time.Second, "everyone connected", func() bool { return allConnected(ms...) })
		for _, p := range ms[0].peers.Peers() {
			if p.ID == "c" && (p.Endpoints[0] != ms[2].addr || slices.Contains(p.Endpoints, old.addr)) {
				t.Errorf("c is believed to be at %v, not at %s", p.Endpoints, ms[2].addr)
			}
		}
	})
}

// TestForgedNames: names in the hosts file follow from node ids, and addresses are ones that a node can have, whatever others say.
func TestForgedNames(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		a := w.start("a", 1, nil)
		forged := []*protosv1.PeerInfo{
			{NodeId: "b", Endpoints: []string{"127.0.0.1:9"}, Addresses: []string{"10.0.0.2"}, HostNames: []string{"registry.example.org", "a.example.com"}},
			{NodeId: "c d", Endpoints: []string{"127.0.0.1:9"}, Addresses: []string{"10.0.0.3"}},
			{NodeId: "e#", Endpoints: []string{"127.0.0.1:9"}, Addresses: []string{"10.0.0.3"}},
			{NodeId: "f\n10.0.0.3 g", Endpoints: []string{"127.0.0.1:9"}, Addresses: []string{"10.0.0.3"}},
			{NodeId: "h", Endpoints: []string{"127.0.0.1:9"}, Addresses: []string{"0.0.0.0", "224.0.0.1", "255.255.255.255", "nowhere", "::"}},
			{NodeId: strings.Repeat("i", 64), Endpoints: []string{"127.0.0.1:9"}, Addresses: []string{"10.0.0.3"}},
		}
		for _, f := range forged {
			f.Incarnation = time.Now().Add(time.Hour).UnixNano()
		}
		a.peers.mu.Lock()
		a.peers.merge(forged, "b")
		a.peers.self.Addresses = []string{"10.0.0.1"}
		a.peers.mu.Unlock()
		want := map[string][]string{"a.example.com": nil, "b.example.com": {"10.0.0.2"}}
		got := a.peers.HostEntries()
		delete(want, "a.example.com") // it said 127.0.0.1, at which no other machine is
		if !maps.EqualFunc(got, want, slices.Equal) {
			t.Errorf("the hosts file gets %v; want %v", got, want)
		}
	})
}

func TestWrongCluster(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		s := &sharedStore{}
		stranger := w.start("c", 3, nil, withSource(s.source("c")), func(c *Config) { c.ClusterName = "etcd-events" })
		synctest.Wait() // until it has published itself
		ms := w.startAll(s, 2, "a", "b")
		w.awaitLeader(5*time.Second, ms...)
		for _, m := range append(ms, stranger) {
			w.eventually(5*time.Second, "a refusal that names both clusters", func() bool {
				return slices.ContainsFunc(m.peers.Peers(), func(p Peer) bool {
					return !p.Connected && strings.Contains(p.Problem, `"etcd"`) && strings.Contains(p.Problem, `"etcd-events"`)
				})
			})
		}
		time.Sleep(time.Minute)
		if l := w.leaders(); slices.Contains(l, "c") {
			t.Errorf("leaders: %v", l)
		}
		if e := ms[0].peers.HostEntries(); len(e) != 2 {
			t.Errorf("host entries: %v", e)
		}
	})
}

// TestForeign: other software on a node is neither dead nor a voter; when ours replaces it, it is one of us.
func TestForeign(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		listener, addr := w.listen("c", "")
		other := grpc.NewServer()
		served := make(chan struct{})
		go func() { defer close(served); _ = other.Serve(listener) }()
		seed := &fakeSource{name: "seed"}
		seed.set("c", addr)
		s := &sharedStore{}
		hostNames := func(c *Config) {
			c.HostNames = func(id cluster.NodeID) []string { return []string{string(id) + ".example.com"} }
		}
		a := w.start("a", 3, nil, withSource(s.source("a")), withSource(seed), hostNames)
		foreign := func(m *manager) bool {
			return slices.ContainsFunc(m.peers.Peers(), func(p Peer) bool {
				return p.ID == "c" && p.Foreign && !p.Connected && !p.LastSeen.IsZero() && strings.Contains(p.Problem, "UNIMPLEMENTED")
			})
		}
		w.eventually(5*time.Second, "c found to be foreign", func() bool { return foreign(a) })
		if e := a.peers.HostEntries()["c.example.com"]; !slices.Equal(e, []string{"10.0.0.1"}) {
			t.Errorf("host entry of a foreign node: %v", e)
		}
		time.Sleep(time.Minute)
		if l := w.leaders(); len(l) != 0 {
			t.Fatalf("%v lead alone among three", l)
		}
		b := w.start("b", 3, nil, withSource(s.source("b")), withSource(seed), hostNames)
		w.awaitLeader(10*time.Second, a, b)
		if !foreign(a) || !foreign(b) {
			t.Errorf("c isn't foreign any more")
		}
		other.Stop()
		<-served
		c := w.startAt("c", addr, 3, nil, withSource(s.source("c")))
		w.eventually(10*time.Second, "everyone connected", func() bool { return allConnected(a, b, c) })
		w.awaitLeader(10*time.Second, a, b, c)
	})
}

// TestForeignProtocol: what answers in another protocol is other software too, and not one that is dead.
func TestForeignProtocol(t *testing.T) {
	for _, tc := range []struct {
		problem string
		want    bool
	}{
		{`transport: authentication handshake failed: tls: first record does not look like a TLS handshake`, true},
		{`error reading server preface: http2: failed reading the frame payload: http2: frame too large, note that the frame header looked like an HTTP/1.1 header`, true},
		{`error reading server preface: EOF`, false},
		{`transport: authentication handshake failed: EOF`, false},
		{`transport: authentication handshake failed: tls: failed to verify certificate: x509: certificate signed by unknown authority`, false},
		{`transport: Error while dialing: dial tcp 127.0.0.1:3996: connect: connection refused`, false},
	} {
		if got := otherProtocol(tc.problem); got != tc.want {
			t.Errorf("%q: other protocol %t; want %t", tc.problem, got, tc.want)
		}
	}
}

func TestResign(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		w.strict = true
		ms := w.startAll(&sharedStore{}, 3, "a", "b", "c")
		leader := w.awaitLeader(5*time.Second, ms...)
		time.Sleep(10 * time.Second)
		start := time.Now()
		if err := leader.peers.Resign(t.Context()); err != nil {
			t.Fatal(err)
		}
		next := w.awaitLeader(time.Second, ms...)
		t.Logf("handed over after %v", time.Since(start))
		// It doesn't lead again, even if it is the only one that could be elected by the others.
		for _, m := range others(others(ms, leader), next) {
			if err := m.peers.Resign(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		next.kill()
		time.Sleep(time.Minute)
		if l := w.leaders(); len(l) != 0 {
			t.Errorf("%v lead after they have resigned", l)
		}
	})
}

func TestResignAlone(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		a := w.start("a", 1, nil)
		w.awaitLeader(time.Second, a)
		if err := a.peers.Resign(t.Context()); err != nil {
			t.Fatal(err)
		}
		if l := w.leaders(); len(l) != 0 {
			t.Errorf("%v lead", l)
		}
	})
}

// TestResignSlowWork: work that doesn't end can't keep a successor from leading, and Resign says so in the end.
func TestResignSlowWork(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		s := &sharedStore{}
		stuck := make(chan struct{})
		slow := func(c *Config) {
			c.Lead = func(ctx context.Context, _ cluster.Term) { <-ctx.Done(); <-stuck }
		}
		a := w.start("a", 2, nil, withSource(s.source("a")), slow)
		b := w.start("b", 2, nil, withSource(s.source("b")), slow)
		w.eventually(5*time.Second, "a leader known to both", func() bool {
			id, _ := a.peers.Leader()
			of, _ := b.peers.Leader()
			return id != "" && id == of
		})
		leader, other := a, b
		if id, _ := a.peers.Leader(); id == "b" {
			leader, other = b, a
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if err := leader.peers.Resign(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Resign: %v", err)
		}
		w.eventually(time.Second, "the other leads", func() bool { id, _ := leader.peers.Leader(); return id == other.id })
		close(stuck)
	})
}

func TestExceed(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		ms := w.startAll(&sharedStore{}, 3, "a", "b", "c")
		leader := w.awaitLeader(5*time.Second, ms...)
		leader.peers.Exceed(41)
		w.eventually(5*time.Second, "a leadership above 41", func() bool {
			l := w.agreed(ms...)
			if l == nil {
				return false
			}
			_, term := l.peers.Leader()
			return term > 41
		})
	})
}

// TestCorruptTerms: neither the store nor another manager disables the election by a term that no history reaches.
func TestCorruptTerms(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		s := &sharedStore{}
		ms := w.startAll(s, 3, "a", "b")
		ms = append(ms, w.start("c", 3, &memVotes{hard: election.Hard{Term: 1 << 40, VotedFor: "c"}}, withSource(s.source("c"))))
		leader := w.awaitLeader(5*time.Second, ms[0], ms[1])
		leader.peers.Exceed(math.MaxUint64)
		time.Sleep(10 * time.Second)
		if l := w.agreed(ms[0], ms[1]); l == nil {
			t.Error("nobody leads")
		} else if _, term := l.peers.Leader(); term > 10 {
			t.Errorf("the term is %d", term)
		}
		for _, m := range ms[:2] {
			m.peers.mu.Lock()
			if n := m.peers.nodes["c"]; n == nil || !n.corruptTerm || !n.connected {
				t.Errorf("node %s doesn't say what is wrong with c: %+v", m.id, n)
			}
			m.peers.mu.Unlock()
		}
	})
}

// TestLeads: who is asked for the lease says no from the moment at which another may win, not only once the leader's context has ended.
func TestLeads(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		ms := w.startAll(&sharedStore{}, 3, "a", "b", "c")
		leader := w.awaitLeader(5*time.Second, ms...)
		_, term := leader.peers.Leader()
		if !leader.peers.Leads(term) || leader.peers.Leads(term-1) || leader.peers.Leads(term+1) {
			t.Errorf("the leader of term %d holds another lease", term)
		}
		for _, m := range others(ms, leader) {
			if m.peers.Leads(term) {
				t.Errorf("%s holds the lease of %s", m.id, leader.id)
			}
		}
		// The driver is held up: nothing ticks.
		leader.peers.elect.mu.Lock()
		start := leader.peers.elect.start
		leader.peers.elect.start = start.Add(-leaseTicks * tick)
		leader.peers.elect.mu.Unlock()
		if leader.peers.Leads(term) {
			t.Error("the lease lasts for as long as nothing ticks")
		}
	})
}

// TestForget: a node that is gone for good is forgotten by all, nobody is taught it again, and it is known again when it comes back.
func TestForget(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		seed := &fakeSource{name: "seed"}
		a := w.start("a", 3, nil, withSource(seed))
		seed.set("a", a.addr)
		b := w.start("b", 3, nil, withSource(seed))
		gone := w.start("gone", 3, nil, withSource(seed))
		w.eventually(20*time.Second, "everyone connected", func() bool { return allConnected(a, b, gone) })
		a.peers.Forget("gone") // it is connected
		if len(a.peers.Peers()) != 2 {
			t.Error("a node that is connected was forgotten")
		}
		gone.kill()
		w.eventually(20*time.Second, "the loss noticed", func() bool {
			return slices.ContainsFunc(a.peers.Peers(), func(p Peer) bool { return p.ID == "gone" && !p.Connected })
		})
		knows := func(m *manager) bool {
			return slices.ContainsFunc(m.peers.Peers(), func(p Peer) bool { return p.ID == "gone" }) || m.peers.HostEntries()["gone.example.com"] != nil
		}
		w.eventually(20*time.Second, "it forgotten by all", func() bool {
			a.peers.Forget("gone")
			return !knows(a) && !knows(b)
		})
		c := w.start("c", 3, nil, withSource(seed))
		time.Sleep(2 * time.Minute)
		if knows(a) || knows(b) || knows(c) {
			t.Error("a node that was forgotten is known again")
		}
		before := a.peers.view.infos["gone"].Incarnation
		a.peers.Forget("gone")
		if after := a.peers.view.infos["gone"].Incarnation; after != before {
			t.Error("forgetting a node again is news to the others")
		}
		back := w.start("gone", 3, gone.votes, withSource(seed))
		w.eventually(20*time.Second, "it back", func() bool { return allConnected(a, b, c, back) })
		if !knows(a) || !knows(b) || !knows(c) {
			t.Error("a node that is back isn't known")
		}
	})
}

// TestForgottenWhileConnected: one manager notices last that a node is gone, and has heard by then that it is forgotten.
func TestForgottenWhileConnected(t *testing.T) {
	for name, notice := range map[string]func(b *manager, gone *node){
		"the connection breaks": func(b *manager, gone *node) { b.peers.lost(gone.link) },
		"a request fails":       func(b *manager, gone *node) { b.peers.failed(gone.link, status.Error(codes.Unavailable, "closed")) },
	} {
		t.Run(name, func(t *testing.T) {
			inMemory(t, func(t *testing.T, w *world) {
				seed := &fakeSource{name: "seed"}
				a := w.start("a", 3, nil, withSource(seed))
				seed.set("a", a.addr)
				b := w.start("b", 3, nil, withSource(seed))
				gone := w.start("gone", 3, nil, withSource(seed))
				w.eventually(20*time.Second, "everyone connected", func() bool { return allConnected(a, b, gone) })
				b.peers.mu.Lock() // nothing is noticed meanwhile
				gone.kill()
				n := b.peers.nodes["gone"]
				b.peers.merge([]*protosv1.PeerInfo{{NodeId: "gone", Incarnation: b.peers.view.infos["gone"].Incarnation + 1}}, "a")
				if !n.connected || b.peers.nodes["gone"] == nil {
					t.Error("a node that is connected was forgotten")
				}
				b.peers.mu.Unlock()
				notice(b, n)
				if slices.ContainsFunc(b.peers.Peers(), func(p Peer) bool { return p.ID == "gone" }) {
					t.Error("it is still known when it isn't connected any more")
				}
			})
		})
	}
}

// TestTombstonesAreBounded: what is remembered of nodes that are gone doesn't grow without an end, and goes away in the same order everywhere.
func TestTombstonesAreBounded(t *testing.T) {
	v, reverse := newView(), newView()
	for i := range 3 * maxTombstones {
		v.put(Info{ID: cluster.NodeID(fmt.Sprint("n", i)), Incarnation: int64(i + 1)})
		reverse.put(Info{ID: cluster.NodeID(fmt.Sprint("n", 3*maxTombstones-1-i)), Incarnation: int64(3*maxTombstones - i)})
	}
	if len(v.infos) != maxTombstones || v.digest != reverse.digest {
		t.Errorf("%d tombstones, %d the other way round, the same: %t", len(v.infos), len(reverse.infos), v.digest == reverse.digest)
	}
}

// TestWorkThatEnds: a leader whose work has ended gives way.
func TestWorkThatEnds(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		s := &sharedStore{}
		calls := 0
		lazy := func(c *Config) { c.Lead = func(context.Context, cluster.Term) { calls++ } }
		a := w.start("a", 2, nil, withSource(s.source("a")), lazy)
		b := w.start("b", 2, nil, withSource(s.source("b")))
		w.awaitLeader(20*time.Second, a, b)
		if l := w.leaders(); !slices.Equal(l, []cluster.NodeID{"b"}) {
			t.Errorf("leaders: %v", l)
		}
	})
}

// TestRivals: two processes with one node id. Neither leads; when one is gone the other may again.
func TestRivals(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		s := &sharedStore{}
		a := w.start("a", 3, nil, withSource(s.source("a")))
		b := w.start("b", 3, nil, withSource(s.source("b")))
		c1 := w.start("c", 3, nil, withSource(s.source("c")))
		w.awaitLeader(5*time.Second, a, b, c1)
		time.Sleep(5 * time.Second)
		c2 := w.start("c", 3, nil, withSource(s.source("c")))
		rivals := func(m *manager) bool {
			m.peers.mu.Lock()
			defer m.peers.mu.Unlock()
			return !m.peers.rivalUntil.IsZero()
		}
		w.eventually(time.Minute, "both notice", func() bool { return rivals(c1) && rivals(c2) })
		seen := func(p Peer) bool { return p.ID == "c" && p.Rival }
		w.eventually(time.Minute, "the others notice", func() bool {
			return slices.ContainsFunc(a.peers.Peers(), seen) && slices.ContainsFunc(b.peers.Peers(), seen)
		})
		w.eventually(time.Minute, "one of the others leads", func() bool {
			l := w.agreed(a, b)
			return l != nil && len(w.leaders()) == 1
		})
		calls := w.calls.Load()
		for range 120 {
			time.Sleep(time.Second)
			if slices.Contains(w.leaders(), "c") {
				t.Fatal("a node that exists twice leads")
			}
		}
		if n := w.calls.Load() - calls; n > 2*60*20 {
			t.Errorf("%d calls in two minutes: they outbid each other", n)
		}
		c2.kill()
		a.kill()
		w.awaitLeader(3*time.Minute, b, c1)
	})
}

// TestRivalsAlone: with one wanted member nobody else is there to tell them; they find each other's record in the store.
func TestRivalsAlone(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		s := &sharedStore{}
		w.start("a", 1, nil, withSource(s.source("a")))
		w.eventually(time.Second, "a leader", func() bool { return len(w.leaders()) == 1 })
		time.Sleep(time.Minute)
		w.lax = true // both lead until they meet: what that may do is up to the fence in the store
		w.start("a", 1, nil, withSource(s.source("a")))
		w.eventually(3*time.Minute, "neither leads", func() bool { return len(w.leaders()) == 0 })
		time.Sleep(2 * time.Minute)
		if l := w.leaders(); len(l) != 0 {
			t.Errorf("%v lead", l)
		}
	})
}

// TestVotesCantBeSaved: a node with a full disk votes for nobody, and goes on when there is room.
func TestVotesCantBeSaved(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		w.strict = true
		ms := w.startAll(&sharedStore{}, 3, "a", "b", "c")
		leader := w.awaitLeader(5*time.Second, ms...)
		rest := others(ms, leader)
		broken := rest[0].votes
		before := broken.hard
		full := errors.New("no space left on device")
		setFail := func(err error) { broken.mu.Lock(); broken.fail = err; broken.mu.Unlock() }
		setFail(full)
		leader.kill()
		time.Sleep(30 * time.Second)
		if l := w.leaders(); len(l) != 0 {
			t.Fatalf("%v lead without a saved majority of votes", l)
		}
		if broken.hard != before {
			t.Fatalf("vote %+v", broken.hard)
		}
		setFail(nil)
		w.awaitLeader(10*time.Second, rest...)
	})
}

func TestVotesCantBeLoaded(t *testing.T) {
	p, err := New(Config{ClusterName: "x", Self: Info{ID: "a", Endpoints: []string{"127.0.0.1:1"}}, Instance: "i",
		Votes: &memVotes{fail: cluster.ErrCorrupt}, Lead: func(context.Context, cluster.Term) {}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Run(t.Context()); !errors.Is(err, cluster.ErrCorrupt) {
		t.Errorf("Run: %v", err)
	}
}

// TestIdle bounds what a cluster at rest costs.
func TestIdle(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		s := &sharedStore{}
		ms := w.startAll(s, 3, "a", "b", "c")
		w.awaitLeader(5*time.Second, ms...)
		time.Sleep(2 * time.Minute)
		calls, requests, streams := w.calls.Load(), s.requests, w.streams.Load()
		const minutes = 30
		time.Sleep(minutes * time.Minute)
		perMinute := float64(w.calls.Load()-calls) / minutes
		// Two followers get two heartbeats a second each; beyond that followers speak every 20 s to each of the other two.
		if perMinute > 260 || perMinute < 240 {
			t.Errorf("%.1f calls a minute", perMinute)
		}
		if n := w.streams.Load() - streams; n > 0 {
			t.Errorf("%d streams were opened for them", n)
		}
		if r := float64(s.requests-requests) / minutes; r > 1.5 || r < 0.9 {
			t.Errorf("%.2f store requests a minute", r)
		} else {
			t.Logf("%.1f calls and %.2f store requests a minute", perMinute, r)
		}
	})
}

// TestPolling: fast while managers are missing, ever slower if they stay away, at once when one is lost.
func TestPolling(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		src := &fakeSource{name: "x"}
		a := w.start("a", 2, nil, withSource(src))
		time.Sleep(5 * time.Second)
		if n := src.count(); n < 5 || n > 10 {
			t.Errorf("%d polls in the first 5 s", n)
		}
		time.Sleep(10 * time.Minute)
		n := src.count()
		time.Sleep(10 * time.Minute)
		if n = src.count() - n; n < 9 || n > 12 {
			t.Errorf("%d polls in 10 min while a manager is missing", n)
		}
		b := w.start("b", 2, nil)
		src.set("b", b.addr)
		w.awaitLeader(2*time.Minute, a, b)
		time.Sleep(time.Second)
		n = src.count()
		b.kill()
		time.Sleep(4 * time.Second)
		if n = src.count() - n; n < 4 {
			t.Errorf("%d polls in the 4 s after a manager was lost", n)
		}
		// A node that was only ever found, and isn't any more, is forgotten.
		src.set("ghost", "10.0.0.99:8000")
		known := func() bool {
			return slices.ContainsFunc(a.peers.Peers(), func(p Peer) bool { return p.ID == "ghost" })
		}
		w.eventually(time.Minute, "a ghost found", known)
		src.mu.Lock()
		src.err = errors.New("away") // with an error, what is missing isn't forgotten
		delete(src.found, "ghost")
		src.mu.Unlock()
		time.Sleep(3 * time.Minute)
		if !known() {
			t.Error("forgotten because of an error")
		}
		src.mu.Lock()
		src.err = nil
		src.mu.Unlock()
		w.eventually(3*time.Minute, "the ghost forgotten", func() bool { return !known() })
	})
}

// TestStoreAway: managers that know each other need no source.
func TestStoreAway(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		s := &sharedStore{}
		ms := w.startAll(s, 3, "a", "b", "c")
		leader := w.awaitLeader(5*time.Second, ms...)
		s.mu.Lock()
		s.err = errors.New("away")
		s.mu.Unlock()
		time.Sleep(20 * time.Minute)
		if w.agreed(ms...) != leader {
			t.Errorf("leaders: %v", w.leaders())
		}
		leader.kill()
		w.awaitLeader(10*time.Second, others(ms, leader)...) // two of three may split their votes more than once
		// A record that someone has removed is written again.
		s.mu.Lock()
		s.err, s.records = nil, nil
		s.mu.Unlock()
		w.eventually(15*time.Minute, "the records back", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return len(s.records) == 2
		})
	})
}

// TestRandomFaults kills, restarts and parts at random; with as many nodes as wanted there are never two leaders at once, and in
// the end there is one.
func TestRandomFaults(t *testing.T) {
	for seed := range uint64(4) {
		inMemory(t, func(t *testing.T, w *world) {
			w.strict = true
			w.seed = 1000 * (seed + 1)
			s := &sharedStore{}
			ms := w.startAll(s, 5, "a", "b", "c", "d", "e")
			r := newLockedRand(rand.NewPCG(seed, 0))
			for range 60 {
				switch i := r.IntN(len(ms)); r.IntN(4) {
				case 0:
					m := ms[i]
					m.kill()
					time.Sleep(time.Duration(r.IntN(3000)) * time.Millisecond)
					ms[i] = w.startAt(m.id, m.addr, 5, m.votes, withSource(s.source(m.id)))
				case 1:
					w.part(ms[:i], ms[i:])
				case 2:
					w.part([]*manager{ms[i]}, []*manager{ms[r.IntN(len(ms))]})
				case 3:
					w.heal()
				}
				time.Sleep(time.Duration(r.IntN(4000)) * time.Millisecond)
			}
			w.heal()
			w.awaitLeader(time.Minute, ms...)
			if w.overlap != "" {
				t.Fatal(w.overlap)
			}
		})
	}
}

func TestElectionMessageIsCheckedAgainstItsSender(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world) {
		a := w.start("a", 3, nil)
		m := electionProto(election.Message{Kind: election.MsgHeartbeat, From: "b", To: "a", Term: 9})
		if _, err := a.peers.electionMessage("b", m); err != nil {
			t.Error(err)
		}
		for _, spoil := range []func(){func() { m.From = "c" }, func() { m.From, m.To = "b", "x" }, func() { m.To, m.Kind = "a", 300 }} {
			spoil()
			if _, err := a.peers.electionMessage("b", m); err == nil {
				t.Errorf("%v was taken as a message from b to a", m)
			}
		}
	})
}
