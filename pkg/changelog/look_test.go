package changelog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// watched collects what etcd itself tells of all changes.
type watched struct {
	mu    sync.Mutex
	lines []string
}

func (w *world) watch() *watched {
	o := &watched{}
	ch := w.client.Watch(w.t.Context(), "", clientv3.WithPrefix(), clientv3.WithRev(1))
	go func() {
		for r := range ch {
			if err := r.Err(); err != nil {
				w.t.Errorf("etcd's own watch: %v", err)
			}
			o.mu.Lock()
			for _, e := range r.Events {
				o.lines = append(o.lines, line(e.Kv, e.Type == mvccpb.DELETE))
			}
			o.mu.Unlock()
		}
	}()
	return o
}

// upTo waits for a revision and returns the lines up to it that keep picks.
func (o *watched) upTo(t *testing.T, revision int64, keep func(rev int64, key string) bool) []string {
	t.Helper()
	var list []string
	eventually(t, "etcd's own watch has everything", func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		list = nil
		for _, l := range o.lines {
			var rev int64
			var key string
			fmt.Sscanf(l, "%d %s", &rev, &key)
			if rev <= revision && keep(rev, key) {
				list = append(list, l)
			}
		}
		var last int64
		if n := len(o.lines); n > 0 {
			fmt.Sscanf(o.lines[n-1], "%d", &last)
		}
		return last >= revision
	})
	return list
}

func line(kv *mvccpb.KeyValue, deleted bool) string {
	if deleted {
		return fmt.Sprintf("%d %s deleted", kv.ModRevision, kv.Key)
	}
	return fmt.Sprintf("%d %s %d %d %x %s", kv.ModRevision, kv.Key, kv.CreateRevision, kv.Version, kv.Lease, kv.Value)
}

// history returns the changes and the notes of a range.
func (w *world) history(r Range) (lines, notes []string) {
	w.t.Helper()
	for e, err := range w.archive.History(w.t.Context(), r) {
		must(w.t, err)
		if e.Note != "" {
			notes = append(notes, e.Note)
			continue
		}
		lines = append(lines, line(e.keyValue(), e.Deleted))
	}
	return lines, notes
}

func wantLines(t *testing.T, what string, have, want []string) {
	t.Helper()
	if !slices.Equal(have, want) {
		t.Errorf("%s: %d changes, want %d\nhave %.300s\nwant %.300s", what, len(have), len(want),
			strings.Join(have, "\n"), strings.Join(want, "\n"))
	}
}

