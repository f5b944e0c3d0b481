// Package life holds the end-to-end tests of a cluster's life: other sizes, other versions, other settings, room, and what breaks, with
// real managers and real etcds as processes on loopback.
package life

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"flag"

	"github.com/etcd-manager/etcd-manager/test/harness"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

var all = flag.Bool("all", false, "also run what takes minutes")

// slow are the tests that take minutes, or that a machine which is busy with others fails by its deadlines; "make soak" runs them.
const slow = "TestRotateCAs|TestNoSpaceData|TestKilledAtEveryStepOf|TestTurnTLSOn|TestTwoOfFive|TestDownByRestore|TestUpAndDown|TestCorruptMember|TestFaults|TestPatches"

func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.skip"); f != nil && f.Value.String() == "" && !*all {
		_ = f.Value.Set(slow)
	}
	code := harness.Main(m)
	table.print()
	os.Exit(code)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// table collects what clients saw in each test; it is printed when all have run.
var table results

type results struct {
	mu   sync.Mutex
	rows []string
}

// add notes what clients saw of a change, and how long that took.
func (r *results) add(what string, took time.Duration, l harness.LoadReport) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rows = append(r.rows, fmt.Sprintf("%s\t%s\t%d\t%d\t%s\t%s", what, took.Round(100*time.Millisecond), l.Acked,
		len(l.Failures), l.LongestGap.Round(time.Millisecond), l.Slowest.Round(time.Millisecond)))
}

func (r *results) print() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.rows) == 0 {
		return
	}
	slices.Sort(r.rows)
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "CHANGE\tTOOK\tWRITES\tFAILED\tLONGEST GAP\tSLOWEST ANSWER")
	for _, row := range r.rows {
		fmt.Fprintln(w, row)
	}
	_ = w.Flush()
}

// versions are the etcds that the tests install, by the program's name.
var versions = map[string]string{"etcd-3.4": "3.4.23", "etcd-3.5-old": "3.5.21", "etcd-3.5": "3.5.35", "etcd-3.7": "3.7.3"}

// installed makes a directory as --etcd-binaries wants it, with these etcds. 3.6.16 is part of the manager.
func installed(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		install(t, dir, name)
	}
	return dir
}

func install(t *testing.T, dir, name string) {
	t.Helper()
	at := filepath.Join(dir, "etcd-v"+versions[name])
	must(t, os.MkdirAll(at, 0o755))
	must(t, os.Symlink(servers.Binary(t, name), filepath.Join(at, "etcd")))
}

// args are those of all clusters here: nothing is waited for longer than needed.
func args(more ...string) []string {
	return append([]string{"--queue-poll-interval=1s", "--member-unhealthy-deadline=10s"}, more...)
}

// configure runs configure-cluster.
func configure(t *testing.T, c *harness.Cluster, flags ...string) {
	t.Helper()
	out, errOut, code := c.Ctl(append([]string{"configure-cluster"}, flags...)...)
	if code != 0 {
		t.Fatalf("configure-cluster %v: exit code %d: %s%s", flags, code, out, errOut)
	}
}

// running says how many members of a size run a version and are healthy, or is "" if all do and the leader has nothing left to do.
func running(c *harness.Cluster, t *testing.T, size int, version string) string {
	healthy := 0
	var bad []string
	for _, n := range c.Nodes {
		if !n.Running() {
			continue
		}
		v, err := n.Status(t.Context())
		if err != nil {
			return err.Error()
		}
		if v.Leading {
			bad = append(bad, v.Doing)
		}
		if e := v.Etcd; e.Healthy && !e.Learner && e.Version == version && len(e.Members) == size {
			healthy++
		}
	}
	if healthy == size {
		return ""
	}
	return fmt.Sprintf("%d of %d run %s; %s", healthy, size, version, strings.Join(bad, "; "))
}

// waitVersion waits until all members run a version.
func waitVersion(t *testing.T, c *harness.Cluster, size int, version string) {
	t.Helper()
	c.WaitFor(fmt.Sprintf("%d members with etcd %s", size, version), 3*time.Minute, func() string { return running(c, t, size, version) })
}

// measured does something under a client that writes and checks all the time, adds a row to the table, and checks that nothing is lost.
func measured(t *testing.T, c *harness.Cluster, what string, do func()) harness.LoadReport {
	t.Helper()
	load := c.StartLoad(harness.LoadOptions{Any: true, Prefix: "/load/" + strings.ReplaceAll(what, " ", "-") + "/"})
	flows := func() {
		from := load.Acked()
		c.WaitFor("writes that are acknowledged", 30*time.Second, func() string {
			if load.Acked() < from+20 {
				return "too few"
			}
			return ""
		})
	}
	flows()
	start := time.Now()
	do()
	took := time.Since(start)
	flows()
	r := load.Stop()
	table.add(what, took, r)
	t.Logf("%s, took %s: %s", what, took.Round(100*time.Millisecond), r)
	load.Verify()
	for _, f := range r.Failures {
		if strings.Contains(f.Err.Error(), "was acknowledged, but reading it gives") {
			t.Errorf("a wrong read: %v", f.Err)
		}
	}
	return r
}

// killAtEveryStep kills the manager that leads with SIGKILL whenever it has begun a step that none has begun before, and starts it again,
// until done says "". It returns the steps.
func killAtEveryStep(t *testing.T, c *harness.Cluster, within time.Duration, begin func(), done func() string) []string {
	t.Helper()
	seen := map[string]bool{}
	var steps []string
	for _, n := range c.Nodes {
		for _, s := range begun(n) {
			seen[s] = true // what was begun before isn't a step of this
		}
	}
	begin()
	why, asked := "", time.Now()
	for start := time.Now(); time.Since(start) < within; time.Sleep(time.Millisecond) { // the next step may follow at once
		for _, n := range c.Nodes {
			for _, s := range begun(n) {
				if seen[s] {
					continue
				}
				seen[s] = true
				steps = append(steps, s)
				n.Kill()
				n.Start()
				break
			}
		}
		if time.Since(asked) < time.Second {
			continue
		}
		if why, asked = done(), time.Now(); why == "" {
			return steps
		}
	}
	t.Fatalf("not at the end within %s, with a kill at every step: %s", within, why)
	return nil
}

// begun are the steps that a manager has begun since its last start.
func begun(n *harness.Node) []string {
	var steps []string
	for line := range strings.Lines(n.LogText()) {
		if _, step, ok := strings.Cut(strings.TrimSpace(line), " -> "); ok && !strings.HasPrefix(step, "take-term") {
			steps = append(steps, step)
		}
	}
	return steps
}

// replaced are the members that any manager has removed since the beginning; versions and settings change without.
func replaced(t *testing.T, c *harness.Cluster) []string {
	t.Helper()
	var lines []string
	for _, n := range c.Nodes {
		data, err := os.ReadFile(n.Log)
		must(t, err)
		for line := range strings.Lines(string(data)) {
			if strings.Contains(line, "-> remove-member") || strings.Contains(line, "for=fall-back") {
				lines = append(lines, strings.TrimSpace(line))
			}
		}
	}
	return lines
}

// noneReplaced fails the test if a member had to be replaced or put back.
func noneReplaced(t *testing.T, c *harness.Cluster) {
	t.Helper()
	if lines := replaced(t, c); len(lines) > 0 {
		t.Errorf("members were replaced, or put back to their old version:\n%s", strings.Join(lines, "\n"))
	}
}

func contextFor(t *testing.T, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), d)
}
