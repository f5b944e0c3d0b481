package changelog

import (
	"fmt"
	"math/rand"
	"path/filepath"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"golang.org/x/sys/unix"

	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
)

// bareDB makes a database with nothing in it, at revision 1.
func bareDB(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoSync: true})
	must(t, err)
	must(t, db.Update(func(tx *bolt.Tx) error {
		for _, b := range [][]byte{schema.Key.Name(), schema.Meta.Name()} {
			if _, err := tx.CreateBucket(b); err != nil {
				return err
			}
		}
		return nil
	}))
	must(t, db.Close())
	return path
}

// BenchmarkReplay replays transactions of 1 KiB, as many as a benchmark asks for.
func BenchmarkReplay(b *testing.B) {
	const life = catalog.Incarnation("00000000000000aa")
	c := catalog.New(blobtest.NewMemory())
	value := make([]byte, 16<<10)
	rnd := rand.New(rand.NewSource(1))
	for i := range value {
		value[i] = "0123456789abcdef"[rnd.Intn(16)]
	}
	var chain Chain
	var prev []byte
	at, bld, why := time.Unix(1700000000, 0), newBuilder(1), "a test"
	seal := func() {
		must(b, bld.mark(at, time.Time{}))
		s, err := bld.seal(b.Context(), origin{incarnation: life}, prev, why, nil)
		must(b, err)
		must(b, c.PutSegment(b.Context(), life, s.name, s.data))
		chain.Segments = append(chain.Segments, catalog.Segment{SegmentName: s.name, Incarnation: life, Size: int64(len(s.data))})
		prev, why, bld = s.sum, "", newBuilder(s.name.Last)
	}
	last := int64(1 + b.N)
	for rev := int64(2); rev <= last; rev++ {
		off := rnd.Intn(15 << 10)
		kv := &mvccpb.KeyValue{Key: fmt.Appendf(nil, "/registry/pods/%07d", rnd.Intn(50000)),
			Value: value[off : off+1024], ModRevision: rev, CreateRevision: rev, Version: 1}
		must(b, bld.add(client.Transaction{Revision: rev, Events: []*mvccpb.Event{{Kv: kv}}}))
		if bld.content.Len() > defaultSegment {
			seal()
		}
	}
	seal()
	chain.Base = 1
	path := bareDB(b)
	before := cpuTime()
	b.ResetTimer()
	res, err := (&Archive{Catalog: c}).Replay(b.Context(), self(b), path, chain, last, nil)
	must(b, err)
	b.ReportMetric(float64(res.Transactions)/b.Elapsed().Seconds(), "tx/s")
	b.ReportMetric(float64(res.Transactions)/(cpuTime()-before).Seconds(), "tx/cpu-s")
}

// cpuTime is what this process and its children that have ended have used.
func cpuTime() time.Duration {
	var sum time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if unix.Getrusage(who, &u) == nil {
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return sum
}
