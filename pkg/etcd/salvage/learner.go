package salvage

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

// promotion is the entry that makes a voter of a learner, to stand behind the last entry of its log; none if the member votes.
//
// etcd removes all other members when it is started with --force-new-cluster. It counts a learner among those that stay, so that no
// voter would be left, and panics ("removed all voters").
func promotion(snapDir string, begin walpb.Snapshot, metadata []byte, ents []raftpb.Entry, last *salvageCopy) ([]raftpb.Entry, error) {
	learner, self, err := isLearner(snapDir, begin, metadata, ents)
	if err != nil || !learner {
		return nil, err
	}
	why, err := json.Marshal(membership.ConfigChangeContext{Member: membership.Member{ID: types.ID(self)}, IsPromote: true})
	if err != nil {
		return nil, err
	}
	change := raftpb.ConfChange{Type: raftpb.ConfChangeAddNode, NodeID: self, Context: why}
	data, err := change.Marshal()
	if err != nil {
		return nil, err
	}
	return []raftpb.Entry{{Type: raftpb.EntryConfChange, Term: last.Term, Index: last.Index + 1, Data: data}}, nil
}

// isLearner tells whether the member of a log has no vote by the log's end, and its id.
func isLearner(snapDir string, begin walpb.Snapshot, metadata []byte, ents []raftpb.Entry) (learner bool, self uint64, err error) {
	var who etcdserverpb.Metadata
	if err := who.Unmarshal(metadata); err != nil {
		return false, 0, fmt.Errorf("%w: whose it is: %w", etcd.ErrBadLog, err)
	}
	self = who.NodeID
	if begin.Index > 0 {
		s, err := snap.New(etcd.QuietLogger(), snapDir).LoadNewestAvailable([]walpb.Snapshot{begin})
		switch {
		case err == nil:
			learner = slices.Contains(s.Metadata.ConfState.Learners, self)
		case !errors.Is(err, snap.ErrNoSnapshot):
			return false, self, fmt.Errorf("%w: read snapshot in %s: %w", etcd.ErrBadLog, filepath.Base(snapDir), err)
		case begin.ConfState != nil:
			learner = slices.Contains(begin.ConfState.Learners, self)
		}
	}
	for _, e := range ents {
		if e.Type != raftpb.EntryConfChange {
			continue
		}
		var c raftpb.ConfChange
		if err := c.Unmarshal(e.Data); err != nil {
			return false, self, fmt.Errorf("%w: entry %d: %w", etcd.ErrBadLog, e.Index, err)
		}
		if c.NodeID == self {
			learner = c.Type == raftpb.ConfChangeAddLearnerNode || learner && c.Type == raftpb.ConfChangeUpdateNode
		}
	}
	return learner, self, nil
}
