package storecopy

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
	"github.com/etcd-manager/etcd-manager/pkg/blob/file"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/retention"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

func fileStore(t *testing.T) blob.Store {
	s, err := file.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fill makes a store with everything.
func (w *world) fill() (proven string) {
	w.t.Helper()
	w.control()
	w.run(50)
	name := w.backup()
	w.must(w.c.PutProof(w.t.Context(), name, catalog.Proof{At: w.now, Outcome: catalog.Proven}))
	w.must(w.c.PinBackup(w.t.Context(), name, "because"))
	return name
}

func testWhole(t *testing.T, from, to blob.Store) {
	w := newWorld(t, from, to)
	name := w.fill()
	c := w.copier()
	w.must(c.pass(t.Context()))
	w.same()
	// What comes later is found by a look, and another outcome replaces the first one.
	w.now = w.now.Add(time.Minute)
	w.backup()
	w.segment()
	w.must(w.c.PutProof(t.Context(), name, catalog.Proof{At: w.now, Outcome: catalog.Disproven, Error: "bad"}))
	w.must(c.pass(t.Context()))
	w.same()
	if s := c.Status(); s.Archived != w.rev || s.NewestBackup.IsZero() || s.Error != "" || s.Compared.IsZero() || s.Missing != 0 {
		t.Errorf("status %+v", s)
	}
}

func TestFromFileToFile(t *testing.T) { testWhole(t, fileStore(t), fileStore(t)) }

func TestFromS3ToFile(t *testing.T) {
	server := servers.StartVersityGW(t, servers.InMemory())
	s, err := connect.Open(t.Context(), server.URL("first"), server.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	testWhole(t, s, fileStore(t))
}

// A copy that is killed at any of its changes never shows what isn't there, and the next leadership finishes it.
func TestKilledAtEachStep(t *testing.T) {
	for n := 0; ; n++ {
		w := memoryWorld(t)
		w.control()
		w.run(31)
		w.must(w.c.PinBackup(t.Context(), w.backup(), ""))
		w.to.left = n
		err := w.copier().pass(t.Context())
		w.sound()
		if err == nil {
			w.same()
			if n < 40 {
				t.Fatalf("it took only %d changes", n)
			}
			return
		}
		if !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		w.to.set(false)
		w.term++ // another leadership
		w.must(w.copier().pass(t.Context()))
		w.same()
		if t.Failed() {
			t.Fatalf("killed before change %d", n)
		}
	}
}

// What an interrupted attempt has left is compared before it counts, and replaced if it isn't the same.
func TestWhatStandsThereIsChecked(t *testing.T) {
	w := memoryWorld(t)
	w.must(w.copier().pass(t.Context()))
	name := w.backup()
	_, err := w.to.Put(t.Context(), name+"/"+catalog.DataFile, strings.NewReader("snapshot of something else"), blob.PutOptions{})
	w.must(err)
	w.must(w.copier().pass(t.Context()))
	w.same()
}

func TestFirstStoreDeleted(t *testing.T) {
	w := memoryWorld(t)
	w.fill()
	c := w.copier()
	w.must(c.pass(t.Context()))
	before := all(t, w.to.Store)
	_, err := w.from.Purge(t.Context(), "", func(string) bool { return true })
	w.must(err)
	c.record.Compared = time.Time{} // both comparisons are due
	w.must(c.pass(t.Context()))
	after := all(t, w.to.Store)
	for key, content := range before {
		if after[key] != content && key != "control/copy.json" {
			t.Errorf("%s is gone from the copy", key)
		}
	}
	// And the first store away: nothing of the copy changes.
	w.from.set(true)
	if err := c.pass(t.Context()); !errors.Is(err, errKilled) {
		t.Fatalf("error %v", err)
	}
}

func TestDamagedIsNotCopied(t *testing.T) {
	w := memoryWorld(t)
	bad := w.backup()
	w.put(bad+"/"+catalog.DataFile, "SNAPSHOT "+bad)
	w.now = w.now.Add(time.Minute)
	good, seg := w.backup(), w.segment()
	key := catalog.Segment{SegmentName: seg, Incarnation: life}.Key()
	w.put(key, "changes after x")
	next := w.segment()
	c := w.copier()
	err := c.pass(t.Context())
	if err == nil || !strings.Contains(err.Error(), "2 objects in the first store can't be copied") {
		t.Fatalf("error %v", err)
	}
	have := all(t, w.to.Store)
	if have[good+"/_etcd_backup.meta"] == "" || have[bad+"/"+catalog.DataFile] != "" || have[key] != "" ||
		have[catalog.Segment{SegmentName: next, Incarnation: life}.Key()] == "" {
		t.Errorf("the copy has %v", have)
	}
	if strings.Contains(fmt.Sprint(have), "SNAPSHOT") {
		t.Error("damaged bytes were copied")
	}
}

// TestDeniedIsNotCopied: one object that may not be read, as after it was archived, is named, and all others are copied; it isn't
// taken for a reason to compare everything again at once. Nor is a copy that may not be written taken for bad objects.
func TestDeniedIsNotCopied(t *testing.T) {
	w := memoryWorld(t)
	archived := w.backup()
	w.from.denied = archived + "/" + catalog.DataFile
	w.now = w.now.Add(time.Minute)
	good, seg := w.backup(), w.segment()
	c := w.copier()
	for range 3 {
		err := c.pass(t.Context())
		if err == nil || !strings.Contains(err.Error(), "1 object in the first store can't be copied: "+archived) {
			t.Fatalf("error %v", err)
		}
	}
	if have := all(t, w.to.Store); have[good+"/_etcd_backup.meta"] == "" || have[archived+"/_etcd_backup.meta"] != "" ||
		have[catalog.Segment{SegmentName: seg, Incarnation: life}.Key()] == "" {
		t.Errorf("the copy has %v", have)
	}
	if c.record.Compared.IsZero() {
		t.Error("the whole comparison counts as not done")
	}
	w.to.shut = true
	w.now = w.now.Add(time.Minute)
	w.backup()
	if err := c.pass(t.Context()); err == nil || len(c.bad) != 1 {
		t.Errorf("with the copy away: %v, %v", err, c.bad)
	}
}

func TestRefusedPlaces(t *testing.T) {
	w := memoryWorld(t)
	w.backup()
	other := w.copier()
	w.must(other.pass(t.Context()))
	try := func(want error, change func(*Config)) {
		t.Helper()
		c := w.copier()
		change(&c.cfg)
		before := len(all(t, w.to.Store))
		w.backup2()
		if err := c.pass(t.Context()); !errors.Is(err, want) || len(all(t, w.to.Store)) != before {
			t.Errorf("error %v, not %v", err, want)
		}
		if _, ok := c.next(); ok {
			t.Error("changes are delivered")
		}
	}
	try(ErrNotACopy, func(c *Config) { c.FromName = "file:///other" })
	try(ErrNotACopy, func(c *Config) { c.ClusterName = "other" })
	try(ErrTaken, func(c *Config) { c.Term-- })
	if _, changed, err := catalog.New(w.to).UseCopy(t.Context()); err != nil || !changed {
		t.Fatal(changed, err)
	}
	try(ErrInUse, func(*Config) {})
	// The one that copies notices it too.
	other.Segment(life, catalog.SegmentName{}, nil)
	if err := other.pass(t.Context()); !errors.Is(err, ErrInUse) {
		t.Errorf("error %v", err)
	}
	if _, ok := other.next(); ok {
		t.Error("changes are delivered to a copy that is in use")
	}
	w.to = newGate(blobtest.NewMemory())
	_, err := w.to.Put(t.Context(), "control/etcd-cluster-spec", strings.NewReader("{}"), blob.PutOptions{})
	w.must(err)
	try(ErrNotACopy, func(*Config) {})
}

// backup2 writes a backup at a later time.
func (w *world) backup2() {
	w.now = w.now.Add(time.Second)
	w.backup()
}

// While the first store is away, changes go on to the copy from memory; while the copy is away, nothing is lost, and it is made up for.
func TestEitherStoreAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := memoryWorld(t)
		w.fill()
		c := w.copier()
		behind := time.Since(w.now)
		c.cfg.Now = func() time.Time { return time.Now().Add(-behind) }
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); _ = c.Run(ctx) }()
		defer func() { stop(); <-ended }()
		synctest.Wait()
		w.same()

		w.from.set(true)
		n, data := w.made()
		c.Segment(life, n, data)
		synctest.Wait()
		if have := all(t, w.to.Store)[catalog.Segment{SegmentName: n, Incarnation: life}.Key()]; have != string(data) {
			t.Fatal("the segment isn't in the copy while the first store is away")
		}
		if s := c.Status(); s.Archived != n.Last {
			t.Errorf("status %+v", s)
		}
		c.Poke()
		synctest.Wait()
		if s := c.Status(); s.Error == "" || s.Since.IsZero() {
			t.Errorf("status %+v", s)
		}
		w.from.set(false)
		w.must(w.c.PutSegment(t.Context(), life, n, data))

		w.to.set(true)
		time.Sleep(15 * time.Minute)
		for range heldSegments + 100 { // more than wait in memory
			w.now = c.cfg.Now()
			n, data := w.made()
			w.must(w.c.PutSegment(t.Context(), life, n, data))
			c.Segment(life, n, data)
		}
		w.now = c.cfg.Now()
		w.backup()
		time.Sleep(time.Minute)
		if s := c.Status(); s.Error == "" || s.Archived == w.rev {
			t.Errorf("status %+v", s)
		}
		w.to.set(false)
		time.Sleep(2*lastRetry + defaultLook)
		synctest.Wait()
		w.same()
		if s := c.Status(); s.Error != "" || s.Archived != w.rev {
			t.Errorf("status %+v, revision %d", s, w.rev)
		}
	})
}

