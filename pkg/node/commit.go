package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/datadir"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// stop writes down what runs and stops it. Until switch or rollback etcd stays stopped, also over a restart of the manager.
func (rs *restorer) stop(ctx context.Context, req *protosv1.Stop) error {
	op, err := rs.enter(req.GetOperation())
	if err != nil {
		return err
	}
	rs.etcd.procMu.Lock()
	defer rs.etcd.procMu.Unlock()
	if op.Phase == phaseReverted {
		return fmt.Errorf("restore %s was taken back here", op.ID)
	}
	known := op.Phase.held() || op.Phase.switched()
	if r := req.GetRecord(); len(r) > 0 && !bytes.Equal(r, op.Record) {
		op.Record = bytes.Clone(r)
		if known {
			if err := rs.records.note(op); err != nil {
				return err
			}
		}
	}
	switch {
	case op.Phase.switched():
		return nil // further than that already
	case !known:
		if err := rs.hold(op); err != nil {
			return err
		}
	}
	why := "restore " + string(op.ID)
	if op.ID == cluster.SupersededOperation {
		why = "another cluster takes the place of this one"
	}
	return rs.etcd.stopLocked(ctx, why, stopHard)
}

// hold journals that etcd is to be stopped, and the state to which a rollback returns. procMu is held.
func (rs *restorer) hold(op *journalOperation) error {
	// An etcd that can't be started on a full disk would be missed only when the old one is gone.
	if free := diskFree(rs.cfg.DataDir); op.Token != "" && free < startRoom {
		return fmt.Errorf("etcd isn't stopped: the restored one needs %d MiB on the disk of %s to start, %d MiB are free; make room or use a larger volume: %w",
			int64(startRoom)>>20, rs.cfg.DataDir, free>>20, cluster.ErrPermanent)
	}
	old, err := encodeState(rs.records.current())
	if err != nil {
		return err
	}
	op.Phase, op.Old = phaseStopped, old
	return rs.records.note(op)
}

// switchTo makes the staged data dir the current one and starts etcd on it. The state file is written before the journal: a crash in between
// leaves etcd held, or where nothing ran before is seen by operation(), and the leader asks again.
func (rs *restorer) switchTo(ctx context.Context, req *protosv1.Switch) error {
	rs.etcd.procMu.Lock()
	defer rs.etcd.procMu.Unlock()
	s := wire.StateFromProto(req.GetState())
	have := rs.records.current()
	op, noted := rs.records.switching()
	running := rs.etcd.runsAs()
	if s == nil || op == nil || string(op.ID) != req.GetOperation() || op.Token != s.Token {
		return fmt.Errorf("restore %s isn't staged here", req.GetOperation())
	}
	switch {
	case op.Phase == phaseSwitched && noted:
		return rs.etcd.startLocked(ctx, true)
	case op.Phase == phaseSwitched: // all but the journal was written
	case op.Phase == phaseStaged && have == nil: // nothing ran here
	case !op.Phase.held():
		return fmt.Errorf("restore %s is %s here, not stopped", op.ID, op.Phase)
	case running != nil && running.Token != s.Token:
		return errors.New("the old etcd still runs")
	}
	if !rs.l.hasMember(s.Token) {
		return fmt.Errorf("the staged data dir %s is gone: %w", rs.l.data(s.Token), cluster.ErrPermanent)
	}
	if err := writeState(rs.l.state(), s); err != nil {
		return err
	}
	op.Phase = phaseSwitched
	rs.records.setState(s)
	rs.etcd.switched()
	if err := rs.records.note(op); err != nil {
		return err
	}
	return rs.etcd.startLocked(ctx, true)
}

// halt stops an etcd that was switched to and reads from its log whether clients have written.
func (rs *restorer) halt(ctx context.Context, id string) error {
	rs.etcd.procMu.Lock()
	defer rs.etcd.procMu.Unlock()
	op, s := rs.records.operation(), rs.records.current()
	if op == nil || string(op.ID) != id || !op.Phase.switched() || op.Phase == phaseHalted || s == nil || s.Token != op.Token {
		return nil
	}
	return rs.haltLocked(ctx, op)
}

