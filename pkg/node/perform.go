package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
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

// perform carries out one action. They take turns, but for those that may take long for the store's sake or only look.
func (a *Agent) perform(ctx context.Context, req *protosv1.PerformRequest, t *task) (*protosv1.PerformEvent, error) {
	name := actionName(req)
	started := time.Now()
	var event *protosv1.PerformEvent
	var err error
	switch x := req.GetAction().(type) {
	case *protosv1.PerformRequest_TakeBackup:
		return a.takeBackup(ctx, x.TakeBackup, t)
	case *protosv1.PerformRequest_Salvage:
		return a.salvage(ctx, req, t)
	case *protosv1.PerformRequest_VerifyBackup:
		return a.verifier.verifyBackup(ctx, x.VerifyBackup, t)
	case *protosv1.PerformRequest_Verify:
		event = &protosv1.PerformEvent{Done: true}
		event.Facts, err = a.verify(ctx, x.Verify.GetOperation())
	default:
		event = &protosv1.PerformEvent{Done: true}
		err = a.inTurn(ctx, req, t, func() (err error) {
			started = time.Now()
			event.Facts, err = a.act(ctx, req, t)
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, a.disk.name(err))
	}
	klog.V(2).Infof("did %s for leader %s (term %d) in %s", name, req.GetLeader(), req.GetTerm(), time.Since(started).Round(time.Millisecond))
	return event, nil
}

// inTurn waits until no other action changes the node, and does one then.
func (a *Agent) inTurn(ctx context.Context, req *protosv1.PerformRequest, t *task, do func() error) error {
	select {
	case a.one <- struct{}{}:
		defer func() { <-a.one }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := a.takeTurn(ctx, req, t); err != nil {
		return err
	}
	defer a.setBusy("")
	return do()
}

// takeTurn begins to change the node, unless the leadership that asked is over: the wait may have been long. Check and busy are one step
// under mu, so that a leader that looks either sees the action or has it refused.
func (a *Agent) takeTurn(ctx context.Context, req *protosv1.PerformRequest, t *task) error {
	if err := a.fenced(cluster.Term(req.GetTerm()), cluster.NodeID(req.GetLeader())); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.obeyLocked(cluster.Term(req.GetTerm()), cluster.NodeID(req.GetLeader())); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err // a higher leadership has asked for the same meanwhile
	}
	if _, releasing := a.volume.status(); releasing != "" && req.GetReleaseVolume() == nil {
		return errReleased
	}
	t.begun, a.busy = true, actionName(req)
	return nil
}

func (a *Agent) act(ctx context.Context, req *protosv1.PerformRequest, t *task) (*protosv1.Facts, error) {
	switch x := req.GetAction().(type) {
	case *protosv1.PerformRequest_StartEtcd:
		return nil, a.startEtcd(ctx, x.StartEtcd)
	case *protosv1.PerformRequest_SetAside:
		return nil, a.setAside(ctx, cluster.Token(x.SetAside.GetToken()), x.SetAside.GetReason())
	case *protosv1.PerformRequest_Prove:
		return a.prove(ctx, x.Prove, t)
	case *protosv1.PerformRequest_Stage:
		return a.stage(ctx, x.Stage, t)
	case *protosv1.PerformRequest_Stop:
		return nil, a.stop(ctx, x.Stop)
	case *protosv1.PerformRequest_Switch:
		return nil, a.switchTo(ctx, x.Switch)
	case *protosv1.PerformRequest_Halt:
		return nil, a.halt(ctx, x.Halt.GetOperation())
	case *protosv1.PerformRequest_Rollback:
		return nil, a.rollback(ctx, x.Rollback.GetOperation())
	case *protosv1.PerformRequest_StopMember:
		return nil, a.stopMember(ctx, x.StopMember.GetReason())
	case *protosv1.PerformRequest_ReleaseVolume:
		return nil, a.volume.begin(x.ReleaseVolume)
	case *protosv1.PerformRequest_Defragment:
		return nil, a.defragment(ctx)
	case *protosv1.PerformRequest_Discard:
		return nil, a.discard(x.Discard.GetOperation())
	}
	return nil, fmt.Errorf("unknown action %T; this manager is older than the leader: %w", req.GetAction(), cluster.ErrPermanent)
}

func actionName(req *protosv1.PerformRequest) string {
	m := req.ProtoReflect()
	if f := m.WhichOneof(m.Descriptor().Oneofs().ByName("action")); f != nil {
		return string(f.Name())
	}
	return "nothing"
}

func (a *Agent) setBusy(what string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.busy = what
}

// startEtcd takes over a state and makes etcd run so.
func (a *Agent) startEtcd(ctx context.Context, req *protosv1.StartEtcd) error {
	s := wire.StateFromProto(req.GetState())
	if s == nil || s.Token == "" || s.Node(a.cfg.Self.Name) == nil {
		return fmt.Errorf("the state doesn't name this node: %w", cluster.ErrPermanent)
	}
	if err := a.provable(s); err != nil {
		return err
	}
	if req.GetRestart() {
		if err := a.clearOldEntries(ctx, s); err != nil {
			return err
		}
	}
	a.procMu.Lock()
	defer a.procMu.Unlock()
	if err := a.accept(s, req); err != nil {
		return err
	}
	if err := a.startLocked(ctx, req.GetRestart()); err != nil {
		return err
	}
	a.noteOutdated()
	return nil
}

// accept checks a new state against what is here and writes it.
func (a *Agent) accept(s *cluster.EtcdState, req *protosv1.StartEtcd) error {
	mayBeEmpty := req.GetMayBeEmpty()
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.stateErr != nil:
		return a.stateErr
	case a.state != nil && a.state.Token != s.Token:
		return fmt.Errorf("this node belongs to cluster %s, not to %s", a.state.Token, s.Token)
	}
	if a.state == nil {
		if !mayBeEmpty {
			return fmt.Errorf("this node has no data of cluster %s", s.Token)
		}
		// Left from a membership whose state file is gone; it is kept, but never started again.
		if err := a.l.discardDir(s.Token, "", 0); err != nil {
			return err
		}
		a.trash.kick()
		if a.j.Begun != "" { // another membership begins
			j := a.j
			j.Begun = ""
			if err := a.setJournal(j); err != nil {
				return err
			}
		}
		a.badSince, a.restarts = time.Now(), 0 // what happened in an earlier membership says nothing of this one
	}
	if err := a.release(s.Token); err != nil {
		return err
	}
	if mayBeEmpty && a.dataLost(s.Token) {
		return a.errDataLost(s.Token)
	}
	if mayBeEmpty && !a.l.hasMember(s.Token) && a.j.MayBeEmpty != s.Token {
		j := a.j
		j.MayBeEmpty = s.Token
		if err := a.setJournal(j); err != nil {
			return err
		}
	}
	if req.GetSettings() != nil {
		if err := a.takeSettings(req.GetSettings().GetValues()); err != nil {
			return err
		}
	}
	if err := writeState(a.l.state(), s); err != nil {
		return err
	}
	a.state = s
	a.changes.note()
	return nil
}

