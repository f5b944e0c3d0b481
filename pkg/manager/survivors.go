package manager

import (
	"cmp"
	"context"
	"reflect"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// survivorNotes shows in the store what data there are while the cluster has no quorum. Only the loop uses it.
type survivorNotes struct {
	*shared
	store   *storeView
	started time.Time
	shown   catalog.Survivors // what was last written
}

// show keeps in the store what data there are while the cluster has no quorum, since the operator's tool sees only the store.
// A failure is harmless: it is tried again with the next look.
func (sn *survivorNotes) show(ctx context.Context, o *model.Observation) {
	if o.Store.Error != "" || o.Store.Operation != nil || o.Store.Marker.Phase != model.MarkerFormed {
		return
	}
	nodes, serving := survivors(o.Nodes)
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	switch {
	case serving && (sn.store.showsSurvivors() || !sn.shown.At.IsZero()):
		if err := sn.m.cfg.Catalog.RemoveSurvivors(ctx); err != nil {
			klog.V(2).Infof("%v", err)
			return
		}
		sn.shown = catalog.Survivors{}
		sn.store.survivorsGone()
	case serving || len(nodes) == 0 || reflect.DeepEqual(nodes, sn.shown.Nodes) && time.Since(sn.shown.At) < time.Minute:
	case time.Since(sn.started) < survivorGrace, time.Since(sn.shown.At) < survivorGrace:
	default:
		s := catalog.Survivors{At: time.Now(), Nodes: nodes}
		if err := sn.m.cfg.Catalog.PutSurvivors(ctx, s); err != nil {
			klog.V(2).Infof("show survivors: %v", err)
			return
		}
		sn.shown = s
	}
}

// survivorGrace is how long etcd may take to come up after a change of leader before it is said to have no quorum, and how often that
// is written at most.
const survivorGrace = 10 * time.Second

// survivors are the data dirs that the nodes have, and whether any of them serves.
func survivors(nodes []cluster.NodeStatus) (list []catalog.Survivor, serving bool) {
	for _, n := range nodes {
		if n.Etcd.Votes() {
			serving = true
		}
		if n.State == nil || !n.DataPresent {
			continue
		}
		s := catalog.Survivor{Node: n.ID, Token: n.State.Token, Revision: n.Etcd.Revision, RaftTerm: n.Etcd.RaftTerm, RaftIndex: n.Etcd.RaftIndex,
			LastWrite: n.Etcd.LogWritten, SizeBytes: n.Etcd.DBSize, EtcdVersion: n.Etcd.Version}
		switch {
		case n.Etcd.Running && n.Etcd.Learner:
			s.Condition = "a learner, which may lack what the voters have"
		case n.Etcd.Running && n.Etcd.Votes():
			s.Condition = "healthy"
		case n.Etcd.Running:
			s.Condition = "running, without a quorum"
		default:
			s.Condition = cmp.Or(n.Etcd.Error, "not running")
		}
		list = append(list, s)
	}
	return list, serving
}
