package peer

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/election"
)

type noVotes struct{}

func (noVotes) Load() (election.Hard, error) { return election.Hard{}, nil }
func (noVotes) Save(election.Hard) error     { return nil }

// TestStalled: an election comes round all the time, with and without a leader, and is seen to stand still when it doesn't.
func TestStalled(t *testing.T) {
	for _, wanted := range []int{0, 1, 3} { // nothing known; leads alone; nobody to elect with
		synctest.Test(t, func(t *testing.T) {
			p := &Peers{elect: newElector("a", noVotes{}, func(n int) int { return n / 2 })}
			e := p.elect
			e.send, e.revoke, e.publish = func(election.Message) {}, func(error) {}, func(election.State) {}
			if err := e.open(wanted); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
			if s := p.Stalled(5 * time.Second); s != "" {
				t.Errorf("%d wanted, before the start: %s", wanted, s)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() { e.run(ctx); close(ended) }()
			for range 100 {
				time.Sleep(997 * time.Millisecond)
				if s := p.Stalled(5 * time.Second); s != "" {
					t.Fatalf("%d wanted: %s", wanted, s)
				}
			}
			cancel()
			<-ended
			time.Sleep(6 * time.Second)
			if p.Stalled(5*time.Second) == "" {
				t.Errorf("%d wanted: nobody drives the election, and nothing says so", wanted)
			}
		})
	}
}
