package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

func testNode(name string) cluster.EtcdNode {
	return cluster.EtcdNode{Name: name, PeerURLs: []string{"http://127.0.0.1:2380"}, ClientURLs: []string{"http://127.0.0.1:4001"}, QuarantinedClientURLs: []string{"http://127.0.0.1:8001"}}
}

func testConfig(dir string) Config {
	return Config{ClusterName: "test", Instance: "i1", DataDir: dir, Self: testNode("a"), Address: "127.0.0.1", ListenAddress: "127.0.0.1", Binaries: &process.Binaries{Roots: []string{dir}}}
}

func testState(token cluster.Token) *cluster.EtcdState {
	return &cluster.EtcdState{Token: token, DesiredSize: 1, EtcdVersion: "3.6.16", Nodes: []cluster.EtcdNode{testNode("a")}}
}

// open makes an agent on a data dir; it is closed with the test.
func open(t *testing.T, dir string) *Agent {
	t.Helper()
	a, err := New(testConfig(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.lock.Close() })
	return a
}

func TestStateFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	if s, err := readState(path); s != nil || err != nil {
		t.Fatalf("absent: %v, %v; want nothing", s, err)
	}
	want := testState("T1")
	want.Quarantined = true
	if err := writeState(path, want); err != nil {
		t.Fatal(err)
	}
	got, err := readState(path)
	if err != nil || got.Token != "T1" || !got.Quarantined || len(got.Nodes) != 1 || got.Nodes[0].Name != "a" {
		t.Fatalf("read %+v, %v", got, err)
	}
	for name, content := range map[string]string{"empty": "", "garbage": "\xff\xffnot a message"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := readState(path); s != nil || !errors.Is(err, cluster.ErrCorrupt) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, %v; want ErrCorrupt naming the file", name, s, err)
		}
	}
}

func TestDataDirIsOneClustersAndOneManagers(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir)
	if _, err := New(testConfig(dir)); err == nil || !strings.Contains(err.Error(), "another manager") {
		t.Errorf("second manager: %v", err)
	}
	if err := a.records.obey(1, "b"); err != nil { // writes the journal
		t.Fatal(err)
	}
	a.lock.Close()
	cfg := testConfig(dir)
	cfg.ClusterName = "other"
	if _, err := New(cfg); !errors.Is(err, cluster.ErrOtherCluster) {
		t.Errorf("data dir of another cluster: %v", err)
	}
}

// TestNothingWithoutTheVolume: a data dir that isn't what it was gets no etcd, and no action touches it.
func TestNothingWithoutTheVolume(t *testing.T) {
	dir := t.TempDir()
	gone := errors.New("the volume is gone")
	if err := writeState(filepath.Join(dir, "state"), testState("token")); err != nil {
		t.Fatal(err)
	}
	makeLog(t, layout(dir), "token")
	cfg := testConfig(dir)
	cfg.Ready = func() error { return gone }
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.lock.Close() })
	if err := a.etcd.start(t.Context()); !errors.Is(err, gone) {
		t.Errorf("start: %v", err)
	}
	if _, err := a.begin(&protosv1.PerformRequest{Term: 7, Leader: "b"}); !errors.Is(err, gone) || a.records.j.Term != 0 {
		t.Errorf("begin: %v, and the term is %d", err, a.records.j.Term)
	}
}

func TestTermsOnlyGrowAlsoOverRestarts(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir)
	step := func(term cluster.Term, leader cluster.NodeID, ok bool) {
		t.Helper()
		err := a.records.obey(term, leader)
		if ok != (err == nil) || err != nil && !errors.Is(err, cluster.ErrLowerTerm) {
			t.Errorf("term %d of %s: %v", term, leader, err)
		}
	}
	step(5, "b", true)
	step(5, "b", true)
	step(5, "c", false)
	step(4, "b", false)
	step(6, "c", true)
	a.lock.Close()
	a = open(t, dir)
	step(5, "b", false)
	step(6, "b", false)
	step(6, "c", true)
}

func TestAcceptKeepsClustersApart(t *testing.T) {
	a := open(t, t.TempDir())
	if err := a.records.accept(testState("T1"), &protosv1.StartEtcd{}); err == nil {
		t.Error("a node without data took a state that needs some")
	}
	if err := a.records.accept(testState("T1"), &protosv1.StartEtcd{MayBeEmpty: true}); err != nil {
		t.Fatal(err)
	}
	if a.records.j.MayBeEmpty != "T1" {
		t.Errorf("a joining member may start empty, the journal says %q", a.records.j.MayBeEmpty)
	}
	if err := a.records.accept(testState("T2"), &protosv1.StartEtcd{MayBeEmpty: true}); err == nil {
		t.Error("a node changed its cluster without being set aside")
	}
}

