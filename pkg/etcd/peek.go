package etcd

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
)

// Peek is what can be told about a member's data without asking its etcd.
type Peek struct {
	// Term and Index are of the last entry in the write-ahead log.
	Term, Index uint64
	// Revision is the newest in the database; the log may have more. 0 if it can't be read.
	Revision int64
	// Written is when the log was last written to.
	Written time.Time
}

// PeekDataDir looks at a member's data while its etcd doesn't answer, for example since it has no quorum. etcd may run on them: nothing is
// locked or changed, and what it writes meanwhile may be missed. It is for showing and choosing, and proves nothing.
func PeekDataDir(ctx context.Context, dataDir string) (Peek, error) {
	var p Peek
	_, err := readLogFiles(dataDir, logVisitor{
		entry: func(e *raftpb.Entry) { p.Term, p.Index = e.Term, e.Index },
		snap: func(s *walpb.Snapshot) {
			if s.Index > p.Index {
				p.Term, p.Index = s.Term, s.Index
			}
		},
	})
	if err != nil {
		return Peek{}, err
	}
	names, err := namesWith(filepath.Join(dataDir, "member", "wal"), ".wal")
	if err != nil {
		return Peek{}, err
	}
	for _, name := range names {
		fi, err := os.Stat(filepath.Join(dataDir, "member", "wal", name))
		if err != nil {
			return Peek{}, fmt.Errorf("look at log: %w", err)
		}
		if fi.ModTime().After(p.Written) {
			p.Written = fi.ModTime()
		}
	}
	p.Revision, _ = newestRevision(ctx, dbPath(dataDir)) // a database that is being written may not be readable; the log tells enough to choose
	return p, nil
}

// PeekRevision is the newest revision in the database of a member, on which its etcd may run.
func PeekRevision(ctx context.Context, dataDir string) (int64, error) {
	return newestRevision(ctx, dbPath(dataDir))
}

// newestRevision reads the last key of the bucket that has the revisions.
func newestRevision(ctx context.Context, path string) (int64, error) {
	r, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	fi, err := r.Stat()
	if err != nil {
		return 0, err
	}
	f, err := openBolt(r, fi.Size())
	if err != nil {
		return 0, err
	}
	buckets, err := f.buckets(ctx)
	if err != nil {
		return 0, err
	}
	f.again()
	for _, b := range buckets {
		if b.name != string(schema.Key.Name()) {
			continue
		}
		k, err := f.lastKey(b)
		if err != nil {
			return 0, err
		}
		if k == nil {
			return 1, nil
		}
		rev, err := parseRevKey(k)
		return rev.main, err
	}
	return 0, badDB("no bucket %q", schema.Key.Name())
}

// lastKey goes down the right edge of a bucket's tree; nil if it is empty.
func (f *boltFile) lastKey(b bucketRef) ([]byte, error) {
	page, pgid := b.inline, b.root
	for depth := 0; ; depth++ {
		if pgid != 0 {
			var err error
			if page, err = f.page(pgid, depth); err != nil {
				return nil, err
			}
		}
		n := int(binary.LittleEndian.Uint16(page[10:]))
		if n == 0 {
			return nil, nil
		}
		at := pageHeaderSize + (n-1)*elemSize
		if at+elemSize > len(page) {
			return nil, badDB("page %d has %d elements", pgid, n)
		}
		switch kind := binary.LittleEndian.Uint16(page[8:]); kind {
		case branchPage:
			pgid = binary.LittleEndian.Uint64(page[at+8:])
		case leafPage:
			from := uint64(at) + uint64(binary.LittleEndian.Uint32(page[at+4:]))
			size := uint64(binary.LittleEndian.Uint32(page[at+8:]))
			if from+size > uint64(len(page)) {
				return nil, badDB("leaf page %d points outside of the page", pgid)
			}
			return page[from : from+size], nil
		default:
			return nil, badDB("page %d is of kind %#x", pgid, kind)
		}
	}
}
