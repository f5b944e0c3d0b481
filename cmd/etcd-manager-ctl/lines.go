package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// lines is a view for logs and pipes: one line for each change, and for each quarter of what a node transfers.
type lines struct {
	out   io.Writer
	nodes map[cluster.NodeID]nodeMark
}

type nodeMark struct {
	phase   string
	quarter int64
}

func newLines(out io.Writer) *lines { return &lines{out: out, nodes: map[cluster.NodeID]nodeMark{}} }

func (l *lines) say(at time.Time, line string) {
	fmt.Fprintf(l.out, "%s %s\n", at.UTC().Format("15:04:05Z"), line)
}

func (l *lines) show(s *sight) {
	if s.op == nil || len(s.op.Progress) == 0 {
		clear(l.nodes)
		return
	}
	for _, id := range slices.Sorted(maps.Keys(s.op.Progress)) {
		p := s.op.Progress[id]
		mark := nodeMark{phase: p.Phase}
		if p.Total > 0 {
			mark.quarter = 4 * p.Done / p.Total
		}
		if l.nodes[id] != mark {
			l.nodes[id] = mark
			l.say(s.at, fmt.Sprintf("  %s: %s", id, progressOf(p)))
		}
	}
}

func (l *lines) close() {}

// progressOf says how far a node is.
func progressOf(p catalog.Progress) string {
	switch {
	case p.Total > 0:
		return fmt.Sprintf("%s %s of %s, %d%%", p.Phase, sizeOf(p.Done), sizeOf(p.Total), min(100*p.Done/p.Total, 100))
	case p.Done > 0:
		return fmt.Sprintf("%s %s", p.Phase, sizeOf(p.Done))
	}
	return p.Phase
}
