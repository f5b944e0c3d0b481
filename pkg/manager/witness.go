package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// Witnesses says how patient the leader is with nodes that it asks whether they see what it has done in the store.
type Witnesses struct {
	// Unseen is how long what was written may stay unseen. NFS remembers for up to a minute (acdirmax) what a directory holds. The default is 70 s.
	Unseen time.Duration
	// Unheeded is the same for locks and conditional puts, which no file system may remember. The default is 5 s.
	Unheeded time.Duration
}

func (w Witnesses) of(f catalog.Finding) time.Duration {
	if f == catalog.OtherStore {
		return w.Unseen
	}
	return w.Unheeded
}

const (
	// witnessAgain is how often a node in order is asked: a file system can be mounted otherwise while all runs.
	witnessAgain = time.Hour
	// witnessSoon is how often one is asked that doesn't see yet what it should.
	witnessSoon = time.Second
	// The time to the next question after a bad answer, or none, begins with witnessFirst and doubles. What was bad is asked again at least every
	// witnessBad, so that its end is noticed; a node that can't reach the store may have none for good.
	witnessFirst, witnessBad = 5 * time.Second, 2 * time.Minute
	// withdrawPatience bounds how long the end of a leadership waits for what is to be removed.
	withdrawPatience = 500 * time.Millisecond
)

// witness is what is known of one node. mu of witnesses guards what changes.
type witness struct {
	node     cluster.NodeID
	instance string
	cancel   context.CancelFunc
	// heard is true once it has answered, or couldn't: then it holds up nothing any more.
	heard bool
	// unsure says what it doesn't see yet; apart what it is known not to see.
	unsure string
	apart  *model.Apart
	// finding is the last one that was bad, since when, and how often in vain since. Only its own goroutine uses them.
	finding catalog.Finding
	since   time.Time
	fails   int
	posed   *catalog.Posed
	posedAt time.Time
}

// witnesses asks the other nodes whether they see what this one does in the store.
type witnesses struct {
	*shared
	// known are the nodes that are asked. Only the loop touches the map.
	known map[cluster.NodeID]*witness

	mu sync.Mutex
}

// ask has every node that answers asked, and fills in what is known. What was found of a node counts as long as it may be acting.
func (ws *witnesses) ask(ctx context.Context, o *model.Observation) {
	if o.Store.Error != "" || !o.Store.Fences {
		return
	}
	here := map[cluster.NodeID]bool{}
	for _, n := range o.Nodes {
		here[n.ID] = true
		w := ws.known[n.ID]
		if n.ID == ws.m.cfg.Self || w != nil && w.instance == n.Instance {
			continue
		}
		next := &witness{node: n.ID, instance: n.Instance}
		ws.mu.Lock()
		if w != nil { // restarted; what was known holds until it has said something else
			w.cancel()
			next.apart = w.apart
		}
		ws.mu.Unlock()
		wctx, cancel := context.WithCancel(ctx)
		next.cancel = cancel
		ws.known[n.ID] = next
		ws.wg.Go(func() { ws.follow(wctx, next) })
	}
	for _, m := range o.Missing {
		here[m.ID] = true
	}
	var unsure []string
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for id, w := range ws.known {
		switch {
		case !here[id]:
			w.cancel()
			delete(ws.known, id)
		case w.apart != nil:
			o.Store.Apart = append(o.Store.Apart, *w.apart)
		case o.Node(id) == nil:
		case !w.heard:
			unsure = append(unsure, fmt.Sprintf("node %s hasn't answered yet", id))
		case w.unsure != "":
			unsure = append(unsure, w.unsure)
		}
	}
	slices.Sort(unsure)
	o.Store.Unsure = strings.Join(unsure, ", ")
	slices.SortFunc(o.Store.Apart, func(a, b model.Apart) int { return strings.Compare(string(a.Node), string(b.Node)) })
	o.Store.Fences = len(o.Store.Apart) == 0
}

