package manager

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// TestNodesAreToldWhyTheyWait: who is ready to give a volume up hears what the cluster lacks, or what the leader does first, and the node that
// the leader tells to do it hears nothing.
func TestNodesAreToldWhyTheyWait(t *testing.T) {
	members := []cluster.Member{{ID: 1, Name: "a"}, {ID: 2, Name: "b"}, {ID: 3, Name: "c"}}
	o := &model.Observation{}
	for _, m := range members {
		o.Nodes = append(o.Nodes, cluster.NodeStatus{
			ID: cluster.NodeID(m.Name), State: &cluster.EtcdState{Token: "T1", DesiredSize: 3},
			Etcd: cluster.EtcdStatus{Running: true, Healthy: true, MemberID: m.ID, LeaderID: 1, Members: members},
		})
	}
	if why := unreleased(o, plan.Decision{Why: "all is well"}); why != nil {
		t.Errorf("nobody asks, and is told %v", why)
	}
	o.Nodes[1].Release = &cluster.VolumeRelease{Volume: "vol-b", Replacement: "vol-2"}
	o.Nodes[2].Release = &cluster.VolumeRelease{Volume: "vol-c", Replacement: "vol-3"}
	do := plan.Decision{Do: model.ReleaseVolume{Node: "b", Volume: "vol-b", Replacement: "vol-2"}, Why: "b gives its volume up"}
	if why := unreleased(o, do); !reflect.DeepEqual(why, map[cluster.NodeID]string{"c": "b gives its volume up"}) {
		t.Errorf("while b gives its volume up: %v", why)
	}
	o.Nodes[0].Busy = "stage"
	why := unreleased(o, plan.Decision{Why: "a stages something"})
	const want = "member a (1): its node is busy with stage"
	if !reflect.DeepEqual(why, map[cluster.NodeID]string{"b": want, "c": want}) {
		t.Errorf("while a is busy: %v", why)
	}
	sent, err := json.Marshal((&Report{Releases: why}).summary("a"))
	var got Summary
	if err == nil {
		err = json.Unmarshal(sent, &got)
	}
	if err != nil || got.Releases["c"] != want {
		t.Errorf("what is sent to c says %q, %v", got.Releases["c"], err)
	}
}

// TestAnOldObservationReleasesNothing: a slow store delays the fence, and then the members may not be healthy any more.
func TestAnOldObservationReleasesNothing(t *testing.T) {
	mt := &maintenance{nodes: &nodes{}}
	o := &model.Observation{Now: time.Now().Add(-releaseWithin - time.Second)}
	err := mt.tend(t.Context(), o, model.ReleaseVolume{Node: "b", Volume: "vol-b", Replacement: "vol-2"})
	if err == nil || !strings.Contains(err.Error(), "it is decided again") {
		t.Errorf("got %v", err)
	}
}
