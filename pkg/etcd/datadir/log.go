package datadir

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

// This file reads write-ahead logs one record after the other: etcd's own ReadAll keeps all of them in memory.

// logVisitor gets what a log holds, in the order in which it was written. An entry with an index that was there already replaces that one
// and all behind it. Each may be nil.
type logVisitor struct {
	entry func(e *raftpb.Entry)
	snap  func(s *walpb.Snapshot)
	ended func() error // if set, an error of it ends the reading
}

// ClientWrites tells whether the write-ahead log of a stopped member has a request of a client that changes something: a put, a deletion, a
// transaction, a lease, a change of users or members. What etcd writes by itself doesn't count. Entries that aren't committed yet do, and what isn't known.
// A log whose beginning is gone, or that was continued from another member's database, counts as written. The log isn't changed.
func ClientWrites(dataDir string) (bool, error) {
	var last, first uint64 // first is the index of the first client's entry; 0 if there is none
	elsewhere, err := readLog(dataDir, logVisitor{
		entry: func(e *raftpb.Entry) {
			last = e.Index
			if e.Index <= first {
				first = 0
			}
			if first == 0 && isClientWrite(e) {
				first = e.Index
			}
		},
		snap: func(s *walpb.Snapshot) {
			if s.Index > last {
				first = max(first, 1)
			}
		},
	})
	return first != 0 || elsewhere, err
}

// LastEntry returns raft's term and index of the last entry in the write-ahead log of a stopped member. Of two members of one cluster, the one with
// the higher term, or the same term and the higher index, has every acknowledged write that the other has. The log isn't changed.
func LastEntry(dataDir string) (term, index uint64, err error) {
	_, err = readLog(dataDir, logVisitor{
		entry: func(e *raftpb.Entry) { term, index = e.Term, e.Index },
		snap: func(s *walpb.Snapshot) {
			if s.Index > index {
				term, index = s.Term, s.Index
			}
		},
	})
	return term, index, err
}

// readLog goes through the whole log of a stopped member. cut is true if its beginning isn't there any more. A torn end is no error.
func readLog(dataDir string, v logVisitor) (cut bool, err error) {
	if pid, held, err := etcd.DataDirHolder(dataDir); err != nil {
		return false, err
	} else if held {
		return false, fmt.Errorf("read log: %w: %s is held by %s", etcd.ErrDataDirInUse, dataDir, etcd.ProcessName(pid))
	}
	return readLogFiles(dataDir, v)
}

func readLogFiles(dataDir string, v logVisitor) (cut bool, err error) {
	dir := filepath.Join(dataDir, "member", "wal")
	names, err := namesWith(dir, ".wal")
	if err != nil {
		return false, err
	}
	if len(names) == 0 {
		return false, fmt.Errorf("read log: %w: no file in %s", etcd.ErrBadLog, dir)
	}
	var crc uint32
	var expect uint64
	for i, name := range names {
		var seq, index uint64
		if n, err := fmt.Sscanf(name, "%016x-%016x.wal", &seq, &index); err != nil || n != 2 || i > 0 && seq != expect {
			return false, fmt.Errorf("read log: %w: %s is not the file that is due", etcd.ErrBadLog, filepath.Join(dir, name))
		}
		expect = seq + 1
		cut = cut || i == 0 && seq > 0
		crc, err = readLogFile(filepath.Join(dir, name), i == 0, i == len(names)-1, crc, v)
		if err != nil {
			return false, fmt.Errorf("read log: %w", err)
		}
	}
	return cut, nil
}

// readLogFile returns the checksum with which the next file begins.
func readLogFile(path string, first, last bool, crc uint32, v logVisitor) (uint32, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	bad := func(err error) error { return fmt.Errorf("%w: %s: %w", etcd.ErrBadLog, path, err) }
	d := wal.NewDecoder(fileutil.NewFileReader(f))
	begun := false
	for {
		if v.ended != nil && v.ended() != nil {
			return 0, v.ended()
		}
		var rec walpb.Record
		err := d.Decode(&rec)
		switch {
		case err == io.EOF || last && errors.Is(err, io.ErrUnexpectedEOF):
			return d.LastCRC(), nil
		case err != nil:
			return 0, bad(err)
		}
		if rec.Type == wal.CrcType {
			if want := d.LastCRC(); begun && rec.Crc != want || !begun && !first && rec.Crc != crc {
				return 0, bad(errors.New("the checksums aren't a chain"))
			}
			d.UpdateCRC(rec.Crc)
			begun = true
			continue
		}
		if err := v.record(&rec); err != nil {
			return 0, bad(err)
		}
	}
}

func (v *logVisitor) record(rec *walpb.Record) error {
	switch rec.Type {
	case wal.EntryType:
		var e raftpb.Entry
		if err := e.Unmarshal(rec.Data); err != nil {
			return fmt.Errorf("entry: %w", err)
		}
		if v.entry != nil {
			v.entry(&e)
		}
	case wal.SnapshotType:
		var s walpb.Snapshot
		if err := s.Unmarshal(rec.Data); err != nil {
			return fmt.Errorf("snapshot: %w", err)
		}
		if v.snap != nil {
			v.snap(&s)
		}
	case wal.MetadataType, wal.StateType:
	default:
		return fmt.Errorf("a record of type %d: %w", rec.Type, cluster.ErrFuture)
	}
	return nil
}

// isClientWrite tells what etcd, or raft, proposes by itself from all the rest. A change of the members counts, except for those with which
// every log begins: whoever goes back to other data must know of it.
func isClientWrite(e *raftpb.Entry) bool {
	if e.Type != raftpb.EntryNormal {
		return e.Term > bootTerm
	}
	if len(e.Data) == 0 {
		return false
	}
	var r etcdserverpb.InternalRaftRequest
	if err := r.Unmarshal(e.Data); err != nil {
		var old etcdserverpb.Request // as etcd itself tells them apart
		return old.Unmarshal(e.Data) != nil || isOldClientWrite(&old)
	}
	switch {
	case r.V2 != nil:
		return isOldClientWrite(r.V2)
	case r.Compaction != nil, r.LeaseRevoke != nil, r.LeaseCheckpoint != nil, r.Alarm != nil:
		return false
	case r.ClusterVersionSet != nil, r.ClusterMemberAttrSet != nil, r.DowngradeInfoSet != nil, r.DowngradeVersionTest != nil:
		return false
	// They only read, or log in.
	case r.Range != nil, r.Authenticate != nil, r.AuthStatus != nil, r.AuthUserGet != nil, r.AuthUserList != nil, r.AuthRoleGet != nil, r.AuthRoleList != nil:
		return false
	}
	return true
}

// isOldClientWrite: through etcd's old store it publishes a member's attributes and the cluster's version, below /0.
func isOldClientWrite(r *etcdserverpb.Request) bool {
	switch r.Method {
	case "PUT", "POST", "DELETE":
		return !strings.HasPrefix(r.Path, "/0/")
	case "SYNC", "QGET", "GET", "HEAD":
		return false
	}
	return true
}