// release ends a hold that a restore has left on the data of a token: the leader knows that the restore is over. mu is held.
func (a *Agent) release(token cluster.Token) error {
	if !a.holding() {
		return nil
	}
	klog.Infof("restore %s is over; etcd isn't held any more", a.j.Operation.ID)
	j := a.j
	op := *j.Operation
	op.Phase = phaseReverted
	if token == op.Token {
		op.Phase = phaseSwitched
	}
	j.Operation = &op
	return a.setJournal(j)
}

// setAside frees this node from a cluster. The data are kept in the trash can.
func (a *Agent) setAside(ctx context.Context, token cluster.Token, reason string) error {
	a.procMu.Lock()
	defer a.procMu.Unlock()
	a.mu.Lock()
	s := a.state
	a.mu.Unlock()
	if s == nil {
		return nil // done already
	}
	if s.Token != token {
		return fmt.Errorf("this node belongs to cluster %s, not to %s", s.Token, token)
	}
	klog.Warningf("leaving cluster %s: %s; its data are kept in the trash can", token, reason)
	if err := a.stopLocked(ctx, reason, stopServing); err != nil {
		return err
	}
	if err := a.l.discardDir(token, s.EtcdVersion, 0); err != nil {
		return err
	}
	a.trash.kick()
	if err := removeFile(a.l.state()); err != nil {
		return err
	}
	a.mu.Lock()
	a.state, a.lastExit, a.startErr, a.paused = nil, "", "", ""
	a.health = cluster.EtcdStatus{}
	err := a.release(token)
	a.changes.note()
	a.mu.Unlock()
	if err != nil {
		return err
	}
	a.forgetCertificates(token)
	return nil
}