// TestHistory compares a history with what etcd's own watch tells, of everything and of parts.
func TestHistory(t *testing.T) {
	w := newWorld(t, "etcd-3.6", "3.6.16")
	own := w.watch()
	r, stop := w.record(func(c *Config) { c.Interval = 100 * time.Millisecond })
	load := &workload{w: w, r: newRand(t), keep: true}
	w.put("/first", "1")
	w.backup()
	var middle time.Time
	var before, after int64
	for i := range 8 {
		for range 60 {
			must(t, load.step(t.Context()))
		}
		w.archived(r, load.last)
		if i == 3 {
			before = w.put("/mark/before", "1")
			w.archived(r, before)
			middle = time.Now()
			time.Sleep(2 * time.Millisecond) // changes carry milliseconds: the next one must be of a later one
			after = w.put("/mark/after", "1")
		}
		if i%3 == 0 {
			w.backup()
		}
	}
	last := w.put("/last", "1")
	w.archived(r, last)
	stop()
	lines, notes := w.history(Range{})
	first := int64(0)
	fmt.Sscanf(lines[0], "%d", &first)
	wantLines(t, "everything", lines, own.upTo(t, last, func(rev int64, _ string) bool { return rev >= first }))
	if len(notes) != 2 || !strings.Contains(notes[0], "aren't kept") ||
		!strings.Contains(notes[1], fmt.Sprintf("up to revision %d", last)) {
		if first != 2 || len(notes) != 1 {
			t.Errorf("notes: %q", notes)
		}
	}
	lines, _ = w.history(Range{Match: HasPrefix("/key/1")})
	wantLines(t, "a prefix", lines, own.upTo(t, last,
		func(rev int64, key string) bool { return rev >= first && strings.HasPrefix(key, "/key/1") }))
	lines, notes = w.history(Range{From: before, To: after})
	wantLines(t, "revisions", lines, own.upTo(t, after, func(rev int64, _ string) bool { return rev >= before }))
	if len(notes) != 0 {
		t.Errorf("notes of a range that is there: %q", notes)
	}
	lines, _ = w.history(Range{Since: middle})
	wantLines(t, "since", lines, own.upTo(t, last, func(rev int64, _ string) bool { return rev > before }))
	lines, _ = w.history(Range{Until: middle})
	wantLines(t, "until", lines, own.upTo(t, before, func(rev int64, _ string) bool { return rev >= first }))
	for e, err := range w.archive.History(t.Context(), Range{}) {
		must(t, err)
		if e.Note == "" {
			break // ends without a trace
		}
	}

	// A segment in the middle is lost: it is said, and everything else is told.
	var gone catalog.Segment
	for s, err := range w.catalog.Segments(t.Context(), r.Status().Incarnation, 0) {
		must(t, err)
		if s.First > first && s.Last < before && s.Last >= s.First {
			gone = s
		}
	}
	_, err := w.catalog.DeleteSegments(t.Context(), gone.Incarnation, []catalog.SegmentName{gone.SegmentName})
	must(t, err)
	lines, notes = w.history(Range{})
	wantLines(t, "with a gap", lines, own.upTo(t, last,
		func(rev int64, _ string) bool { return rev >= first && (rev < gone.First || rev > gone.Last) }))
	if want := fmt.Sprintf("the changes from revision %d to %d", gone.First, gone.Last); !slices.ContainsFunc(notes,
		func(n string) bool { return strings.Contains(n, want) }) {
		t.Errorf("%q doesn't say %q", notes, want)
	}

	// Another cluster in the same store: its life follows.
	next := newWorld(t, "etcd-3.6", "3.6.16")
	next.store, next.catalog, next.archive = w.store, w.catalog, w.archive
	r2, stop2 := next.record(nil)
	rev := next.put("/next", "1")
	next.archived(r2, rev)
	stop2()
	lines, notes = w.history(Range{Since: middle})
	want := append(own.upTo(t, last, func(rev int64, _ string) bool { return rev > before }), fmt.Sprintf("%d /next %d 1 0 1", rev, rev))
	wantLines(t, "two lives", lines, want)
	if !slices.ContainsFunc(notes, func(n string) bool { return strings.Contains(n, "another incarnation of the cluster begins") }) {
		t.Errorf("nothing is said of the other life: %q", notes)
	}
}

// clocked is a clock that a test moves.
type clocked struct {
	mu  sync.Mutex
	add time.Duration
}

func (c *clocked) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.add)
}

func (c *clocked) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add += d
}