// An idle copy asks little, however much there is; and a look finds one new backup among all.
func TestRequestsOfALook(t *testing.T) {
	w := memoryWorld(t)
	w.now = time.Now().Add(-30 * 24 * time.Hour)
	w.control()
	for range 1000 {
		w.backup()
		w.now = w.now.Add(40 * time.Minute)
		w.segment()
	}
	w.now = time.Now()
	c := w.copier()
	w.must(c.pass(t.Context()))
	w.from.count()
	w.to.count()
	for range 3 {
		w.now = w.now.Add(defaultLook)
		w.must(c.pass(t.Context()))
		from, _ := w.from.count()
		to, bodies := w.to.count()
		if from > 12 || to > 12 || bodies != 0 {
			t.Errorf("a look took %d requests of the first store and %d of the copy, %d bodies", from, to, bodies)
		}
	}
	w.backup()
	w.must(c.pass(t.Context()))
	if _, bodies := w.to.count(); bodies != 1 {
		t.Errorf("%d backups were copied", bodies)
	}
}

// With a retention of its own the copy gets what it keeps, and nothing goes to and fro.
func TestOwnRetention(t *testing.T) {
	w := memoryWorld(t)
	w.now = time.Now().Add(-12 * 24 * time.Hour)
	start := w.now
	for range 6 * 24 * 4 {
		w.backup()
		w.now = w.now.Add(15 * time.Minute)
		w.segment()
	}
	w.policy.Backups = retention.Policy{Hourly: 24 * time.Hour, Daily: 3 * 24 * time.Hour}
	w.policy.Changes = 24 * time.Hour
	c := w.copier()
	w.must(c.pass(t.Context()))
	list, err := catalog.New(w.to).Backups(t.Context())
	w.must(err)
	if n := len(list.Backups); n < 24 || n > 40 {
		t.Errorf("%d backups were copied", n)
	}
	for _, b := range list.Backups {
		if b.Time.Before(start.Add(48 * time.Hour)) {
			t.Errorf("%s was copied", b.Name)
		}
	}
	w.to.count()
	for range 4 {
		w.now = w.now.Add(25 * time.Hour)
		w.must(c.pass(t.Context()))
	}
	if _, bodies := w.to.count(); bodies != 0 {
		t.Errorf("%d backups were copied again", bodies)
	}
	// The copy's retention has removed from the copy, and nothing from the first store.
	first, err := w.c.Backups(t.Context())
	w.must(err)
	list, err = catalog.New(w.to).Backups(t.Context())
	w.must(err)
	if len(first.Backups) != 6*24*4 || len(list.Backups) > 4 {
		t.Errorf("%d backups in the first store, %d in the copy", len(first.Backups), len(list.Backups))
	}
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(1000)
		begun := time.Now()
		for range 10 {
			if err := l.wait(t.Context(), 500); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(begun); d != 5*time.Second {
			t.Errorf("5000 bytes at 1000 a second took %s", d)
		}
	})
}