// takeBackup streams a snapshot of the own etcd into the store. It holds no lock, so the node goes on answering and acting.
func (a *Agent) takeBackup(ctx context.Context, req *protosv1.TakeBackup, t *task) (*protosv1.PerformEvent, error) {
	if a.writer == nil {
		return nil, fmt.Errorf("take backup: no store: %w", cluster.ErrPermanent)
	}
	a.mu.Lock()
	s := a.procAs.Clone()
	a.mu.Unlock()
	if s == nil {
		return nil, errors.New("take backup: etcd isn't running here")
	}
	// A connection of its own: a restart of etcd in the middle closes the other one, and health is not to wait behind a long stream.
	c, err := a.dial(s)
	if err != nil {
		return nil, fmt.Errorf("take backup: %w", err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	asked := time.Now()
	st, err := c.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("take backup: %w", err)
	}
	snap, err := c.Snapshot(ctx)
	if err != nil {
		return nil, fmt.Errorf("take backup: %w", err)
	}
	// The snapshot's revision is between this one and the one before. What it is exactly, is not to be had without opening it.
	after, err := c.Status(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take backup: %w", err), snap.Close())
	}
	m, err := a.writer.Write(ctx, req.GetName(), backup.Facts{
		ClusterName: a.cfg.ClusterName, ClusterID: st.ClusterID, MemberID: st.MemberID, Node: cluster.NodeID(a.cfg.Self.Name),
		EtcdVersion: st.Version, Spec: wire.SpecFromProto(req.GetSpec()), Revision: st.Revision, RevisionAtMost: after.Revision, RevisionAt: asked, Size: snap.Size, Reason: req.GetReason(),
	}, &patientReader{snap.Unverified(), cancel}, func(p backup.Progress) { t.report("upload", p.Done, p.Total) })
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, errSnapshotStalled) {
		err = cause
	}
	if err != nil {
		return nil, fmt.Errorf("take backup: %w", err)
	}
	klog.Infof("backup %s (%s): revision %d, %d bytes stored, took %s", m.Backup, m.Reason, m.Revision, m.Stored.Size, m.Duration().Round(time.Millisecond))
	return backupEvent(m), nil
}

// streamPatience is how long etcd may send nothing in the middle of a snapshot.
const streamPatience = 30 * time.Second

var errSnapshotStalled = fmt.Errorf("etcd has sent nothing of its snapshot for %s", streamPatience)

// patientReader cancels when a read takes too long. How long the other side takes to ask for more doesn't count.
type patientReader struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

func (p *patientReader) Read(b []byte) (int, error) {
	t := time.AfterFunc(streamPatience, func() { p.cancel(errSnapshotStalled) })
	defer t.Stop()
	return p.ReadCloser.Read(b)
}

// permanent tells whether trying again can't help.
func permanent(err error) bool {
	return errors.Is(err, cluster.ErrPermanent) || errors.Is(err, cluster.ErrCorrupt) || errors.Is(err, cluster.ErrFuture) ||
		errors.Is(err, etcd.ErrBadDatabase) || errors.Is(err, etcd.ErrBadSnapshot) || errors.Is(err, etcd.ErrVersion)
}
