package ui

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Pipe is a View for logs and pipes: one line for each change, and for each quarter of what a node transfers.
type Pipe struct {
	out   io.Writer
	nodes map[cluster.NodeID]nodeMark
}

type nodeMark struct {
	phase   string
	quarter int64
}

// NewPipe returns a Pipe that writes to out.
func NewPipe(out io.Writer) *Pipe { return &Pipe{out: out, nodes: map[cluster.NodeID]nodeMark{}} }

// Say implements View.
func (l *Pipe) Say(at time.Time, line string) {
	fmt.Fprintf(l.out, "%s %s\n", at.UTC().Format("15:04:05Z"), line)
}

// Show implements View.
func (l *Pipe) Show(s State) {
	if len(s.Progress) == 0 {
		clear(l.nodes)
		return
	}
	for _, id := range slices.Sorted(maps.Keys(s.Progress)) {
		p := s.Progress[id]
		mark := nodeMark{phase: p.Phase}
		if p.Total > 0 {
			mark.quarter = 4 * p.Done / p.Total
		}
		if l.nodes[id] != mark {
			l.nodes[id] = mark
			l.Say(s.At, fmt.Sprintf("  %s: %s", id, Progress(p)))
		}
	}
}

// Close implements View.
func (l *Pipe) Close() {}

// Progress says how far a node is.
func Progress(p catalog.Progress) string {
	switch {
	case p.Total > 0:
		return fmt.Sprintf("%s %s of %s, %d%%", p.Phase, Size(p.Done), Size(p.Total), min(100*p.Done/p.Total, 100))
	case p.Done > 0:
		return fmt.Sprintf("%s %s", p.Phase, Size(p.Done))
	}
	return p.Phase
}
