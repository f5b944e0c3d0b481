package node

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/repeat"
)

// records are what this node has written down: the state file and the journal, with the leadership that it obeys and the action that changes it.
// Its lock comes before those of the process and of the other parts. It is never held during input or output other than small files. All methods may
// be called concurrently.
type records struct {
	cfg     *Config
	l       layout
	disk    *disk
	trash   *trashCan
	changes *changes
	said    *repeat.Limiter
	// joined is called when another membership begins.
	joined func()

	mu       sync.Mutex // guards what follows
	state    *cluster.EtcdState
	stateErr error
	j        journal
	// heeded is the highest leadership that has looked at this node, busy the action that changes it.
	heeded leadershipID
	busy   string
	// ending: this manager stops its etcd and ends, so an answer of that etcd doesn't end the stop.
	ending bool
}

// load reads state file and journal.
func (r *records) load() error {
	j, err := readJournal(r.l.journal(), r.cfg.ClusterName)
	if err != nil {
		return err
	}
	if j.Stopped != nil && !j.Stopped.Served.IsZero() {
		j.Stopped = nil // the manager before this one has seen the end of it
	}
	r.j = j
	r.state, r.stateErr = readState(r.l.state())
	if r.stateErr != nil {
		klog.Errorf("%v; this node stays out of everything until then", r.stateErr)
		return nil
	}
	if r.state == nil {
		return nil
	}
	if err := r.adjustSelf(); err != nil {
		return err
	}
	return nil
}

// adjustSelf brings this node's own entry in the state file up to what the flags say now (a new address, another port).
func (r *records) adjustSelf() error {
	i := slices.IndexFunc(r.state.Nodes, func(n cluster.EtcdNode) bool { return n.Name == r.cfg.Self.Name })
	if i < 0 {
		r.stateErr = fmt.Errorf("state file %s is of members %v, but this node is %s: %w; check the node id (volume tag or %s/myid)",
			r.l.state(), nodeNames(r.state.Nodes), r.cfg.Self.Name, cluster.ErrPermanent, r.cfg.DataDir)
		klog.Errorf("%v", r.stateErr)
		r.state = nil
		return nil
	}
	old, now := r.state.Nodes[i], r.cfg.Self
	if slices.Equal(old.PeerURLs, now.PeerURLs) && slices.Equal(old.ClientURLs, now.ClientURLs) &&
		slices.Equal(old.QuarantinedClientURLs, now.QuarantinedClientURLs) && old.TLS == now.TLS {
		return nil
	}
	klog.Infof("this node's URLs are now peer %v, client %v (before: %v, %v)", now.PeerURLs, now.ClientURLs, old.PeerURLs, old.ClientURLs)
	r.state.Nodes[i] = now.Clone()
	return writeState(r.l.state(), r.state)
}

// holding tells whether etcd is kept stopped for a restore.
func (r *records) holding() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.held()
}

// held is holding for who holds mu.
func (r *records) held() bool { return r.j.Operation != nil && r.j.Operation.Phase.held() }

// op is a copy of the journal's operation, nil if there is none. Where nothing ran before, a switch that was cut between state file
// and journal is seen here: the state file is the one that counts. mu is held.
func (r *records) op() *journalOperation {
	if r.j.Operation == nil {
		return nil
	}
	op := *r.j.Operation
	if op.Phase == phaseStaged && r.state != nil && r.state.Token == op.Token {
		op.Phase = phaseSwitched
	}
	return &op
}

// operation is op for who doesn't hold mu.
func (r *records) operation() *journalOperation {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.op()
}

// setJournal writes the journal and takes it over. mu is held.
func (r *records) setJournal(j journal) error {
	if err := j.write(r.l.journal()); err != nil {
		return r.disk.name(err)
	}
	r.j = j
	return nil
}

