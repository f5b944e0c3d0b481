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
	"no-fence":                 60, // a node obeys whoever asks
	"votes-forgotten":          60, // votes aren't persisted
	"store-ignores-conditions": 60, // the store lies about conditional puts
	"empty-restart":            60, // an etcd that has lost its data is started without them, under the same id
	"rollback-written":         60, // a restore is taken back though clients have written to it
	"restart-not-held":         60, // an etcd that is stopped for a restore is started by the next manager
	"open-founder":             60, // a founder is started open to clients at once
	"foreign-state":            60, // a node that belongs to a cluster takes the state of another one
	"stop-unrecorded":          60, // etcd is stopped before the journal says so, and without
	"verify-blind":             60, // staged data aren't what the backup has
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

// TestReplay: the same seed is the same history, to the millisecond.
func TestReplay(t *testing.T) {
	for seed := range uint64(2) {
		a, b := run(t, seed, bug{}), run(t, seed, bug{})
		if a.digest != b.digest {
			t.Errorf("seed %d went differently the second time:\n%s\n%s", seed, a.trace, b.trace)
		}
	}
}
