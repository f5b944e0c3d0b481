package kubernetes

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/test/harness"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

var withAPIServers = flag.Bool("apiservers", false, "run TestAPIServers, which builds kube-apiserver: about ten minutes for the first time")

// older is the version of etcd that the masters begin with.
const older = "3.5.35"

// TestAPIServers runs three real API servers on three masters, with clients of every kind, through
// all that a manager does to etcd. It prints what each kind of client saw, and fails if one that is
// not restarted doesn't find back to what stands in etcd, or the endpoints aren't right within
// seconds.
func TestAPIServers(t *testing.T) {
	testutil.Long(t)
	if !*withAPIServers {
		t.Skip("skipped: it builds kube-apiserver, which takes long; make e2e-kubernetes runs it")
	}
	program := servers.Binary(t, "kube-apiserver")
	o := harness.Options{BackupInterval: 5 * time.Second, Args: []string{"--queue-poll-interval=200ms", "--member-unhealthy-deadline=5s"}}
	versions := os.Getuid() == 0
	if versions {
		o.Spec = &cluster.Spec{MemberCount: 3, EtcdVersion: older}
	}
	c := harness.New(t, o)
	if versions {
		withEtcd(t, c, older, servers.Binary(t, "etcd-3.5"))
	}
	c.StartAll()
	c.WaitHealthy(3)
	w := &world{t: t, c: c, program: program}
	w.prepare()
	for _, n := range c.Nodes {
		w.add(n)
	}
	all := []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"}
	w.startClients()
	w.phase("everything starts", all, func() {})
	w.phase("nothing happens", all, func() { time.Sleep(3 * time.Second) })

	var backup string
	w.phase("backup", all, func() {
		before := len(c.Backups())
		backup = c.WaitBackups(before + 2)[before+1].Name
	})
	w.phase("API server c is killed, restore", all[:2], func() {
		w.servers[2].kill()
		w.operation("restore-backup", backup)
	})
	w.phase("API server c starts", all, func() { w.servers[2].start() })
	w.phase("undo", all, func() { w.operation("undo-restore", "--yes") })
	if versions {
		w.phase("other version of etcd ("+older+" to "+etcd.CompiledVersion+")", all, w.upgrade)
	}
	w.phase("member b loses its disk and is replaced", all, func() {
		b := c.Node("b")
		b.KillWhole()
		b.Wipe(true)
		b.Start()
		c.WaitHealthy(3)
	})
	t.Logf("what the clients saw:\n%s", w.table())
}

// withEtcd gives the managers an /opt with another version of etcd.
func withEtcd(t *testing.T, c *harness.Cluster, version, binary string) {
	t.Helper()
	dir := filepath.Join(c.Dir, "opt", "etcd-v"+version)
	must(t, os.MkdirAll(dir, 0o755))
	must(t, os.Link(binary, filepath.Join(dir, "etcd")))
	wrapper := filepath.Join(c.Dir, "manager")
	must(t, os.WriteFile(wrapper, fmt.Appendf(nil,
		"#!/bin/sh\nexec unshare -m sh -c 'mount --bind %s /opt && exec \"$@\"' - %s \"$@\"\n", filepath.Dir(dir), c.Programs.Manager),
		0o755))
	c.Programs.Manager = wrapper
}

// operation runs a command of etcd-manager-ctl to its end.
func (w *world) operation(args ...string) {
	w.t.Helper()
	out, errOut, code := w.c.Ctl(append(args, "--now", "--wait")...)
	if code != 0 {
		w.t.Fatalf("%v: exit code %d: %s%s", args, code, out, errOut)
	}
	ops, _, err := w.c.Catalog.Operations(w.t.Context())
	must(w.t, err)
	op := ops[len(ops)-1]
	w.c.CheckEnded(op, catalog.StateDone)
	w.c.WaitHealthy(3)
	w.outage = op.Outage
}

// upgrade asks for the version that is compiled in. Managers that don't roll a version out restore into it.
func (w *world) upgrade() {
	w.t.Helper()
	runs := func() bool {
		for _, n := range w.c.Nodes {
			v, err := n.Status(w.t.Context())
			if err != nil || !v.Etcd.Healthy || v.Etcd.Version != etcd.CompiledVersion {
				return false
			}
		}
		return true
	}
	if out, errOut, code := w.c.Ctl("configure-cluster", "--etcd-version="+etcd.CompiledVersion); code != 0 {
		w.t.Fatalf("configure-cluster: exit code %d: %s%s", code, out, errOut)
	}
	for deadline := time.Now().Add(upgradePatience); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if runs() {
			w.c.WaitHealthy(3)
			w.note = "rolled out"
			return
		}
	}
	w.note, w.began = "by a restore", time.Now()
	w.clients.say("hold") // what is written after the backup would be lost
	time.Sleep(2 * time.Second)
	before := len(w.c.Backups())
	w.operation("restore-backup", w.c.WaitBackups(before + 2)[before+1].Name)
	w.clients.say("write")
	if !runs() {
		w.t.Errorf("not all members run etcd %s", etcd.CompiledVersion)
	}
}

