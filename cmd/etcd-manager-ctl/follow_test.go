package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

const (
	mib     = 1 << 20
	backup1 = "2026-01-30T01:02:03Z-000009"
)

func fetching(phase string, done int64) map[cluster.NodeID]catalog.Progress {
	return map[cluster.NodeID]catalog.Progress{
		"a": {Phase: phase, Done: done, Total: 100 * mib}, "b": {Phase: phase, Done: done / 2, Total: 100 * mib},
		"c": {Phase: phase, Done: done},
	}
}

// TestFollowToTheEnd follows one restore from the queue to its end, over a change of the leader.
func TestFollowToTheEnd(t *testing.T) {
	w := newWorld(t)
	w.spec(3, "3.5.21")
	w.goodBackup(backup1, "main", 1234, "periodic")
	const name = "2026-02-01T12:00:00Z-000000"
	var l *leader
	w.steps = []func(){
		func() { w.pass(time.Second) },
		func() { w.pass(20 * time.Second); l = w.begin(name, catalog.StateProving) },
		func() { w.pass(2 * time.Second); l.progress(fetching("fetch", 1*mib)) },
		func() { w.pass(2 * time.Second); l.progress(fetching("fetch", 2*mib)) },
		func() { w.pass(2 * time.Second); l.progress(fetching("fetch", 50*mib)) },
		func() { w.pass(2 * time.Second); l.progress(fetching("check", 100*mib)) },
		func() { w.pass(2 * time.Second); l.op.StagedRevision = 1000005679; l.advance(catalog.StateStaging, "") },
		func() { w.pass(time.Second); l.progress(fetching("stage", 10*mib)) },
		func() {
			w.pass(5 * time.Second)
			l.op.Leader, l.op.Term = "c", 8
			l.progress(fetching("stage", 80*mib))
		},
		func() { w.pass(61 * time.Second) },
		func() { w.pass(time.Second); l.advance(catalog.StateSaving, "") },
		func() {
			w.pass(time.Second)
			l.op.SafetyBackup = "2026-02-01T12:01:30Z-000000"
			l.advance(catalog.StateStopping, "")
		},
		func() { // two steps between two looks
			w.pass(700 * time.Millisecond)
			l.advance(catalog.StateSwitching, "")
			w.pass(300 * time.Millisecond)
			l.advance(catalog.StateVerifying, "")
		},
		func() {
			w.pass(3 * time.Second)
			l.op.Outage = 4200 * time.Millisecond
			l.advance(catalog.StateDone, "")
		},
	}
	w.do("restore-backup", backup1, "--wait")
	if len(w.steps) > 0 {
		t.Errorf("%d steps were not looked at", len(w.steps))
	}
	w.do("follow", name)
	w.do("describe-command", name)
	w.do("describe-command", name, "-o", "json")
	w.do("list-commands")
	w.golden("follow")
}

// TestFollowOtherEnds follows to every end that isn't a success; each has an exit code.
func TestFollowOtherEnds(t *testing.T) {
	w := newWorld(t)
	w.spec(3, "3.5.21")
	w.do("follow")
	w.do("follow", "2026-02-01T00:00:00Z-000000")
	w.ended("2026-01-30T00:00:00Z-000000", "failed", catalog.StateFailed,
		func(op *catalog.Operation) { op.Reason = "backup failed: cut short: etcd.backup.gz" })
	w.ended("2026-01-30T00:00:01Z-000000", "back", catalog.StateRolledBack, func(op *catalog.Operation) {
		op.Reason, op.Outage = "the restored cluster did not come up within 5m0s", 5*time.Minute+3*time.Second
	})
	w.ended("2026-01-30T00:00:02Z-000000", "early", catalog.StateSuperseded,
		func(op *catalog.Operation) { op.Reason = "superseded by 2026-01-30T00:00:03Z-000000" })
	w.do("follow", "2026-01-30T00:00:00Z-000000")
	w.do("follow", "2026-01-30T00:00:01Z-000000")
	w.do("follow", "2026-01-30T00:00:02Z-000000")
	w.do("follow", "2026-01-30T00:00:00Z-000000", "-o", "json")

	withdrawn := w.queue("withdrawn", catalog.RestoreOptions{Now: true})
	w.steps = []func(){func() { must(t, w.catalog().RemoveCommand(context.Background(), withdrawn)) }}
	w.do("follow")

	// One that fails at once: the record and the removal of the command come between two looks.
	refused := w.queue("refused", catalog.RestoreOptions{Now: true})
	w.steps = []func(){func() {
		w.ended(refused, "refused", catalog.StateFailed, func(op *catalog.Operation) { op.Reason = "backup refused: missing" })
		must(t, w.catalog().RemoveCommand(context.Background(), refused))
	}}
	w.do("follow", "refused")

	// Rolled back while somebody looks.
	w.pass(time.Minute)
	l := w.begin(w.queue(backup1, catalog.RestoreOptions{}), catalog.StateSwitching)
	w.steps = []func(){
		func() { w.pass(time.Second); l.op.Reason = "etcd on a doesn't start: exit code 1"; l.save() },
		func() {
			w.pass(time.Second)
			l.advance(catalog.StateReverting, "etcd on a doesn't start: exit code 1")
		},
		func() {
			w.pass(2 * time.Second)
			l.op.Outage = 4 * time.Second
			l.advance(catalog.StateRolledBack, "etcd on a doesn't start: exit code 1")
		},
	}
	w.do("follow")
	w.golden("ends")
}

