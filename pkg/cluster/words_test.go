package cluster

import (
	"testing"
	"time"
)

func TestWords(t *testing.T) {
	for got, want := range map[string]string{
		Count(0, "node"): "0 nodes", Count(1, "node"): "1 node", Count(2, "node"): "2 nodes",
		Times(0): "0 times", Times(1): "once", Times(12): "12 times",
		In(-time.Hour): "now", In(0): "now", In(499 * time.Millisecond): "now", In(500 * time.Millisecond): "in 1s",
		In(90 * time.Second): "in 1m30s",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
