package manager

import (
	"strings"
	"testing"
	"time"
)

// TestStalled: each loop is judged once it has begun, and a leader not while it carries out an action.
func TestStalled(t *testing.T) {
	const patience = time.Minute
	long := time.Now().Add(-2 * patience)
	for _, c := range []struct {
		name          string
		looked, round time.Time
		acting        bool
		want          string
	}{
		{name: "nothing has begun"},
		{name: "just now", looked: time.Now(), round: time.Now()},
		{name: "no look at itself", looked: long, want: "the manager's look at itself"},
		{name: "the leader doesn't come round", looked: time.Now(), round: long, want: "the leader's loop"},
		{name: "the leader acts", looked: time.Now(), round: long, acting: true},
	} {
		m := &Manager{looked: c.looked, round: c.round, acting: c.acting}
		if got := m.Stalled(patience); !strings.HasPrefix(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%s: %q; want %q", c.name, got, c.want)
		}
	}
}
