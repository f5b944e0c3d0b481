package etcd

import (
	"bytes"
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

	"github.com/etcd-manager/etcd-manager/pkg/atomicfile"
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

// stageOrder is the work on a database that lies at its place below a directory.
type stageOrder struct {
	Config StageConfig
	// Moved is what the file was before it was moved there, with the hash that may be behind it; nil if it was copied, checked and cut.
	Moved *fileID
}

// finishStage turns the database at its place below dir into a data dir.
func finishStage(ctx context.Context, o *stageOrder, dir string) (StageResult, error) {
	cfg := &o.Config
	n, err := makeCluster(cfg)
	if err != nil {
		return StageResult{}, err
	}
	res, e, err := o.plan(ctx, dbPath(dir))
	if err != nil {
		return StageResult{}, err
	}
	if o.Moved != nil {
		if err := cutHash(dbPath(dir)); err != nil {
			return StageResult{}, err
		}
	}
	if err := n.planMembership(e); err != nil {
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
	res = res.forMember(n)
	res.SizeBytes = fi.Size()
	b, err := json.Marshal(marker{For: cfg.fingerprint(), Result: res})
	if err != nil {
		return StageResult{}, err
	}
	if err := ctx.Err(); err != nil {
		return StageResult{}, err
	}
	if err := atomicfile.Write(markerPath(dir), b, 0o600); err != nil {
		return StageResult{}, fmt.Errorf("write stage marker: %w", err)
	}
	for _, d := range []string{filepath.Join("member", "snap"), filepath.Join("member", "wal"), "member", "."} {
		if err := atomicfile.SyncDir(filepath.Join(dir, d)); err != nil {
			return StageResult{}, err
		}
	}
	return res, nil
}

// plan takes the plan that Prove made of this file, or else checks the file and plans now.
func (o *stageOrder) plan(ctx context.Context, path string) (StageResult, *edits, error) {
	want := o.Config.plan()
	if o.Moved != nil && o.Config.PlanPath != "" {
		f, err := os.Open(path)
		if err != nil {
			return StageResult{}, nil, err
		}
		now, err := identify(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return StageResult{}, nil, err
		}
		if p := readPlan(o.Config.PlanPath, *o.Moved, want); p != nil && o.Moved.moved(now) {
			return p.Result, p.Edits, nil
		}
	}
	return planDB(ctx, path, want, o.Moved != nil && !o.Config.SkipHash)
}

// cutHash makes what was moved what a copy is.
func cutHash(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o600), trimHash(f, fi.Size()))
}

// edit is one change of the database; a nil value deletes.
type edit struct {
	Bucket []byte `json:"bucket"`
	Key    []byte `json:"key"`
	Value  []byte `json:"value"`
}

// edits are applied in one transaction.
type edits struct {
	// Clear are buckets that are emptied first.
	Clear   [][]byte `json:"clear"`
	Changes []edit   `json:"changes"`
}

func (e *edits) put(bucket, key, value []byte) {
	e.Changes = append(e.Changes, edit{bucket, key, value})
}

// planRevisions drops keys and raises the revision.
func planRevisions(p StagePlan, s *scan, res *StageResult, e *edits) (compact int64, extra [][2][]byte, err error) {
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
	if p.MarkCompacted {
		rev = max(rev+int64(p.BumpRevision), rev+1, p.AtLeastRevision+1)
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

// planMembership replaces the old members by the new ones. Alarms were those of old members.
func (n *newCluster) planMembership(e *edits) error {
	e.Clear = append(e.Clear, schema.Members.Name(), schema.MembersRemoved.Name(), schema.Alarm.Name())
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
		for _, name := range e.Clear {
			if err := tx.DeleteBucket(name); err != nil && !errors.Is(err, berrors.ErrBucketNotFound) {
				return err
			}
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		for _, c := range e.Changes {
			b, err := tx.CreateBucketIfNotExists(c.Bucket)
			if err != nil {
				return err
			}
			if c.Value == nil {
				err = b.Delete(c.Key)
			} else {
				err = b.Put(c.Key, c.Value)
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
	Copy   *salvageCopy `json:"copy,omitempty"`
	Error  string       `json:"error,omitempty"`
	Kind   string       `json:"kind,omitempty"`
}

// stageWork is what the child reads from its standard input: one of them is there.
type stageWork struct {
	Stage   *stageOrder   `json:"stage,omitempty"`
	Salvage *salvageOrder `json:"salvage,omitempty"`
}

// StageMain is a process of its own that works on the database of a data dir that is being staged, or makes the copy of one that is salvaged: args
// is the directory, standard input says what to do. It prints one line of JSON and returns the exit code.
func StageMain(args []string) int {
	if len(args) != 1 {
		fmt.Fprintf(os.Stderr, "usage: %s DIRECTORY\n", StageSubcommand)
		return 2
	}
	limitSelf()
	var w stageWork
	if err := json.NewDecoder(os.Stdin).Decode(&w); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	var a stageAnswer
	var err error
	ctx := context.Background() // as in ProveMain: who wants it to end kills the process
	switch {
	case w.Stage != nil:
		var res StageResult
		res, err = finishStage(ctx, w.Stage, args[0])
		a.Result = &res
	case w.Salvage != nil:
		a.Copy, err = w.Salvage.copy(ctx, args[0])
	}
	if err != nil {
		a = stageAnswer{Error: err.Error(), Kind: kindOf(err)}
	}
	if err := json.NewEncoder(os.Stdout).Encode(a); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func finishInChild(ctx context.Context, o *stageOrder, dir string) (StageResult, error) {
	exe := o.Config.SelfExe
	c := *o
	c.Config.Snapshot, c.Config.Throttle, c.Config.SelfExe = nil, nil, ""
	a, err := stageInChild(ctx, exe, stageWork{Stage: &c}, dir)
	if err != nil {
		return StageResult{}, err
	}
	if a.Result == nil {
		return StageResult{}, fmt.Errorf("%s %s gave no result", exe, StageSubcommand)
	}
	return *a.Result, nil
}

// stageInChild runs StageMain.
func stageInChild(ctx context.Context, exe string, w stageWork, dir string) (stageAnswer, error) {
	in, err := json.Marshal(w)
	if err != nil {
		return stageAnswer{}, err
	}
	out, err := runSelf(ctx, bytes.NewReader(in), exe, StageSubcommand, dir)
	if ctx.Err() != nil {
		return stageAnswer{}, ctx.Err()
	}
	if err != nil {
		return stageAnswer{}, err
	}
	var a stageAnswer
	if err := json.Unmarshal(out, &a); err != nil {
		return stageAnswer{}, fmt.Errorf("%s %s gave no answer: %w", exe, StageSubcommand, err)
	}
	if a.Error != "" {
		return stageAnswer{}, &childError{msg: a.Error, kind: sentinelOf(a.Kind)}
	}
	return a, nil
}
