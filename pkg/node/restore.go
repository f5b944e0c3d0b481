package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"google.golang.org/protobuf/proto"
	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// headroom is what must be left free on the disk after a backup was staged.
const headroom = 64 << 20

// enter makes op the operation of the journal. One that was given up without this node hearing of it is cleared away first.
func (a *Agent) enter(op string) (*journalOperation, error) {
	a.mu.Lock()
	cur := a.j.Operation
	a.mu.Unlock()
	if cur != nil && cur.ID != op {
		if cur.Phase == phaseStopped {
			return nil, fmt.Errorf("etcd is held for another restore, %s", cur.ID)
		}
		if err := a.discard(cur.ID); err != nil {
			return nil, err
		}
		cur = nil
	}
	if cur == nil {
		return &journalOperation{ID: op}, nil
	}
	c := *cur
	return &c, nil
}

// note writes the operation's entry into the journal.
func (a *Agent) note(op *journalOperation) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	j := a.j
	j.Operation = op
	if err := a.setJournal(j); err != nil {
		return err
	}
	a.bump()
	return nil
}

func (op *journalOperation) facts() *protosv1.Facts {
	return &protosv1.Facts{Revision: op.Revision, Keys: op.Keys, Hash: op.Hash}
}

// prove fetches a backup and checks all that can be checked. Nothing that runs is touched.
func (a *Agent) prove(ctx context.Context, req *protosv1.Prove, t *task) (*protosv1.Facts, error) {
	op, err := a.enter(req.GetOperation())
	if err != nil {
		return nil, err
	}
	switch op.Phase {
	case "":
	case phaseProven:
		if exists(a.l.snapshot(op.ID)) && op.Backup == req.GetBackup() {
			return op.facts(), nil
		}
	default:
		return op.facts(), nil
	}
	facts, err := a.fetch(ctx, op.ID, req.GetBackup(), t)
	if err != nil {
		if permanent(err) {
			_ = os.RemoveAll(a.l.staging(op.ID))
		}
		return nil, err
	}
	op.Phase, op.Backup = phaseProven, req.GetBackup()
	op.Revision, op.Keys, op.Hash = facts.Revision, facts.Keys, facts.Hash.Hash
	if err := a.note(op); err != nil {
		return nil, err
	}
	f := op.facts()
	f.SizeBytes = facts.SizeBytes
	return f, nil
}

// fetch brings a backup into the staging area and proves it there.
func (a *Agent) fetch(ctx context.Context, op, name string, t *task) (etcd.Facts, error) {
	path := a.l.snapshot(op)
	if err := os.MkdirAll(a.l.staging(op), 0o700); err != nil {
		return etcd.Facts{}, fmt.Errorf("create staging area: %w", err)
	}
	if err := a.room(ctx, name); err != nil {
		return etcd.Facts{}, err
	}
	_, err := backup.FetchFile(ctx, a.cfg.Catalog, name, path, func(p backup.Progress) { t.report("fetch", p.Done, p.Total) })
	if errors.Is(err, syscall.ENOSPC) {
		return etcd.Facts{}, fmt.Errorf("fetch backup %s: %w: the disk of %s is full (%w)", name, err, a.cfg.DataDir, cluster.ErrPermanent)
	}
	if errors.Is(err, catalog.ErrNotFound) {
		return etcd.Facts{}, fmt.Errorf("backup %s doesn't exist in the store: %w (%w)", name, err, cluster.ErrPermanent)
	}
	if err != nil {
		return etcd.Facts{}, err
	}
	t.report("check", 0, 0)
	facts, err := etcd.Prove(ctx, a.cfg.Executable, path)
	if err != nil {
		return etcd.Facts{}, fmt.Errorf("backup %s: %w", name, err)
	}
	klog.Infof("backup %s is proven here: revision %d, %d keys, %d bytes", name, facts.Revision, facts.Keys, facts.SizeBytes)
	return facts, nil
}

