package peer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/election"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// maxKnown bounds how many managers one message may tell of.
const maxKnown = 200

// Exchange answers another manager. See protos/v1/peer.proto.
func (p *Peers) Exchange(ctx context.Context, req *protosv1.ExchangeRequest) (*protosv1.ExchangeResponse, error) {
	from := cluster.NodeID(req.GetFrom())
	switch {
	case req.GetClusterName() != p.cfg.ClusterName:
		return nil, status.Errorf(codes.FailedPrecondition, "the request is for cluster %q, but node %s belongs to cluster %q",
			req.GetClusterName(), p.cfg.Self.ID, p.cfg.ClusterName)
	case req.GetTo() != string(p.cfg.Self.ID):
		return nil, status.Errorf(codes.FailedPrecondition, "this is node %s, not node %q: an endpoint of %q is out of date or given to two nodes",
			p.cfg.Self.ID, req.GetTo(), req.GetTo())
	case from == "" || req.GetInstance() == "":
		return nil, status.Error(codes.InvalidArgument, "the request doesn't say whom it is from")
	case len(req.GetInstance()) > maxInstance:
		return nil, status.Errorf(codes.InvalidArgument, "the instance has %d bytes; at most %d are possible", len(req.GetInstance()), maxInstance)
	case len(req.GetKnown()) > maxKnown:
		return nil, status.Errorf(codes.InvalidArgument, "%d managers are too many for one cluster", len(req.GetKnown()))
	}
	if !p.alive() {
		return nil, status.Errorf(codes.Unavailable, "node %s: %v", p.cfg.Self.ID, errNotRunning)
	}
	if from == p.cfg.Self.ID {
		if req.GetInstance() != p.cfg.Instance {
			p.selfRival(req.GetInstance())
		}
		return &protosv1.ExchangeResponse{From: string(from), Instance: p.cfg.Instance, RivalInstance: p.cfg.Instance}, nil
	}

	resp, trusted := p.heard(from, req)
	if req.GetElection() == nil || !trusted {
		return resp, nil
	}
	msg, err := p.electionMessage(from, req.GetElection())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	answer, err := p.elect.step(msg)
	switch {
	case errors.Is(err, election.ErrTerm):
		p.corruptTerm(from, err) // no answer: neither of the two may act on the other one's term
	case errors.Is(err, election.ErrMessage):
		return nil, status.Error(codes.InvalidArgument, err.Error())
	case err != nil:
		return nil, status.Error(codes.Unavailable, err.Error())
	case answer != nil:
		resp.Election = electionProto(*answer)
	}
	return resp, nil
}

// alive tells whether Run is running.
func (p *Peers) alive() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running != nil && p.running.Err() == nil
}

// heard takes in what a request says of its sender and of others, and makes the answer. Trusted is false if it isn't clear who
// speaks for that node.
func (p *Peers) heard(from cluster.NodeID, req *protosv1.ExchangeRequest) (resp *protosv1.ExchangeResponse, trusted bool) {
	p.mu.Lock()
	added := p.merge(req.GetKnown(), from)
	trusted = true
	resp = &protosv1.ExchangeResponse{From: string(p.cfg.Self.ID), Instance: p.cfg.Instance, View: p.view.digest}
	if n := p.nodes[from]; n != nil {
		p.observe(n, req.GetInstance())
		n.view = req.GetView()
		if n.isRival() {
			trusted = false
			resp.RivalInstance = n.other(req.GetInstance())
		}
		if !n.connected {
			n.link.retry() // it is up
			n.link.poke()
		}
	}
	if req.GetView() != p.view.digest {
		resp.Known = p.view.known
	}
	p.mu.Unlock()
	if added {
		p.electorate()
	}
	return resp, trusted
}

