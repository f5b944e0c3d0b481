package attention

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// row is one way in which a person comes to be needed, and how that ends.
type row struct {
	kind cluster.AttentionKind
	// what has happened, in words.
	what string
	// cause makes it happen.
	cause func(*scene)
	// node is the node that it is about; empty if it is about the cluster. text are parts of the sentence.
	node string
	text []string
	// command is what ends it, as it is printed, without the tool and its store; with are what a person puts for its words in capitals.
	command string
	with    []string
	// none are words of why no command ends it, and mend is what does.
	none string
	mend func(*scene)
	// by is the test that does all this, if it takes one of its own.
	by func(*testing.T)
	// unmade is why nobody can make it happen with real processes; such a row has nothing else but its kind.
	unmade string
}

// rows are all of them. Each kind has at least one.
func rows() []row {
	return slices.Concat(formingRows(), oneRows(), threeRows(), corruptRows("NAME"), storeRows(), directoryRows(),
		hangingRows(), frozenRows(), refusedRows(), []row{
			{kind: cluster.AttentionQuorum, what: "two of three masters are lost with their disks: recover --from-survivor",
				by: TestQuorumLost},
			{kind: cluster.AttentionNoLeader, what: "two of three masters are away; they come back", by: TestQuorumLost},
			{kind: cluster.AttentionCertificate, what: "the CAs end in six days; new ones are put in", by: TestCertificates},
			{kind: cluster.AttentionNames, what: "another line of the hosts file has a member's name; it is taken out", by: TestShadowedName},
			{kind: cluster.AttentionDisk, what: "the disk of one of three masters is full; room is made", by: TestDiskFull},
		})
}

// TestEveryKindHasARow fails when a kind has no row, or a row says too little.
func TestEveryKindHasARow(t *testing.T) {
	for _, problem := range lacking(cluster.AttentionKinds(), rows()) {
		t.Error(problem)
	}
	// The check itself finds what is lacking.
	kind := cluster.AttentionKinds()[0]
	for want, rows := range map[string][]row{
		"no row":                   nil,
		"doesn't say what":         {{kind: kind, by: TestQuorumLost}},
		"how is it caused":         {{kind: kind, what: "x", command: "x"}},
		"what ends it":             {{kind: kind, what: "x", cause: func(*scene) {}, text: []string{"x"}}},
		"can't be made, and is":    {{kind: kind, unmade: "x", by: TestQuorumLost}},
		"isn't a kind of the code": {{kind: kind, what: "x", by: TestQuorumLost}, {kind: "of-old", what: "x", by: TestQuorumLost}},
	} {
		if got := lacking([]cluster.AttentionKind{kind}, rows); len(got) != 1 || !strings.Contains(got[0], want) {
			t.Errorf("%q: want %q", got, want)
		}
	}
}

// lacking says what the rows lack.
func lacking(kinds []cluster.AttentionKind, rows []row) (problems []string) {
	have := map[cluster.AttentionKind]bool{}
	for _, r := range rows {
		have[r.kind] = true
		problem := ""
		switch {
		case !slices.Contains(kinds, r.kind):
			problem = "isn't a kind of the code"
		case r.unmade != "":
			if r.what != "" || r.by != nil || r.cause != nil {
				problem = "can't be made, and is"
			}
		case r.what == "":
			problem = "a row doesn't say what has happened"
		case r.by != nil:
		case r.cause == nil || len(r.text) == 0:
			problem = "how is it caused, and what is said?"
		case (r.command == "") == (r.none == "") || (r.none == "") != (r.mend == nil):
			problem = "what ends it?"
		}
		if problem != "" {
			problems = append(problems, fmt.Sprintf("%s, %s: %s", r.kind, r.what, problem))
		}
	}
	for _, k := range kinds {
		if !have[k] {
			problems = append(problems, fmt.Sprintf("%s: no row", k))
		}
	}
	return problems
}

// scene is a cluster to which things happen.
type scene struct {
	t *testing.T
	c *harness.Cluster
	// root is how etcdctl is to introduce itself while etcd has users, as NAME:PASSWORD.
	root string
	// printed is the attention of the row that is played.
	printed cluster.Attention
	// store is between the managers and their store, if the scene has one.
	store *front
	// freeze freezes or thaws the store's file system, if the scene can.
	freeze func(flag string) error
	// back undoes what a row has caused, if that is what ends it; undo is what is put back once it is over.
	back, undo func()
}

// a is the first node.
func (s *scene) a() *harness.Node { return s.c.Nodes[0] }

// play has each row happen and ends it as is said.
func (s *scene) play(rows []row) {
	s.t.Helper()
	for _, r := range rows {
		if r.by != nil || r.unmade != "" {
			continue
		}
		began := time.Now()
		s.t.Logf("== %s: %s", r.kind, r.what)
		s.undo = nil
		r.cause(s)
		s.printed = s.saying(r)
		if r.command != "" {
			s.obey(r.with)
		} else {
			r.mend(s)
		}
		s.over(r)
		if s.undo != nil {
			s.undo()
		}
		s.t.Logf("it was over after %s", time.Since(began).Round(100*time.Millisecond))
	}
	ended(s.t, s.c)
}

