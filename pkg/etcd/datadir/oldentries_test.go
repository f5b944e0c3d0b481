package datadir

import (
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

// TestOldEntries: what 3.5 writes through its old store counts until a raft snapshot lies behind it.
func TestOldEntries(t *testing.T) {
	bare := etcdserverpb.Request{ID: 7, Method: "PUT", Path: "/0/members/8211f1d0f64f3269/attributes", Val: `{"name":"a"}`}
	old, err := bare.Marshal()
	must(t, err)
	wrapped := etcdserverpb.InternalRaftRequest{Header: &etcdserverpb.RequestHeader{ID: 8}, V2: &bare}
	inside, err := wrapped.Marshal()
	must(t, err)
	fresh := putRequest(t, "/a", "b")
	for _, tc := range []struct {
		what string
		dir  string
		want bool
	}{
		{"none", makeLog(t, entries(1, 1, fresh, fresh)), false},
		{"bare", makeLog(t, entries(1, 1, fresh, old, fresh)), true},
		{"wrapped", makeLog(t, entries(1, 1, fresh, inside)), true},
		{"before a snapshot", makeLog(t, entries(1, 1, fresh, old, fresh), snapAt(1, 3), entries(1, 4, fresh)), false},
		{"behind a snapshot", makeLog(t, entries(1, 1, fresh, fresh), snapAt(1, 2), entries(1, 3, old)), true},
	} {
		got, err := OldEntries(tc.dir)
		if err != nil || got != tc.want {
			t.Errorf("%s: %t, %v; want %t", tc.what, got, err, tc.want)
		}
	}
}
