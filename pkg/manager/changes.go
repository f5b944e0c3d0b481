package manager

import (
	"context"
	"errors"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
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

// keepChanges has the changes of the cluster recorded that serves. Whoever writes must hold the store's leader record, so that there is one.
func (l *leadership) keepChanges(ctx context.Context, o *model.Observation) {
	if l.m.cfg.Changes.Interval <= 0 {
		return
	}
	token, urls := servingURLs(o, l.m.cfg.Peers.Addresses)
	if r := l.recording; r != nil {
		select {
		case <-r.ended: // another cluster answers, or serves
			l.recording = nil
		default:
			if token != "" && token != r.token {
				r.cancel() // it takes some seconds to store what it has; the loop hears of its end
			}
		}
	}
	if len(urls) == 0 {
		return
	}
	l.mu.Lock()
	l.serving = urls
	l.mu.Unlock()
	if l.recording == nil && o.Store.Error == "" && (l.hold != nil || !o.Store.Fences) {
		l.startRecording(ctx, token)
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
			leader = etcd.MemberEndpoints(self.ClientURLs, addresses(n.ID))
			continue
		}
		urls = append(urls, etcd.MemberEndpoints(self.ClientURLs, addresses(n.ID)))
	}
	if leader != nil {
		urls = append(urls, leader)
	}
	return token, urls
}

func (l *leadership) startRecording(ctx context.Context, token cluster.Token) {
	c := l.m.cfg.Changes
	rec, err := changelog.NewRecorder(changelog.Config{
		ClusterName: l.m.cfg.ClusterName, Node: l.m.cfg.Self, Term: l.term, Token: token, ToolVersion: c.ToolVersion, Catalog: l.m.cfg.Catalog,
		Members: l.servingMembers,
		Origin:  func(ctx context.Context) *catalog.Origin { return l.origin(ctx, token) },
		Dir:     c.Dir, Interval: c.Interval, Gap: l.wantBackup,
	})
	if err != nil {
		klog.Errorf("changes are not kept: %v", err)
		return
	}
	rctx, cancel := context.WithCancel(ctx)
	r := &recording{token: token, recorder: rec, cancel: cancel, ended: make(chan struct{})}
	l.recording = r
	l.m.setRecorder(rec)
	l.wg.Go(func() {
		defer l.poke()
		defer close(r.ended)
		defer l.m.setRecorder(nil)
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
func (l *leadership) servingMembers() []changelog.Dialer {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.etcd.dialers(l.serving)
}

// wantBackup has a full backup taken at once.
func (l *leadership) wantBackup(reason string) {
	l.mu.Lock()
	l.wanted = reason
	l.mu.Unlock()
	l.poke()
}

// origin finds the restore that a cluster came from; nil if there is none, or it can't be read.
func (l *leadership) origin(ctx context.Context, token cluster.Token) *catalog.Origin {
	ops, _, err := l.m.cfg.Catalog.Operations(ctx)
	if err != nil {
		return nil
	}
	i := slices.IndexFunc(ops, func(op catalog.Operation) bool { return op.NewToken == token })
	if i < 0 {
		return nil
	}
	op := ops[i]
	from := catalog.Origin{Operation: op.ID, Backup: op.Backup}
	if m, err := l.m.cfg.Catalog.Manifest(ctx, op.Backup); err == nil {
		from.Incarnation, from.Reached = catalog.IncarnationOf(uint64(m.ClusterID)), m.Revision
	}
	if op.Reached > 0 {
		from.Reached = op.Reached // the manifest's is only one that the snapshot surely has
	}
	if op.Target != nil {
		from.Incarnation, from.Reached = op.Target.Incarnation, op.Target.Revision
	}
	if op.SafetyBackup != "" {
		if m, err := l.m.cfg.Catalog.Manifest(ctx, op.SafetyBackup); err == nil {
			from.Replaced = catalog.IncarnationOf(uint64(m.ClusterID))
		}
	}
	return &from
}

// planTarget plans a restore's point. The newest change is that of the life that serves: as etcd says if it answers, else as the store does.
func (l *leadership) planTarget(ctx context.Context, archive *changelog.Archive, target changelog.Target) (*changelog.Plan, error) {
	if target.Latest {
		if l.recording != nil {
			target.Life = l.recording.recorder.Status().Incarnation
		}
		return archive.Plan(ctx, target)
	}
	target.Backup = l.op.Backup
	p, err := archive.Plan(ctx, target)
	var no *changelog.UnreachableError
	if !errors.As(err, &no) {
		return p, err
	}
	// The one that was named when it was queued may have gone, or be of no use; another one of the same life may do.
	life, lerr := archive.LifeOf(ctx, target.Backup)
	if lerr != nil {
		return nil, lerr
	}
	target.Backup, target.Life = "", life
	if other, oerr := archive.Plan(ctx, target); oerr == nil {
		return other, nil
	}
	return nil, err
}

func (l *leadership) archive() *changelog.Archive {
	return &changelog.Archive{Catalog: l.m.cfg.Catalog}
}

// replay names the point that the nodes are to bring the backup to; nil if it is the backup itself. Nodes list the segments for themselves: no message
// grows with the archive.
func (l *leadership) replay() *protosv1.Replay {
	t := l.op.Target
	if t == nil {
		return nil
	}
	return &protosv1.Replay{Incarnation: string(t.Incarnation), BaseRevision: t.BaseRevision, Revision: t.Revision, Head: t.Head}
}
