package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/election"
	"github.com/etcd-manager/etcd-manager/pkg/manager"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// disk is what survives a crash. Each file is replaced as a whole and synced, as pkg/atomicfile does;
// between two files anything can happen.
type disk struct {
	vote election.Hard
	// The journal.
	term              cluster.Term
	leader            cluster.NodeID
	op                *journalOp
	mayBeEmpty, begun cluster.Token
	settings          cluster.Settings
	// The state file.
	state *cluster.EtcdState
	dirs  map[cluster.Token]*dir
	trash []trashed
	// careless is a bug: what is held for a restore is forgotten.
	careless bool
}

type trashed struct {
	token cluster.Token
	dir   *dir
	at    time.Time
	size  int
}

// node is one machine.
type node struct {
	w      *world
	id     cluster.NodeID
	disk   disk
	up     bool
	proc   *proc
	cutOff bool // from the store
	rate   float64
	n      int // starts of its manager

	etcd     *etcdProc
	lastExit string
	exitAt   time.Time
	restarts int
	wellAt   time.Time // when etcd was last healthy, or began anew to be missed
	// stopped is true from the moment in which a leader had a healthy etcd stopped until it is healthy again.
	stopped bool
	seenAt  time.Time // when nothing kept it out of sight
	wiped   time.Time
}

func newNode(w *world, id cluster.NodeID) *node {
	return &node{w: w, id: id, up: true, disk: disk{dirs: map[cluster.Token]*dir{}}, rate: 0.97 + float64(w.draw(61, "rate", string(id)))/1000,
		wellAt: time.Now(), seenAt: time.Now()}
}

func (n *node) self() cluster.EtcdNode { return selfOf(string(n.id)) }

func selfOf(id string) cluster.EtcdNode {
	return cluster.EtcdNode{Name: id, PeerURLs: []string{"http://" + id + ":2380"}, ClientURLs: []string{"http://" + id + ":2379"},
		QuarantinedClientURLs: []string{"http://" + id + ":3994"}}
}

func (n *node) dir() *dir {
	switch {
	case n.etcd != nil:
		return n.disk.dirs[n.etcd.token]
	case n.disk.state != nil:
		return n.disk.dirs[n.disk.state.Token]
	}
	return nil
}

func (n *node) has(t cluster.Token) bool { d := n.disk.dirs[t]; return d != nil && d.made }

// changed wakes whoever watches this node.
func (n *node) changed() {
	if n.proc != nil {
		close(n.proc.watch)
		n.proc.watch = make(chan struct{})
	}
}

var (
	errDead = errors.New("the process has been killed")
	errGone = errors.New("connection refused")
)

// proc is a manager's process.
type proc struct {
	n        *node
	instance string
	ctx      context.Context //nolint:containedctx // the life of a process
	cancel   context.CancelFunc
	dead     bool
	// killIn is after how many more steps the process is killed; 0 is never.
	killIn int
	paused time.Time // until then it stands still

	mgr     *manager.Manager
	machine *election.Machine
	wanted  int
	owed    int
	known   chan struct{} // closed when peers or the leader change
	watch   chan struct{} // closed when the node changes
	granted cluster.Term
	revoke  context.CancelCauseFunc
	wake    chan struct{}

	one     chan struct{}
	tasks   map[string]*task
	heeded  leadership
	busy    string
	pausing string // why etcd isn't started for the moment
	sent    map[cluster.NodeID]int
}

type leadership struct {
	term   cluster.Term
	leader cluster.NodeID
}

var versions = []string{"3.5.29", "3.6.16"}

// begin starts a manager. mu is held.
func (n *node) begin() {
	if !n.up || n.proc != nil {
		return
	}
	w := n.w
	n.n++
	p := &proc{n: n, instance: fmt.Sprintf("%s-%d", n.id, n.n),
		known: make(chan struct{}), watch: make(chan struct{}), wake: make(chan struct{}, 1),
		one: make(chan struct{}, 1), tasks: map[string]*task{}, sent: map[cluster.NodeID]int{}}
	p.ctx, p.cancel = context.WithCancel(w.t.Context())
	n.proc = p
	w.log("%s: manager starts", n.id)
	m, err := election.New(election.Config{Self: n.id, Peers: w.ids(), HeartbeatTicks: heartbeatTicks, LeaseTicks: leaseTicks,
		ElectionTicks: electionTicks, Rand: func(k int) int { return int(w.draw(int64(k), "election", string(n.id))) }}, n.disk.vote)
	if err != nil {
		w.fail("%s: %v", n.id, err)
		return
	}
	p.machine = m
	n.disk.careless = w.bug.is("restart-not-held")
	policy := model.DefaultPolicy(versions[0])
	policy.BackupInterval = 3 * time.Minute
	p.mgr, err = manager.New(manager.Config{ClusterName: "sim", Self: n.id, Instance: p.instance, Peers: p,
		Catalog: catalog.New(&store{p: p}), Policy: policy, Dial: p.dial,
		Probe: func(ctx context.Context) (bool, error) {
			_, err := catalog.New(&store{p: p}).ControlListing(ctx)
			return true, err
		}})
	if err != nil {
		w.fail("%s: %v", n.id, err)
		return
	}
	go func() { _ = p.mgr.Run(p.ctx) }()
	go p.elect()
	go p.leads()
	go p.supervise()
	w.others(n)
}

