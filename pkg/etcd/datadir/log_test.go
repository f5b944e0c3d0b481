package datadir

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
)

// written asks, and makes sure that asking changes nothing.
func written(t testing.TB, m *testMember) bool {
	t.Helper()
	before := dirState(t, m.Cfg.DataDir)
	got, err := ClientWrites(m.Cfg.DataDir)
	must(t, err)
	if now := dirState(t, m.Cfg.DataDir); !maps.Equal(before, now) {
		t.Errorf("the data dir was changed: %v, before %v", now, before)
	}
	return got
}

// TestClientWrites starts real clusters on staged dirs: what etcd does by itself, reading, and what a manager does, isn't a client's write.
func TestClientWrites(t *testing.T) {
	src := startOne(t, "src")
	fillStore(t, src, 50)
	path := t.TempDir() + "/snap.db"
	save(t, src, path)
	bins := []process.Binary{builtin(t)}
	if testutil.IsLong() {
		bins = otherBinaries(t)
	}
	for _, bin := range bins {
		ms := makeMembers(t, 3, bin, "new", nil, "127.0.0.1")
		cfg := StageConfig{SnapshotPath: path, BumpRevision: bump, MarkCompacted: true, TargetVersion: bin.Version}
		stage(t, ms, cfg)
		for _, m := range ms {
			if written(t, m) {
				t.Errorf("%s: a staged dir counts as written", bin.Version)
			}
		}
		startAll(t, ms)
		if _, err := ClientWrites(ms[0].Cfg.DataDir); !errors.Is(err, etcd.ErrDataDirInUse) {
			t.Errorf("%s: asked while it runs: %v", bin.Version, err)
		}
		ctx := ctxOf(t)
		r, err := ms[0].Client.Raw().Get(ctx, "x") // linearizable
		must(t, err)
		must(t, ms[0].Client.Compact(ctx, r.Header.Revision, false))
		eventually(t, "the cluster's version is set", func() bool {
			st, err := ms[1].Client.Status(ctxOf(t))
			return err == nil && st.Leader != 0 && contains(t, ms[1], "cluster version")
		})
		for _, m := range ms {
			m.Kill(t)
			if written(t, m) {
				t.Errorf("%s: %s counts as written, though no client wrote", bin.Version, m.Cfg.Name)
			}
		}
		for _, m := range ms {
			m.Start(t)
		}
		eventually(t, "it is healthy", ms[2].Healthy)
		_, err = ms[2].Client.Raw().Grant(ctxOf(t), 600)
		must(t, err)
		n := 0
		for _, m := range ms {
			m.Kill(t)
			if written(t, m) {
				n++
			}
		}
		if n < 2 {
			t.Errorf("%s: an acknowledged lease is in the logs of %d members", bin.Version, n)
		}
		term, index, err := LastEntry(ms[2].Cfg.DataDir)
		if err != nil || term < 2 || index < 8 {
			t.Errorf("%s: the last entry is %d/%d, %v", bin.Version, term, index, err)
		}
	}
}

func contains(t testing.TB, m *testMember, text string) bool {
	t.Helper()
	b, err := os.ReadFile(m.LogFile())
	must(t, err)
	return strings.Contains(string(b), text)
}

