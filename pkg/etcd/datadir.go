package etcd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// DataDirState is a judgement about a directory.
type DataDirState int

// The states of a data dir.
const (
	// DirAbsent: there is nothing of that name.
	DirAbsent DataDirState = iota
	// DirEmpty: a directory in which no etcd has ever got as far as writing its log; a member can begin here.
	DirEmpty
	// DirMember: a member's log and database are there.
	DirMember
	// DirBroken: parts of a member are there, and essential parts are missing. It is never to be taken for empty.
	DirBroken
)

// String is for the operator.
func (s DataDirState) String() string {
	switch s {
	case DirAbsent:
		return "absent"
	case DirEmpty:
		return "empty"
	case DirMember:
		return "holds a member"
	default:
		return "broken"
	}
}

// DataDirInfo is what can be told about a data dir without reading much of it.
type DataDirInfo struct {
	State DataDirState
	// Reason explains DirBroken, and DirEmpty if there is something in the directory.
	Reason string
	// MemberID and ClusterID come from the log; 0 if they can't be read.
	MemberID  cluster.MemberID
	ClusterID uint64
	// DBSize is the size of the database in bytes.
	DBSize int64
	// Staged is true if Stage made it and no etcd was started since.
	Staged bool
}

// freshDBSize is more than the database of an etcd that was interrupted in its very first start has.
const freshDBSize = 256 << 10

// InspectDataDir judges a data dir. It may be called while etcd runs there. An error means that it couldn't be
// looked at, which says nothing about what is there.
func InspectDataDir(dir string) (DataDirInfo, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return DataDirInfo{State: DirAbsent}, nil
	}
	if err != nil {
		return DataDirInfo{}, fmt.Errorf("inspect data dir: %w", err)
	}
	member := filepath.Join(dir, "member")
	fi, err := os.Stat(member)
	switch {
	case errors.Is(err, os.ErrNotExist):
		info := DataDirInfo{State: DirEmpty}
		if len(entries) > 0 {
			info.Reason = fmt.Sprintf("it holds %q, but no member", entries[0].Name())
		}
		return info, nil
	case err != nil:
		return DataDirInfo{}, fmt.Errorf("inspect data dir: %w", err)
	case !fi.IsDir():
		return DataDirInfo{State: DirBroken, Reason: member + " is not a directory"}, nil
	}
	return inspectMember(dir, member)
}

func inspectMember(dir, member string) (DataDirInfo, error) {
	wals, err := namesWith(filepath.Join(member, "wal"), ".wal")
	if err != nil {
		return DataDirInfo{}, err
	}
	snaps, err := namesWith(filepath.Join(member, "snap"), ".snap")
	if err != nil {
		return DataDirInfo{}, err
	}
	info := DataDirInfo{DBSize: -1}
	if fi, err := os.Stat(DBPath(dir)); err == nil {
		info.DBSize = fi.Size()
	} else if !errors.Is(err, os.ErrNotExist) {
		return DataDirInfo{}, fmt.Errorf("inspect data dir: %w", err)
	}
	switch {
	case len(wals) == 0 && len(snaps) == 0 && info.DBSize < freshDBSize:
		return DataDirInfo{State: DirEmpty, Reason: "etcd was stopped in its first start, before it wrote its log"}, nil
	case len(wals) == 0:
		info.State, info.Reason = DirBroken, "the write-ahead log is missing"
		return info, nil
	case info.DBSize <= 0:
		info.State, info.Reason = DirBroken, "the database is missing or empty"
		return info, nil
	}
	info.State = DirMember
	meta, err := walMetadata(filepath.Join(member, "wal", wals[len(wals)-1]))
	if err != nil {
		info.State, info.Reason = DirBroken, fmt.Sprintf("the newest write-ahead log can't be read: %v", err)
		return info, nil
	}
	info.MemberID, info.ClusterID = cluster.MemberID(meta.NodeID), meta.ClusterID
	_, info.Staged, err = Staged(dir)
	return info, err
}

// namesWith lists the files of a directory with a suffix, sorted; a missing directory has none.
func namesWith(dir, suffix string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("inspect data dir: %w", err)
	}
	var out []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), suffix) {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// walMetadata reads the record with which, behind a checksum, every file of the log begins.
func walMetadata(path string) (*etcdserverpb.Metadata, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	d := wal.NewDecoder(fileutil.NewFileReader(f))
	const among = 3
	for range among {
		var rec walpb.Record
		if err := d.Decode(&rec); err != nil && rec.Type == 0 {
			return nil, err
		}
		switch rec.Type {
		case wal.CrcType:
			d.UpdateCRC(rec.Crc)
		case wal.MetadataType:
			var m etcdserverpb.Metadata
			if err := m.Unmarshal(rec.Data); err != nil {
				return nil, err
			}
			return &m, nil
		}
	}
	return nil, errors.New("no metadata")
}
