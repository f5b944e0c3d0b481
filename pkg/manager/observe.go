package manager

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// What bounds how long a silent node, and a silent store, hold up the loop.
const (
	observeTimeout = 3 * time.Second
	storeTimeout   = 5 * time.Second
	// withdrawalPoll is how often the queue is looked at while a restore is prepared, since the operator may think better of it.
	withdrawalPoll = 5 * time.Second
)

// observe asks all nodes at once and reads what has changed in the store.
func (l *leadership) observe(ctx context.Context) (*plan.Observation, *cluster.Spec) {
	o := &plan.Observation{Self: l.m.cfg.Self, Term: l.term, FreshToken: newToken()}
	l.askNodes(ctx, o)
	l.changed = false
	l.noteServed(o.Nodes)
	l.readStore(ctx)
	l.recall(o.Nodes)
	o.Now = time.Now()
	o.Postponed = l.tries.postponed(o.Now)
	o.Store = l.store.Store
	fences, problem := l.m.probed()
	o.Store.Fences = fences
	if problem != "" && o.Store.Error == "" {
		o.Store.Error = problem
	}
	o.Store.Holder.Mine = l.hold != nil
	if !l.store.holderSince.IsZero() {
		o.Store.Holder.UnchangedFor = time.Since(l.store.holderSince)
	}
	o.Store.Operation = l.planOperation()
	o.Store.HighestRevision = l.store.highest
	l.mu.Lock()
	o.BackupRunning, o.BackupRetryAt, o.BackupDoneAt = l.backup, l.backupRetry, l.backupDone
	o.BackupFailed, o.Restored, o.BackupWanted = l.avoided(), l.restored, l.wanted
	o.Store.NewestBackup, o.Store.NewestBackupKnown = l.newest, l.newestKnown
	o.Store.CreateBackups = slices.DeleteFunc(slices.Clone(o.Store.CreateBackups), func(c plan.CreateBackup) bool { return l.demandDone[c.Name] })
	l.mu.Unlock()
	l.observeLife(o)
	spec := o.Store.Spec
	if l.m.cfg.Spec != nil {
		spec = l.m.cfg.Spec
		o.Store.Spec, o.Store.SpecError, o.Store.Commands, o.Store.CreateBackups, o.Store.CommandErrors = spec, "", nil, nil, nil
	}
	l.probeURLs(ctx, o, spec)
	return o, spec
}

func newToken() cluster.Token {
	return cluster.Token(rand.Text()[:16])
}

