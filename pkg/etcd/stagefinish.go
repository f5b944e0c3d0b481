package etcd

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// bootTerm is the raft term of a cluster that was made from a snapshot.
const bootTerm = 1

// quietLogger makes etcd's libraries panic where they would end the process; guard turns that into an error.
func quietLogger() *zap.Logger {
	return zap.New(zapcore.NewNopCore(), zap.WithFatalHook(zapcore.WriteThenPanic), zap.WithPanicHook(zapcore.WriteThenPanic))
}

func guard(what string, f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%s: etcd's library gave up: %v", what, r)
		}
	}()
	return f()
}

// newCluster is the cluster as the members will know it.
type newCluster struct {
	rc    *membership.RaftCluster
	own   *membership.Member
	conf  raftpb.ConfState
	index uint64
}

func makeCluster(cfg *StageConfig) (*newCluster, error) {
	urls, err := types.NewURLsMap(InitialClusterFlag(cfg.InitialCluster))
	if err != nil {
		return nil, fmt.Errorf("%w: initial cluster: %w", ErrConfig, err)
	}
	rc, err := membership.NewClusterFromURLsMap(quietLogger(), string(cfg.Token), urls)
	if err != nil {
		return nil, fmt.Errorf("%w: initial cluster: %w", ErrConfig, err)
	}
	n := &newCluster{rc: rc, own: rc.MemberByName(cfg.Name)}
	for _, id := range rc.MemberIDs() {
		n.conf.Voters = append(n.conf.Voters, uint64(id))
	}
	n.index = uint64(len(n.conf.Voters))
	return n, nil
}

// finishStage turns the database at its place below dir into a data dir.
func finishStage(ctx context.Context, cfg *StageConfig, dir string) (StageResult, error) {
	n, err := makeCluster(cfg)
	if err != nil {
		return StageResult{}, err
	}
	res, e, err := planEdits(ctx, cfg, n, dbPath(dir))
	if err != nil {
		return StageResult{}, err
	}
	if err := guard("edit database", func() error { return e.apply(dbPath(dir)) }); err != nil {
		return StageResult{}, err
	}
	if err := guard("write raft state", func() error { return n.writeRaft(dir) }); err != nil {
		return StageResult{}, err
	}
	fi, err := os.Stat(dbPath(dir))
	if err != nil {
		return StageResult{}, err
	}
	res.SizeBytes = fi.Size()
	b, err := json.Marshal(marker{For: cfg.fingerprint(), Result: res})
	if err != nil {
		return StageResult{}, err
	}
	if err := ctx.Err(); err != nil {
		return StageResult{}, err
	}
	if err := writeFileAtomic(markerPath(dir), b); err != nil {
		return StageResult{}, fmt.Errorf("write stage marker: %w", err)
	}
	for _, d := range []string{filepath.Join("member", "snap"), filepath.Join("member", "wal"), "member", "."} {
		if err := syncDir(filepath.Join(dir, d)); err != nil {
			return StageResult{}, err
		}
	}
	return res, nil
}

// edit is one change of the database; a nil value deletes.
type edit struct {
	bucket, key, value []byte
}

// edits are applied in one transaction.
type edits struct {
	clear   [][]byte // buckets that are emptied first
	changes []edit
}

func (e *edits) put(bucket, key, value []byte) {
	e.changes = append(e.changes, edit{bucket, key, value})
}

// planEdits reads and checks the database, and decides all that is to be changed in it.
func planEdits(ctx context.Context, cfg *StageConfig, n *newCluster, path string) (StageResult, *edits, error) {
	f, size, _, err := openDB(path)
	if err != nil {
		return StageResult{}, nil, err
	}
	defer f.Close()
	s, err := scanDB(ctx, f, size, cfg.DropPrefixes)
	if err != nil {
		return StageResult{}, nil, err
	}
	was := Facts{
		StorageVersion: versionIn(s.meta[string(schema.MetaStorageVersionName)]),
		ClusterVersion: versionIn(s.cluster[string(schema.ClusterClusterVersionKeyName)]),
	}
	if err := checkTarget(was.WrittenBy(), cfg.TargetVersion); err != nil {
		return StageResult{}, nil, err
	}
	e := &edits{clear: [][]byte{schema.Members.Name(), schema.MembersRemoved.Name(), schema.Alarm.Name()}}
	res := StageResult{
		SnapshotRevision: s.revision(), Dropped: int64(len(s.watched)), Leases: s.leases, WrittenBy: was.WrittenBy(),
		Version: cfg.TargetVersion, MemberID: cluster.MemberID(n.own.ID), ClusterID: uint64(n.rc.ID()),
	}
	keys, _ := s.live()
	res.Keys = keys - res.Dropped
	compact, extra, err := planRevisions(cfg, s, &res, e)
	if err != nil {
		return StageResult{}, nil, err
	}
	if err := n.planMembership(e); err != nil {
		return StageResult{}, nil, err
	}
	planVersions(cfg.TargetVersion, was, e)
	sum, err := s.hashKV(ctx, compact, s.watched, extra...)
	res.Hash = HashKV{Revision: res.Revision, CompactRevision: compact, Hash: sum}
	return res, e, err
}

