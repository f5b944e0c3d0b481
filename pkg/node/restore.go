package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"google.golang.org/protobuf/proto"
	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/datadir"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

const (
	// logRoom is what etcd lays out on disk for its write-ahead log before it writes a byte: the file in use and the next one.
	logRoom = 2 * 64 << 20
	// headroom is what must be free beside the database that is staged: the new etcd's log, and what the running etcd may take meanwhile. A
	// restore never brings an etcd to the end of its disk.
	headroom = logRoom + 64<<20
	// startRoom is what must be free when etcd is stopped, so that the new one can be started: half of its log is there already.
	startRoom = logRoom/2 + 16<<20
)

// restorer prepares a restore beside the etcd that runs, and switches to it and back. One action at a time uses it; what it shares with
// others guards itself.
type restorer struct {
	cfg      *Config
	l        layout
	etcd     *supervisor
	records  *records
	disk     *disk
	trash    *trashCan
	verifier *verifier
}

// enter finds the operation in the journal, or begins it. One that was given up without this node hearing of it is cleared away first.
func (rs *restorer) enter(name string) (*journalOperation, error) {
	id, err := cluster.ParseOperationID(name)
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", err, cluster.ErrPermanent)
	}
	cur := rs.records.operation()
	switch {
	case cur == nil:
		return &journalOperation{ID: id}, nil
	case cur.ID == id:
		return cur, nil
	case cur.Phase.held():
		return nil, fmt.Errorf("etcd is held for another restore, %s", cur.ID)
	}
	if err := rs.discard(string(cur.ID)); err != nil {
		return nil, err
	}
	return &journalOperation{ID: id}, nil
}

func (op *journalOperation) facts() *protosv1.Facts {
	return &protosv1.Facts{Revision: op.Revision, Keys: op.Keys, Hash: op.Hash, SizeBytes: op.SizeBytes, UnknownLeases: op.UnknownLeases,
		LeasesTold: op.LeasesTold}
}

// prove fetches a backup, checks all that can be checked, and plans its staging. Nothing that runs is touched.
func (rs *restorer) prove(ctx context.Context, req *protosv1.Prove, t *task) (*protosv1.Facts, error) {
	op, err := rs.enter(req.GetOperation())
	if err != nil {
		return nil, err
	}
	switch op.Phase {
	case phaseBegun:
	case phaseProven:
		if exists(rs.l.snapshot(op.ID)) && op.Backup == req.GetBackup() {
			return op.facts(), nil
		}
	default:
		return op.facts(), nil
	}
	if err := rs.runnable(req.GetEtcdVersion()); err != nil {
		return nil, err
	}
	if err := rs.beginFetch(op, req.GetBackup()); err != nil {
		return nil, err
	}
	if err := rs.verifier.end(ctx, op.ID); err != nil {
		return nil, err
	}
	f := fetcher{r: rs, op: op.ID, backup: op.Backup, replay: req.GetReplay(), anyCluster: req.GetForceForeign(), plan: database.StagePlan{
		BumpRevision: req.GetBumpRevision(), AtLeastRevision: req.GetAtLeastRevision(), MarkCompacted: req.GetBumpRevision() > 0 || req.GetAtLeastRevision() > 0,
		DropPrefixes: prefixes(req.GetDropPrefixes()), TargetVersion: req.GetEtcdVersion(),
	}}
	facts, err := f.prove(ctx, t)
	if err != nil {
		return nil, err
	}
	op.Phase, op.Revision, op.Keys, op.Hash, op.SizeBytes = phaseProven, facts.Revision, facts.Keys, facts.Hash.Hash, facts.SizeBytes
	op.UnknownLeases, op.LeasesTold = changelog.UnknownLeases(facts.Leased), true
	if facts.Planned != nil {
		op.Hash = facts.Planned.Hash.Hash
	}
	if err := rs.records.note(op); err != nil {
		return nil, err
	}
	return op.facts(), nil
}

// beginFetch journals that a backup is being brought into the staging area, so that the leader, or the next start, knows what lies there.
func (rs *restorer) beginFetch(op *journalOperation, name string) error {
	if op.Phase == phaseBegun && op.Backup == name {
		return nil
	}
	if err := rs.l.removeAll(rs.l.staging(op.ID)); err != nil {
		return fmt.Errorf("clear staging area: %w", err)
	}
	op.Phase, op.Backup = phaseBegun, name
	return rs.records.note(op)
}

// runnable checks that this node has an etcd of the version that is to run; it is found out before anything is fetched or stopped.
func (rs *restorer) runnable(version string) error {
	if version == "" {
		return nil
	}
	if _, err := rs.cfg.Binaries.Nearest(version); err != nil {
		return fmt.Errorf("this node can't run the restored cluster: %w (%w)", err, cluster.ErrPermanent)
	}
	return nil
}