// askNodes fills in Nodes and Missing.
func (l *leadership) askNodes(ctx context.Context, o *plan.Observation) {
	ask := []cluster.NodeID{l.m.cfg.Self}
	foreign := map[cluster.NodeID]bool{}
	known := map[cluster.NodeID]bool{l.m.cfg.Self: true}
	for _, p := range l.m.cfg.Peers.Peers() {
		known[p.ID] = true
		if p.Connected {
			ask = append(ask, p.ID)
		}
		foreign[p.ID] = p.Foreign
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, id := range ask {
		wg.Go(func() {
			s, err := l.askNode(ctx, id)
			if err != nil {
				klog.V(2).Infof("node %s doesn't answer: %v", id, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			o.Nodes = append(o.Nodes, s)
		})
	}
	wg.Wait()
	slices.SortFunc(o.Nodes, func(a, b cluster.NodeStatus) int { return strings.Compare(string(a.ID), string(b.ID)) })
	for _, n := range o.Nodes {
		for _, m := range n.Etcd.Members {
			if m.Name != "" {
				known[cluster.NodeID(m.Name)] = true
			}
		}
		if n.State != nil {
			for _, m := range n.State.Nodes {
				known[cluster.NodeID(m.Name)] = true
			}
		}
	}
	l.countMissing(o, known, l.essential(o), foreign)
	l.askMembers(ctx, o)
	l.watchNodes(ctx, o)
}

func (l *leadership) askNode(ctx context.Context, id cluster.NodeID) (cluster.NodeStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, observeTimeout)
	defer cancel()
	c, err := l.m.cfg.Peers.Conn(id)
	if err != nil {
		return cluster.NodeStatus{}, err
	}
	p, err := protosv1.NewNodeServiceClient(c).Observe(ctx, &protosv1.ObserveRequest{
		ClusterName: l.m.cfg.ClusterName, Fresh: l.changed, Term: uint64(l.term), Leader: string(l.m.cfg.Self), Summary: l.m.encode(),
	})
	if status.Code(err) == codes.Aborted {
		klog.Warningf("node %s obeys another leader (%s); stepping down", id, status.Convert(err).Message())
		l.m.cfg.Peers.Exceed(l.term)
	}
	if err != nil {
		return cluster.NodeStatus{}, err
	}
	s := wire.StatusFromProto(p)
	if s.ID != id {
		return s, fmt.Errorf("node %s answers in place of %s", s.ID, id)
	}
	return s, nil
}

// watchNodes keeps a stream open to every node that answers, by which it wakes the loop when something changes there.
func (l *leadership) watchNodes(ctx context.Context, o *plan.Observation) {
	here := map[cluster.NodeID]bool{}
	for _, n := range o.Nodes {
		here[n.ID] = true
		if l.watching[n.ID] != nil {
			continue
		}
		wctx, cancel := context.WithCancel(ctx)
		l.watching[n.ID] = cancel
		l.wg.Go(func() { l.watchNode(wctx, n.ID) })
	}
	for id, cancel := range l.watching {
		if !here[id] {
			cancel()
			delete(l.watching, id)
		}
	}
}

func (l *leadership) watchNode(ctx context.Context, id cluster.NodeID) {
	for ctx.Err() == nil {
		err := func() error {
			c, err := l.m.cfg.Peers.Conn(id)
			if err != nil {
				return err
			}
			s, err := protosv1.NewNodeServiceClient(c).Watch(ctx, &protosv1.WatchRequest{ClusterName: l.m.cfg.ClusterName})
			if err != nil {
				return err
			}
			for {
				if _, err := s.Recv(); err != nil {
					return err
				}
				l.poke()
			}
		}()
		if ctx.Err() != nil {
			return
		}
		l.poke()
		if status.Code(err) == codes.Unimplemented {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// storeView is what was read from the store, and by which stamps one can tell that it is still so.
type storeView struct {
	plan.Store
	listing     catalog.ControlListing
	readAt      time.Time
	failedAt    time.Time
	failures    int
	markerVer   string
	marker      catalog.Marker
	holderSince time.Time
	commands    map[string]catalog.Command
	// ended are operations that are final and needn't be read again, by stamp.
	ended map[string]string
	// failed says why restores have failed, by name.
	failed map[string]string
	// highest is the highest revision that any restore has recorded.
	highest int64
}

// readStore lists control/ when it is due and reads what has changed. Errors leave the last view in place, with Error set.
func (l *leadership) readStore(ctx context.Context) {
	l.mu.Lock()
	due := l.force || time.Since(l.store.readAt) >= l.m.cfg.Poll ||
		l.op != nil && !l.op.State.Committing() && time.Since(l.store.readAt) >= withdrawalPoll
	if l.store.Error != "" {
		due = time.Since(l.store.failedAt) >= min(time.Second<<min(l.store.failures, 4), 15*time.Second)
	}
	l.mu.Unlock()
	if !due {
		return
	}
	l.mu.Lock()
	l.force = false
	l.mu.Unlock()
	// A store that hangs must not hold up for long what keeps etcd alive.
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	if err := l.refresh(ctx); err != nil {
		l.store.Error, l.store.failedAt = err.Error(), time.Now()
		l.store.failures++
		return
	}
	l.store.failures = 0
	if l.store.Error != "" {
		klog.Infof("the store answers again")
	}
	l.store.Error, l.store.readAt = "", time.Now()
	l.heartbeat(ctx)
}

func (l *leadership) refresh(ctx context.Context) error {
	c, s := l.m.cfg.Catalog, &l.store
	list, err := c.ControlListing(ctx)
	if err != nil {
		return err
	}
	l.m.setFirst(list.Commands)
	old := s.listing
	if list.Marker.Stamp != old.Marker.Stamp || !list.Marker.Exists() || s.readAt.IsZero() {
		if err := l.readMarker(ctx); err != nil {
			return err
		}
	}
	if list.Spec.Stamp != old.Spec.Stamp || s.readAt.IsZero() {
		if err := l.readSpec(ctx); err != nil {
			return err
		}
	}
	if list.Settings.Stamp != old.Settings.Stamp || s.readAt.IsZero() {
		if err := l.readSettings(ctx, list.Settings); err != nil {
			return err
		}
	}
	if (list.Leader.Stamp != old.Leader.Stamp || s.readAt.IsZero()) && !l.wroteRecord() {
		if err := l.readHolder(ctx, list.Leader); err != nil {
			return err
		}
	}
	if err := l.readCommands(ctx, list); err != nil {
		return err
	}
	if err := l.readOperations(ctx, list); err != nil {
		return err
	}
	if err := l.readBackups(ctx); err != nil {
		return err
	}
	s.listing = list
	return nil
}

func (l *leadership) readMarker(ctx context.Context) error {
	m, ver, err := l.m.cfg.Catalog.Marker(ctx)
	if errors.Is(err, catalog.ErrNotFound) {
		l.store.marker, l.store.markerVer, l.store.Marker = catalog.Marker{}, "", plan.Marker{}
		return nil
	}
	if err != nil {
		return err
	}
	l.store.marker, l.store.markerVer = m, ver
	l.store.Marker = plan.Marker{Phase: plan.MarkerPhase(m.Phase), Token: m.Token, Founders: m.Founders, Version: m.Spec.EtcdVersion}
	return nil
}

func (l *leadership) readSpec(ctx context.Context) error {
	spec, _, err := l.m.cfg.Catalog.Spec(ctx)
	var bad *catalog.ObjectError
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		l.store.Spec, l.store.SpecError = nil, ""
	case errors.As(err, &bad):
		l.store.SpecError = err.Error()
	case err != nil:
		return err
	default:
		l.store.Spec, l.store.SpecError = &spec, ""
		if cluster.ValidMemberCount(spec.MemberCount) {
			l.m.setWanted(spec.MemberCount)
		}
	}
	return nil
}

func (l *leadership) readHolder(ctx context.Context, obj catalog.Object) error {
	r, _, err := l.m.cfg.Catalog.Leader(ctx)
	if errors.Is(err, catalog.ErrNotFound) {
		err = nil
	}
	if err == nil {
		err = r.CheckTerm(l.term)
	}
	l.store.HolderError = ""
	switch {
	case errors.Is(err, cluster.ErrCorrupt), errors.Is(err, cluster.ErrFuture):
		l.store.Holder, l.store.HolderError = plan.Holder{}, err.Error()
		return nil
	case err != nil:
		return err
	}
	l.store.Holder = plan.Holder{Term: r.Term, Node: r.Node}
	l.store.holderSince = l.m.holderSince(obj.Stamp, func() time.Duration { return l.recordAge(ctx, obj) })
	if l.hold != nil && (r.Term != l.term || r.Node != l.m.cfg.Self || r.Instance != l.m.cfg.Instance) {
		klog.Warningf("the store's leader record is of node %s, term %d now; stepping down", r.Node, r.Term)
		l.hold = nil
		l.m.cfg.Peers.Exceed(r.Term)
	}
	if l.hold == nil && r.Term >= l.term && (r.Node != l.m.cfg.Self || r.Instance != l.m.cfg.Instance) {
		// The store wouldn't take this term, and for how long nodes haven't answered is counted in each leadership anew: better now than after that wait.
		klog.Infof("the store knows term %d of node %s; this node leads with a higher one", r.Term, r.Node)
		l.m.cfg.Peers.Exceed(r.Term)
	}
	return nil
}

// recordAge is how old the leader record was, by the store's own clock, when this process published where it is found. No clock of
// another machine is involved. 0 if it can't be told.
func (l *leadership) recordAge(ctx context.Context, record catalog.Object) time.Duration {
	if !record.Exists() || l.hold != nil {
		return 0
	}
	peers, _, err := l.m.cfg.Catalog.Peers(ctx, nil)
	if err != nil {
		return 0
	}
	for _, p := range peers {
		if p.Info.GetNodeId() == string(l.m.cfg.Self) {
			return max(0, p.Modified.Sub(record.Modified))
		}
	}
	return 0
}

// wroteRecord tells whether a change of the leader record is this leadership's own; asking is forgetting. A rival's is found by
// the next heartbeat or fenced step at the latest, which compare and swap.
func (l *leadership) wroteRecord() bool {
	own := l.hold != nil && l.wrote
	l.wrote = false
	return own
}

// fence makes sure, right before a step that can't be taken back, that the store still knows no higher term.
func (l *leadership) fence(ctx context.Context) error {
	if l.hold == nil {
		return errors.New("the leader's term isn't in the store")
	}
	l.beat, l.wrote = time.Now(), true
	return l.hold.Heartbeat(ctx)
}

// fenceCommit is fence for the steps of a commit. While the store is away plan and its safety check have made sure that everyone who
// could act otherwise obeys this leader.
func (l *leadership) fenceCommit(ctx context.Context) error {
	if l.op == nil || !l.op.State.Committing() {
		return l.fence(ctx)
	}
	if l.store.Error != "" {
		return nil
	}
	tctx, cancel := context.WithTimeout(ctx, commitPatience)
	defer cancel()
	err := l.fence(tctx)
	var fenced *catalog.FencedError
	if err != nil && l.hold != nil && !errors.As(err, &fenced) && ctx.Err() == nil {
		l.storeFailed(err)
	}
	return err
}

// heartbeat shows in the store that this leadership lives, for leaders that can't see the members.
func (l *leadership) heartbeat(ctx context.Context) {
	if l.hold == nil || time.Since(l.beat) < time.Minute {
		return
	}
	err := l.fence(ctx)
	var fenced *catalog.FencedError
	if errors.As(err, &fenced) {
		klog.Warningf("the store knows term %d of node %s; stepping down", fenced.Stored.Term, fenced.Stored.Node)
		l.hold = nil
		l.m.cfg.Peers.Exceed(fenced.Stored.Term)
	}
}

// readCommands reads those that are new.
func (l *leadership) readCommands(ctx context.Context, list catalog.ControlListing) error {
	s := &l.store
	if l.m.cfg.Spec != nil {
		return nil
	}
	seen := map[string]catalog.Command{}
	var errs []string
	for _, obj := range list.Commands {
		if c, ok := s.commands[obj.Name]; ok && c.Stamp == obj.Stamp {
			seen[obj.Name] = c
			continue
		}
		c, err := l.m.cfg.Catalog.Command(ctx, obj.Name)
		var bad *catalog.ObjectError
		switch {
		case errors.Is(err, catalog.ErrNotFound):
		case errors.As(err, &bad):
			errs = append(errs, err.Error())
		case err != nil:
			return err
		default:
			c.Stamp = obj.Stamp
			seen[obj.Name] = c
		}
	}
	var cmds []catalog.Command
	for _, c := range seen {
		cmds = append(cmds, c)
	}
	catalog.SortCommands(cmds)
	s.commands, s.CommandErrors, s.Commands, s.CreateBackups = seen, errs, nil, nil
	for _, c := range cmds {
		if c.Create != nil {
			s.CreateBackups = append(s.CreateBackups, plan.CreateBackup{Name: c.Name})
			continue
		}
		p := plan.Command{Name: c.Name, Backup: c.Backup, Spec: c.Spec, Ready: c.Options.Now || l.m.wasQueued(c.Name)}
		if c.Source != nil {
			p.Source = plan.Source{Node: c.Source.Node, Token: c.Source.Token, OrBackup: c.Source.OrBackup}
		}
		s.Commands = append(s.Commands, p)
	}
	return nil
}

// readBackups lists the backups once in a leadership; after that it is known what was added.
func (l *leadership) readBackups(ctx context.Context) error {
	l.mu.Lock()
	known := l.newestKnown
	l.mu.Unlock()
	if known {
		return nil
	}
	list, err := l.m.cfg.Catalog.Backups(ctx)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.newestKnown, l.newest, l.backups = true, time.Time{}, len(list.Backups)
	if b, ok := list.NewestSound(time.Now()); ok {
		l.newest = b.TakenBy(time.Now())
	}
	return nil
}
