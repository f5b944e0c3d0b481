package prune

import (
	"context"
	"flag"
	"fmt"
	"io"
	"maps"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/retention"
)

var veryMany = flag.Int("backups", 150_000, "how many backups TestVeryManyBackups has")

// names are those of the backups that there are.
func (w *world) names() map[string]bool {
	w.t.Helper()
	l, err := w.c.Backups(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return setOf(l.AllNames())
}

// filled is a world with backups of three days, two pins, a proof, leftovers, a gap in the changes and a name that tells no time.
func filled(t *testing.T) *world {
	w := newWorld(t, "2026-03-01T00:00:00Z")
	w.run(40)
	ctx, all := t.Context(), slices.Sorted(maps.Keys(w.names()))
	for _, err := range []error{
		w.c.PinBackup(ctx, all[10], "a reason"), w.c.PinBackup(ctx, all[70], "a reason"),
		w.c.PutProof(ctx, all[50], catalog.Proof{At: w.now, Outcome: catalog.Proven, Base: all[49],
			Incarnation: catalog.IncarnationOf(clusterID), Revision: 2300, Segments: 15}),
		w.c.PutProof(ctx, all[60], catalog.Proof{At: w.now, Outcome: catalog.Disproven, Error: "a page is damaged"}), // the last one that was tried
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"2026-03-01T03:01:00Z-000000", "2026-03-02T03:01:00Z-000000"} {
		if _, err := w.c.PutBackupData(ctx, name, catalog.DataFile, &noBytes{}); err != nil {
			t.Fatal(err)
		}
	}
	w.now = w.now.Add(7 * time.Minute)
	w.rev, w.last = w.rev+10, catalog.NoSegment
	w.backup()
	w.now = w.now.Add(time.Minute)
	w.run(30)
	return w
}

// TestWindows: looked at piece by piece, everything stays that stays when all is looked at, and what stays beside it is little.
func TestWindows(t *testing.T) {
	want := filled(t)
	want.all(want.pruner(), want.now)
	stays := want.names()
	for _, held := range []int{7, 60, 200} {
		t.Run(fmt.Sprint(held), func(t *testing.T) {
			w := filled(t)
			p, before := w.pruner(), len(w.names())
			p.held = held
			for still := 0; still < before/held+3; still++ { // as many runs in which nothing goes as look at everything
				r, err := p.Run(t.Context(), w.now, Exempt{})
				if err != nil {
					t.Fatal(err)
				}
				list, err := w.c.Backups(t.Context())
				if err != nil || r.Stored != len(list.Backups) {
					t.Fatalf("%d backups are stored, the run says %d: %v", len(list.Backups), r.Stored, err)
				}
				if r.Backups+r.Objects+r.Segments > 0 {
					still = 0
				}
			}
			have := w.names()
			for name := range stays {
				if !have[name] {
					t.Errorf("%s is gone; it stays when all is looked at", name)
				}
			}
			t.Logf("%d backups before, %d stay, %d when all is looked at", before, len(have), len(stays))
			if most := len(stays) + before/held + 5; len(have) > most {
				t.Errorf("%d stay", len(have))
			}
			if len(w.segments()) < len(want.segments()) {
				t.Errorf("%d segments are left, and %d when all is looked at", len(w.segments()), len(want.segments()))
			}
		})
	}
}

type noBytes struct{}

func (*noBytes) Read([]byte) (int, error) { return 0, io.EOF }

// TestVeryManyBackups: the memory that retention takes doesn't grow with the store.
func TestVeryManyBackups(t *testing.T) {
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(64 << 20)) // as the manager has it
	backups := *veryMany
	newest := time.Now().UTC().Truncate(time.Second).Add(-time.Minute)
	files := [...]string{"_etcd_backup.meta", "_etcd_manager_manifest.json", catalog.DataFile}
	s := &blobtest.Long{Memory: blobtest.NewMemory(), Modified: newest, Count: backups * len(files)}
	s.Key = func(i int) string {
		at := newest.Add(-time.Duration(backups-1-i/len(files)) * time.Minute)
		return string(at.AppendFormat(make([]byte, 0, 64), time.RFC3339)) + "-000000/" + files[i%len(files)]
	}
	s.Body = func(string) []byte { return nil }
	p := New(catalog.New(unpurged{s}), Policy{Backups: retention.Default()})
	begun, peak := time.Now(), peakHeap()
	for range 2 { // the second one looks at the same, as nothing was deleted
		r, err := p.Run(t.Context(), time.Now(), Exempt{})
		if err != nil || r.Stored != backups-maxInWindow || r.Backups != maxInWindow || !r.More {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	most := peak()
	t.Logf("two runs over %d backups took %s, %d requests and %d MiB", backups, time.Since(begun), s.Requests.Load(), most>>20)
	if most > 40<<20 {
		t.Errorf("it took %d MiB of memory", most>>20)
	}
}

// unpurged takes everything that is to be removed for removed.
type unpurged struct{ blob.Store }

func (unpurged) Purge(context.Context, string, func(string) bool) (int, error) { return 1, nil }

// peakHeap samples how much memory is in use until its result is called, which tells how much it grew at most.
func peakHeap() (peak func() uint64) {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	before, most := m.HeapAlloc, m.HeapAlloc
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for tick := time.NewTicker(20 * time.Millisecond); ; {
			select {
			case <-stop:
				return
			case <-tick.C:
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapAlloc)
			}
		}
	}()
	return func() uint64 { close(stop); <-done; return most - before }
}
