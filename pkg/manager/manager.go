// Package manager is the leader's loop: observe, plan, act.
//
// It runs on every node, but only the elected leader acts. Decisions are made in pkg/plan; what
// changes a node is done by that node's agent. The package itself must never decide: it gathers
// plain data, hands it over, and carries out the one action that comes back, after the independent
// safety check has let it pass.
//
// One term of leading is a leadership: the loop, and parts that it looks and acts through. Each part
// says what it remembers and what guards that.
//
//   - what is seen: observer, etcdClients, prober, witnesses, storeView, marker, leaderRecord
//   - what is done: nodes (every request to a node), maintenance, restorer, backups, demands, ending
//   - what runs beside the loop: changes, copies, proofs, retention, cleaner
//   - what is remembered of operations: operations; of what failed: attempts
package manager

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/peer"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	"github.com/etcd-manager/etcd-manager/pkg/prune"
	"github.com/etcd-manager/etcd-manager/pkg/repeat"
)

// Peers is what the loop needs of the other managers; *peer.Peers has it.
type Peers interface {
	// Peers lists the others; Conn connects to any node, this one included. Both may be called concurrently.
	Peers() []peer.Peer
	Conn(cluster.NodeID) (grpc.ClientConnInterface, error)
	// Leader is the leader as far as it is known, else "", and the highest term seen.
	Leader() (cluster.NodeID, cluster.Term)
	// Leads tells whether this node holds the lease of that term at this moment, also right after the process was held up.
	Leads(cluster.Term) bool
	// Addresses are the IP addresses of a node, this one included; none if they aren't known.
	Addresses(cluster.NodeID) []string
	// Forget has all managers forget a node that is gone for good.
	Forget(cluster.NodeID)
	// Changed is closed at the next change of Peers or Leader.
	Changed() <-chan struct{}
	// Exceed ends a leadership that the store, or a node, knows a higher term than.
	Exceed(cluster.Term)
	// SetWanted tells how many members are wanted, of which a majority elects.
	SetWanted(int)
}

// Config is what a Manager needs.
type Config struct {
	ClusterName string
	Self        cluster.NodeID
	Instance    string
	Peers       Peers
	Catalog     *catalog.Catalog
	Policy      model.Policy
	Retention   prune.Policy
	// Probe tries the store; it is called at start until it succeeds. fences says that conditional puts are honored.
	Probe func(ctx context.Context) (fences bool, err error)
	// Spec, if not nil, is a static configuration; spec and commands of the store are then not read.
	Spec *cluster.Spec
	// MayCreate is asked before a cluster is formed; nil means yes.
	MayCreate func() bool
	// Created is called when a cluster was formed; may be nil.
	Created func()
	// ClientTLS gives the configuration for a client of etcd on these hosts; nil if etcd speaks without TLS.
	ClientTLS func(hosts ...string) *tls.Config
	// Dial connects to the member of etcd at these endpoints without asking it anything yet; nil is the real one.
	Dial func(endpoints []string, tlsConf *tls.Config) (Member, error)
	// Poll is how often an idle leader lists control/ in the store.
	Poll time.Duration
	// DropPrefixes are keys that a restore leaves out.
	DropPrefixes []string
	// Changes says how the changes between backups are kept.
	Changes Changes
	// Copies are further stores to which the leader copies what a restore needs.
	Copies []StoreCopy
	// VerifyInterval is how often the newest backup is proven; 0 means never.
	VerifyInterval time.Duration
	// StoreName is the store in the operator's words, and Witnesses how patiently other nodes are asked whether they have the same one.
	StoreName string
	Witnesses Witnesses
	// Etcd is what was last heard of this node's etcd, Told what a leader has last sent to this node and when, and Local what this
	// node needs a person for beside that. Each returns at once and may be nil.
	Etcd  func() cluster.EtcdStatus
	Told  func() ([]byte, time.Time)
	Local func() []cluster.Attention
	// Tell gets each event at once, beside the store, for whoever is to be told; it returns at once and may be nil.
	Tell func(catalog.Event)
	// Queued are the commands that this process found when it read the queue for the first time, if it has had a Manager before (for a
	// volume that it gave up); nil if this Manager is its first. A command that came in between waits for the next start of a manager.
	Queued []string
	// Node says how this node is, for its status in the store. It may ask etcd; nil if only a leader shows one.
	Node func(context.Context) cluster.NodeStatus
	// Tuner changes some of this while the Manager runs; nil if nobody does.
	Tuner *Tuner
	// StoreHangs says what this node has asked of the store without an answer, and for how long; empty if nothing. May be nil.
	StoreHangs func() string
}

