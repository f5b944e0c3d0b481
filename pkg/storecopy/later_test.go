package storecopy

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// whole tells whether the copy has a backup.
func (w *world) whole(name string) bool {
	w.t.Helper()
	return all(w.t, w.to.Store)[name+"/_etcd_backup.meta"] != ""
}

// TestLargeBackupWaitsAlone: a backup that the copy's store doesn't take is named and tried more and more rarely; all others, and the
// changes, go on.
func TestLargeBackupWaitsAlone(t *testing.T) {
	w := memoryWorld(t)
	w.control()
	older := w.backup()
	w.now = w.now.Truncate(time.Hour).Add(time.Hour)
	large := w.backup() // the first one of its hour, which is kept
	w.to.large = large + "/" + catalog.DataFile
	w.now = w.now.Add(time.Minute)
	newer, seg := w.backup(), w.segment()
	c := w.copier()
	w.must2(c.pass(t.Context()), large)
	if !w.whole(older) || !w.whole(newer) || w.whole(large) || w.to.tried != 1 ||
		all(t, w.to.Store)[catalog.Segment{SegmentName: seg, Incarnation: life}.Key()] == "" {
		t.Fatalf("after %d attempts the copy has %v", w.to.tried, all(t, w.to.Store))
	}
	for range 180 {
		w.now = w.now.Add(time.Minute)
		name := w.backup()
		w.must2(c.pass(t.Context()), large)
		if !w.whole(name) {
			t.Fatalf("%s isn't copied", name)
		}
	}
	if w.to.tried < 5 || w.to.tried > 9 {
		t.Errorf("%d attempts in three hours", w.to.tried)
	}
	// The next leadership names it at once, and doesn't wait for a whole comparison.
	w.term++
	next := w.copier()
	w.must2(next.pass(t.Context()), large)
	w.now = w.now.Add(firstLater)
	w.must2(next.pass(t.Context()), errTooLarge.Error())
	w.to.large = ""
	w.now = w.now.Add(lastLater)
	w.must(next.pass(t.Context()))
	if !w.whole(large) {
		t.Error("it isn't copied once it can be")
	}
	if next.record.Bad != nil || len(next.later) != 0 {
		t.Errorf("still bad: %v, %v", next.record.Bad, next.later)
	}
}

// TestChangesGoOnWithoutBackups: a store that takes no backup still gets the changes, and each pass tries a few backups only, in turn.
func TestChangesGoOnWithoutBackups(t *testing.T) {
	w := memoryWorld(t)
	w.control()
	w.to.full = true
	c := w.copier()
	has := func(what string, seg catalog.SegmentName) {
		t.Helper()
		if all(t, w.to.Store)[catalog.Segment{SegmentName: seg, Incarnation: life}.Key()] == "" {
			t.Fatalf("%s: the change isn't copied", what)
		}
	}
	for i := range 8 { // the first pass compares everything
		for range 4 {
			w.now = w.now.Add(time.Minute)
			w.backup()
		}
		seg := w.segment()
		w.to.tried = 0
		w.must2(c.pass(t.Context()), errTooLarge.Error())
		has("many new backups", seg)
		if w.to.tried > 2*(maxVain+2) {
			t.Errorf("pass %d tried %d backups", i, w.to.tried)
		}
	}
	// As many wait as may, and the time of some has come.
	w.now = w.now.Add(lastLater)
	for i := 0; len(c.later) < maxLater; i++ {
		b := catalog.Backup{Name: catalog.NewBackupName(w.now.Add(-time.Duration(i+1)*24*time.Hour), nil)}
		c.later[b.Name] = &refusal{backup: b, fails: 9, next: w.now.Add(lastLater)}
	}
	due := 0
	for name := range c.later {
		if !c.later.waitsFor(name, w.now) {
			due++
		}
	}
	for range due {
		w.backup()
		w.now = w.now.Add(time.Second)
		seg := w.segment()
		w.must2(c.pass(t.Context()), errTooLarge.Error())
		has("as many wait as may", seg)
	}
	for name := range c.later {
		if !c.later.waitsFor(name, w.now) {
			t.Errorf("%s wasn't tried in %d passes", name, due)
		}
	}
	if due == 0 || len(c.later) != maxLater {
		t.Errorf("%d were due, %d wait", due, len(c.later))
	}
}

// TestAwayIsNoRefusal: a copy that doesn't answer, or takes nothing at all, isn't taken for backups that must wait alone.
func TestAwayIsNoRefusal(t *testing.T) {
	w := memoryWorld(t)
	c := w.copier()
	w.must(c.pass(t.Context()))
	for range 10 {
		w.now = w.now.Add(time.Second)
		w.backup()
	}
	for n := range 3 { // it takes so many changes more
		w.to.shut, w.to.left = false, n
		if err := c.pass(t.Context()); !errors.Is(err, errKilled) || len(c.later) != 0 {
			t.Errorf("after %d changes: error %v, and %d wait", n, err, len(c.later))
		}
	}
	w.to.set(false)
	w.must(c.pass(t.Context()))
	w.same()
}