// Those that have a copy of what stands in etcd, and those that have none.
const (
	direct    = "the API servers"
	caches    = "the API servers' caches"
	informers = "the informers"
)

// patience is how long a copy has time to be right: client-go tries again after half a minute at the most, doubled by chance.
const patience = 90 * time.Second

// upgradePatience is how long a version has time to be rolled out.
const upgradePatience = 45 * time.Second

// world is a control plane: masters, an API server on each, and their clients.
type world struct {
	t       *testing.T
	c       *harness.Cluster
	program string
	servers []*apiServer
	clients *clients
	rows    []string
	began   time.Time
	outage  time.Duration
	note    string
}

// phase does something while clients write, and writes down what they saw of it.
func (w *world) phase(name string, endpoints []string, do func()) {
	t := w.t
	t.Helper()
	w.outage, w.note = 0, ""
	w.clients.say("write")
	before := w.clients.latest()
	w.began = time.Now()
	do()
	done := time.Now()
	w.c.WaitFor(name+": the endpoints to be right", time.Minute,
		func() string { return w.clients.latest().wrongEndpoints(w.alive(), endpoints) })
	right := time.Since(done)
	time.Sleep(2 * time.Second) // clients write on the other side of it, too
	w.clients.say("hold")
	agreed := map[string]time.Duration{}
	for _, who := range []string{direct, caches, informers} {
		w.c.WaitFor(name+": "+who+" to be as etcd is", patience, func() string { return w.clients.latest().disagree(who, w.alive()) })
		agreed[who] = time.Since(done)
	}
	after := w.clients.latest()
	row := w.row(name, before, after, done.Sub(w.began), right, agreed)
	w.rows = append(w.rows, row)
	t.Log(row)
}

// alive are the names of the API servers that run.
func (w *world) alive() []string {
	var out []string
	for _, s := range w.servers {
		if s.cmd != nil {
			out = append(out, s.name)
		}
	}
	return out
}

func (w *world) row(name string, a, b *clientState, took, right time.Duration, agreed map[string]time.Duration) string {
	var lists, watches, lost, failed int
	errs, ends := map[string]int{}, map[string]int{}
	for n, y := range b.Servers {
		x := a.Servers[n]
		if x == nil {
			x = &serverState{}
		}
		lists += y.Lists - x.Lists
		watches += y.Watches - x.Watches
		lost += y.LostLead - x.LostLead
		failed += y.Failed - x.Failed
		for k, v := range y.Errors {
			if d := v - x.Errors[k]; d > 0 {
				errs[k] += d
			}
		}
		for k, v := range y.WatchEnds {
			if d := v - x.WatchEnds[k]; d > 0 {
				ends[k] += d
			}
		}
	}
	if w.note != "" {
		name += ", " + w.note
	}
	outage := "–"
	if w.outage > 0 {
		outage = w.outage.Round(10 * time.Millisecond).String()
	}
	return fmt.Sprintf("| %s | %s | %s | %d lists, %d watches%s | %s | %d | %d of %d | %d | %s | %s | %s |", name,
		took.Round(100*time.Millisecond), outage, lists, watches, words(errs, ": "), orNone(words(ends, "")),
		lost, b.Failed-a.Failed, b.Failed-a.Failed+b.Written-a.Written, failed, right.Round(100*time.Millisecond),
		agreed[caches].Round(100*time.Millisecond), agreed[informers].Round(100*time.Millisecond))
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func words(counts map[string]int, before string) string {
	var out []string
	for k, n := range counts {
		out = append(out, fmt.Sprintf("%d %s", n, k))
	}
	slices.Sort(out)
	if len(out) == 0 {
		return ""
	}
	return before + strings.Join(out, ", ")
}

func (w *world) table() string {
	head := "| phase | took | time without etcd | informers | bare watches that ended | leaderships lost | writes that failed | reads that failed | endpoints right after | API servers' caches right after | informers right after |\n|---|---|---|---|---|---|---|---|---|---|---|\n"
	return head + strings.Join(w.rows, "\n") + "\n"
}

// build makes the program that is the clients, from the module that kube-apiserver is made from.
func build(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "informers")
	cmd := exec.Command("go", "build", "-o", path, "./informers")
	cmd.Dir = "../tools/kube-apiserver"
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the clients: %v\n%s", err, out)
	}
	return path
}
