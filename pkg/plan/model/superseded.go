package model

import (
	"fmt"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// WriteTries is how often it is tried to end the writes of a cluster that is superseded, and to store its last changes, before etcd is
// stopped without.
const WriteTries = 3

// EndWrites has etcd refuse every change from now on, in a cluster that is superseded.
type EndWrites struct{}

// StopSuperseded stores the last changes of a cluster that is superseded, then stops etcd on the nodes and keeps it stopped.
type StopSuperseded struct {
	Nodes []cluster.NodeID
	// Unstored is true if what the archive lacks can't be stored: etcd is stopped without.
	Unstored bool
}

// ReportStopped writes into the store that etcd is stopped on the nodes.
type ReportStopped struct{ Nodes []cluster.NodeID }

// Fence implements Action.
func (EndWrites) Fence() Fence { return FenceWritten }

// Fence implements Action.
func (StopSuperseded) Fence() Fence { return FenceWritten }

// Fence implements Action.
func (ReportStopped) Fence() Fence { return FenceHeld }

func (EndWrites) String() string { return "end-writes" }
func (a StopSuperseded) String() string {
	s := fmt.Sprintf("stop-superseded nodes=%s", ids(a.Nodes))
	if a.Unstored {
		s += " unstored"
	}
	return s
}
func (a ReportStopped) String() string { return fmt.Sprintf("report-stopped nodes=%s", ids(a.Nodes)) }