func TestIsClientWrite(t *testing.T) {
	type req = etcdserverpb.InternalRaftRequest
	v2 := func(method, path string) *etcdserverpb.Request {
		return &etcdserverpb.Request{ID: 5, Method: method, Path: path, Val: "v"}
	}
	for _, c := range []struct {
		r    *req
		want bool
	}{
		{&req{Put: &etcdserverpb.PutRequest{Key: []byte("k")}}, true},
		{&req{DeleteRange: &etcdserverpb.DeleteRangeRequest{}}, true},
		{&req{Txn: &etcdserverpb.TxnRequest{}}, true},
		{&req{LeaseGrant: &etcdserverpb.LeaseGrantRequest{}}, true},
		{&req{AuthEnable: &etcdserverpb.AuthEnableRequest{}}, true},
		{&req{AuthDisable: &etcdserverpb.AuthDisableRequest{}}, true},
		{&req{AuthUserAdd: &etcdserverpb.AuthUserAddRequest{}}, true},
		{&req{AuthRoleGrantPermission: &etcdserverpb.AuthRoleGrantPermissionRequest{}}, true},
		{&req{Header: &etcdserverpb.RequestHeader{ID: 3}}, true}, // what a newer etcd knows
		{&req{LeaseRevoke: &etcdserverpb.LeaseRevokeRequest{ID: 1}}, false},
		{&req{LeaseCheckpoint: &etcdserverpb.LeaseCheckpointRequest{}}, false},
		{&req{Compaction: &etcdserverpb.CompactionRequest{}}, false},
		{&req{Alarm: &etcdserverpb.AlarmRequest{}}, false},
		{&req{ClusterVersionSet: &membershippb.ClusterVersionSetRequest{Ver: "3.6.0"}}, false},
		{&req{ClusterMemberAttrSet: &membershippb.ClusterMemberAttrSetRequest{}}, false},
		{&req{DowngradeInfoSet: &membershippb.DowngradeInfoSetRequest{}}, false},
		{&req{Authenticate: &etcdserverpb.InternalAuthenticateRequest{}}, false},
		{&req{V2: v2("PUT", "/0/version")}, false},
		{&req{V2: v2("PUT", "/1/key")}, true},
	} {
		c.r.ID = 9
		b, err := c.r.Marshal()
		must(t, err)
		if got := isClientWrite(&raftpb.Entry{Data: b}); got != c.want {
			t.Errorf("%v: %t", c.r, got)
		}
	}
	for path, want := range map[string]bool{"/0/members/1/attributes": false, "/0/version": false, "/1/a": true} {
		for _, method := range []string{"PUT", "POST", "DELETE", "QGET", "SYNC"} {
			b, err := v2(method, path).Marshal()
			must(t, err)
			reads := method == "QGET" || method == "SYNC"
			if got := isClientWrite(&raftpb.Entry{Data: b}); got != (want && !reads) {
				t.Errorf("v2 %s %s: %t", method, path, got)
			}
		}
	}
	if !isClientWrite(&raftpb.Entry{Term: 2, Type: raftpb.EntryConfChange, Data: []byte("x")}) {
		t.Error("a change of the members doesn't count")
	}
	if isClientWrite(&raftpb.Entry{}) || isClientWrite(&raftpb.Entry{Term: bootTerm, Type: raftpb.EntryConfChange, Data: []byte("x")}) {
		t.Error("raft's own entries count")
	}
}

// makeLog writes a log as a member would. Each step is saved at once.
func makeLog(t testing.TB, steps ...func(w *wal.WAL) error) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "member"), 0o700))
	w, err := wal.Create(etcd.QuietLogger(), filepath.Join(dir, "member", "wal"), []byte("meta"))
	must(t, err)
	for _, s := range steps {
		must(t, s(w))
	}
	must(t, w.Close())
	return dir
}

func entries(term, from uint64, data ...[]byte) func(w *wal.WAL) error {
	var ents []raftpb.Entry
	for i, d := range data {
		ents = append(ents, raftpb.Entry{Term: term, Index: from + uint64(i), Data: d})
	}
	return func(w *wal.WAL) error { return w.Save(raftpb.HardState{Term: term, Commit: 1}, ents) }
}

func snapAt(term, index uint64) func(w *wal.WAL) error {
	return func(w *wal.WAL) error {
		return w.SaveSnapshot(walpb.Snapshot{Term: term, Index: index, ConfState: &raftpb.ConfState{}})
	}
}