// room checks that the disk can take the backup, where its manifest says how large it is.
func (a *Agent) room(ctx context.Context, name string) error {
	m, err := a.cfg.Catalog.Manifest(ctx, name)
	if err != nil {
		return nil // what is wrong with the backup is found and said by the fetch
	}
	need := m.Raw.Size + m.Raw.Size/4 + headroom
	if free := diskFree(a.cfg.DataDir); free < need {
		return fmt.Errorf("backup %s needs %d MiB on the disk of %s, %d MiB are free; make room or use a larger volume: %w",
			name, need>>20, a.cfg.DataDir, free>>20, cluster.ErrPermanent)
	}
	return nil
}

// stage builds the new data dir beside the running one.
func (a *Agent) stage(ctx context.Context, req *protosv1.Stage, t *task) (*protosv1.Facts, error) {
	op, err := a.enter(req.GetOperation())
	if err != nil {
		return nil, err
	}
	s := wire.StateFromProto(req.GetState())
	self := s.Node(a.cfg.Self.Name)
	if self == nil {
		return nil, fmt.Errorf("the restored cluster doesn't have this node: %w", cluster.ErrPermanent)
	}
	switch op.Phase {
	case phaseStaged, phaseStopped, phaseSwitched:
		if op.Token == s.Token {
			return op.facts(), nil
		}
		return nil, fmt.Errorf("restore %s is staged under token %s already, not %s", op.ID, op.Token, s.Token)
	}
	if _, done, _ := etcd.Staged(a.l.data(s.Token)); !done && !exists(a.l.snapshot(op.ID)) {
		if _, err := a.fetch(ctx, op.ID, req.GetBackup(), t); err != nil {
			return nil, err
		}
	}
	t.report("stage", 0, 0)
	cfg := etcd.StageConfig{
		SnapshotPath: a.l.snapshot(op.ID), Consume: true, SelfExe: a.cfg.Executable, DataDir: a.l.data(s.Token), Name: self.Name, Token: s.Token,
		BumpRevision: req.GetBumpRevision(), AtLeastRevision: req.GetAtLeastRevision(), MarkCompacted: true, TargetVersion: s.EtcdVersion,
	}
	for _, n := range s.Nodes {
		cfg.InitialCluster = append(cfg.InitialCluster, etcd.Peer{Name: n.Name, PeerURLs: n.PeerURLs})
	}
	for _, p := range req.GetDropPrefixes() {
		cfg.DropPrefixes = append(cfg.DropPrefixes, []byte(p))
	}
	r, err := etcd.Stage(ctx, cfg)
	if err != nil {
		return nil, err
	}
	op.Phase, op.Token, op.Backup = phaseStaged, s.Token, req.GetBackup()
	op.Revision, op.Hash, op.Keys = r.Revision, r.Hash.Hash, r.Keys
	if err := a.note(op); err != nil {
		return nil, err
	}
	klog.Infof("backup %s is staged as %s: revision %d, hash %d", op.Backup, a.l.data(s.Token), r.Revision, r.Hash.Hash)
	return op.facts(), nil
}

// stop writes down what runs and stops it. Until switch or rollback etcd stays stopped, also over a restart of the manager.
func (a *Agent) stop(ctx context.Context, id string) error {
	a.procMu.Lock()
	defer a.procMu.Unlock()
	a.mu.Lock()
	s, cur := a.state.Clone(), a.j.Operation
	a.mu.Unlock()
	if cur != nil && cur.ID != id && cur.Phase == phaseStopped {
		return fmt.Errorf("etcd is held for another restore, %s", cur.ID)
	}
	op := &journalOperation{ID: id}
	if cur != nil && cur.ID == id {
		c := *cur
		op = &c
	}
	switch op.Phase {
	case phaseSwitched:
		return nil // further than that already
	case phaseStopped:
	default:
		old, err := encodeState(s)
		if err != nil {
			return err
		}
		op.Phase, op.Old = phaseStopped, old
		if err := a.note(op); err != nil {
			return err
		}
	}
	return a.stopLocked(ctx, "restore "+id, stopHard)
}

func encodeState(s *cluster.EtcdState) ([]byte, error) {
	if s == nil {
		return nil, nil
	}
	b, err := proto.Marshal(wire.StateToProto(s))
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	return b, nil
}

