package hosts

import (
	"bytes"
	"slices"
	"strings"
)

const (
	beginPrefix = "# Begin host entries managed by etcd-manager["
	endPrefix   = "# End host entries managed by etcd-manager["
	beginSuffix = "] - do not edit"
	endSuffix   = "]"
)

func beginLine(cluster string) string { return beginPrefix + cluster + beginSuffix }
func endLine(cluster string) string   { return endPrefix + cluster + endSuffix }

type markerKind int

const (
	none markerKind = iota
	begin
	end
)

// marker tells whether a line begins or ends a block, and of which cluster. White space around it, as that of CRLF, doesn't matter.
func marker(line []byte) (markerKind, string) {
	s := strings.TrimSpace(string(line))
	if rest, ok := strings.CutPrefix(s, beginPrefix); ok {
		if name, ok := strings.CutSuffix(rest, beginSuffix); ok {
			return begin, name
		}
	}
	if rest, ok := strings.CutPrefix(s, endPrefix); ok {
		if name, ok := strings.CutSuffix(rest, endSuffix); ok {
			return end, name
		}
	}
	return none, ""
}

// splitLines cuts after each newline; joined again the lines are the data, byte by byte.
func splitLines(data []byte) [][]byte {
	if len(data) == 0 {
		return nil
	}
	lines := bytes.SplitAfter(data, []byte("\n"))
	if last := len(lines) - 1; len(lines[last]) == 0 {
		lines = lines[:last]
	}
	return lines
}

// replaceBlock returns data with the cluster's block replaced by block (nil removes it). It is pure, and
// replacing by the same block again changes nothing.
//
// The first complete block gives the place. Further ones go. A begin without an end (before the next marker
// of any cluster) and an end without a begin are markers that somebody damaged: what follows or precedes
// them may be the user's, so only the marker itself goes, and behind a lone begin the lines that directly
// follow and give addresses to no other names than the new block does.
func replaceBlock(data []byte, cluster string, block []byte) []byte {
	lines := splitLines(data)
	var out []byte
	placed := false
	place := func() {
		if !placed {
			out = append(out, block...)
			placed = true
		}
	}
	// If there is no complete block, a lone begin gives the place.
	complete := false
	for i := range lines {
		if kind, name := marker(lines[i]); kind == begin && name == cluster && endOf(lines, i, cluster) >= 0 {
			complete = true
		}
	}
	for i := 0; i < len(lines); i++ {
		kind, name := marker(lines[i])
		switch {
		case kind == none || name != cluster:
			out = append(out, lines[i]...)
		case kind == end:
			// Alone: dropped.
		case endOf(lines, i, cluster) >= 0:
			place()
			i = endOf(lines, i, cluster)
		default:
			if !complete {
				place()
			}
			for i+1 < len(lines) && superseded(lines[i+1], block) {
				i++
			}
		}
	}
	if !placed && len(block) > 0 {
		if n := len(out); n > 0 && out[n-1] != '\n' {
			out = append(out, '\n')
		}
		place()
	}
	return out
}

// endOf returns the index of the line that ends the block which begins at line i, or -1 if another marker comes first.
func endOf(lines [][]byte, i int, cluster string) int {
	for j := i + 1; j < len(lines); j++ {
		switch kind, name := marker(lines[j]); {
		case kind == none:
		case kind == end && name == cluster:
			return j
		default:
			return -1
		}
	}
	return -1
}

// superseded tells whether a line gives an address to names all of which the block gives one to. Left in
// place it would be in force instead of the block, as the first line for a name wins.
func superseded(line, block []byte) bool {
	text, _, _ := strings.Cut(string(line), "#")
	fields := strings.Fields(text)
	if len(fields) < 2 {
		return false
	}
	var named []string
	for _, l := range splitLines(block) {
		if kind, _ := marker(l); kind == none {
			named = append(named, strings.Fields(string(l))[1:]...)
		}
	}
	for _, n := range fields[1:] {
		if !slices.Contains(named, n) {
			return false
		}
	}
	return true
}
