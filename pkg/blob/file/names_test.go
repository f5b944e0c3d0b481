package file

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestReadSome: a directory with more names than are held at a time is read to its end, in the order of keys, whatever order it has.
func TestReadSome(t *testing.T) {
	dir := t.TempDir()
	var want []string
	for i := range 997 {
		name := fmt.Sprint("n", i*7919%997)
		if i%3 == 0 {
			must(t, os.Mkdir(filepath.Join(dir, name), 0o700))
			name += "/"
		} else {
			must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
		}
		want = append(want, name)
	}
	slices.Sort(want)
	root, err := os.OpenRoot(dir)
	must(t, err)
	defer root.Close()
	for _, most := range []int{1, 7, 100, 996, 997, 998} {
		var have []string
		behind, rest := "", true
		for rest {
			var names []string
			names, rest, err = readSome(root, "", behind, most)
			must(t, err)
			if len(names) > most || len(names) == 0 {
				t.Fatalf("%d names behind %q, and at most %d are to be held", len(names), behind, most)
			}
			have, behind = append(have, names...), names[len(names)-1]
		}
		if !slices.Equal(have, want) {
			t.Errorf("%d at a time: %d names, want %d in their order", most, len(have), len(want))
		}
	}
}
