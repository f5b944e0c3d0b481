package manager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// nodes sends what the leader has to say to the nodes. Nothing that changes a node leaves without
// the lease.
type nodes struct {
	*shared
	// changed is true if the member list was changed since the nodes were last asked. Only the loop
	// touches it.
	changed bool

	mu       sync.Mutex
	database int64 // size of the largest database that was seen
}

// How long a step may take before the loop looks again. The node goes on with it, and the same
// request attaches to it.
const quickAction = 30 * time.Second

// noteDatabase remembers the size of the largest database there is, by which slowAction goes.
func (n *nodes) noteDatabase(o *model.Observation) {
	size := plan.Database(o)
	if o.Store.Operation != nil {
		size = max(size, o.Store.Operation.Bytes)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.database = size
}

// slowAction is the same for what grows with the database, or with the one that is restored.
func (n *nodes) slowAction() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return plan.PrepareTime(n.database)
}

// each does something for all items at once and joins the errors.
func each[T any](items []T, f func(T) error) error {
	errs := make(chan error, len(items))
	for _, x := range items {
		go func() { errs <- f(x) }()
	}
	var all failures
	for range items {
		if err := <-errs; err != nil {
			all = append(all, err)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all
}

// perform asks a node to do an action and waits for the end. progress may be nil.
func (n *nodes) perform(ctx context.Context, id cluster.NodeID, req *protosv1.PerformRequest, limit time.Duration, progress func(*protosv1.PerformEvent)) (*protosv1.PerformEvent, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := n.holdsLease(); err != nil {
		return nil, err
	}
	req.ClusterName, req.Term, req.Leader = n.m.cfg.ClusterName, uint64(n.term), string(n.m.cfg.Self)
	c, err := n.m.cfg.Peers.Conn(id)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", id, err)
	}
	s, err := protosv1.NewNodeServiceClient(c).Perform(ctx, req)
	if err != nil {
		return nil, nodeError(id, err)
	}
	for {
		e, err := s.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil, fmt.Errorf("node %s ended the action without a result", id)
		case err != nil:
			return nil, nodeError(id, err)
		case e.GetDone():
			return e, nil
		case progress != nil:
			progress(e)
		}
	}
}

// holdsLease is asked right before anything leaves that changes a node or etcd's members. The
// context alone isn't enough: it ends only once this process runs again after it was held up.
func (n *nodes) holdsLease() error {
	if n.m.cfg.Peers.Leads(n.term) {
		return nil
	}
	return fmt.Errorf("the lease of term %d has ended: %w", n.term, cluster.ErrLowerTerm)
}

// nodeError turns a gRPC code into a sentinel to branch on.
func nodeError(id cluster.NodeID, err error) error {
	st, _ := status.FromError(err)
	switch st.Code() {
	case codes.Aborted:
		return &nodeFailure{id, &told{st.Message(), cluster.ErrLowerTerm}}
	case codes.DataLoss:
		return &nodeFailure{id, &told{st.Message(), cluster.ErrPermanent}}
	}
	return &nodeFailure{id, errors.New(st.Message())}
}

func (n *nodes) quick(ctx context.Context, id cluster.NodeID, req *protosv1.PerformRequest) error {
	_, err := n.perform(ctx, id, req, quickAction+30*time.Second, nil)
	return err
}

func (n *nodes) askNode(ctx context.Context, id cluster.NodeID) (cluster.NodeStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, observeTimeout)
	defer cancel()
	c, err := n.m.cfg.Peers.Conn(id)
	if err != nil {
		return cluster.NodeStatus{}, err
	}
	p, err := protosv1.NewNodeServiceClient(c).Observe(ctx, &protosv1.ObserveRequest{
		ClusterName: n.m.cfg.ClusterName, Fresh: n.changed, Term: uint64(n.term), Leader: string(n.m.cfg.Self), Summary: n.m.encode(),
	})
	if status.Code(err) == codes.Aborted {
		n.said.Warningf("obeys "+string(id), "node %s obeys another leader (%s); stepping down", id, status.Convert(err).Message())
		n.m.cfg.Peers.Exceed(n.term)
	}
	if err != nil {
		return cluster.NodeStatus{}, err
	}
	s := wire.StatusFromProto(p)
	if s.ID != id {
		return s, fmt.Errorf("node %s answers in place of %s", s.ID, id)
	}
	return s, nil
}

// urgent is for steps while nobody is served: a node that doesn't answer must not keep the others
// waiting. The node goes on with what was asked, and the same request attaches to it.
func (n *nodes) urgent(ctx context.Context, id cluster.NodeID, req *protosv1.PerformRequest) error {
	const patience = 15 * time.Second
	_, err := n.perform(ctx, id, req, patience, nil)
	return err
}

// failures are several errors in one line: what goes wrong on several nodes stands in records and
// tables.
type failures []error

// Error joins them. What several nodes say in the same words is said once.
func (f failures) Error() string {
	nodes := map[string][]string{}
	var order []string
	for _, err := range f {
		n, ok := err.(*nodeFailure) //nolint:errorlint // only what is one itself, not what wraps one
		if !ok {
			order = append(order, err.Error())
			continue
		}
		said := n.err.Error()
		if nodes[said] == nil {
			order = append(order, said)
		}
		nodes[said] = append(nodes[said], string(n.id))
	}
	words := make([]string, 0, len(order))
	for _, said := range order {
		switch who := nodes[said]; len(who) {
		case 0:
			words = append(words, said)
		case 1:
			words = append(words, "node "+who[0]+": "+said)
		default:
			slices.Sort(who)
			words = append(words, "nodes "+strings.Join(who, ", ")+": "+said)
		}
	}
	slices.Sort(words)
	return strings.Join(words, "; ")
}

// Unwrap is for errors.Is and errors.As.
func (f failures) Unwrap() []error { return f }

// nodeFailure is what went wrong on a node.
type nodeFailure struct {
	id  cluster.NodeID
	err error
}

func (n *nodeFailure) Error() string { return "node " + string(n.id) + ": " + n.err.Error() }
func (n *nodeFailure) Unwrap() error { return n.err }

// told is what a node has said, and which kind of error that was there. The words need no more
// added.
type told struct {
	words string
	kind  error
}

func (t *told) Error() string { return t.words }
func (t *told) Unwrap() error { return t.kind }
