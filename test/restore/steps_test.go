package restore

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/test/harness"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

var allSteps = flag.Bool("steps.all", false, "do everything that can go wrong at every step of a restore, not a few of it")

// fault is something that goes wrong when an operation reaches a step.
type fault struct {
	name string
	// do breaks something and returns what mends it. served waits until clients are answered.
	do func(w *stepWorld, served func()) (mend func())
	// byItself is true if the operation has to serve clients again before anything is mended.
	byItself bool
}

// stepWorld is the cluster on which one restore after the other is disturbed.
type stepWorld struct {
	t    *testing.T
	c    *harness.Cluster
	s3   *servers.S3
	base string
	want map[string]string // what base has
	rand *rand.Rand
}

func (w *stepWorld) follower(i int) *harness.Node {
	lead := w.c.Leader()
	for _, n := range w.c.Nodes {
		if n == lead || lead == nil && i > 0 {
			continue
		}
		if i--; i < 0 {
			return n
		}
	}
	return w.c.Nodes[0]
}

func (w *stepWorld) leader() *harness.Node {
	if n := w.c.Leader(); n != nil {
		return n
	}
	return w.c.Nodes[0]
}

// killManager ends a manager and starts it again, as the kubelet or systemd would.
func killManager(of func(w *stepWorld) *harness.Node) func(*stepWorld, func()) func() {
	return func(w *stepWorld, _ func()) func() {
		n := of(w)
		n.Kill()
		n.Start()
		return func() {}
	}
}

func killEtcd(of func(w *stepWorld) *harness.Node) func(*stepWorld, func()) func() {
	return func(w *stepWorld, _ func()) func() {
		of(w).KillEtcd()
		return func() {}
	}
}

func faults() []fault {
	lead := (*stepWorld).leader
	follower := func(i int) func(*stepWorld) *harness.Node {
		return func(w *stepWorld) *harness.Node { return w.follower(i) }
	}
	return []fault{
		{name: "leader killed", do: killManager(lead)},
		{name: "first follower killed", do: killManager(follower(0))},
		{name: "second follower killed", do: killManager(follower(1))},
		{name: "leader's machine loses power", do: func(w *stepWorld, _ func()) func() {
			n := lead(w)
			n.KillWhole()
			n.Start()
			return func() {}
		}},
		{name: "leader's etcd killed", do: killEtcd(lead)},
		{name: "follower's etcd killed", do: killEtcd(follower(0))},
		{name: "store ends", byItself: true, do: func(w *stepWorld, _ func()) func() {
			w.s3.Stop()
			return w.s3.Start
		}},
		{name: "store hangs", byItself: true, do: func(w *stepWorld, _ func()) func() {
			w.s3.Pause()
			return w.s3.Resume
		}},
		{name: "store ends, and the leader is killed", byItself: true, do: func(w *stepWorld, _ func()) func() {
			w.s3.Stop()
			killManager(lead)(w, nil)
			return w.s3.Start
		}},
		{name: "everyone killed", do: func(w *stepWorld, _ func()) func() {
			for _, n := range w.c.Nodes {
				n.Kill()
			}
			w.c.StartAll()
			return func() {}
		}},
	}
}

// steps are where a restore can be disturbed: the states of its record, and the phases of a node's journal in between.
func steps() []string {
	return []string{
		string(catalog.StateProving), "journal proven", string(catalog.StateStaging), "journal staged",
		string(catalog.StateSaving), string(catalog.StateStopping),
		"journal stopped", string(catalog.StateSwitching), "journal switched", string(catalog.StateVerifying),
		string(catalog.StateReverting), "journal halted", "journal reverted",
	}
}

// TestKillAtEveryStep disturbs a restore at the very moment when it reaches a step. It must end by itself, in the data of the backup on all
// members or in the old data on all members, and no acknowledged write may be missing from what it ends in.
func TestKillAtEveryStep(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("-seed=%d", s)
	s3 := servers.StartVersityGW(t)
	c := harness.Start(t, harness.Options{S3: s3, Args: []string{"--queue-poll-interval=300ms"}})
	w := &stepWorld{t: t, c: c, s3: s3, rand: rand.New(rand.NewPCG(s, 1))}
	w.base = c.WaitBackups(1)[0].Name
	for i := range 100 {
		c.Put(fmt.Sprintf("/data/%03d", i), fmt.Sprint("value ", i))
	}
	var revision int64
	w.want, revision = c.ReadAll("/data/")
	w.snapshot(revision)
	type round struct {
		step  string
		fault fault
	}
	var rounds []round
	for _, step := range steps() {
		for _, f := range faults() {
			rounds = append(rounds, round{step, f})
		}
	}
	if !*allSteps {
		w.rand.Shuffle(len(rounds), func(i, j int) { rounds[i], rounds[j] = rounds[j], rounds[i] })
		rounds = rounds[:min(7, len(rounds))]
	}
	ends := map[catalog.OperationState]int{}
	for _, r := range rounds {
		ends[w.disturb(r.step, r.fault)]++
		if t.Failed() {
			t.Fatalf("at step %q: %s", r.step, r.fault.name)
		}
	}
	t.Logf("%d restores were disturbed; they ended as %v", len(rounds), ends)
}

// snapshot makes the backup that is restored from now on.
func (w *stepWorld) snapshot(revision int64) {
	w.t.Helper()
	w.base = takeBackup(w.t, w.c)
	m, err := w.c.Catalog.Manifest(w.t.Context(), w.base)
	must(w.t, err)
	if m.Revision < revision {
		w.t.Fatalf("the backup has revision %d; %d was written", m.Revision, revision)
	}
}

