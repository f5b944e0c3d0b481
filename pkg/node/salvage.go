package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/datadir"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/salvage"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// quorumPatience is how long etcd must have been without a quorum before it is stopped for its data: longer than an election takes.
const quorumPatience = 5 * time.Second

// salvager makes backups of data that no etcd serves any more. Requests may come concurrently; what changes the node waits for its turn.
type salvager struct {
	cfg      *Config
	l        layout
	etcd     *supervisor
	restorer *restorer
	records  *records
	disk     *disk
	trash    *trashCan
	writer   *backup.Writer
	// inTurn does something that changes the node, when nothing else does.
	inTurn func(ctx context.Context, req *protosv1.PerformRequest, t *task, do func() error) error
}

// salvage makes a backup in the store out of a data dir that has no cluster any more. Only the copy is made in turn: a store that
// hangs keeps nothing else waiting, and an etcd that was stopped for the copy runs again before the first byte is sent.
func (sg *salvager) salvage(ctx context.Context, req *protosv1.PerformRequest, t *task) (*protosv1.PerformEvent, error) {
	s := req.GetSalvage()
	if sg.writer == nil {
		return nil, fmt.Errorf("salvage: no store: %w", cluster.ErrPermanent)
	}
	// It also shows that the store answers, before anything is stopped.
	if e, err := sg.salvaged(ctx, s); e != nil || err != nil {
		return e, err
	}
	var data *salvagedData
	err := sg.inTurn(ctx, req, t, func() (err error) {
		data, err = sg.copyData(ctx, s, t)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("salvage the data of cluster %s: %w", s.GetToken(), sg.disk.explain(err))
	}
	defer func() {
		if err := data.Close(); err != nil {
			klog.Warningf("%v", err)
		}
	}()
	m, err := sg.uploadSalvaged(ctx, s, data, t)
	if err != nil {
		return nil, fmt.Errorf("salvage the data of cluster %s: %w", s.GetToken(), err)
	}
	klog.Infof("backup %s (%s) has the data of cluster %s: revision %d, %d bytes stored", m.Backup, m.Reason, s.GetToken(), m.Revision, m.Stored.Size)
	return backupEvent(m), nil
}

func backupEvent(m *catalog.Manifest) *protosv1.PerformEvent {
	return &protosv1.PerformEvent{Done: true, Backup: m.Backup, Facts: &protosv1.Facts{
		Revision: m.Revision, SizeBytes: m.Stored.Size, EtcdVersion: m.EtcdVersion, ClusterId: uint64(m.ClusterID)}}
}

// salvaged returns what an earlier request has made; nil if there is nothing.
func (sg *salvager) salvaged(ctx context.Context, s *protosv1.Salvage) (*protosv1.PerformEvent, error) {
	_, err := sg.cfg.Catalog.BackupInfo(ctx, s.GetName())
	if errors.Is(err, catalog.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("salvage: look for backup %s: %w", s.GetName(), err)
	}
	m, err := sg.cfg.Catalog.Manifest(ctx, s.GetName())
	if err != nil && !errors.Is(err, catalog.ErrNotFound) {
		return nil, fmt.Errorf("salvage: look for backup %s: %w", s.GetName(), err)
	}
	if m == nil || m.Reason != s.GetReason() || m.ClusterName != sg.cfg.ClusterName {
		return nil, fmt.Errorf("salvage: there is a backup %s already, and it is another one: %w", s.GetName(), cluster.ErrPermanent)
	}
	return backupEvent(m), nil
}

// salvagedData is the copy, and whose it is.
type salvagedData struct {
	*salvage.Database
	info datadir.Info
}

// source is a data dir to be salvaged.
type source struct {
	dir string
	// version is that of the etcd that ran on it; empty if it isn't known.
	version string
	// own is true if this node's etcd belongs to it.
	own bool
}

// findData looks for the data dir of a token: the current one, or the newest in the trash can, which then stays until release is called.
func (sg *salvager) findData(token cluster.Token) (from source, release func(), err error) {
	s := sg.records.current()
	if s != nil && s.Token == token && sg.l.hasMember(token) {
		return source{dir: sg.l.data(token), version: s.EtcdVersion, own: true}, func() {}, nil
	}
	it, release, err := sg.trash.pin(token)
	if err != nil {
		return source{}, nil, err
	}
	return source{dir: it.path, version: it.note.EtcdVersion}, release, nil
}

// copyData makes a copy of the data dir that can be read like a running etcd's.
func (sg *salvager) copyData(ctx context.Context, s *protosv1.Salvage, t *task) (*salvagedData, error) {
	op, err := sg.restorer.enter(s.GetOperation())
	if err != nil {
		return nil, err
	}
	from, release, err := sg.findData(cluster.Token(s.GetToken()))
	if err != nil {
		return nil, err
	}
	defer release()
	if op.Phase == phaseBegun { // what lies in the staging area is known as the operation's
		if err := sg.records.note(op); err != nil {
			return nil, err
		}
	}
	work := sg.l.salvage(op.ID)
	if err := sg.l.makeDir(filepath.Dir(work)); err != nil {
		return nil, fmt.Errorf("create staging area: %w", err)
	}
	// A copy, and what its etcd makes of the log. What an earlier attempt has left is removed.
	if err := sg.disk.room("a copy of "+from.dir, max(0, 2*diskUsage(from.dir)-diskUsage(work))); err != nil {
		return nil, err
	}
	info, err := datadir.Inspect(from.dir)
	if err != nil {
		return nil, err
	}
	bin, err := sg.reader(ctx, from)
	if err != nil {
		return nil, err
	}
	if from.own {
		resume, err := sg.etcd.pause(ctx, "its data are copied")
		if err != nil {
			return nil, err
		}
		defer resume()
	}
	klog.Infof("copying %s, to make backup %s (%s) of it with etcd %s", from.dir, s.GetName(), s.GetReason(), bin.Version)
	t.report("copy", 0, 0)
	data, err := salvage.Run(ctx, salvage.Config{
		DataDir: from.dir, WorkDir: work, Binary: bin, SelfExe: sg.cfg.Executable, KeepFree: headroom, Stdout: sg.cfg.Stdout, Stderr: sg.cfg.Stderr,
	})
	if err != nil {
		return nil, err
	}
	return &salvagedData{data, info}, nil
}

// reader picks the etcd that opens a data dir: of the version that ran on it, or else the newest of that minor version or the next.
func (sg *salvager) reader(ctx context.Context, from source) (process.Binary, error) {
	version := from.version
	if version == "" {
		facts, err := database.Check(ctx, sg.cfg.Executable, filepath.Join(from.dir, "member", "snap", "db"), database.CheckOptions{SkipHash: true})
		if err != nil {
			return process.Binary{}, err
		}
		version = facts.WrittenBy() + newestPatch
	}
	bin, err := sg.cfg.Binaries.Nearest(version)
	if err == nil {
		return bin, nil
	}
	if v, perr := cluster.ParseVersion(version); perr == nil {
		if bin, nerr := sg.cfg.Binaries.Nearest(fmt.Sprintf("%d.%d", v.Major, v.Minor+1) + newestPatch); nerr == nil {
			return bin, nil
		}
	}
	return process.Binary{}, fmt.Errorf("this node can't read data of etcd %s: %w (%w)", version, err, cluster.ErrPermanent)
}

// newestPatch makes a version of a minor version to which the newest that is installed is the nearest.
const newestPatch = ".9999"

// pause stops an etcd that has no quorum until resume is called. It isn't written down anywhere: a manager that is killed meanwhile starts
// etcd again.
func (sv *supervisor) pause(ctx context.Context, why string) (resume func(), err error) {
	if err := sv.awaitNoQuorum(ctx); err != nil {
		return nil, err
	}
	sv.procMu.Lock()
	defer sv.procMu.Unlock()
	sv.mu.Lock()
	sv.paused = why
	sv.mu.Unlock()
	resume = func() {
		sv.mu.Lock()
		sv.paused = ""
		sv.mu.Unlock()
		sv.poke() // supervise starts it
	}
	if err := sv.stopLocked(ctx, why, stopHard); err != nil {
		resume()
		return nil, err
	}
	return resume, nil
}

// awaitNoQuorum returns once etcd is down, or was not healthy for a while. One that is healthy is left alone.
func (sv *supervisor) awaitNoQuorum(ctx context.Context) error {
	for {
		sv.probe(ctx, 0)
		sv.mu.Lock()
		running, serves, learner, since := sv.proc != nil, sv.health.Votes(), sv.health.Learner, sv.badSince
		sv.mu.Unlock()
		switch {
		case !running, learner: // a learner can't know of a quorum; the leader has asked the voters
			return nil
		case serves:
			return fmt.Errorf("the cluster has a quorum; take a backup instead: %w", cluster.ErrPermanent)
		case !since.IsZero() && time.Since(since) >= quorumPatience:
			return nil
		}
		if !sleep(ctx, 250*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// uploadSalvaged makes the backup.
func (sg *salvager) uploadSalvaged(ctx context.Context, s *protosv1.Salvage, data *salvagedData, t *task) (*catalog.Manifest, error) {
	// Data without a meta file are of an upload that was cut, and would be taken for those of another.
	half, err := sg.cfg.Catalog.HasBackupData(ctx, s.GetName())
	if err != nil {
		return nil, err
	}
	if half {
		if _, err := sg.cfg.Catalog.DeleteBackups(ctx, s.GetName()); err != nil {
			return nil, fmt.Errorf("remove what is left of backup %s: %w", s.GetName(), err)
		}
	}
	for {
		snap, err := data.Snapshot(ctx)
		if err != nil {
			return nil, err
		}
		m, err := sg.writer.Write(ctx, s.GetName(), backup.Facts{
			ClusterName: sg.cfg.ClusterName, ClusterID: data.info.ClusterID, MemberID: data.info.MemberID, Node: cluster.NodeID(sg.cfg.Self.Name),
			EtcdVersion: data.Version, Spec: wire.SpecFromProto(s.GetSpec()), Revision: data.Facts.Revision, Keys: data.Facts.Keys, Size: snap.Size, Reason: s.GetReason(),
		}, snap.Unverified(), func(p backup.Progress) { t.report("upload", p.Done, p.Total) })
		if !errors.Is(err, backup.ErrBusy) {
			return m, err
		}
		if !sleep(ctx, time.Second) { // another backup is being written; the copy would have to be made anew
			return nil, ctx.Err()
		}
	}
}
