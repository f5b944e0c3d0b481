package sim

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// The agent of a simulated node: what pkg/node does with a request, by the same rules and in the same order, on a simulated disk. Each
// write is a step, at which the process can be killed.

// task is an action that is being carried out. Whoever asks for the same one again attaches to it.
type task struct {
	done      chan struct{}
	ctx       context.Context //nolint:containedctx // it outlives its caller
	cancel    context.CancelFunc
	preparing string
	term      cluster.Term
	begun     bool
	event     *protosv1.PerformEvent
	err       error
}

// heed is obey for a leader that only looks. mu is held.
func (p *proc) heed(term cluster.Term, leader cluster.NodeID) error {
	if err := p.fence(term, leader); err != nil {
		return err
	}
	if err := p.admit(term, leader); err != nil {
		return err
	}
	p.heeded = leadership{term, leader}
	p.obeyed(term, leader)
	return nil
}

// obey checks and remembers the leadership that asks. mu is held.
func (p *proc) obey(term cluster.Term, leader cluster.NodeID) error {
	if err := p.fence(term, leader); err != nil {
		return err
	}
	if err := p.admit(term, leader); err != nil {
		return err
	}
	p.obeyed(term, leader)
	return nil
}

func (p *proc) obeyed(term cluster.Term, leader cluster.NodeID) {
	w := p.n.w
	w.truth.obeyed(p.n, term, leader)
	if p.n.disk.term != term || p.n.disk.leader != leader {
		p.n.disk.term, p.n.disk.leader = term, leader
	}
}

// fence is what the daemon knows of elections.
func (p *proc) fence(term cluster.Term, leader cluster.NodeID) error {
	if p.n.w.bug.is("no-fence") {
		return nil
	}
	s := p.machine.State()
	switch {
	case term < s.Term:
		return fmt.Errorf("term %d, this node has seen term %d: %w", term, s.Term, cluster.ErrLowerTerm)
	case leader == p.n.id && (!s.Leads() || s.Term != term):
		return fmt.Errorf("the lease of term %d has ended: %w", term, cluster.ErrLowerTerm)
	}
	return nil
}

func (p *proc) admit(term cluster.Term, leader cluster.NodeID) error {
	if p.n.w.bug.is("no-fence") {
		return nil
	}
	known := leadership{p.n.disk.term, p.n.disk.leader}
	if p.heeded.term > known.term {
		known = p.heeded
	}
	if term < known.term || term == known.term && leader != known.leader {
		return fmt.Errorf("term %d of %s, this node has obeyed term %d of %s: %w", term, leader, known.term, known.leader, cluster.ErrLowerTerm)
	}
	return nil
}

// perform begins a request, or finds the one that is under way, and waits for its end.
func (p *proc) perform(ctx context.Context, req *protosv1.PerformRequest) (*protosv1.PerformEvent, error) {
	t, err := p.beginTask(req)
	if err != nil {
		return nil, toStatus(err)
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err() // the action goes on
	case <-p.ctx.Done():
		return nil, errGone
	case <-t.done:
		if t.err != nil {
			return nil, toStatus(t.err)
		}
		return t.event, nil
	}
}

