package datadir

import (
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

const firstWAL = "0000000000000000-0000000000000000.wal"

// fuzzLog is a log as etcd writes it, without the space that it takes in advance.
func fuzzLog(f *testing.F) []byte {
	dir := filepath.Join(f.TempDir(), "wal")
	m := etcdserverpb.Metadata{NodeID: 7, ClusterID: 9}
	meta, err := m.Marshal()
	must(f, err)
	w, err := wal.Create(zap.NewNop(), dir, meta)
	must(f, err)
	r := etcdserverpb.InternalRaftRequest{Put: &etcdserverpb.PutRequest{Key: []byte("k"), Value: []byte("v")}}
	put, err := r.Marshal()
	must(f, err)
	must(f, w.Save(raftpb.HardState{Term: 2, Vote: 7, Commit: 2}, []raftpb.Entry{
		{Type: raftpb.EntryConfChange, Term: 1, Index: 1}, {Term: 2, Index: 2, Data: put},
	}))
	must(f, w.SaveSnapshot(walpb.Snapshot{Index: 2, Term: 2, ConfState: &raftpb.ConfState{Voters: []uint64{7}}}))
	must(f, w.Close())
	data, err := os.ReadFile(filepath.Join(dir, firstWAL))
	must(f, err)
	for len(data) > 8 && data[len(data)-8] == 0 {
		data = data[:len(data)-8]
	}
	return data
}

// sealLog makes a record's checksum right, so that what stands in it gets a chance: of each record that can be read, in its order.
func sealLog(data []byte) []byte {
	table := crc32.MakeTable(crc32.Castagnoli)
	var crc uint32
	for at := 0; at+8 <= len(data); {
		n := int(data[at]) | int(data[at+1])<<8 | int(data[at+2])<<16
		padding := 0
		if data[at+7]&0x80 != 0 {
			padding = int(data[at+7] & 7)
		}
		end := at + 8 + n
		if n == 0 || end+padding > len(data) {
			break
		}
		var rec walpb.Record
		if rec.Unmarshal(data[at+8:end]) == nil && rec.Type != wal.CrcType {
			crc = crc32.Update(crc, table, rec.Data)
			rec.Crc = crc
			if b, err := rec.Marshal(); err == nil && len(b) == n {
				copy(data[at+8:end], b)
			}
		}
		at = end + padding
	}
	return data
}

// FuzzLog gives all readers of write-ahead logs any bytes as the log of a stopped member.
func FuzzLog(f *testing.F) {
	good := fuzzLog(f)
	f.Add(good)
	f.Add(good[:len(good)-5])
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0})
	dir := f.TempDir()
	path := filepath.Join(dir, "member", "wal", firstWAL)
	must(f, os.MkdirAll(filepath.Dir(path), 0o700))
	must(f, os.MkdirAll(filepath.Join(dir, "member", "snap"), 0o700))
	must(f, os.WriteFile(etcd.DBPath(dir), make([]byte, 4096), 0o600))
	f.Fuzz(func(t *testing.T, data []byte) {
		must(t, os.WriteFile(path, sealLog(append([]byte(nil), data...)), 0o600))
		testutil.Untrusted(t, len(data), testutil.Usual, func() error {
			_, _, err := LastEntry(dir)
			if err != nil && !errors.Is(err, etcd.ErrBadLog) {
				t.Errorf("not ErrBadLog: %v", err)
			}
			return err
		})
		testutil.Untrusted(t, len(data), testutil.Usual, func() error {
			_, err := ClientWrites(dir)
			_, oldErr := OldEntries(dir)
			return errors.Join(err, oldErr)
		})
		testutil.Untrusted(t, len(data), testutil.Usual, func() error {
			info, err := Inspect(dir)
			must(t, err)
			if info.State != Member && info.Reason == "" {
				t.Errorf("%+v", info)
			}
			return nil
		})
	})
}

func FuzzStagedMarker(f *testing.F) {
	dir := f.TempDir()
	must(f, os.MkdirAll(filepath.Join(dir, "member"), 0o700))
	f.Add([]byte(`{"for":"x","result":{"revision":5,"hash":{"hash":1}}}`))
	f.Add([]byte("\x1b[31m"))
	f.Fuzz(func(t *testing.T, data []byte) {
		must(t, os.WriteFile(etcd.StagedMarker(dir), data, 0o600))
		testutil.Untrusted(t, len(data), testutil.Usual, func() error {
			_, _, err := Staged(dir)
			if err != nil && !errors.Is(err, cluster.ErrCorrupt) {
				t.Errorf("not ErrCorrupt: %v", err)
			}
			return err
		})
	})
}
