package cluster

import (
	"testing"
	"time"
)

// TestSizes: what depends on the size of a disk or of a database, at its edges.
func TestSizes(t *testing.T) {
	for _, c := range []struct {
		total, free int64
		full        bool
	}{
		{0, 0, false},
		{20 << 30, 64 << 20, false},
		{20 << 30, 64<<20 - 1, true},
		{200 << 20, 10 << 20, false},
		{200 << 20, 10<<20 - 1, true},
	} {
		if got := DiskFull(c.total, c.free); got != c.full {
			t.Errorf("%d of %d are free: full %t", c.free, c.total, got)
		}
	}
	for bytes, want := range map[int64]time.Duration{-1: 0, 0: 0, 1 << 20: 0, 20_000_000: time.Second, 8 << 30: 429 * time.Second} {
		if got := LoadTime(bytes); got != want {
			t.Errorf("%d bytes: %s, want %s", bytes, got, want)
		}
	}
}