// Manager is the loop of one process. Run reads the queue; Lead is called for each leadership.
type Manager struct {
	cfg    Config
	events *eventLog

	mu     sync.Mutex
	report Report
	recent []Event
	// recorder keeps the changes, nil if none does; what it says of itself is as fresh as it gets.
	recorder *changelog.Recorder
	proof    ProofReport
	// copiers copy the store while this process leads.
	copiers copiers
	// first are the commands that were queued when this process read the queue for the first time; nil before that.
	first map[string]bool
	// probeErr says why nothing is known of the store yet; fences is what was found.
	probeErr string
	fences   bool
	// storeErr and specErr are what the last reading of the spec has found; wanted is the member count that was read last.
	storeErr, specErr string
	wanted            int
	// attention is since when each has held, doing what the node was doing when that was last looked at.
	attention  map[attentionKey]time.Time
	doing      string
	doingSince time.Time
	// holder is the stamp of the leader record that this process saw last, and since when.
	holder     string
	holderFrom time.Time
	// counted is only touched by the goroutine of the leadership of the moment that counts.
	counted backupCount
	// wake pokes the leadership of the moment, if there is one.
	wake func()
	// looked is when keepOutlook came round last; zero before it has begun. acting is true while the leader carries out an action, which
	// has a time limit of its own.
	looked time.Time
	round  time.Time // when the leader's loop came round last; zero while this process doesn't lead
	acting bool
	// shownAt is when this process, as the leader, last stored what it knows with its leader record.
	shownAt time.Time
}

// Report is what the loop says of itself, for status page and metrics.
type Report struct {
	// Leading is true while this process leads.
	Leading bool
	Term    cluster.Term
	// Why is the last decision's sentence, Alarm whether a person is needed.
	Why   string
	Alarm bool
	At    time.Time
	// Attention is all that a person is needed for, as the leader sees it.
	Attention []cluster.Attention
	// Nodes are as of the last observation, by id.
	Nodes   []cluster.NodeStatus
	Missing []model.MissingNode
	// Spec is nil if none is known.
	Spec *cluster.Spec
	// StoreError is empty if the store answers.
	StoreError string
	// Commands wait for something; Operation is under way.
	Commands  []model.Command
	Operation *model.Operation
	// NewestBackup is zero if there is none; BackupError says why the last attempt failed.
	NewestBackup  time.Time
	BackupRunning string
	BackupError   string
	Backups       int
	// CreateBackups are the queued backups. PruneDenied says why the store lets nothing be deleted, PruneLocked how many objects it has
	// under lock.
	CreateBackups []model.CreateBackup
	// Releases says why nodes that are ready to give their data volumes up keep them still.
	Releases    map[cluster.NodeID]string
	PruneDenied string
	PruneLocked int
	// Proof is what the last proof of a backup has found.
	Proof ProofReport
	// Changes is nil if no changes are kept at the moment.
	Changes *changelog.Status
	// Copies are how the copies of the store do.
	Copies []catalog.CopyReport
	// Recent are the last decisions of this process, oldest first.
	Recent []Event
}

// Event is a decision and when it was made.
type Event struct {
	At   time.Time
	Text string
}

// recentEvents is how many decisions are remembered.
const recentEvents = 12