// TestFollowWaiting tells what a waiting command waits for.
func TestFollowWaiting(t *testing.T) {
	w := newWorld(t)
	w.spec(3, "3.5.21")
	ctx := context.Background()
	_, err := w.catalog().TakeTerm(ctx, 4, "a", "i")
	must(t, err)
	first := w.begin(w.queue("first", catalog.RestoreOptions{}), catalog.StateStaging)
	w.pass(time.Second)
	second := w.queue("second", catalog.RestoreOptions{})
	w.steps = []func(){
		func() { w.pass(time.Second); first.advance(catalog.StateFailed, "node c went away") },
		func() { w.pass(4 * time.Minute) },
		func() { w.pass(time.Second); _, err := w.catalog().TakeTerm(ctx, 5, "b", "i"); must(t, err) },
		func() { w.queue("third", catalog.RestoreOptions{Now: true}) },
		func() {
			w.ended(second, "second", catalog.StateSuperseded, func(op *catalog.Operation) { op.Reason = "superseded by a later restore" })
			must(t, w.catalog().RemoveCommand(ctx, second))
		},
	}
	w.do("follow", second)
	w.do("follow")

	w = w.next() // where nobody has ever led
	w.queue("x", catalog.RestoreOptions{})
	w.steps = []func(){func() { w.pass(2 * time.Minute) }, func() { w.pass(time.Minute) }, func() { w.pass(time.Minute) }}
	w.do("follow")
	w.golden("waiting")
}

// TestFollowSaysWhatTheLeaderWaitsFor: a leader is there and doesn't begin, for example because a discovery record names a manager that
// nobody has heard of. What it says of that is told, once for each reason, and list-commands tells it too.
func TestFollowSaysWhatTheLeaderWaitsFor(t *testing.T) {
	w := newWorld(t)
	w.spec(3, "3.5.21")
	w.formed()
	h, err := w.catalog().TakeTerm(t.Context(), 4, "a", "i")
	must(t, err)
	says := func(doing string) func() {
		return func() {
			w.pass(40 * time.Second)
			h, err = w.catalog().TakeTerm(t.Context(), 4, "a", "i") // its clock is the one of now
			must(t, err)
			data, err := catalog.EncodeStatus(catalog.Status{At: w.now, ClusterName: "main", Node: "a", Leading: true, Leader: "a", Term: 4, Doing: doing})
			must(t, err)
			h.Show(data)
			must(t, h.Heartbeat(t.Context()))
		}
	}
	w.steps = []func(){
		says("waiting for node x, which has not answered for 40s"), // too early to ask
		says("waiting for node x, which has not answered for 1m20s"),
		says("waiting for node x, which has not answered for 2m0s"),
		says("the spec of the restore can't be had here"),
	}
	w.queue("first", catalog.RestoreOptions{Now: true})
	w.do("follow")
	out := w.log.String()
	if n := strings.Count(out, "node a leads, and says: waiting for node x, which has not answered for 1m20s"); n != 1 ||
		strings.Count(out, "and says:") != 2 || !strings.Contains(out, "and says: the spec of the restore can't be had here") {
		t.Errorf("it says\n%s", out)
	}
	w.do("list-commands")
	if out := strings.TrimPrefix(w.log.String(), out); !strings.Contains(out, "node a leads, and says: the spec of the restore") {
		t.Errorf("list-commands says\n%s", out)
	}
}

// TestFollowWhileTheStoreIsAway goes on when the store is back; it gives up only when it is
// interrupted, or after the timeout if one is given.
func TestFollowWhileTheStoreIsAway(t *testing.T) {
	w := newWorld(t)
	w.spec(3, "3.5.21")
	faulty := blobtest.NewFaulty(w.store)
	w.store = faulty
	away := blobtest.Fault{Op: "list", Err: blobtest.Transient("list", "control/")}
	name := w.queue(backup1, catalog.RestoreOptions{})
	l := w.begin(name, catalog.StateProving)
	w.steps = []func(){
		func() { w.pass(time.Second); faulty.Add(away) },
		func() { w.pass(20 * time.Minute) },
		func() {
			w.pass(time.Second)
			faulty.Heal()
			faulty.Add(blobtest.Fault{Op: "get", Times: 1, Err: blobtest.Transient("get", "x")})
			l.save()
		},
		func() { w.pass(time.Second) },
		func() { w.pass(time.Second); l.advance(catalog.StateStaging, "") },
	}
	w.do("follow", name)
	w.steps = []func(){
		func() { faulty.Add(away) },
		func() { w.pass(29 * time.Second) },
		func() { w.pass(time.Second) },
		func() { t.Error("it goes on after the timeout") },
	}
	w.do("follow", name, "--timeout=30s")
	w.do("follow", name)
	w.golden("away")
}

