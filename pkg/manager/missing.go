package manager

import (
	"context"
	"slices"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

const (
	// missingGrace is how long a node that doesn't answer is waited for although the cluster doesn't need it.
	missingGrace = 10 * time.Minute
	// forgetAfter is how long such a node may be silent before all managers forget it.
	forgetAfter = 24 * time.Hour
	// recordsEvery is how often the leader looks for records of nodes that are gone.
	recordsEvery = 6 * time.Hour
)

// essential are the nodes that the cluster, its forming or a restore counts on. They are missing for as long as they don't answer.
func (l *leadership) essential(o *model.Observation) map[cluster.NodeID]bool {
	ids := map[cluster.NodeID]bool{}
	add := func(nodes []cluster.EtcdNode) {
		for _, n := range nodes {
			ids[cluster.NodeID(n.Name)] = true
		}
	}
	for _, n := range o.Nodes {
		for _, m := range n.Etcd.Members {
			ids[cluster.NodeID(m.Name)] = true
		}
		if n.State != nil && !n.Etcd.Healthy {
			add(n.State.Nodes)
		}
	}
	if l.store.Marker.Phase == model.MarkerForming {
		add(l.store.Marker.Founders)
	}
	if op := l.planOperation(); op != nil {
		add(op.Nodes)
	}
	delete(ids, "")
	return ids
}

// countMissing remembers since when nodes haven't answered, and since when the set of those that do is the same. A node on which nothing depends
// is missing for a while only: it may be one that is gone for good, as after the loss of a disk with the node's name on it.
func (l *leadership) countMissing(o *model.Observation, known, essential, foreign map[cluster.NodeID]bool) {
	now := time.Now()
	set := ""
	for _, n := range o.Nodes {
		delete(known, n.ID)
		delete(l.missing, n.ID)
		set += string(n.ID) + " "
	}
	for id := range known {
		// Other software that answers is alive. When it goes, to make room for this one, the wait for the node begins then.
		if l.missing[id].IsZero() || foreign[id] {
			l.missing[id] = now
		}
		silent := now.Sub(l.missing[id])
		if !essential[id] && silent > missingGrace {
			if silent > forgetAfter {
				l.m.cfg.Peers.Forget(id)
			}
			continue
		}
		o.Missing = append(o.Missing, model.MissingNode{ID: id, For: silent, Foreign: foreign[id]})
	}
	slices.SortFunc(o.Missing, func(a, b model.MissingNode) int { return strings.Compare(string(a.ID), string(b.ID)) })
	if set != l.settled {
		l.settled, l.since = set, now
	}
	o.SettledFor = now.Sub(l.since)
}

// removeRecords removes the discovery records of nodes that are gone, for as long as this leadership lasts.
func (l *leadership) removeRecords(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(recordsEvery):
		}
		if err := l.removeGone(ctx); err != nil && ctx.Err() == nil {
			klog.V(2).Infof("look for records of nodes that are gone: %v", err)
		}
	}
}

func (l *leadership) removeGone(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	records, _, err := l.m.cfg.Catalog.Peers(ctx, nil)
	if err != nil {
		return err
	}
	connected := map[cluster.NodeID]bool{l.m.cfg.Self: true}
	for _, p := range l.m.cfg.Peers.Peers() {
		connected[p.ID] = p.Connected
	}
	_, gone := catalog.LivingPeers(records)
	for _, r := range gone {
		id := cluster.NodeID(r.Info.GetNodeId())
		if connected[id] {
			continue // an older manager, which writes its record once
		}
		if err := l.m.cfg.Catalog.RemovePeer(ctx, id); err != nil {
			return err
		}
		klog.Infof("removed the discovery record of node %s, which it hasn't written since %s", id, r.Modified.UTC().Format(time.RFC3339))
	}
	return nil
}
