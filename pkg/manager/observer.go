package manager

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

const (
	// missingGrace is how long a node that doesn't answer is waited for although the cluster doesn't
	// need it.
	missingGrace = 10 * time.Minute
	// forgetAfter is how long such a node may be silent before all managers forget it.
	forgetAfter = 24 * time.Hour
)

// observer asks all nodes how they are, and remembers since when others are silent. Only the loop
// uses it.
type observer struct {
	*shared
	nodes      *nodes
	etcd       *etcdClients
	marker     *marker
	operations *operations

	missing map[cluster.NodeID]time.Time
	// lastAlive is when a member last answered whose manager was missing.
	lastAlive map[cluster.NodeID]time.Time
	// settled is the set of nodes that answer, the same since then.
	settled  string
	since    time.Time
	watching map[cluster.NodeID]context.CancelFunc
}

// essential are the nodes that the cluster, its forming or a restore counts on. They are missing
// for as long as they don't answer.
func (ob *observer) essential(o *model.Observation) map[cluster.NodeID]bool {
	ids := map[cluster.NodeID]bool{}
	add := func(nodes []cluster.EtcdNode) {
		for _, n := range nodes {
			ids[cluster.NodeID(n.Name)] = true
		}
	}
	for _, n := range o.Nodes {
		for _, m := range n.Etcd.Members {
			ids[cluster.NodeID(m.Name)] = true
		}
		if n.State != nil && !n.Etcd.Healthy {
			add(n.State.Nodes)
		}
	}
	if ob.marker.seen.Phase == model.MarkerForming {
		add(ob.marker.seen.Founders)
	}
	if op := ob.operations.plan(); op != nil {
		add(op.Nodes)
	}
	delete(ids, "")
	return ids
}

// countMissing remembers since when nodes haven't answered, and since when the set of those that do
// is the same. A node on which nothing depends is missing for a while only: it may be one that is
// gone for good, as after the loss of a disk with the node's name on it.
func (ob *observer) countMissing(o *model.Observation, known, essential, foreign map[cluster.NodeID]bool) {
	now := time.Now()
	set := ""
	for _, n := range o.Nodes {
		delete(known, n.ID)
		delete(ob.missing, n.ID)
		set += string(n.ID) + " "
	}
	for id := range known {
		// Other software that answers is alive. When it goes, to make room for this one, the wait for the
		// node begins then.
		if ob.missing[id].IsZero() || foreign[id] {
			ob.missing[id] = now
		}
		silent := now.Sub(ob.missing[id])
		if !essential[id] && silent > missingGrace {
			if silent > forgetAfter {
				ob.m.cfg.Peers.Forget(id)
			}
			continue
		}
		o.Missing = append(o.Missing, model.MissingNode{ID: id, For: silent, Foreign: foreign[id]})
	}
	slices.SortFunc(o.Missing, func(a, b model.MissingNode) int { return strings.Compare(string(a.ID), string(b.ID)) })
	if set != ob.settled {
		ob.settled, ob.since = set, now
	}
	o.SettledFor = now.Sub(ob.since)
}

// askNodes fills in Nodes and Missing.
func (ob *observer) askNodes(ctx context.Context, o *model.Observation) {
	ask := []cluster.NodeID{ob.m.cfg.Self}
	foreign := map[cluster.NodeID]bool{}
	known := map[cluster.NodeID]bool{ob.m.cfg.Self: true}
	for _, p := range ob.m.cfg.Peers.Peers() {
		known[p.ID] = true
		if p.Connected {
			ask = append(ask, p.ID)
		}
		foreign[p.ID] = p.Foreign
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, id := range ask {
		wg.Go(func() {
			s, err := ob.nodes.askNode(ctx, id)
			if err != nil {
				klog.V(2).Infof("node %s doesn't answer: %v", id, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			o.Nodes = append(o.Nodes, s)
		})
	}
	wg.Wait()
	slices.SortFunc(o.Nodes, func(a, b cluster.NodeStatus) int { return strings.Compare(string(a.ID), string(b.ID)) })
	for _, n := range o.Nodes {
		for _, m := range n.Etcd.Members {
			if m.Name != "" {
				known[cluster.NodeID(m.Name)] = true
			}
		}
		if n.State != nil {
			for _, m := range n.State.Nodes {
				known[cluster.NodeID(m.Name)] = true
			}
		}
	}
	ob.countMissing(o, known, ob.essential(o), foreign)
	ob.askMembers(ctx, o)
	ob.watchNodes(ctx, o)
}

// endWatches ends all streams.
func (ob *observer) endWatches() {
	for _, cancel := range ob.watching {
		cancel()
	}
}

// watchNodes keeps a stream open to every node that answers, by which it wakes the loop when
// something changes there.
func (ob *observer) watchNodes(ctx context.Context, o *model.Observation) {
	here := map[cluster.NodeID]bool{}
	for _, n := range o.Nodes {
		here[n.ID] = true
		if ob.watching[n.ID] != nil {
			continue
		}
		wctx, cancel := context.WithCancel(ctx)
		ob.watching[n.ID] = cancel
		ob.wg.Go(func() { ob.watchNode(wctx, n.ID) })
	}
	for id, cancel := range ob.watching {
		if !here[id] {
			cancel()
			delete(ob.watching, id)
		}
	}
}

func (ob *observer) watchNode(ctx context.Context, id cluster.NodeID) {
	for ctx.Err() == nil {
		err := func() error {
			c, err := ob.m.cfg.Peers.Conn(id)
			if err != nil {
				return err
			}
			s, err := protosv1.NewNodeServiceClient(c).Watch(ctx, &protosv1.WatchRequest{ClusterName: ob.m.cfg.ClusterName})
			if err != nil {
				return err
			}
			for {
				if _, err := s.Recv(); err != nil {
					return err
				}
				ob.poke()
			}
		}()
		if ctx.Err() != nil {
			return
		}
		ob.poke()
		if status.Code(err) == codes.Unimplemented {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}