func (p *proc) beginTask(req *protosv1.PerformRequest) (*task, error) {
	if err := wire.CheckNames(req); err != nil {
		return nil, fmt.Errorf("%w (%w)", err, cluster.ErrPermanent)
	}
	if err := p.step(); err != nil {
		return nil, errGone
	}
	w := p.n.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.dead {
		return nil, errGone
	}
	term := cluster.Term(req.GetTerm())
	if err := p.obey(term, cluster.NodeID(req.GetLeader())); err != nil {
		return nil, err
	}
	c := proto.Clone(req).(*protosv1.PerformRequest)
	c.Term, c.Leader = 0, ""
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(c)
	if err != nil {
		return nil, err
	}
	key := string(b)
	if t := p.tasks[key]; t != nil {
		if t.begun || t.term == term {
			return t, nil
		}
		t.cancel()
	}
	preparing, discarded := operationOf(req)
	for _, t := range p.tasks {
		if t.preparing != "" && (t.preparing == discarded || preparing != "" && t.preparing != preparing) {
			t.cancel()
		}
	}
	turns := req.GetTakeBackup() == nil && req.GetVerifyBackup() == nil && req.GetVerify() == nil
	t := &task{done: make(chan struct{}), term: term, begun: !turns, preparing: preparing}
	t.ctx, t.cancel = context.WithCancel(p.ctx)
	p.tasks[key] = t
	w.did["asked: "+actionName(req)]++
	go func() {
		defer t.cancel()
		event, err := p.do(t, req, turns)
		w.mu.Lock()
		if p.tasks[key] == t {
			delete(p.tasks, key)
		}
		t.event, t.err = event, err
		if !p.dead {
			p.n.changed()
		}
		w.mu.Unlock()
		close(t.done)
	}()
	return t, nil
}

func operationOf(req *protosv1.PerformRequest) (preparing, discarded string) {
	switch x := req.GetAction().(type) {
	case *protosv1.PerformRequest_Prove:
		return x.Prove.GetOperation(), ""
	case *protosv1.PerformRequest_Stage:
		return x.Stage.GetOperation(), ""
	case *protosv1.PerformRequest_Salvage:
		return x.Salvage.GetOperation(), ""
	case *protosv1.PerformRequest_Discard:
		return "", x.Discard.GetOperation()
	}
	return "", ""
}

// do waits for its turn where it takes one, looks at the leadership again, and acts.
func (p *proc) do(t *task, req *protosv1.PerformRequest, turns bool) (*protosv1.PerformEvent, error) {
	event := &protosv1.PerformEvent{Done: true}
	w := p.n.w
	if turns {
		select {
		case p.one <- struct{}{}:
		case <-t.ctx.Done():
			return nil, t.ctx.Err()
		}
		defer func() { <-p.one }()
		w.mu.Lock()
		err := p.obey(cluster.Term(req.GetTerm()), cluster.NodeID(req.GetLeader()))
		if err == nil {
			err = t.ctx.Err()
		}
		if err == nil {
			t.begun, p.busy = true, actionName(req)
			w.log("%s: %s for %s, term %d", p.n.id, actionName(req), req.GetLeader(), req.GetTerm())
		}
		w.mu.Unlock()
		if err != nil {
			return nil, err
		}
		defer func() {
			w.mu.Lock()
			p.busy = ""
			w.mu.Unlock()
		}()
	}
	var err error
	switch x := req.GetAction().(type) {
	case *protosv1.PerformRequest_StartEtcd:
		err = p.doStart(x.StartEtcd)
	case *protosv1.PerformRequest_SetAside:
		err = p.doSetAside(cluster.Token(x.SetAside.GetToken()))
	case *protosv1.PerformRequest_TakeBackup:
		return p.doBackup(t.ctx, x.TakeBackup)
	case *protosv1.PerformRequest_Prove:
		event.Facts, err = p.doProve(t.ctx, x.Prove)
	case *protosv1.PerformRequest_Stage:
		event.Facts, err = p.doStage(t.ctx, x.Stage)
	case *protosv1.PerformRequest_Stop:
		err = p.doStop(x.Stop)
	case *protosv1.PerformRequest_Switch:
		err = p.doSwitch(x.Switch)
	case *protosv1.PerformRequest_Halt:
		err = p.doHalt(x.Halt.GetOperation())
	case *protosv1.PerformRequest_Rollback:
		err = p.doRollback(x.Rollback.GetOperation())
	case *protosv1.PerformRequest_Discard:
		err = p.doDiscard(x.Discard.GetOperation())
	case *protosv1.PerformRequest_Verify:
		event.Facts, err = p.doVerify(x.Verify.GetOperation())
	case *protosv1.PerformRequest_StopMember:
		w.mu.Lock()
		p.pausing = x.StopMember.GetReason()
		w.mu.Unlock()
		err = p.stopEtcd("told to")
	default:
		err = fmt.Errorf("no simulated node does %s: %w", actionName(req), cluster.ErrPermanent)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", actionName(req), err)
	}
	return event, nil
}