// planRevisions drops keys and raises the revision.
func planRevisions(cfg *StageConfig, s *scan, res *StageResult, e *edits) (compact int64, extra [][2][]byte, err error) {
	rev := s.revision()
	record := func(k, v []byte) {
		e.put(schema.Key.Name(), k, v)
		extra = append(extra, [2][]byte{k, v})
	}
	if len(s.watched) > 0 {
		rev++
		names := make([]string, 0, len(s.watched))
		for k := range s.watched {
			names = append(names, k)
		}
		slices.Sort(names) // every member must write the same
		for i, k := range names {
			v, err := (&mvccpb.KeyValue{Key: []byte(k)}).Marshal()
			if err != nil {
				return 0, nil, err
			}
			record(revBytes(rev, int64(i), true), v)
		}
	}
	compact = s.compactRevision()
	if cfg.MarkCompacted {
		rev = max(rev+int64(cfg.BumpRevision), rev+1, cfg.AtLeastRevision+1)
		if !revisionFits(rev) {
			return 0, nil, fmt.Errorf("%w: the revision would be raised to %d", ErrConfig, rev)
		}
		// As etcdutl does it: an empty record makes the revision, and a compaction to it is left for etcd to do.
		record(revBytes(rev, 0, false), []byte{})
		compact = rev
		e.put(schema.Meta.Name(), schema.ScheduledCompactKeyName, revBytes(rev, 0, false))
	}
	res.Revision = rev
	return compact, extra, nil
}

func (n *newCluster) planMembership(e *edits) error {
	for _, m := range n.rc.Members() {
		v, err := json.Marshal(m)
		if err != nil {
			return err
		}
		e.put(schema.Members.Name(), schema.BackendMemberKey(m.ID), v)
	}
	conf, err := json.Marshal(n.conf)
	if err != nil {
		return err
	}
	e.put(schema.Meta.Name(), schema.MetaConfStateName, conf)
	e.put(schema.Meta.Name(), schema.MetaConsistentIndexKeyName, binary.BigEndian.AppendUint64(nil, n.index))
	e.put(schema.Meta.Name(), schema.MetaTermKeyName, binary.BigEndian.AppendUint64(nil, bootTerm))
	return nil
}

// checkTarget refuses what can't be done. from is a minor version, target a full one or empty.
func checkTarget(from, target string) error {
	n := MinorNumber(from + ".0")
	if n < 0 || n > newestMinor {
		return fmt.Errorf("%w: the database was written by etcd %s, which is newer than 3.%d, the newest that is known here", ErrVersion, from, newestMinor)
	}
	if target == "" {
		return nil
	}
	return ValidateVersion(target)
}

// planVersions lowers what an older etcd would refuse. Upwards etcd does what is needed by itself.
func planVersions(target string, was Facts, e *edits) {
	// A downgrade of the old cluster has nothing to do with the new one.
	e.put(schema.Cluster.Name(), schema.ClusterDowngradeKeyName, nil)
	m := MinorNumber(target)
	if m < 0 {
		return
	}
	to := fmt.Sprintf("3.%d.0", m)
	if was.ClusterVersion != "" && Less(to, was.ClusterVersion) {
		e.put(schema.Cluster.Name(), schema.ClusterClusterVersionKeyName, []byte(to))
	}
	if was.StorageVersion != "" && Less(to, was.StorageVersion) {
		if m >= 6 {
			e.put(schema.Meta.Name(), schema.MetaStorageVersionName, []byte(to))
		} else {
			// Before 3.6 there was no such field, and a later upgrade takes it for what is there.
			e.put(schema.Meta.Name(), schema.MetaStorageVersionName, nil)
		}
	}
}

