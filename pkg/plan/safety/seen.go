package safety

import (
	"cmp"
	"strconv"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

const (
	// moment is how long nothing is concluded from an etcd that has just lost its health, or has just begun to answer.
	moment = 30 * time.Second
	// mayEnd is how often an etcd may end unasked and still count as one that starts.
	mayEnd = 3
)

// unfinished is the restore that is recorded and has not ended, or nil.
func unfinished(o *model.Observation) *model.Operation {
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

// timeToLoad is how long an etcd may take until it answers, with the largest database that is seen.
func timeToLoad(o *model.Observation) time.Duration {
	var bytes int64
	for _, n := range o.Nodes {
		bytes = max(bytes, n.Etcd.DBSize)
	}
	return moment + cluster.LoadTime(bytes)
}

// mayRecover tells whether an etcd that isn't healthy may be in a moment: it was until now, it begins to answer, or it still loads.
func mayRecover(o *model.Observation, e cluster.EtcdStatus) bool {
	if e.UnhealthyFor < moment || e.Running && e.AnsweringFor > 0 && e.AnsweringFor < moment {
		return true
	}
	quiet := e.Running && e.MemberID == 0 && e.AnsweringFor == 0
	return quiet && e.Restarts < mayEnd && cmp.Or(e.UpFor, e.UnhealthyFor) < timeToLoad(o)
}

// ofQuorum: the node's etcd is in a quorum, as it has answered or refused a linearizable read. A learner calls itself healthy without one.
func ofQuorum(n cluster.NodeStatus) bool {
	return n.Etcd.Healthy && !n.Etcd.Learner && (n.Etcd.LeaderID != 0 || n.Etcd.Denied)
}

// servingToken is the token of the cluster that can be acted on: the marker's, if that is healthy here, else the only healthy one.
func servingToken(o *model.Observation) cluster.Token {
	found := map[cluster.Token]bool{}
	open := map[cluster.Token]bool{}
	for _, n := range o.Nodes {
		if n.State == nil || !ofQuorum(n) {
			continue
		}
		found[n.State.Token] = true
		if !n.Etcd.Quarantined {
			open[n.State.Token] = true
		}
	}
	if len(open) > 1 {
		return ""
	}
	if t := o.Store.Marker.Token; t != "" && found[t] {
		return t
	}
	if len(open) == 1 {
		found = open
	}
	if len(found) != 1 {
		return ""
	}
	for t := range found {
		return t
	}
	return ""
}

// authority is the member list of a healthy voter of the one cluster that serves; the leader's own if it answers.
func authority(o *model.Observation) []cluster.Member {
	t := servingToken(o)
	var list []cluster.Member
	for _, n := range o.Nodes {
		if n.State == nil || n.State.Token != t || !ofQuorum(n) || n.Etcd.Members == nil {
			continue
		}
		if list == nil || n.Etcd.LeaderID == n.Etcd.MemberID {
			list = n.Etcd.Members
		}
	}
	return list
}

func healthyMember(o *model.Observation, m cluster.Member) bool {
	t := servingToken(o)
	for _, n := range o.Nodes {
		same := n.Etcd.MemberID == m.ID || n.Etcd.Denied && string(n.ID) == m.Name
		if n.Etcd.Healthy && n.Etcd.Learner == m.Learner && same && n.State != nil && n.State.Token == t {
			return true
		}
	}
	return false
}

// quiet is how long a node hasn't been heard.
func quiet(o *model.Observation, name string) (d time.Duration) {
	d = o.SettledFor
	for _, x := range o.Missing {
		if string(x.ID) == name {
			d = x.For
			if x.Foreign {
				d = 0
			}
		}
	}
	return d
}

// minorOf is the minor version of "3.6.16" or "3.6.0", or -1.
func minorOf(s string) int {
	parts := strings.Split(s, ".")
	if len(parts) < 3 || parts[0] != "3" {
		return -1
	}
	m, err := strconv.Atoi(parts[1])
	if err != nil {
		return -1
	}
	return m
}
