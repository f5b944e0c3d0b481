package plan

import (
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

const (
	// startBase is what an etcd may take to start, whatever the size of its database, before anything is concluded from it.
	startBase = 30 * time.Second
	// copies is how often the bytes of a database go over a wire or a disk until a member that joins has them: sent, written, read.
	copies = 3
	// stillReads is how many times as long a member may load that is seen to read its disk.
	stillReads = 10
	// crashes is how often an etcd may end unasked before it no longer counts as one that is loading.
	crashes = 3
)

// TimeToStart is how long an etcd may take from its start until it answers.
func TimeToStart(bytes int64) time.Duration { return startBase + cluster.LoadTime(bytes) }

// Database is the size of the largest database that is seen: a member that loads, or is sent one, has no larger one.
func Database(o *model.Observation) int64 {
	var size int64
	for _, n := range o.Nodes {
		size = max(size, n.Etcd.DBSize)
	}
	return size
}

// loads tells whether a member may still be loading its database: its process exists, has never answered, and has had no time to load so
// much yet, or reads its disk.
func loads(n *cluster.NodeStatus, bytes int64) bool {
	e := n.Etcd
	if !e.Running || e.Healthy || e.AnsweringFor > 0 || e.MemberID != 0 || e.Restarts >= crashes {
		return false
	}
	up, due := e.UpFor, TimeToStart(bytes)
	if up == 0 { // an older manager doesn't tell
		up = e.UnhealthyFor
	}
	return up < due || e.Reading && up < stillReads*due
}

// starts tells whether nothing may be concluded yet from an etcd that isn't healthy: it has lost
// its health, loaded, or begun to answer only now.
func starts(n *cluster.NodeStatus, bytes int64) bool {
	e := n.Etcd
	return e.UnhealthyFor < startBase || loads(n, bytes) || e.Running && e.AnsweringFor > 0 && e.AnsweringFor < startBase
}

// overdue tells whether a member has been unhealthy for longer than it may, with the time that it needs to load its database.
func (r *rules) overdue(n *cluster.NodeStatus, deadline time.Duration) bool {
	e := n.Etcd
	if e.Healthy || e.UnhealthyFor < deadline || loads(n, Database(r.o.Observation)) {
		return false
	}
	// Once it answers, its whole time to get well begins.
	return !e.Running || e.AnsweringFor == 0 || e.AnsweringFor >= deadline || e.Restarts >= crashes
}