func prefixes(list []string) [][]byte {
	var out [][]byte
	for _, p := range list {
		out = append(out, []byte(p))
	}
	return out
}

// fetcher brings a backup into the staging area and proves it there.
type fetcher struct {
	r      *restorer
	op     cluster.OperationID
	backup string
	// replay names the changes to be put on it; nil if it is the backup itself that is wanted.
	replay *protosv1.Replay
	// anyCluster permits the backup of another cluster.
	anyCluster bool
	plan       database.StagePlan
	// fresh is true once this fetcher has downloaded the backup itself.
	fresh bool
}

// prove fetches the backup unless it lies here whole, checks it, and plans its staging. What can never succeed leaves nothing behind.
func (f *fetcher) prove(ctx context.Context, t *task) (database.Facts, error) {
	facts, err := f.try(ctx, t)
	if permanent(err) && !f.fresh { // the file has suffered here; the backup may be as good as ever
		klog.Warningf("%v; it is fetched again", err)
		_ = f.r.l.removeAll(f.r.l.staging(f.op)) // or else it fails again, for good
		facts, err = f.try(ctx, t)
	}
	if err == nil {
		klog.Infof("backup %s is proven here: revision %d, %d keys, %d bytes", f.backup, facts.Revision, facts.Keys, facts.SizeBytes)
		if unknown := changelog.UnknownLeases(facts.Leased); unknown != "" {
			klog.Warningf("backup %s with its changes: the TTL of %s", f.backup, unknown)
		}
		return facts, nil
	}
	err = f.r.disk.explain(err)
	if errors.Is(err, etcd.ErrConfig) {
		err = fmt.Errorf("%w (%w)", err, cluster.ErrPermanent)
	}
	if permanent(err) {
		_ = f.r.l.removeAll(f.r.l.staging(f.op))
	}
	return database.Facts{}, err
}

func (f *fetcher) try(ctx context.Context, t *task) (database.Facts, error) {
	path := f.r.l.snapshot(f.op)
	// A snapshot has this name only once all its checksums were found right. One from before may have suffered on disk since.
	f.fresh = !exists(path)
	if f.fresh {
		if err := f.fetch(ctx, path, t); err != nil {
			return database.Facts{}, err
		}
	}
	t.report("check", 0, 0)
	o := database.CheckOptions{SkipHash: f.fresh, PlanPath: f.r.l.stagePlan(f.op)}
	if f.plan.MarkCompacted || f.plan.TargetVersion != "" {
		o.Plan = &f.plan
	}
	facts, err := database.Check(ctx, f.r.cfg.Executable, path, o)
	if err != nil {
		return database.Facts{}, fmt.Errorf("backup %s: %w", f.backup, err)
	}
	return facts, nil
}

// fetch checks what is known of the backup beforehand, then downloads it.
func (f *fetcher) fetch(ctx context.Context, path string, t *task) error {
	if f.r.cfg.Catalog == nil {
		return fmt.Errorf("fetch backup %s: no store: %w", f.backup, cluster.ErrPermanent)
	}
	// Half a file of an earlier attempt would count against the room.
	if err := f.r.l.removeAll(f.r.l.staging(f.op)); err != nil {
		return fmt.Errorf("clear staging area: %w", err)
	}
	m, err := f.r.cfg.Catalog.Manifest(ctx, f.backup)
	if err != nil && !errors.Is(err, catalog.ErrNotFound) {
		return fmt.Errorf("backup %s: %w", f.backup, err)
	}
	if m != nil {
		if err := f.suits(m); err != nil {
			return err
		}
	}
	if err := f.r.l.makeDir(f.r.l.staging(f.op)); err != nil {
		return fmt.Errorf("create staging area: %w", err)
	}
	fetched := path
	if f.replay != nil {
		fetched += ".base" // it has its name only once the changes are on it
	}
	_, err = backup.FetchFile(ctx, f.r.cfg.Catalog, f.backup, fetched, backup.FileOptions{
		Progress: func(p backup.Progress) { t.report("fetch", p.Done, p.Total) }, KeepFree: headroom,
	})
	if errors.Is(err, catalog.ErrNotFound) {
		return fmt.Errorf("backup %s doesn't exist in the store: %w (%w)", f.backup, err, cluster.ErrPermanent)
	}
	if err != nil || f.replay == nil {
		return err
	}
	if err := f.bringForward(ctx, fetched, t); err != nil {
		return err
	}
	if err := os.Rename(fetched, path); err != nil {
		return fmt.Errorf("name what was replayed: %w", err)
	}
	return nil
}

