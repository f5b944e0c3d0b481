package database

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/storage/schema"

	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/child"
)

// TestKilledReader has the process that reads a database killed from outside, as the kernel does when memory runs out: that says nothing of the data.
func TestKilledReader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	randomStore(t, path, 1)
	killed := filepath.Join(t.TempDir(), "killed")
	must(t, os.WriteFile(killed, []byte("#!/bin/sh\nkill -9 $$\n"), 0o700))
	_, proof := Check(t.Context(), killed, path, CheckOptions{})
	_, replay := Replay(t.Context(), killed, path, strings.NewReader("no changes"), &struct{}{}, "7")
	keys := Keys(t.Context(), killed, path, func(LiveKey) error { return nil })
	for what, err := range map[string]error{"prove": proof, "keys": keys} {
		if !errors.Is(err, child.ErrKilled) || errors.Is(err, etcd.ErrBadDatabase) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if replay == nil || errors.Is(replay, etcd.ErrBadDatabase) {
		t.Errorf("replay: %v", replay)
	}
	if _, err := Check(t.Context(), self(t), path, CheckOptions{}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestCrashedReader has the process that reads a database crash: the file counts as bad, and the error has the first words of the crash.
func TestCrashedReader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	randomStore(t, path, 1)
	crashes := filepath.Join(t.TempDir(), "crashes")
	must(t, os.WriteFile(crashes, []byte("#!/bin/sh\necho 'panic: out of range' >&2\nexit 2\n"), 0o700))
	_, proof := Check(t.Context(), crashes, path, CheckOptions{})
	keys := Keys(t.Context(), crashes, path, func(LiveKey) error { return nil })
	for what, err := range map[string]error{"prove": proof, "keys": keys} {
		if !errors.Is(err, etcd.ErrBadDatabase) || !strings.Contains(err.Error(), "panic: out of range") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestTalkativeReader has the process that reads a database answer without end: what is kept of that has a bound, and the file counts as bad.
func TestTalkativeReader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	randomStore(t, path, 1)
	talks := filepath.Join(t.TempDir(), "talks")
	must(t, os.WriteFile(talks, []byte("#!/bin/sh\nhead -c 300000000 /dev/zero\n"), 0o700))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := Check(t.Context(), talks, path, CheckOptions{})
	runtime.ReadMemStats(&after)
	if !errors.Is(err, etcd.ErrBadDatabase) || !strings.Contains(err.Error(), "answered with more than") {
		t.Error(err)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 20<<20 {
		t.Errorf("it took %d bytes", took)
	}
}

// TestLongVersion has a database whose version is as long as a value can be: the answer of who reads it stays short.
func TestLongVersion(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	randomStore(t, path, 1)
	db, err := bolt.Open(path, 0o600, nil)
	must(t, err)
	must(t, db.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(schema.Cluster.Name())
		if err != nil {
			return err
		}
		return b.Put(schema.ClusterClusterVersionKeyName, []byte("3.5.0-"+strings.Repeat("a", 8<<20)))
	}))
	must(t, db.Close())
	f, err := Check(t.Context(), self(t), path, CheckOptions{})
	if err != nil || f.ClusterVersion != "" {
		t.Errorf("%.100q, %v", f.ClusterVersion, err)
	}
}
