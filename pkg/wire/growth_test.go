package wire

import (
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

const (
	urls, members = "the URLs of a member", "the members of a cluster"
	record        = "the record of one restore; it names nodes"
	settings      = "etcd's settings"
	prefixes      = "what is left out of a restore"
	peers         = "nodes; those that are gone are forgotten, and tombstones are bounded"
	addresses     = "the addresses and names of a machine"
)

// bounded says why each field that could make a message long doesn't grow with what is stored: gRPC takes 4 MiB.
var bounded = map[protoreflect.FullName]string{
	"etcdmanager.v1.Replay.segments":        "only older leaders send it; who has the chain's end lists for itself",
	"etcdmanager.v1.ObserveRequest.summary": "cut at 64 KiB, see pkg/manager",
	"etcdmanager.v1.EtcdNode.peer_urls":     urls, "etcdmanager.v1.EtcdNode.client_urls": urls, "etcdmanager.v1.EtcdNode.quarantined_client_urls": urls,
	"etcdmanager.v1.Member.peer_urls": urls, "etcdmanager.v1.Member.client_urls": urls, "etcdmanager.v1.ReachRequest.urls": urls,
	"etcdmanager.v1.EtcdCluster.nodes":           members,
	"etcdmanager.v1.EtcdStatus.members":          members,
	"etcdmanager.v1.EtcdStatus.alarms":           members,
	"etcdmanager.v1.NodeStatus.endings":          "one for each CA of a node",
	"etcdmanager.v1.NodeStatus.versions":         "what is installed on a node",
	"etcdmanager.v1.NodeStatus.staged":           "one restore at a time; what is left over is cleared away",
	"etcdmanager.v1.NodeStatus.trash":            "the trash can keeps a few data dirs",
	"etcdmanager.v1.NodeStatus.operation_record": record,
	"etcdmanager.v1.Stop.record":                 record,
	"etcdmanager.v1.NodeStatus.settings":         settings,
	"etcdmanager.v1.Settings.values":             settings,
	"etcdmanager.v1.Prove.drop_prefixes":         prefixes,
	"etcdmanager.v1.Stage.drop_prefixes":         prefixes,
	"etcdmanager.v1.ExchangeRequest.known":       peers,
	"etcdmanager.v1.ExchangeResponse.known":      peers,
	"etcdmanager.v1.PeerInfo.endpoints":          addresses,
	"etcdmanager.v1.PeerInfo.addresses":          addresses,
	"etcdmanager.v1.PeerInfo.host_names":         addresses,
}

// TestMessagesDontGrowWithTheData: a message among managers has lists of nodes, members and settings, but none of backups, segments
// or keys.
func TestMessagesDontGrowWithTheData(t *testing.T) {
	seen := map[protoreflect.FullName]bool{}
	var lists []string
	var walk func(m protoreflect.MessageDescriptor)
	walk = func(m protoreflect.MessageDescriptor) {
		if seen[m.FullName()] {
			return
		}
		seen[m.FullName()] = true
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			if (f.IsList() || f.IsMap() || f.Kind() == protoreflect.BytesKind) && bounded[f.FullName()] == "" {
				lists = append(lists, string(f.FullName()))
			}
			if f.Message() != nil {
				walk(f.Message())
			}
		}
	}
	for _, file := range []protoreflect.FileDescriptor{protosv1.File_v1_node_proto, protosv1.File_v1_peer_proto} {
		for i := range file.Services().Len() {
			for j := range file.Services().Get(i).Methods().Len() {
				m := file.Services().Get(i).Methods().Get(j)
				walk(m.Input())
				walk(m.Output())
			}
		}
	}
	for _, l := range lists {
		t.Errorf("%s has no bound, or none that this test knows", l)
	}
}