// disturb restores once, and returns how that ended.
func (w *stepWorld) disturb(step string, f fault) catalog.OperationState {
	t, c := w.t, w.c
	t.Helper()
	c.Put("/data/000", "spoiled")
	c.Put("/data/new", "not in the backup")
	old, _ := c.ReadAll("/data/")
	load := c.StartLoad(harness.LoadOptions{Pause: 50 * time.Millisecond, Timeout: 2 * time.Second, Any: true})
	c.WaitFor("some load", 30*time.Second, func() string {
		if load.Acked() < 20 {
			return "there is little"
		}
		return ""
	})
	cmd, err := c.Catalog.QueueRestore(t.Context(), w.base, c.Spec(), catalog.RestoreOptions{Now: true})
	must(t, err)
	started := time.Now()
	reached := w.await(cmd.Name, step)
	mend := func() {}
	if reached {
		mend = f.do(w, nil)
		if f.byItself {
			w.servedMeanwhile(step)
		}
	}
	mend()
	c.StartAll()
	op := c.WaitOperation(cmd.Name, 4*time.Minute)
	c.WaitHealthy(3)
	load.Stop()
	want, from := w.want, op.StagedRevision
	if op.State != catalog.StateDone {
		want, from = old, 0
		if op.Reason == "" {
			t.Errorf("it ended as %s without a reason", op.State)
		}
	}
	load.VerifyFrom(from)
	for _, n := range c.Nodes {
		w.compare(n, want)
	}
	c.OneToken()
	t.Logf("%-16s %-38s reached %t: %s after %s, nobody served for %s %s", step, f.name, reached, op.State,
		time.Since(started).Round(time.Millisecond), op.Outage.Round(time.Millisecond), op.Reason)
	return op.State
}

// compare reads from one member alone.
func (w *stepWorld) compare(n *harness.Node, want map[string]string) {
	w.t.Helper()
	client := w.c.Client(n.ClientURL())
	defer client.Close()
	got := map[string]string{}
	r, err := client.Get(w.t.Context(), "/data/", clientv3.WithPrefix())
	must(w.t, err)
	for _, kv := range r.Kvs {
		got[string(kv.Key)] = string(kv.Value)
	}
	if !maps.Equal(got, want) {
		w.t.Errorf("node %s has %d keys, /data/000 %q, new %q; want %d keys, /data/000 %q", n.Name, len(got),
			got["/data/000"], got["/data/new"], len(want), want["/data/000"])
	}
}

// servedMeanwhile waits until clients are answered although the store is away.
func (w *stepWorld) servedMeanwhile(step string) {
	w.t.Helper()
	client := w.c.Client()
	defer client.Close()
	w.c.WaitFor("clients to be served without the store, at step "+step, 90*time.Second, func() string {
		ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
		defer cancel()
		if _, err := client.Get(ctx, "/data/000"); err != nil {
			return err.Error()
		}
		return ""
	})
}

// await waits for the very moment when the operation reaches a step, or for its end: false.
func (w *stepWorld) await(id, step string) bool {
	w.t.Helper()
	phase, journal := strings.CutPrefix(step, "journal ")
	back := step == string(catalog.StateReverting) || phase == "halted" || phase == "reverted"
	broken := false
	reached := false
	w.closely("step "+step, func() string {
		op, _, err := w.c.Catalog.Operation(w.t.Context(), id)
		if err != nil {
			return err.Error()
		}
		if back && !broken && op.State == catalog.StateStopping {
			broken = w.loseStaged(id)
		}
		if journal {
			for _, n := range w.c.Nodes {
				reached = reached || w.journal(n, id) == phase
			}
		} else {
			reached = string(op.State) == step
		}
		if reached || op.State.Final() {
			return ""
		}
		return "the operation is " + string(op.State)
	})
	return reached
}

// loseStaged has two nodes lose what they have staged, so that the way back is the only one. It
// tells whether that was done: not if a node may have been told to switch already, as the restored
// etcd may then have served clients from what is lost, and only a person could decide.
func (w *stepWorld) loseStaged(id string) bool {
	w.t.Helper()
	for _, n := range w.c.Nodes {
		n.Pause()
		defer n.Resume()
	}
	// Nobody is told to switch before the record says so. What is recorded only now is acted on when the managers go on.
	op, _, err := w.c.Catalog.Operation(w.t.Context(), id)
	must(w.t, err)
	if op.State != catalog.StateStopping {
		return false
	}
	for _, n := range w.c.Nodes[:2] {
		must(w.t, os.RemoveAll(filepath.Join(n.DataDir, "data", string(op.NewToken), "member")))
	}
	return true
}

// closely is WaitFor for what lasts only milliseconds.
func (w *stepWorld) closely(what string, f func() string) {
	w.t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for why := f(); why != ""; why = f() {
		if time.Now().After(deadline) {
			w.t.Fatalf("%s: not in time: %s", what, why)
		}
		time.Sleep(500 * time.Microsecond)
	}
}

// journal is the phase of an operation on a node.
func (w *stepWorld) journal(n *harness.Node, id string) string {
	data, err := os.ReadFile(filepath.Join(n.DataDir, "etcd-manager", "journal.json"))
	if err != nil {
		return ""
	}
	var j struct {
		Operation struct{ ID, Phase string }
	}
	if json.Unmarshal(data, &j) != nil || j.Operation.ID != id {
		return ""
	}
	return j.Operation.Phase
}
