package changelog

import (
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
)

var (
	largeStore = flag.Bool("large-store", false, "TestLargePlans with 100,000 backups, 50,000 segments, 150 ms a request")
	hugeStore  = flag.Bool("huge-store", false, "TestLargePlans with a million backups, for its memory")
)

// hall is a store with a backup of each minute and segments of two minutes each; a revision is made every six seconds.
type hall struct {
	*blobtest.Long
	backups, segments int
	newest            time.Time
	manifest          string
	// real are the segments that can be read, by their number; all others are names only.
	real map[int]sealed
}

const (
	hallLife    = 0xa
	perBackup   = 10
	perSegment  = 2 * perBackup
	hallFiles   = 3
	hallRecent  = 30
	hallRequest = 150 * time.Millisecond
)

func newHall(t *testing.T, backups int, delay time.Duration) *hall {
	newest := time.Now().UTC().Truncate(time.Second).Add(-time.Minute)
	h := &hall{Long: &blobtest.Long{Memory: blobtest.NewMemory(), Modified: newest}, backups: backups,
		segments: backups / 2, newest: newest, real: map[int]sealed{}}
	h.Count, h.Key, h.Body = hallFiles*backups+h.segments, h.key, h.body
	c := catalog.New(h.Memory)
	must(t, c.PutManifest(t.Context(), h.made(newest)))
	for e, err := range h.Memory.List(t.Context(), "", blob.ListOptions{}) {
		must(t, err)
		h.manifest = path.Base(e.Key)
	}
	_, err := h.Memory.Purge(t.Context(), "", func(string) bool { return true })
	must(t, err)
	must(t, c.CreateIncarnation(t.Context(), catalog.IncarnationRecord{ID: catalog.IncarnationOf(hallLife),
		ClusterID: hallLife, Began: h.at(0), Revision: 1}))
	must(t, c.PutServing(t.Context(), catalog.Serving{Incarnation: catalog.IncarnationOf(hallLife), ClusterID: hallLife}))
	h.Delay = delay
	return h
}

// at is when backup i was begun.
func (h *hall) at(i int) time.Time { return h.newest.Add(-time.Duration(h.backups-1-i) * time.Minute) }

func (h *hall) key(i int) string {
	if n := i / hallFiles; n < h.backups {
		return h.at(n).Format(time.RFC3339) + "-000000/" + [hallFiles]string{"_etcd_backup.meta", h.manifest, catalog.DataFile}[i%hallFiles]
	}
	return catalog.Segment{SegmentName: h.segment(i - hallFiles*h.backups), Incarnation: catalog.IncarnationOf(hallLife)}.Key()
}

// sum is that of segment i.
func (h *hall) sum(i int) []byte {
	if s, ok := h.real[i]; ok {
		return s.sum
	}
	if i < 0 {
		return nil
	}
	sum := sha256.Sum256(fmt.Append(nil, i))
	return sum[:]
}

func (h *hall) segment(i int) catalog.SegmentName {
	if s, ok := h.real[i]; ok {
		return s.name
	}
	first := int64(2 + i*perSegment)
	return catalog.SegmentName{First: first, Last: first + perSegment - 1, Ended: h.at(2*i + 2),
		Previous: catalog.NewSegmentSum(h.sum(i - 1)),
		Sum:      catalog.NewSegmentSum(h.sum(i))}
}

// readable makes segments that can be read, from one to another.
func (h *hall) readable(t *testing.T, from, to int) {
	for i := from; i <= to; i++ {
		first := int64(2 + i*perSegment)
		b := newBuilder(first - 1)
		for r := range int64(perSegment) {
			must(t, b.add(client.Transaction{Revision: first + r}))
			must(t, b.mark(h.at(2*i).Add(time.Duration(r+1)*2*time.Minute/perSegment), time.Time{}))
		}
		begins := ""
		if i == 0 {
			begins = "a test"
		}
		s, err := b.seal(t.Context(), origin{incarnation: catalog.IncarnationOf(hallLife), clusterID: hallLife}, h.sum(i-1), begins, nil)
		must(t, err)
		h.real[i] = s
	}
}

