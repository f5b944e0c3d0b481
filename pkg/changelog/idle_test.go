package changelog

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
)

const idleCluster = 0xabc

// written is an archive that is written by hand, with times of its own.
type written struct {
	t        *testing.T
	store    *blobtest.Memory
	archive  *Archive
	previous []byte
	last     int64
}

func newWritten(t *testing.T, last int64) *written {
	t.Helper()
	w := &written{t: t, store: blobtest.NewMemory(), last: last}
	w.archive = &Archive{Catalog: catalog.New(w.store)}
	must(t, w.archive.Catalog.CreateIncarnation(t.Context(),
		catalog.IncarnationRecord{ID: catalog.IncarnationOf(idleCluster), Began: clock("00:00:00")}))
	return w
}

func clock(s string) time.Time {
	t, err := time.Parse(time.DateTime, "2026-03-10 "+s)
	if err != nil {
		panic(err)
	}
	return t
}

// backup stands at a revision; nobody reads what is in it.
func (w *written) backup(at time.Time, revision int64, files ...string) string {
	w.t.Helper()
	name := catalog.NewBackupName(at, nil)
	sum := fmt.Sprintf("%x", sha256.Sum256(nil))
	manifest, err := json.Marshal(map[string]any{"version": 1, "backup": name, "clusterId": "abc", "revision": revision,
		"started": at, "revisionAt": at,
		"raw": map[string]any{"size": 1, "sha256": sum}, "stored": map[string]any{"size": 1, "sha256": sum}})
	must(w.t, err)
	for file, data := range map[string]string{catalog.DataFile: "x", "_etcd_manager_manifest.json": string(manifest),
		"_etcd_backup.meta": "{}"} {
		w.put(name+"/"+file, data)
	}
	for _, f := range files {
		w.put(name+"/"+f, "{}")
	}
	return name
}

func (w *written) put(key, data string) {
	w.t.Helper()
	_, err := w.store.Put(w.t.Context(), key, strings.NewReader(data), blob.PutOptions{})
	must(w.t, err)
}

// segment has one change at each of these times, or says at one that nothing has changed.
func (w *written) segment(idle bool, at ...time.Time) {
	w.t.Helper()
	b := newBuilder(w.last)
	for _, x := range at {
		if !idle {
			w.last++
			must(w.t, b.add(client.Transaction{Revision: w.last,
				Events: []*mvccpb.Event{{Type: mvccpb.PUT,
					Kv: &mvccpb.KeyValue{Key: []byte("/k"), ModRevision: w.last, CreateRevision: 2, Version: 1}}}}))
		}
		must(w.t, b.mark(x, time.Time{}))
	}
	begins := ""
	if w.previous == nil {
		begins = "a test"
	}
	id := catalog.IncarnationOf(idleCluster)
	s, err := b.seal(w.t.Context(), origin{incarnation: id, clusterID: idleCluster}, w.previous, begins, nil)
	must(w.t, err)
	must(w.t, w.archive.Catalog.PutSegment(w.t.Context(), id, s.name, s.data))
	w.previous = s.sum
}

// TestIdle plans for points while nothing changed for hours: revision 100 was made at eight, the next one at half past two.
func TestIdle(t *testing.T) {
	w := newWritten(t, 98)
	early := w.backup(clock("07:00:00"), 98)
	w.segment(false, clock("07:59:00"), clock("08:00:00"))
	for at := clock("08:02:00"); at.Before(clock("14:29:00")); at = at.Add(2 * time.Minute) {
		w.segment(true, at)
	}
	var noon string
	for at := clock("08:10:00"); at.Before(clock("14:29:00")); at = at.Add(15 * time.Minute) {
		if name := w.backup(at, 100); at.Before(clock("12:01:00")) {
			noon = name
		}
	}
	w.segment(false, clock("14:30:00"))
	w.segment(false, clock("18:00:00"))

	p, err := w.archive.Plan(t.Context(), Target{Time: clock("12:01:00")})
	must(t, err)
	if p.Revision != 100 || p.Base != noon || !p.More {
		t.Errorf("at 12:01 it is revision %d from %s, more behind it %t; want 100 from %s and more", p.Revision, p.Base, p.More, noon)
	}
	p, err = w.archive.Plan(t.Context(), Target{Time: clock("07:59:30")})
	must(t, err)
	if p.Revision != 99 || p.Base != early {
		t.Errorf("at 07:59:30 it is revision %d from %s, want 99 from %s", p.Revision, p.Base, early)
	}
	p, err = w.archive.Plan(t.Context(), Target{Time: clock("14:30:00")})
	must(t, err)
	if p.Revision != 101 {
		t.Errorf("at 14:30 it is revision %d, want 101", p.Revision)
	}
	// A target that is the backup's own revision isn't the newest until the end of everything.
	p, err = w.archive.Plan(t.Context(), Target{Revision: 100})
	must(t, err)
	if p.Reach != 102 || p.Until.After(clock("14:30:00")) {
		t.Errorf("revision 100 is the newest until %s, of %d", p.Until, p.Reach)
	}
}