// note writes the operation's entry into the journal. What is changed in op afterwards is nowhere before it is noted again.
func (r *records) note(op *journalOperation) error {
	if op != nil {
		c := *op
		op = &c
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	j := r.j
	j.Operation = op
	if err := r.setJournal(j); err != nil {
		return err
	}
	r.changes.note()
	return nil
}

// current is a copy of the state; nil if this node belongs to no cluster.
func (r *records) current() *cluster.EtcdState {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.Clone()
}

// journaled is a copy of the journal. What it refers to is never changed.
func (r *records) journaled() journal {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.j
}

// switching is the operation, and whether the journal itself says that it has switched.
func (r *records) switching() (op *journalOperation, noted bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	op = r.op()
	return op, op != nil && r.j.Operation.Phase == phaseSwitched
}

// setState takes over a state that was written. One that couldn't be read before doesn't count any more.
func (r *records) setState(s *cluster.EtcdState) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state, r.stateErr = s, nil
}

// leave forgets the membership of a cluster, whose state file is gone.
func (r *records) leave(token cluster.Token) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state = nil
	err := r.release(token)
	r.changes.note()
	return err
}

// takeTurn begins to change the node, unless the leadership that asked is over: the wait may have been long. Check and busy are one step, so that a
// leader that looks either sees the action or has it refused. may says at the end why the action isn't begun.
func (r *records) takeTurn(term cluster.Term, leader cluster.NodeID, what string, may func() error) error {
	if err := r.fenced(term, leader); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.obeyLocked(term, leader); err != nil {
		return err
	}
	if err := may(); err != nil {
		return err
	}
	r.busy = what
	return nil
}

// endTurn says that nothing changes the node any more.
func (r *records) endTurn() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.busy = ""
}

// describe fills in what is written down, and has the rest filled in while no action begins or ends.
func (r *records) describe(s *cluster.NodeStatus, rest func(state *cluster.EtcdState, settings cluster.Settings)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.Term, s.State, s.Holding, s.Busy, s.Settings, s.Stopped = r.j.Term, r.state.Clone(), r.held(), r.busy, maps.Clone(r.j.Settings), r.j.Stopped
	if r.stateErr != nil {
		s.StateError = r.stateErr.Error()
	}
	if r.state != nil {
		s.DataPresent = r.l.hasMember(r.state.Token)
	}
	if op := r.op(); op != nil {
		s.Operation = string(op.ID)
		if op.Phase.held() || op.Phase.switched() {
			s.OperationRecord = slices.Clone(op.Record)
		}
		if op.Token != "" && (op.Phase == phaseStaged || op.Phase.held() || op.Phase.switched()) {
			s.Staged = []cluster.StagedDir{{
				Operation: string(op.ID), Token: op.Token, Revision: op.Revision, Hash: op.Hash, SizeBytes: op.SizeBytes,
				Switched: op.Phase.switched(), Halted: op.Phase == phaseHalted, Written: op.Written,
			}}
		}
	}
	rest(r.state, r.j.Settings)
}

// noteStop journals that the end of the manager stops etcd, so that a restore for which managers are restarted can say how long nobody was served.
func (r *records) noteStop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ending = true
	if r.j.Stopped != nil && r.j.Stopped.Served.IsZero() {
		return // it hasn't served since the last time
	}
	j := r.j
	j.Stopped = &cluster.Stop{At: time.Now()}
	if err := r.setJournal(j); err != nil {
		klog.Warningf("how long etcd is stopped won't be known: %v", err)
	}
}

// noteServes journals that etcd serves again.
func (r *records) noteServes() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ending || r.j.Stopped == nil || !r.j.Stopped.Served.IsZero() {
		return
	}
	j := r.j
	j.Stopped = &cluster.Stop{At: r.j.Stopped.At, Served: time.Now()}
	if err := r.setJournal(j); err != nil {
		r.said.Errorf("journal", "%v", r.disk.name(err))
		r.j.Stopped = j.Stopped // what is on the disk is told again after a restart
	}
}
