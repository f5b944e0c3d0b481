package manager

import (
	"maps"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// TestLeftBehind: what a node has staged goes once the store says that the operation is over, and never what is in use.
func TestLeftBehind(t *testing.T) {
	staged := func(s cluster.StagedDir) []cluster.StagedDir {
		s.Operation, s.Token = "r1", "R1"
		return []cluster.StagedDir{s}
	}
	nodes := []cluster.NodeStatus{
		{ID: "nothing"},
		{ID: "staged", Operation: "r1", Staged: staged(cluster.StagedDir{})},
		{ID: "proven", Operation: "r1"},
		{ID: "held", Operation: "r1", Holding: true, Staged: staged(cluster.StagedDir{})},
		{ID: "switched", Operation: "r1", Staged: staged(cluster.StagedDir{Switched: true})},
		{ID: "halted", Operation: "r1", Staged: staged(cluster.StagedDir{Halted: true})},
		{ID: "runs", Operation: "r1", State: &cluster.EtcdState{Token: "R1"}, Staged: staged(cluster.StagedDir{})},
		{ID: "busy", Operation: "r1", Busy: "stage", Staged: staged(cluster.StagedDir{})},
		{ID: "current", Operation: "r2"},
		{ID: "unknown", Operation: "r3"},
	}
	got := leftBehind(nodes, map[string]string{"r1": "stamp", "r2": "stamp"}, "r2")
	if want := map[cluster.NodeID]string{"staged": "r1", "proven": "r1"}; !maps.Equal(got, want) {
		t.Errorf("%v are cleared, want %v", got, want)
	}
}
