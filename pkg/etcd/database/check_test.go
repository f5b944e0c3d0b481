package database

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.etcd.io/etcd/pkg/v3/traceutil"
	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.uber.org/zap"

	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

func TestProveAgreesWithEtcd(t *testing.T) {
	m := startOne(t, "prove")
	path := t.TempDir() + "/snap.db"
	save(t, m, path)
	empty, err := Check(t.Context(), self(t), path, CheckOptions{})
	must(t, err)
	if empty.Keys != 0 || empty.Revision != 1 || empty.CompactRevision != -1 || !empty.TrailingHash {
		t.Errorf("an empty store: %+v", empty)
	}
	if h := liveHash(t, m, 0); h != empty.Hash {
		t.Errorf("hash of an empty store: %+v, etcd says %+v", empty.Hash, h)
	}
	fillStore(t, m, 400)
	save(t, m, path)
	f, err := Check(t.Context(), self(t), path, CheckOptions{})
	must(t, err)
	want := liveHash(t, m, 0)
	if f.Hash != want {
		t.Errorf("hash %+v, etcd says %+v", f.Hash, want)
	}
	all, err := m.Client.Raw().Get(ctxOf(t), "\x00", clientv3.WithFromKey(), clientv3.WithCountOnly())
	must(t, err)
	if f.Keys != all.Count || f.Revision != all.Header.Revision {
		t.Errorf("%d keys at revision %d, etcd says %d at %d", f.Keys, f.Revision, all.Count, all.Header.Revision)
	}
	if f.Leases != 1 || f.LeasedKeys != 2 || f.Members != 1 || f.WrittenBy() != "3.6" {
		t.Errorf("facts %+v", f)
	}
	st, err := snapshot.NewV3(zap.NewNop()).Status(path)
	must(t, err)
	if st.Revision != f.Revision || int64(st.TotalKey) != f.Keys || st.TotalSize != f.SizeBytes {
		t.Errorf("etcdutl says %+v, we %+v", st, f)
	}
	// The file of a running etcd is being written: not to be judged.
	if _, err := Check(t.Context(), self(t), etcd.DBPath(m.Cfg.DataDir), CheckOptions{}); !errors.Is(err, etcd.ErrDataDirInUse) {
		t.Errorf("proving a live database: %v", err)
	}
	m.Stop(t)
	if live, err := CheckFile(t.Context(), etcd.DBPath(m.Cfg.DataDir), CheckOptions{}); err != nil || live.Hash != want || live.TrailingHash {
		t.Errorf("database of a stopped etcd: %+v %v", live, err)
	}
}

// TestHashAgainstTheDumbWay compares with etcd's own store, opened on the same file, in every state of compaction.
func TestHashAgainstTheDumbWay(t *testing.T) {
	for seed := range int64(30) {
		path := filepath.Join(t.TempDir(), "db")
		want, rev := randomStore(t, path, seed)
		got, err := CheckFile(t.Context(), path, CheckOptions{})
		must(t, err)
		if got.Hash.Hash != want.Hash || got.CompactRevision != want.CompactRevision || got.Revision != rev {
			t.Errorf("seed %d: %+v at %d, want %+v at %d", seed, got.Hash, got.Revision, want, rev)
		}
	}
}

func randomStore(t *testing.T, path string, seed int64) (mvcc.KeyValueHash, int64) {
	t.Helper()
	rnd := rand.New(rand.NewSource(seed))
	be := backend.NewDefaultBackend(zap.NewNop(), path)
	s := mvcc.NewStore(zap.NewNop(), be, &lease.FakeLessor{}, mvcc.StoreConfig{})
	keys := 1 + rnd.Intn(40)
	for range rnd.Intn(600) {
		k := []byte(fmt.Sprintf("k%d", rnd.Intn(keys)))
		switch rnd.Intn(10) {
		case 0, 1, 2:
			s.DeleteRange(k, nil)
		case 3:
			if rnd.Intn(6) == 0 && s.Rev() > 1 {
				if done, err := s.Compact(traceutil.TODO(), 1+rnd.Int63n(s.Rev())); err == nil {
					<-done
				}
			}
		default:
			s.Put(k, bytes.Repeat([]byte("v"), rnd.Intn(2000)), lease.NoLease)
		}
	}
	h, rev, err := s.HashStorage().HashByRev(0)
	must(t, err)
	must(t, s.Close())
	must(t, be.Close())
	return h, rev
}

// TestWalkerAgainstBbolt damages single bytes in the structure of a database without hash. Whatever bbolt's own
// check finds, ours finds too, and it never crashes.
func TestWalkerAgainstBbolt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	randomStore(t, path, 3)
	good, err := os.ReadFile(path)
	must(t, err)
	whole, err := scanDB(t.Context(), bytes.NewReader(good), int64(len(good)), nil)
	must(t, err)
	var used []int
	for p := range int(whole.f.meta.pages) {
		if whole.f.seen[p/64]&(1<<(p%64)) != 0 {
			used = append(used, p)
		}
	}
	bad := filepath.Join(t.TempDir(), "bad")
	rnd := rand.New(rand.NewSource(11))
	found := 0
	const tries = 1000
	for range tries {
		page := used[rnd.Intn(len(used))]
		at := page*int(whole.f.meta.pageSize) + rnd.Intn(64) // headers and elements
		bit := byte(1 << rnd.Intn(8))
		good[at] ^= bit
		s, err := scanDB(t.Context(), bytes.NewReader(good), int64(len(good)), nil)
		if err == nil {
			_, err = s.hashKV(t.Context(), s.compactRevision(), nil)
		}
		if err == nil {
			must(t, os.WriteFile(bad, good, 0o600))
			if berr := boltCheck(bad); berr != nil {
				t.Errorf("byte %d, bit %#x: bbolt finds %v, we nothing", at, bit, berr)
			}
		} else {
			found++
			if !errors.Is(err, etcd.ErrBadDatabase) {
				t.Fatalf("byte %d: %v", at, err)
			}
		}
		good[at] ^= bit
	}
	if found < tries/3 {
		t.Errorf("only %d of %d damages found", found, tries)
	}
}