func TestManagersRefuseACopy(t *testing.T) {
	w := memoryWorld(t)
	w.must(w.copier().pass(t.Context()))
	to := catalog.New(w.to)
	var is *catalog.CopyError
	if err := to.RefuseCopy(t.Context(), "file:///store"); !errors.As(err, &is) || is.Of != firstURL {
		t.Fatalf("error %v", err)
	}
	if err := w.c.RefuseCopy(t.Context(), "file:///store"); err != nil {
		t.Fatal(err)
	}
	_, _, err := to.UseCopy(t.Context())
	w.must(err)
	if err := to.RefuseCopy(t.Context(), "file:///store"); err != nil {
		t.Fatal(err)
	}
	w.put("control/copy.json", "{")
	if err := w.c.RefuseCopy(t.Context(), "file:///store"); !errors.Is(err, cluster.ErrCorrupt) {
		t.Fatalf("error %v", err)
	}
}

// TestCopyIsGone: a copy that was there isn't begun anew where nothing is any more, as where a file system isn't mounted, neither by the
// leader that copies nor by the next one; and a first store that was made anew goes on with it.
func TestCopyIsGone(t *testing.T) {
	w := memoryWorld(t)
	w.backup()
	w.segment()
	c := w.copier()
	w.must(c.pass(t.Context()))
	mounted := w.to.Store
	w.to.Store = blobtest.NewMemory()
	for _, c := range []*Copier{c, w.copier()} {
		w.backup2()
		if err := c.pass(t.Context()); !errors.Is(err, ErrGone) || len(all(t, w.to.Store)) != 0 {
			t.Errorf("error %v, and the place has %v", err, all(t, w.to.Store))
		}
	}
	w.to.Store = mounted
	w.must(c.pass(t.Context()))
	w.must(w.copier().pass(t.Context()))
	// Emptied on purpose, as the message says.
	w.to.Store = blobtest.NewMemory()
	_, err := blob.Remove(t.Context(), w.from.Store, "control/copies.json", func(string) bool { return true })
	w.must(err)
	c = w.copier()
	w.must(c.pass(t.Context()))
	// The first store is made anew: the same leadership, and the next one, go on.
	w.from.Store = blobtest.NewMemory()
	w.backup2()
	next := w.copier()
	if err := next.pass(t.Context()); err == nil || errors.Is(err, ErrNotACopy) {
		t.Errorf("a first store without an incarnation: %v", err)
	}
	w.segment()
	w.must(next.pass(t.Context()))
	if own, _, err := w.c.Copies(t.Context()); err != nil || own.Store != next.record.Store || own.Store == "" {
		t.Errorf("the new first store is %q, the copy is of %q: %v", own.Store, next.record.Store, err)
	}
	w.must(c.pass(t.Context()))
}

