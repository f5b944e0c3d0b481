package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
	"github.com/etcd-manager/etcd-manager/pkg/pki"
	"github.com/etcd-manager/etcd-manager/pkg/repeat"
)

// Config is what an agent needs. Everything is validated by New.
type Config struct {
	ClusterName string
	// Instance changes with every start of the process.
	Instance string
	// DataDir is the directory with the state file; it exists.
	DataDir string
	// Self is this node as a member: its name is the node id, its URLs are how others reach it.
	Self cluster.EtcdNode
	// Address is the node's own IP address, for certificates.
	Address string
	// ListenAddress is the IP address on which etcd listens, for example 0.0.0.0 or ::.
	ListenAddress string
	// MetricsURLs are passed to etcd.
	MetricsURLs []string
	// EtcdEnv are the user's ETCD_ variables; they win over what the manager sets.
	EtcdEnv  map[string]string
	Binaries *process.Binaries
	// Certificates is nil when etcd speaks without TLS.
	Certificates *pki.Keeper
	Catalog      *catalog.Catalog
	// Executable is this program, for checking databases in a process of their own.
	Executable string
	// Stdout and Stderr are inherited by etcd. They must stay open when the manager dies.
	Stdout, Stderr *os.File
	// KeepTrash is how many data dirs stay in the trash can (default 3), TrashAge how long (default 7 days). None goes before there is a newer
	// backup in the store.
	KeepTrash int
	TrashAge  time.Duration
	// StopGrace is how long etcd gets between SIGTERM and SIGKILL; what it takes to write its database comes on top.
	StopGrace time.Duration
	// Version is the manager's.
	Version string
	// Compression is that of backups; empty is gzip.
	Compression string
	// Direct is the node's own store, never one that is reached through another node, and StoreName what the operator calls it. Without it the node
	// can't tell a leader whether both have the same one.
	Direct    *catalog.Catalog
	StoreName string
	// Fence, if not nil, says from what this node knows of elections why a leadership is over: an error that wraps cluster.ErrLowerTerm. It is asked
	// before a request is obeyed and again before it changes anything. It may be called concurrently and must not block.
	Fence func(term cluster.Term, leader cluster.NodeID) error
	// Ready, if not nil, is asked before each start of etcd and before each action whether the data dir is still what it was when the manager
	// started: a directory whose volume was unmounted is not. It is called concurrently and must not block.
	Ready func() error
	// Endings, if not nil, lists CAs and certificates of this node for the status in the store. It must not block.
	Endings func() []cluster.Ending
	// Release, if not nil, begins to give a data volume up: the agent is stopped soon after. It must not block.
	Release func(cluster.VolumeRelease) error
}

// Agent keeps one etcd running as the state file says. All exported methods may be called concurrently.
type Agent struct {
	cfg    Config
	l      layout
	writer *backup.Writer
	lock   *os.File

	// The parts guard themselves. They may be used under mu, and use nothing of the agent's.
	etcd      *supervisor
	restorer  *restorer
	salvager  *salvager
	records   *records
	changes   *changes
	disk      *disk
	trash     *trashCan
	versions  *versions
	verifier  *verifier
	volume    *volumeRelease
	summaries summaries

	// one is held while an action changes the node: one at a time.
	one chan struct{}

	mu     sync.Mutex      // guards what follows; never held during input or output
	runCtx context.Context // of Run; what an action outlives its caller with
	tasks  map[string]*task
	// nameProblem says why members' names don't resolve here as they should.
	nameProblem string

	// said bounds what is logged of what fails again and again.
	said repeat.Limiter
}

// New opens the data dir and reads what is there. It starts nothing. The error wraps cluster.ErrOtherCluster,
// cluster.ErrCorrupt or cluster.ErrFuture where the data dir can't be used.
func New(cfg Config) (*Agent, error) {
	switch {
	case cfg.ClusterName == "":
		return nil, errors.New("node: no cluster name")
	case cfg.Self.Name == "":
		return nil, errors.New("node: no node id")
	case cfg.DataDir == "":
		return nil, errors.New("node: no data dir")
	case len(cfg.Self.PeerURLs) == 0 || len(cfg.Self.ClientURLs) == 0 || len(cfg.Self.QuarantinedClientURLs) == 0:
		return nil, errors.New("node: peer, client and quarantined client URLs are needed")
	case cfg.Self.TLS && cfg.Certificates == nil:
		return nil, errors.New("node: etcd is to speak TLS, but there are no CAs")
	}
	if cfg.KeepTrash == 0 {
		cfg.KeepTrash = defaultKeepTrash
	}
	if cfg.TrashAge == 0 {
		cfg.TrashAge = defaultTrashAge
	}
	if cfg.StopGrace == 0 {
		cfg.StopGrace = 20 * time.Second
	}
	a := &Agent{
		cfg: cfg, l: layout(cfg.DataDir), one: make(chan struct{}, 1), changes: newChanges(), tasks: map[string]*task{},
	}
	a.disk = &disk{cfg: &a.cfg, l: a.l, changes: a.changes}
	a.trash = &trashCan{cfg: &a.cfg, l: a.l, disk: a.disk, changes: a.changes, turn: a.one, operation: func() *journalOperation { return a.records.operation() }, kicked: make(chan struct{}, 1)}
	a.disk.short = a.trash.kick
	a.records = &records{cfg: &a.cfg, l: a.l, disk: a.disk, trash: a.trash, changes: a.changes, said: &a.said}
	a.etcd = &supervisor{
		cfg: &a.cfg, l: a.l, records: a.records, disk: a.disk, changes: a.changes, said: &a.said, kick: make(chan struct{}, 1), badSince: time.Now(),
	}
	a.records.joined = a.etcd.joined
	a.versions = &versions{cfg: &a.cfg, changes: a.changes}
	a.verifier = &verifier{cfg: &a.cfg, l: a.l, disk: a.disk, operation: func() *journalOperation { return a.records.operation() }, loadavg: "/proc/loadavg"}
	a.volume = &volumeRelease{cfg: &a.cfg, changes: a.changes}
	a.restorer = &restorer{cfg: &a.cfg, l: a.l, etcd: a.etcd, records: a.records, disk: a.disk, trash: a.trash, verifier: a.verifier}
	if cfg.Catalog != nil {
		a.writer = backup.NewWriter(cfg.Catalog, backup.Options{ToolVersion: cfg.Version, Compression: cfg.Compression})
	}
	a.salvager = &salvager{cfg: &a.cfg, l: a.l, etcd: a.etcd, restorer: a.restorer, records: a.records, disk: a.disk, trash: a.trash,
		writer: a.writer, inTurn: a.inTurn}
	if err := os.MkdirAll(a.l.own(), 0o700); err != nil {
		return nil, fmt.Errorf("open data dir: %w", err)
	}
	lock, err := lockDataDir(a.l.lock())
	if err != nil {
		return nil, err
	}
	a.lock = lock
	if err := a.records.load(); err != nil {
		lock.Close()
		return nil, err
	}
	return a, nil
}

