package peer

import (
	"cmp"
	"encoding/binary"
	"hash/fnv"
	"maps"
	"slices"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// Info says where a manager is found, and under which names its node is known.
type Info struct {
	// ID is the node.
	ID cluster.NodeID
	// Endpoints are host:port of the manager's gRPC server, in the order in which they are tried. The host is an IPv4
	// address, an IPv6 address in brackets, or a name.
	Endpoints []string
	// Addresses are the node's IP addresses, for the managed block of /etc/hosts.
	Addresses []string
	// HostNames are the DNS names of the node's member, for the same.
	HostNames []string
	// Incarnation grows whenever the node publishes anew; of two infos about a node the higher one wins. It is zero for a node
	// that was found by discovery and has not been heard of otherwise. Peers sets it for its own node.
	Incarnation int64
}

// clone returns a deep copy.
func (i Info) clone() Info {
	i.Endpoints = slices.Clone(i.Endpoints)
	i.Addresses = slices.Clone(i.Addresses)
	i.HostNames = slices.Clone(i.HostNames)
	return i
}

// same tells whether two infos say the same, whatever their incarnations.
func (i Info) same(o Info) bool {
	return i.ID == o.ID && slices.Equal(i.Endpoints, o.Endpoints) && slices.Equal(i.Addresses, o.Addresses) &&
		slices.Equal(i.HostNames, o.HostNames)
}

// What is believed of another node. A real one has a handful of each.
const (
	maxNodes     = 100
	maxEndpoints = 16
	maxText      = 256
	// maxAhead is how far in the future an incarnation, which is a time, may lie: more than a wrong clock with which TLS still works. Without a bound one
	// message could say something of a node that the node itself can't go above.
	maxAhead = 10 * 365 * 24 * time.Hour
)

// believable tells whether what somebody says of a node is bounded, and can be superseded by the node itself.
func (i Info) believable(now time.Time) bool {
	if _, err := cluster.ParseNodeID(string(i.ID)); err != nil || i.Incarnation > now.Add(maxAhead).UnixNano() {
		return false
	}
	for _, list := range [][]string{i.Endpoints, i.Addresses, i.HostNames} {
		if len(list) > maxEndpoints || slices.ContainsFunc(list, func(s string) bool { return len(s) > maxText }) {
			return false
		}
	}
	return true
}

// gone tells whether the info is a tombstone: it says that the node is forgotten. A node that lives has an endpoint.
func (i Info) gone() bool { return i.ID != "" && len(i.Endpoints) == 0 }

func (i Info) proto() *protosv1.PeerInfo {
	return &protosv1.PeerInfo{
		NodeId: string(i.ID), Endpoints: i.Endpoints, Addresses: i.Addresses, HostNames: i.HostNames, Incarnation: i.Incarnation,
	}
}

func infoFromProto(m *protosv1.PeerInfo) Info {
	return Info{
		ID: cluster.NodeID(m.GetNodeId()), Endpoints: m.GetEndpoints(), Addresses: m.GetAddresses(), HostNames: m.GetHostNames(),
		Incarnation: m.GetIncarnation(),
	}
}

// Peer is another manager as it is seen from here.
type Peer struct {
	Info
	// Instance changes whenever that manager's process starts. It is empty until the first answer.
	Instance string
	// Connected is true while it answers as one of us.
	Connected bool
	// Foreign is true if something answers there that isn't ours, a gRPC server without our services (UNIMPLEMENTED) or another
	// protocol: other software, which is not the same as dead.
	Foreign bool
	// Rival is true while two processes claim this node id.
	Rival bool
	// LastSeen is when anything was heard from it, by the local clock; zero if never.
	LastSeen time.Time
	// Problem says, for the operator, why it isn't connected. It is empty if it is, or if the first attempt hasn't ended yet.
	Problem string
}

// view is what a node knows about managers from themselves, first-hand or by gossip. Views are merged by taking the higher
// incarnation of each node, so that all nodes that talk to each other arrive at the same one. The zero value is not ready
// for use. It is not safe for concurrent use.
type view struct {
	infos  map[cluster.NodeID]Info
	digest uint64
	known  []*protosv1.PeerInfo // all of it, as it goes over the wire; not modified once made
}

func newView() *view {
	v := &view{infos: map[cluster.NodeID]Info{}}
	v.changed()
	return v
}

// put adds an info if it is newer than what is there, and tells whether it was.
func (v *view) put(i Info) bool {
	if i.ID == "" || i.Incarnation <= v.infos[i.ID].Incarnation {
		return false
	}
	v.infos[i.ID] = i
	v.dropTombstones()
	v.changed()
	return true
}

// maxTombstones bounds how many nodes are remembered as forgotten.
const maxTombstones = 50

// dropTombstones drops the oldest ones beyond the bound, the same ones on every node.
func (v *view) dropTombstones() {
	var gone []Info
	for _, i := range v.infos {
		if i.gone() {
			gone = append(gone, i)
		}
	}
	if len(gone) <= maxTombstones {
		return
	}
	slices.SortFunc(gone, func(a, b Info) int { return cmp.Or(cmp.Compare(b.Incarnation, a.Incarnation), cmp.Compare(a.ID, b.ID)) })
	for _, i := range gone[maxTombstones:] {
		delete(v.infos, i.ID)
	}
}

func (v *view) changed() {
	h := fnv.New64a()
	var known []*protosv1.PeerInfo
	for _, id := range slices.Sorted(maps.Keys(v.infos)) {
		i := v.infos[id]
		known = append(known, i.proto())
		h.Write([]byte(id))
		h.Write(binary.BigEndian.AppendUint64([]byte{0}, uint64(i.Incarnation)))
	}
	v.digest, v.known = h.Sum64(), known
}

// newestFirst returns the infos, the latest said before those that are older.
func (v *view) newestFirst() []Info {
	return slices.SortedFunc(maps.Values(v.infos), func(a, b Info) int {
		return cmp.Or(cmp.Compare(b.Incarnation, a.Incarnation), cmp.Compare(a.ID, b.ID))
	})
}
