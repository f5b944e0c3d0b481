package cluster

import (
	"fmt"
	"time"
)

// Count is a number with its noun, for messages: "1 node", "2 nodes". The noun takes an s.
func Count(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

// Times says how often something has happened: "once", "12 times".
func Times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// In says when something is due, in whole seconds: "in 5s", or "now" if that is less than half a second away, or over.
func In(d time.Duration) string {
	if d = d.Round(time.Second); d > 0 {
		return "in " + d.String()
	}
	return "now"
}