// A member that had data once never starts without.
func TestNoStartOnALostDataDir(t *testing.T) {
	dir := t.TempDir()
	if err := writeState(filepath.Join(dir, "state"), testState("T1")); err != nil {
		t.Fatal(err)
	}
	a := open(t, dir)
	err := a.etcd.start(t.Context())
	if !errors.Is(err, cluster.ErrPermanent) || !strings.Contains(err.Error(), "is gone") {
		t.Errorf("start: %v", err)
	}
}

func TestSetAsideKeepsTheData(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir)
	for i := range 6 {
		token := cluster.Token("T" + string(rune('0'+i/2))) // each twice
		if err := a.records.accept(testState(token), &protosv1.StartEtcd{MayBeEmpty: true}); err != nil {
			t.Fatal(err)
		}
		makeLog(t, a.l, token)
		if err := a.setAside(t.Context(), &protosv1.SetAside{Token: string(token), Reason: "test"}); err != nil {
			t.Fatal(err)
		}
		if err := a.setAside(t.Context(), &protosv1.SetAside{Token: string(token), Reason: "test"}); err != nil {
			t.Errorf("set aside twice: %v", err)
		}
		if a.records.state != nil || exists(a.l.data(token)) || exists(a.l.state()) || !exists(filepath.Join(a.l.trash(token), "member")) {
			t.Errorf("token %s isn't in the trash can", token)
		}
	}
	a.trash.look()
	s := a.Status(t.Context())
	if len(s.Trash) != 6 {
		t.Errorf("the trash can has %+v; want 6 entries, since there is no store with a newer backup", s.Trash)
	}
	for i, e := range s.Trash {
		if want := cluster.Token("T" + string(rune('2'-i/2))); e.Token != want || time.Since(e.Since) > time.Minute {
			t.Errorf("entry %d is %+v, want token %s", i, e, want)
		}
	}
}

// makeLog makes what tells that etcd has data: the file of a log.
func makeLog(t *testing.T, l layout, token cluster.Token) {
	t.Helper()
	must(t, os.MkdirAll(l.logDir(token), 0o700))
	must(t, os.WriteFile(filepath.Join(l.logDir(token), "0000000000000000-0000000000000000.wal"), nil, 0o600))
}

// stageByHand leaves what Stage leaves, without an etcd.
func stageByHand(t *testing.T, a *Agent, op string, token cluster.Token) {
	t.Helper()
	makeLog(t, a.l, token)
	if err := a.records.note(&journalOperation{ID: cluster.OperationID(op), Phase: phaseStaged, Token: token, Revision: 7, Hash: 9}); err != nil {
		t.Fatal(err)
	}
}

// switchOver goes through stop and switch; that etcd can't be started here (there is no binary) doesn't matter.
func switchOver(t *testing.T, a *Agent, op string, token cluster.Token) {
	t.Helper()
	if err := a.restorer.stop(t.Context(), &protosv1.Stop{Operation: op}); err != nil {
		t.Fatal(err)
	}
	if !a.records.holding() {
		t.Fatal("etcd isn't held after stop")
	}
	_ = a.restorer.switchTo(t.Context(), &protosv1.Switch{Operation: op, State: wire.StateToProto(testState(token))})
	if a.records.state.Token != token || a.records.j.Operation.Phase != phaseSwitched {
		t.Fatalf("after the switch: token %s, phase %s", a.records.state.Token, a.records.j.Operation.Phase)
	}
}

