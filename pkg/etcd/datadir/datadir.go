package datadir

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
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

// State is a judgement about a directory.
type State int

// The states of a data dir.
const (
	// Absent: there is nothing of that name.
	Absent State = iota
	// Empty: a directory in which no etcd has ever got as far as writing its log; a member can begin here.
	Empty
	// Member: a member's log and database are there.
	Member
	// Broken: parts of a member are there, and essential parts are missing. It is never to be taken for empty.
	Broken
)

// String is for the operator.
func (s State) String() string {
	switch s {
	case Absent:
		return "absent"
	case Empty:
		return "empty"
	case Member:
		return "holds a member"
	default:
		return "broken"
	}
}

// Info is what can be told about a data dir without reading much of it.
type Info struct {
	State State
	// Reason explains Broken, and Empty if there is something in the directory.
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

// Inspect judges a data dir. It may be called while etcd runs there. An error means that it couldn't be
// looked at, which says nothing about what is there.
func Inspect(dir string) (Info, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return Info{State: Absent}, nil
	}
	if err != nil {
		return Info{}, fmt.Errorf("inspect data dir: %w", err)
	}
	member := filepath.Join(dir, "member")
	fi, err := os.Stat(member)
	switch {
	case errors.Is(err, os.ErrNotExist):
		info := Info{State: Empty}
		if len(entries) > 0 {
			info.Reason = fmt.Sprintf("it holds %q, but no member", entries[0].Name())
		}
		return info, nil
	case err != nil:
		return Info{}, fmt.Errorf("inspect data dir: %w", err)
	case !fi.IsDir():
		return Info{State: Broken, Reason: member + " is not a directory"}, nil
	}
	return inspectMember(dir, member)
}

func inspectMember(dir, member string) (Info, error) {
	wals, err := namesWith(filepath.Join(member, "wal"), ".wal")
	if err != nil {
		return Info{}, err
	}
	snaps, err := namesWith(filepath.Join(member, "snap"), ".snap")
	if err != nil {
		return Info{}, err
	}
	info := Info{DBSize: -1}
	if fi, err := os.Stat(etcd.DBPath(dir)); err == nil {
		info.DBSize = fi.Size()
	} else if !errors.Is(err, os.ErrNotExist) {
		return Info{}, fmt.Errorf("inspect data dir: %w", err)
	}
	switch {
	case len(wals) == 0 && len(snaps) == 0 && info.DBSize < freshDBSize:
		return Info{State: Empty, Reason: "etcd was stopped in its first start, before it wrote its log"}, nil
	case len(wals) == 0:
		info.State, info.Reason = Broken, "the write-ahead log is missing"
		return info, nil
	case info.DBSize <= 0:
		info.State, info.Reason = Broken, "the database is missing or empty"
		return info, nil
	}
	info.State = Member
	meta, err := walMetadata(filepath.Join(member, "wal", wals[len(wals)-1]))
	if err != nil {
		info.State, info.Reason = Broken, fmt.Sprintf("the newest write-ahead log can't be read: %v", err)
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
