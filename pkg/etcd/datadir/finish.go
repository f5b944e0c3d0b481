package datadir

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/etcd-manager/etcd-manager/pkg/atomicfile"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/child"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
)

// bootTerm is the raft term of a cluster that was made from a snapshot.
const bootTerm = 1

// newCluster is the cluster as the members will know it.
type newCluster struct {
	rc    *membership.RaftCluster
	own   *membership.Member
	conf  raftpb.ConfState
	index uint64
}

func makeCluster(cfg *StageConfig) (*newCluster, error) {
	urls, err := types.NewURLsMap(etcd.InitialClusterFlag(cfg.InitialCluster))
	if err != nil {
		return nil, fmt.Errorf("%w: initial cluster: %w", etcd.ErrConfig, err)
	}
	rc, err := membership.NewClusterFromURLsMap(etcd.QuietLogger(), string(cfg.Token), urls)
	if err != nil {
		return nil, fmt.Errorf("%w: initial cluster: %w", etcd.ErrConfig, err)
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
	Moved *database.FileID
}

// finishStage turns the database at its place below dir into a data dir.
func finishStage(ctx context.Context, o *stageOrder, dir string) (database.StageResult, error) {
	cfg := &o.Config
	n, err := makeCluster(cfg)
	if err != nil {
		return database.StageResult{}, err
	}
	res, e, err := o.plan(ctx, etcd.DBPath(dir))
	if err != nil {
		return database.StageResult{}, err
	}
	if o.Moved != nil {
		if err := database.CutHash(etcd.DBPath(dir)); err != nil {
			return database.StageResult{}, err
		}
	}
	if err := n.planMembership(e); err != nil {
		return database.StageResult{}, err
	}
	if err := etcd.Guard("edit database", func() error { return e.Apply(etcd.DBPath(dir)) }); err != nil {
		return database.StageResult{}, err
	}
	if err := etcd.Guard("write raft state", func() error { return n.writeRaft(dir) }); err != nil {
		return database.StageResult{}, err
	}
	fi, err := os.Stat(etcd.DBPath(dir))
	if err != nil {
		return database.StageResult{}, err
	}
	res = forMember(res, n)
	res.SizeBytes = fi.Size()
	b, err := json.Marshal(marker{For: cfg.fingerprint(), Result: res})
	if err != nil {
		return database.StageResult{}, err
	}
	if err := ctx.Err(); err != nil {
		return database.StageResult{}, err
	}
	if err := atomicfile.Write(etcd.StagedMarker(dir), b, 0o600); err != nil {
		return database.StageResult{}, fmt.Errorf("write stage marker: %w", err)
	}
	for _, d := range []string{filepath.Join("member", "snap"), filepath.Join("member", "wal"), "member", "."} {
		if err := atomicfile.SyncDir(filepath.Join(dir, d)); err != nil {
			return database.StageResult{}, err
		}
	}
	return res, nil
}

// plan takes the plan that Prove made of this file, or else checks the file and plans now.
func (o *stageOrder) plan(ctx context.Context, path string) (database.StageResult, *database.Edits, error) {
	want := o.Config.plan()
	if o.Moved != nil && o.Config.PlanPath != "" {
		f, err := os.Open(path)
		if err != nil {
			return database.StageResult{}, nil, err
		}
		now, err := database.Identify(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return database.StageResult{}, nil, err
		}
		if p := database.ReadPlan(o.Config.PlanPath, *o.Moved, want); p != nil && o.Moved.Moved(now) {
			return p.Result, p.Edits, nil
		}
	}
	return database.PlanDB(ctx, path, want, o.Moved != nil && !o.Config.SkipHash)
}

// planMembership replaces the old members by the new ones. Alarms were those of old members.
func (n *newCluster) planMembership(e *database.Edits) error {
	e.Clear = append(e.Clear, schema.Members.Name(), schema.MembersRemoved.Name(), schema.Alarm.Name())
	for _, m := range n.rc.Members() {
		v, err := json.Marshal(m)
		if err != nil {
			return err
		}
		e.Put(schema.Members.Name(), schema.BackendMemberKey(m.ID), v)
	}
	conf, err := json.Marshal(n.conf)
	if err != nil {
		return err
	}
	e.Put(schema.Meta.Name(), schema.MetaConfStateName, conf)
	e.Put(schema.Meta.Name(), schema.MetaConsistentIndexKeyName, binary.BigEndian.AppendUint64(nil, n.index))
	e.Put(schema.Meta.Name(), schema.MetaTermKeyName, binary.BigEndian.AppendUint64(nil, bootTerm))
	return nil
}

// writeRaft writes log and snapshot of a raft group whose members have just been added.
func (n *newCluster) writeRaft(dir string) (err error) {
	lg := etcd.QuietLogger()
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

// StageCommand is the hidden subcommand that works on the database of a data dir that is being staged: its argument is the directory,
// standard input says what to do.
func StageCommand() child.Command {
	return child.Command{Name: StageSubcommand, Main: func(args []string) int {
		if len(args) != 1 {
			fmt.Fprintf(os.Stderr, "usage: %s DIRECTORY\n", StageSubcommand)
			return 2
		}
		return child.Answer(func(ctx context.Context, o *stageOrder) (database.StageResult, error) {
			return finishStage(ctx, o, args[0])
		})
	}}
}

func finishInChild(ctx context.Context, o *stageOrder, dir string) (database.StageResult, error) {
	exe := o.Config.SelfExe
	c := *o
	c.Config.Snapshot, c.Config.Throttle, c.Config.SelfExe = nil, nil, ""
	return child.Call[database.StageResult](ctx, exe, &c, StageSubcommand, dir)
}

// forMember completes what is the same on every member.
func forMember(r database.StageResult, n *newCluster) database.StageResult {
	r.MemberID, r.ClusterID = cluster.MemberID(n.own.ID), uint64(n.rc.ID())
	return r
}

func (c *StageConfig) plan() database.StagePlan {
	return database.StagePlan{
		BumpRevision: c.BumpRevision, AtLeastRevision: c.AtLeastRevision, MarkCompacted: c.MarkCompacted,
		DropPrefixes: c.DropPrefixes, TargetVersion: c.TargetVersion,
	}
}
