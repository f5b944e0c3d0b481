package manager

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/plan"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// How long a step may take before the loop looks again. The node goes on with it, and the same request attaches to it.
const quickAction = 30 * time.Second

// noteDatabase remembers the size of the largest database there is, by which slowAction goes.
func (l *leadership) noteDatabase(o *model.Observation) {
	size := plan.Database(o)
	if o.Store.Operation != nil {
		size = max(size, o.Store.Operation.Bytes)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.database = size
}

// slowAction is the same for what grows with the database, or with the one that is restored.
func (l *leadership) slowAction() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return plan.PrepareTime(l.database)
}

// act carries out one action.
func (l *leadership) act(ctx context.Context, o *model.Observation, spec *cluster.Spec, a model.Action) error {
	switch a.Fence() {
	case model.FenceWritten:
		if err := l.fence(ctx); err != nil {
			return err
		}
	case model.FenceCommit:
		if err := l.fenceCommit(ctx); err != nil {
			return err
		}
	}
	switch a := a.(type) {
	case model.TakeTerm:
		return l.takeTerm(ctx)
	case model.CreateMarker:
		return l.createMarker(ctx, spec, a.Token, a.Founders, a.Version)
	case model.ReplaceMarker:
		return l.replaceMarker(ctx, spec, a.Token, a.Founders, a.Version)
	case model.MarkFormed:
		return l.markFormed(ctx, spec, a)
	case model.StartEtcd:
		return l.startEtcd(ctx, o, a)
	case model.StartAll:
		// One after the other: each waits until it answers its peers, so that none waits for another one's open but silent port.
		var errs []error
		for _, s := range a.Starts {
			errs = append(errs, l.startEtcd(ctx, o, s))
		}
		return errors.Join(errs...)
	case model.SetAside:
		return l.quick(ctx, a.Node, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_SetAside{
			SetAside: &protosv1.SetAside{Token: string(a.Token), Reason: a.Reason}}})
	case model.TakeBackup:
		l.startBackup(ctx, spec, a)
		return nil
	case model.AddLearner, model.Promote, model.UpdateMember, model.RemoveMember:
		return l.changeMembers(ctx, o, a)
	case model.RestartMember, model.StopMember, model.EnableDowngrade, model.CancelDowngrade, model.Compact, model.Defragment, model.Disarm:
		return l.tend(ctx, o, a)
	}
	return l.actRestore(ctx, o, spec, a)
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

// failures are several errors in one line: what goes wrong on several nodes stands in records and tables.
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

// perform asks a node to do an action and waits for the end. progress may be nil.
func (l *leadership) perform(ctx context.Context, id cluster.NodeID, req *protosv1.PerformRequest, limit time.Duration, progress func(*protosv1.PerformEvent)) (*protosv1.PerformEvent, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := l.holdsLease(); err != nil {
		return nil, err
	}
	req.ClusterName, req.Term, req.Leader = l.m.cfg.ClusterName, uint64(l.term), string(l.m.cfg.Self)
	c, err := l.m.cfg.Peers.Conn(id)
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

// holdsLease is asked right before anything leaves that changes a node or etcd's members. The context alone isn't enough: it ends only
// once this process runs again after it was held up.
func (l *leadership) holdsLease() error {
	if l.m.cfg.Peers.Leads(l.term) {
		return nil
	}
	return fmt.Errorf("the lease of term %d has ended: %w", l.term, cluster.ErrLowerTerm)
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

// nodeFailure is what went wrong on a node.
type nodeFailure struct {
	id  cluster.NodeID
	err error
}

func (n *nodeFailure) Error() string { return "node " + string(n.id) + ": " + n.err.Error() }
func (n *nodeFailure) Unwrap() error { return n.err }

// told is what a node has said, and which kind of error that was there. The words need no more added.
type told struct {
	words string
	kind  error
}

func (t *told) Error() string { return t.words }
func (t *told) Unwrap() error { return t.kind }

func (l *leadership) quick(ctx context.Context, id cluster.NodeID, req *protosv1.PerformRequest) error {
	_, err := l.perform(ctx, id, req, quickAction+30*time.Second, nil)
	return err
}

func (l *leadership) startEtcd(ctx context.Context, o *model.Observation, a model.StartEtcd) error {
	req := &protosv1.StartEtcd{State: wire.StateToProto(&a.State), MayBeEmpty: a.MayBeEmpty, Restart: a.Restart}
	if a.MayBeEmpty && !a.State.NewCluster && o.Store.Error == "" && o.Store.SettingsError == "" { // what it had in an earlier membership may not be wanted any more
		req.Settings = &protosv1.Settings{Values: o.Store.Settings}
	}
	err := l.quick(ctx, a.Node, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_StartEtcd{StartEtcd: req}})
	l.noteStart(a.Node, err)
	return err
}

// takeTerm writes the term into the store.
func (l *leadership) takeTerm(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, quickAction)
	defer cancel()
	take := l.m.cfg.Catalog.TakeTerm
	if fences, _ := l.m.probed(); !fences {
		take = l.m.cfg.Catalog.TakeTermUnfenced
	}
	h, err := take(ctx, l.term, l.m.cfg.Self, l.m.cfg.Instance)
	if err != nil {
		return err
	}
	l.hold, l.beat, l.wrote = h, time.Now(), true
	l.store.Holder = model.Holder{Term: l.term, Node: l.m.cfg.Self}
	return nil
}

