package sim

import (
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// bug is something that is broken on purpose, to see whether it is found.
type bug struct {
	name string
	// votes, if not nil, tells whether a vote is persisted.
	votes func(*node) bool
}

func (b bug) is(name string) bool { return b.name == name }

func bugNamed(name string) bug {
	b := bug{name: name}
	if name == "votes-forgotten" {
		b.votes = func(*node) bool { return false }
	}
	return b
}

// bugs are what is broken in the simulated part, and within how many seeds it is found.
var bugs = map[string]int{
	"no-fence":        10, // a node obeys whoever asks
	"votes-forgotten": 10, // votes aren't persisted
	"empty-restart":   10, // an etcd that has lost its data is started without them, under the same id
	"open-founder":    10, // a founder is started open to clients at once
	"verify-blind":    10, // what is staged isn't what the backup has
}

// TestBroken breaks one thing after the other, and looks whether that is found.
func TestBroken(t *testing.T) {
	testutil.Long(t)
	for name, within := range bugs {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(within) {
				if r := run(t, seed, bugNamed(name)); r.violation != "" {
					t.Logf("found by seed %d: %s", seed, r.violation)
					return
				}
			}
			t.Errorf("not found within %d seeds", within)
		})
	}
}

// TestReplay: the same seed is the same history, to the millisecond. If the process is held up for long by others, the runtime may change
// the order of goroutines that are ready at one moment, so there are three attempts.
func TestReplay(t *testing.T) {
	a := run(t, 1, bug{})
	var b result
	for range 3 {
		if b = run(t, 1, bug{}); a.digest == b.digest {
			return
		}
	}
	t.Errorf("it went differently each time:\n%s\n%s", a.trace, b.trace)
}
