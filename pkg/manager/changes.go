package manager

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// Changes says how the changes between backups are kept.
type Changes struct {
	// Interval is how long a change waits at most until it is on its way to the store; 0 keeps none.
	Interval time.Duration
	// Dir is where changes wait while the store is away.
	Dir string
	// ToolVersion goes into what is stored.
	ToolVersion string
}

// recording is the recorder of one etcd cluster; it lives as long as the leadership at most.
type recording struct {
	token    cluster.Token
	recorder *changelog.Recorder
	cancel   context.CancelFunc
	ended    chan struct{}
}

// changes keeps the changes between backups, as long as this leadership may write.
type changes struct {
	*shared
	etcd    *etcdClients
	backups *backups

	// recording is what runs now, or has run. Only the loop touches it.
	recording *recording

	mu sync.Mutex
	// serving is where etcd is asked for its changes.
	serving [][]string
}

// keep has the changes of the cluster recorded that serves. Whoever writes must hold the store's leader record, so that
// there is one: mayWrite says so.
func (cs *changes) keep(ctx context.Context, o *model.Observation, mayWrite bool) {
	if cs.m.cfg.Changes.Interval <= 0 {
		return
	}
	token, urls := servingURLs(o, cs.m.cfg.Peers.Addresses)
	if r := cs.recording; r != nil {
		select {
		case <-r.ended: // another cluster answers, or serves
			cs.recording = nil
		default:
			if token != "" && token != r.token {
				r.cancel() // it takes some seconds to store what it has; the loop hears of its end
			}
		}
	}
	if len(urls) == 0 {
		return
	}
	cs.mu.Lock()
	cs.serving = urls
	cs.mu.Unlock()
	if cs.recording == nil && o.Store.Error == "" && mayWrite {
		cs.start(ctx, token)
	}
}

// servingURLs are the client URLs of each member that is open to clients, all of one cluster: the followers first, since etcd's leader has
// the most to do.
func servingURLs(o *model.Observation, addresses func(cluster.NodeID) []string) (token cluster.Token, urls [][]string) {
	var leader []string
	for i := range o.Nodes {
		n := &o.Nodes[i]
		if !n.Etcd.Votes() || n.Etcd.Quarantined || n.State == nil || n.State.Quarantined || n.Holding {
			continue
		}
		self := n.State.Node(string(n.ID))
		if self == nil || len(self.ClientURLs) == 0 || token != "" && n.State.Token != token {
			continue
		}
		token = n.State.Token
		if n.Etcd.MemberID == n.Etcd.LeaderID {
			leader = client.MemberEndpoints(self.ClientURLs, addresses(n.ID))
			continue
		}
		urls = append(urls, client.MemberEndpoints(self.ClientURLs, addresses(n.ID)))
	}
	if leader != nil {
		urls = append(urls, leader)
	}
	return token, urls
}

func (cs *changes) start(ctx context.Context, token cluster.Token) {
	c := cs.m.cfg.Changes
	rec, err := changelog.NewRecorder(changelog.Config{
		ClusterName: cs.m.cfg.ClusterName, Node: cs.m.cfg.Self, Term: cs.term, Token: token, ToolVersion: c.ToolVersion,
		Catalog: cs.m.cfg.Catalog,
		Members: cs.servingMembers,
		Origin:  func(ctx context.Context) *catalog.Origin { return cs.origin(ctx, token) },
		Dir:     c.Dir, Interval: c.Interval, Gap: cs.backups.want,
		Made: cs.m.copiers.segment,
	})
	if err != nil {
		klog.Errorf("changes are not kept: %v", err)
		return
	}
	rctx, cancel := context.WithCancel(ctx)
	r := &recording{token: token, recorder: rec, cancel: cancel, ended: make(chan struct{})}
	cs.recording = r
	cs.m.setRecorder(rec)
	cs.wg.Go(func() {
		defer cs.poke()
		defer close(r.ended)
		defer cs.m.setRecorder(nil)
		defer cancel()
		if err := rec.Run(rctx); err != nil {
			klog.Infof("changes of cluster %s are not kept any more: %v", token, err)
		}
	})
}

func (m *Manager) setRecorder(r *changelog.Recorder) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.recorder = r
}

// servingMembers are ways to connect to the members that serve, the followers first.
func (cs *changes) servingMembers() []changelog.Dialer {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	return cs.etcd.dialers(cs.serving)
}

// origin finds the restore that a cluster came from; nil if there is none, or it can't be read.
func (cs *changes) origin(ctx context.Context, token cluster.Token) *catalog.Origin {
	ops, _, err := cs.m.cfg.Catalog.Operations(ctx)
	if err != nil {
		return nil
	}
	i := slices.IndexFunc(ops, func(op catalog.Operation) bool { return op.NewToken == token })
	if i < 0 {
		return nil
	}
	op := ops[i]
	from := catalog.Origin{Operation: op.ID, Backup: op.Backup}
	if m, err := cs.m.cfg.Catalog.Manifest(ctx, op.Backup); err == nil {
		from.Incarnation, from.Reached = catalog.IncarnationOf(uint64(m.ClusterID)), m.Revision
	}
	if op.Reached > 0 {
		from.Reached = op.Reached // the manifest's is only one that the snapshot surely has
	}
	if op.Target != nil {
		from.Incarnation, from.Reached = op.Target.Incarnation, op.Target.Revision
	}
	if op.SafetyPoint != nil {
		from.Replaced = op.SafetyPoint.Incarnation
	} else if op.SafetyBackup != "" {
		if m, err := cs.m.cfg.Catalog.Manifest(ctx, op.SafetyBackup); err == nil {
			from.Replaced = catalog.IncarnationOf(uint64(m.ClusterID))
		}
	}
	return &from
}

// recordingOf is the recording of one cluster, nil if there is none. That of a cluster that was replaced may take some seconds to end.
func (cs *changes) recordingOf(token cluster.Token) *recording {
	if r := cs.recording; r != nil && r.token == token {
		return r
	}
	return nil
}

// flush brings everything into the store that a quorum of the cluster has acknowledged.
func (cs *changes) flush(ctx context.Context, token cluster.Token) (int64, error) {
	if r := cs.recordingOf(token); r != nil {
		return r.recorder.Flush(ctx)
	}
	revision, _, err := changelog.NewestRevision(ctx, cs.servingMembers)
	if err != nil {
		return 0, err
	}
	if cs.m.cfg.Changes.Interval > 0 {
		return 0, fmt.Errorf("the cluster has revision %d, and the recording of changes hasn't begun yet", revision)
	}
	return revision, nil // nothing is kept: what the newest backup has is compared with it
}