// TestBaseMadeAfter has a snapshot begin before a time, and its revision made after it, by the marks.
func TestBaseMadeAfter(t *testing.T) {
	w := newWritten(t, 99)
	w.backup(clock("12:00:00"), 100)
	w.segment(false, clock("12:00:02"), clock("12:00:09"))
	if p, err := w.archive.Plan(t.Context(), Target{Time: clock("12:00:01")}); err == nil {
		t.Errorf("at 12:00:01 it is revision %d, which was made later", p.Revision)
	}
	p, err := w.archive.Plan(t.Context(), Target{Time: clock("12:00:05")})
	must(t, err)
	if p.Revision != 100 {
		t.Errorf("at 12:00:05 it is revision %d, want 100", p.Revision)
	}
}

// TestDisprovenBase: a backup that was found bad isn't begun with, unless it is named or no other is there.
func TestDisprovenBase(t *testing.T) {
	w := newWritten(t, 99)
	good := w.backup(clock("11:00:00"), 99)
	bad := w.backup(clock("12:00:00"), 100, "_etcd_manager_disproven.json")
	w.segment(false, clock("11:59:00"), clock("12:05:00"))
	for _, target := range []Target{{Latest: true}, {Revision: 101}, {Time: clock("12:05:00")}} {
		p, err := w.archive.Plan(t.Context(), target)
		must(t, err)
		if p.Base != good || p.Revision != 101 {
			t.Errorf("%s: revision %d from %s, want 101 from %s", target, p.Revision, p.Base, good)
		}
		target.Backup = bad
		p, err = w.archive.Plan(t.Context(), target)
		must(t, err)
		if p.Base != bad {
			t.Errorf("%s, from the one that is named: from %s, want %s", target, p.Base, bad)
		}
	}
}

// TestLookingBackEnds looks for a deletion that was never kept: the oldest change that is kept ends
// the search, though older backups are there.
func TestLookingBackEnds(t *testing.T) {
	w := newWritten(t, 5_000_000)
	for day := range 60 {
		w.backup(clock("03:00:00").Add(-time.Duration(day)*24*time.Hour), 5_000_000-int64(day)*70_000)
	}
	w.segment(false, clock("04:00:00"), clock("05:00:00"))
	w.segment(false, clock("06:00:00"), clock("07:00:00"))
	w.backup(clock("08:00:00"), 5_000_004)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	seen := 0
	looked, err := w.archive.backwards(ctx, Range{}, func(events []Event, _ time.Time) bool { seen += len(events); return true })
	must(t, err)
	if seen == 0 || looked.Revision == 0 {
		t.Errorf("%d changes, up to %+v", seen, looked)
	}
}

// TestNothingLacks: nothing is on its way where nothing was changed since the recorder began,
// whatever number the newest revision has: after a restore it is raised by a billion, and no
// segment has been stored yet.
func TestNothingLacks(t *testing.T) {
	for _, c := range []string{"no backup", "a backup", "a backup behind"} {
		t.Run(c, func(t *testing.T) {
			w := newWorld(t, "etcd-3.6", "3.6.16")
			rev := w.put("/a", "1")
			want := int64(0)
			if c != "no backup" {
				w.backup()
			}
			if c == "a backup behind" {
				defer w.store.Add(storeAway())()
				w.put("/a", "2")
				rev, want = w.put("/a", "3"), 2
			}
			r, _ := w.record(nil)
			w.began(r)
			eventually(t, "all was seen", func() bool { return r.Status().Seen == rev })
			if s := r.Status(); s.Seen-s.Archived != want {
				t.Errorf("%d revisions are on their way, want %d: %+v", s.Seen-s.Archived, want, s)
			}
		})
	}
}
