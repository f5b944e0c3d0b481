package extsort

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
)

// TestSorted compares with a sort in memory, with limits that make many parts, one, and none.
func TestSorted(t *testing.T) {
	for _, limit := range []int{1, 1000, 20_000, 1 << 30} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			dir := t.TempDir()
			s := New(dir, limit)
			var want []Record
			for i := range 500 {
				x := Record{Key: fmt.Appendf(nil, "k%d", r.IntN(100)), Order: int64(r.IntN(10)), Value: fmt.Append(nil, i)}
				want = append(want, x)
				if err := s.Add(x); err != nil {
					t.Fatal(err)
				}
			}
			slices.SortStableFunc(want, compare)
			i := 0
			for x, err := range s.Sorted() {
				if err != nil {
					t.Fatal(err)
				}
				if w := want[i]; compare(x, w) != 0 || !bytes.Equal(x.Value, w.Value) {
					t.Fatalf("%d: %s %d %s, want %s %d %s", i, x.Key, x.Order, x.Value, w.Key, w.Order, w.Value)
				}
				i++
			}
			if i != len(want) {
				t.Errorf("%d records, want %d", i, len(want))
			}
			if (s.Spilled == 0) != (limit == 1<<30) {
				t.Errorf("%d bytes spilled with a limit of %d", s.Spilled, limit)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}