// saying waits until a node that runs says what the row has, and checks all of it.
func (s *scene) saying(r row) cluster.Attention {
	s.t.Helper()
	var got cluster.Attention
	var at *harness.Node
	s.c.WaitFor(fmt.Sprintf("%s: %s", r.kind, r.what), 4*time.Minute, func() string {
		said := ""
		for _, n := range s.c.Nodes {
			if !n.Running() {
				continue
			}
			v, err := n.Status(s.t.Context())
			if err != nil {
				said += err.Error()
				continue
			}
			for _, a := range v.Attention {
				if r.is(a) {
					got, at = a, n
					return ""
				}
			}
			said += fmt.Sprintf("%s does %s; %v\n", n.Name, v.Doing, v.Attention)
		}
		return said
	})
	s.t.Logf("node %s: %s", at.Name, got)
	if string(got.Node) != r.node {
		s.t.Errorf("it is about node %q, want %q", got.Node, r.node)
	}
	// What is printed may have names and tokens in it, which nobody knows before.
	want := r.command
	if strings.HasPrefix(want, "etcdctl") {
		want = strings.NewReplacer("NODE", r.node).Replace(want)
	} else if want != "" {
		want = s.tool() + want
	}
	if ok := want == got.Command || strings.HasSuffix(want, "…") && strings.HasPrefix(got.Command, strings.TrimSuffix(want, "…")); !ok {
		s.t.Errorf("the command is %q, want %q", got.Command, want)
	}
	if r.none != "" && !strings.Contains(got.NoCommand, r.none) {
		s.t.Errorf("why there is no command: %q, want %q", got.NoCommand, r.none)
	}
	if (got.Command == "") == (got.NoCommand == "") || got.Since.IsZero() {
		s.t.Errorf("incomplete: %+v", got)
	}
	if !metric(s.t, s.c, at, "attention_needed 1") || !metric(s.t, s.c, at, fmt.Sprintf("attention{kind=%q} 1", r.kind)) {
		s.t.Errorf("no metric says so")
	}
	return got
}

// is tells whether this is the row's attention, by its kind and what it says.
func (r row) is(a cluster.Attention) bool {
	return a.Kind == r.kind && (r.node == "" || r.node == string(a.Node)) &&
		!slices.ContainsFunc(r.text, func(part string) bool { return !strings.Contains(a.Text, part) })
}

// over waits until no node that runs says it any more.
func (s *scene) over(r row) {
	s.t.Helper()
	s.c.WaitFor(fmt.Sprintf("the end of %s", r.kind), 2*time.Minute, func() string {
		for _, n := range s.c.Nodes {
			if !n.Running() {
				continue
			}
			v, err := n.Status(s.t.Context())
			if err != nil {
				return err.Error()
			}
			if i := slices.IndexFunc(v.Attention, r.is); i >= 0 {
				return v.Attention[i].String()
			}
		}
		return ""
	})
}

// tool is how the operator's tool is called in messages.
func (s *scene) tool() string { return "etcd-manager-ctl --backup-store=" + s.c.StoreURL + " " }

// obey runs the command as it is printed, with the store's URL, and with what a person puts for
// words in capitals. It says yes where it is asked.
func (s *scene) obey(with []string) {
	s.t.Helper()
	for _, line := range strings.Split(s.printed.Command, " && ") {
		if rest, ok := strings.CutPrefix(line, s.tool()); ok {
			args := strings.Fields(strings.NewReplacer(with...).Replace(rest))
			out, errOut, code := s.c.Ctl(args...)
			if strings.Contains(errOut, "--yes") {
				out, errOut, code = s.c.Ctl(append(args, "--yes")...)
			}
			s.t.Logf("%q: code %d\n%s%s", args, code, out, errOut)
			if code != 0 {
				s.t.Fatalf("%q: code %d", args, code)
			}
			continue
		}
		rest, ok := strings.CutPrefix(line, "etcdctl ")
		if !ok {
			s.t.Fatalf("%q isn't a command", line)
		}
		s.etcdctl(strings.Fields(rest)...)
	}
}

// etcdctl runs the one that is a part of the manager, on the first node.
func (s *scene) etcdctl(args ...string) {
	s.t.Helper()
	certs := s.c.ClientFiles()
	cmd := exec.CommandContext(s.t.Context(), s.c.Programs.Manager, append([]string{"etcdctl"}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.c.Dir, "ETCDCTL_ENDPOINTS=" + s.a().ClientURL(),
		"ETCDCTL_CACERT=" + certs.ClientCA, "ETCDCTL_CERT=" + certs.ServerCert, "ETCDCTL_KEY=" + certs.ServerKey, "ETCDCTL_USER=" + s.root}
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("etcdctl %q: %v\n%s", args, err, out)
	}
	s.t.Logf("etcdctl %q: %s", args, out)
}

// ctl runs the operator's tool and has to succeed.
func (s *scene) ctl(args ...string) {
	s.t.Helper()
	if out, errOut, code := s.c.Ctl(args...); code != 0 {
		s.t.Fatalf("%q: code %d\n%s%s", args, code, out, errOut)
	}
}