// TestTwoStoresOfOneURL: two first stores with the same URL and cluster name, each on its own machines, don't mix in one copy.
func TestTwoStoresOfOneURL(t *testing.T) {
	w := memoryWorld(t)
	w.backup()
	w.segment()
	c := w.copier()
	w.must(c.pass(t.Context()))
	before := len(all(t, w.to.Store))
	other := newWorld(t, blobtest.NewMemory(), w.to.Store)
	other.now, other.term = w.now.Add(time.Minute), 100
	other.backup()
	n, data := other.made()
	other.must(other.c.PutSegment(t.Context(), "0000000000000def", n, data))
	if err := other.copier().pass(t.Context()); !errors.Is(err, ErrNotACopy) || len(all(t, w.to.Store)) != before {
		t.Errorf("error %v, and %d objects of %d", err, len(all(t, w.to.Store)), before)
	}
	other.now = time.Now().Add(2 * takenOver) // nobody copies any more
	other.must(other.copier().pass(t.Context()))
}

// TestBadIsRemembered: what can't be copied is named by the next leader too, and is forgotten when a whole comparison finds it good.
func TestBadIsRemembered(t *testing.T) {
	w := memoryWorld(t)
	bad := w.backup()
	w.put(bad+"/"+catalog.DataFile, "SNAPSHOT "+bad)
	w.must2(w.copier().pass(t.Context()), bad)
	w.now = w.now.Add(72 * time.Minute)
	w.term++
	c := w.copier()
	w.must2(c.pass(t.Context()), bad)
	w.put(bad+"/"+catalog.DataFile, "snapshot "+bad)
	w.must2(c.pass(t.Context()), bad)
	w.now = w.now.Add(defaultCompare)
	w.must(c.pass(t.Context()))
	if c.record.Bad != nil {
		t.Errorf("the record has %v", c.record.Bad)
	}
	w.must(w.copier().pass(t.Context()))
}

