package node

import (
	"fmt"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
)

// TestUnknownLeasesAreTold has a backup with leases whose TTL nobody knows: what a node answers to the leader names some of them, also when it is
// asked again.
func TestUnknownLeasesAreTold(t *testing.T) {
	n := newNode(t, "a")
	found("OLD", n)
	c := n.client().Raw()
	const leases = 30
	for i := range leases {
		_, err := c.Lease.Grant(n.ctx(), database.UnknownLeaseTTL)
		must(t, err)
		g, err := c.Lease.Grant(n.ctx(), database.UnknownLeaseTTL)
		must(t, err)
		_, err = c.Put(n.ctx(), fmt.Sprintf("/leased/%d", i), "1", clientv3.WithLease(g.ID))
		must(t, err)
	}
	n.do(backupAction(backupName, "periodic"))
	for range 2 { // the second one is answered from the journal
		facts := n.do(proveAction("op1", backupName)).GetFacts()
		told := facts.GetUnknownLeases()
		if !strings.HasPrefix(told, fmt.Sprintf("%d leases is unknown", leases)) || !strings.Contains(told, "and 10 more") || len(told) > 1<<10 || !facts.GetLeasesTold() {
			t.Errorf("told: %q", told)
		}
	}
}