// follow asks one node until ctx ends.
func (ws *witnesses) follow(ctx context.Context, w *witness) {
	defer ws.withdraw(ctx, w)
	for ctx.Err() == nil {
		wait := ws.askOne(ctx, w)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// withdraw takes the question back that a node was asked.
func (ws *witnesses) withdraw(ctx context.Context, w *witness) {
	if w.posed == nil {
		return
	}
	patience := storeTimeout
	if ctx.Err() != nil {
		patience = withdrawPatience // what stays is removed by the probe at the next start
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	if err := w.posed.End(ctx); err != nil {
		klog.V(2).Infof("remove what node %s was asked about: %v", w.node, err)
	}
	w.posed = nil
}

// askOne asks once. It returns after which time to ask again.
func (ws *witnesses) askOne(ctx context.Context, w *witness) time.Duration {
	finding, store, err := ws.examine(ctx, w)
	if ctx.Err() != nil {
		return 0
	}
	if err == nil && (finding == catalog.OneStore || finding == catalog.PutsApart) || err != nil {
		ws.withdraw(ctx, w) // it is posed anew
	}
	ws.mu.Lock()
	defer ws.poke()
	defer ws.mu.Unlock()
	w.heard = true
	switch {
	case errors.Is(err, errOld):
		klog.Infof("node %s can't tell whether it has the same store: %v", w.node, err)
		return witnessAgain
	case err != nil:
		w.fails++
		ws.said.Infof("witness "+string(w.node), "node %s can't tell whether it has the same store, which is asked again: %v", w.node, err)
		return w.pause(witnessAgain)
	case finding == catalog.OneStore:
		if w.apart != nil {
			klog.Infof("node %s sees in the store what this node does there, and the store fences between them again", w.node)
		}
		w.unsure, w.apart, w.since, w.fails = "", nil, time.Time{}, 0
		return witnessAgain
	case w.since.IsZero() || w.finding != finding:
		w.finding, w.since = finding, time.Now()
	}
	patience := ws.m.cfg.Witnesses.of(finding)
	why, way := ws.words(w.node, finding, store)
	if w.apart == nil && time.Since(w.since) < patience {
		w.unsure = fmt.Sprintf("node %s doesn't see yet what node %s does there, for which it has %s", w.node, ws.m.cfg.Self, patience)
		return min(witnessSoon, max(patience/10, time.Millisecond))
	}
	w.unsure, w.apart = "", &model.Apart{Node: w.node, Why: why, Way: way}
	w.fails++
	ws.said.Warningf("apart "+string(w.node), "%s. Two leaders could act at once. %s", why, way)
	return w.pause(witnessBad)
}

// errOld is the answer of a manager that doesn't know the question.
var errOld = errors.New("its manager is of an older version and doesn't know the question")

// examine asks a node one question and looks what has become of it.
func (ws *witnesses) examine(ctx context.Context, w *witness) (finding catalog.Finding, store string, err error) {
	c, err := ws.m.cfg.Peers.Conn(w.node)
	if err != nil {
		return 0, "", err
	}
	if time.Since(w.posedAt) >= witnessAgain {
		ws.withdraw(ctx, w) // the store may clear away what is old
	}
	if w.posed == nil {
		w.posedAt = time.Now()
		err := inTime(ctx, func(ctx context.Context) (err error) {
			w.posed, err = ws.m.cfg.Catalog.Pose(ctx, ws.m.cfg.Self)
			return err
		})
		if err != nil {
			return 0, "", err
		}
	}
	q := w.posed.Question
	actx, cancel := context.WithTimeout(ctx, observeTimeout)
	defer cancel()
	r, err := protosv1.NewNodeServiceClient(c).Witness(actx, &protosv1.WitnessRequest{
		ClusterName: ws.m.cfg.ClusterName, Key: q.Key, Value: q.Value, Reply: q.Reply, Lock: q.Lock})
	switch {
	case status.Code(err) == codes.Unimplemented:
		return 0, "", errOld
	case err != nil:
		return 0, "", err
	}
	t := catalog.Testimony{Problem: r.GetProblem(), Found: r.GetFound(), Held: r.GetHeld(), Replaced: r.GetReplaced()}
	err = inTime(ctx, func(ctx context.Context) (err error) {
		finding, err = w.posed.Judge(ctx, t)
		return err
	})
	return finding, r.GetStore(), err
}

// words say what is wrong between this node and another one, and how it ends.
func (ws *witnesses) words(node cluster.NodeID, f catalog.Finding, store string) (why, way string) {
	self, own := ws.m.cfg.Self, ws.m.cfg.StoreName
	const otherwise = "or start all managers with --allow-unfenced-store"
	switch f {
	case catalog.LocksApart:
		return fmt.Sprintf("file locks don't reach from node %s to node %s: is %s a file system mounted with nolock or local_lock, or one without shared locks?", self, node, own),
			"mount the store on all nodes with locks that they share, as NFSv4 has them by default, " + otherwise
	case catalog.PutsApart:
		return fmt.Sprintf("a conditional put of node %s isn't heeded when node %s makes the next one: is %s copied between two sites?", node, self, own),
			"use one store for all nodes, " + otherwise
	}
	if store == own {
		return fmt.Sprintf("node %s doesn't see what node %s has written to the store, which both call %s: is it mounted on both nodes, and reached at the same server?", node, self, own),
			"mount the same file system on both nodes, or give both the same endpoint, then restart the manager of the node that was wrong"
	}
	return fmt.Sprintf("node %s has another store (%s) than node %s (%s)", node, store, self, own), "start all managers with the same --backup-store"
}