func TestLogsOfAllKinds(t *testing.T) {
	put := putRequest(t, "k", "v")
	check := func(name, dir string, writes bool, term, index uint64) {
		t.Helper()
		w, err := ClientWrites(dir)
		if err != nil || w != writes {
			t.Errorf("%s: written %t, %v", name, w, err)
		}
		tm, i, err := LastEntry(dir)
		if err != nil || tm != term || i != index {
			t.Errorf("%s: ends with %d/%d, want %d/%d, %v", name, tm, i, term, index, err)
		}
	}
	check("empty entries", makeLog(t, entries(2, 1, nil, nil)), false, 2, 2)
	check("a put that isn't committed", makeLog(t, entries(2, 1, nil, put)), true, 2, 2)
	check("a put that was replaced", makeLog(t, entries(2, 1, nil, put, put), entries(3, 2, nil)), false, 3, 2)
	check("a put before one that was replaced", makeLog(t, entries(2, 1, put, put), entries(3, 2, nil)), true, 3, 2)
	check("a snapshot of its own", makeLog(t, entries(2, 1, nil, nil), snapAt(2, 1)), false, 2, 2)
	check("a snapshot from another member", makeLog(t, entries(2, 1, nil), snapAt(4, 50)), true, 4, 50)

	// A torn end, at every length of the last record.
	whole := makeLog(t, entries(2, 1, nil, nil))
	torn := makeLog(t, entries(2, 1, nil, nil), entries(2, 3, put))
	name := "/member/wal/0000000000000000-0000000000000000.wal"
	a, err := os.ReadFile(whole + name)
	must(t, err)
	b, err := os.ReadFile(torn + name)
	must(t, err)
	first, last := 0, 0
	for i := range a {
		if a[i] != b[i] {
			if first == 0 {
				first = i
			}
			last = i
		}
	}
	for cut := first; cut < last-60; cut += 7 { // a record of the new state follows
		must(t, os.WriteFile(torn+name, append(append([]byte{}, b[:cut]...), make([]byte, len(b)-cut)...), 0o600))
		tm, i, err := LastEntry(torn)
		if err != nil && !errors.Is(err, etcd.ErrBadLog) || err == nil && (tm != 2 || i < 2 || i > 3) {
			t.Errorf("torn at %d: %d/%d %v", cut, tm, i, err)
		}
		must(t, os.WriteFile(torn+name, b[:cut], 0o600))
		if tm, i, err := LastEntry(torn); err != nil || tm != 2 || i < 2 || i > 3 {
			t.Errorf("cut at %d: %d/%d %v", cut, tm, i, err)
		}
	}
	must(t, os.Truncate(torn+name, int64(first)))
	check("cut", torn, false, 2, 2)

	// Several files, then without the first, then with a hole, then with damage in a file that isn't the last.
	old := wal.SegmentSizeBytes
	wal.SegmentSizeBytes = 4 << 10
	defer func() { wal.SegmentSizeBytes = old }()
	var steps []func(w *wal.WAL) error
	for i := range uint64(30) {
		steps = append(steps, entries(2, i+1, make([]byte, 0)), func(w *wal.WAL) error {
			return w.Save(raftpb.HardState{Term: 2, Commit: i + 1}, []raftpb.Entry{{Term: 2, Index: i + 1, Type: raftpb.EntryConfChange, Data: make([]byte, 900)}})
		})
	}
	many := makeLog(t, steps...)
	files, err := filepath.Glob(many + "/member/wal/*.wal")
	must(t, err)
	if len(files) < 4 {
		t.Fatalf("only %d files", len(files))
	}
	check("several files with changes of members", many, true, 2, 30)
	keep, err := os.ReadFile(files[1])
	must(t, err)
	bad := append([]byte{}, keep...)
	bad[1000] ^= 1
	must(t, os.WriteFile(files[1], bad, 0o600))
	if _, err := ClientWrites(many); !errors.Is(err, etcd.ErrBadLog) {
		t.Errorf("damage in the middle: %v", err)
	}
	must(t, os.WriteFile(files[1], keep[:len(keep)/2], 0o600))
	if _, err := ClientWrites(many); !errors.Is(err, etcd.ErrBadLog) {
		t.Errorf("a cut in the middle: %v", err)
	}
	must(t, os.WriteFile(files[1], keep, 0o600))
	must(t, os.Remove(files[0]))
	check("the beginning is gone", many, true, 2, 30)
	must(t, os.Remove(files[2]))
	if _, _, err := LastEntry(many); !errors.Is(err, etcd.ErrBadLog) {
		t.Errorf("a hole: %v", err)
	}
	if _, err := ClientWrites(t.TempDir()); !errors.Is(err, etcd.ErrBadLog) {
		t.Errorf("no log: %v", err)
	}

}