func (l *leadership) newMarker(phase catalog.Phase, spec *cluster.Spec, token cluster.Token, founders []cluster.EtcdNode, version string) catalog.Marker {
	m := catalog.Marker{Time: time.Now(), Phase: phase, Token: token, Founders: founders, Spec: cluster.Spec{MemberCount: len(founders), EtcdVersion: version}, Term: l.term, Leader: l.m.cfg.Self}
	if spec != nil {
		m.Spec.MemberCount = spec.MemberCount
	}
	return m
}

func (l *leadership) createMarker(ctx context.Context, spec *cluster.Spec, token cluster.Token, founders []cluster.EtcdNode, version string) error {
	m := l.newMarker(catalog.PhaseForming, spec, token, founders, version)
	ver, err := l.m.cfg.Catalog.CreateMarker(ctx, m)
	if err != nil {
		return err
	}
	l.setMarker(m, ver)
	return nil
}

func (l *leadership) replaceMarker(ctx context.Context, spec *cluster.Spec, token cluster.Token, founders []cluster.EtcdNode, version string) error {
	m := l.newMarker(catalog.PhaseForming, spec, token, founders, version)
	ver, err := l.m.cfg.Catalog.ReplaceMarker(ctx, m, l.store.markerVer)
	if err != nil {
		return err
	}
	l.setMarker(m, ver)
	return nil
}

// markFormed ends forming. What the store answered is taken over at once, without reading it again.
func (l *leadership) markFormed(ctx context.Context, spec *cluster.Spec, a model.MarkFormed) error {
	if a.Create {
		m := l.newMarker(catalog.PhaseFormed, spec, a.Token, a.Founders, a.Version)
		ver, err := l.m.cfg.Catalog.CreateMarker(ctx, m)
		if err != nil {
			return err
		}
		l.setMarker(m, ver)
		return nil
	}
	m := l.store.marker
	m.Phase, m.Term, m.Leader = catalog.PhaseFormed, l.term, l.m.cfg.Self
	ver, err := l.m.cfg.Catalog.ReplaceMarker(ctx, m, l.store.markerVer)
	if err != nil {
		return err
	}
	l.setMarker(m, ver)
	klog.Infof("the etcd cluster %s is formed", m.Token)
	if l.m.cfg.Created != nil {
		l.m.cfg.Created()
	}
	return nil
}

func (l *leadership) setMarker(m catalog.Marker, ver string) {
	l.store.marker, l.store.markerVer = m, ver
	l.store.Marker = model.Marker{Phase: model.MarkerPhase(m.Phase), Token: m.Token, Founders: m.Founders, Version: m.Spec.EtcdVersion}
}

