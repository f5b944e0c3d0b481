package manager

import (
	"context"
	"crypto/rand"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	"github.com/etcd-manager/etcd-manager/pkg/repeat"
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
func (l *leadership) observe(ctx context.Context) (*model.Observation, *cluster.Spec) {
	o := &model.Observation{Self: l.m.cfg.Self, Term: l.term, FreshToken: newToken()}
	l.askNodes(ctx, o)
	l.nodes.changed = false
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
	l.witnesses.ask(ctx, o)
	o.Store.Holder.Mine = l.hold != nil
	if !l.store.holderSince.IsZero() {
		o.Store.Holder.UnchangedFor = time.Since(l.store.holderSince)
	}
	o.Store.Operation = l.planOperation()
	o.Store.HighestRevision = l.store.highest
	l.backups.observe(o)
	l.demands.observe(o)
	l.maintenance.observe(o)
	spec := o.Store.Spec
	if l.m.cfg.Spec != nil {
		spec = l.m.cfg.Spec
		o.Store.Spec, o.Store.SpecError, o.Store.Commands, o.Store.CreateBackups, o.Store.CommandErrors = spec, "", nil, nil, nil
	}
	l.prober.probeURLs(ctx, o, spec)
	return o, spec
}

func newToken() cluster.Token {
	return cluster.Token(rand.Text()[:16])
}

// askNodes fills in Nodes and Missing.
func (l *leadership) askNodes(ctx context.Context, o *model.Observation) {
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
			s, err := l.nodes.askNode(ctx, id)
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

// endWatches ends all streams.
func (l *leadership) endWatches() {
	for _, cancel := range l.watching {
		cancel()
	}
}

// watchNodes keeps a stream open to every node that answers, by which it wakes the loop when something changes there.
func (l *leadership) watchNodes(ctx context.Context, o *model.Observation) {
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
	model.Store
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
	// unread are operations whose records can't be read, with the versions of these: one may be in the middle of a restore.
	unread map[string]string
	// problems are what ObjectErrors are made of, by object.
	problems map[string]string
	// said bounds what is logged of problems, whose words may be others at each reading.
	said *repeat.Limiter
	// highest is the highest revision that any restore has recorded.
	highest int64
}

// readStore lists control/ when it is due and reads what has changed. Errors leave the last view in place, with Error set.
func (l *leadership) readStore(ctx context.Context) {
	due := l.force.Load() || time.Since(l.store.readAt) >= l.m.cfg.Poll ||
		l.op != nil && !l.op.State.Committing() && time.Since(l.store.readAt) >= withdrawalPoll
	if l.store.Error != "" {
		due = time.Since(l.store.failedAt) >= min(time.Second<<min(l.store.failures, 4), 15*time.Second)
	}
	if !due {
		return
	}
	l.force.Store(false)
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

// refresh reads what has changed of the few objects that decisions need. None of it grows with what is stored: the list of backups
// is read elsewhere. Each object has its own budget, and one that can't be used is that object's problem: see objectProblem.
func (l *leadership) refresh(ctx context.Context) error {
	c, s := l.m.cfg.Catalog, &l.store
	var list catalog.ControlListing
	err := inTime(ctx, func(ctx context.Context) (err error) {
		list, err = c.ControlListing(ctx)
		return err
	})
	if err != nil {
		return err
	}
	l.m.setFirst(list.Commands)
	old, first := s.listing, s.readAt.IsZero()
	for _, part := range []struct {
		due  bool
		read func(context.Context) error
	}{
		{list.Marker.Stamp != old.Marker.Stamp || !list.Marker.Exists() || first, l.readMarker},
		{list.Spec.Stamp != old.Spec.Stamp || first, l.readSpec},
		{list.Settings.Stamp != old.Settings.Stamp || first, func(ctx context.Context) error { return l.readSettings(ctx, list.Settings) }},
		{(list.Leader.Stamp != old.Leader.Stamp || first) && !l.wroteRecord(), func(ctx context.Context) error { return l.readHolder(ctx, list.Leader) }},
		{true, func(ctx context.Context) error { return l.readOperations(ctx, list) }},
		{true, func(ctx context.Context) error { return l.readCommands(ctx, list) }},
	} {
		if !part.due {
			continue
		}
		if err := inTime(ctx, part.read); err != nil {
			return err
		}
	}
	s.listing = list
	return nil
}

// inTime gives a part of a reading its own time: a store that hangs must not hold up for long what keeps etcd alive.
func inTime(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	return f(ctx)
}

// objectProblem tells whether an error is of one object alone: it is there and can't be used, or this program isn't allowed to read it.
func objectProblem(err error) bool {
	var bad *catalog.ObjectError
	return errors.As(err, &bad) || errors.Is(err, catalog.ErrDenied)
}

// note keeps in view what is wrong with an object, until it can be read; nil takes it back.
func (s *storeView) note(object string, err error) {
	if s.problems == nil {
		s.problems = map[string]string{}
	}
	was := s.problems[object]
	delete(s.problems, object)
	if err != nil {
		s.problems[object] = err.Error()
		if was != err.Error() {
			s.said.Warningf("object "+object, "an object in the store can't be used; what can be done without it goes on: %v", err)
		}
	}
	s.ObjectErrors = slices.Sorted(maps.Values(s.problems))
}

// readMarker takes a marker that can't be read for one that says formed: it is there, so nothing may be formed. What was known of it stays.
func (l *leadership) readMarker(ctx context.Context) error {
	s := &l.store
	m, ver, err := l.m.cfg.Catalog.Marker(ctx)
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		s.marker, s.markerVer, s.Marker = catalog.Marker{}, "", model.Marker{}
	case err != nil && objectProblem(err):
		s.note("marker", err)
		s.markerVer = ver
		if s.Marker.Phase == model.MarkerAbsent {
			s.Marker.Phase = model.MarkerFormed
		}
		return nil
	case err != nil:
		return err
	default:
		s.marker, s.markerVer = m, ver
		s.Marker = model.Marker{Phase: model.MarkerPhase(m.Phase), Token: m.Token, Founders: m.Founders, Version: m.Spec.EtcdVersion}
	}
	s.note("marker", nil)
	return nil
}

func (l *leadership) readSpec(ctx context.Context) error {
	spec, _, err := l.m.cfg.Catalog.Spec(ctx)
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		l.store.Spec, l.store.SpecError = nil, ""
	case err != nil && objectProblem(err):
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
	case err != nil && objectProblem(err):
		// Nobody can tell whether another leader lives, so none counts as gone.
		l.store.Holder, l.store.HolderError, l.store.holderSince = model.Holder{}, err.Error(), time.Time{}
		return nil
	case err != nil:
		return err
	}
	l.store.Holder = model.Holder{Term: r.Term, Node: r.Node}
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
	published, err := l.m.cfg.Catalog.PeerModified(ctx, l.m.cfg.Self)
	if err != nil {
		return 0
	}
	return max(0, published.Sub(record.Modified))
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
	err := inTime(ctx, l.fence)
	var fenced *catalog.FencedError
	if errors.As(err, &fenced) {
		klog.Warningf("the store knows term %d of node %s; stepping down", fenced.Stored.Term, fenced.Stored.Node)
		l.hold = nil
		l.m.cfg.Peers.Exceed(fenced.Stored.Term)
	}
}

// reads is how many small objects are read at once where there may be many.
const reads = 8

// readCommands reads those that are new. What was read is kept if the time is over, so that the next attempt goes on.
func (l *leadership) readCommands(ctx context.Context, list catalog.ControlListing) error {
	s := &l.store
	if l.m.cfg.Spec != nil {
		return nil
	}
	seen := map[string]catalog.Command{}
	var fresh []catalog.Object
	for _, obj := range list.Commands {
		if c, ok := s.commands[obj.Name]; ok && c.Stamp == obj.Stamp {
			seen[obj.Name] = c
			continue
		}
		fresh = append(fresh, obj)
	}
	var mu sync.Mutex
	var errs []string
	err := inParallel(reads, fresh, func(obj catalog.Object) error {
		c, err := l.m.cfg.Catalog.Command(ctx, obj.Name)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case errors.Is(err, catalog.ErrNotFound):
		case err != nil && objectProblem(err):
			errs = append(errs, obj.Name+": "+err.Error())
		case err != nil:
			return err
		default:
			c.Stamp = obj.Stamp
			seen[obj.Name] = c
		}
		return nil
	})
	s.commands = seen
	if err != nil {
		return err
	}
	slices.Sort(errs)
	var cmds []catalog.Command
	for _, c := range seen {
		cmds = append(cmds, c)
	}
	catalog.SortCommands(cmds)
	s.CommandErrors, s.Commands, s.CreateBackups = errs, nil, nil
	for _, c := range cmds {
		if c.Create != nil {
			s.CreateBackups = append(s.CreateBackups, model.CreateBackup{Name: c.Name})
			continue
		}
		p := model.Command{Name: c.Name, Backup: c.Backup, Spec: c.Spec, AcceptLoss: c.Options.AcceptLoss,
			Ready: (c.Options.Now || l.m.wasQueued(c.Name)) && len(s.unread) == 0}
		if c.Source != nil {
			p.Source = model.Source{Node: c.Source.Node, Token: c.Source.Token, OrBackup: c.Source.OrBackup}
		}
		s.Commands = append(s.Commands, p)
	}
	return nil
}
