package node

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// leadershipID names a leadership: two leaders can be elected in one term where more nodes run than are wanted.
type leadershipID struct {
	term   cluster.Term
	leader cluster.NodeID
}

// obey checks and remembers the leadership that asks. A lower term, or another leader of the same term, is refused.
func (a *Agent) obey(term cluster.Term, leader cluster.NodeID) error {
	if err := a.fenced(term, leader); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.obeyLocked(term, leader)
}

// fenced asks those who know of elections whether the leadership can still be. mu is not held.
func (a *Agent) fenced(term cluster.Term, leader cluster.NodeID) error {
	if a.cfg.Fence == nil {
		return nil
	}
	return a.cfg.Fence(term, leader)
}

// heed is obey for a leader that only looks. A disk that takes no journal doesn't hide the node from it.
func (a *Agent) heed(term cluster.Term, leader cluster.NodeID) error {
	if err := a.fenced(term, leader); errors.Is(err, cluster.ErrLowerTerm) {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	err := a.admit(term, leader)
	switch {
	case errors.Is(err, cluster.ErrLowerTerm):
		return err
	case err != nil:
		return nil // a term that can't be true is refused where it would change something
	}
	a.heeded = leadershipID{term, leader}
	if a.j.Term == term {
		return nil
	}
	j := a.j
	j.Term, j.Leader = term, leader
	if err := a.setJournal(j); err != nil {
		klog.V(2).Infof("term %d of %s is not in the journal: %v", term, leader, err)
	}
	return nil
}

// obeyLocked is obey once the elections have nothing against it. mu is held.
func (a *Agent) obeyLocked(term cluster.Term, leader cluster.NodeID) error {
	if err := a.admit(term, leader); err != nil {
		return err
	}
	if term == a.j.Term && leader == a.j.Leader {
		return nil
	}
	j := a.j
	j.Term, j.Leader = term, leader
	return a.setJournal(j)
}

// admit compares a leadership with the highest one that this node knows of. mu is held.
func (a *Agent) admit(term cluster.Term, leader cluster.NodeID) error {
	known := leadershipID{a.j.Term, a.j.Leader}
	if a.heeded.term > known.term {
		known = a.heeded
	}
	switch {
	case !known.term.Reaches(term) || !term.Reaches(known.term):
		return fmt.Errorf("term %d of %s and term %d of %s, which this node has obeyed, are too far apart for any history, so one of them is corrupt: %w; "+
			"compare the terms in etcd-manager/vote.json and etcd-manager/journal.json of all nodes", term, leader, known.term, known.leader, cluster.ErrPermanent)
	case term < known.term:
		return fmt.Errorf("term %d of %s, this node has obeyed term %d of %s: %w", term, leader, known.term, known.leader, cluster.ErrLowerTerm)
	case term == known.term && leader != known.leader:
		return fmt.Errorf("term %d of %s, this node has obeyed %s in that term: %w", term, leader, known.leader, cluster.ErrLowerTerm)
	}
	return nil
}

// begin starts the task of a request, or finds the one that is under way.
func (a *Agent) begin(req *protosv1.PerformRequest) (*task, error) {
	if err := a.ready(); err != nil {
		return nil, err
	}
	if err := wire.CheckNames(req); err != nil {
		return nil, fmt.Errorf("%s: %w (%w)", actionName(req), err, cluster.ErrPermanent)
	}
	if err := a.obey(cluster.Term(req.GetTerm()), cluster.NodeID(req.GetLeader())); err != nil {
		return nil, err
	}
	key, err := taskKey(req)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.runCtx == nil || a.runCtx.Err() != nil {
		return nil, errors.New("the node's agent isn't running")
	}
	if t := a.tasks[key]; t != nil {
		if t.begun || t.term == cluster.Term(req.GetTerm()) {
			return t, nil
		}
		t.cancel() // it waits for its turn, in which it would be refused, since the leadership that asked for it is over
	}
	a.giveUpFor(req)
	t := &task{done: make(chan struct{}), term: cluster.Term(req.GetTerm()), begun: !takesTurn(req)}
	t.preparing, _ = operationOf(req)
	var ctx context.Context
	ctx, t.cancel = context.WithCancel(a.runCtx)
	a.tasks[key] = t
	go func() {
		defer t.cancel()
		event, err := a.perform(ctx, req, t)
		a.mu.Lock()
		if a.tasks[key] == t {
			delete(a.tasks, key)
		}
		a.changes.note()
		a.mu.Unlock()
		t.mu.Lock()
		t.result, t.err = event, err
		t.mu.Unlock()
		close(t.done)
	}()
	return t, nil
}

// takesTurn tells whether an action waits until no other one changes the node.
func takesTurn(req *protosv1.PerformRequest) bool {
	switch req.GetAction().(type) {
	case *protosv1.PerformRequest_TakeBackup, *protosv1.PerformRequest_VerifyBackup, *protosv1.PerformRequest_Verify:
		return false
	}
	return true
}

// taskKey is the same for requests that ask for the same action.
func taskKey(req *protosv1.PerformRequest) (string, error) {
	c := proto.Clone(req).(*protosv1.PerformRequest)
	c.Term, c.Leader = 0, ""
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("encode action: %w", err)
	}
	return string(b), nil
}
