package standby

import (
	"bytes"
	"context"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// TestFollows has a copy follow a cluster over a restart of the manager, and compared with a newer full backup.
func TestFollows(t *testing.T) {
	testutil.Long(t)
	p, dir := newPrimary(t), t.TempDir()
	p.write(0)
	p.record()
	p.archived()
	first := p.backup()
	c := p.follow(dir, nil)
	for i := range 3 {
		p.write(i + 1)
		p.archived()
		c.reaches(p.last)
	}
	c.stop()
	p.same(dir)
	if r := c.Report(); r.Base != first || r.Error != "" || r.Until.IsZero() || r.Known < r.Revision {
		t.Errorf("%+v", r)
	}

	p.write(10)
	p.archived()
	before := len(p.store.Calls())
	c = p.follow(dir, nil)
	c.reaches(p.last)
	c.stop()
	p.same(dir)
	for _, call := range p.store.Calls()[before:] {
		if call.Op == "get" && strings.HasPrefix(call.Key, first) {
			t.Errorf("after a restart the full backup was fetched again: %s", call.Key)
		}
	}

	p.write(20)
	second := p.backup()
	p.write(21)
	p.archived()
	c = p.follow(dir, func(cfg *Config) { cfg.Compare = time.Millisecond })
	testutil.Eventually(t, "it is compared", func() bool { return c.Report().Compared == second })
	c.reaches(p.last)
	c.stop()
	p.same(dir)
	if r := c.Report(); r.Differs != "" || r.Base != second || r.ComparedRevision == 0 {
		t.Errorf("%+v", r)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 3 { // the copy, its leases, and the state
		t.Errorf("the old copy is still there: %v %v", entries, err)
	}
}

// TestDifferenceIsFound changes a value in the copy: the comparison finds it, and the copy is replaced by what is right.
func TestDifferenceIsFound(t *testing.T) {
	testutil.Long(t)
	p, dir := newPrimary(t), t.TempDir()
	p.write(0)
	p.record()
	p.backup()
	p.write(1)
	p.archived()
	c := p.follow(dir, nil)
	c.reaches(p.last)
	c.stop()
	h, _, err := load(dir, "memory")
	testutil.Must(t, err)
	db, err := bolt.Open(filepath.Join(dir, h.File), 0o600, nil)
	testutil.Must(t, err)
	testutil.Must(t, db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("key"))
		k, v := b.Cursor().Last()
		return b.Put(bytes.Clone(k), append(bytes.Clone(v[:len(v)-1]), 'y'))
	}))
	testutil.Must(t, db.Close())
	second := p.backup()
	p.write(2)
	p.archived()
	c = p.follow(dir, func(cfg *Config) { cfg.Compare = time.Millisecond })
	testutil.Eventually(t, "it is compared", func() bool { return c.Report().Compared == second })
	c.reaches(p.last)
	c.stop()
	if r := c.Report(); !strings.Contains(r.Differs, "HashKV") {
		t.Errorf("%+v", r)
	}
	p.same(dir)
}

// TestKilledAtAnyMoment ends the follower, and with it the processes that write to the copy, at random moments while a cluster is busy.
func TestKilledAtAnyMoment(t *testing.T) {
	testutil.Long(t)
	p, dir := newPrimary(t), t.TempDir()
	p.write(0)
	p.record()
	p.backup()
	ctx, cancel := context.WithCancel(t.Context())
	written := make(chan int)
	go func() {
		n := 0
		for ; ctx.Err() == nil; n++ {
			p.write(n + 1)
		}
		written <- n
	}()
	for range 25 {
		c := p.follow(dir, func(cfg *Config) { cfg.Interval, cfg.bytes = 20*time.Millisecond, 1 })
		<-time.After(time.Duration(50+rand.Intn(250)) * time.Millisecond) // the moment of the kill: nothing to wait for
		c.stop()
	}
	cancel()
	t.Logf("%d rounds were written", <-written)
	p.archived()
	c := p.follow(dir, nil)
	c.reaches(p.last)
	c.stop()
	p.same(dir)
}

