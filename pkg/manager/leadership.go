package manager

import (
	"context"
	"errors"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	"github.com/etcd-manager/etcd-manager/pkg/plan/safety"
	"github.com/etcd-manager/etcd-manager/pkg/prune"
)

// How long the loop waits when nothing wakes it.
const (
	tickWaiting = time.Second
	tickSteady  = 30 * time.Second
	repeatAlarm = 5 * time.Minute
)

// leadership is one term of leading: the loop, and the parts that it looks and acts through. Each
// part says in its comment what guards it.
type leadership struct {
	*shared
	nodes       *nodes
	etcd        *etcdClients
	prober      *prober
	witnesses   *witnesses
	maintenance *maintenance
	log         *decisionLog
	retention   *retention
	demands     *demands
	putBacks    *putBacks
	backups     *backups
	proofs      *proofs
	changes     *changes
	copies      *copies
	store       *storeView
	marker      *marker
	record      *leaderRecord
	operations  *operations
	observer    *observer
	restorer    *restorer
	cleaner     *cleaner
	survivors   *survivorNotes
	ending      *ending
	shown       *shownStatus

	tries attempts
	// do carries out an action: act, but in tests.
	do func(context.Context, *model.Observation, *cluster.Spec, model.Action) error
}

func newLeadership(m *Manager, term cluster.Term) *leadership {
	c := &shared{m: m, term: term, wake: make(chan struct{}, 1)}
	l := &leadership{shared: c, log: &decisionLog{shared: c}, tries: attempts{}}
	l.nodes, l.etcd, l.store = &nodes{shared: c}, &etcdClients{shared: c}, &storeView{shared: c}
	l.prober = &prober{shared: c, reached: map[cluster.NodeID]reached{}}
	l.witnesses = &witnesses{shared: c, known: map[cluster.NodeID]*witness{}}
	l.survivors = &survivorNotes{shared: c, store: l.store, started: time.Now()}
	l.marker = &marker{shared: c, store: l.store}
	l.record = &leaderRecord{shared: c, store: l.store}
	l.operations = &operations{shared: c, saving: newTurn(), store: l.store, ended: map[string]string{}, failed: map[string]string{}}
	l.observer = &observer{shared: c, nodes: l.nodes, etcd: l.etcd, marker: l.marker, operations: l.operations,
		missing: map[cluster.NodeID]time.Time{}, lastAlive: map[cluster.NodeID]time.Time{}, watching: map[cluster.NodeID]context.CancelFunc{}}
	l.retention = &retention{shared: c, pruning: newTurn(), pruner: prune.New(m.cfg.Catalog, m.cfg.tuned().Retention), pruned: time.Now()}
	l.demands = &demands{shared: c, retention: l.retention, fails: map[string]int{}, took: map[string]string{}, over: map[string]bool{}}
	l.putBacks = &putBacks{shared: c, etcd: l.etcd, retention: l.retention, over: map[string]bool{}}
	l.backups = &backups{shared: c, nodes: l.nodes, demands: l.demands, retention: l.retention, failedOn: map[cluster.NodeID]time.Time{}}
	l.proofs = &proofs{shared: c, nodes: l.nodes, backups: l.backups}
	l.copies = &copies{shared: c}
	l.changes = &changes{shared: c, etcd: l.etcd, backups: l.backups}
	l.maintenance = &maintenance{shared: c, nodes: l.nodes, etcd: l.etcd}
	l.ending = &ending{shared: c, tries: l.tries, nodes: l.nodes, store: l.store, changes: l.changes, backups: l.backups}
	l.cleaner = &cleaner{shared: c, nodes: l.nodes, operations: l.operations, cleared: map[cluster.NodeID]time.Time{}}
	l.restorer = &restorer{shared: c, nodes: l.nodes, etcd: l.etcd, store: l.store, marker: l.marker, operations: l.operations,
		backups: l.backups, changes: l.changes, retention: l.retention, cleaner: l.cleaner}
	l.shown = &shownStatus{shared: c, store: l.store, record: l.record, operations: l.operations}
	l.do = l.act
	l.forceStore()
	return l
}

