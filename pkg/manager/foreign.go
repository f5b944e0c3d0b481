package manager

import (
	"fmt"
	"strings"
)

// Waits says, while nobody leads, on which nodes other software runs in place of this one; "" if on none. Until a majority of the nodes runs
// this software nobody leads, so nothing of the cluster is changed; each node keeps its own etcd running all the while.
func (m *Manager) Waits() string {
	if leader, _ := m.cfg.Peers.Leader(); leader != "" {
		return ""
	}
	var others []string
	peers := m.cfg.Peers.Peers()
	for _, p := range peers {
		if p.Foreign {
			others = append(others, string(p.ID))
		}
	}
	if len(others) == 0 {
		return ""
	}
	return fmt.Sprintf("%d of %d managers are other software, on %s; the etcd of this node is kept running, and nothing of the cluster is changed until a majority of the nodes runs this etcd-manager",
		len(others), len(peers)+1, strings.Join(others, ", "))
}
