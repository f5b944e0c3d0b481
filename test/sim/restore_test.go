package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// The agent's part in a restore, in the steps and phases of pkg/node.

// phase is how far a node is with a restore.
type phase string

const (
	phaseBegun    phase = ""
	phaseProven   phase = "proven"
	phaseStaged   phase = "staged"
	phaseStopped  phase = "stopped"
	phaseSwitched phase = "switched"
	phaseHalting  phase = "halting"
	phaseHalted   phase = "halted"
	phaseReverted phase = "reverted"
)

func (p phase) held() bool     { return p == phaseStopped || p == phaseHalting || p == phaseHalted }
func (p phase) switched() bool { return p == phaseSwitched || p == phaseHalting || p == phaseHalted }

// journalOp is what a node remembers of a restore.
type journalOp struct {
	id, backup string
	phase      phase
	token      cluster.Token
	old        *cluster.EtcdState
	revision   int64
	hash       uint32
	written    bool
	record     []byte
}

func (op *journalOp) facts() *protosv1.Facts {
	return &protosv1.Facts{Revision: op.revision, Hash: op.hash, SizeBytes: 1000}
}

// opNow is a copy of the journal's operation. A switch that was cut between state file and journal is seen here.
func (d *disk) opNow() *journalOp {
	if d.op == nil {
		return nil
	}
	op := *d.op
	if op.phase == phaseStaged && d.state != nil && d.state.Token == op.token {
		op.phase = phaseSwitched
	}
	return &op
}

func (p *proc) op() *journalOp {
	w := p.n.w
	w.mu.Lock()
	defer w.mu.Unlock()
	return p.n.disk.opNow()
}

func (p *proc) state() *cluster.EtcdState {
	w := p.n.w
	w.mu.Lock()
	defer w.mu.Unlock()
	return p.n.disk.state.Clone()
}

func (p *proc) note(op *journalOp) error {
	if op != nil {
		c := *op
		op = &c
	}
	return p.write(func(d *disk) { d.op = op })
}

// enter finds the operation in the journal, or begins it.
func (p *proc) enter(id string) (*journalOp, error) {
	op := p.op()
	switch {
	case op == nil:
		return &journalOp{id: id}, nil
	case op.id == id:
		return op, nil
	case op.phase.held():
		return nil, fmt.Errorf("etcd is held for another restore, %s", op.id)
	}
	if err := p.doDiscard(op.id); err != nil {
		return nil, err
	}
	return &journalOp{id: id}, nil
}

func (p *proc) doProve(ctx context.Context, req *protosv1.Prove) (*protosv1.Facts, error) {
	op, err := p.enter(req.GetOperation())
	if err != nil {
		return nil, err
	}
	if op.phase != phaseBegun {
		return op.facts(), nil
	}
	if op.backup != req.GetBackup() {
		op.backup = req.GetBackup()
		if err := p.note(op); err != nil {
			return nil, err
		}
	}
	b, err := p.fetch(ctx, req.GetBackup())
	if err != nil {
		return nil, err
	}
	op.phase, op.revision, op.hash = phaseProven, raised(b.Revision, req.GetBumpRevision(), req.GetAtLeastRevision()), hashOf(b.Writes)
	if err := p.note(op); err != nil {
		return nil, err
	}
	return &protosv1.Facts{Revision: b.Revision, Hash: op.hash, SizeBytes: 1000}, nil
}

func raised(revision int64, bump uint64, least int64) int64 {
	return max(revision+int64(bump), least+1)
}

func (p *proc) doStage(ctx context.Context, req *protosv1.Stage) (*protosv1.Facts, error) {
	w, n := p.n.w, p.n
	op, err := p.enter(req.GetOperation())
	if err != nil {
		return nil, err
	}
	s := wire.StateFromProto(req.GetState())
	if s.Node(string(n.id)) == nil {
		return nil, fmt.Errorf("the restored cluster doesn't have this node: %w", cluster.ErrPermanent)
	}
	switch op.phase {
	case phaseBegun, phaseProven:
	case phaseReverted:
		return nil, fmt.Errorf("restore %s was taken back here", op.id)
	default:
		if op.token == s.Token {
			return op.facts(), nil
		}
		return nil, fmt.Errorf("restore %s is staged already", op.id)
	}
	if now := p.state(); now != nil && now.Token == s.Token {
		return nil, fmt.Errorf("it runs here: %w", cluster.ErrPermanent)
	}
	if op.token != s.Token {
		if old := op.token; old != "" {
			if err := p.write(func(d *disk) { delete(d.dirs, old) }); err != nil {
				return nil, err
			}
		}
		op.token = s.Token
		if err := p.note(op); err != nil {
			return nil, err
		}
	}
	b, err := p.fetch(ctx, req.GetBackup())
	if err != nil {
		return nil, err
	}
	rev := raised(b.Revision, req.GetBumpRevision(), req.GetAtLeastRevision())
	if w.bug.is("verify-blind") && len(b.Writes) > 0 {
		b.Writes = b.Writes[:len(b.Writes)-1]
	}
	x := &dir{made: true, member: memberID(s.Token, string(n.id), 0), start: len(b.Writes), base: rev - int64(len(b.Writes))}
	for _, id := range b.Writes {
		x.log = append(x.log, entry{write: id})
	}
	x.add(entry{members: founding(s.Token, s.Nodes)})
	if err := p.write(func(d *disk) { d.dirs[s.Token] = x }); err != nil {
		return nil, err
	}
	op.phase, op.backup, op.revision, op.hash = phaseStaged, req.GetBackup(), rev, hashOf(b.Writes)
	w.mu.Lock()
	w.truth.staged(n, op, b.Writes)
	if w.faulty && w.draw(40, "bad disk", string(n.id)) == 0 {
		op.hash++
	}
	w.mu.Unlock()
	if err := p.note(op); err != nil {
		return nil, err
	}
	return op.facts(), nil
}

