package database

import (
	"encoding/binary"
	"io"
	"path/filepath"
	"slices"
	"testing"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/lease/leasepb"
	"go.etcd.io/etcd/server/v3/storage/schema"
)

// TestReplayLeases has a lease of which nothing was known at first get the time that it was granted for, in a later transaction of bbolt too, and
// one that the database knows already keep its own.
func TestReplayLeases(t *testing.T) {
	db, err := bolt.Open(filepath.Join(t.TempDir(), "db"), 0o600, &bolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Update(func(tx *bolt.Tx) error {
		for _, b := range []string{string(schema.Key.Name()), string(schema.Meta.Name())} {
			if _, err := tx.CreateBucket([]byte(b)); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	steps := []Replayed{{LeaseID: 7}, {LeaseID: 8, LeaseTTL: 100}, {LeaseID: 9}}
	steps = append(steps, slices.Repeat([]Replayed{{LeaseID: 7}}, replaySteps)...)
	steps = append(steps, Replayed{LeaseID: 7, LeaseTTL: 4321}, Replayed{LeaseID: 8, LeaseTTL: 4321}, Replayed{LeaseID: 7})
	r := replay{db: db, leases: map[int64]told{}}
	if err := r.run(t.Context(), func() (Replayed, error) {
		if len(steps) == 0 {
			return Replayed{}, io.EOF
		}
		x := steps[0]
		steps = steps[1:]
		return x, nil
	}); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[uint64]int64{7: 4321, 8: 100, 9: UnknownLeaseTTL} {
		var l leasepb.Lease
		if err := db.View(func(tx *bolt.Tx) error {
			return l.Unmarshal(tx.Bucket(schema.Lease.Name()).Get(binary.BigEndian.AppendUint64(nil, id)))
		}); err != nil {
			t.Fatal(err)
		}
		if l.TTL != want {
			t.Errorf("lease %d is granted for %d s, want %d", id, l.TTL, want)
		}
	}
}
