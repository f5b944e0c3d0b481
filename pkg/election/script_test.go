package election

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

var rewrite = flag.Bool("rewrite", false, "write what the scripts in testdata print now as what is expected")

// TestScripts runs testdata/*.txt. A script is a list of
//
//	command arguments
//	----
//	expected output
//
// separated by blank lines; lines that begin with # are comments. The commands are the cases of script.do, below.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { runScript(t, file) })
	}
}

func runScript(t *testing.T, file string) {
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	s := &script{t: t}
	lines := strings.Split(strings.TrimRight(string(raw), "\n"), "\n")
	for i := 0; i < len(lines); {
		line := lines[i]
		i++
		out.WriteString(line + "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		at := i
		got := s.do(strings.Fields(line))
		if got == "" {
			got = "ok\n"
		}
		var want strings.Builder
		if i < len(lines) && lines[i] == "----" {
			for i++; i < len(lines) && lines[i] != ""; i++ {
				want.WriteString(lines[i] + "\n")
			}
		}
		out.WriteString("----\n" + got)
		if got != want.String() && !*rewrite {
			t.Errorf("%s:%d: %s\ngot:\n%swant:\n%s", file, at, line, got, want.String())
		}
	}
	if *rewrite {
		if err := os.WriteFile(file, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

type scriptNode struct {
	m    *Machine // nil while it is down
	cfg  Config
	hard Hard // what its disk has
	rand int
}

// script is a few machines and the messages between them, driven by the lines of a file.
type script struct {
	t     *testing.T
	ids   []cluster.NodeID
	nodes map[cluster.NodeID]*scriptNode
	mail  []Message
	cut   map[[2]cluster.NodeID]bool
	clock int // rounds of "run" since the start
	log   strings.Builder
	quiet bool // print no persisting and sending
}

func (s *script) do(f []string) string {
	s.log.Reset()
	s.quiet = false
	arg := func(i int) string {
		if i < len(f) {
			return f[i]
		}
		return ""
	}
	term := func(i int) cluster.Term {
		n, err := strconv.ParseUint(arg(i), 10, 64)
		if err != nil {
			s.t.Fatalf("%v: %v", f, err)
		}
		return cluster.Term(n)
	}
	num := func(i int) int {
		n, err := strconv.Atoi(arg(i))
		if err != nil {
			s.t.Fatalf("%v: %v", f, err)
		}
		return n
	}
	switch f[0] {
	case "cluster": // cluster nodes=a,b,c wanted=3 hard=a:5:b rand=a:1 alone=d; alone nodes know nobody
		s.build(f[1:])
	case "run": // each round: all nodes tick, then everything is delivered; prints changes only
		s.run(num(1))
	case "tick": // tick a 3, tick all 1; delivers nothing
		for range num(2) {
			s.each(arg(1), func(m *Machine) { m.Tick() })
		}
	case "deliver": // deliver all; deliver a->b; deliver b: only to b
		s.deliver(arg(1))
	case "drop": // drop all; drop a->b; drop b
		s.take(arg(1))
	case "cut": // cut a->b, cut a (both ways, from and to everybody)
		s.cutOff(arg(1))
	case "heal":
		s.cut = map[[2]cluster.NodeID]bool{}
	case "crash":
		n := s.node(arg(1))
		n.m = nil
		s.mail = slices.DeleteFunc(s.mail, func(m Message) bool { return string(m.To) == arg(1) })
	case "restart":
		n := s.node(arg(1))
		n.m = s.boot(n)
	case "peerdown": // peerdown a b: a is told that b is down
		s.each(arg(1), func(m *Machine) { m.PeerDown(cluster.NodeID(arg(2))) })
	case "peers": // peers a b,c
		s.each(arg(1), func(m *Machine) { m.SetPeers(splitIDs(arg(2))) })
	case "wanted": // wanted all 5
		s.each(arg(1), func(m *Machine) { s.report(m.SetWanted(num(2))) })
	case "eligible": // eligible a false
		s.each(arg(1), func(m *Machine) { m.SetEligible(arg(2) == "true") })
	case "transfer": // transfer a b
		s.each(arg(1), func(m *Machine) { s.report(m.TransferLeadership(cluster.NodeID(arg(2)))) })
	case "resign":
		s.each(arg(1), func(m *Machine) { fmt.Fprintf(&s.log, "successor: %q\n", m.Resign()) })
	case "exceed": // exceed a 7
		s.each(arg(1), func(m *Machine) { m.Exceed(term(2)) })
	case "step": // step a->b Vote 7: a message that nobody sent; step a->b Vote 7 c: with the resignation of c
		msg := Message{Term: term(3), Resigned: cluster.NodeID(arg(4))}
		from, to, _ := strings.Cut(arg(1), "->")
		msg.From, msg.To = cluster.NodeID(from), cluster.NodeID(to)
		msg.Kind = Kind(slices.Index(kindNames[:], arg(2)))
		s.each(to, func(m *Machine) { s.report(m.Step(msg)) })
	case "mail":
		for _, m := range s.mail {
			fmt.Fprintln(&s.log, m)
		}
	case "state":
		for _, id := range s.ids {
			fmt.Fprintln(&s.log, s.describe(id))
		}
	default:
		s.t.Fatalf("unknown command %q", f[0])
	}
	return s.log.String()
}

func splitIDs(list string) (ids []cluster.NodeID) {
	for _, id := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' }) {
		ids = append(ids, cluster.NodeID(id))
	}
	return ids
}

func (s *script) report(err error) {
	if err != nil {
		fmt.Fprintf(&s.log, "error: %v\n", err)
	}
}

func (s *script) node(id string) *scriptNode {
	n := s.nodes[cluster.NodeID(id)]
	if n == nil {
		s.t.Fatalf("no node %q", id)
	}
	return n
}

func (s *script) build(args []string) {
	s.nodes = map[cluster.NodeID]*scriptNode{}
	s.cut = map[[2]cluster.NodeID]bool{}
	s.mail, s.clock, s.ids = nil, 0, nil
	opts := map[string]string{"wanted": "0", "heartbeat": "2", "lease": "7", "election": "10"}
	for _, a := range args {
		k, v, _ := strings.Cut(a, "=")
		opts[k] = v
	}
	atoi := func(v string) int {
		n, err := strconv.Atoi(v)
		if err != nil {
			s.t.Fatal(err)
		}
		return n
	}
	s.ids = splitIDs(opts["nodes"])
	alone := splitIDs(opts["alone"])
	for _, id := range s.ids {
		n := &scriptNode{cfg: Config{
			Self: id, WantedMembers: atoi(opts["wanted"]), HeartbeatTicks: atoi(opts["heartbeat"]),
			LeaseTicks: atoi(opts["lease"]), ElectionTicks: atoi(opts["election"]),
		}}
		if !slices.Contains(alone, id) {
			n.cfg.Peers = slices.DeleteFunc(slices.Clone(s.ids), func(p cluster.NodeID) bool { return slices.Contains(alone, p) })
		}
		n.cfg.Rand = func(k int) int { return n.rand % k }
		s.nodes[id] = n
	}
	for _, h := range splitIDs(opts["hard"]) {
		p := strings.Split(string(h), ":")
		s.node(p[0]).hard = Hard{Term: cluster.Term(atoi(p[1])), VotedFor: cluster.NodeID(p[2])}
	}
	for _, r := range splitIDs(opts["rand"]) {
		p := strings.Split(string(r), ":")
		s.node(p[0]).rand = atoi(p[1])
	}
	for _, id := range s.ids {
		s.nodes[id].m = s.boot(s.nodes[id])
	}
}

func (s *script) boot(n *scriptNode) *Machine {
	m, err := New(n.cfg, n.hard)
	if err != nil {
		s.t.Fatal(err)
	}
	return m
}

// each calls f for one node, or for all that are up, and does what its Ready says.
func (s *script) each(who string, f func(*Machine)) {
	for _, id := range s.ids {
		n := s.nodes[id]
		if n.m == nil || who != "all" && who != string(id) {
			continue
		}
		f(n.m)
		rd := n.m.Ready()
		if rd.Hard != nil {
			n.hard = *rd.Hard
			if !s.quiet {
				fmt.Fprintf(&s.log, "%s persists term=%d vote=%s\n", id, n.hard.Term, n.hard.VotedFor)
			}
		}
		for _, msg := range rd.Messages {
			if !s.quiet {
				fmt.Fprintf(&s.log, "%s\n", msg)
			}
			if s.cut[[2]cluster.NodeID{msg.From, msg.To}] || s.nodes[msg.To] == nil || s.nodes[msg.To].m == nil {
				continue
			}
			s.mail = append(s.mail, msg)
		}
	}
}

func matches(m Message, pattern string) bool {
	return pattern == "all" || pattern == string(m.To) || pattern == string(m.From)+"->"+string(m.To)
}

func (s *script) take(pattern string) (taken []Message) {
	s.mail = slices.DeleteFunc(s.mail, func(m Message) bool {
		if matches(m, pattern) {
			taken = append(taken, m)
			return true
		}
		return false
	})
	return taken
}

// deliver hands over what is there now; the answers wait for the next time.
func (s *script) deliver(pattern string) {
	for _, m := range s.take(pattern) {
		s.each(string(m.To), func(x *Machine) { s.report(x.Step(m)) })
	}
}

func (s *script) cutOff(what string) {
	if from, to, ok := strings.Cut(what, "->"); ok {
		s.cut[[2]cluster.NodeID{cluster.NodeID(from), cluster.NodeID(to)}] = true
		return
	}
	group := splitIDs(what)
	for _, a := range s.ids {
		for _, b := range s.ids {
			if slices.Contains(group, a) != slices.Contains(group, b) {
				s.cut[[2]cluster.NodeID{a, b}] = true
			}
		}
	}
}

func (s *script) run(rounds int) {
	s.quiet = true
	last := map[cluster.NodeID]State{}
	for _, id := range s.ids {
		if m := s.nodes[id].m; m != nil {
			last[id] = m.State()
		}
	}
	for range rounds {
		s.clock++
		s.each("all", func(m *Machine) { m.Tick() })
		for len(s.mail) > 0 {
			s.deliver("all")
		}
		for _, id := range s.ids {
			m := s.nodes[id].m
			if m == nil {
				continue
			}
			st, old := m.State(), last[id]
			last[id] = st
			if st.Role != old.Role || st.Term != old.Term || st.Leader != old.Leader || st.Leads() != old.Leads() {
				fmt.Fprintf(&s.log, "round %d: %s\n", s.clock, s.describe(id))
			}
		}
	}
}

func (s *script) describe(id cluster.NodeID) string {
	n := s.nodes[id]
	if n.m == nil {
		return fmt.Sprintf("%s down", id)
	}
	st := n.m.State()
	text := fmt.Sprintf("%s %s term=%d leader=%s", id, st.Role, st.Term, st.Leader)
	if st.Role == Leader {
		text += fmt.Sprintf(" lease=%d", st.LeaseLeft)
	}
	return text
}
