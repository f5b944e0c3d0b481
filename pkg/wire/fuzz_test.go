package wire

import (
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// protoCost: an empty message in a list is two bytes, and more than a hundred in memory, several times.
var protoCost = testutil.Cost{Fixed: 1 << 20, PerByte: 1000}

// FuzzStatus reads what a node says of itself: names that become paths lead nowhere else, and what was read is written as what is
// read as the same.
func FuzzStatus(f *testing.F) {
	good, err := proto.Marshal(StatusToProto(cluster.NodeStatus{ID: "a", Instance: "i", Term: 5, Operation: "op",
		Staged: []cluster.StagedDir{{Operation: "op", Token: "t"}}, Trash: []cluster.TrashEntry{{Token: "t"}},
		State: &cluster.EtcdState{Token: "t", Nodes: []cluster.EtcdNode{{Name: "a"}}}}))
	testutil.Must(f, err)
	f.Add(good)
	bad, err := proto.Marshal(&protosv1.NodeStatus{Operation: "../x", Staged: []*protosv1.StagedDir{{Token: "../../x"}},
		Trash: []*protosv1.TrashEntry{{Token: "/"}}})
	testutil.Must(f, err)
	f.Add(bad)
	f.Fuzz(func(t *testing.T, data []byte) {
		testutil.Untrusted(t, len(data), protoCost, func() error {
			var p protosv1.NodeStatus
			if err := proto.Unmarshal(data, &p); err != nil {
				return nil // gRPC answers that
			}
			s := StatusFromProto(&p)
			names := []string{s.Operation}
			for _, d := range s.Staged {
				names = append(names, d.Operation, string(d.Token))
			}
			for _, e := range s.Trash {
				names = append(names, string(e.Token))
			}
			if s.State != nil {
				names = append(names, string(s.State.Token))
			}
			for _, n := range names {
				if n != "" && filepath.Join("/d", n) != "/d/"+n {
					t.Errorf("%q leads elsewhere", n)
				}
			}
			again := StatusFromProto(StatusToProto(s))
			if !proto.Equal(StatusToProto(again), StatusToProto(s)) {
				t.Errorf("%+v became %+v", s, again)
			}
			return nil
		})
	})
}

// FuzzRequest reads any bytes as a request to a node, and looks for names in it that lead elsewhere.
func FuzzRequest(f *testing.F) {
	for _, op := range []string{"op", "../../x"} {
		data, err := proto.Marshal(&protosv1.PerformRequest{ClusterName: "etcd", Leader: "a", Term: 5,
			Action: &protosv1.PerformRequest_Stop{Stop: &protosv1.Stop{Operation: op}}})
		testutil.Must(f, err)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		testutil.Untrusted(t, len(data), protoCost, func() error {
			var p protosv1.PerformRequest
			if err := proto.Unmarshal(data, &p); err != nil {
				return nil
			}
			err := CheckNames(&p)
			if op := p.GetStop().GetOperation(); err == nil && op != "" && filepath.Join("/d", op) != "/d/"+op {
				t.Errorf("%q leads elsewhere", op)
			}
			return err
		})
	})
}