// New returns a manager. It starts nothing.
func New(cfg Config) (*Manager, error) {
	switch {
	case cfg.ClusterName == "" || cfg.Self == "" || cfg.Instance == "":
		return nil, errors.New("manager: cluster name, node id and instance are needed")
	case cfg.Peers == nil || cfg.Catalog == nil:
		return nil, errors.New("manager: peers and catalog are needed")
	case cfg.Policy.BackupInterval <= 0:
		return nil, fmt.Errorf("manager: the backup interval must be positive, not %s", cfg.Policy.BackupInterval)
	}
	if cfg.Poll <= 0 {
		cfg.Poll = 30 * time.Second
	}
	cfg.Witnesses.Unseen = cmp.Or(cfg.Witnesses.Unseen, 70*time.Second)
	cfg.Witnesses.Unheeded = cmp.Or(cfg.Witnesses.Unheeded, 5*time.Second)
	if cfg.Probe == nil {
		return nil, errors.New("manager: no probe of the store")
	}
	m := &Manager{cfg: cfg, events: newEventLog(cfg), probeErr: "the store is being probed", wake: func() {}, attention: map[attentionKey]time.Time{}}
	m.cfg.Tuner.begin(cfg, func() {
		m.mu.Lock()
		wake := m.wake
		m.mu.Unlock()
		wake()
	})
	if cfg.Queued != nil {
		m.first = map[string]bool{}
		for _, name := range cfg.Queued {
			m.first[name] = true
		}
	}
	return m, nil
}

// Report returns the newest report.
func (m *Manager) Report() Report {
	copies := m.copiers.reports(m.cfg.Copies)
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.report
	r.Proof = m.proof
	if m.recorder != nil && r.Leading {
		s := m.recorder.Status()
		r.Changes = &s
	}
	if r.Leading {
		r.Copies = copies
	}
	r.Recent = slices.Clone(m.recent)
	return r
}

// Stalled says what of this has made no progress for so long; empty if all does. A leader that carries out an action isn't judged: how
// long that may take depends on the size of the database. While something holds the lock, it doesn't return: that is for a watchdog.
func (m *Manager) Stalled(patience time.Duration) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case !m.looked.IsZero() && time.Since(m.looked) > patience:
		return "the manager's look at itself stands still"
	case !m.round.IsZero() && !m.acting && time.Since(m.round) > patience:
		return "the leader's loop stands still"
	}
	return ""
}

// remember adds a decision to the recent ones.
func (m *Manager) remember(text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.recent = append(m.recent, Event{At: time.Now(), Text: text})
	if len(m.recent) > recentEvents {
		m.recent = m.recent[1:]
	}
}

// followerPoll is how often a node that doesn't lead reads the spec; leaderlessPoll how often one does that knows no leader.
const (
	followerPoll   = 10 * time.Minute
	leaderlessPoll = time.Minute
)

// Run probes the store and reads the queue for the first time, so that it is known which commands were there before this process, and
// then follows the spec, by which elections know what a majority is. It returns when ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	if m.cfg.Spec != nil {
		m.setWanted(m.cfg.Spec.MemberCount)
		m.setFirst(nil)
	}
	var wg sync.WaitGroup
	wg.Go(func() { retry(ctx, "the backup store can't be used", once, m.probe) })
	if m.cfg.Spec == nil {
		wg.Go(func() { retry(ctx, "waiting for the cluster spec", m.specPoll, m.readFirst) })
	}
	wg.Go(func() { m.keepOutlook(ctx) })
	wg.Go(func() { m.events.run(ctx) })
	if m.cfg.Node != nil {
		wg.Go(func() { m.keepStatus(ctx) })
	}
	wg.Wait()
	return nil
}

// specPoll is how long a node waits until it reads the spec again.
func (m *Manager) specPoll() time.Duration {
	if leader, _ := m.cfg.Peers.Leader(); leader == "" {
		return leaderlessPoll
	}
	return followerPoll
}

// setWanted notes how many members are wanted, of which a majority elects.
func (m *Manager) setWanted(n int) {
	m.mu.Lock()
	m.wanted = n
	m.mu.Unlock()
	m.cfg.Peers.SetWanted(n)
}

// once is the poll of what is done when it has succeeded.
func once() time.Duration { return 0 }