// run goes round until ctx ends. Work that was begun in the background ends with it.
func (l *leadership) run(ctx context.Context) {
	// What was begun in the background may take long to end, and as a follower this node has no loop that could come round.
	context.AfterFunc(ctx, l.comesRoundNoMore)
	defer l.wg.Wait()
	defer l.observer.endWatches()
	l.wg.Go(func() { l.backups.learn(ctx) })
	l.wg.Go(func() { l.retention.prune(ctx) })
	l.wg.Go(func() { l.proofs.run(ctx) })
	l.wg.Go(func() { l.cleaner.removeRecords(ctx) })
	for ctx.Err() == nil {
		l.comesRound(ctx, false)
		peersChanged := l.m.cfg.Peers.Changed()
		o, spec := l.observe(ctx)
		if ctx.Err() != nil {
			return
		}
		policy := l.m.cfg.policy()
		d := plan.Next(o, spec, policy)
		if err := safety.Check(o, d.Do, policy); err != nil {
			why := "refused by the safety check: " + err.Error() + " (it was to be done because " + d.Why + ")"
			d = plan.Decision{Why: why, Alarm: true, Attention: cluster.Attention{Kind: cluster.AttentionSafety, Text: why}}
		}
		attention := plan.Attentions(o, spec, policy, d)
		d.Why = cluster.WithStore(d.Why, l.m.cfg.StoreName)
		l.survivors.show(ctx, o)
		mayWrite := l.record.held() || !o.Store.Fences
		l.copies.keep(ctx, o.Store.Error == "" && mayWrite)
		l.changes.keep(ctx, o, mayWrite)
		l.proofs.noteRestful(o, spec)
		l.nodes.noteDatabase(o)
		l.log.say(d)
		l.log.sayDisks(o)
		l.cleaner.clearBehind(ctx, o.Nodes)
		l.publish(o, spec, d, attention)
		l.shown.show(ctx)
		wait := min(tickSteady, l.store.dueIn())
		switch {
		case d.Do != nil:
			wait = l.carryOut(ctx, o, spec, d)
		case d.After > 0:
			wait = min(d.After, tickWaiting)
		case d.Alarm || d.Waits || !steady(o, spec):
			wait = tickWaiting
		case o.Store.NewestBackupKnown:
			due := max(o.Store.NewestBackup.Add(policy.BackupInterval).Sub(o.Now), o.BackupRetryAt.Sub(o.Now))
			wait = min(wait, max(due, 100*time.Millisecond))
		}
		if wait == 0 {
			continue
		}
		l.waitFor(ctx, peersChanged, wait)
	}
}

// comesRound notes that the loop makes progress, and whether it carries out an action.
func (l *leadership) comesRound(ctx context.Context, acting bool) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if ctx.Err() == nil {
		l.m.round, l.m.acting = time.Now(), acting
	}
}

// comesRoundNoMore notes that the leadership is over.
func (l *leadership) comesRoundNoMore() {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	l.m.round, l.m.acting = time.Time{}, false
}

// steady tells whether nothing is expected to happen soon.
func steady(o *model.Observation, spec *cluster.Spec) bool {
	if spec == nil || len(o.Missing) > 0 || o.Store.Error != "" || o.Store.Operation != nil || o.BackupRunning != "" {
		return false
	}
	healthy := 0
	for _, n := range o.Nodes {
		if n.Etcd.Votes() && !n.Etcd.Quarantined {
			healthy++
		}
	}
	return healthy == spec.MemberCount
}

func (l *leadership) waitFor(ctx context.Context, peers <-chan struct{}, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-l.wake:
	case <-peers:
	case <-time.After(d):
	}
}

// carryOut does one action. It returns how long to wait before the next look: nothing after a
// success. What has failed isn't tried again before its time, though the loop may look earlier:
// often the attempt itself is what wakes it.
func (l *leadership) carryOut(ctx context.Context, o *model.Observation, spec *cluster.Spec, d plan.Decision) time.Duration {
	l.comesRound(ctx, true)
	err := l.do(ctx, o, spec, d.Do)
	l.comesRound(ctx, false)
	if err == nil {
		if !l.operations.stepWaits() { // else the step has its own time
			l.tries.done(d.Do, time.Now())
		}
		return 0
	}
	if ctx.Err() != nil {
		return 0
	}
	l.forceStore()
	wait := l.tries.failed(d.Do, err, time.Now())
	key := "failed: " + model.Subject(d.Do)
	var fenced *catalog.FencedError
	switch {
	case errors.Is(err, catalog.ErrConflict):
		l.operations.forget() // whatever it was, it is read again
		l.said.Warningf(key, "%s: something else was written in between (%v); looking again", d.Do, err)
	case errors.As(err, &fenced):
		l.said.Warningf(key, "%s: the store knows term %d of node %s; stepping down", d.Do, fenced.Stored.Term, fenced.Stored.Node)
		l.m.cfg.Peers.Exceed(fenced.Stored.Term)
	case errors.Is(err, cluster.ErrLowerTerm):
		l.said.Warningf(key, "%s: a node obeys another leader (%v); stepping down", d.Do, err)
		l.m.cfg.Peers.Exceed(l.term)
	default:
		l.said.Warningf(key, "%s failed, next attempt in %s: %v", d.Do, wait, err)
	}
	return wait
}

// publish hands the report over.
func (l *leadership) publish(o *model.Observation, spec *cluster.Spec, d plan.Decision, attention []cluster.Attention) {
	r := Report{
		Leading: true, Term: l.term, Why: d.Why, Alarm: d.Alarm, Attention: l.m.noted(scopeLeader, attention), At: o.Now,
		Nodes: o.Nodes, Missing: o.Missing,
		Spec: spec, StoreError: o.Store.Error, Commands: o.Store.Commands, Operation: o.Store.Operation, CreateBackups: o.Store.CreateBackups,
		Releases: unreleased(o, d),
	}
	l.m.events.attentions(l.term, r.Attention)
	l.backups.report(&r)
	l.retention.report(&r)
	l.m.mu.Lock()
	l.m.report = r
	l.m.mu.Unlock()
}
