package node

import (
	"errors"
	"fmt"
	"os"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/atomicfile"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// noteData ends the permission to start on an absent data dir, once etcd has made one.
func (r *records) noteData() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.j.MayBeEmpty == "" || !r.l.hasMember(r.j.MayBeEmpty) {
		return
	}
	j := r.j
	j.MayBeEmpty = ""
	if err := r.setJournal(j); err != nil {
		r.said.Errorf("journal", "%v", r.disk.name(err))
	}
}

// lost tells whether etcd has run under a token and its data dir is gone. mu is held.
func (r *records) lost(t cluster.Token) bool {
	switch {
	case r.l.hasMember(t):
		return false
	case r.j.MayBeEmpty != t:
		return r.j.Begun == t
	}
	// The directory is made before the first start: without it, it is not known what etcd had in it.
	return r.j.Begun == t && !exists(r.l.data(t))
}

// dataLost is lost for who doesn't hold mu.
func (r *records) dataLost(t cluster.Token) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lost(t)
}

func (r *records) errDataLost(t cluster.Token) error {
	return fmt.Errorf("data dir %s is gone although etcd has run on it; etcd is not started without its data, the leader replaces this member: %w",
		r.l.data(t), cluster.ErrPermanent)
}

// firstStart makes the data dir and remembers, before etcd runs, that it has run.
func (r *records) firstStart(t cluster.Token) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := os.MkdirAll(r.l.data(t), 0o700); err != nil {
		return fmt.Errorf("make data dir: %w", err)
	}
	if err := atomicfile.SyncDir(r.l.dataRoot()); err != nil {
		return fmt.Errorf("make data dir: %w", err)
	}
	if r.j.Begun == t {
		return nil
	}
	j := r.j
	j.Begun = t
	return r.setJournal(j)
}

// takeSettings remembers the settings that the leader gives. mu is held.
func (r *records) takeSettings(s cluster.Settings) error {
	if r.j.Settings.Equal(s) {
		return nil
	}
	if err := s.Validate(); err != nil {
		return fmt.Errorf("settings: %w: %w", err, cluster.ErrPermanent)
	}
	j := r.j
	j.Settings = s
	return r.setJournal(j)
}

// accept checks a new state against what is here and writes it.
func (r *records) accept(s *cluster.EtcdState, req *protosv1.StartEtcd) error {
	mayBeEmpty := req.GetMayBeEmpty()
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.stateErr != nil:
		return r.stateErr
	case r.state != nil && r.state.Token != s.Token:
		return fmt.Errorf("this node belongs to cluster %s, not to %s", r.state.Token, s.Token)
	case r.held() && r.j.Operation.ID == cluster.SupersededOperation:
		// A leader that knows the record takes the hold back first. One that doesn't takes it for that of a restore which is over.
		return errors.New("etcd is held, because another cluster has taken the place of this one, and isn't started by a leader that doesn't say " +
			"that this was taken back; is its version older?")
	}
	if r.state == nil {
		if !mayBeEmpty {
			return fmt.Errorf("this node has no data of cluster %s", s.Token)
		}
		// Left from a membership whose state file is gone; it is kept, but never started again.
		if err := r.l.discardDir(s.Token, trashNote{}); err != nil {
			return err
		}
		r.trash.kick()
		if r.j.Begun != "" { // another membership begins
			j := r.j
			j.Begun = ""
			if err := r.setJournal(j); err != nil {
				return err
			}
		}
		r.joined()
	}
	if err := r.release(s.Token); err != nil {
		return err
	}
	if mayBeEmpty && r.lost(s.Token) {
		return r.errDataLost(s.Token)
	}
	if mayBeEmpty && !r.l.hasMember(s.Token) && r.j.MayBeEmpty != s.Token {
		j := r.j
		j.MayBeEmpty = s.Token
		if err := r.setJournal(j); err != nil {
			return err
		}
	}
	if req.GetSettings() != nil {
		if err := r.takeSettings(req.GetSettings().GetValues()); err != nil {
			return err
		}
	}
	if err := writeState(r.l.state(), s); err != nil {
		return err
	}
	r.state = s
	r.changes.note()
	return nil
}

// releaseSuperseded ends the hold of a node whose cluster was superseded: the leader knows that this was taken back.
func (r *records) releaseSuperseded() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.j.Operation == nil || r.j.Operation.ID != cluster.SupersededOperation {
		return nil
	}
	err := r.release("")
	r.changes.note()
	return err
}

// release ends a hold that a restore has left on the data of a token: the leader knows that the restore is over. mu is held.
func (r *records) release(token cluster.Token) error {
	if !r.held() {
		return nil
	}
	j := r.j
	if j.Operation.ID == cluster.SupersededOperation {
		klog.Infof("the cluster isn't superseded any more; etcd isn't held")
		j.Operation = nil
		return r.setJournal(j)
	}
	klog.Infof("restore %s is over; etcd isn't held any more", r.j.Operation.ID)
	op := *j.Operation
	op.Phase = phaseReverted
	if token == op.Token {
		op.Phase = phaseSwitched
	}
	j.Operation = &op
	return r.setJournal(j)
}
