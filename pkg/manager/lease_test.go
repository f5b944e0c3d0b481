package manager

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
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
		if _, err := l.nodes.perform(t.Context(), "b", action, time.Second, nil); !errors.Is(err, cluster.ErrLowerTerm) || len(peers.asked) > 0 {
			t.Errorf("%s: %v; asked were %v", name, err, peers.asked)
		}
	}
}

// member is an etcd that says who it is, and notes what else it is asked.
type member struct {
	etcdserverpb.UnimplementedMaintenanceServer
	id cluster.MemberID

	mu    sync.Mutex
	asked []string
}

func (m *member) Status(context.Context, *etcdserverpb.StatusRequest) (*etcdserverpb.StatusResponse, error) {
	return &etcdserverpb.StatusResponse{Header: &etcdserverpb.ResponseHeader{MemberId: uint64(m.id)}, Version: "3.6.0", Leader: uint64(m.id)}, nil
}

// other notes every other request, and refuses it.
func (m *member) other(_ any, s grpc.ServerStream) error {
	name, _ := grpc.MethodFromServerStream(s)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = append(m.asked, name)
	return status.Error(codes.Unimplemented, "not here")
}

// serve starts the etcd and returns its URL.
func (m *member) serve(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s := grpc.NewServer(grpc.UnknownServiceHandler(m.other), grpc.UnaryInterceptor(
		func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if !strings.HasSuffix(info.FullMethod, "/Status") {
				m.mu.Lock()
				m.asked = append(m.asked, info.FullMethod)
				m.mu.Unlock()
			}
			return next(ctx, req)
		}))
	etcdserverpb.RegisterMaintenanceServer(s, m)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return "http://" + l.Addr().String()
}

// TestNoMemberIsChangedAfterTheLease: whatever is asked of etcd itself, a leader whose lease has ended doesn't ask it. It has looked who answers
// before, which takes as long as it takes.
func TestNoMemberIsChangedAfterTheLease(t *testing.T) {
	for _, a := range []model.Action{
		model.AddLearner{Node: "b", PeerURLs: []string{"https://10.0.0.2:2380"}}, model.Promote{Member: 2, Name: "b"},
		model.UpdateMember{Member: 2, PeerURLs: []string{"https://10.0.0.9:2380"}}, model.RemoveMember{Member: 2, Name: "b"}, model.RemoveMember{Member: 1, Name: "a"},
		model.EnableDowngrade{Version: "3.5.0"}, model.CancelDowngrade{}, model.Compact{Revision: 5}, model.Disarm{Alarm: cluster.Alarm{Member: 1, Type: cluster.AlarmNoSpace}},
	} {
		for _, leads := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s leads=%t", model.Subject(a), leads), func(t *testing.T) {
				m := &member{id: 1}
				url := m.serve(t)
				var peers Peers = &heldUp{}
				if leads {
					peers = noPeers{}
				}
				c := catalog.New(blobtest.NewMemory())
				l := newLeadership(&Manager{cfg: Config{Self: "a", Instance: "i", Peers: peers, Catalog: c}}, 4)
				hold, err := c.TakeTerm(t.Context(), 4, "a", "i")
				must(t, err)
				l.record.hold = hold
				self := cluster.EtcdNode{Name: "a", ClientURLs: []string{url}}
				o := &model.Observation{Nodes: []cluster.NodeStatus{{ID: "a", Self: self, State: &cluster.EtcdState{Token: "t", Nodes: []cluster.EtcdNode{self}},
					Etcd: cluster.EtcdStatus{Running: true, Healthy: true, MemberID: 1, LeaderID: 1}}}}
				err = l.act(t.Context(), o, nil, a)
				m.mu.Lock()
				defer m.mu.Unlock()
				switch {
				case !leads && (!errors.Is(err, cluster.ErrLowerTerm) || len(m.asked) > 0):
					t.Errorf("%v; etcd was asked %v", err, m.asked)
				case leads && len(m.asked) == 0:
					t.Errorf("one that leads asks nothing either, so this test shows nothing: %v", err)
				}
			})
		}
	}
}