// exchange calls the node and takes in what it answers. It returns the election message in the answer, if there is one.
func (l *link) exchange(ctx context.Context, msg *election.Message) (*election.Message, error) {
	p := l.p
	req := &protosv1.ExchangeRequest{
		ClusterName: p.cfg.ClusterName, From: string(p.cfg.Self.ID), To: string(l.id), Instance: p.cfg.Instance,
	}
	if msg != nil {
		req.Election = electionProto(*msg)
	}
	p.mu.Lock()
	req.View = p.view.digest
	if n := p.nodes[l.id]; n == nil || n.view != req.View {
		req.Known = p.view.known
	}
	p.mu.Unlock()

	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := l.call.exchange(ctx, call, req)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err == nil && (resp.GetFrom() != string(l.id) || resp.GetInstance() == "") {
		err = status.Errorf(codes.FailedPrecondition, "node %q answers there, not %s", resp.GetFrom(), l.id)
	}
	if err != nil {
		l.spoke.Store(0)
		p.failed(l, err)
		return nil, err
	}
	l.spoke.Store(time.Now().UnixNano())
	if !p.answered(l, req, resp) || resp.GetElection() == nil {
		return nil, nil
	}
	answer, err := p.electionMessage(l.id, resp.GetElection())
	if err != nil {
		return nil, err
	}
	return &answer, nil
}

// answered takes in an answer. It returns false if it isn't clear who speaks for that node.
func (p *Peers) answered(l *link, req *protosv1.ExchangeRequest, resp *protosv1.ExchangeResponse) bool {
	if r := resp.GetRivalInstance(); r != "" && r != p.cfg.Instance {
		p.selfRival(r)
	}
	known := resp.GetKnown()
	p.mu.Lock()
	n := p.nodes[l.id]
	if n == nil || n.link != l || len(known) > maxKnown || len(resp.GetInstance()) > maxInstance {
		p.mu.Unlock()
		return false
	}
	recount := p.merge(known, l.id)
	p.observe(n, resp.GetInstance())
	n.view = resp.GetView()
	n.timeouts = 0
	if !n.connected {
		recount = recount || n.foreign || n.refused
		n.connected, n.foreign, n.refused, n.problem, n.logged = true, false, false, "", ""
		n.downSince = time.Time{}
		klog.Infof("Connected to the manager of node %s (%s)", l.id, strings.Join(l.last, ", "))
		p.notify()
	}
	if n.view != p.view.digest && len(req.GetKnown()) == 0 {
		l.poke() // it doesn't know yet what we know
	}
	trusted := !n.isRival()
	p.mu.Unlock()
	if recount {
		p.electorate()
	}
	return trusted
}

// problemLogAfter is how long a node may be out of reach before the log says so: while a cluster starts, that's nothing to report.
const problemLogAfter = 5 * time.Second

// failed records why an exchange failed.
func (p *Peers) failed(l *link, err error) {
	s := status.Convert(err)
	problem := strings.TrimPrefix(s.Message(), "connection error: desc = ")
	foreign, refused, urgent := false, false, false
	switch s.Code() {
	case codes.Unimplemented:
		foreign, urgent = true, true
		problem = "other software than this etcd-manager answers there (UNIMPLEMENTED); it is left alone, and takes no part in elections, until this etcd-manager runs on that node"
	case codes.FailedPrecondition, codes.PermissionDenied, codes.Unauthenticated, codes.InvalidArgument:
		refused, urgent = true, true
		problem = "it refuses: " + problem
	case codes.DeadlineExceeded:
		problem = fmt.Sprintf("no answer within %v", callTimeout)
	case codes.Unavailable:
		if otherProtocol(problem) {
			foreign, urgent = true, true
			problem = "something answers there in another protocol (" + problem + "): other software, or a manager of which only one side has --insecure; " +
				"it is left alone, and takes no part in elections, until this etcd-manager runs on that node"
			break
		}
		if strings.Contains(problem, "authentication handshake failed") {
			urgent = true
			problem += " (all managers need certificates of the same etcd-manager-ca, or all --insecure)"
		}
	}
	p.mu.Lock()
	n := p.nodes[l.id]
	if n == nil || n.link != l {
		p.mu.Unlock()
		return
	}
	recount := n.foreign != foreign || n.refused != refused
	changed := recount || n.problem != problem
	n.timeouts++
	if n.connected && (s.Code() != codes.DeadlineExceeded || n.timeouts > 1) {
		n.connected, changed = false, true
	}
	n.foreign, n.refused = foreign, refused
	if !n.connected {
		n.problem = problem
		n.report(urgent)
		recount = p.leave(n) || recount
	}
	if foreign {
		n.lastSeen = time.Now()
	}
	if changed {
		p.notify()
	}
	p.mu.Unlock()
	if recount {
		p.electorate()
	}
}