func nodeNames(nodes []cluster.EtcdNode) []string {
	var list []string
	for _, n := range nodes {
		list = append(list, n.Name)
	}
	return list
}

// Run keeps etcd as it should be until ctx ends; then etcd is stopped gently and Run returns.
func (a *Agent) Run(ctx context.Context) error {
	a.mu.Lock()
	a.runCtx = ctx
	a.mu.Unlock()
	defer a.lock.Close()
	if err := a.etcd.reattach(ctx); err != nil {
		return err
	}
	var wg, aside sync.WaitGroup
	wg.Go(func() { a.etcd.supervise(ctx) })
	wg.Go(func() { a.etcd.watchHealth(ctx) })
	wg.Go(func() { a.etcd.watchSettings(ctx) })
	wg.Go(func() { a.etcd.watchData(ctx) })
	wg.Go(func() { a.disk.watch(ctx, a.etcd.whatRuns) })
	aside.Go(func() { a.trash.tend(ctx) }) // etcd isn't kept waiting for it
	defer aside.Wait()
	wg.Wait()
	a.waitTasks()
	a.etcd.procMu.Lock()
	defer a.etcd.procMu.Unlock()
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.disk.stopGrace()+10*time.Second)
	defer cancel()
	if _, pid := a.etcd.whatRuns(); pid != 0 {
		a.records.noteStop()
	}
	return a.etcd.stopLocked(stop, "the manager ends", stopServing)
}

// Changed returns a channel that is closed at the next change of what the leader acts on, and the number of changes so far.
func (a *Agent) Changed() (<-chan struct{}, uint64) {
	return a.changes.next()
}

// Status tells what is the case at this moment; etcd is asked if the last answer is older than a quarter of a second.
func (a *Agent) Status(ctx context.Context) cluster.NodeStatus {
	a.etcd.probe(ctx, 250*time.Millisecond)
	s := cluster.NodeStatus{
		ID: cluster.NodeID(a.cfg.Self.Name), Instance: a.cfg.Instance, Self: a.cfg.Self.Clone(), Versions: a.versions.known(),
		Manager: a.cfg.Version, Clock: time.Now(),
	}
	if a.cfg.Endings != nil {
		s.Endings = a.cfg.Endings()
	}
	a.records.describe(&s, func(state *cluster.EtcdState, settings cluster.Settings) {
		seen := a.disk.last()
		s.DiskFree, s.DiskTotal, s.Trash = seen.free, seen.total, a.trash.list()
		ready, releasing := a.volume.status()
		s.Release, s.Busy = ready, firstNonEmpty(s.Busy, releasing)
		s.Etcd = a.etcd.status(settings, state)
		a.mu.Lock()
		defer a.mu.Unlock()
		s.NameProblem = a.nameProblem
	})
	return s
}

// Stalled says what of this has made no progress for so long; empty if all does. While something holds a lock that looking after etcd
// needs, it doesn't return: that is for a watchdog. Starting and stopping etcd take what they take, and aren't judged.
func (a *Agent) Stalled(patience time.Duration) string {
	a.etcd.mu.Lock()
	defer a.etcd.mu.Unlock()
	if !a.etcd.looked.IsZero() && time.Since(a.etcd.looked) > patience {
		return "looking after etcd stands still"
	}
	return ""
}

// SetNameProblem says why members' names don't resolve on this node as they should, or that they do. The leader hears of a change.
func (a *Agent) SetNameProblem(problem string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.nameProblem != problem {
		a.nameProblem = problem
		a.changes.note()
	}
}

func firstNonEmpty(list ...string) string {
	for _, s := range list {
		if s != "" {
			return s
		}
	}
	return ""
}

// Members are the members in the state file; nil if this node belongs to no cluster.
func (a *Agent) Members() []cluster.EtcdNode {
	if s := a.records.current(); s != nil {
		return s.Nodes
	}
	return nil
}

// LastStatus is the last that was heard of the own etcd; nothing is asked.
func (a *Agent) LastStatus() cluster.EtcdStatus {
	return a.etcd.status(a.records.journaled().Settings, nil)
}
