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

// commitPatience is how long a step waits for the store while etcd is stopped, before it goes on without.
const commitPatience = 3 * time.Second

// readOperations keeps the restore under way in step with its record, and remembers which ones have ended.
func (l *leadership) readOperations(ctx context.Context, list catalog.ControlListing) error {
	s := &l.store
	if s.ended == nil {
		s.ended, s.failed = map[string]string{}, map[string]string{}
	}
	defer s.showFailed(list.Operations)
	if err := l.settle(ctx); err != nil {
		return err
	}
	if l.op != nil {
		return nil // this leadership writes it; nobody else does
	}
	var fresh []catalog.Object
	for _, obj := range list.Operations {
		if s.ended[obj.Name] != obj.Stamp {
			fresh = append(fresh, obj)
		}
	}
	return l.readRecords(ctx, fresh)
}

// showFailed keeps FailedRestores to those of which there is still a record.
func (s *storeView) showFailed(there []catalog.Object) {
	s.FailedRestores = nil
	for name, why := range s.failed {
		if slices.ContainsFunc(there, func(o catalog.Object) bool { return o.Name == name }) {
			s.FailedRestores = append(s.FailedRestores, why)
		} else {
			delete(s.failed, name)
		}
	}
	slices.Sort(s.FailedRestores)
}

// record is an operation as it was read, or why it couldn't be.
type record struct {
	op  catalog.Operation
	ver string
	err error
}

// readRecords reads the records of operations. What was read is kept if the time is over, so that the next attempt goes on. A record
// that can't be read may be of a restore in the middle of its commit: as long as there is one, no other is begun.
func (l *leadership) readRecords(ctx context.Context, fresh []catalog.Object) error {
	s := &l.store
	var mu sync.Mutex
	got := map[string]record{}
	err := inParallel(reads, fresh, func(obj catalog.Object) error {
		op, ver, err := l.m.cfg.Catalog.Operation(ctx, obj.Name)
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
			l.learn(&r.op)
			s.ended[obj.Name] = obj.Stamp
		default:
			found = &r
		}
	}
	if err != nil {
		return fmt.Errorf("read the records of operations, %d of %d are left: %w", len(fresh)-len(got), len(fresh), err)
	}
	s.unread = unread
	s.note("operations", problem)
	if found != nil {
		l.learn(&found.op)
		klog.Infof("restore %s of %s was left in state %s; going on with it", found.op.ID, subject(&found.op), found.op.State)
		l.op, l.opVer = &found.op, found.ver
	}
	return nil
}

// inParallel does something for all items, a few at once, and returns the first error; what was not begun then is left.
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
func (l *leadership) learn(op *catalog.Operation) {
	s := &l.store
	s.highest = max(s.highest, op.RevisionBefore, op.RevisionAfter)
	switch op.State {
	case catalog.StateFailed:
		if op.Kind == catalog.KindBackup {
			return // nothing waits for it
		}
		s.failed[op.ID] = op.ID + ": " + subject(op) + ": " + op.Reason
	case catalog.StateRolledBack:
		s.RolledBack = append(s.RolledBack, *toPlan(op))
		if n := len(s.RolledBack); n > rolledBackKept {
			s.RolledBack = s.RolledBack[n-rolledBackKept:]
		}
	}
}

// rolledBackKept is how many restores that were taken back are remembered, for nodes that were away when it happened.
const rolledBackKept = 2

// subject says what is restored.
func subject(op *catalog.Operation) string {
	if op.Backup == "" && op.Source != nil {
		return "the data of cluster " + string(op.Source.Token)
	}
	return "backup " + op.Backup
}

// forgetOperation has the record read again.
func (l *leadership) forgetOperation() {
	l.op, l.opVer, l.opUnsaved = nil, "", false
}

// stepWaits tells whether the step that was just tried waits for its next attempt.
func (l *leadership) stepWaits() bool { return l.opFails > 0 }