// others tells all managers that those that they reach may have changed. mu is held.
func (w *world) others(*node) {
	for _, x := range w.nodes {
		if x.proc != nil {
			x.proc.noteKnown()
		}
	}
}

func (p *proc) noteKnown() {
	close(p.known)
	p.known = make(chan struct{})
}

// kill ends a manager's process wherever it is. mu is held.
func (n *node) kill(why string) {
	p := n.proc
	if p == nil {
		return
	}
	n.w.log("%s: manager dies (%s)", n.id, why)
	n.w.did["manager killed"]++
	p.dead = true
	p.cancel()
	n.proc = nil
	n.w.others(n)
}

// step is called right before anything that is seen outside of the process, or that stays: it may stand still or die there.
func (p *proc) step() error {
	w := p.n.w
	for {
		w.mu.Lock()
		w.steps++
		if p.dead {
			w.mu.Unlock()
			return errDead
		}
		wait := time.Until(p.paused)
		if wait <= 0 {
			if p.killIn > 0 {
				if p.killIn--; p.killIn == 0 {
					p.n.kill("between two steps")
					w.mu.Unlock()
					return errDead
				}
			}
			w.mu.Unlock()
			return nil
		}
		w.mu.Unlock()
		if !sleep(p.ctx, wait) {
			return errDead
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// write changes what is on the disk, in one piece, and what follows at once from it.
func (p *proc) write(f func(d *disk)) error {
	if err := p.step(); err != nil {
		return err
	}
	w := p.n.w
	w.mu.Lock()
	d := w.drawn(2*time.Millisecond, "fsync", string(p.n.id))
	w.mu.Unlock()
	if !sleep(p.ctx, 300*time.Microsecond+d) {
		return errDead
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.dead {
		return errDead
	}
	f(&p.n.disk)
	p.n.changed()
	return nil
}

// supervise keeps etcd running.
func (p *proc) supervise() {
	w := p.n.w
	for {
		w.mu.Lock()
		n := p.n
		watch := p.watch
		due := !p.dead && n.etcd == nil && n.disk.state != nil && time.Since(n.exitAt) > 500*time.Millisecond && p.pausing == ""
		clear := !p.dead && n.disk.mayBeEmpty != "" && n.has(n.disk.mayBeEmpty)
		w.mu.Unlock()
		switch {
		case clear:
			if p.write(func(d *disk) { d.mayBeEmpty = "" }) != nil {
				return
			}
		case due:
			if err := p.startEtcd(false); err != nil {
				w.mu.Lock()
				n.lastExit = err.Error()
				w.mu.Unlock()
			}
		}
		select {
		case <-p.ctx.Done():
			return
		case <-watch:
		case <-time.After(700 * time.Millisecond):
		}
	}
}

// holding tells whether etcd is kept stopped for a restore.
func (d *disk) holding() bool { return d.op != nil && d.op.phase.held() && !d.careless }

// lost tells whether etcd has run under a token and its data dir is gone.
func (d *disk) lost(t cluster.Token) bool {
	x := d.dirs[t]
	switch {
	case x != nil && x.made:
		return false
	case d.mayBeEmpty != t:
		return d.begun == t
	}
	return d.begun == t && x == nil
}

// startEtcd makes etcd run in the state of the state file.
func (p *proc) startEtcd(restart bool) error {
	w, n := p.n.w, p.n
	w.mu.Lock()
	s, d := n.disk.state.Clone(), &n.disk
	if s == nil || d.holding() || p.pausing != "" || n.etcd != nil && !restart {
		w.mu.Unlock()
		return nil
	}
	if n.etcd == nil && !w.bug.is("empty-restart") && (d.lost(s.Token) || d.mayBeEmpty != s.Token && !n.has(s.Token)) {
		w.mu.Unlock()
		return fmt.Errorf("data dir is gone: %w", cluster.ErrPermanent)
	}
	if n.etcd != nil && n.etcd.version == s.EtcdVersion && n.etcd.quarantined == s.Quarantined {
		w.mu.Unlock()
		return nil
	}
	first := !n.has(s.Token)
	w.mu.Unlock()
	if n.etcd != nil {
		if err := p.stopEtcd("its settings change"); err != nil {
			return err
		}
	}
	if first {
		if err := p.write(func(d *disk) {
			if d.dirs[s.Token] == nil {
				d.dirs[s.Token] = &dir{}
			}
		}); err != nil {
			return err
		}
		if err := p.write(func(d *disk) { d.begun = s.Token }); err != nil {
			return err
		}
	}
	if err := p.step(); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if n.etcd != nil || !n.up || p.dead {
		return nil
	}
	w.launch(n, s)
	return nil
}

// launch starts etcd's process. mu is held.
func (w *world) launch(n *node, s *cluster.EtcdState) {
	if w.bug.is("open-founder") && s.Quarantined {
		s = s.Clone()
		s.Quarantined = false
	}
	load := 200*time.Millisecond + w.drawn(time.Second, "load", string(n.id))
	if w.faulty && w.draw(12, "slow load", string(n.id)) == 0 {
		load += w.drawn(20*time.Second, "slow load", string(n.id))
	}
	now := time.Now()
	n.etcd = &etcdProc{token: s.Token, as: s, version: s.EtcdVersion, quarantined: s.Quarantined,
		started: now, ready: now.Add(load), joined: now}
	w.truth.started(n)
	w.log("%s: etcd %s starts in cluster %s quarantined=%v", n.id, s.EtcdVersion, w.name("T", string(s.Token)), s.Quarantined)
	n.changed()
}

// stopEtcd ends etcd's process, which takes a moment.
func (p *proc) stopEtcd(why string) error {
	if err := p.step(); err != nil {
		return err
	}
	w, n := p.n.w, p.n
	w.mu.Lock()
	d := w.drawn(300*time.Millisecond, "stop", string(n.id))
	w.mu.Unlock()
	sleep(p.ctx, d)
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.dead {
		return errDead
	}
	if n.etcd == nil {
		return nil
	}
	w.log("%s: etcd stops: %s", n.id, why)
	n.etcd, n.lastExit, n.exitAt = nil, "stopped: "+why, time.Now()
	n.changed()
	return nil
}

// status is what a node says of itself. mu is held.
func (p *proc) status() cluster.NodeStatus {
	n, w := p.n, p.n.w
	d := &n.disk
	s := cluster.NodeStatus{ID: n.id, Instance: p.instance, Self: n.self(), Term: d.term, State: d.state.Clone(), Versions: versions,
		Holding: d.holding(), DiskFree: 1 << 40, DiskTotal: 1 << 40, Settings: d.settings, Busy: p.busy, Manager: "sim", Clock: time.Now()}
	if d.state != nil {
		s.DataPresent = n.has(d.state.Token)
	}
	if op := d.opNow(); op != nil {
		s.Operation = op.id
		if op.phase.held() || op.phase.switched() {
			s.OperationRecord = op.record
		}
		if op.token != "" && (op.phase == phaseStaged || op.phase.held() || op.phase.switched()) {
			s.Staged = []cluster.StagedDir{{Operation: op.id, Token: op.token, Revision: op.revision, Hash: op.hash, SizeBytes: 1000,
				Switched: op.phase.switched(), Halted: op.phase == phaseHalted, Written: op.written}}
		}
	}
	for _, t := range slices.Backward(d.trash) {
		s.Trash = append(s.Trash, cluster.TrashEntry{Token: t.token, SizeBytes: 1000, Since: t.at, RaftTerm: uint64(t.dir.lastTerm()),
			RaftIndex: uint64(len(t.dir.log)), Members: t.size})
	}
	s.Etcd = w.etcdStatus(n)
	return s
}

// etcdStatus is what is seen of a machine's etcd. mu is held.
func (w *world) etcdStatus(n *node) cluster.EtcdStatus {
	e := n.etcd
	s := cluster.EtcdStatus{Restarts: n.restarts, UnhealthyFor: time.Since(n.wellAt), DBSize: 1000, DBSizeInUse: 900, DBQuota: 1 << 31}
	if d := n.dir(); d != nil && d.made {
		s.MemberID, s.Revision, s.RaftTerm = d.member, d.revision(), uint64(max(1, d.lastTerm()))
		s.RaftIndex, s.AppliedIndex = uint64(len(d.log)), uint64(len(d.log))
	}
	if e == nil {
		s.Error, s.MemberID = n.lastExit, 0
		return s
	}
	s.Running, s.Quarantined, s.Version, s.UpFor = true, e.quarantined, e.version, time.Since(e.started)
	if !e.answered.IsZero() {
		s.AnsweringFor = time.Since(e.answered)
	}
	if !n.runs(e.token) {
		s.MemberID, s.Error = 0, "etcd doesn't answer: it is starting"
		return s
	}
	r := w.raft(e.token)
	m := memberOf(n.dir().members(), n.dir().member)
	s.Members = slices.Clone(n.dir().members())
	switch l := w.lead(r); {
	case w.healthyIn(r, n):
		s.Healthy, s.UnhealthyFor, s.LeaderID = true, 0, l.disk.dirs[e.token].member
		s.Members = slices.Clone(l.disk.dirs[e.token].members())
		m = memberOf(s.Members, n.dir().member)
		s.RaftIndex = uint64(len(l.disk.dirs[e.token].log))
		s.ClusterVersion = fmt.Sprintf("3.%d.0", r.keeps)
	case m != nil && m.Learner:
		s.Healthy, s.UnhealthyFor, s.LeaderID = true, 0, m.ID+1 // it keeps the last leader that it has heard of
	default:
		s.Error = "etcd has no leader"
	}
	s.Learner = m != nil && m.Learner
	slices.SortFunc(s.Members, func(a, b cluster.Member) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return s
}
