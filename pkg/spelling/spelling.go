// Package spelling finds names that are spelled like a word, so that an error can say what may be
// meant. It compares, and guesses nothing else.
package spelling

import (
	"cmp"
	"slices"
	"strings"
)

// Closest returns at most n of the names that are spelled most like word; none if nothing is like it.
func Closest(word string, names []string, n int) []string {
	type candidate struct {
		name     string
		distance int
	}
	var found []candidate
	for _, name := range names {
		d := distance(word, name)
		if d > 0 && d*3 <= max(len(word), len(name)) || word != "" && strings.HasPrefix(name, word) {
			found = append(found, candidate{name, d})
		}
	}
	slices.SortStableFunc(found, func(a, b candidate) int { return cmp.Compare(a.distance, b.distance) })
	var out []string
	for _, c := range found[:min(n, len(found))] {
		out = append(out, c.name)
	}
	return out
}

// distance counts the single-letter changes that make b out of a (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		left := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := left
			if a[i] != b[j] {
				cost++
			}
			left = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