// doStart takes over a state and makes etcd run so.
func (p *proc) doStart(req *protosv1.StartEtcd) error {
	w, n := p.n.w, p.n
	s := wire.StateFromProto(req.GetState())
	if s == nil || s.Token == "" || s.Node(string(n.id)) == nil {
		return fmt.Errorf("the state doesn't name this node: %w", cluster.ErrPermanent)
	}
	w.mu.Lock()
	d := &n.disk
	var err error
	switch {
	case d.state != nil && d.state.Token != s.Token && !w.bug.is("foreign-state"):
		err = fmt.Errorf("this node belongs to cluster %s, not to %s", d.state.Token, s.Token)
	case d.state == nil && !req.GetMayBeEmpty():
		err = fmt.Errorf("this node has no data of cluster %s", s.Token)
	}
	joins, held := d.state == nil, d.holding()
	if err == nil && req.GetRestart() {
		w.truth.restarts(n, s)
	}
	w.mu.Unlock()
	if err != nil {
		return err
	}
	if joins {
		if err := p.write(func(d *disk) { d.toTrash(s.Token, 0) }); err != nil {
			return err
		}
		if err := p.write(func(d *disk) { d.begun = "" }); err != nil {
			return err
		}
		w.mu.Lock()
		n.wellAt, n.restarts = time.Now(), 0
		w.mu.Unlock()
	}
	if held {
		if err := p.write(func(d *disk) { d.release(s.Token) }); err != nil {
			return err
		}
	}
	w.mu.Lock()
	lost := req.GetMayBeEmpty() && d.lost(s.Token) && !w.bug.is("empty-restart")
	fresh := req.GetMayBeEmpty() && !n.has(s.Token) && d.mayBeEmpty != s.Token
	p.pausing = ""
	w.mu.Unlock()
	if lost {
		return fmt.Errorf("data dir is gone: %w", cluster.ErrPermanent)
	}
	if fresh {
		if err := p.write(func(d *disk) { d.mayBeEmpty = s.Token }); err != nil {
			return err
		}
	}
	if req.GetSettings() != nil {
		if err := p.write(func(d *disk) { d.settings = req.GetSettings().GetValues() }); err != nil {
			return err
		}
	}
	if err := p.write(func(d *disk) { d.state = s }); err != nil {
		return err
	}
	return p.startEtcd(req.GetRestart())
}

func (d *disk) toTrash(t cluster.Token, size int) {
	if x := d.dirs[t]; x != nil {
		if x.made {
			d.trash = append(d.trash, trashed{t, x, time.Now(), size})
			d.trash = d.trash[max(0, len(d.trash)-3):]
		}
		delete(d.dirs, t)
	}
}

func (p *proc) doSetAside(token cluster.Token) error {
	w, n := p.n.w, p.n
	w.mu.Lock()
	s := n.disk.state.Clone()
	if s != nil && s.Token == token {
		w.truth.setAside(n, token)
	}
	w.mu.Unlock()
	switch {
	case s == nil:
		return nil
	case s.Token != token:
		return fmt.Errorf("this node belongs to cluster %s, not to %s", s.Token, token)
	}
	if err := p.stopEtcd("it is set aside"); err != nil {
		return err
	}
	if err := p.write(func(d *disk) { d.toTrash(token, 0) }); err != nil {
		return err
	}
	if err := p.write(func(d *disk) { d.state = nil }); err != nil {
		return err
	}
	w.mu.Lock()
	n.lastExit, p.pausing = "", ""
	w.mu.Unlock()
	return p.write(func(d *disk) { d.release(token) })
}

// release ends a hold that a restore has left on the data of a token.
func (d *disk) release(token cluster.Token) {
	if !d.holding() {
		return
	}
	op := *d.op
	op.phase = phaseReverted
	if token == op.token {
		op.phase = phaseSwitched
	}
	d.op = &op
}
