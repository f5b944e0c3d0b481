package manager

import (
	"cmp"
	"slices"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// restartOutage is how long the restart of the managers that a restore has waited for left the cluster of a token without a quorum, until now. It
// takes the nodes' own clocks for how long ago something was, and compares none with another.
func restartOutage(nodes []cluster.NodeStatus, self cluster.NodeID, token cluster.Token, now time.Time) time.Duration {
	stops, members := map[cluster.NodeID]cluster.Stop{}, 0
	for _, n := range nodes {
		if n.State == nil || n.State.Token != token {
			continue
		}
		members = max(members, len(n.State.Nodes))
		if n.Stopped == nil {
			continue
		}
		s := cluster.Stop{At: now.Add(n.Stopped.At.Sub(n.Clock)), Served: now}
		if !n.Stopped.Served.IsZero() {
			s.Served = now.Add(n.Stopped.Served.Sub(n.Clock))
		}
		stops[n.ID] = s
	}
	own, ok := stops[self]
	if !ok {
		return 0
	}
	return unserved(stops, members, own)
}

// unserved is for how long the stops left no quorum of the members. A time without a quorum ends when any member serves clients again. Those that have
// nothing to do with the leader's own stop are of an earlier restart.
func unserved(stops map[cluster.NodeID]cluster.Stop, members int, own cluster.Stop) (total time.Duration) {
	type event struct {
		at   time.Time
		down int
	}
	var events []event
	for _, s := range stops {
		if s.Served.After(s.At) {
			events = append(events, event{s.At, 1}, event{s.Served, -1})
		}
	}
	slices.SortFunc(events, func(a, b event) int { return cmp.Or(a.at.Compare(b.at), a.down-b.down) })
	down, begun := 0, time.Time{}
	for _, e := range events {
		down += e.down
		switch {
		case e.down > 0 && begun.IsZero() && members-down < cluster.Quorum(members):
			begun = e.at
		case e.down < 0 && !begun.IsZero():
			if !own.Served.Before(begun) && !own.At.After(e.at) {
				total += e.at.Sub(begun)
			}
			begun = time.Time{}
		}
	}
	return total
}
