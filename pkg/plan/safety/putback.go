package safety

import (
	"fmt"
	"slices"

	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// checkPutBack: keys are written only for a command that is queued, into the one cluster that serves clients, of which the store says that
// it is the right one, and never beside a restore: its data would be another's.
func checkPutBack(o *model.Observation, a model.PutBack) error {
	n, t := o.Node(a.Node), servingToken(o)
	switch {
	case !slices.ContainsFunc(o.Store.PutBacks, func(p model.QueuedPutBack) bool { return p.Name == a.Command }):
		return fmt.Errorf("put-back %s isn't queued", a.Command)
	case unfinished(o) != nil || len(o.Store.Commands) > 0:
		return fmt.Errorf("a restore is queued or under way")
	case t == "" || n == nil || n.State == nil || n.State.Token != t || !n.Etcd.Healthy || n.Etcd.Learner:
		return fmt.Errorf("node %s has no healthy voter of the one cluster that serves", a.Node)
	case n.Etcd.Quarantined || n.State.Quarantined:
		return fmt.Errorf("clients were not let into the cluster yet")
	case o.Store.Marker.Phase != model.MarkerFormed || o.Store.Marker.Token != "" && o.Store.Marker.Token != t:
		return fmt.Errorf("the store's marker doesn't name cluster %s", t)
	}
	return nil
}
