package manager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// operations are the records of restores in the store, above all the one that is under way.
type operations struct {
	*shared
	store *storeView

	saving turn // held by one who writes the record

	mu sync.Mutex
	// op is the restore under way, as last written; ver is the version of its record. While ahead is
	// true it is ahead of that, since the store doesn't answer.
	op    *catalog.Operation
	ver   string
	ahead bool

	// Only the loop touches what follows. removed is the operation whose command this leadership has
	// removed.
	removed string
	retryAt time.Time
	fails   int
	// served is when a client was answered again after the stop.
	served time.Time
	// ended are operations that are final and needn't be read again, by stamp.
	ended map[string]string
	// failed says why restores have failed, by name.
	failed map[string]string
	// unread are operations whose records can't be read, with the versions of these: one may be in the
	// middle of a restore.
	unread map[string]string
	// highest is the highest revision that any restore has recorded.
	highest        int64
	rolledBack     []model.Operation
	failedRestores []string
}

// commitPatience is how long a step waits for the store while etcd is stopped, before it goes on
// without.
const commitPatience = 3 * time.Second

// read keeps the restore under way in step with its record, and remembers which ones have ended.
func (ops *operations) read(ctx context.Context, list catalog.ControlListing) error {
	defer ops.showFailed(list.Operations)
	if err := ops.settle(ctx); err != nil {
		return err
	}
	if ops.current() != nil {
		return nil // this leadership writes it; nobody else does
	}
	var fresh []catalog.Object
	for _, obj := range list.Operations {
		if ops.ended[obj.Name] != obj.Stamp {
			fresh = append(fresh, obj)
		}
	}
	return ops.readRecords(ctx, fresh)
}

// showFailed keeps FailedRestores to those of which there is still a record.
func (ops *operations) showFailed(there []catalog.Object) {
	ops.failedRestores = nil
	for name, why := range ops.failed {
		if slices.ContainsFunc(there, func(o catalog.Object) bool { return o.Name == name }) {
			ops.failedRestores = append(ops.failedRestores, why)
		} else {
			delete(ops.failed, name)
		}
	}
	slices.Sort(ops.failedRestores)
}

// record is an operation as it was read, or why it couldn't be.
type record struct {
	op  catalog.Operation
	ver string
	err error
}

