package main

import (
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// TestUnknownLeasesAreTold has a restore with leases whose TTL nobody knows: whoever follows it, or looks at it later, is told which.
func TestUnknownLeasesAreTold(t *testing.T) {
	w := newWorld(t)
	const id, leases = "2026-01-30T00:00:00Z-000000", "2 leases is unknown and was set to ten years: 7b, 7c"
	w.ended(id, backup1, catalog.StateDone, func(op *catalog.Operation) { op.UnknownLeases = leases })
	for _, command := range []string{"describe-command", "follow"} {
		_, out, errOut := w.exec("--backup-store=mem://bucket/main", command, id)
		if !strings.Contains(out, leases) {
			t.Errorf("%s: %s%s", command, out, errOut)
		}
	}
}