// TestLastBefore deletes in several ways and asks for the points before.
func TestLastBefore(t *testing.T) {
	w := newWorld(t, "etcd-3.6", "3.6.16")
	clock := &clocked{}
	r, _ := w.record(func(c *Config) { c.Interval, c.Now = 100*time.Millisecond, clock.now })
	w.began(r)
	ctx := t.Context()
	del := func(key string) int64 {
		t.Helper()
		d, err := w.client.Delete(ctx, key)
		must(t, err)
		w.archived(r, d.Header.Revision)
		return d.Header.Revision
	}
	put := func(key, value string) int64 {
		t.Helper()
		rev := w.put(key, value)
		w.archived(r, rev)
		return rev
	}
	find := func(d Deleted) *Before {
		t.Helper()
		b, err := w.archive.LastBefore(ctx, d)
		must(t, err)
		return b
	}
	put("/stays", "1")
	w.backup()
	for i := range 6 {
		put(fmt.Sprintf("/p/%d", i), "1")
	}
	put("/again", "1")
	firstGone := del("/again")
	again := put("/again", "2")
	clock.pass(time.Hour)
	early := del("/p/0") // an earlier burst
	clock.pass(6 * time.Minute)
	begin := del("/p/1")
	clock.pass(4 * time.Minute)
	put("/other", "1")
	del("/p/2")
	clock.pass(4 * time.Minute)
	end := del("/p/3")
	put("/other", "2")

	b := find(Deleted{Key: "/p/", Prefix: true})
	if b.Revision != begin-1 || b.First.Revision != begin || b.Last.Revision != end || b.Deletions != 3 ||
		!slices.Equal(b.Keys, []string{"/p/1", "/p/2", "/p/3"}) {
		t.Errorf("a burst: %+v; it began with %d and ended with %d", b, begin, end)
	}
	if d := b.Last.Time.Sub(b.First.Time); d < 8*time.Minute || d > 9*time.Minute {
		t.Errorf("it lasted %s", d)
	}
	if b := find(Deleted{Key: "/p/", Prefix: true, UntilRevision: begin - 1}); b.Revision != early-1 || b.Deletions != 1 {
		t.Errorf("the burst before: %+v", b)
	}
	if b := find(Deleted{Key: "/p/2"}); b.First.Revision != b.Revision+1 || b.First != b.Last || b.Deletions != 1 {
		t.Errorf("a key: %+v", b)
	}
	for _, c := range []struct {
		d    Deleted
		want string
	}{
		{Deleted{Key: "/again"}, fmt.Sprintf("/again exists: it was last changed by revision %d, at ", again)},
		{Deleted{Key: "/again"}, fmt.Sprintf("--until-revision=%d", again-1)},
		{Deleted{Key: "/stays"}, "/stays exists"},
		{Deleted{Key: "/never"}, "no deletion of /never is known: searched back to revision "},
		{Deleted{Key: "/p/5", Prefix: true}, "no deletion of /p/5 is known"},
	} {
		_, err := w.archive.LastBefore(ctx, c.d)
		if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, catalog.ErrNotFound) {
			t.Errorf("%+v: %v; want %q", c.d, err, c.want)
		}
	}
	if b := find(Deleted{Key: "/again", UntilRevision: again - 1}); b.Revision != firstGone-1 {
		t.Errorf("an earlier life: %+v, it ended with %d", b, firstGone)
	}

	// An object that is marked first, long before what holds it up is taken off.
	dying := func(v []byte) (time.Time, bool) {
		at, ok := strings.CutPrefix(string(v), "dying ")
		if !ok {
			return time.Time{}, false
		}
		since, err := time.Parse(time.RFC3339, at)
		must(t, err)
		return since, true
	}
	put("/ns/a", "alive")
	put("/in/a/1", "1")
	put("/in/a/2", "1")
	del("/in/a/2")
	clock.pass(3 * time.Hour)
	value := "dying " + clock.now().UTC().Format(time.RFC3339)
	marked := put("/ns/a", value)
	clock.pass(2 * time.Hour)
	del("/in/a/1")
	put("/ns/a", value+"")
	gone := del("/ns/a")
	b = find(Deleted{Key: "/ns/a", Dying: dying, With: HasPrefix("/in/a/")})
	if b.Revision != marked-1 || b.Marked.Revision != marked || b.First.Revision != gone || b.With != 1 {
		t.Errorf("a marked object: %+v; it was marked by %d", b, marked)
	}
	if b := find(Deleted{Key: "/ns/a"}); b.Revision != gone-1 {
		t.Errorf("without looking at values: %+v; it was deleted by %d", b, gone)
	}
	// Another life follows in which nothing is known of the key: that is said.
	next := newWorld(t, "etcd-3.6", "3.6.16")
	next.store, next.catalog, next.archive = w.store, w.catalog, w.archive
	r2, _ := next.record(func(c *Config) { c.Now = clock.now })
	next.archived(r2, next.put("/next", "1"))
	if b := find(Deleted{Key: "/ns/a"}); b.Revision != gone-1 || len(b.Notes) == 0 ||
		!strings.Contains(strings.Join(b.Notes, ";"), "another incarnation") {
		t.Errorf("over two lives: %+v", b)
	}
}