// retry calls f until it succeeds, and then again every so often if poll isn't 0. What fails is logged when it is news.
func retry(ctx context.Context, what string, poll func() time.Duration, f func(context.Context) error) {
	const first, last = 250 * time.Millisecond, 10 * time.Second
	delay, said := first, repeat.Limiter{}
	for {
		err := f(ctx)
		again := poll()
		wait := again
		switch {
		case ctx.Err() != nil:
			return
		case err == nil && again == 0:
			return
		case err == nil:
			delay = first
		default:
			wait, delay = delay, min(2*delay, last)
			said.Warningf(what, "%s: %v", what, err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// probe finds out what the store can do.
func (m *Manager) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	fences, err := m.cfg.Probe(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		m.probeErr = err.Error()
		return err
	}
	m.probeErr, m.fences = "", fences
	if !fences {
		klog.Warningf("the backup store ignores conditional puts: no cluster is formed and nothing is restored unless " +
			"--allow-unfenced-store is given")
	}
	m.wake()
	return nil
}

// probed is what is known of the store.
func (m *Manager) probed() (fences bool, problem string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fences, m.probeErr
}

// readFirst reads queue and spec.
func (m *Manager) readFirst(ctx context.Context) error {
	err := m.readSpecAndQueue(ctx)
	if ctx.Err() == nil {
		m.noteStore(err)
	}
	return err
}

func (m *Manager) readSpecAndQueue(ctx context.Context) error {
	l, err := m.cfg.Catalog.ControlListing(ctx)
	if err != nil {
		return err
	}
	m.setFirst(l.Commands)
	if m.Report().Leading {
		return nil // the loop reads the spec by itself
	}
	spec, _, err := m.cfg.Catalog.Spec(ctx)
	if errors.Is(err, catalog.ErrNotFound) {
		return &specError{"nobody has said how many members are wanted; run: " + m.sizeCommand()}
	}
	if err != nil {
		return err
	}
	if !cluster.ValidMemberCount(spec.MemberCount) {
		return &specError{fmt.Sprintf("the spec asks for %d members; only 1, 3, 5, 7 or 9 are formed; run: %s",
			spec.MemberCount, m.sizeCommand())}
	}
	m.setWanted(spec.MemberCount)
	return nil
}

// setFirst remembers the queue as it was first read.
func (m *Manager) setFirst(queue []catalog.Object) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.first != nil {
		return
	}
	m.first = map[string]bool{}
	for _, c := range queue {
		m.first[c.Name] = true
	}
}

// Queued returns the commands that were in the queue when this process read it for the first time; nil if it hasn't been read yet. It
// may be called at any time.
func (m *Manager) Queued() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.first == nil {
		return nil
	}
	return append([]string{}, slices.Sorted(maps.Keys(m.first))...)
}

// holderSince remembers over leaderships since when the store's leader record is the same. age tells of the time before this process;
// it is only asked when the record is seen for the first time.
func (m *Manager) holderSince(stamp string, age func() time.Duration) time.Time {
	m.mu.Lock()
	known, same, from := !m.holderFrom.IsZero(), m.holder == stamp, m.holderFrom
	m.mu.Unlock()
	if known && same {
		return from
	}
	from = time.Now()
	if !known {
		from = from.Add(-age())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.holder, m.holderFrom = stamp, from
	return from
}

// wasQueued tells whether a command was there in the first reading.
func (m *Manager) wasQueued(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.first[name]
}

// Lead is the loop of one leadership; it returns when ctx ends.
func (m *Manager) Lead(ctx context.Context, term cluster.Term) {
	klog.Infof("this node leads the cluster, term %d", term)
	last, _ := m.told()
	m.events.led(term, catalog.EventBegun, fmt.Sprintf("node %s leads the cluster, term %d", m.cfg.Self, term), last)
	l := newLeadership(m, term)
	m.mu.Lock()
	m.wake = l.poke
	m.mu.Unlock()
	l.run(ctx)
	m.mu.Lock()
	m.report.Leading, m.report.At, m.wake, m.round = false, time.Time{}, func() {}, time.Time{}
	m.mu.Unlock()
	m.noted(scopeLeader, nil)
	m.remember(fmt.Sprintf("leadership of term %d is over: %v", term, context.Cause(ctx)))
	m.events.led(term, catalog.EventDone, fmt.Sprintf("leadership of term %d is over: %v", term, context.Cause(ctx)), nil)
	klog.Infof("leadership of term %d is over: %v", term, context.Cause(ctx))
}
