package plan

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	"github.com/etcd-manager/etcd-manager/pkg/plan/safety"
)

var enumCases = flag.Int("enum.cases", 60_000, "how many small worlds of each size are looked at")

// letters of the alphabet of small worlds. Each is a list of choices; a world is one choice of each.
type letter struct {
	name    string
	choices []string
}

// nodeChoices are the states of a node, in the words of the scripts; the first choice of each letter is the ordinary one.
var nodeChoices = []string{
	"token=T1", "new", "new staged", "down 10s", "down 5m", "foreign", `"broken=state: bad checksum"`,
	"token=T1 staged", "token=T1 quarantined", "joined", "joined behind=90000", "joined stopped 5m", "token=T1 attempt",
	"token=T1 unhealthy 10s", "token=T1 unhealthy 5m staged",
	"token=T1 stopped 5m", "token=T1 nodata 5m", "token=T1 held staged", "token=T1 held", "token=T1 staged hash=43",
	"token=T1 revision=2000000000",
	"token=T0", "token=T0 attempt", "token=T0 held", "token=T0 of=x,y,z",
	"token=T1 nodata trash=T7@2.9 5m", "new trash=T7@2.10", "token=T1 reverted", "token=T1 staged forgot",
	"switched", "switched forgot", "switched unhealthy 10s", "switched unhealthy 5m", "switched revision=5", "switched held",
	"switched halted", "switched halted=written",
	"token=T1 runs=3.5.29", "token=T1 runs=3.5.21", "token=T1 runs=3.7.3", "token=T1 told=3.5.29 unhealthy 40s",
	"token=T1 told=3.7.3 unhealthy 40s", "token=T1 outdated", "token=T1 storage=3.6.0",
	"token=T1 db=100/40 quota=100", "token=T1 db=99/98 quota=100", "token=T1 busy=defragment unhealthy 5m",
	"token=T1 has=snapshot-count:5000",
	"token=T1 release=vol-2", "token=T1 release=vol-2 busy=release_volume", "token=T1 denied", "token=T1 staged denied", "switched denied",
}

var commonLetters = []letter{
	{"store", []string{"", "store away", "store unknown", "store lies", "store apart b", "store unsure b"}},
	{"marker", []string{"marker formed token=T1", "marker absent", "marker forming founders=%n token=T1",
		"marker formed token=T0", "marker foreign", "marker formed token=R1", "marker forming founders=a,x,y token=T1"}},
	{"holder", []string{"holder mine", "holder none", "holder b 10s", "holder z 10s", "holder z 1h"}},
	{"command", []string{"", "command r2 source=a:T1 ready", "command r2 source=c:T7 ready",
		"command r2 source=:T7 ready", "command r2 source=:T9 or=B8 ready", "command r2 source=a:T9 or=B8 ready",
		"command r2", "command r2 ready", "command r2 ready members=1", "command r2 ready;command r3 ready",
		"command unreadable", "failed r0"}},
	{"restore", []string{"", "restore salvaging source=a:T1", "restore salvaging source=c:T7",
		"restore salvaging source=c:T9 or=B8", "restore salvaging source=a:T1 or=B8 reason=broken",
		"restore salvaging source=a:T1 backup=B9", "restore proving", "restore proving proven=%n",
		"restore proving withdrawn", "restore staging", "restore saving", "restore saving saved nodes=a",
		"restore saving saved", "restore saving withdrawn",
		"restore stopping", "restore stopping nodes=a", "restore stopping 1h", "restore switching",
		"restore switching nodes=a", "restore switching 1h", "restore switching written", "restore switching written 1h",
		"restore verifying", "restore verifying 150s", "restore verifying 150s verified=%n",
		"restore verifying verified=%n", "restore verifying 1h", "restore verifying old=none",
		"restore verifying written 1h", "restore verifying reason=broken",
		"restore rolling-back", "restore rolling-back unwritten", "restore rolling-back unwritten 1h",
		"restore rolling-back old=none", "restore rolling-back unwritten old=none",
		"restore staging 2h", "restore staging reason=full", "restore switching retry=10s", "restore unheard-of", "restore done"}},
	{"settled", []string{"settled 1h", "settled 0s", "settled 30s"}},
	{"backup", []string{"", "backup 20m", "backup never", "backup running", "backup future 48h", "backup retry 10s"}},
	{"spec", []string{"spec 3", "spec 1", "spec 3 version=3.5.21", "spec 3 version=3.5.29", "spec 3 version=3.6.16",
		"spec 3 version=3.7.3", "spec 1 version=3.4.23", "spec none", "spec 2"}},
	{"member", []string{"", "member c removed", "member c removed;member c added", "member b learner",
		"member x added-voter", "member b removed;member b added"}},
	{"life", []string{"", "all versions=3.5.21,3.5.29,3.6.16,3.7.3", "all versions=3.5.21,3.6.16",
		"etcd downgrade=3.5.0", "etcd keeps=3.5.0 downgrade=3.5.0", "etcd keeps=3.5.0", "alarm NOSPACE b",
		"alarm NOSPACE b;compacted", "alarm CORRUPT b", "alarm CORRUPT x",
		"settings snapshot-count=5000", "settings bad", "policy defrag=0.5", "versions-failed 3.6.16"}},
	{"extra", []string{"", "policy allow-unfenced", "policy no-create", "probe c unreachable", "rolled-back", "alive b", "etcd leader=b;put-back p1",
		"superseded reported=a", "superseded;alarm superseded", "alarm superseded"}},
}