// TestExtract compares what is extracted with what etcd had.
func TestExtract(t *testing.T) {
	testutil.Long(t)
	w := newWorld(t, "etcd-3.6", "3.6.16")
	r, _ := w.record(nil)
	load := &workload{w: w, r: newRand(t), keep: true}
	ctx := t.Context()
	w.put("/base", "from the backup")
	w.backup()
	type state struct {
		revision int64
		kvs      []*mvccpb.KeyValue
	}
	var states []state
	for i := range 6 {
		for range 80 {
			must(t, load.step(ctx))
		}
		g, err := w.client.Get(ctx, "/key/", clientv3.WithPrefix())
		must(t, err)
		states = append(states, state{g.Header.Revision, g.Kvs})
		if i == 3 {
			w.backup()
		}
	}
	w.archived(r, w.put("/last", "1"))
	temp := t.TempDir()
	f := Fetching{Executable: self(t), Dir: temp, Fetch: func(ctx context.Context, name, path string) error {
		_, err := backup.FetchFile(ctx, w.catalog, name, path, backup.FileOptions{})
		return err
	}}
	for _, s := range states {
		x, err := w.archive.Extract(ctx, Target{Revision: s.revision}, Wanted{Key: "/key/", Prefix: true}, f)
		must(t, err)
		if len(x.Values) != len(s.kvs) || x.Plan.Revision != s.revision || !x.FromBackup {
			t.Errorf("revision %d: %d values, want %d; %+v", s.revision, len(x.Values), len(s.kvs), x.Plan)
			continue
		}
		for i, kv := range s.kvs {
			if x.Values[i].String() != kv.String() {
				t.Errorf("revision %d: %v, want %v", s.revision, x.Values[i], kv)
			}
		}
		one := s.kvs[len(s.kvs)/2]
		x, err = w.archive.Extract(ctx, Target{Revision: s.revision}, Wanted{Key: string(one.Key)}, f)
		must(t, err)
		if len(x.Values) != 1 || x.Values[0].String() != one.String() {
			t.Errorf("revision %d: %v, want %v", s.revision, x.Values, one)
		}
	}
	x, err := w.archive.Extract(ctx, Target{Latest: true}, Wanted{Key: "/base"}, f)
	must(t, err)
	if string(x.Values[0].Value) != "from the backup" || !x.FromBackup {
		t.Errorf("%+v", x)
	}
	noFetch := f
	noFetch.Fetch = func(context.Context, string, string) error { return errors.New("the backup was fetched") }
	x, err = w.archive.Extract(ctx, Target{Latest: true}, Wanted{Key: "/last"}, noFetch)
	must(t, err)
	if string(x.Values[0].Value) != "1" || x.FromBackup {
		t.Errorf("%+v", x)
	}
	d, err := w.client.Delete(ctx, "/last")
	must(t, err)
	w.archived(r, d.Header.Revision)
	for key, want := range map[string]string{
		"/last":  fmt.Sprintf("it was deleted by revision %d", d.Header.Revision),
		"/never": fmt.Sprintf("/never isn't there at revision %d", d.Header.Revision),
	} {
		_, err := w.archive.Extract(ctx, Target{Revision: d.Header.Revision}, Wanted{Key: key}, f)
		var absent *AbsentError
		if !errors.As(err, &absent) || !errors.Is(err, catalog.ErrNotFound) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", key, err, want)
		}
	}
	if left := entries(t, temp); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	must(t, err)
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}
