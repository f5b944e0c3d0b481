package ui

import (
	"io"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// View shows what following finds out.
type View interface {
	// Say prints a line that stays. at is the moment to which it belongs.
	Say(at time.Time, line string)
	// Show is called after every look.
	Show(s State)
	// Close ends it; what was said stays.
	Close()
}

// State is what one look has found.
type State struct {
	At time.Time
	// Doing names the present state, and Since when it began; empty if it is as before.
	Doing string
	Since time.Time
	// Progress is how far each node is.
	Progress map[cluster.NodeID]catalog.Progress
}

// NewView returns a Screen on a terminal and a Pipe anywhere else.
func NewView(out io.Writer, terminal bool, now func() time.Time) View {
	if terminal {
		return NewScreen(out, now)
	}
	return NewPipe(out)
}
