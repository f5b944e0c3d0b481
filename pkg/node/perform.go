package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

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
		return a.salvager.salvage(ctx, req, t)
	case *protosv1.PerformRequest_VerifyBackup:
		return a.verifier.verifyBackup(ctx, x.VerifyBackup, t)
	case *protosv1.PerformRequest_Verify:
		event = &protosv1.PerformEvent{Done: true}
		event.Facts, err = a.restorer.verify(ctx, x.Verify.GetOperation())
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
	if req.GetReleaseVolume() != nil {
		// The leader has just looked whether every other member is healthy. By the time that this node is free again it may not be true any more.
		select {
		case a.one <- struct{}{}:
		default:
			return errNotNow
		}
	} else {
		select {
		case a.one <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	defer func() { <-a.one }()
	if err := a.takeTurn(ctx, req, t); err != nil {
		return err
	}
	defer a.records.endTurn()
	return do()
}

// takeTurn begins to change the node, if the leadership that asked isn't over.
func (a *Agent) takeTurn(ctx context.Context, req *protosv1.PerformRequest, t *task) error {
	return a.records.takeTurn(cluster.Term(req.GetTerm()), cluster.NodeID(req.GetLeader()), actionName(req), func() error {
		if err := ctx.Err(); err != nil {
			return err // a higher leadership has asked for the same meanwhile
		}
		if _, releasing := a.volume.status(); releasing != "" && req.GetReleaseVolume() == nil {
			return errReleased
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		t.begun = true
		return nil
	})
}

func (a *Agent) act(ctx context.Context, req *protosv1.PerformRequest, t *task) (*protosv1.Facts, error) {
	switch x := req.GetAction().(type) {
	case *protosv1.PerformRequest_StartEtcd:
		return nil, a.startEtcd(ctx, x.StartEtcd)
	case *protosv1.PerformRequest_SetAside:
		return nil, a.setAside(ctx, x.SetAside)
	case *protosv1.PerformRequest_Prove:
		return a.restorer.prove(ctx, x.Prove, t)
	case *protosv1.PerformRequest_Stage:
		return a.restorer.stage(ctx, x.Stage, t)
	case *protosv1.PerformRequest_Stop:
		return nil, a.restorer.stop(ctx, x.Stop)
	case *protosv1.PerformRequest_Switch:
		return nil, a.restorer.switchTo(ctx, x.Switch)
	case *protosv1.PerformRequest_Halt:
		return nil, a.restorer.halt(ctx, x.Halt.GetOperation())
	case *protosv1.PerformRequest_Rollback:
		return nil, a.restorer.rollback(ctx, x.Rollback.GetOperation())
	case *protosv1.PerformRequest_StopMember:
		return nil, a.etcd.stopMember(ctx, x.StopMember.GetReason())
	case *protosv1.PerformRequest_ReleaseVolume:
		return nil, a.volume.begin(x.ReleaseVolume)
	case *protosv1.PerformRequest_Defragment:
		return nil, a.etcd.defragment(ctx)
	case *protosv1.PerformRequest_Discard:
		return nil, a.restorer.discard(x.Discard.GetOperation())
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
		if err := a.etcd.clearOldEntries(ctx, s); err != nil {
			return err
		}
	}
	a.etcd.procMu.Lock()
	defer a.etcd.procMu.Unlock()
	if err := a.records.accept(s, req); err != nil {
		return err
	}
	if err := a.etcd.startLocked(ctx, req.GetRestart()); err != nil {
		return err
	}
	a.etcd.noteOutdated()
	return nil
}

// setAside frees this node from a cluster. The data are kept in the trash can.
func (a *Agent) setAside(ctx context.Context, req *protosv1.SetAside) error {
	token, reason := cluster.Token(req.GetToken()), req.GetReason()
	a.etcd.procMu.Lock()
	defer a.etcd.procMu.Unlock()
	s := a.records.current()
	if s == nil {
		return nil // done already
	}
	if s.Token != token {
		return fmt.Errorf("this node belongs to cluster %s, not to %s", s.Token, token)
	}
	klog.Warningf("leaving cluster %s: %s; its data are kept in the trash can", token, reason)
	if err := a.etcd.stopLocked(ctx, reason, stopServing); err != nil {
		return err
	}
	if err := a.l.discardDir(token, trashNote{EtcdVersion: s.EtcdVersion, NeverServed: req.GetNeverServed() && s.NewCluster && s.Quarantined}); err != nil {
		return err
	}
	a.trash.kick()
	if err := removeFile(a.l.state()); err != nil {
		return err
	}
	a.etcd.left()
	if err := a.records.leave(token); err != nil {
		return err
	}
	a.restorer.forgetCertificates(token)
	return nil
}

// takeBackup streams a snapshot of the own etcd into the store. It holds no lock, so the node goes on answering and acting.
func (a *Agent) takeBackup(ctx context.Context, req *protosv1.TakeBackup, t *task) (*protosv1.PerformEvent, error) {
	if a.writer == nil {
		return nil, fmt.Errorf("take backup: no store: %w", cluster.ErrPermanent)
	}
	s := a.etcd.runsAs()
	if s == nil {
		return nil, errors.New("take backup: etcd isn't running here")
	}
	// A connection of its own: a restart of etcd in the middle closes the other one, and health is not to wait behind a long stream.
	c, err := a.etcd.dial(s)
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
