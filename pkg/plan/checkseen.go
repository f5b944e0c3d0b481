package plan

import (
	"cmp"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// unfinished is the restore that is recorded and has not ended, or nil.
func unfinished(o *Observation) *Operation {
	if op := o.Store.Operation; op != nil && !op.State.Ended() {
		return op
	}
	return nil
}

// namesIn are the names in a list of members.
func namesIn(nodes []cluster.EtcdNode) []string {
	var list []string
	for _, n := range nodes {
		list = append(list, n.Name)
	}
	return list
}

const (
	// moment is how long nothing is concluded from an etcd that has just lost its health, or has just begun to answer.
	moment = 30 * time.Second
	// mayEnd is how often an etcd may end unasked and still count as one that starts.
	mayEnd = 3
)

// timeToLoad is how long an etcd may take until it answers, with the largest database that is seen.
func timeToLoad(o *Observation) time.Duration {
	var bytes int64
	for _, n := range o.Nodes {
		bytes = max(bytes, n.Etcd.DBSize)
	}
	return moment + cluster.LoadTime(bytes)
}

// mayRecover tells whether an etcd that isn't healthy may be in a moment: it was until now, it begins to answer, or it still loads.
func mayRecover(o *Observation, e cluster.EtcdStatus) bool {
	if e.UnhealthyFor < moment || e.Running && e.AnsweringFor > 0 && e.AnsweringFor < moment {
		return true
	}
	quiet := e.Running && e.MemberID == 0 && e.AnsweringFor == 0
	return quiet && e.Restarts < mayEnd && cmp.Or(e.UpFor, e.UnhealthyFor) < timeToLoad(o)
}