// boltCheck is bbolt's own check of what our reader took for sound.
func boltCheck(path string) error {
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer db.Close()
	return db.View(func(tx *bolt.Tx) error {
		var first error
		for err := range tx.Check() {
			// Ours takes no account of free pages, which etcd doesn't store.
			if first == nil && !strings.Contains(err.Error(), "unreachable unfreed") {
				first = err
			}
		}
		return first
	})
}

func TestEveryDamageIsFound(t *testing.T) {
	m := startOne(t, "damage")
	fillStore(t, m, 200)
	dir := t.TempDir()
	path := dir + "/snap.db"
	save(t, m, path)
	good, err := os.ReadFile(path)
	must(t, err)
	check := func(name string, b []byte, inChild bool) {
		t.Helper()
		if _, err := io.Copy(io.Discard, etcd.VerifyStream(bytes.NewReader(b), 0)); !errors.Is(err, etcd.ErrBadSnapshot) {
			t.Errorf("%s: stream check says %v", name, err)
		}
		p := dir + "/bad.db"
		must(t, os.WriteFile(p, b, 0o600))
		prove := func(ctx context.Context, path string) (Facts, error) { return CheckFile(ctx, path, CheckOptions{}) }
		if inChild {
			// With a plan everything is found as well, and none is left behind.
			prove = func(ctx context.Context, path string) (Facts, error) {
				o := CheckOptions{Plan: &StagePlan{BumpRevision: bump, MarkCompacted: true}, PlanPath: dir + "/plan"}
				f, err := Check(ctx, self(t), path, o)
				if _, serr := os.Stat(o.PlanPath); !errors.Is(serr, os.ErrNotExist) {
					t.Errorf("%s: a plan was made: %v", name, serr)
				}
				return f, err
			}
		}
		_, err := prove(t.Context(), p)
		if !errors.Is(err, etcd.ErrBadSnapshot) && !errors.Is(err, etcd.ErrBadDatabase) {
			t.Errorf("%s: proof says %v", name, err)
		}
	}
	rnd := rand.New(rand.NewSource(1))
	for i := range 60 {
		b := bytes.Clone(good)
		at := rnd.Intn(len(b))
		b[at] ^= 1 << rnd.Intn(8)
		check(fmt.Sprintf("bit at %d", at), b, i < 10)
	}
	cuts := []int{0, 1, 31, 32, 511, 512, 544, 4096, 4096 + 32, 8192, len(good) / 2, len(good)/2/512*512 + 32, len(good) - 4096, len(good) - 512, len(good) - 33, len(good) - 1}
	for i, n := range cuts {
		check(fmt.Sprintf("cut to %d", n), good[:n], i%3 == 0)
	}
	check("longer", append(bytes.Clone(good), make([]byte, 512)...), false)
	check("zeroes", make([]byte, 1<<20), true)
	check("text", bytes.Repeat([]byte("not a database. "), 1000), true)
	check("gzip", append([]byte{0x1f, 0x8b, 8, 0}, good...), false)
	// Without its hash a file can only be judged by its structure: every cut is found.
	db := good[:len(good)-etcd.HashSize]
	for n := 4096; n < len(db); n += len(db) / 10 / 4096 * 4096 {
		p := dir + "/cut.db"
		must(t, os.WriteFile(p, db[:n], 0o600))
		if _, err := Check(t.Context(), self(t), p, CheckOptions{}); !errors.Is(err, etcd.ErrBadDatabase) {
			t.Errorf("database without hash cut to %d: %v", n, err)
		}
	}
	other := dir + "/other.db"
	o, err := bolt.Open(other, 0o600, nil)
	must(t, err)
	must(t, o.Update(func(tx *bolt.Tx) error { _, err := tx.CreateBucket([]byte("something")); return err }))
	must(t, o.Close())
	if _, err := Check(t.Context(), self(t), other, CheckOptions{}); !errors.Is(err, etcd.ErrBadDatabase) || !strings.Contains(err.Error(), "not etcd's") {
		t.Errorf("another program's database: %v", err)
	}
	if _, err := Check(t.Context(), self(t), dir+"/absent", CheckOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent file: %v", err)
	}
	if _, err := Check(t.Context(), "/bin/false", path, CheckOptions{}); !errors.Is(err, etcd.ErrBadDatabase) {
		t.Errorf("a checker that fails: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	if _, err := Check(ctx, self(t), path, CheckOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no time: %v", err)
	}
}