// TestSmallWorlds walks over all worlds of one to three nodes that the alphabet spells, or evenly over as many as -enum.cases says,
// and holds Next to Check and to the predicates in dumb_test.go.
func TestSmallWorlds(t *testing.T) {
	ids := []string{"a", "b", "c"}
	did := map[string]int{}
	cases := *enumCases
	if !testutil.IsLong() {
		cases /= 5
	}
	for n := 1; n <= len(ids); n++ {
		letters := slices.Clone(commonLetters)
		for _, id := range ids[:n] {
			l := letter{"node " + id, nil}
			for _, c := range nodeChoices {
				l.choices = append(l.choices, "node "+id+" "+c)
			}
			letters = append(letters, l)
		}
		total := uint64(1)
		for _, l := range letters {
			total *= uint64(len(l.choices))
		}
		const stride = 1_000_000_007 // prime, so that the walk comes to every world before it repeats one
		at := uint64(0)
		rng := rand.New(rand.NewPCG(1, uint64(n)))
		failures := 0
		for i := range cases {
			at = (at + stride*7919) % total
			number := at
			if i%4 != 0 { // three of four are ordinary in most respects, so that the deeper rules are reached
				number = ordinary(letters, rng)
			}
			text := spell(letters, number, ids[:n])
			if err := judge(text, rng, did); err != nil {
				t.Errorf("%v\nworld:\n%s", err, text)
				if failures++; failures > 5 {
					t.FailNow()
				}
			}
		}
		t.Logf("%d nodes: %d of %d worlds", n, cases, total)
	}
	for _, kind := range []string{"TakeTerm", "CreateMarker", "ReplaceMarker", "StartAll", "StartEtcd", "MarkFormed",
		"TakeBackup", "AddLearner", "Promote", "RemoveMember", "SetAside",
		"BeginRestore", "SalvageData", "ProveBackup", "StageBackup", "SafetyBackup", "StopAll", "SwitchAll", "HaltAll",
		"VerifyAll", "RollbackAll", "Advance", "FinishRestore", "FailCommand",
		"RestartMember", "StopMember", "ReleaseVolume", "EnableDowngrade", "CancelDowngrade", "Compact", "Defragment",
		"Disarm", "PutBack", "EndWrites", "StopSuperseded", "ReportStopped", "nothing"} {
		if did[kind] == 0 {
			t.Errorf("no world in which %s is done: the alphabet is too small", kind)
		}
	}
	t.Log(did)
}

// themes are what is ordinary in one stage of a cluster's life or another, beside the first choices: the deeper rules are only
// reached by worlds that are ordinary in most respects.
var themes = []map[string]string{
	{},
	{},
	{"member": "member c removed"},
	{"member": "member c removed"},
	{"extra": "superseded;alarm superseded"},
	{"node": "token=T1 runs=3.5.29", "spec": "spec 3 version=3.6.16"},
	{"node": "token=T1 runs=3.7.3", "spec": "spec 3 version=3.5.29", "life": "all versions=3.5.21,3.5.29,3.6.16,3.7.3"},
	{"spec": "spec 3 version=3.5.29", "life": "etcd keeps=3.5.0 downgrade=3.5.0"},
	{"node": "token=T1 db=100/40 quota=100", "life": "alarm NOSPACE b;compacted"},
	{"node": "token=T1 db=100/40 quota=100", "life": "policy defrag=0.5"},
	{"node": "new", "marker": "marker absent", "command": ""},
	{"node": "new", "marker": "marker forming founders=%n token=T1"},
	{"node": "token=T1 attempt", "marker": "marker forming founders=%n token=T1"},
	{"node": "token=T1 quarantined"},
	{"node": "token=T1 denied"},
	{"node": "token=T1 release=vol-2"},
	{"node": "switched denied", "restore": "restore verifying"},
	{"node": "token=T1 staged", "restore": "restore saving"},
	{"node": "token=T1 staged", "restore": "restore stopping"},
	{"node": "token=T1 held staged", "restore": "restore switching"},
	{"node": "switched", "restore": "restore verifying"},
	{"node": "switched", "restore": "restore verifying 150s verified=%n"},
	{"node": "switched unhealthy 5m", "restore": "restore verifying 1h"},
	{"node": "switched halted", "restore": "restore rolling-back"},
	{"node": "switched halted", "restore": "restore rolling-back unwritten"},
	{"node": "switched", "restore": "restore verifying", "store": "store away"},
	{"node": "switched halted", "restore": "restore rolling-back", "store": "store away"},
	{"node": "token=T1 held staged", "restore": "restore switching", "store": "store away"},
}

