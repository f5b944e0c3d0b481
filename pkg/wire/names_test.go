package wire

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// TestNamesInMessages: every place of a request from which a name can become a path is checked.
func TestNamesInMessages(t *testing.T) {
	state := func(token, name string) *protosv1.EtcdState {
		return &protosv1.EtcdState{Cluster: &protosv1.EtcdCluster{ClusterToken: token,
			Nodes: []*protosv1.EtcdNode{{Name: "a"}, {Name: name}}}}
	}
	for name, make := range map[string]func(s string) proto.Message{
		"prove": func(s string) proto.Message {
			return &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Prove{Prove: &protosv1.Prove{Operation: s}}}
		},
		"stage": func(s string) proto.Message {
			return &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Stage{Stage: &protosv1.Stage{Operation: s}}}
		},
		"token": func(s string) proto.Message {
			return &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Stage{Stage: &protosv1.Stage{State: state(s, "b")}}}
		},
		"member": func(s string) proto.Message {
			return &protosv1.PerformRequest{Action: &protosv1.PerformRequest_StartEtcd{StartEtcd: &protosv1.StartEtcd{State: state("t",
				s)}}}
		},
		"discard": func(s string) proto.Message {
			return &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Discard{Discard: &protosv1.Discard{Operation: s}}}
		},
		"set aside": func(s string) proto.Message {
			return &protosv1.PerformRequest{Action: &protosv1.PerformRequest_SetAside{SetAside: &protosv1.SetAside{Token: s}}}
		},
		"salvage": func(s string) proto.Message {
			return &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Salvage{Salvage: &protosv1.Salvage{Token: s}}}
		},
		"stop": func(s string) proto.Message {
			return &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Stop{Stop: &protosv1.Stop{Operation: s}}}
		},
		"switch": func(s string) proto.Message {
			return &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Switch{Switch: &protosv1.Switch{Operation: s}}}
		},
		"halt": func(s string) proto.Message {
			return &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Halt{Halt: &protosv1.Halt{Operation: s}}}
		},
		"rollback": func(s string) proto.Message {
			return &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Rollback{Rollback: &protosv1.Rollback{Operation: s}}}
		},
	} {
		for _, s := range []string{"..", ".", "../../..", "/etc", "a/b", `a\b`, "a\x00b", strings.Repeat("a", 4000)} {
			if err := CheckNames(make(s)); !errors.Is(err, cluster.ErrName) {
				t.Errorf("%s of %.20q: %v", name, s, err)
			}
		}
		for _, s := range []string{"", "2026-01-30T01:02:03Z-000000", "Q7mZ-_x9"} {
			if err := CheckNames(make(s)); err != nil {
				t.Errorf("%s of %q: %v", name, s, err)
			}
		}
	}
	if err := CheckNames((*protosv1.EtcdState)(nil)); err != nil {
		t.Error(err)
	}
}

// TestStatusWithBadNames: what a node says of itself brings in no such name either; it shows as a state that can't be used.
func TestStatusWithBadNames(t *testing.T) {
	s := StatusFromProto(&protosv1.NodeStatus{
		NodeId: "a", Operation: "../x", State: &protosv1.EtcdState{Cluster: &protosv1.EtcdCluster{ClusterToken: "../.."}},
		Staged: []*protosv1.StagedDir{{Operation: "op", Token: "good"}, {Operation: "op", Token: ".."}, {Operation: "/", Token: "good"}},
		Trash:  []*protosv1.TrashEntry{{Token: "../x"}, {Token: "good"}},
	})
	if s.State != nil || s.StateError == "" || s.Operation != "" || len(s.Staged) != 1 || len(s.Trash) != 1 || s.Trash[0].Token != "good" {
		t.Errorf("read as %+v", s)
	}
}