// TestNewBackupsDontWait: while one backup can't be copied, a new one is copied when the copier is told of it.
func TestNewBackupsDontWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := memoryWorld(t)
		w.control()
		large := w.backup()
		w.to.large = large + "/" + catalog.DataFile
		c := w.copier()
		behind := time.Since(w.now)
		c.cfg.Now = func() time.Time { return time.Now().Add(-behind) }
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); _ = c.Run(ctx) }()
		defer func() { stop(); <-ended }()
		synctest.Wait()
		if s := c.Status(); !strings.Contains(s.Error, large) || s.Missing != 1 || s.Since.IsZero() {
			t.Errorf("status %+v", s)
		}
		time.Sleep(90 * time.Second)
		w.now = c.cfg.Now()
		name := w.backup()
		c.Poke()
		synctest.Wait()
		if !w.whole(name) {
			t.Error("the new backup waits")
		}
		w.to.mu.Lock()
		w.to.large = ""
		w.to.mu.Unlock()
		time.Sleep(firstLater)
		synctest.Wait()
		if s := c.Status(); !w.whole(large) || s.Error != "" || s.Missing != 0 {
			t.Errorf("status %+v", s)
		}
	})
}

// TestClockPutBack: a clock that was ahead makes nothing wait until its time comes again.
func TestClockPutBack(t *testing.T) {
	w := memoryWorld(t)
	large := w.backup()
	w.segment()
	c := w.copier()
	right := w.now
	w.now = w.now.Add(365 * 24 * time.Hour)
	w.to.large = large + "/" + catalog.DataFile
	c.cfg.From = catalog.New(failing{w.from})
	for range 8 {
		w.must2(c.pass(t.Context()), "") // a whole comparison fails
	}
	if !waits(w.now, c.again, lastWhole) || !c.later.waitsFor(large, w.now) {
		t.Fatalf("nothing waits: %s, %v", c.again, c.later)
	}
	c.cfg.From = w.c
	c.pruned = w.now
	w.now = right
	w.to.large = ""
	w.must(c.pass(t.Context()))
	w.same()
	if !c.record.Compared.Equal(w.now.UTC()) || !c.pruned.Equal(w.now) {
		t.Errorf("compared at %s, pruned at %s, now %s", c.record.Compared, c.pruned, w.now)
	}
}

// TestUnknownStoreWritesNothing: as long as the first store doesn't say which one it is, nothing is copied.
func TestUnknownStoreWritesNothing(t *testing.T) {
	w := memoryWorld(t)
	w.backup()
	w.segment()
	w.must(w.copier().pass(t.Context()))
	before := all(t, w.to.Store)
	other := newWorld(t, blobtest.NewMemory(), w.to.Store)
	other.now, other.term = w.now, 100
	other.backup()
	other.segment()
	other.put("control/copies.json", `{"version":1,"store":"another","begun":{}}`)
	other.from.denied = "control/copies.json"
	c := other.copier()
	if err := c.claim(t.Context()); !errors.Is(err, catalog.ErrDenied) {
		t.Errorf("error %v", err)
	}
	if after := all(t, w.to.Store); after["control/copy.json"] != before["control/copy.json"] {
		t.Errorf("the record was written: %s", after["control/copy.json"])
	}
	if _, ok := c.next(); ok || c.open {
		t.Error("changes are delivered")
	}
	other.from.denied = ""
	if err := c.pass(t.Context()); !errors.Is(err, ErrNotACopy) {
		t.Errorf("error %v", err)
	}
}

// TestNewStoreWithoutChanges: a first store that was made anew goes on with its copy although it keeps no changes any more: a quarter of
// an hour after anybody wrote to the copy, whatever its clock said.
func TestNewStoreWithoutChanges(t *testing.T) {
	w := memoryWorld(t)
	w.backup()
	w.segment()
	w.must(w.copier().pass(t.Context()))
	w.from.Store = blobtest.NewMemory()
	w.backup2()
	w.term++
	c := w.copier()
	w.must2(c.pass(t.Context()), "nobody has written to the copy for 15m")
	w.now = w.now.Add(stillCopied - time.Second)
	w.must2(c.pass(t.Context()), "nobody has written to the copy for 15m")
	w.now = w.now.Add(time.Second)
	name := w.backup()
	w.must(c.pass(t.Context()))
	if !w.whole(name) || c.record.Store == "" {
		t.Errorf("%s isn't copied; store %q", name, c.record.Store)
	}
	w.must(w.copier().pass(t.Context()))
}