// bringForward puts the changes on the backup.
func (f *fetcher) bringForward(ctx context.Context, path string, t *task) error {
	r := f.replay
	archive := changelog.Archive{Catalog: f.r.cfg.Catalog}
	chain, err := f.chain(ctx, &archive)
	if err != nil {
		return fmt.Errorf("backup %s: %w", f.backup, err)
	}
	t.report("replay", 0, chain.Size())
	res, err := archive.Replay(ctx, f.r.cfg.Executable, path, chain, r.GetRevision(), func(n int64) { t.report("replay", n, chain.Size()) })
	if err != nil {
		return fmt.Errorf("backup %s: %w", f.backup, err)
	}
	klog.Infof("backup %s was brought from revision %d to %d by %s", f.backup, res.From, res.Revision, cluster.Count(len(chain.Segments), "segment"))
	return nil
}

// chain is what leads to the point: listed here, or named one by one by an older leader.
func (f *fetcher) chain(ctx context.Context, archive *changelog.Archive) (changelog.Chain, error) {
	r := f.replay
	if len(r.GetSegments()) == 0 {
		return archive.Find(ctx, &catalog.PointInTime{Incarnation: catalog.Incarnation(r.GetIncarnation()), BaseRevision: r.GetBaseRevision(), Revision: r.GetRevision(), Head: r.GetHead()})
	}
	chain := changelog.Chain{Base: r.GetBaseRevision()}
	for _, s := range r.GetSegments() {
		n, err := catalog.ParseSegmentName(s.GetName())
		if err != nil {
			return changelog.Chain{}, fmt.Errorf("%w (%w)", err, cluster.ErrPermanent)
		}
		chain.Segments = append(chain.Segments, catalog.Segment{SegmentName: n, Incarnation: catalog.Incarnation(r.GetIncarnation()), Size: s.GetSizeBytes()})
	}
	return chain, nil
}

// suits refuses, by the manifest alone, what would be fetched in vain.
func (f *fetcher) suits(m *catalog.Manifest) error {
	if m.ClusterName != "" && m.ClusterName != f.r.cfg.ClusterName && !f.anyCluster {
		return fmt.Errorf("backup %s is of cluster %q, and this is %q; to restore it all the same: etcd-manager-ctl restore-backup %s --force-foreign: %w",
			f.backup, m.ClusterName, f.r.cfg.ClusterName, f.backup, cluster.ErrPermanent)
	}
	// The database is moved into its place, not copied.
	return f.r.disk.room("backup "+f.backup, m.Raw.Size)
}

// stage builds the new data dir beside the running one.
func (rs *restorer) stage(ctx context.Context, req *protosv1.Stage, t *task) (*protosv1.Facts, error) {
	op, err := rs.enter(req.GetOperation())
	if err != nil {
		return nil, err
	}
	s := wire.StateFromProto(req.GetState())
	self := s.Node(rs.cfg.Self.Name)
	if self == nil {
		return nil, fmt.Errorf("the restored cluster doesn't have this node: %w", cluster.ErrPermanent)
	}
	switch op.Phase {
	case phaseBegun, phaseProven:
	case phaseReverted:
		return nil, fmt.Errorf("restore %s was taken back here", op.ID)
	default:
		if op.Token == s.Token {
			return op.facts(), nil
		}
		return nil, fmt.Errorf("restore %s is staged under token %s already, not %s", op.ID, op.Token, s.Token)
	}
	if err := rs.runnable(s.EtcdVersion); err != nil {
		return nil, err
	}
	if err := rs.claim(op, s.Token); err != nil {
		return nil, err
	}
	r, err := rs.stageData(ctx, op, req, s, t)
	if err != nil {
		err = rs.disk.explain(err)
		if errors.Is(err, etcd.ErrConfig) {
			err = fmt.Errorf("%w (%w)", err, cluster.ErrPermanent)
		}
		return nil, err
	}
	op.Phase, op.Backup = phaseStaged, req.GetBackup()
	op.Revision, op.Hash, op.Keys, op.SizeBytes = r.Revision, r.Hash.Hash, r.Keys, r.SizeBytes
	if err := rs.records.note(op); err != nil {
		return nil, err
	}
	_ = rs.l.removeAll(rs.l.staging(op.ID)) // what stays behind is cleared away by discard
	klog.Infof("backup %s is staged as %s: revision %d, hash %d", op.Backup, rs.l.data(s.Token), r.Revision, r.Hash.Hash)
	return op.facts(), nil
}

// claim journals which data dir is being built: one that is half built is known as the operation's.
func (rs *restorer) claim(op *journalOperation, token cluster.Token) error {
	s := rs.records.current()
	switch {
	case s != nil && s.Token == token:
		return fmt.Errorf("restore %s can't be staged as %s, which runs here: %w", op.ID, token, cluster.ErrPermanent)
	case op.Token == token:
		return nil
	case op.Token != "":
		if err := rs.removeStaged(op.Token); err != nil {
			return err
		}
	}
	op.Token = token
	return rs.records.note(op)
}

