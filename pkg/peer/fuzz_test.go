package peer

import (
	"context"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// FuzzExchange has a manager hear any request of another manager. What it knows stays bounded, what it says of itself stays the newest, and all of it can be said
// to others.
func FuzzExchange(f *testing.F) {
	add := func(r *protosv1.ExchangeRequest) {
		data, err := proto.Marshal(r)
		testutil.Must(f, err)
		f.Add(data)
	}
	info := &protosv1.PeerInfo{NodeId: "c", Endpoints: []string{"10.0.0.3:3996"}, Addresses: []string{"10.0.0.3"}, Incarnation: 5}
	add(&protosv1.ExchangeRequest{ClusterName: "etcd", From: "b", To: "a", Instance: "i", Known: []*protosv1.PeerInfo{info},
		Election: &protosv1.ElectionMessage{Kind: 5, From: "b", To: "a", Term: 3}})
	add(&protosv1.ExchangeRequest{Known: []*protosv1.PeerInfo{{NodeId: "a", Endpoints: []string{"10.0.0.9:1"}, Incarnation: math.MaxInt64}}})
	add(&protosv1.ExchangeRequest{Known: []*protosv1.PeerInfo{{NodeId: strings.Repeat("\x1b", 10_000), Endpoints: []string{"10.0.0.9:1"}, Incarnation: 9}}})
	add(&protosv1.ExchangeRequest{Known: []*protosv1.PeerInfo{{NodeId: "d", Endpoints: []string{strings.Repeat("x", 100_000) + ":1"}, Incarnation: 9}}})
	f.Fuzz(func(t *testing.T, data []byte) {
		var req protosv1.ExchangeRequest
		if proto.Unmarshal(data, &req) != nil {
			return // gRPC answers that
		}
		p, err := New(Config{ClusterName: "etcd", Self: Info{ID: "a", Endpoints: []string{"10.0.0.1:3996"}}, Instance: "x", Wanted: 3, Votes: &memVotes{},
			Lead: func(context.Context, cluster.Term) {}, Rand: rand.NewPCG(1, 1)})
		testutil.Must(t, err)
		defer func() {
			for _, n := range p.nodes {
				n.link.close()
			}
		}()
		// A link to a node takes a client of gRPC, which is much.
		testutil.Untrusted(t, len(data), testutil.Cost{Fixed: 4 << 20, PerByte: 20_000}, func() error {
			p.heard("b", &req)
			_, err := p.electionMessage("b", req.GetElection())
			return err
		})
		checkBounds(t, p)
	})
}

// checkBounds makes sure of what must be true of a manager, whatever others have said.
func checkBounds(t *testing.T, p *Peers) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.nodes) > maxNodes || len(p.view.infos) > maxNodes+maxTombstones+1 {
		t.Errorf("%d nodes, %d infos", len(p.nodes), len(p.view.infos))
	}
	if own := p.view.infos[p.cfg.Self.ID]; own.Incarnation != p.self.Incarnation || !own.same(p.self) {
		t.Errorf("it is known as %+v, but says %+v", own, p.self)
	}
	size := 0
	for _, i := range p.view.known {
		size += proto.Size(i)
		if time.Unix(0, i.GetIncarnation()).After(time.Now().Add(2 * maxAhead)) {
			t.Errorf("%v was believed", i)
		}
	}
	if size > 2<<20 {
		t.Errorf("%d bytes are said to others", size)
	}
}
