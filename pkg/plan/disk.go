package plan

import (
	"fmt"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// DiskFull tells whether a node's disk is so full that etcd can't go on there.
func DiskFull(n *cluster.NodeStatus) bool {
	return cluster.DiskFull(n.DiskTotal, n.DiskFree)
}

// diskWords says so.
func diskWords(n *cluster.NodeStatus) string {
	return fmt.Sprintf("the disk of node %s, with etcd's data, is full: %s of %s are free", n.ID, mib(n.DiskFree), mib(n.DiskTotal))
}

// fullDisks are the nodes with a full disk.
func (r *rules) fullDisks() []*cluster.NodeStatus {
	var list []*cluster.NodeStatus
	for i := range r.o.Nodes {
		if DiskFull(&r.o.Nodes[i]) {
			list = append(list, &r.o.Nodes[i])
		}
	}
	return list
}

// sentence begins with a capital.
func sentence(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
