package safety

import (
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// threeForm is a cluster of a, b and c that is being formed: each founder runs and is healthy, and no client was let in.
func threeForm() *model.Observation {
	o := emptyStore()
	o.Store.Spec = &cluster.Spec{MemberCount: 3}
	o.Store.Marker = model.Marker{Phase: model.MarkerForming, Token: "T1"}
	for i, name := range []string{"a", "b", "c"} {
		o.Store.Marker.Founders = append(o.Store.Marker.Founders, cluster.EtcdNode{Name: name})
		o.Nodes = append(o.Nodes, cluster.NodeStatus{ID: cluster.NodeID(name), DataPresent: true,
			State: &cluster.EtcdState{Token: "T1", NewCluster: true, Quarantined: true, DesiredSize: 3},
			Etcd:  cluster.EtcdStatus{Running: true, Healthy: true, MemberID: cluster.MemberID(i + 1), LeaderID: 1}})
	}
	return o
}

// blank makes founders look as if they had never begun, or had lost their disks.
func blank(o *model.Observation, which ...int) {
	for _, i := range which {
		o.Nodes[i] = cluster.NodeStatus{ID: o.Nodes[i].ID}
	}
}

func unwell(o *model.Observation, i int, d time.Duration) {
	o.Nodes[i].Etcd = cluster.EtcdStatus{UnhealthyFor: d}
}

// TestFounders: founders only start together, before any of them has begun; and forming only starts over if they can't go on.
func TestFounders(t *testing.T) {
	const begun, goOn = "has begun, so one without data may have lost them", "they can go on"
	for _, c := range []struct {
		name   string
		change func(o *model.Observation)
		// start and over are what the errors say of starting all that are blank, and of starting over; empty if it may be.
		start, over string
	}{
		{"nobody has begun", func(o *model.Observation) { blank(o, 0, 1, 2) }, "", "they can all be started"},
		{"all have begun", func(*model.Observation) {}, begun, goOn},
		{"one lost its disk", func(o *model.Observation) { blank(o, 0) }, begun, goOn},
		{"one lost its disk, and the others restart", func(o *model.Observation) {
			blank(o, 0)
			unwell(o, 1, time.Second)
			unwell(o, 2, time.Second)
		}, begun, goOn},
		{"one lost its disk, and another one is down for long", func(o *model.Observation) {
			blank(o, 0)
			unwell(o, 2, time.Hour)
		}, begun, ""},
		{"only one has begun", func(o *model.Observation) { blank(o, 0, 1) }, begun, ""},
		{"only one has begun, and its data are gone", func(o *model.Observation) {
			blank(o, 0, 1)
			o.Nodes[2].DataPresent = false
			unwell(o, 2, time.Second)
		}, begun, ""},
		{"two can't start their etcd, or have lost their data dirs alone", func(o *model.Observation) {
			for i := range 2 {
				o.Nodes[i].DataPresent, o.Nodes[i].Etcd.Running = false, false
			}
		}, begun, goOn},
		{"one can't be reached, the others are blank", func(o *model.Observation) {
			blank(o, 0, 1)
			o.Nodes = o.Nodes[:2]
		}, "founder c doesn't answer and may have begun", ""},
		{"one can't be read, the others are blank", func(o *model.Observation) {
			blank(o, 0, 1, 2)
			o.Nodes[2].StateError = "bad checksum"
		}, "founder c may have begun, so one without data may have lost them: bad checksum", ""},
		{"one can't be read, another is blank", func(o *model.Observation) {
			blank(o, 0, 1)
			o.Nodes[1].StateError = "bad checksum"
		}, "may have begun", goOn},
		{"clients are in", func(o *model.Observation) {
			blank(o, 0, 1)
			o.Nodes[2].State.Quarantined = false
		}, begun, "clients may have written"},
		{"the founders are too few for what is wanted", func(o *model.Observation) {
			blank(o, 0, 1)
			o.Store.Spec.MemberCount = 7
		}, begun, "no majority of the 7"},
		{"one has data of an attempt before", func(o *model.Observation) {
			blank(o, 0, 1)
			o.Nodes[2].State.Token = "T0"
		}, begun, ""},
	} {
		o := threeForm()
		c.change(o)
		var all model.StartAll
		for _, n := range o.Nodes {
			if n.State == nil && n.StateError == "" {
				all.Starts = append(all.Starts, model.StartEtcd{Node: n.ID, MayBeEmpty: true,
					State: cluster.EtcdState{Token: "T1", NewCluster: true, Quarantined: true}})
			}
		}
		replace := model.ReplaceMarker{Token: "NEW", Founders: o.Store.Marker.Founders}
		for _, x := range []struct {
			action model.Action
			want   string
		}{{all, c.start}, {replace, c.over}} {
			err := Check(o, x.action, model.Policy{})
			if x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)) {
				t.Errorf("%s: %s: %v, want %q", c.name, x.action, err, x.want)
			}
		}
	}
}

// TestCheckNeverServed: only data of an attempt to form that was given up may go without a backup.
func TestCheckNeverServed(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*model.Observation)
		want   string
	}{
		{"an attempt that was given up", func(*model.Observation) {}, ""},
		{"the marker says formed", func(o *model.Observation) { o.Store.Marker.Phase = model.MarkerFormed }, "clients may have been let into"},
		{"the marker's own cluster", func(o *model.Observation) { o.Store.Marker.Token = "T1" }, "clients may have been let into"},
		{"clients were let in", func(o *model.Observation) { o.Nodes[0].State.Quarantined = false }, "clients may have been let into"},
		{"no founder", func(o *model.Observation) { o.Nodes[0].State.NewCluster = false }, "clients may have been let into"},
		{"the store is away", func(o *model.Observation) { o.Store.Error = "unavailable" }, "clients may have been let into"},
	} {
		o := threeForm()
		o.Store.Marker.Token = "T2"
		c.change(o)
		err := Check(o, model.SetAside{Node: o.Nodes[0].ID, Token: "T1", NeverServed: true}, model.Policy{})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}