// must2 fails unless the error names an object.
func (w *world) must2(err error, name string) {
	w.t.Helper()
	if err == nil || !strings.Contains(err.Error(), name) {
		w.t.Fatalf("error %v doesn't name %s", err, name)
	}
}

// TestWholeComparisonRests: a whole comparison that fails again and again is tried more and more rarely, and what is new is copied
// meanwhile.
func TestWholeComparisonRests(t *testing.T) {
	w := memoryWorld(t)
	w.run(60)
	c := w.copier()
	w.must(c.pass(t.Context()))
	w.now = w.now.Add(defaultCompare)
	c.cfg.From = catalog.New(failing{w.from})
	tries := 0
	for range 60 {
		w.now = w.now.Add(time.Minute)
		before := c.fails
		_ = c.pass(t.Context())
		tries += c.fails - before
	}
	if tries > 15 || tries == 0 {
		t.Errorf("%d whole comparisons in an hour", tries)
	}
	c.cfg.From = w.c
	w.now = w.now.Add(2 * lastWhole)
	w.must(c.pass(t.Context()))
	if c.fails != 0 || !c.record.Compared.Equal(w.now.UTC()) {
		t.Errorf("%d failures, compared at %s", c.fails, c.record.Compared)
	}
}

// failing is a store of which the whole can't be listed.
type failing struct {
	blob.Store
}

func (f failing) List(ctx context.Context, prefix string, o blob.ListOptions) iter.Seq2[blob.Entry, error] {
	if prefix == "" && o.After == "" && o.Delimiter == "" {
		return func(yield func(blob.Entry, error) bool) {
			yield(blob.Entry{}, &blob.Error{Op: "list", Kind: blob.ErrTransient, Err: errKilled})
		}
	}
	return f.Store.List(ctx, prefix, o)
}

// TestInUseMeanwhile: a copy that is put into use while the leader of the first store is about to write to it stays as it is.
func TestInUseMeanwhile(t *testing.T) {
	w := memoryWorld(t)
	w.control()
	w.backup()
	c := w.copier()
	w.must(c.pass(t.Context()))
	to := catalog.New(w.to)
	spec, version, err := w.c.Spec(t.Context())
	w.must(err)
	spec.MemberCount = 5
	_, err = w.c.ReplaceSpec(t.Context(), spec, version)
	w.must(err)
	asked := 0
	err = to.CopyControl(t.Context(), w.c, map[string]bool{}, func(ctx context.Context) error {
		if asked++; asked == 1 {
			_, _, err := to.UseCopy(ctx)
			w.must(err)
		}
		return c.claim(ctx)
	})
	if got, _, serr := to.Spec(t.Context()); !errors.Is(err, ErrInUse) || serr != nil || got.MemberCount != 3 {
		t.Errorf("error %v; the spec of the copy is %+v, %v", err, got, serr)
	}
}

