package manager

import (
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// TestNodeToProveOn: a cluster that isn't whole puts a proof off, and after an interval a healthy member is taken. While a restore or a
// backup runs, the store is away or no member serves, none is.
func TestNodeToProveOn(t *testing.T) {
	node := func(id cluster.NodeID, member cluster.MemberID) cluster.NodeStatus {
		return cluster.NodeStatus{ID: id, State: &cluster.EtcdState{Token: "t"},
			Etcd: cluster.EtcdStatus{Healthy: true, Running: true, MemberID: member, LeaderID: 1}}
	}
	two := []cluster.NodeStatus{node("a", 1), node("b", 2)}
	for what, x := range map[string]struct {
		o              model.Observation
		wanted         int
		restful, after cluster.NodeID
	}{
		"whole":             {model.Observation{Nodes: two}, 2, "b", "b"},
		"a member too few":  {model.Observation{Nodes: two}, 3, "", "b"},
		"a node is missing": {model.Observation{Nodes: two, Missing: []model.MissingNode{{ID: "c"}}}, 2, "", "b"},
		"one is left":       {model.Observation{Nodes: two[:1]}, 3, "", "a"},
		"none serves":       {model.Observation{Nodes: []cluster.NodeStatus{{ID: "a"}}}, 1, "", ""},
		"a restore runs":    {model.Observation{Nodes: two, Store: model.Store{Operation: &model.Operation{}}}, 2, "", ""},
		"a backup runs":     {model.Observation{Nodes: two, BackupRunning: "x"}, 2, "", ""},
		"the store is away": {model.Observation{Nodes: two, Store: model.Store{Error: "x"}}, 2, "", ""},
	} {
		var pr proofs
		pr.noteRestful(&x.o, &cluster.Spec{MemberCount: x.wanted})
		if got, after := pr.node(false), pr.node(true); got != x.restful || after != x.after {
			t.Errorf("%s: %q, later %q; want %q, later %q", what, got, after, x.restful, x.after)
		}
	}
}

// TestOverdue: a proof that is put off waits for an interval, and no longer.
func TestOverdue(t *testing.T) {
	for waited, want := range map[time.Duration]bool{0: false, 23 * time.Hour: false, 25 * time.Hour: true} {
		if got := overdue(time.Now().Add(-waited), 24*time.Hour); got != want {
			t.Errorf("after %s: %t", waited, got)
		}
	}
	if overdue(time.Time{}, time.Hour) {
		t.Error("one that was never put off is overdue")
	}
}