// ordinary draws a world in which every letter is the theme's ordinary one three times of four.
func ordinary(letters []letter, rng *rand.Rand) uint64 {
	theme := themes[rng.IntN(len(themes))]
	number := uint64(0)
	for _, l := range slices.Backward(letters) {
		name, _, isNode := strings.Cut(l.name, " ")
		usual, ok := theme[name]
		if isNode {
			usual = l.name + " " + usual
		}
		choice := uint64(0)
		if ok {
			choice = uint64(slices.Index(l.choices, usual))
		}
		if rng.IntN(4) == 0 {
			choice = rng.Uint64N(uint64(len(l.choices)))
		}
		number = number*uint64(len(l.choices)) + choice
	}
	return number
}

// spell writes the world with that number as a script.
func spell(letters []letter, number uint64, ids []string) string {
	lines := []string{"cluster " + strings.Join(ids, " ")}
	var nodes []string
	late := ""
	for _, l := range letters {
		c := l.choices[number%uint64(len(l.choices))]
		number /= uint64(len(l.choices))
		c = strings.ReplaceAll(c, "%n", strings.Join(ids, ","))
		switch {
		case strings.HasPrefix(l.name, "node"):
			nodes = append(nodes, c)
		case l.name == "store":
			late = c
		default:
			lines = append(lines, strings.Split(c, ";")...)
		}
	}
	return strings.Join(append(append(lines, nodes...), late), "\n")
}

// judge asks for the decision in a world and tells what is wrong with it.
func judge(text string, rng *rand.Rand, did map[string]int) error {
	w := newWorld()
	for _, line := range strings.Split(text, "\n") {
		if line == "" {
			continue
		}
		words, err := splitWords(line)
		if err != nil {
			return err
		}
		if strings.HasPrefix(line, "node ") {
			if err := w.small(words); err != nil {
				return err
			}
			continue
		}
		if _, err := w.do(words); err != nil {
			return fmt.Errorf("%s: %w", line, err)
		}
	}
	o, spec := w.observe()
	d := Next(o, spec, w.p)
	kind := "nothing"
	if d.Do != nil {
		kind = strings.TrimPrefix(fmt.Sprintf("%T", d.Do), "model.")
	}
	did[kind]++
	if d.Why == "" {
		return fmt.Errorf("%s without a reason", kind)
	}
	if err := safety.Check(o, d.Do, w.p); err != nil {
		return fmt.Errorf("Next wants %s (%s), Check refuses: %w", d.Do, d.Why, err)
	}
	if err := dumb(o, d.Do, w.p); err != nil {
		return fmt.Errorf("Next wants %s (%s), which is wrong: %w", d.Do, d.Why, err)
	}
	again := Next(shuffled(o, rng), spec, w.p)
	if fmt.Sprint(again) != fmt.Sprint(d) {
		return fmt.Errorf("in another order:\n%v\ninstead of\n%v", again, d)
	}
	return nil
}

// small makes one node of a small world; unlike in scripts a node may switch though no restore is recorded.
func (w *world) small(words []string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v: %v", words, p)
		}
	}()
	n := w.node(words[1])
	a := args(words[2:])
	if a[0] == "new" || strings.HasPrefix(a[0], "broken") {
		n.status.State, n.status.DataPresent, n.memberID = nil, false, 0
	}
	if a[0] == "joined" {
		w.setMember(n.id, args{"removed"})
		if !slices.ContainsFunc(w.members, func(m cluster.Member) bool {
			return m.Name == "" &&
				m.PeerURLs[0] == n.status.Self.PeerURLs[0]
		}) {
			w.setMember(n.id, args{"added"})
		}
	}
	if a[0] == "switched" {
		var ids []string
		for _, x := range w.nodes {
			ids = append(ids, x.id)
		}
		if op := w.o.Store.Operation; op != nil {
			ids = nodeNames(op.Nodes)
		}
		w.switched(n, restoreToken, ids)
		a = a[1:]
	}
	w.setNode(n, a)
	return nil
}

// shuffled is the same observation with its sets in another order.
func shuffled(o *model.Observation, rng *rand.Rand) *model.Observation {
	c := *o
	c.Nodes = slices.Clone(o.Nodes)
	c.Missing = slices.Clone(o.Missing)
	rng.Shuffle(len(c.Nodes), func(i, j int) { c.Nodes[i], c.Nodes[j] = c.Nodes[j], c.Nodes[i] })
	rng.Shuffle(len(c.Missing), func(i, j int) { c.Missing[i], c.Missing[j] = c.Missing[j], c.Missing[i] })
	for i := range c.Nodes {
		e := &c.Nodes[i].Etcd
		e.Members = slices.Clone(e.Members)
		rng.Shuffle(len(e.Members), func(i, j int) { e.Members[i], e.Members[j] = e.Members[j], e.Members[i] })
	}
	return &c
}