// changeMembers carries out a change of the member list through a healthy member, the etcd leader's own if it is there.
func (l *leadership) changeMembers(ctx context.Context, o *model.Observation, a model.Action) error {
	ctx, cancel := context.WithTimeout(ctx, quickAction)
	defer cancel()
	lead, other := l.speakers(o)
	if lead == nil {
		return errors.New("no healthy member to ask")
	}
	c, err := l.dial(ctx, lead)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := l.holdsLease(); err != nil {
		return err
	}
	l.changed = true
	switch a := a.(type) {
	case model.AddLearner:
		m, err := c.AddLearner(ctx, a.PeerURLs)
		if err == nil {
			klog.Infof("added node %s as learner %s", a.Node, m.ID)
			l.startAnew(a.Node)
		}
		return err
	case model.Promote:
		if err := c.Promote(ctx, a.Member); err != nil && !errors.Is(err, etcd.ErrNotCaughtUp) {
			return err
		} else if err != nil {
			pause(ctx, 500*time.Millisecond)
			return nil
		}
		l.noteJoin(cluster.NodeID(a.Name), false, "")
		klog.Infof("member %s (%s) is a voter now", a.Name, a.Member)
		return nil
	case model.UpdateMember:
		return c.UpdatePeerURLs(ctx, a.Member, a.PeerURLs)
	case model.RemoveMember:
		if a.Member == lead.Etcd.MemberID && other != nil {
			if err := c.MoveLeader(ctx, other.Etcd.MemberID); err != nil {
				return err
			}
			if c, err = l.dial(ctx, other); err != nil {
				return err
			}
			defer c.Close()
		}
		if err := c.Remove(ctx, a.Member); err != nil {
			return err
		}
		if a.Failed != "" {
			l.noteJoin(a.Failed, true, a.Why)
		}
		klog.Infof("removed member %s (%s)", a.Name, a.Member)
		return nil
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// speakers are the healthy voter to talk to (the etcd leader if it answers), and another one. While TLS is turned on node by node, a manager that
// is without it can't talk to all of them.
func (l *leadership) speakers(o *model.Observation) (first, second *cluster.NodeStatus) {
	return speakers(o, func(n *cluster.NodeStatus) bool {
		return l.m.cfg.ClientTLS != nil || !strings.HasPrefix(cmp.Or(urlsOf(n)...), "https:")
	})
}

// speakers are two healthy voters of which something is true, etcd's leader first if it is one.
func speakers(o *model.Observation, may func(*cluster.NodeStatus) bool) (first, second *cluster.NodeStatus) {
	for i := range o.Nodes {
		n := &o.Nodes[i]
		if !n.Etcd.Votes() || n.State == nil || !may(n) {
			continue
		}
		switch {
		case first == nil:
			first = n
		case n.Etcd.MemberID == n.Etcd.LeaderID && !n.Etcd.Denied, first.Etcd.Denied && !n.Etcd.Denied:
			first, second = n, first
		case second == nil:
			second = n
		}
	}
	return first, second
}

// dial connects to a node's etcd on the client URLs that it listens on, and makes sure that it is that member which answers.
func (l *leadership) dial(ctx context.Context, n *cluster.NodeStatus) (*etcd.Client, error) {
	urls := urlsOf(n)
	if len(urls) == 0 {
		return nil, fmt.Errorf("node %s isn't in its own state", n.ID)
	}
	c, err := l.dialURLs(urls, l.m.cfg.Peers.Addresses(n.ID), etcd.Dial)
	if err != nil {
		return nil, err
	}
	if err := c.IsMember(ctx, n.Etcd.MemberID); err != nil {
		return nil, errors.Join(fmt.Errorf("ask node %s: %w", n.ID, err), c.Close())
	}
	return c, nil
}

// urlsOf are the client URLs on which a node's etcd listens.
func urlsOf(n *cluster.NodeStatus) []string {
	self := n.State.Node(string(n.ID))
	if self == nil {
		return nil
	}
	urls := self.ClientURLs
	if n.Etcd.Quarantined {
		urls = self.QuarantinedClientURLs
	}
	for _, m := range n.Etcd.Members {
		if n.Etcd.Outdated && m.ID == n.Etcd.MemberID && len(m.ClientURLs) > 0 {
			urls = m.ClientURLs // it was started with others than those that it is to have now
		}
	}
	return urls
}

// dialURLs connects to the member with these client URLs on the machine with these addresses, in the way that is wanted. Names are
// checked against its certificate, but not resolved.
func (l *leadership) dialURLs(urls, addresses []string, dial func([]string, *tls.Config) (*etcd.Client, error)) (*etcd.Client, error) {
	endpoints := etcd.MemberEndpoints(urls, addresses)
	if l.m.cfg.ClientTLS == nil || len(urls) == 0 || strings.HasPrefix(urls[0], "http:") {
		return dial(endpoints, nil)
	}
	var hosts []string
	for _, s := range urls {
		if u, err := url.Parse(s); err == nil {
			hosts = append(hosts, u.Hostname())
		}
	}
	return dial(endpoints, l.m.cfg.ClientTLS(hosts...))
}