// readRecords reads the records of operations. What was read is kept if the time is over, so that
// the next attempt goes on. A record that can't be read may be of a restore in the middle of its
// commit: as long as there is one, no other is begun.
func (ops *operations) readRecords(ctx context.Context, fresh []catalog.Object) error {
	var mu sync.Mutex
	got := map[string]record{}
	err := inParallel(reads, fresh, func(obj catalog.Object) error {
		op, ver, err := ops.m.cfg.Catalog.Operation(ctx, obj.Name)
		if err != nil && !errors.Is(err, catalog.ErrNotFound) && !objectProblem(err) {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		got[obj.Name] = record{op, ver, err}
		return nil
	})
	unread := map[string]string{}
	var problem error
	var found *record
	for _, obj := range fresh {
		r, ok := got[obj.Name]
		switch {
		case !ok || errors.Is(r.err, catalog.ErrNotFound):
		case r.err != nil:
			unread[obj.Name], problem = r.ver, r.err
		case r.op.State.Final():
			ops.learn(&r.op)
			ops.ended[obj.Name] = obj.Stamp
		default:
			found = &r
		}
	}
	if err != nil {
		return fmt.Errorf("read the records of operations, %d of %d are left: %w", len(fresh)-len(got), len(fresh), err)
	}
	ops.unread = unread
	ops.store.note("operations", problem)
	if found != nil {
		ops.learn(&found.op)
		klog.Infof("restore %s of %s was left in state %s; going on with it", found.op.ID, subject(&found.op), found.op.State)
		ops.set(&found.op, found.ver, false)
	}
	return nil
}

// inParallel does something for all items, a few at once, and returns the first error; what was not
// begun then is left.
func inParallel[T any](n int, items []T, f func(T) error) error {
	queue := make(chan T, len(items))
	for _, x := range items {
		queue <- x
	}
	close(queue)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	for range min(n, len(items)) {
		wg.Go(func() {
			for x := range queue {
				mu.Lock()
				stop := failed != nil
				mu.Unlock()
				if stop {
					return
				}
				if err := f(x); err != nil {
					mu.Lock()
					if failed == nil {
						failed = err
					}
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return failed
}

// learn takes over what later decisions need of an operation.
func (ops *operations) learn(op *catalog.Operation) {
	ops.highest = max(ops.highest, op.RevisionBefore, op.RevisionAfter)
	switch op.State {
	case catalog.StateFailed:
		if op.Kind == catalog.KindBackup || op.Kind == catalog.KindPutBack {
			return // nothing waits for it
		}
		ops.failed[op.ID] = op.ID + ": " + subject(op) + ": " + op.Reason
	case catalog.StateRolledBack:
		ops.rolledBack = append(ops.rolledBack, *toPlan(op))
		if n := len(ops.rolledBack); n > rolledBackKept {
			ops.rolledBack = ops.rolledBack[n-rolledBackKept:]
		}
	}
}

// rolledBackKept is how many restores that were taken back are remembered, for nodes that were away
// when it happened.
const rolledBackKept = 2

// subject says what is restored.
func subject(op *catalog.Operation) string {
	if op.Backup == "" && op.Source != nil {
		return "the data of cluster " + string(op.Source.Token)
	}
	return "backup " + op.Backup
}

// begin writes the record of a restore before its first step.
func (ops *operations) begin(ctx context.Context, op catalog.Operation) error {
	ver, err := ops.m.cfg.Catalog.PutOperation(ctx, op, "")
	if err != nil {
		return err
	}
	ops.set(&op, ver, false)
	return nil
}

func (ops *operations) set(op *catalog.Operation, version string, unsaved bool) {
	ops.mu.Lock()
	defer ops.mu.Unlock()
	ops.op, ops.ver, ops.ahead = op, version, unsaved
}

// current is the restore under way, nil if there is none. What it points to never changes.
func (ops *operations) current() *catalog.Operation {
	ops.mu.Lock()
	defer ops.mu.Unlock()
	return ops.op
}

func (ops *operations) version() string {
	ops.mu.Lock()
	defer ops.mu.Unlock()
	return ops.ver
}

func (ops *operations) unsaved() bool {
	ops.mu.Lock()
	defer ops.mu.Unlock()
	return ops.ahead
}

// preparing tells whether a restore is under way that has stopped nothing yet, and committing
// whether one has.
func (ops *operations) preparing() bool {
	op := ops.current()
	return op != nil && !op.State.Committing()
}

func (ops *operations) committing() bool {
	op := ops.current()
	return op != nil && op.State.Committing()
}

// allRead tells whether no record is unread that may be of a restore under way.
func (ops *operations) allRead() bool { return len(ops.unread) == 0 }

// stepAgain has the next step begin without what earlier ones have waited.
func (ops *operations) stepAgain() { ops.retryAt, ops.fails = time.Time{}, 0 }

// noteRemoved remembers that the command was removed by this leadership, not by the operator.
func (ops *operations) noteRemoved(id string) { ops.removed = id }

// highestRecorded is the highest revision that any restore has recorded.
func (ops *operations) highestRecorded() int64 { return ops.highest }

// endedOperations are operations that are final, by id.
func (ops *operations) endedOperations() map[string]string { return ops.ended }

// observe fills in what is known of restores.
func (ops *operations) observe(s *model.Store) {
	s.Operation, s.HighestRevision = ops.plan(), ops.highest
	s.FailedRestores, s.RolledBack = ops.failedRestores, ops.rolledBack
}

// forget has the record read again.
func (ops *operations) forget() {
	ops.set(nil, "", false)
}

// stepWaits tells whether the step that was just tried waits for its next attempt.
func (ops *operations) stepWaits() bool { return ops.fails > 0 }

// settle writes what could only be remembered while the store was away. Whoever wrote in between
// wins.
func (ops *operations) settle(ctx context.Context) error {
	if ops.current() == nil || !ops.unsaved() {
		return nil
	}
	stored, ver, err := ops.m.cfg.Catalog.Operation(ctx, ops.current().ID)
	gone := errors.Is(err, catalog.ErrNotFound)
	damaged := errors.Is(err, cluster.ErrCorrupt) // what the nodes' journals say takes its place
	if err != nil && !gone && !damaged {
		return err
	}
	if !damaged && (gone || stored.State.Final() || stored.Term > ops.term) {
		klog.Warningf("restore %s: the store has another end of it than this leader; going by the store", ops.current().ID)
		ops.forget()
		return nil
	}
	if ver, err = ops.m.cfg.Catalog.PutOperation(ctx, *ops.current(), ver); err != nil {
		return err
	}
	ops.set(ops.current(), ver, false)
	return nil
}

// recall takes the restore under way from the nodes' journals when the store can't be asked. It is
// only needed while etcd is held for it: of a cluster that serves nothing has to be known in a
// hurry.
func (ops *operations) recall(nodes []cluster.NodeStatus) {
	if ops.current() != nil || !ops.store.away() && len(ops.unread) == 0 {
		return
	}
	var newest *catalog.Operation
	held := false
	for _, n := range nodes {
		if n.Etcd.Votes() {
			return
		}
		held = held || n.Holding
		if len(n.OperationRecord) == 0 {
			continue
		}
		op, err := catalog.DecodeOperation("journal of node "+string(n.ID), n.OperationRecord)
		if err != nil {
			ops.said.Warningf("journal of "+string(n.ID), "%v", err)
			continue
		}
		if _, bad := ops.unread[op.ID]; !ops.store.away() && !bad {
			continue
		}
		if op.State.Committing() && (newest == nil || laterOperation(&op, newest)) {
			newest = &op
		}
	}
	if newest == nil || !held || ops.ended[newest.ID] != "" {
		return
	}
	why := "the store is away"
	if !ops.store.away() {
		why = "its record in the store can't be read"
	}
	ops.said.Warningf("recalled "+newest.ID, "%s, and the nodes are in the middle of restore %s; going on with what their journals say", why, newest.ID)
	newest.StateSince = time.Now()
	ops.set(newest, ops.unread[newest.ID], true)
}

// committing are the states of a record that a journal can have, in the order in which they are
// reached.
var committing = []catalog.OperationState{catalog.StateStopping, catalog.StateSwitching, catalog.StateVerifying, catalog.StateReverting}

// laterOperation tells whether a says more than b. No clock decides: a node that was away for long
// may have the journal of a restore that ended long ago, with whatever time. Terms grow, revisions
// grow over restores, and states have their order.
func laterOperation(a, b *catalog.Operation) bool {
	return cmp.Or(cmp.Compare(a.Term, b.Term), cmp.Compare(a.RevisionBefore, b.RevisionBefore),
		cmp.Compare(slices.Index(committing, a.State), slices.Index(committing, b.State))) > 0
}

// plan is the restore under way as plan sees it.
func (ops *operations) plan() *model.Operation {
	if ops.current() == nil {
		return nil
	}
	op := toPlan(ops.current())
	op.RetryAt = ops.retryAt
	op.Withdrawn = !ops.store.away() && ops.removed != op.ID && !ops.store.queued(ops.current().Command)
	return op
}

func toPlan(op *catalog.Operation) *model.Operation {
	p := &model.Operation{
		ID: op.ID, Backup: op.Backup, State: model.OperationState(op.State), Reason: op.Reason, Waiting: op.Waiting, Nodes: op.Members, Token: op.NewToken,
		OldToken: op.OldToken, Version: op.Spec.EtcdVersion, Size: op.Spec.MemberCount, Proven: op.Proven, SafetyBackup: op.SafetyBackup,
		SafetyTried: op.SafetyTried, RevisionBefore: op.RevisionBefore, Revision: op.StagedRevision, Hash: op.StagedHash, Bytes: op.StagedBytes,
		Written: op.Written, Unwritten: op.Unwritten, Verified: op.Verified, StateFor: time.Since(op.StateSince),
	}
	if op.Source != nil {
		p.Source = model.Source{Node: op.Source.Node, Token: op.Source.Token, OrBackup: op.Source.OrBackup, OrRevision: op.Source.OrRevision}
	}
	return p
}

// save writes the operation's record; what it says is true only afterwards. From the moment on when
// etcd is stopped the record may be ahead of the store: the nodes' journals know of the operation
// too, and clients wait.
func (ops *operations) save(ctx context.Context, change func(*catalog.Operation)) error {
	if err := ops.saving.take(ctx); err != nil {
		return err
	}
	defer ops.saving.give()
	op := ops.current().Clone()
	change(&op)
	op.Term, op.Leader, op.Instance = ops.term, ops.m.cfg.Self, ops.m.cfg.Instance
	urgent := ops.current().State.Committing() && op.State.Committing()
	if urgent && ops.store.away() {
		ops.set(&op, ops.version(), true)
		return nil
	}
	limit := quickAction
	if urgent {
		limit = commitPatience
	}
	tctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ver, err := ops.m.cfg.Catalog.PutOperation(tctx, op, ops.version())
	switch {
	case err == nil:
		ops.set(&op, ver, false)
		return nil
	case !urgent || errors.Is(err, catalog.ErrConflict) || ctx.Err() != nil:
		return err
	}
	ops.store.fail(err)
	ops.set(&op, ops.version(), true)
	return nil
}

// opAttempts is how often a step is tried for a reason that may pass, about ten minutes in all.
const opAttempts = 40

// step turns the outcome of a step into what the next decision is made from: a reason if it can't
// succeed, a time to try again if it may.
func (ops *operations) step(ctx context.Context, err error) error {
	if err == nil {
		ops.retryAt, ops.fails = time.Time{}, 0
		return nil
	}
	if ctx.Err() != nil || errors.Is(err, cluster.ErrLowerTerm) || errors.Is(err, catalog.ErrConflict) {
		return err // a conflict means that the record isn't what this leader remembers: it is read again
	}
	var waits *waitError
	if errors.As(err, &waits) {
		return ops.waitOn(ctx, waits)
	}
	ops.fails++
	if errors.Is(err, cluster.ErrPermanent) || ops.fails >= opAttempts {
		ops.fails = 0
		ops.said.Errorf("restore "+ops.current().ID+string(ops.current().State), "restore %s (%s): %v", ops.current().ID, ops.current().State, err)
		return ops.save(ctx, func(op *catalog.Operation) { op.Reason = err.Error() })
	}
	longest := 15 * time.Second
	if ops.current().State.Committing() {
		longest = 2 * time.Second
	}
	wait := min(250*time.Millisecond<<min(ops.fails, 6), longest)
	ops.retryAt = time.Now().Add(wait)
	ops.said.Warningf("step: "+string(ops.current().State), "restore %s (%s), next attempt in %s: %v", ops.current().ID, ops.current().State, wait, err)
	return nil
}

// waitOn records what the restore waits for, so that the operator sees it through the store alone.
func (ops *operations) waitOn(ctx context.Context, w *waitError) error {
	ops.retryAt, ops.fails = time.Now().Add(waitPause), 0
	if ops.current().Waiting == w.reason {
		return nil
	}
	klog.Warningf("restore %s (%s) waits and has stopped nothing: %s", ops.current().ID, ops.current().State, w.reason)
	return ops.save(ctx, func(op *catalog.Operation) { op.Waiting = w.reason })
}

// outage is how long no client was served: from the first stop of the commit until a member was
// open to clients again, and before that in the restart of the managers for which the restore has
// waited.
func (ops *operations) outage(op *catalog.Operation) time.Duration {
	end := ops.served
	if end.IsZero() {
		end = time.Now()
	}
	for _, s := range op.Steps {
		if s.Name == string(catalog.StateStopping) {
			return end.Sub(s.Started) + op.RestartOutage
		}
	}
	return 0
}

// noteServed remembers when the first member answered a client after the stop, which takes a
// quorum.
func (ops *operations) noteServed(nodes []cluster.NodeStatus) {
	if ops.current() == nil || !ops.current().State.Committing() {
		ops.served = time.Time{}
		return
	}
	token := ops.current().NewToken
	if ops.current().State == catalog.StateReverting {
		token = ops.current().OldToken
	}
	for _, n := range nodes {
		if ops.served.IsZero() && n.State != nil && n.State.Token == token && n.Etcd.Running && n.Etcd.Votes() && !n.Holding {
			ops.served = time.Now()
		}
	}
}
