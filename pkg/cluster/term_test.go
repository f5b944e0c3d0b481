package cluster

import (
	"math"
	"testing"
)

// TestReaches: what lies further ahead than any history gets is corrupt, and so is the end of all numbers.
func TestReaches(t *testing.T) {
	for _, c := range []struct {
		from, to  Term
		reaches   bool
		takesOver bool
	}{
		{0, 1, true, true},
		{7, 7, true, true},
		{7, 3, true, true},
		{7, 7 + MaxTermJump/2, true, true},
		{7, 8 + MaxTermJump/2, true, false},
		{7, 7 + MaxTermJump, true, false},
		{7, 8 + MaxTermJump, false, false},
		{7, math.MaxUint64, false, false},
		{MaxTerm - 1, MaxTerm, true, true},
		{MaxTerm, MaxTerm + 1, false, false},
		{math.MaxUint64, math.MaxUint64, false, false},
	} {
		if got := c.from.Reaches(c.to); got != c.reaches {
			t.Errorf("%d reaches %d: %t", c.from, c.to, got)
		}
		if got := c.from.TakesOver(c.to); got != c.takesOver {
			t.Errorf("%d takes over %d from the store: %t", c.from, c.to, got)
		}
	}
}
