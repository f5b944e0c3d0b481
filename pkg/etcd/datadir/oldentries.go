package datadir

import (
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
)

// OldEntries tells whether etcd, when it starts on this data dir, would go through entries of its log that are written as 3.5 and older do: 3.7
// can't read them, and ends with a panic. A raft snapshot behind them is the cure. The member may be running; then the answer is of a moment.
func OldEntries(dataDir string) (bool, error) {
	var snapshot, oldest uint64 // oldest is the last old entry
	_, err := readLogFiles(dataDir, logVisitor{
		entry: func(e *raftpb.Entry) {
			if isOldEntry(e) {
				oldest = max(oldest, e.Index)
			}
		},
		snap: func(s *walpb.Snapshot) { snapshot = max(snapshot, s.Index) },
	})
	return oldest > snapshot, err
}

func isOldEntry(e *raftpb.Entry) bool {
	if e.Type != raftpb.EntryNormal || len(e.Data) == 0 {
		return false
	}
	var r etcdserverpb.InternalRaftRequest
	return r.Unmarshal(e.Data) != nil || r.V2 != nil
}
