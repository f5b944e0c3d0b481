package node

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"google.golang.org/protobuf/proto"
	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// task is an action that is being carried out. Whoever asks for the same one again attaches to it.
type task struct {
	done chan struct{}
	// preparing is the operation that the action prepares, before anything is stopped; cancel ends it when that is given up.
	preparing string
	cancel    context.CancelFunc
	// term is the leadership that asked for it; begun is true once it changes the node. Both are guarded by the agent's mu.
	term  cluster.Term
	begun bool

	mu       sync.Mutex
	progress *protosv1.PerformEvent
	result   *protosv1.PerformEvent
	err      error
}

func (t *task) report(phase string, done, total int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.progress = &protosv1.PerformEvent{Phase: phase, BytesDone: done, BytesTotal: total}
}

func (t *task) latest() *protosv1.PerformEvent {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.progress
}

// operationOf names the operation that an action prepares, or discards.
func operationOf(req *protosv1.PerformRequest) (preparing, discarded string) {
	switch x := req.GetAction().(type) {
	case *protosv1.PerformRequest_Prove:
		return x.Prove.GetOperation(), ""
	case *protosv1.PerformRequest_Stage:
		return x.Stage.GetOperation(), ""
	case *protosv1.PerformRequest_Salvage:
		return x.Salvage.GetOperation(), ""
	case *protosv1.PerformRequest_Discard:
		return "", x.Discard.GetOperation()
	}
	return "", ""
}

// giveUpFor ends what prepares an operation that the leader has given up: it asks to discard it, or prepares another one. Nothing waits then for
// a store that hangs. mu is held.
func (a *Agent) giveUpFor(req *protosv1.PerformRequest) {
	preparing, discarded := operationOf(req)
	for _, t := range a.tasks {
		if t.preparing != "" && (t.preparing == discarded || preparing != "" && t.preparing != preparing) {
			klog.Infof("what prepared restore %s is ended: it was given up", t.preparing)
			t.cancel()
		}
	}
}

// waitTasks waits for the actions under way; the context of Run, which they share, has ended.
func (a *Agent) waitTasks() {
	a.mu.Lock()
	var list []*task
	for _, t := range a.tasks {
		list = append(list, t)
	}
	a.mu.Unlock()
	for _, t := range list {
		<-t.done
	}
}

// begin starts the task of a request, or finds the one that is under way.
func (a *Agent) begin(req *protosv1.PerformRequest) (*task, error) {
	if err := a.cfg.ready(); err != nil {
		return nil, err
	}
	if err := wire.CheckNames(req); err != nil {
		return nil, fmt.Errorf("%s: %w (%w)", actionName(req), err, cluster.ErrPermanent)
	}
	if err := a.records.obey(cluster.Term(req.GetTerm()), cluster.NodeID(req.GetLeader())); err != nil {
		return nil, err
	}
	key, err := taskKey(req)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.runCtx == nil || a.runCtx.Err() != nil {
		return nil, errors.New("the node's agent isn't running")
	}
	if t := a.tasks[key]; t != nil {
		if t.begun || t.term == cluster.Term(req.GetTerm()) {
			return t, nil
		}
		t.cancel() // it waits for its turn, in which it would be refused, since the leadership that asked for it is over
	}
	a.giveUpFor(req)
	t := &task{done: make(chan struct{}), term: cluster.Term(req.GetTerm()), begun: !takesTurn(req)}
	t.preparing, _ = operationOf(req)
	var ctx context.Context
	ctx, t.cancel = context.WithCancel(a.runCtx)
	a.tasks[key] = t
	go func() {
		defer t.cancel()
		event, err := a.perform(ctx, req, t)
		a.mu.Lock()
		if a.tasks[key] == t {
			delete(a.tasks, key)
		}
		a.changes.note()
		a.mu.Unlock()
		t.mu.Lock()
		t.result, t.err = event, err
		t.mu.Unlock()
		close(t.done)
	}()
	return t, nil
}

// takesTurn tells whether an action waits until no other one changes the node.
func takesTurn(req *protosv1.PerformRequest) bool {
	switch req.GetAction().(type) {
	case *protosv1.PerformRequest_TakeBackup, *protosv1.PerformRequest_VerifyBackup, *protosv1.PerformRequest_Verify:
		return false
	}
	return true
}

// taskKey is the same for requests that ask for the same action.
func taskKey(req *protosv1.PerformRequest) (string, error) {
	c := proto.Clone(req).(*protosv1.PerformRequest)
	c.Term, c.Leader = 0, ""
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("encode action: %w", err)
	}
	return string(b), nil
}
