package datadir

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
)

// Newest is what can be told about a member's data without asking its etcd.
type Newest struct {
	// Term and Index are of the last entry in the write-ahead log.
	Term, Index uint64
	// Revision is the newest in the database; the log may have more. 0 if it can't be read.
	Revision int64
	// Written is when the log was last written to.
	Written time.Time
}

// ReadNewest looks at a member's data while its etcd doesn't answer, for example since it has no quorum. etcd may run on them: nothing is
// locked or changed, and what it writes meanwhile may be missed. It is for showing and choosing, and proves nothing. It reads the whole
// log, which takes minutes on a slow disk; the context ends it.
func ReadNewest(ctx context.Context, dataDir string) (Newest, error) {
	var p Newest
	_, err := readLogFiles(dataDir, logVisitor{
		ended: ctx.Err,
		entry: func(e *raftpb.Entry) { p.Term, p.Index = e.Term, e.Index },
		snap: func(s *walpb.Snapshot) {
			if s.Index > p.Index {
				p.Term, p.Index = s.Term, s.Index
			}
		},
	})
	if err != nil {
		return Newest{}, err
	}
	names, err := namesWith(filepath.Join(dataDir, "member", "wal"), ".wal")
	if err != nil {
		return Newest{}, err
	}
	for _, name := range names {
		fi, err := os.Stat(filepath.Join(dataDir, "member", "wal", name))
		if err != nil {
			return Newest{}, fmt.Errorf("look at log: %w", err)
		}
		if fi.ModTime().After(p.Written) {
			p.Written = fi.ModTime()
		}
	}
	p.Revision, _ = database.NewestRevision(ctx, etcd.DBPath(dataDir)) // a database that is being written may not be readable; the log tells enough to choose
	return p, nil
}

// NewestRevision is the newest revision in the database of a member, on which its etcd may run.
func NewestRevision(ctx context.Context, dataDir string) (int64, error) {
	return database.NewestRevision(ctx, etcd.DBPath(dataDir))
}
