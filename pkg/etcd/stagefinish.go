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

func (c *StageConfig) plan() StagePlan {
	return StagePlan{c.BumpRevision, c.AtLeastRevision, c.MarkCompacted, c.DropPrefixes, c.TargetVersion}
}

// forMember completes what is the same on every member.
func (r StageResult) forMember(n *newCluster) StageResult {
	r.MemberID, r.ClusterID = cluster.MemberID(n.own.ID), uint64(n.rc.ID())
	return r
}