// made is the manifest of the backup of a time.
func (h *hall) made(at time.Time) *catalog.Manifest {
	rev := 1 + perBackup*int64(at.Sub(h.at(0))/time.Minute)
	d := catalog.Digest{Size: 1, SHA256: strings.Repeat("0", 64)}
	return &catalog.Manifest{Backup: at.Format(time.RFC3339) + "-000000", ClusterName: "test", ClusterID: hallLife,
		EtcdVersion: "3.6.16", Revision: rev, RevisionAtMost: rev,
		RevisionAt: at, Raw: d, Stored: d, Compression: catalog.CompressionGzip, Started: at, Finished: at}
}

func (h *hall) body(key string) []byte {
	name, file := path.Split(key)
	if at := catalog.BackupTime(strings.TrimSuffix(name, "/")); file == h.manifest && !at.IsZero() {
		made := blobtest.NewMemory()
		if err := catalog.New(made).PutManifest(context.Background(), h.made(at)); err != nil {
			panic(err)
		}
		r, _, err := made.Get(context.Background(), key, blob.Range{})
		if err != nil {
			panic(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			panic(err)
		}
		return data
	}
	if n, err := catalog.ParseSegmentName(file); err == nil {
		return h.real[int(n.First-2)/perSegment].data
	}
	return nil
}

// TestLargePlans: however much is stored, it takes seconds and little memory to find out how a point is reached.
func TestLargePlans(t *testing.T) {
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(64 << 20)) // as the manager has it
	backups, delay, most := 20_000, 20*time.Millisecond, 5*time.Second
	if *largeStore {
		backups, delay, most = 100_000, hallRequest, 10*time.Second
	}
	if *hugeStore {
		backups, delay, most = 1_000_000, 0, time.Minute
	}
	h := newHall(t, backups, delay)
	middle := h.segments / 2
	h.readable(t, middle-hallRecent, middle+hallRecent)
	h.readable(t, h.segments-4*hallRecent, h.segments-1)
	at := h.at(2 * middle).Add(30 * time.Second)
	revision := int64(1 + middle*perSegment + 5)
	newest := int64(1 + h.segments*perSegment)
	named := h.at(2*middle-1).Format(time.RFC3339) + "-000000"
	a := &Archive{Catalog: catalog.New(h)}
	for what, x := range map[string]struct {
		target Target
		want   int64
	}{
		"latest":         {Target{Latest: true}, newest},
		"time":           {Target{Time: at}, revision},
		"revision":       {Target{Revision: revision}, revision},
		"a backup":       {Target{Backup: named}, 1 + perBackup*int64(2*middle-1)},
		"time, named":    {Target{Time: at, Backup: named}, revision},
		"time of today":  {Target{Time: h.newest.Add(-time.Hour)}, newest - 61*perBackup},
		"recent, by rev": {Target{Revision: newest - 61*perBackup}, newest - 61*perBackup},
	} {
		t.Run(what, func(t *testing.T) {
			runtime.GC()
			stop := watchHeap(t)
			begun, before := time.Now(), h.Requests.Load()
			p, err := a.Plan(t.Context(), x.target)
			took, requests := time.Since(begun), h.Requests.Load()-before
			stop()
			must(t, err)
			t.Logf("%s: revision %d from %s, %d segments; %s, %d requests", what, p.Revision, p.Base,
				len(p.Chain.Segments), took.Round(time.Millisecond), requests)
			if p.Revision != x.want {
				t.Errorf("it leads to revision %d; want %d", p.Revision, x.want)
			}
			if took > most || requests > 700 && !*hugeStore {
				t.Errorf("it took %s and %d requests", took, requests)
			}
		})
	}
}

// watchHeap samples how much memory is in use until its result is called, which complains if that was much.
func watchHeap(t *testing.T) (stop func()) {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	before, most := m.HeapAlloc, m.HeapAlloc
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for tick := time.NewTicker(50 * time.Millisecond); ; {
			select {
			case <-end:
				return
			case <-tick.C:
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapAlloc)
			}
		}
	}()
	return func() {
		close(end)
		<-done
		status, err := os.ReadFile("/proc/self/status")
		must(t, err)
		rss := regexp.MustCompile(`VmHWM:\s*(.*)`).FindSubmatch(status)
		t.Logf("the heap grew by %d MiB at most; the process had %s at most", (most-before)>>20, rss[1])
		if most-before > 64<<20 {
			t.Errorf("it took %d MiB of memory", (most-before)>>20)
		}
	}
}
