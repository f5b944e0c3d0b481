package disaster

import (
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// In these tests masters are gone of which nobody can know whether they serve somewhere else. They
// have to be silent for three minutes before they count as lost, so these tests stand in the first
// file, and wait while the others run.

// TestAllMastersLostOtherNames takes the names along with the disks.
func TestAllMastersLostOtherNames(t *testing.T) {
	testutil.Long(t) // the old names have to be silent for three minutes
	t.Parallel()
	allMastersLost(t, false)
}

// TestQuorumLostAlone has no machines in place of those that are lost.
func TestQuorumLostAlone(t *testing.T) {
	testutil.Long(t) // the lost masters have to be silent for three minutes
	t.Parallel()
	p := readPage(t, "quorum-lost.md")
	d, want := quorumLost(t, p)
	d.groups["the-survivor"] = d.c.Nodes[2:]
	d.follow(p, p.in("With the survivor alone"))
	recovered(t, d.c, want, 1)
}
