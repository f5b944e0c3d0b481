package catalog

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
)

// pages counts the pages of listings, and takes a while for each.
type pages struct {
	blob.Store
	delay     time.Duration
	asked     atomic.Int64
	now, most atomic.Int64
	failAt    int64
}

const pageSize = 100

func (p *pages) List(ctx context.Context, prefix string, opts blob.ListOptions) iter.Seq2[blob.Entry, error] {
	return func(yield func(blob.Entry, error) bool) {
		n := 0
		for e, err := range p.Store.List(ctx, prefix, opts) {
			if n%pageSize == 0 {
				if err := p.page(ctx); err != nil {
					yield(blob.Entry{}, err)
					return
				}
			}
			if n++; !yield(e, err) {
				return
			}
		}
	}
}

func (p *pages) page(ctx context.Context) error {
	if n := p.now.Add(1); n > p.most.Load() {
		p.most.Store(n)
	}
	defer p.now.Add(-1)
	if n := p.asked.Add(1); n == p.failAt {
		return blobtest.Transient("list", "")
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(p.delay):
		return nil
	}
}

// manyBackups are those of years, ever more of them, and whatever else may stand in a store.
func manyBackups(t *testing.T, m *blobtest.Memory) {
	rnd := rand.New(rand.NewPCG(3, 4))
	at := time.Now().UTC().Truncate(time.Second)
	files := []string{DataFile, metaFile, manifestFile, pinFile, "stranger"}
	for i := range 1500 {
		name := at.Format(time.RFC3339) + fmt.Sprintf("-%06d", i%2)
		switch {
		case i%50 == 1:
			name += "/deeper"
		case i%70 == 1:
			name = fmt.Sprintf("imported-%d", i)
		case i%90 == 1:
			name = "1-" + name // before all dates
		case i%110 == 1:
			name = at.AddDate(10, 0, 0).Format(time.RFC3339)
		}
		for _, f := range files {
			if rnd.IntN(20) > 0 {
				put(t, m, name+"/"+f, "x")
			}
		}
		if i%2 == 1 {
			at = at.Add(-time.Duration(1+i) * time.Minute)
		}
	}
	for i := range 3 * pageSize {
		put(t, m, fmt.Sprintf("changes/x/%d", i), "x")
	}
	put(t, m, "control/etcd-cluster-created", "x")
}

// TestBackupsInParts: a slow store is asked for several parts at the same time, and they are the same list.
func TestBackupsInParts(t *testing.T) {
	ctx, m := t.Context(), blobtest.NewMemory()
	manyBackups(t, m)
	one := &pages{Store: m}
	var want BackupList
	if err := New(one).ScanBackups(want.addBackup, want.addLeftover).Run(ctx); err != nil {
		t.Fatal(err)
	}
	want.sort()
	s := &pages{Store: m, delay: 10 * time.Millisecond}
	got, err := New(s).listBackups(ctx, time.Millisecond, nil)
	if err != nil {
		t.Fatal(err)
	}
	got.sort()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("in parts there are %d backups and %d leftovers, in one %d and %d", len(got.Backups),
			len(got.Leftovers), len(want.Backups), len(want.Leftovers))
	}
	if asked, most := s.asked.Load(), s.most.Load(); asked > 4*one.asked.Load() || most < 2 || most > partsAtOnce {
		t.Errorf("it took %d pages, %d at once; in one part %d", asked, most, one.asked.Load())
	}
	s.failAt = s.asked.Load() + 50
	if _, err := New(s).listBackups(ctx, time.Millisecond, nil); !errors.Is(err, ErrTransient) {
		t.Errorf("a part that fails is passed over: %v", err)
	}
	fast := &pages{Store: m}
	if _, err := New(fast).listBackups(ctx, time.Hour, nil); err != nil || fast.most.Load() > 1 || fast.asked.Load() != one.asked.Load() {
		t.Errorf("a fast store is asked for %d pages, %d at once: %v", fast.asked.Load(), fast.most.Load(), err)
	}
}

// TestPartsMeet: a backup of just the second at which a listing was divided is in one of the two parts, with all of its files.
func TestPartsMeet(t *testing.T) {
	day := func(n int) string { return time.Date(2026, 3, n, 0, 0, 0, 0, time.UTC).Format(time.RFC3339) }
	first := &part{at: day(1) + "-000000/" + metaFile}
	p := &parts{open: []*part{first}}
	second := p.take(time.Date(2026, 3, 3, 0, 0, 0, 0, time.UTC))
	if second == nil || first.until != day(2) || second.at != day(2) || second.until != "" {
		t.Fatalf("%v and %v", first, second)
	}
	for _, name := range []string{day(2), day(2) + "-000000", day(2) + "-000000/deeper", "2026-03-01T23:59:59Z-999999"} {
		in := 0
		for _, file := range []string{DataFile, metaFile, manifestFile, provenFile} {
			key := name + "/" + file
			if key > second.at {
				in++
			}
			if passed := p.passed(t.Context(), &part{at: first.at, until: first.until}, key); passed != (key > second.at) {
				t.Errorf("%s is in both parts, or in none", key)
			}
		}
		if in != 0 && in != 4 {
			t.Errorf("the files of %s are in two parts", name)
		}
	}
}

// TestRecentOfAll: the few that are looked at are the last ones by name, the last dated in the future, and the last that were written.
func TestRecentOfAll(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		var l BackupList
		for range rnd.IntN(40) {
			at := now.Add(time.Duration(rnd.IntN(30)-20) * time.Hour)
			l.Backups = append(l.Backups, Backup{Name: fmt.Sprintf("%s-%06d", at.Format(time.RFC3339), rnd.IntN(1e6)), Time: at,
				Modified: now.Add(-time.Duration(rnd.IntN(10)) * time.Hour)})
		}
		l.sort()
		n := 1 + rnd.IntN(5)
		if got, want := l.Recent(now, n), recentBySorting(l, now, n); !reflect.DeepEqual(got, want) {
			t.Fatalf("%d of %v: got %v; want %v", n, l, got, want)
		}
	}
}

// recentBySorting says the same in the plainest way.
func recentBySorting(l BackupList, now time.Time, n int) []Backup {
	var past, future []Backup
	for _, b := range l.Backups {
		if b.Future(now) {
			future = append(future, b)
		} else {
			past = append(past, b)
		}
	}
	written := slices.Clone(l.Backups)
	slices.SortStableFunc(written, func(a, b Backup) int { return a.Modified.Compare(b.Modified) })
	out := []Backup{}
	seen := map[string]bool{}
	for _, group := range [][]Backup{past, future, written} {
		for _, b := range group[max(0, len(group)-n):] {
			if !seen[b.Name] {
				seen[b.Name] = true
				out = append(out, b)
			}
		}
	}
	slices.SortFunc(out, compareBackups)
	return out
}