// switchTo makes the staged data dir the current one. The state file is written before the journal: a crash in between leaves etcd
// held, and the leader asks again.
func (a *Agent) switchTo(ctx context.Context, req *protosv1.Switch) error {
	a.procMu.Lock()
	defer a.procMu.Unlock()
	s := wire.StateFromProto(req.GetState())
	a.mu.Lock()
	cur, running, have := a.j.Operation, a.proc != nil, a.state
	a.mu.Unlock()
	if cur == nil || cur.ID != req.GetOperation() || cur.Token != s.Token {
		return fmt.Errorf("restore %s isn't staged here", req.GetOperation())
	}
	op := *cur
	switch {
	case op.Phase == phaseSwitched:
		return a.startLocked(ctx, true)
	case op.Phase == phaseStaged && have == nil: // nothing ran here
	case op.Phase != phaseStopped:
		return fmt.Errorf("restore %s is %s here, not stopped", op.ID, op.Phase)
	case running:
		return errors.New("the old etcd still runs")
	}
	if !a.l.hasMember(s.Token) {
		return fmt.Errorf("the staged data dir %s is gone: %w", a.l.data(s.Token), cluster.ErrPermanent)
	}
	if err := writeState(a.l.state(), s); err != nil {
		return err
	}
	op.Phase = phaseSwitched
	a.mu.Lock()
	a.state, a.stateErr, a.restarts = s, nil, 0
	a.mu.Unlock()
	if err := a.note(&op); err != nil {
		return err
	}
	return a.startLocked(ctx, true)
}

// rollback brings state and data from before the restore back.
func (a *Agent) rollback(ctx context.Context, id string) error {
	a.procMu.Lock()
	defer a.procMu.Unlock()
	a.mu.Lock()
	cur := a.j.Operation
	a.mu.Unlock()
	if cur == nil || cur.ID != id || cur.Phase == phaseReverted {
		return nil
	}
	op := *cur
	if op.Phase != phaseStopped && op.Phase != phaseSwitched {
		return nil // nothing was changed yet
	}
	old, err := op.oldState()
	if err != nil {
		return err
	}
	klog.Warningf("restore %s is taken back; the data from before are brought back", id)
	if op.Phase == phaseSwitched {
		if err := a.stopLocked(ctx, "restore "+id+" is taken back", stopHard); err != nil {
			return err
		}
	}
	if old == nil {
		err = removeFile(a.l.state())
	} else {
		err = writeState(a.l.state(), old)
	}
	if err != nil {
		return err
	}
	a.mu.Lock()
	a.state = old
	a.mu.Unlock()
	op.Phase = phaseReverted
	if err := a.note(&op); err != nil {
		return err
	}
	return a.startLocked(ctx, true)
}

// discard clears away what is left of an operation: after a success the old data go into the trash can, after a failure the
// staged ones are removed.
func (a *Agent) discard(id string) error {
	a.mu.Lock()
	cur, s := a.j.Operation, a.state
	a.mu.Unlock()
	if cur == nil || cur.ID != id {
		return os.RemoveAll(a.l.staging(id))
	}
	switch cur.Phase {
	case phaseStopped:
		return fmt.Errorf("etcd is held for restore %s; it has to be switched or taken back first", id)
	case phaseSwitched:
		old, err := cur.oldState()
		if err == nil && old != nil && (s == nil || s.Token != old.Token) {
			if err := a.l.discardDir(old.Token); err != nil {
				return err
			}
			if a.cfg.Certificates != nil {
				if err := a.cfg.Certificates.Remove(a.l.pki(old.Token)); err != nil {
					klog.Warningf("%v", err)
				}
			}
		}
	default:
		if cur.Token != "" && (s == nil || s.Token != cur.Token) {
			if err := os.RemoveAll(a.l.data(cur.Token)); err != nil {
				return fmt.Errorf("remove staged data: %w", err)
			}
		}
	}
	if err := os.RemoveAll(a.l.staging(id)); err != nil {
		return fmt.Errorf("remove staging area: %w", err)
	}
	if err := a.note(nil); err != nil {
		return err
	}
	return a.l.emptyTrash(a.cfg.KeepTrash)
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove state file: %w", err)
	}
	return nil
}