// settle writes what could only be remembered while the store was away. Whoever wrote in between wins.
func (l *leadership) settle(ctx context.Context) error {
	if l.op == nil || !l.opUnsaved {
		return nil
	}
	stored, ver, err := l.m.cfg.Catalog.Operation(ctx, l.op.ID)
	gone := errors.Is(err, catalog.ErrNotFound)
	damaged := errors.Is(err, cluster.ErrCorrupt) // what the nodes' journals say takes its place
	if err != nil && !gone && !damaged {
		return err
	}
	if !damaged && (gone || stored.State.Final() || stored.Term > l.term) {
		klog.Warningf("restore %s: the store has another end of it than this leader; going by the store", l.op.ID)
		l.forgetOperation()
		return nil
	}
	if ver, err = l.m.cfg.Catalog.PutOperation(ctx, *l.op, ver); err != nil {
		return err
	}
	l.opVer, l.opUnsaved = ver, false
	return nil
}

// recall takes the restore under way from the nodes' journals when the store can't be asked. It is only needed while etcd is held for it:
// of a cluster that serves nothing has to be known in a hurry.
func (l *leadership) recall(nodes []cluster.NodeStatus) {
	if l.op != nil || l.store.Error == "" && len(l.store.unread) == 0 {
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
			l.said.Warningf("journal of "+string(n.ID), "%v", err)
			continue
		}
		if _, bad := l.store.unread[op.ID]; l.store.Error == "" && !bad {
			continue
		}
		if op.State.Committing() && (newest == nil || laterOperation(&op, newest)) {
			newest = &op
		}
	}
	if newest == nil || !held || l.store.ended[newest.ID] != "" {
		return
	}
	why := "the store is away"
	if l.store.Error == "" {
		why = "its record in the store can't be read"
	}
	l.said.Warningf("recalled "+newest.ID, "%s, and the nodes are in the middle of restore %s; going on with what their journals say", why, newest.ID)
	newest.StateSince = time.Now()
	l.op, l.opVer, l.opUnsaved = newest, l.store.unread[newest.ID], true
}

// committing are the states of a record that a journal can have, in the order in which they are reached.
var committing = []catalog.OperationState{catalog.StateStopping, catalog.StateSwitching, catalog.StateVerifying, catalog.StateReverting}

// laterOperation tells whether a says more than b. No clock decides: a node that was away for long may have the journal of a restore that ended long ago, with
// whatever time. Terms grow, revisions grow over restores, and states have their order.
func laterOperation(a, b *catalog.Operation) bool {
	return cmp.Or(cmp.Compare(a.Term, b.Term), cmp.Compare(a.RevisionBefore, b.RevisionBefore),
		cmp.Compare(slices.Index(committing, a.State), slices.Index(committing, b.State))) > 0
}

// planOperation is the restore under way as plan sees it.
func (l *leadership) planOperation() *model.Operation {
	if l.op == nil {
		return nil
	}
	op := toPlan(l.op)
	op.RetryAt = l.opRetry
	op.Withdrawn = l.store.Error == "" && l.opRemoved != op.ID &&
		!slices.ContainsFunc(l.store.listing.Commands, func(o catalog.Object) bool { return o.Name == l.op.Command })
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
		p.Source = model.Source{Node: op.Source.Node, Token: op.Source.Token, OrBackup: op.Source.OrBackup}
	}
	return p
}

// save writes the operation's record; what it says is true only afterwards. From the moment on when etcd is stopped the record may be
// ahead of the store: the nodes' journals know of the operation too, and clients wait.
func (l *leadership) save(ctx context.Context, change func(*catalog.Operation)) error {
	op := l.op.Clone()
	change(&op)
	op.Term, op.Leader, op.Instance = l.term, l.m.cfg.Self, l.m.cfg.Instance
	urgent := l.op.State.Committing() && op.State.Committing()
	if urgent && l.store.Error != "" {
		l.op, l.opUnsaved = &op, true
		return nil
	}
	limit := quickAction
	if urgent {
		limit = commitPatience
	}
	tctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ver, err := l.m.cfg.Catalog.PutOperation(tctx, op, l.opVer)
	switch {
	case err == nil:
		l.op, l.opVer, l.opUnsaved = &op, ver, false
		return nil
	case !urgent || errors.Is(err, catalog.ErrConflict) || ctx.Err() != nil:
		return err
	}
	l.storeFailed(err)
	l.op, l.opUnsaved = &op, true
	return nil
}

// storeFailed remembers that the store doesn't answer, so that nothing else waits for it.
func (l *leadership) storeFailed(err error) {
	klog.Warningf("the store doesn't answer in the middle of a restore, which goes on without it: %v", err)
	l.store.Error, l.store.failedAt = err.Error(), time.Now()
	l.store.failures = 1
}
