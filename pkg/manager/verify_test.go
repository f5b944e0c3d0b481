package manager

import (
	"testing"
	"time"
)

// TestOverdue: a proof that is put off waits for an interval, and no longer.
func TestOverdue(t *testing.T) {
	for waited, want := range map[time.Duration]bool{0: false, 23 * time.Hour: false, 25 * time.Hour: true} {
		if got := overdue(time.Now().Add(-waited), 24*time.Hour); got != want {
			t.Errorf("after %s: %t", waited, got)
		}
	}
	if overdue(time.Time{}, time.Hour) {
		t.Error("one that was never put off is overdue")
	}
}
