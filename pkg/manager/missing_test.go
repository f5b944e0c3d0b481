package manager

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/peer"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
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
	member := cluster.NodeStatus{ID: "a",
		Etcd:  cluster.EtcdStatus{Healthy: true, Members: []cluster.Member{{ID: 1, Name: "a"}, {ID: 2, Name: "b"}}},
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
			l.observer.missing["b"], l.observer.missing["former"] = since, since
			o := &model.Observation{Nodes: []cluster.NodeStatus{member}}
			known, foreign := map[cluster.NodeID]bool{"a": true, "b": true, "former": true}, map[cluster.NodeID]bool{"former": c.foreign}
			l.observer.countMissing(o, known, l.observer.essential(o), foreign)
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
	l.observer.missing["b"] = time.Now().Add(-forgetAfter - time.Hour)
	state := &cluster.EtcdState{Nodes: []cluster.EtcdNode{{Name: "a"}, {Name: "b"}}}
	o := &model.Observation{Nodes: []cluster.NodeStatus{{ID: "a", State: state}}}
	l.observer.countMissing(o, map[cluster.NodeID]bool{"a": true, "b": true}, l.observer.essential(o), nil)
	if len(o.Missing) != 1 || o.Missing[0].ID != "b" {
		t.Errorf("missing %v", o.Missing)
	}
}

// TestProofsGoOnWithoutALostNode: a node that lost its disk and its name is a healthy member under another one. The name that it had
// keeps a backup from being proven only for as long as that node may come back.
func TestProofsGoOnWithoutALostNode(t *testing.T) {
	var nodes []cluster.NodeStatus
	var members []cluster.Member
	for i, id := range []cluster.NodeID{"a", "b", "vm-2345"} {
		members = append(members, cluster.Member{ID: cluster.MemberID(i + 1), Name: string(id)})
	}
	for i, m := range members {
		nodes = append(nodes, cluster.NodeStatus{ID: cluster.NodeID(m.Name), State: &cluster.EtcdState{Token: "T"},
			Etcd: cluster.EtcdStatus{Running: true, Healthy: true, MemberID: cluster.MemberID(i + 1), LeaderID: 1, Members: members}})
	}
	l := newLeadership(&Manager{cfg: Config{Peers: &forgetful{}}}, 1)
	look := func() *model.Observation {
		o := &model.Observation{Nodes: nodes}
		l.observer.countMissing(o, map[cluster.NodeID]bool{"a": true, "b": true, "c": true, "vm-2345": true}, l.observer.essential(o), nil)
		return o
	}
	spec := &cluster.Spec{MemberCount: 3}
	if o := look(); restful(o, spec) != "" || len(o.Missing) != 1 {
		t.Errorf("the lost node isn't waited for: %v is missing", o.Missing)
	}
	l.observer.missing["c"] = time.Now().Add(-missingGrace - time.Second)
	if o := look(); restful(o, spec) == "" {
		t.Errorf("no backup can be proven: %v is missing", o.Missing)
	}
	nodes = nodes[:2] // another one that is a member still is waited for
	l.observer.missing["vm-2345"] = time.Now().Add(-missingGrace - time.Second)
	if o := look(); restful(o, spec) != "" || len(o.Missing) != 1 || o.Missing[0].ID != "vm-2345" {
		t.Errorf("a member that doesn't answer isn't waited for: %v is missing", o.Missing)
	}
}

// connectedTo are peers of which some are connected.
type connectedTo struct {
	otherPeers
	ids []cluster.NodeID
}

func (c connectedTo) Peers() []peer.Peer {
	var list []peer.Peer
	for _, id := range c.ids {
		list = append(list, peer.Peer{Info: peer.Info{ID: id}, Connected: true})
	}
	return list
}

// TestRecordsOfNodesThatAreGone: the leader removes the record of a node that hasn't written it for long, unless the node is here.
func TestRecordsOfNodesThatAreGone(t *testing.T) {
	dir := t.TempDir()
	s, err := connect.Open(t.Context(), dir, func(string) string { return "" })
	must(t, err)
	c := catalog.New(s)
	old := map[string]time.Duration{"self": 3 * catalog.PeerLife, "b": 0, "recent": catalog.PeerLife - time.Hour,
		"older-manager": 3 * catalog.PeerLife, "gone": 3 * catalog.PeerLife, "gone-too": catalog.PeerLife + time.Hour}
	for id, age := range old {
		must(t, c.PutPeer(t.Context(), &protosv1.PeerInfo{NodeId: id, Endpoints: []string{"10.0.0.1:3996"}}))
		at, aged := time.Now().Add(-age), 0
		must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Name() == id {
				aged++
				return os.Chtimes(path, at, at)
			}
			return err
		}))
		if aged != 1 {
			t.Fatalf("%d files of the record of %s", aged, id)
		}
	}
	peers := connectedTo{ids: []cluster.NodeID{"b", "older-manager"}}
	l := newLeadership(&Manager{cfg: Config{Self: "self", Catalog: c, Peers: peers}}, 1)
	must(t, l.cleaner.removeGone(t.Context()))
	records, _, err := c.Peers(t.Context(), nil)
	must(t, err)
	var ids []string
	for _, r := range records {
		ids = append(ids, r.Info.GetNodeId())
	}
	slices.Sort(ids)
	if want := []string{"b", "older-manager", "recent", "self"}; !slices.Equal(ids, want) {
		t.Errorf("there are records of %v, want %v", ids, want)
	}
}
