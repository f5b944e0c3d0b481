package manager

import (
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	"github.com/etcd-manager/etcd-manager/pkg/plan/safety"
)

// unreleased says of each node that is ready to give its data volume up why it keeps it still: what the cluster lacks, or else what the leader does
// first. The nodes are told, and pass it on to the operator's tool.
func unreleased(o *model.Observation, d plan.Decision) map[cluster.NodeID]string {
	var why map[cluster.NodeID]string
	for _, n := range o.Nodes {
		if n.Release == nil {
			continue
		}
		if a, ok := d.Do.(model.ReleaseVolume); ok && a.Node == n.ID {
			continue
		}
		if why == nil {
			why = map[cluster.NodeID]string{}
		}
		why[n.ID] = d.Why
		if err := safety.MayRelease(o, n.ID); err != nil {
			why[n.ID] = err.Error()
		}
	}
	return why
}