// TestGap takes segments away: the copy says so, stays where it is, and goes on with the next full backup.
func TestGap(t *testing.T) {
	testutil.Long(t)
	p, dir := newPrimary(t), t.TempDir()
	p.record()
	p.write(0)
	p.archived()
	p.backup()
	c := p.follow(dir, nil)
	p.write(1)
	p.archived()
	c.reaches(p.last)
	c.stop()
	at := p.last
	p.write(2)
	p.archived()
	p.write(3)
	p.archived()
	life := p.rec.Status().Incarnation
	var gone []catalog.SegmentName
	for s, err := range p.catalog.Segments(t.Context(), life, at+1) {
		testutil.Must(t, err)
		gone = append(gone, s.SegmentName)
	}
	_, err := p.catalog.DeleteSegments(t.Context(), life, gone)
	testutil.Must(t, err)
	p.write(4)
	p.archived()
	c = p.follow(dir, func(cfg *Config) { cfg.patience = time.Second })
	testutil.Eventually(t, "it says what is missing", func() bool { return strings.Contains(c.Report().Error, "are missing") })
	if r := c.Report(); r.Revision != at {
		t.Errorf("%+v, want revision %d", r, at)
	}
	second := p.backup()
	c.reaches(p.last)
	c.stop()
	if r := c.Report(); r.Base != second || r.Error != "" {
		t.Errorf("%+v", r)
	}
	p.same(dir)
}

// TestStoreAwayAndEmpty starts with nothing to follow and a store that fails, and says why nothing comes.
func TestStoreAwayAndEmpty(t *testing.T) {
	p := &primary{t: t, store: blobtest.NewFaulty(blobtest.NewMemory())}
	c := p.follow(t.TempDir(), nil)
	testutil.Eventually(t, "it says that there is no backup", func() bool { return c.Report().Error != "" })
	if r := c.Report(); r.Base != "" || r.Since.IsZero() || !strings.Contains(r.Error, "there is no cluster in") {
		t.Errorf("%+v", r)
	}
	c.stop()
}

// TestWhatIsHeld refuses what it can't know, and doesn't take the copy of another store for this one's.
func TestWhatIsHeld(t *testing.T) {
	dir := t.TempDir()
	write := func(text string) {
		testutil.Must(t, os.WriteFile(filepath.Join(dir, stateFile), []byte(text), 0o600))
	}
	testutil.Must(t, os.WriteFile(filepath.Join(dir, "copy-1.db"), []byte("x"), 0o600))
	for _, c := range []struct{ text, why, err string }{
		{`{"version":1,"store":"s","file":"copy-1.db","revision":7}`, "", ""},
		{`{"version":1,"store":"other","file":"copy-1.db","revision":7}`, "of what other keeps", ""},
		{`{"version":1,"store":"s","file":"../copy-1.db","revision":7}`, "makes no sense", ""},
		{`{"version":1,"store":"s","file":"copy-2.db","revision":7}`, "can't be found", ""},
		{`{`, "can't be read", ""},
		{`{"version":2,"store":"s","file":"copy-1.db","revision":7}`, "", "newer version"},
	} {
		write(c.text)
		h, why, err := load(dir, "s")
		if !strings.Contains(why, c.why) || (c.why == "") != (why == "") || (c.err != "") != (err != nil) ||
			err != nil && !strings.Contains(err.Error(), c.err) || (h != nil) != (c.why == "" && c.err == "") {
			t.Errorf("%s: %+v, %q, %v", c.text, h, why, err)
		}
	}
	testutil.Must(t, os.WriteFile(filepath.Join(dir, "copy-2.db.leases"), nil, 0o600))
	testutil.Must(t, os.WriteFile(filepath.Join(dir, "copy-3.db.tmp"), nil, 0o600))
	testutil.Must(t, sweep(dir, "copy-1.db"))
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("%v %v", entries, err)
	}
}

// TestNoNewerBackup: while a standby needs a full backup and there is none, it looks more and more rarely, since each look lists all.
func TestNoNewerBackup(t *testing.T) {
	f := &Follower{cfg: Config{Store: "s", patience: 15 * time.Second}, held: &held{}, missing: time.Now()}
	for i, want := range []time.Duration{15 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute, 4 * time.Minute, lastPause,
		lastPause} {
		f.full = &fetching{cancel: func() {}}
		if err := f.take(t.Context()); err == nil {
			t.Fatal("it isn't said that changes are missing")
		}
		if got := time.Until(f.again).Round(time.Second); got != want {
			t.Errorf("after look %d it waits %s; want %s", i, got, want)
		}
	}
}