func (rs *restorer) stageData(ctx context.Context, op *journalOperation, req *protosv1.Stage, s *cluster.EtcdState, t *task) (database.StageResult, error) {
	cfg := datadir.StageConfig{
		SnapshotPath: rs.l.snapshot(op.ID), PlanPath: rs.l.stagePlan(op.ID), Consume: true, SelfExe: rs.cfg.Executable, DataDir: rs.l.data(s.Token),
		Name: rs.cfg.Self.Name, Token: s.Token, BumpRevision: req.GetBumpRevision(), AtLeastRevision: req.GetAtLeastRevision(), MarkCompacted: true,
		DropPrefixes: prefixes(req.GetDropPrefixes()), TargetVersion: s.EtcdVersion,
	}
	for _, n := range s.Nodes {
		cfg.InitialCluster = append(cfg.InitialCluster, etcd.Peer{Name: n.Name, PeerURLs: n.PeerURLs})
	}
	if _, done, _ := datadir.Staged(cfg.DataDir); done {
		// The journal wasn't written; what was made is found again, unless it is to become something else now.
		if r, err := datadir.Stage(ctx, cfg); !errors.Is(err, datadir.ErrNotEmpty) {
			return r, err
		}
	}
	if !exists(cfg.SnapshotPath) {
		// It was moved by an attempt that was cut.
		if err := rs.removeStaged(s.Token); err != nil {
			return database.StageResult{}, err
		}
		f := fetcher{r: rs, op: op.ID, backup: req.GetBackup(), replay: req.GetReplay(), anyCluster: true, plan: database.StagePlan{
			BumpRevision: cfg.BumpRevision, AtLeastRevision: cfg.AtLeastRevision, MarkCompacted: true, DropPrefixes: cfg.DropPrefixes, TargetVersion: cfg.TargetVersion,
		}}
		if _, err := f.prove(ctx, t); err != nil {
			return database.StageResult{}, err
		}
	} else if err := rs.disk.room("staging backup "+req.GetBackup(), 0); err != nil {
		return database.StageResult{}, err
	}
	if err := rs.l.makeDir(rs.l.dataRoot()); err != nil {
		return database.StageResult{}, err
	}
	t.report("stage", 0, 0)
	return datadir.Stage(ctx, cfg)
}

// removeStaged removes a data dir that is staged, wholly or in part. It must not be the current one.
func (rs *restorer) removeStaged(token cluster.Token) error {
	for _, path := range []string{rs.l.halfStaged(token), rs.l.data(token)} {
		if err := rs.l.removeAll(path); err != nil {
			return fmt.Errorf("remove staged data: %w", err)
		}
	}
	return nil
}

// discard clears away what is left of an operation: after a success the old data go into the trash can, after a failure the
// staged ones are removed.
func (rs *restorer) discard(name string) error {
	id, err := cluster.ParseOperationID(name)
	if err != nil {
		return fmt.Errorf("%w (%w)", err, cluster.ErrPermanent)
	}
	op, s := rs.records.operation(), rs.records.current()
	if op == nil || op.ID != id {
		return rs.l.removeAll(rs.l.staging(id))
	}
	switch {
	case op.Phase.held():
		return fmt.Errorf("etcd is held for restore %s; it has to be switched or taken back first", id)
	case op.Phase == phaseSwitched:
		old, err := op.oldState()
		if err == nil && old != nil && (s == nil || s.Token != old.Token) {
			if err := rs.l.discardDir(old.Token, trashNote{EtcdVersion: old.EtcdVersion, Members: len(old.Nodes)}); err != nil {
				return err
			}
			rs.forgetCertificates(old.Token)
		}
	default:
		if op.Token != "" && (s == nil || s.Token != op.Token) {
			if err := rs.removeStaged(op.Token); err != nil {
				return err
			}
			rs.forgetCertificates(op.Token)
		}
	}
	if err := rs.l.removeAll(rs.l.staging(id)); err != nil {
		return fmt.Errorf("remove staging area: %w", err)
	}
	if err := rs.records.note(nil); err != nil {
		return err
	}
	rs.trash.kick()
	return nil
}

func (rs *restorer) forgetCertificates(token cluster.Token) {
	if rs.cfg.Certificates == nil {
		return
	}
	rs.cfg.Certificates.Release(rs.l.pki(token))
	if err := rs.l.removeAll(rs.l.pki(token)); err != nil {
		klog.Warningf("remove certificates: %v", err)
	}
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

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove state file: %w", err)
	}
	return nil
}