// TestFollowInterrupted is Ctrl-C in each situation.
func TestFollowInterrupted(t *testing.T) {
	w := newWorld(t)
	w.spec(3, "3.5.21")
	w.goodBackup(backup1, "main", 1234, "periodic")
	interrupt := func() {
		ctx, cancel := context.WithCancel(t.Context())
		w.ctx, w.steps = ctx, []func(){cancel}
	}
	interrupt()
	w.do("restore-backup", backup1, "--now", "--wait")
	w.ctx = t.Context()
	l := w.begin("2026-02-01T12:00:00Z-000000", catalog.StateStaging)
	interrupt()
	w.do("follow")
	w.ctx = t.Context()
	l.advance(catalog.StateStopping, "")
	interrupt()
	w.do("follow")
	w.golden("interrupted")
}

// TestFollowFileStore moves the directory of a store away and back: an unmounted disk is no withdrawal.
func TestFollowFileStore(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(t.TempDir(), "store")
	if code, _, errOut := w.exec("--backup-store="+dir, "configure-cluster", "--member-count=1"); code != 0 {
		t.Fatal(errOut)
	}
	mem := w.store
	for name, away := range map[string]func(){
		"gone":  func() { must(t, os.Rename(dir, dir+".away")) },
		"empty": func() { must(t, os.Rename(dir, dir+".away")); must(t, os.Mkdir(dir, 0o700)) },
	} {
		w.store = openFile(t, dir)
		cmd := w.queue("x", catalog.RestoreOptions{})
		w.store = mem
		w.steps = []func(){
			away,
			func() {},
			func() { _ = os.Remove(dir); must(t, os.Rename(dir+".away", dir)) },
			func() { must(t, os.RemoveAll(filepath.Join(dir, "control", cmd))) },
		}
		code, out, errOut := w.exec("--backup-store="+dir, "follow", cmd)
		if code != exitNotDone || strings.Count(out, "doesn't answer") != 1 ||
			!strings.Contains(out, "answers again") || !strings.Contains(errOut, "withdrawn") {
			t.Errorf("%s: %d %s%s", name, code, out, errOut)
		}
	}
}

// TestFollowJSON leaves the standard output to JSON alone.
func TestFollowJSON(t *testing.T) {
	w := newWorld(t)
	w.spec(3, "3.5.21")
	w.goodBackup(backup1, "main", 1234, "periodic")
	w.steps = []func(){
		func() { w.begin("2026-02-01T12:00:00Z-000000", catalog.StateVerifying).advance(catalog.StateDone, "") },
	}
	w.do("restore-backup", backup1, "--now", "--wait", "-o", "json")
	w.golden("follow-json")
}

// TestFollowLostRecord: a record that was there and isn't any more is no end.
func TestFollowLostRecord(t *testing.T) {
	w := newWorld(t)
	w.spec(3, "3.5.21")
	l := w.begin(w.queue("x", catalog.RestoreOptions{}), catalog.StateStaging)
	w.steps = []func(){func() {
		must(t, w.catalog().RemoveCommand(context.Background(), l.op.Command))
		_, err := w.store.Purge(context.Background(), "control/operations/", func(string) bool { return true })
		must(t, err)
	}}
	code, out, _ := w.exec("--backup-store=mem://x", "follow")
	if code != exitUnfollowed || !strings.Contains(out, "the record of operation "+l.op.ID+" is gone from it") {
		t.Errorf("%d %s", code, out)
	}
}

// TestFollowUnreadable: a record that can't be read doesn't become readable by waiting.
func TestFollowUnreadable(t *testing.T) {
	w := newWorld(t)
	w.spec(3, "3.5.21")
	l := w.begin(w.queue("x", catalog.RestoreOptions{}), catalog.StateStaging)
	w.steps = []func(){func() { w.put("control/operations/"+l.op.ID+".json", `{"version":9}`) }, func() { t.Error("it goes on") }}
	if code, _, errOut := w.exec("--backup-store=mem://x", "follow"); code != exitFailure || !strings.Contains(errOut, "a newer version") {
		t.Errorf("%d %s", code, errOut)
	}
}
