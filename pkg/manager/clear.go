package manager

import (
	"context"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// discardAgain is how often a node is asked again to clear away what it has missed.
const discardAgain = time.Minute

// recordsEvery is how often the leader looks for records of nodes that are gone.
const recordsEvery = 6 * time.Hour

// cleaner clears away what nodes have left, on their disks and in the store.
type cleaner struct {
	*shared
	nodes      *nodes
	operations *operations

	// cleared is when nodes were last asked to clear away what they have of an operation that is over.
	// Only the loop touches it.
	cleared map[cluster.NodeID]time.Time
}

// clearAway frees the nodes of what the operation has left. A node that misses it does so before
// its next restore.
func (cl *cleaner) clearAway(ctx context.Context, o *model.Observation, id string) {
	err := each(o.Nodes, func(n cluster.NodeStatus) error {
		return cl.nodes.quick(ctx, n.ID, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Discard{Discard: &protosv1.Discard{Operation: id}}})
	})
	if err != nil && ctx.Err() == nil {
		klog.V(2).Infof("clear away restore %s: %v", id, err)
	}
}

// leftBehind are the nodes that still have what an operation has staged which is over by the store,
// with its name. Data that are in use, or that a restore which was taken back has still to give up,
// are none.
func leftBehind(nodes []cluster.NodeStatus, ended map[string]string, current string) map[cluster.NodeID]string {
	list := map[cluster.NodeID]string{}
	for _, n := range nodes {
		inUse := slices.ContainsFunc(n.Staged, func(s cluster.StagedDir) bool {
			return s.Switched || s.Halted || n.State != nil && n.State.Token == s.Token
		})
		if n.Operation != "" && n.Operation != current && ended[n.Operation] != "" && !n.Holding && n.Busy == "" && !inUse {
			list[n.ID] = n.Operation
		}
	}
	return list
}

// clearBehind frees nodes that were away, or whose manager was down, when an operation ended.
// Nobody waits for it.
func (cl *cleaner) clearBehind(ctx context.Context, nodes []cluster.NodeStatus) {
	current := ""
	if cl.operations.current() != nil {
		current = cl.operations.current().ID
	}
	for id, op := range leftBehind(nodes, cl.operations.endedOperations(), current) {
		if time.Since(cl.cleared[id]) < discardAgain {
			continue
		}
		cl.cleared[id] = time.Now()
		cl.wg.Go(func() {
			err := cl.nodes.quick(ctx, id, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Discard{Discard: &protosv1.Discard{Operation: op}}})
			switch {
			case err == nil:
				klog.Infof("node %s has cleared away what it had of operation %s, which ended without it", id, op)
			case ctx.Err() == nil:
				cl.said.Warningf("discard "+string(id), "clear away operation %s: %v", op, err)
			}
		})
	}
}

// removeRecords removes the discovery records of nodes that are gone, for as long as this
// leadership lasts.
func (cl *cleaner) removeRecords(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(recordsEvery):
		}
		if err := cl.removeGone(ctx); err != nil && ctx.Err() == nil {
			klog.V(2).Infof("look for records of nodes that are gone: %v", err)
		}
	}
}

func (cl *cleaner) removeGone(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	records, _, err := cl.m.cfg.Catalog.Peers(ctx, nil)
	if err != nil {
		return err
	}
	connected := map[cluster.NodeID]bool{cl.m.cfg.Self: true}
	for _, p := range cl.m.cfg.Peers.Peers() {
		connected[p.ID] = p.Connected
	}
	_, gone := catalog.LivingPeers(records)
	for _, r := range gone {
		id := cluster.NodeID(r.Info.GetNodeId())
		if connected[id] {
			continue // an older manager, which writes its record once
		}
		if err := cl.m.cfg.Catalog.RemovePeer(ctx, id); err != nil {
			return err
		}
		klog.Infof("removed the discovery record of node %s, which it hasn't written since %s", id, r.Modified.UTC().Format(time.RFC3339))
	}
	return cl.removeStatuses(ctx, records)
}

// removeStatuses removes statuses that are as old as records of nodes that are gone: who wrote them hasn't for two days, by the store's clock.
func (cl *cleaner) removeStatuses(ctx context.Context, records []catalog.PeerRecord) error {
	var newest time.Time
	for _, r := range records {
		if r.Modified.After(newest) {
			newest = r.Modified
		}
	}
	list, err := cl.m.cfg.Catalog.Statuses(ctx)
	if err != nil {
		return err
	}
	for _, s := range list {
		if newest.Sub(s.Modified) <= catalog.PeerLife {
			continue
		}
		if err := cl.m.cfg.Catalog.RemoveStatus(ctx, cluster.NodeID(s.Name)); err != nil {
			return err
		}
	}
	return nil
}
