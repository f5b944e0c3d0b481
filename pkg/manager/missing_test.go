package manager

import (
	"slices"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan"
)

// otherPeers is Peers under a name that can be embedded beside its method Peers.
type otherPeers = Peers

// forgetful remembers what is to be forgotten.
type forgetful struct {
	otherPeers
	forgotten []cluster.NodeID
}

func (f *forgetful) Forget(id cluster.NodeID) { f.forgotten = append(f.forgotten, id) }

// TestNodesThatAreGone: a member is missing for as long as it doesn't answer; a node on which nothing depends only for a while, and is
// forgotten in the end. So a cluster that has replaced a node comes to rest.
func TestNodesThatAreGone(t *testing.T) {
	member := cluster.NodeStatus{ID: "a", Etcd: cluster.EtcdStatus{Healthy: true, Members: []cluster.Member{{ID: 1, Name: "a"}, {ID: 2, Name: "b"}}},
		State: &cluster.EtcdState{Nodes: []cluster.EtcdNode{{Name: "a"}, {Name: "b"}, {Name: "former"}}}}
	for name, c := range map[string]struct {
		silent    time.Duration
		foreign   bool
		missing   []cluster.NodeID
		forgotten []cluster.NodeID
	}{
		"a moment":            {silent: time.Second, missing: []cluster.NodeID{"b", "former"}},
		"longer than a while": {silent: missingGrace + time.Second, missing: []cluster.NodeID{"b"}},
		"a day":               {silent: forgetAfter + time.Second, missing: []cluster.NodeID{"b"}, forgotten: []cluster.NodeID{"former"}},
		"other software":      {silent: forgetAfter + time.Second, foreign: true, missing: []cluster.NodeID{"b", "former"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := &forgetful{}
			l := newLeadership(&Manager{cfg: Config{Peers: f}}, 1)
			since := time.Now().Add(-c.silent)
			l.missing["b"], l.missing["former"] = since, since
			o := &plan.Observation{Nodes: []cluster.NodeStatus{member}}
			l.countMissing(o, map[cluster.NodeID]bool{"a": true, "b": true, "former": true}, l.essential(o), map[cluster.NodeID]bool{"former": c.foreign})
			var missing []cluster.NodeID
			for _, m := range o.Missing {
				missing = append(missing, m.ID)
			}
			if !slices.Equal(missing, c.missing) || !slices.Equal(f.forgotten, c.forgotten) {
				t.Errorf("missing %v, forgotten %v; want %v, %v", missing, f.forgotten, c.missing, c.forgotten)
			}
		})
	}
}

// TestNothingServes: who may be a member by a state file alone is waited for, as long as no etcd here can tell the members.
func TestNothingServes(t *testing.T) {
	l := newLeadership(&Manager{cfg: Config{Peers: &forgetful{}}}, 1)
	l.missing["b"] = time.Now().Add(-forgetAfter - time.Hour)
	o := &plan.Observation{Nodes: []cluster.NodeStatus{{ID: "a", State: &cluster.EtcdState{Nodes: []cluster.EtcdNode{{Name: "a"}, {Name: "b"}}}}}}
	l.countMissing(o, map[cluster.NodeID]bool{"a": true, "b": true}, l.essential(o), nil)
	if len(o.Missing) != 1 || o.Missing[0].ID != "b" {
		t.Errorf("missing %v", o.Missing)
	}
}
