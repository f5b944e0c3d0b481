package client

import (
	"bytes"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/mem"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// FuzzSnapshotMessage compares with etcd's own reader: what both take, they take for the same.
func FuzzSnapshotMessage(f *testing.F) {
	r := etcdserverpb.SnapshotResponse{Header: &etcdserverpb.ResponseHeader{MemberId: 3}, RemainingBytes: 5, Blob: []byte("part"), Version: "3.6.0"}
	good, err := r.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte{fieldBlob<<3 | 2, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, data []byte) {
		testutil.Untrusted(t, len(data), testutil.Usual, func() error {
			var m snapshotMessage
			if err := m.decode(mem.BufferSlice{mem.SliceBuffer(data)}); err != nil {
				return err
			}
			blob := make([]byte, m.left)
			n := m.Read(blob)
			var theirs etcdserverpb.SnapshotResponse
			if theirs.Unmarshal(data) != nil {
				return nil // what ours passes over needn't be right
			}
			if !bytes.Equal(blob[:n], theirs.Blob) || m.remaining != theirs.RemainingBytes || m.version != theirs.Version {
				t.Errorf("%d bytes, %d remain, version %q; etcd says %v", n, m.remaining, m.version, &theirs)
			}
			return nil
		})
	})
}
