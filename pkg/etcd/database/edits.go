package database

import (
	"errors"
	"fmt"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/storage/schema"

	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

// Edit is one change of the database; a nil value deletes.
type Edit struct {
	Bucket []byte `json:"bucket"`
	Key    []byte `json:"key"`
	Value  []byte `json:"value"`
}

// Edits are applied in one transaction.
type Edits struct {
	// Clear are buckets that are emptied first.
	Clear   [][]byte `json:"clear"`
	Changes []Edit   `json:"changes"`
}

// Put plans one change.
func (e *Edits) Put(bucket, key, value []byte) {
	e.Changes = append(e.Changes, Edit{bucket, key, value})
}

// planRevisions drops keys and raises the revision.
func planRevisions(p StagePlan, s *scan, res *StageResult, e *Edits) (compact int64, extra [][2][]byte, err error) {
	rev := s.revision()
	record := func(k, v []byte) {
		e.Put(schema.Key.Name(), k, v)
		extra = append(extra, [2][]byte{k, v})
	}
	if len(s.watched) > 0 {
		rev++
		names := make([]string, 0, len(s.watched))
		for k := range s.watched {
			names = append(names, k)
		}
		slices.Sort(names) // every member must write the same
		for i, k := range names {
			v, err := (&mvccpb.KeyValue{Key: []byte(k)}).Marshal()
			if err != nil {
				return 0, nil, err
			}
			record(revBytes(rev, int64(i), true), v)
		}
	}
	compact = s.compactRevision()
	if p.MarkCompacted {
		rev = max(rev+int64(p.BumpRevision), rev+1, p.AtLeastRevision+1)
		if !revisionFits(rev) {
			return 0, nil, fmt.Errorf("%w: the revision would be raised to %d", etcd.ErrConfig, rev)
		}
		// As etcdutl does it: an empty record makes the revision, and a compaction to it is left for etcd to do.
		record(revBytes(rev, 0, false), []byte{})
		compact = rev
		e.Put(schema.Meta.Name(), schema.ScheduledCompactKeyName, revBytes(rev, 0, false))
	}
	res.Revision = rev
	return compact, extra, nil
}

// checkTarget refuses what can't be done. from is a minor version, target a full one or empty.
func checkTarget(from, target string) error {
	n := etcd.MinorNumber(from + ".0")
	if n < 0 || n > etcd.NewestMinor {
		return fmt.Errorf("%w: the database was written by etcd %s, which is newer than 3.%d, the newest that is known here", etcd.ErrVersion, from, etcd.NewestMinor)
	}
	if target == "" {
		return nil
	}
	return etcd.ValidateVersion(target)
}

// planVersions lowers what an older etcd would refuse. Upwards etcd does what is needed by itself.
func planVersions(target string, was Facts, e *Edits) {
	// A downgrade of the old cluster has nothing to do with the new one.
	e.Put(schema.Cluster.Name(), schema.ClusterDowngradeKeyName, nil)
	m := etcd.MinorNumber(target)
	if m < 0 {
		return
	}
	to := fmt.Sprintf("3.%d.0", m)
	if was.ClusterVersion != "" && etcd.Less(to, was.ClusterVersion) {
		e.Put(schema.Cluster.Name(), schema.ClusterClusterVersionKeyName, []byte(to))
	}
	if was.StorageVersion != "" && etcd.Less(to, was.StorageVersion) {
		if m >= 6 {
			e.Put(schema.Meta.Name(), schema.MetaStorageVersionName, []byte(to))
		} else {
			// Before 3.6 there was no such field, and a later upgrade takes it for what is there.
			e.Put(schema.Meta.Name(), schema.MetaStorageVersionName, nil)
		}
	}
}

// Apply writes everything in one transaction, with bbolt and etcd's own options for it.
func (e *Edits) Apply(path string) error {
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		NoFreelistSync: true, FreelistType: bolt.FreelistMapType, Timeout: 5 * time.Second,
	})
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range e.Clear {
			if err := tx.DeleteBucket(name); err != nil && !errors.Is(err, berrors.ErrBucketNotFound) {
				return err
			}
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		for _, c := range e.Changes {
			b, err := tx.CreateBucketIfNotExists(c.Bucket)
			if err != nil {
				return err
			}
			if c.Value == nil {
				err = b.Delete(c.Key)
			} else {
				err = b.Put(c.Key, c.Value)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	return errors.Join(err, db.Close())
}