// TestBadObjectsOfTheFirstStore: small objects of the first store can't be used, each in each way. Backups and changes are copied.
func TestBadObjectsOfTheFirstStore(t *testing.T) {
	for _, key := range []string{"control/copies.json", "control/serving.json", "control/etcd-cluster-spec", "control/etcd-cluster-settings.json",
		"control/etcd-cluster-created", "control/operations/2026-01-01T00:00:00Z-000000.json", "changes/" + string(life) + "/_incarnation.json"} {
		for kind, content := range map[string]string{"empty": "", "damaged": `{"version":1,`, "too large": strings.Repeat("x", 2<<20),
			"newer": `{"version":99}`, "denied": "{}"} {
			w := memoryWorld(t)
			w.control()
			w.run(2)
			first := w.copier()
			w.must(first.pass(t.Context()))
			w.put(key, content)
			if kind == "denied" {
				w.from.denied = key
			}
			copiers := []*Copier{first, w.copier()} // one that goes on, and the next leader's
			if key == "control/copies.json" && kind == "denied" {
				copiers = copiers[:1] // whether it is the copy of this store can't be known anew
			}
			for _, c := range copiers {
				w.now = w.now.Add(time.Minute)
				name, seg := w.backup(), w.segment()
				if err := c.pass(t.Context()); err != nil && !strings.Contains(err.Error(), key) {
					t.Errorf("%s %s: %v", key, kind, err)
				}
				have := all(t, w.to.Store)
				if have[name+"/_etcd_backup.meta"] == "" || have[catalog.Segment{SegmentName: seg, Incarnation: life}.Key()] == "" {
					t.Errorf("%s %s: nothing was copied: %+v", key, kind, c.Status())
				}
			}
		}
	}
}

// TestLostAnswers: the answer to each write of the copy's record, and of the first store's record of its copies, is lost, once with that
// store away after it. The next attempt goes on, and so does the next leader; the store has one name, and nothing counts as another's.
func TestLostAnswers(t *testing.T) {
	for _, away := range []bool{false, true} {
		for n, hit := 0, true; hit; n++ {
			from, to := blobtest.NewFaulty(blobtest.NewMemory()), blobtest.NewFaulty(blobtest.NewMemory())
			w := newWorld(t, from, to)
			w.control()
			w.run(2)
			puts := 0
			for key, s := range map[string]*blobtest.Faulty{"control/copy.json": to, "control/copies.json": from} {
				s.Add(blobtest.Fault{Op: "put", Match: func(k string) bool {
					if k == key {
						puts++
					}
					return k == key && puts == n+1
				}, After: true, Err: blobtest.Transient("put", key)})
				s.Add(blobtest.Fault{Op: "get", Match: func(k string) bool { return away && k == key && puts > n }, Err: blobtest.Transient("get", key)})
			}
			c := w.copier()
			_ = c.pass(t.Context()) // it may fail
			from.Heal()
			to.Heal()
			hit = puts > n
			w.must(c.pass(t.Context()))
			w.same()
			own, _, err := w.c.Copies(t.Context())
			w.must(err)
			record, _, err := catalog.New(w.to).CopyRecord(t.Context())
			w.must(err)
			if own.Store == "" || record.Store != own.Store || record.Term != w.term {
				t.Errorf("answer %d is lost: the first store is %q, and its copy is %+v", n, own.Store, record)
			}
			w.now = w.now.Add(time.Minute)
			w.segment()
			w.must(c.pass(t.Context()))
			w.term++
			w.must(w.copier().pass(t.Context()))
			w.same()
			if t.Failed() || n > 30 {
				t.Fatalf("answer %d, away %t", n, away)
			}
		}
	}
}