// haltLocked halts what is switched. The journal says first that etcd is to be stopped, so that nothing starts it again, and only when the
// log was read that it is halted: what it says of clients is an answer then. procMu is held.
func (rs *restorer) haltLocked(ctx context.Context, op *journalOperation) error {
	if op.Phase != phaseHalting {
		op.Phase = phaseHalting
		if err := rs.records.note(op); err != nil {
			return err
		}
	}
	if err := rs.etcd.stopLocked(ctx, "restore "+string(op.ID)+" may have to be taken back", stopHard); err != nil {
		return err
	}
	written, err := datadir.ClientWrites(rs.l.data(op.Token))
	switch {
	case errors.Is(err, etcd.ErrBadLog) || errors.Is(err, fs.ErrNotExist):
		// It can't be known any more, and what was acknowledged must not be lost.
		klog.Errorf("restore %s: %v; it counts as written to by clients", op.ID, err)
		written = true
	case err != nil:
		return fmt.Errorf("find out whether clients have written: %w", err)
	}
	op.Phase, op.Written = phaseHalted, op.Written || written
	klog.Infof("restore %s is halted here; %s", op.ID, map[bool]string{true: "clients have written to the restored data", false: "no client has written to the restored data"}[op.Written])
	return rs.records.note(op)
}

// rollback brings state and data from before the restore back, unless clients have written to the new data: nothing that was acknowledged is taken
// away from them.
func (rs *restorer) rollback(ctx context.Context, id string) error {
	rs.etcd.procMu.Lock()
	defer rs.etcd.procMu.Unlock()
	op := rs.records.operation()
	if op == nil || string(op.ID) != id || !op.Phase.held() && !op.Phase.switched() {
		return nil // nothing was changed yet, or is any more
	}
	if op.ID == cluster.SupersededOperation {
		return rs.records.releaseSuperseded() // StartEtcd starts it, in the state that the leader wants
	}
	old, err := op.oldState()
	if err != nil {
		return err
	}
	if op.Phase == phaseSwitched || op.Phase == phaseHalting {
		if err := rs.haltLocked(ctx, op); err != nil {
			return err
		}
	}
	if op.Written {
		return fmt.Errorf("restore %s isn't taken back: clients have written to the restored data: %w", id, cluster.ErrPermanent)
	}
	klog.Warningf("restore %s is taken back; the data from before are brought back", id)
	if old == nil {
		err = removeFile(rs.l.state())
	} else {
		err = writeState(rs.l.state(), old)
	}
	if err != nil {
		return err
	}
	rs.records.setState(old)
	op.Phase = phaseReverted
	if err := rs.records.note(op); err != nil {
		return err
	}
	return rs.etcd.startLocked(ctx, true)
}

// hashRate is how many bytes of its database etcd hashes in a second at least.
const hashRate = 20 << 20

// verify compares what the own etcd holds at the staged revision with what was staged. The facts have no hash if that can't be compared any
// more: etcd 3.4 and early 3.5 hash only the newest revision after a restore, and none does after a later compaction.
func (rs *restorer) verify(ctx context.Context, id string) (*protosv1.Facts, error) {
	op := rs.records.operation()
	as := rs.etcd.runsAs()
	switch {
	case op == nil || string(op.ID) != id || op.Phase != phaseSwitched:
		return nil, fmt.Errorf("restore %s hasn't switched here", id)
	case as == nil || as.Token != op.Token:
		return nil, errors.New("etcd isn't running here")
	}
	// A connection of its own: health isn't to wait behind a long answer.
	c, err := rs.etcd.dial(as)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second+time.Duration(op.SizeBytes/hashRate)*time.Second)
	defer cancel()
	h, err := c.HashKV(ctx, op.Revision)
	switch {
	case errors.Is(err, client.ErrCompacted):
		klog.Infof("restore %s can't be compared with what was staged any more: %v", id, err)
		return &protosv1.Facts{Revision: op.Revision, Keys: op.Keys, SizeBytes: op.SizeBytes}, nil
	case errors.Is(err, client.ErrFutureRevision):
		return nil, fmt.Errorf("etcd doesn't have the staged revision %d with hash %d: %w: %w", op.Revision, op.Hash, cluster.ErrPermanent, err)
	case err != nil:
		return nil, err
	case h.Hash != op.Hash:
		return nil, fmt.Errorf("etcd has hash %d at revision %d, staged was hash %d: %w", h.Hash, op.Revision, op.Hash, cluster.ErrPermanent)
	}
	return op.facts(), nil
}