// apply writes everything in one transaction, with bbolt and etcd's own options for it.
func (e *edits) apply(path string) error {
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		NoFreelistSync: true, FreelistType: bolt.FreelistMapType, Timeout: 5 * time.Second,
	})
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range e.clear {
			if err := tx.DeleteBucket(name); err != nil && !errors.Is(err, berrors.ErrBucketNotFound) {
				return err
			}
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		for _, c := range e.changes {
			b, err := tx.CreateBucketIfNotExists(c.bucket)
			if err != nil {
				return err
			}
			if c.value == nil {
				err = b.Delete(c.key)
			} else {
				err = b.Put(c.key, c.value)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	return errors.Join(err, db.Close())
}

// writeRaft writes log and snapshot of a raft group whose members have just been added.
func (n *newCluster) writeRaft(dir string) (err error) {
	lg := quietLogger()
	meta, err := (&etcdserverpb.Metadata{NodeID: uint64(n.own.ID), ClusterID: uint64(n.rc.ID())}).Marshal()
	if err != nil {
		return err
	}
	w, err := wal.Create(lg, filepath.Join(dir, "member", "wal"), meta)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	ents := make([]raftpb.Entry, 0, n.index)
	for i, id := range n.rc.MemberIDs() {
		m, err := json.Marshal(n.rc.Member(id))
		if err != nil {
			return err
		}
		d, err := (&raftpb.ConfChange{Type: raftpb.ConfChangeAddNode, NodeID: uint64(id), Context: m}).Marshal()
		if err != nil {
			return err
		}
		ents = append(ents, raftpb.Entry{Type: raftpb.EntryConfChange, Term: bootTerm, Index: uint64(i + 1), Data: d})
	}
	if err := w.Save(raftpb.HardState{Term: bootTerm, Vote: n.conf.Voters[0], Commit: n.index}, ents); err != nil {
		return err
	}
	s := raftpb.Snapshot{
		Data:     etcdserver.GetMembershipInfoInV2Format(lg, n.rc),
		Metadata: raftpb.SnapshotMetadata{Index: n.index, Term: bootTerm, ConfState: n.conf},
	}
	if err := snap.New(lg, filepath.Join(dir, "member", "snap")).SaveSnap(s); err != nil {
		return err
	}
	return w.SaveSnapshot(walpb.Snapshot{Index: n.index, Term: bootTerm, ConfState: &n.conf})
}

// stageAnswer is what the child prints.
type stageAnswer struct {
	Result *StageResult `json:"result,omitempty"`
	Error  string       `json:"error,omitempty"`
	Kind   string       `json:"kind,omitempty"`
}

var stageKinds = map[string]error{
	"database": ErrBadDatabase, "version": ErrVersion, "config": ErrConfig, "in-use": ErrDataDirInUse,
}

// StageMain is a process of its own that works on the database of a data dir that is being staged: args is the
// directory, standard input the StageConfig. It prints one line of JSON and returns the exit code.
func StageMain(args []string) int {
	if len(args) != 1 {
		fmt.Fprintf(os.Stderr, "usage: %s DIRECTORY\n", StageSubcommand)
		return 2
	}
	var cfg StageConfig
	if err := json.NewDecoder(os.Stdin).Decode(&cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	res, err := finishStage(context.Background(), &cfg, args[0]) // as in ProveMain: who wants it to end kills the process
	a := stageAnswer{Result: &res}
	if err != nil {
		a = stageAnswer{Error: err.Error()}
		for kind, sentinel := range stageKinds {
			if errors.Is(err, sentinel) {
				a.Kind = kind
			}
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(a); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func finishInChild(ctx context.Context, cfg *StageConfig, dir string) (StageResult, error) {
	c := *cfg
	c.Snapshot, c.Throttle, c.SelfExe = nil, nil, ""
	in, err := json.Marshal(c)
	if err != nil {
		return StageResult{}, err
	}
	out, err := runSelf(ctx, in, cfg.SelfExe, StageSubcommand, dir)
	if ctx.Err() != nil {
		return StageResult{}, ctx.Err()
	}
	if err != nil {
		return StageResult{}, err
	}
	var a stageAnswer
	if err := json.Unmarshal(out, &a); err != nil {
		return StageResult{}, fmt.Errorf("%s %s gave no answer: %w", cfg.SelfExe, StageSubcommand, err)
	}
	if a.Error != "" {
		return StageResult{}, &childError{msg: a.Error, kind: stageKinds[a.Kind]}
	}
	return *a.Result, nil
}