func TestSwitchAndRollback(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir)
	if err := a.records.accept(testState("OLD"), &protosv1.StartEtcd{MayBeEmpty: true}); err != nil {
		t.Fatal(err)
	}
	makeLog(t, a.l, "OLD")
	stageByHand(t, a, "op1", "NEW")
	switchOver(t, a, "op1", "NEW")
	if !exists(a.l.data("OLD")) {
		t.Fatal("the old data are gone before the restore is finished")
	}
	must(t, os.RemoveAll(a.l.logDir("NEW")))
	// There is no log from which to tell whether clients have written: then there is no way back.
	if err := a.restorer.rollback(t.Context(), "op1"); !errors.Is(err, cluster.ErrPermanent) || a.records.state.Token != "NEW" || !a.records.holding() {
		t.Fatalf("rollback without a log: %v; token %s, held %v", err, a.records.state.Token, a.records.holding())
	}
	op := *a.records.j.Operation
	op.Written = false
	if err := a.records.note(&op); err != nil {
		t.Fatal(err)
	}
	_ = a.restorer.rollback(t.Context(), "op1")
	if a.records.state.Token != "OLD" || a.records.holding() {
		t.Fatalf("after the rollback: token %s, held %v", a.records.state.Token, a.records.holding())
	}
	if err := a.restorer.discard("op1"); err != nil {
		t.Fatal(err)
	}
	if exists(a.l.data("NEW")) || !exists(a.l.data("OLD")) {
		t.Error("after a rollback the staged data go and the old ones stay")
	}

	stageByHand(t, a, "op2", "NEW2")
	switchOver(t, a, "op2", "NEW2")
	if err := a.restorer.discard("op2"); err != nil {
		t.Fatal(err)
	}
	if !exists(a.l.trash("OLD")) || !exists(a.l.data("NEW2")) || a.records.j.Operation != nil {
		t.Error("after a restore the old data are in the trash can and the new ones stay")
	}
}

// The hold outlives the manager: etcd isn't started in the middle of a restore.
func TestHoldSurvivesARestart(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir)
	if err := a.records.accept(testState("OLD"), &protosv1.StartEtcd{MayBeEmpty: true}); err != nil {
		t.Fatal(err)
	}
	stageByHand(t, a, "op1", "NEW")
	if err := a.restorer.stop(t.Context(), &protosv1.Stop{Operation: "op1", Record: []byte("{}")}); err != nil {
		t.Fatal(err)
	}
	a.lock.Close()
	a = open(t, dir)
	if !a.records.holding() {
		t.Fatal("the hold is forgotten")
	}
	if err := a.etcd.start(context.Background()); err != nil || a.etcd.proc != nil {
		t.Errorf("start while held: %v", err)
	}
	if s := a.Status(t.Context()); !s.Holding || len(s.Staged) != 1 || s.Staged[0].Hash != 9 || string(s.OperationRecord) != "{}" {
		t.Errorf("status: %+v", s)
	}
	// A switch that isn't of this restore is refused.
	if err := a.restorer.switchTo(t.Context(), &protosv1.Switch{Operation: "other", State: wire.StateToProto(testState("NEW"))}); err == nil {
		t.Error("a switch of another restore went through")
	}
	if err := a.restorer.discard("op1"); err == nil {
		t.Error("what is held was discarded")
	}
}

func TestVotesAreDurable(t *testing.T) {
	dir := t.TempDir()
	v := Votes(dir)
	if got, err := v.Load(); err != nil || got != (Vote{}) {
		t.Fatalf("never voted: %+v, %v", got, err)
	}
	if err := v.Save(Vote{Term: 3, For: "b"}); err != nil {
		t.Fatal(err)
	}
	if got, err := Votes(dir).Load(); err != nil || got.Term != 3 || got.For != "b" {
		t.Errorf("read %+v, %v", got, err)
	}
	if err := os.WriteFile(layout(dir).vote(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Votes(dir).Load(); !errors.Is(err, cluster.ErrCorrupt) {
		t.Errorf("a broken vote file: %v", err)
	}
}

// Until the log was read, a halt is no answer to the question whether clients have written.
func TestHaltThatCannotReadTheLog(t *testing.T) {
	a := open(t, t.TempDir())
	must(t, a.records.accept(testState("OLD"), &protosv1.StartEtcd{MayBeEmpty: true}))
	stageByHand(t, a, "op1", "NEW")
	switchOver(t, a, "op1", "NEW")
	db := filepath.Join(a.l.memberDir("NEW"), "snap", "db")
	must(t, os.MkdirAll(filepath.Dir(db), 0o700))
	f, err := os.Create(db)
	must(t, err)
	defer f.Close()
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX)) // somebody still runs on it
	for _, err := range []error{a.restorer.halt(t.Context(), "op1"), a.restorer.rollback(t.Context(), "op1")} {
		if s := a.Status(t.Context()); !errors.Is(err, etcd.ErrDataDirInUse) || permanent(err) || !s.Holding || s.Staged[0].Halted {
			t.Errorf("%v; status %+v", err, s)
		}
	}
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_UN))
	must(t, os.RemoveAll(a.l.logDir("NEW")))
	must(t, a.restorer.halt(t.Context(), "op1"))
	if s := a.Status(t.Context()); !s.Staged[0].Halted || !s.Staged[0].Written {
		t.Errorf("a log that isn't there: %+v", s)
	}
}
