package database

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/lease/leasepb"
	"go.etcd.io/etcd/server/v3/storage/schema"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

// smallDB is a database as etcd writes it, in small pages: n revisions of a few keys, deletions, leases and a finished compaction.
func smallDB(f *testing.F, n int) []byte {
	path := filepath.Join(f.TempDir(), "db")
	db, err := bolt.Open(path, 0o600, &bolt.Options{PageSize: 1024, NoSync: true, NoFreelistSync: true})
	must(f, err)
	must(f, db.Update(func(tx *bolt.Tx) error {
		b := map[string]*bolt.Bucket{}
		for _, name := range []string{"alarm", "auth", "authRoles", "authUsers", "cluster", "key", "lease", "members", "members_removed", "meta"} {
			var err error
			if b[name], err = tx.CreateBucket([]byte(name)); err != nil {
				return err
			}
		}
		l := leasepb.Lease{ID: 7, TTL: 60}
		record, err := l.Marshal()
		must(f, err)
		must(f, b["lease"].Put(leaseKey(7), record))
		must(f, b["members"].Put([]byte("8e9e05c52164694d"), []byte(`{"id":10276657743932975437,"name":"a"}`)))
		must(f, b["cluster"].Put(schema.ClusterClusterVersionKeyName, []byte("3.6.0")))
		must(f, b["meta"].Put(schema.MetaConsistentIndexKeyName, binary.BigEndian.AppendUint64(nil, uint64(n))))
		must(f, b["meta"].Put(schema.FinishedCompactKeyName, revBytes(2, 0, false)))
		for i := range n {
			rev := int64(i + 2)
			kv := mvccpb.KeyValue{Key: []byte{'/', 'a' + byte(i%5)}}
			if i%7 != 6 {
				kv.Value, kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease = bytes.Repeat([]byte("v"), i), rev, rev, 1, int64(i%2*7)
			}
			v, err := kv.Marshal()
			must(f, err)
			must(f, b["key"].Put(revBytes(rev, 0, i%7 == 6), v))
		}
		return nil
	}))
	must(f, db.Close())
	data, err := os.ReadFile(path)
	must(f, err)
	return data
}

// resum makes the checksums of the meta pages right, so that what stands in them gets a chance.
func resum(db []byte) {
	for _, at := range []int{0, 1024, 4096} {
		if len(db) < at+pageHeaderSize+metaSize {
			continue
		}
		m := db[at+pageHeaderSize:]
		if binary.LittleEndian.Uint32(m) == boltMagic {
			h := fnv.New64a()
			h.Write(m[:metaSize-8])
			binary.LittleEndian.PutUint64(m[metaSize-8:], h.Sum64())
		}
	}
}

// circle is a database whose keys are on a branch page that refers to page 0.
func circle(f *testing.F) []byte {
	db := smallDB(f, 1)
	header := append([]byte{leafPage, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, elemSize, 0, 0, 0}, revLen)
	at := bytes.Index(db, header)
	if at < 0 {
		f.Fatal("the bucket with the keys isn't where it is expected")
	}
	db[at] = branchPage
	clear(db[at+16 : at+24])
	return db
}

// FuzzDatabase gives every reader of databases the same file. They must agree on whether it is one.
func FuzzDatabase(f *testing.F) {
	f.Add(smallDB(f, 1))
	f.Add(smallDB(f, 40))
	f.Add(circle(f))
	f.Add([]byte{})
	// A key table of 48 KiB, a look-ahead of 128 KiB, a buffer for each depth.
	most := testutil.Cost{Fixed: 4 << 20, PerByte: 200}
	f.Fuzz(func(t *testing.T, db []byte) {
		db = slices.Clone(db)
		resum(db)
		testutil.Untrusted(t, len(db), most, func() error {
			_, err := readEverything(t.Context(), t, db)
			if err != nil && !errors.Is(err, etcd.ErrBadDatabase) {
				t.Errorf("not ErrBadDatabase: %v", err)
			}
			return err
		})
	})
}

