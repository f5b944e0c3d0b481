package manager

import (
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// TestRestartOutage: in seconds, when each member was stopped and when it served again, and for how long there was no quorum. Node a leads; its
// clock and those of the others differ. Now is second 100.
func TestRestartOutage(t *testing.T) {
	type stop struct{ at, served float64 } // served 0: not yet; at 0: it wasn't stopped
	for name, tc := range map[string]struct {
		stops []stop
		want  float64
	}{
		"nobody was stopped":                               {[]stop{{}, {}, {}}, 0},
		"one of one, which serves again":                   {[]stop{{90, 95}}, 5},
		"one of one, which doesn't serve until the commit": {[]stop{{90, 0}}, 10},
		"one of three":                                     {[]stop{{90, 95}, {}, {}}, 0},
		"one after the other":                              {[]stop{{70, 75}, {80, 85}, {90, 95}}, 0},
		"all at once":                                      {[]stop{{90, 96}, {91, 96}, {92, 97}}, 5},
		"all at once, and nobody serves":                   {[]stop{{90, 0}, {91, 0}, {92, 0}}, 9},
		"two of three":                                     {[]stop{{90, 96}, {91, 96}, {}}, 5},
		"all, in an earlier restart than the leader's":     {[]stop{{90, 95}, {20, 30}, {21, 30}}, 0},
		"the leader's was never stopped":                   {[]stop{{}, {90, 95}, {91, 95}}, 0},
		"three of five":                                    {[]stop{{80, 90}, {82, 90}, {84, 90}, {}, {}}, 6},
		"two of five":                                      {[]stop{{80, 90}, {82, 90}, {}, {}, {}}, 0},
		"twice":                                            {[]stop{{80, 95}, {82, 85}, {90, 93}}, 6},
	} {
		now := time.Unix(1_000_000, 0)
		state := &cluster.EtcdState{Token: "t"}
		for i := range tc.stops {
			state.Nodes = append(state.Nodes, cluster.EtcdNode{Name: string(rune('a' + i))})
		}
		var nodes []cluster.NodeStatus
		for i, s := range tc.stops {
			n := cluster.NodeStatus{ID: cluster.NodeID(rune('a' + i)), State: state, Clock: now.Add(time.Duration(i) * time.Hour)}
			own := func(second float64) time.Time {
				return n.Clock.Add(time.Duration((second - 100) * float64(time.Second)))
			}
			if s.at != 0 {
				n.Stopped = &cluster.Stop{At: own(s.at)}
			}
			if s.served != 0 {
				n.Stopped.Served = own(s.served)
			}
			nodes = append(nodes, n)
		}
		if got := restartOutage(nodes, "a", "t", now).Seconds(); got != tc.want {
			t.Errorf("%s: %v s, want %v s", name, got, tc.want)
		}
		if got := restartOutage(nodes, "a", "another", now); got != 0 {
			t.Errorf("%s: %s for another cluster", name, got)
		}
	}
}
