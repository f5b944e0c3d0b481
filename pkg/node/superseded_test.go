package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// TestHoldSuperseded: an etcd that is held because its cluster was superseded isn't started by the next manager, which asks no store. Only
// a leader starts it.
func TestHoldSuperseded(t *testing.T) {
	dir := t.TempDir()
	must(t, writeState(layout(dir).state(), testState("T1")))
	makeLog(t, layout(dir), "T1")
	must(t, HoldSuperseded(dir, "test"))
	must(t, HoldSuperseded(dir, "test"))
	a := open(t, dir)
	// No etcd is installed, so an attempt to start it fails.
	if err := a.etcd.start(t.Context()); err != nil {
		t.Errorf("it isn't held: %v", err)
	}
	if s := a.Status(t.Context()); !s.Holding || s.Operation != string(cluster.SupersededOperation) || s.State == nil {
		t.Errorf("%+v", s)
	}
	if err := HoldSuperseded(dir, "test"); err == nil {
		t.Error("it is held although another manager runs")
	}
	// A leader that doesn't know of superseded clusters has etcd started as after a restore. One that does says first that it was taken back.
	if err := a.records.accept(testState("T1"), &protosv1.StartEtcd{}); err == nil || !a.Status(t.Context()).Holding {
		t.Errorf("a leader of an older version starts it: %v", err)
	}
	must(t, a.restorer.rollback(t.Context(), "r1"))
	if !a.Status(t.Context()).Holding {
		t.Error("the rollback of a restore releases it")
	}
	must(t, a.restorer.rollback(t.Context(), string(cluster.SupersededOperation)))
	must(t, a.records.accept(testState("T1"), &protosv1.StartEtcd{}))
	if s := a.Status(t.Context()); s.Holding || s.Operation != "" {
		t.Errorf("a leader that takes it back doesn't start it again: %+v", s)
	}
}

// TestHoldSupersededRefuses: what can't be held isn't said to be.
func TestHoldSupersededRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		op   *journalOperation
		want string
	}{
		"a restore has stopped it":  {&journalOperation{ID: "r1", Phase: phaseStopped, Token: "T2"}, "restore r1"},
		"a restore has switched it": {&journalOperation{ID: "r1", Phase: phaseSwitched, Token: "T1"}, "restore r1"},
	} {
		dir := t.TempDir()
		l := layout(dir)
		must(t, os.MkdirAll(l.own(), 0o700))
		must(t, writeState(l.state(), testState("T1")))
		must(t, journal{Version: journalVersion, ClusterName: "test", Operation: c.op}.write(l.journal()))
		if err := HoldSuperseded(dir, "test"); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if j, err := readJournal(l.journal(), "test"); err != nil || j.Operation.ID != "r1" {
			t.Errorf("%s: the journal has %+v, %v", name, j.Operation, err)
		}
	}
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "state"), []byte("\xff"), 0o600))
	if err := HoldSuperseded(dir, "test"); err == nil {
		t.Error("a state that can't be read is held")
	}
	// A node that belongs to no cluster has nothing to hold.
	dir = t.TempDir()
	must(t, HoldSuperseded(dir, "test"))
	if open(t, dir).Status(t.Context()).Holding {
		t.Error("a new node is held")
	}
}