func readEverything(ctx context.Context, t *testing.T, db []byte) (*scan, error) {
	r, size := bytes.NewReader(db), int64(len(db))
	s, scanErr := scanDB(ctx, r, size, [][]byte{[]byte("/a")})
	if scanErr == nil {
		s.leases.facts()
		plan := StagePlan{BumpRevision: 1000, MarkCompacted: true, TargetVersion: "3.6.4"}
		if _, _, err := s.planStage(ctx, plan); err != nil && !errors.Is(err, etcd.ErrBadDatabase) && !errors.Is(err, etcd.ErrVersion) &&
			!errors.Is(err, etcd.ErrConfig) {
			t.Errorf("plan: %v", err)
		}
	}
	keys, values := 0, 0
	b, err := openBolt(r, size)
	if err != nil {
		return nil, err
	}
	keysErr := walkLive(ctx, b, func(LiveKey) error { keys++; return nil })
	b, err = openBolt(r, size)
	must(t, err)
	valuesErr := walkValues(ctx, b, ValuesOptions{}, func([]byte) error { values++; return nil })
	if (keysErr == nil) != (valuesErr == nil) || keysErr == nil && keys != values {
		t.Errorf("%d keys (%v), %d values (%v)", keys, keysErr, values, valuesErr)
	}
	b, err = openBolt(r, size)
	must(t, err)
	newest, newestErr := b.newestRevision(ctx)
	if scanErr == nil {
		live, _ := s.live()
		if keysErr != nil || newestErr != nil || int64(keys) != live || s.last.main != 0 && newest != s.last.main {
			t.Errorf("sound, but: %d keys of %d (%v), revision %d of %d (%v)", keys, live, keysErr, newest, s.last.main, newestErr)
		}
	}
	return s, errors.Join(scanErr, keysErr, newestErr)
}

func FuzzRevision(f *testing.F) {
	f.Add(revBytes(1, 0, false))
	f.Add(revBytes(math.MaxInt64, 3, true))
	f.Fuzz(func(t *testing.T, k []byte) {
		testutil.Untrusted(t, len(k), testutil.Usual, func() error {
			r, err := parseRevKey(k)
			if err == nil && !bytes.Equal(revBytes(r.main, r.sub, r.tombstone), k) {
				t.Errorf("%x became %+v", k, r)
			}
			return err
		})
	})
}

// FuzzKeyValue compares with etcd's own reader: what ours takes, etcd takes too, and for the same.
func FuzzKeyValue(f *testing.F) {
	whole := mvccpb.KeyValue{Key: []byte("/registry/pods/a"), CreateRevision: 3, ModRevision: 4, Version: 2, Value: []byte("v"), Lease: 9}
	b, err := whole.Marshal()
	must(f, err)
	f.Add(b)
	f.Add([]byte{1<<3 | 2, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		testutil.Untrusted(t, len(b), testutil.Usual, func() error {
			kv, err := parseKeyValue(b)
			if err != nil {
				return err
			}
			var theirs mvccpb.KeyValue
			if err := theirs.Unmarshal(b); err != nil {
				t.Fatalf("etcd can't read what was read as %+v: %v", kv, err)
			}
			if !bytes.Equal(kv.key, theirs.Key) || kv.create != theirs.CreateRevision || kv.mod != theirs.ModRevision || kv.version != theirs.Version ||
				kv.lease != theirs.Lease || kv.valueSize != len(theirs.Value) {
				t.Errorf("%+v, etcd says %v", kv, &theirs)
			}
			return nil
		})
	})
}

// FuzzChildOutput is for the parent of a process that a hostile file has taken over: whatever that writes is an error or a list.
func FuzzChildOutput(f *testing.F) {
	path := filepath.Join(f.TempDir(), "db")
	must(f, os.WriteFile(path, smallDB(f, 12), 0o600))
	var keys, values bytes.Buffer
	must(f, writeKeys(bufio.NewWriter(&keys), path))
	must(f, writeValues(bufio.NewWriter(&values), path, ValuesOptions{}))
	f.Add(keys.Bytes())
	f.Add(values.Bytes())
	f.Add(binary.AppendUvarint([]byte{keyFrame}, maxKey))
	f.Add(binary.AppendUvarint([]byte{valueFrame}, maxValueFrame))
	f.Fuzz(func(t *testing.T, out []byte) {
		testutil.Untrusted(t, len(out), testutil.Usual, func() error {
			_, err := readKeys(bufio.NewReader(bytes.NewReader(out)), func(LiveKey) error { return nil })
			return err
		})
		testutil.Untrusted(t, len(out), testutil.Usual, func() error {
			_, err := readValues(bufio.NewReader(bytes.NewReader(out)), func(*mvccpb.KeyValue) error { return nil })
			return err
		})
	})
}

// FuzzStagePlan: a plan that isn't exactly what was written is no plan.
func FuzzStagePlan(f *testing.F) {
	path := filepath.Join(f.TempDir(), "plan")
	want := StagePlan{BumpRevision: 5, MarkCompacted: true}
	id := FileID{Device: 1, Inode: 2, Size: 3}
	p := PlannedStage{Format: planFormat, File: id, For: want.fingerprint(), Edits: &Edits{}}
	must(f, p.Write(path))
	good, err := os.ReadFile(path)
	must(f, err)
	f.Add(good)
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, data []byte) {
		must(t, os.WriteFile(path, data, 0o600))
		testutil.Untrusted(t, len(data), testutil.Usual, func() error {
			if p := ReadPlan(path, id, want); p != nil && p.Edits == nil {
				t.Error("a plan without edits")
			}
			return nil
		})
	})
}