func (p *proc) doDiscard(id string) error {
	op, s := p.op(), p.state()
	if op == nil || op.id != id {
		return nil
	}
	var err error
	switch {
	case op.phase.held():
		return fmt.Errorf("etcd is held for restore %s", id)
	case op.phase == phaseSwitched:
		if op.old != nil && (s == nil || s.Token != op.old.Token) {
			err = p.write(func(d *disk) { d.toTrash(op.old.Token, len(op.old.Nodes)) })
		}
	case op.token != "" && (s == nil || s.Token != op.token):
		err = p.write(func(d *disk) { delete(d.dirs, op.token) })
	}
	if err != nil {
		return err
	}
	return p.note(nil)
}

func (p *proc) doStop(req *protosv1.Stop) error {
	w, n := p.n.w, p.n
	op, err := p.enter(req.GetOperation())
	if err != nil {
		return err
	}
	if op.phase == phaseReverted {
		return fmt.Errorf("restore %s was taken back here", op.id)
	}
	known := op.phase.held() || op.phase.switched()
	if r := req.GetRecord(); len(r) > 0 && !bytes.Equal(r, op.record) {
		op.record = bytes.Clone(r)
		if known {
			if err := p.note(op); err != nil {
				return err
			}
		}
	}
	if op.phase.switched() {
		return nil
	}
	w.mu.Lock()
	w.truth.stops(n, op)
	w.mu.Unlock()
	if !known && !w.bug.is("stop-unrecorded") {
		op.old, op.phase = p.state(), phaseStopped
		if err := p.note(op); err != nil {
			return err
		}
	}
	return p.stopEtcd("restore " + op.id)
}

func (p *proc) doSwitch(req *protosv1.Switch) error {
	w, n := p.n.w, p.n
	s := wire.StateFromProto(req.GetState())
	w.mu.Lock()
	op, noted := n.disk.opNow(), n.disk.op != nil && n.disk.op.phase == phaseSwitched
	have, e := n.disk.state.Clone(), n.etcd
	w.mu.Unlock()
	if s == nil || op == nil || op.id != req.GetOperation() || op.token != s.Token {
		return fmt.Errorf("restore %s isn't staged here", req.GetOperation())
	}
	switch {
	case op.phase == phaseSwitched && noted:
		return p.startEtcd(true)
	case op.phase == phaseSwitched:
	case op.phase == phaseStaged && have == nil:
	case !op.phase.held():
		return fmt.Errorf("restore %s is %s here, not stopped", op.id, op.phase)
	case e != nil && e.token != s.Token:
		return errors.New("the old etcd still runs")
	}
	w.mu.Lock()
	there := n.has(s.Token)
	w.mu.Unlock()
	if !there {
		return fmt.Errorf("the staged data dir is gone: %w", cluster.ErrPermanent)
	}
	if err := p.write(func(d *disk) { d.state = s }); err != nil {
		return err
	}
	op.phase = phaseSwitched
	w.mu.Lock()
	n.restarts, p.pausing = 0, ""
	w.mu.Unlock()
	if err := p.note(op); err != nil {
		return err
	}
	return p.startEtcd(true)
}

func (p *proc) doHalt(id string) error {
	op, s := p.op(), p.state()
	if op == nil || op.id != id || !op.phase.switched() || op.phase == phaseHalted || s == nil || s.Token != op.token {
		return nil
	}
	return p.halt(op)
}

func (p *proc) halt(op *journalOp) error {
	w := p.n.w
	if op.phase != phaseHalting {
		op.phase = phaseHalting
		if err := p.note(op); err != nil {
			return err
		}
	}
	if err := p.stopEtcd("restore " + op.id + " may have to be taken back"); err != nil {
		return err
	}
	w.mu.Lock()
	d := p.n.disk.dirs[op.token]
	written := d == nil || d.written()
	w.mu.Unlock()
	op.phase, op.written = phaseHalted, op.written || written
	return p.note(op)
}

func (p *proc) doRollback(id string) error {
	op := p.op()
	if op == nil || op.id != id || !op.phase.held() && !op.phase.switched() {
		return nil
	}
	if op.phase == phaseSwitched || op.phase == phaseHalting {
		if err := p.halt(op); err != nil {
			return err
		}
	}
	if op.written && !p.n.w.bug.is("rollback-written") {
		return fmt.Errorf("clients have written to the restored data: %w", cluster.ErrPermanent)
	}
	old := op.old
	if err := p.write(func(d *disk) { d.state = old.Clone() }); err != nil {
		return err
	}
	op.phase = phaseReverted
	if err := p.note(op); err != nil {
		return err
	}
	return p.startEtcd(true)
}

func (p *proc) doVerify(id string) (*protosv1.Facts, error) {
	w := p.n.w
	op := p.op()
	w.mu.Lock()
	defer w.mu.Unlock()
	n := p.n
	if op == nil || op.id != id || op.phase != phaseSwitched || n.etcd == nil || n.etcd.token != op.token || !n.runs(op.token) {
		return nil, fmt.Errorf("restore %s hasn't switched here", id)
	}
	writes := n.dir().writes()
	if at := int(op.revision - n.dir().base); at < 0 || at > len(writes) {
		return nil, fmt.Errorf("etcd doesn't have revision %d: %w", op.revision, cluster.ErrPermanent)
	} else if h := hashOf(slices.Clone(writes[:at])); h != op.hash {
		return nil, fmt.Errorf("etcd has hash %d, staged was %d: %w", h, op.hash, cluster.ErrPermanent)
	}
	return op.facts(), nil
}