// otherProtocol tells whether the words of gRPC say that what answers doesn't speak as a manager does. Somebody who hangs up, or whose
// certificate isn't trusted, may be a manager of this cluster that is ill.
func otherProtocol(problem string) bool {
	return strings.Contains(problem, "first record does not look like a TLS handshake") ||
		strings.Contains(problem, "error reading server preface: http2:") || strings.Contains(problem, "malformed HTTP")
}

// lost records that a connection broke.
func (p *Peers) lost(l *link) {
	p.mu.Lock()
	n := p.nodes[l.id]
	if n == nil || n.link != l || !n.connected {
		p.mu.Unlock()
		return
	}
	n.connected = false
	n.problem = "the connection broke"
	n.downSince = time.Now()
	klog.Infof("Lost the connection to the manager of node %s", l.id)
	l.poke() // to learn why, and to notice when it is back
	recount := p.leave(n)
	p.notify()
	p.mu.Unlock()
	if recount {
		p.electorate()
	}
}

// corruptTerm says, once for each node, that its term and the own one can't both be true.
func (p *Peers) corruptTerm(from cluster.NodeID, err error) {
	p.mu.Lock()
	n := p.nodes[from]
	first := n != nil && !n.corruptTerm
	if first {
		n.corruptTerm = true
	}
	p.mu.Unlock()
	if first {
		klog.Errorf("Nodes %s and %s take no part in each other's elections: %v. Compare the file etcd-manager/vote.json in the data dirs of all nodes; "+
			"where the term is far above the others, stop the manager, wait ten seconds, delete the file, and start the manager", from, p.cfg.Self.ID, err)
	}
}

// electionMessage reads an election message and checks that it comes from whom it says.
func (p *Peers) electionMessage(from cluster.NodeID, m *protosv1.ElectionMessage) (election.Message, error) {
	if m.GetFrom() != string(from) || m.GetTo() != string(p.cfg.Self.ID) {
		return election.Message{}, fmt.Errorf("node %s sent an election message from %q to %q", from, m.GetFrom(), m.GetTo())
	}
	if m.GetKind() < 0 || m.GetKind() > 255 {
		return election.Message{}, fmt.Errorf("node %s sent an election message of kind %d", from, m.GetKind())
	}
	return election.Message{
		Kind: election.Kind(m.GetKind()), From: from, To: p.cfg.Self.ID, Term: cluster.Term(m.GetTerm()), Reject: m.GetReject(),
		Leader: cluster.NodeID(m.GetLeader()), Resigned: cluster.NodeID(m.GetResigned()), Sent: m.GetSent(), Ineligible: m.GetIneligible(),
	}, nil
}

func electionProto(m election.Message) *protosv1.ElectionMessage {
	return &protosv1.ElectionMessage{
		Kind: int32(m.Kind), From: string(m.From), To: string(m.To), Term: uint64(m.Term), Reject: m.Reject,
		Leader: string(m.Leader), Resigned: string(m.Resigned), Sent: m.Sent, Ineligible: m.Ineligible,
	}
}

// hello asks who answers at a link to our own node id, and returns its instance.
func (l *link) hello(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := protosv1.NewPeerServiceClient(l.conn).Exchange(ctx, &protosv1.ExchangeRequest{
		ClusterName: l.p.cfg.ClusterName, From: string(l.id), To: string(l.id), Instance: l.p.cfg.Instance,
	})
	if err != nil {
		return "", err
	}
	return resp.GetInstance(), nil
}
