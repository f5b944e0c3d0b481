package manager

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// heldUp are the peers of a leader whose lease has ended while its process was held up.
type heldUp struct {
	noPeers
	asked []cluster.NodeID
}

func (h *heldUp) Leads(cluster.Term) bool { return false }

func (h *heldUp) Conn(id cluster.NodeID) (grpc.ClientConnInterface, error) {
	h.asked = append(h.asked, id)
	return h.noPeers.Conn(id)
}

// TestNothingLeavesAfterTheLease: a leader that goes on after its lease has ended sends nothing, though its context hasn't ended yet.
func TestNothingLeavesAfterTheLease(t *testing.T) {
	for name, action := range map[string]*protosv1.PerformRequest{
		"a restart": {Action: &protosv1.PerformRequest_StartEtcd{StartEtcd: &protosv1.StartEtcd{Restart: true}}},
		"a stop":    {Action: &protosv1.PerformRequest_Stop{Stop: &protosv1.Stop{}}},
		"a backup":  {Action: &protosv1.PerformRequest_TakeBackup{TakeBackup: &protosv1.TakeBackup{}}},
	} {
		peers := &heldUp{}
		l := newLeadership(&Manager{cfg: Config{Self: "a", Peers: peers}}, 4)
		if _, err := l.perform(t.Context(), "b", action, time.Second, nil); !errors.Is(err, cluster.ErrLowerTerm) || len(peers.asked) > 0 {
			t.Errorf("%s: %v; asked were %v", name, err, peers.asked)
		}
	}
}
