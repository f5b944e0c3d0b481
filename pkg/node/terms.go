package node

import (
	"errors"
	"fmt"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// leadershipID names a leadership: two leaders can be elected in one term where more nodes run than are wanted.
type leadershipID struct {
	term   cluster.Term
	leader cluster.NodeID
}

// obey checks and remembers the leadership that asks. A lower term, or another leader of the same term, is refused.
func (r *records) obey(term cluster.Term, leader cluster.NodeID) error {
	if err := r.fenced(term, leader); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.obeyLocked(term, leader)
}

// fenced asks those who know of elections whether the leadership can still be. mu is not held.
func (r *records) fenced(term cluster.Term, leader cluster.NodeID) error {
	if r.cfg.Fence == nil {
		return nil
	}
	return r.cfg.Fence(term, leader)
}

// heed is obey for a leader that only looks. A disk that takes no journal doesn't hide the node from it. admitted tells whether the leadership can be a true one: a
// term that no history reaches is no error here, and not believed.
func (r *records) heed(term cluster.Term, leader cluster.NodeID) (admitted bool, err error) {
	fenced := r.fenced(term, leader)
	if errors.Is(fenced, cluster.ErrLowerTerm) {
		return false, fenced
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	err = r.admit(term, leader)
	switch {
	case errors.Is(err, cluster.ErrLowerTerm):
		return false, err
	case err != nil:
		return false, nil // a term that can't be true is refused where it would change something
	}
	r.heeded = leadershipID{term, leader}
	if r.j.Term == term {
		return fenced == nil, nil
	}
	j := r.j
	j.Term, j.Leader = term, leader
	if err := r.setJournal(j); err != nil {
		klog.V(2).Infof("term %d of %s is not in the journal: %v", term, leader, err)
	}
	return fenced == nil, nil
}

// obeyLocked is obey once the elections have nothing against it. mu is held.
func (r *records) obeyLocked(term cluster.Term, leader cluster.NodeID) error {
	if err := r.admit(term, leader); err != nil {
		return err
	}
	if term == r.j.Term && leader == r.j.Leader {
		return nil
	}
	j := r.j
	j.Term, j.Leader = term, leader
	return r.setJournal(j)
}

// admit compares a leadership with the highest one that this node knows of. mu is held.
func (r *records) admit(term cluster.Term, leader cluster.NodeID) error {
	known := leadershipID{r.j.Term, r.j.Leader}
	if r.heeded.term > known.term {
		known = r.heeded
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
