package safety

import (
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// threeWell is a cluster of a, b and c in which c is ready to give its volume up and may.
func threeWell() *model.Observation {
	o := emptyStore()
	o.Store.Spec = &cluster.Spec{MemberCount: 3}
	o.Store.Marker = model.Marker{Phase: model.MarkerFormed, Token: "T1"}
	var members []cluster.Member
	for i, name := range []string{"a", "b", "c"} {
		members = append(members, cluster.Member{ID: cluster.MemberID(i + 1), Name: name})
	}
	for _, m := range members {
		o.Nodes = append(o.Nodes, cluster.NodeStatus{
			ID: cluster.NodeID(m.Name), State: &cluster.EtcdState{Token: "T1", DesiredSize: 3}, DataPresent: true,
			Etcd: cluster.EtcdStatus{Running: true, Healthy: true, MemberID: m.ID, LeaderID: 1, Members: members},
		})
	}
	o.Nodes[2].Release = &cluster.VolumeRelease{Volume: "vol-c", Replacement: "vol-new"}
	return o
}

func TestMayRelease(t *testing.T) {
	none := func(*model.Observation) {}
	for _, c := range []struct {
		name   string
		change func(o *model.Observation)
		// want is what the error says; empty if the node may.
		want string
	}{
		{"all are well", none, ""},
		{"another node asks too", func(o *model.Observation) {
			o.Nodes[1].Release = &cluster.VolumeRelease{Volume: "vol-b", Replacement: "vol-x"}
		}, ""},
		{"nobody has said what is wanted", func(o *model.Observation) { o.Store.Spec = nil }, ""},
		{"the restore is over", func(o *model.Observation) { o.Store.Operation = &model.Operation{ID: "r1", State: model.OpDone} }, ""},

		{"it isn't ready", func(o *model.Observation) { o.Nodes[2].Release = nil }, "isn't ready"},
		{"it doesn't answer", func(o *model.Observation) { o.Nodes = o.Nodes[:2] }, "doesn't answer"},
		{"a restore is recorded", func(o *model.Observation) { o.Store.Operation = &model.Operation{ID: "r1", State: model.OpProving} },
			"a restore is running (r1)"},
		{"a node's journal has a restore", func(o *model.Observation) { o.Nodes[0].Operation = "r0" },
			"member a (1): a restore is under way on its node (r0)"},
		{"a node is held", func(o *model.Observation) { o.Nodes[1].Holding = true }, "member b (2): a restore"},
		{"it is busy itself", func(o *model.Observation) { o.Nodes[2].Busy = "stage" }, "member c (3): its node is busy with stage"},
		{"another volume is given up", func(o *model.Observation) { o.Nodes[0].Busy = cluster.BusyReleasing }, "member a (1): its node is busy"},
		{"another is away", func(o *model.Observation) { o.Nodes = o.Nodes[1:] }, "member a (1): its manager doesn't answer"},
		{"another isn't healthy", func(o *model.Observation) {
			o.Nodes[1].Etcd = cluster.EtcdStatus{Running: true, MemberID: 2, UnhealthyFor: time.Second, Error: "no leader"}
		}, "member b (2): it isn't a healthy voter: no leader"},
		{"it isn't healthy itself", func(o *model.Observation) { o.Nodes[2].Etcd.Healthy = false },
			"member c (3): it isn't a healthy voter"},
		{"another has an empty disk", func(o *model.Observation) { o.Nodes[1].State = nil },
			"member b (2): its node doesn't have its data"},
		{"another has another cluster's data", func(o *model.Observation) {
			o.Nodes[1].State = &cluster.EtcdState{Token: "T0"}
			o.Nodes[1].Etcd.Healthy = false
		}, "doesn't have its data"},
		{"another runs as another member", func(o *model.Observation) { o.Nodes[1].Etcd.MemberID = 9 }, "doesn't have its data"},
		{"clients can't reach one", func(o *model.Observation) { o.Nodes[0].Etcd.Quarantined = true }, "clients can't reach it"},
		{"data are corrupt", func(o *model.Observation) {
			o.Nodes[0].Etcd.Alarms = []cluster.Alarm{{Member: 2, Type: cluster.AlarmCorrupt}}
		}, "member b (2): it has the alarm CORRUPT"},
		{"a member is a learner", func(o *model.Observation) {
			for i := range o.Nodes {
				o.Nodes[i].Etcd.Members = []cluster.Member{{ID: 1, Name: "a"}, {ID: 2, Name: "b", Learner: true}, {ID: 3, Name: "c"}}
			}
			o.Nodes[1].Etcd.Learner = true
		}, "no voter yet"},
		{"two members", func(o *model.Observation) {
			for i := range o.Nodes {
				o.Nodes[i].Etcd.Members = o.Nodes[i].Etcd.Members[1:]
			}
		}, "there are 2 members, and 3 are needed"},
		{"five are wanted", func(o *model.Observation) { o.Store.Spec.MemberCount = 5 }, "there are 3 members, and 5 are needed"},
		{"five were wanted when the store was there",
			func(o *model.Observation) { o.Store.Spec = nil; o.Nodes[2].State.DesiredSize = 5 }, "and 5 are needed"},
		{"it isn't a member", func(o *model.Observation) {
			o.Nodes[2].Release = nil
			o.Nodes = append(o.Nodes, cluster.NodeStatus{ID: "d", Release: &cluster.VolumeRelease{Volume: "vol-d", Replacement: "vol-new"}})
		}, "node d has no member"},
		{"nobody serves", func(o *model.Observation) {
			for i := range o.Nodes {
				o.Nodes[i].Etcd.Healthy = false
			}
		}, "no healthy member"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, id := threeWell(), cluster.NodeID("c")
			c.change(o)
			if len(o.Nodes) > 3 {
				id = "d"
			}
			err := MayRelease(o, id)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			// Check asks the same, and that the action names what the node has named.
			asked := Check(o, model.ReleaseVolume{Node: id, Volume: "vol-" + string(id), Replacement: "vol-new"}, model.Policy{})
			if (asked == nil) != (err == nil) {
				t.Errorf("MayRelease: %v, Check: %v", err, asked)
			}
			if asked := Check(o, model.ReleaseVolume{Node: id, Volume: "vol-" + string(id), Replacement: "vol-other"},
				model.Policy{}); asked == nil {
				t.Error("Check lets another volume be taken than the one that the node is ready for")
			}
		})
	}
}
