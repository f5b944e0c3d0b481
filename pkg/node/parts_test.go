package node

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// TestChanges: who waits is woken by the next change, and by none before it.
func TestChanges(t *testing.T) {
	c := newChanges()
	first, before := c.next()
	select {
	case <-first:
		t.Fatal("woken by nothing")
	default:
	}
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(c.note)
	}
	<-first
	wg.Wait()
	second, after := c.next()
	if after-before != 10 {
		t.Errorf("%d changes were counted, want 10", after-before)
	}
	select {
	case <-second:
		t.Error("woken by a change from before")
	default:
	}
}

// TestSummaries: a leader of a lower term doesn't replace what one of a higher term has told, unless that has been silent for long.
func TestSummaries(t *testing.T) {
	var s summaries
	s.note([]byte("five"), 5)
	s.note([]byte("four"), 4)
	s.note(nil, 6)
	s.note(make([]byte, summaryMost+1), 6)
	if got := string(s.last.summary); got != "five" {
		t.Errorf("got %q, want what the leader of term 5 has told", got)
	}
	s.last.at = time.Now().Add(-2 * summaryHeld)
	s.note([]byte("four"), 4)
	if got := string(s.last.summary); got != "four" {
		t.Errorf("got %q from a leader that is silent", got)
	}
}

// TestDisk: the size of the database is seen, and who keeps the trash can hears when the disk has too little room.
func TestDisk(t *testing.T) {
	dir := t.TempDir()
	short := 0
	d := &disk{cfg: &Config{DataDir: dir}, l: layout(dir), changes: newChanges(), short: func() { short++ }}
	snap := filepath.Join(d.l.memberDir("T1"), "snap")
	must(t, os.MkdirAll(snap, 0o700))
	must(t, os.WriteFile(filepath.Join(snap, "db"), make([]byte, 4096), 0o600))
	d.look("T1", os.Getpid())
	seen := d.last()
	if seen.database != 4096 || seen.total <= 0 || seen.pid != os.Getpid() {
		t.Errorf("seen was %+v", seen)
	}
	if want := cluster.DiskFull(seen.total, seen.free) || seen.free < d.least(); (short > 0) != want {
		t.Errorf("with %d of %d bytes free: told %d times that there is too little", seen.free, seen.total, short)
	}
	changed, _ := d.changes.next()
	d.mu.Lock()
	d.seen.total, d.seen.free = 1<<40, 0 // it was full a moment ago
	d.mu.Unlock()
	d.look("", 0)
	if full := cluster.DiskFull(d.last().total, d.last().free); !full {
		select {
		case <-changed:
		default:
			t.Error("the leader doesn't hear that there is room again")
		}
	}
	if d.last().database != 0 {
		t.Error("without data there is a database")
	}
}

// TestPinnedEntries: an entry that is being salvaged stays until it is released.
func TestPinnedEntries(t *testing.T) {
	a, _ := withStore(t)
	setAsideSince(t, a, "T1", time.Now())
	must(t, os.MkdirAll(filepath.Join(a.l.trash("T1"), "member"), 0o700))
	it, release, err := a.trash.pin("T1")
	must(t, err)
	if err := a.trash.remove(it); err == nil {
		t.Error("what is being salvaged was removed")
	}
	release()
	must(t, a.trash.remove(it))
	a.trash.look()
	if got := a.trash.list(); len(got) > 0 {
		t.Errorf("the trash can has %v", got)
	}
	if _, _, err := a.trash.pin("T1"); err == nil {
		t.Error("what is gone was found")
	}
}

// TestATurnIsSeenOrRefused: a leader that looks while another one's action begins sees that the node is busy, or the action is refused.
func TestATurnIsSeenOrRefused(t *testing.T) {
	for range 50 {
		a := running(t, nil)
		must(t, a.records.obey(5, "a"))
		var seen cluster.NodeStatus
		var refused error
		var wg sync.WaitGroup
		wg.Go(func() { refused = a.records.takeTurn(5, "a", "start_etcd", func() error { return nil }) })
		wg.Go(func() {
			if _, err := a.records.heed(6, "b"); err == nil {
				a.records.describe(&seen, func(*cluster.EtcdState, cluster.Settings) {})
			}
		})
		wg.Wait()
		if refused == nil && seen.Busy != "start_etcd" {
			t.Fatalf("the leader of term 6 sees %q, and the action of term 5 has begun", seen.Busy)
		}
		a.records.endTurn()
		a.records.describe(&seen, func(*cluster.EtcdState, cluster.Settings) {})
		if seen.Busy != "" || seen.Term != 6 {
			t.Fatalf("afterwards: busy with %q, term %d", seen.Busy, seen.Term)
		}
	}
}

// TestWhatAnswersWhileItIsStopped: etcd answers for a moment after the manager has begun to stop it. That doesn't end the stop.
func TestWhatAnswersWhileItIsStopped(t *testing.T) {
	a := running(t, nil)
	a.records.noteStop()
	a.records.noteServes()
	var s cluster.NodeStatus
	a.records.describe(&s, func(*cluster.EtcdState, cluster.Settings) {})
	if s.Stopped == nil || s.Stopped.At.IsZero() || !s.Stopped.Served.IsZero() {
		t.Errorf("the stop that has just begun: %+v", s.Stopped)
	}
}
