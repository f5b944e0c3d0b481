package sim

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/election"
	"github.com/etcd-manager/etcd-manager/pkg/peer"
)

// The times are those of pkg/peer, with ticks of twice the length.
const (
	tickLength     = 250 * time.Millisecond
	heartbeatTicks = 2
	leaseTicks     = 5
	electionTicks  = 6
)

func (w *world) ids() []cluster.NodeID {
	var list []cluster.NodeID
	for _, n := range w.nodes {
		list = append(list, n.id)
	}
	return list
}

// elect drives the election's machine, as pkg/peer does: what is to be persisted is persisted before anything is sent.
func (p *proc) elect() {
	w := p.n.w
	w.mu.Lock()
	first := w.drawn(tickLength, "first tick", p.instance)
	w.mu.Unlock()
	if !sleep(p.ctx, first) {
		return
	}
	t := time.NewTicker(time.Duration(float64(tickLength) * p.n.rate))
	defer t.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-t.C:
		}
		w.mu.Lock()
		p.owed++
		if !p.standsStill() {
			p.input(func() {})
		}
		w.mu.Unlock()
	}
}

func (p *proc) standsStill() bool { return time.Now().Before(p.paused) }

// input gives the machine what happened, after the ticks that it owes. mu is held.
func (p *proc) input(f func()) {
	if p.dead {
		return
	}
	for ; p.owed > 0; p.owed-- {
		p.machine.Tick()
		if !p.settle() {
			return
		}
	}
	f()
	p.settle()
}

// settle does what the machine wants done. It returns false if the process was killed on the way. mu is held.
func (p *proc) settle() bool {
	n, w := p.n, p.n.w
	r, s := p.machine.Ready(), p.machine.State()
	if r.Hard != nil {
		w.check(r.Hard.Term >= n.disk.vote.Term, "%s: the term of its vote goes back from %d to %d", n.id, n.disk.vote.Term, r.Hard.Term)
		if w.bug.votes == nil || w.bug.votes(n) {
			n.disk.vote = *r.Hard
		}
		if w.faulty && w.draw(150, "vote", string(n.id)) == 0 {
			n.kill("after a vote")
			w.restartSoon(n)
			return false
		}
	}
	for _, m := range r.Messages {
		w.post(m)
	}
	switch {
	case s.Leads() && p.granted != s.Term:
		w.truth.elected(n, s.Term)
		p.granted = s.Term
		if p.revoke != nil {
			p.revoke(errors.New("another term"))
		}
		select {
		case p.wake <- struct{}{}:
		default:
		}
		p.noteKnown()
	case !s.Leads() && p.granted != 0:
		p.granted = 0
		if p.revoke != nil {
			p.revoke(errors.New("the lease has ended"))
		}
		p.noteKnown()
	}
	return true
}

// post puts an election's message on its way. mu is held.
func (w *world) post(m election.Message) {
	from, to := w.node(m.From), w.node(m.To)
	if from == nil || to == nil || !w.linked(from, to) {
		return
	}
	copies := 1
	if w.faulty {
		switch w.draw(60, "message", string(m.From), string(m.To)) {
		case 0:
			return
		case 1:
			copies = 2
		}
	}
	for range copies {
		time.AfterFunc(w.transit("message", string(m.From), string(m.To)), func() { w.deliver(m) })
	}
}

func (w *world) deliver(m election.Message) {
	w.mu.Lock()
	defer w.mu.Unlock()
	from, to := w.node(m.From), w.node(m.To)
	if w.closing || to.proc == nil || !w.linked(from, to) {
		return
	}
	p := to.proc
	if p.standsStill() {
		time.AfterFunc(time.Until(p.paused)+w.drawn(time.Millisecond, "after pause", string(to.id)), func() { w.deliver(m) })
		return
	}
	p.input(func() { _ = p.machine.Step(m) })
}

// leads calls the leader's loop, one leadership at a time.
func (p *proc) leads() {
	w := p.n.w
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-p.wake:
		}
		for {
			w.mu.Lock()
			term := p.granted
			if term == 0 || p.dead {
				w.mu.Unlock()
				break
			}
			ctx, cancel := context.WithCancelCause(p.ctx)
			p.revoke = cancel
			w.log("%s leads in term %d", p.n.id, term)
			w.did["leadership"]++
			w.mu.Unlock()
			p.mgr.Lead(ctx, term)
			w.mu.Lock()
			p.revoke = nil
			again := p.granted != 0 && p.granted != term
			w.mu.Unlock()
			cancel(nil)
			if !again {
				break
			}
		}
	}
}

// What follows is manager.Peers.

func (p *proc) Peers() (list []peer.Peer) {
	w := p.n.w
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range w.nodes {
		if n != p.n {
			list = append(list, peer.Peer{Info: peer.Info{ID: n.id}, Connected: n.proc != nil && w.both(p.n, n)})
		}
	}
	return list
}

func (p *proc) Conn(id cluster.NodeID) (grpc.ClientConnInterface, error) {
	to := p.n.w.node(id)
	if to == nil {
		return nil, errGone
	}
	return &conn{p, to}, nil
}

func (p *proc) Leader() (cluster.NodeID, cluster.Term) {
	w := p.n.w
	w.mu.Lock()
	defer w.mu.Unlock()
	s := p.machine.State()
	return s.Leader, s.Term
}

// Leads tells whether the lease holds. A process that stands still has asked before: what it sends then comes late.
func (p *proc) Leads(term cluster.Term) bool {
	w := p.n.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.dead {
		return false
	}
	if !p.standsStill() {
		p.input(func() {})
	}
	s := p.machine.State()
	return s.Leads() && s.Term == term
}

func (p *proc) Addresses(cluster.NodeID) []string { return nil }
func (p *proc) Forget(cluster.NodeID)             {}

func (p *proc) Changed() <-chan struct{} {
	w := p.n.w
	w.mu.Lock()
	defer w.mu.Unlock()
	return p.known
}

func (p *proc) Exceed(term cluster.Term) {
	w := p.n.w
	w.mu.Lock()
	defer w.mu.Unlock()
	p.input(func() { p.machine.Exceed(term) })
}

func (p *proc) SetWanted(wanted int) {
	w := p.n.w
	w.mu.Lock()
	defer w.mu.Unlock()
	p.wanted = wanted
	p.input(func() { _ = p.machine.SetWanted(wanted) })
}
