package chaos

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// world is a cluster whose restores are disturbed, and the history of its clients.
type world struct {
	t    *testing.T
	c    *harness.Cluster
	h    *history
	rand *rand.Rand
	eras []era
	// ops are the restores that have ended, oldest first.
	ops []catalog.Operation
}

// when says at which moment something breaks: before the command ("before"), or when the restore is in a state.
func moments() []string {
	return []string{"before", string(catalog.StateProving), string(catalog.StateStaging), string(catalog.StateSaving),
		string(catalog.StateStopping),
		string(catalog.StateSwitching), string(catalog.StateVerifying)}
}

// TestRestores disturbs restores of every kind at every step, with clients that write and read all the time, and judges by their history.
func TestRestores(t *testing.T) {
	testutil.Long(t)
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("-seed=%d", s)
	c := harness.Start(t, harness.Options{Isolated: true, IsolatedS3: true, BackupInterval: 20 * time.Second,
		Args: []string{"--change-log-interval=500ms", "--queue-poll-interval=300ms"}})
	w := &world{t: t, c: c, h: newHistory(), rand: rand.New(rand.NewPCG(s, 1))}
	c.WaitBackups(1)
	w.eras = []era{{Cluster: w.cluster(), Call: 0}}
	cl := startClients(c, w.h, s)
	defer cl.end()
	began := time.Now()
	ends := map[string]int{}
	n := 0
	for ; n < *rounds || time.Since(began) < *minutes; n++ {
		ends[w.round()]++
		if t.Failed() {
			break
		}
	}
	cl.end()
	v := judge(w.h.copy(), w.eras)
	t.Logf("%d restores in %s: %v; %d requests judged for linearizability, %d acknowledged writes compared with what was brought back, %d violations", n,
		time.Since(began).Round(time.Second), ends, v.Judged, v.Writes, len(v.Violations))
	for _, x := range v.Violations {
		t.Error(x)
	}
}

// round restores once, breaks something meanwhile, and returns how it ended.
func (w *world) round() string {
	t, c := w.t, w.c
	t.Helper()
	args, what := w.choose()
	fs := faults()
	f, moment, lasts := fs[w.rand.IntN(len(fs))], moments()[w.rand.IntN(len(moments()))], lasting(w.rand)
	w.load()
	mend := func() {}
	if moment == "before" {
		mend = f.do(w)
		w.pause(3 * time.Second)
		if strings.HasPrefix(f.name, "store ") { // without it there is no command: it is back just before
			mend()
			mend = func() {}
			c.StartAll()
		}
	}
	promised := w.h.now()
	id := w.queue(args)
	started := time.Now()
	if moment != "before" && w.reaches(id, moment) {
		mend = f.do(w)
	}
	w.pause(lasts)
	mend()
	c.StartAll()
	op := w.ended(id)
	c.WaitHealthy(3)
	w.note(op, what, promised)
	t.Logf("%-28s %-10s %-48s for %4.1f s: %s after %s, nobody served for %s %s", what, moment, f.name, lasts.Seconds(),
		op.State, time.Since(started).Round(time.Millisecond),
		op.Outage.Round(time.Millisecond), op.Reason)
	return what[:strings.IndexByte(what+" ", ' ')] + " " + string(op.State)
}

// choose picks a kind of restore: the tool's arguments and words for it.
func (w *world) choose() (args []string, what string) {
	if len(w.ops) > 0 && w.rand.IntN(4) == 0 {
		return []string{"undo-restore", "--now", "--yes"}, "undo"
	}
	switch w.rand.IntN(4) {
	case 0:
		list := w.c.Backups()
		name := list[len(list)-1-w.rand.IntN(min(2, len(list)))].Name
		return []string{"restore-backup", name, "--now"}, "name " + name
	case 1:
		if r := w.archived(); r > 0 {
			return []string{"restore-backup", fmt.Sprintf("--to-revision=%d", r), "--now"}, fmt.Sprintf("revision %d", r)
		}
	}
	return []string{"restore-backup", "--latest", "--now"}, "latest"
}

// archived is a revision that can be reached: the store has a backup of the cluster that serves
// from before it, and the changes up to it. 0 if there is none.
func (w *world) archived() int64 {
	lead := w.c.Leader()
	if lead == nil {
		return 0
	}
	v, err := lead.Status(w.t.Context())
	if err != nil || v.Changes == nil {
		return 0
	}
	for _, b := range slices.Backward(w.c.Backups()) {
		m, err := w.c.Catalog.Manifest(w.t.Context(), b.Name)
		if err == nil && uint64(m.ClusterID) == w.eras[len(w.eras)-1].Cluster && max(m.Revision, m.RevisionAtMost) <= v.Changes.Archived {
			return v.Changes.Archived
		}
	}
	return 0
}

// queue runs the tool until it takes the command, and returns the operation's id. The tool needs the store only.
func (w *world) queue(args []string) string {
	t, c := w.t, w.c
	t.Helper()
	known := map[string]bool{}
	for _, op := range w.ops {
		known[op.ID] = true
	}
	id := ""
	c.WaitFor("the command "+strings.Join(args, " "), 2*time.Minute, func() string {
		out, errOut, code := c.Ctl(args...)
		if code != 0 {
			return fmt.Sprintf("exit code %d: %s%s", code, out, errOut)
		}
		id = w.newest(known)
		if id == "" {
			t.Fatalf("%v: the tool says that it was queued, and nothing is: %s", args, out)
		}
		return ""
	})
	return id
}

// newest is the id of the one restore that is not known yet, queued or begun.
func (w *world) newest(known map[string]bool) string {
	w.t.Helper()
	id := ""
	w.c.WaitFor("the store to tell what is queued", time.Minute, func() string {
		cmds, _, err := w.c.Catalog.Commands(w.t.Context())
		if err != nil {
			return err.Error()
		}
		ops, _, err := w.c.Catalog.Operations(w.t.Context())
		if err != nil {
			return err.Error()
		}
		for _, op := range ops {
			if op.Kind == catalog.KindRestore && !known[op.ID] {
				id = op.ID
			}
		}
		for _, cmd := range cmds {
			if cmd.Create == nil && !known[cmd.Name] {
				id = cmd.Name
			}
		}
		return ""
	})
	return id
}

// reaches waits until the restore is in a state, or over: false.
func (w *world) reaches(id, state string) bool {
	w.t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for time.Now().Before(deadline) {
		op, _, err := w.c.Catalog.Operation(w.t.Context(), id)
		if err == nil && (string(op.State) == state || op.State.Final()) {
			return string(op.State) == state
		}
		w.pause(time.Millisecond)
	}
	w.t.Fatalf("restore %s doesn't come to %s", id, state)
	return false
}

// ended waits for the end of a restore. The store may be away at first.
func (w *world) ended(id string) catalog.Operation {
	w.t.Helper()
	var op catalog.Operation
	w.c.WaitFor("the end of restore "+id, 5*time.Minute, func() string {
		var err error
		if op, _, err = w.c.Catalog.Operation(w.t.Context(), id); err != nil {
			return err.Error()
		}
		if op.Finished.IsZero() {
			return "it is " + string(op.State) + " " + op.Reason
		}
		return ""
	})
	w.ops = append(w.ops, op)
	return op
}

// note adds the era that a restore has begun.
func (w *world) note(op catalog.Operation, what string, promised int64) {
	w.t.Helper()
	now := w.cluster()
	last := w.eras[len(w.eras)-1]
	if op.State != catalog.StateDone {
		if now != last.Cluster {
			w.t.Errorf("%s ended as %s, and another cluster serves", what, op.State)
		}
		return
	}
	if now == last.Cluster {
		w.t.Errorf("%s is done, and the old cluster serves", what)
		return
	}
	e := era{Cluster: now, Content: w.content(op.StagedRevision), Call: promised, Return: w.h.now(), What: what, From: last.Cluster}
	switch {
	case what == "undo":
		e.From, e.Reached = w.eras[len(w.eras)-2].Cluster, math.MaxInt64
		// what was acknowledged when the undone restore was asked for, and then until etcd stopped,
		// which Reached judges
		e.Promised = last.Call
	case op.Target != nil:
		e.Reached = op.Target.Revision
		e.From = w.of(op.Target.Incarnation)
		if what == "latest" {
			e.Promised = promised
			if e.From != last.Cluster {
				w.t.Errorf("the latest state is of cluster %x; %x served", e.From, last.Cluster)
			}
		}
	default:
		m, err := w.c.Catalog.Manifest(w.t.Context(), op.Backup)
		must(w.t, err)
		e.From = uint64(m.ClusterID)
		e.Reached, e.AtMost = m.Revision, m.RevisionAtMost // a lower bound: the snapshot may have a little more
		for _, s := range e.Content {
			e.Reached = max(e.Reached, s.Revision)
		}
	}
	w.eras = append(w.eras, e)
}

// of finds the era of an incarnation.
func (w *world) of(i catalog.Incarnation) uint64 {
	w.t.Helper()
	j := slices.IndexFunc(w.eras, func(e era) bool { return catalog.IncarnationOf(e.Cluster) == i })
	if j < 0 {
		w.t.Fatalf("incarnation %s is of no cluster that ever served", i)
	}
	return w.eras[j].Cluster
}

// cluster is the id of the etcd cluster that serves.
func (w *world) cluster() uint64 {
	w.t.Helper()
	client := w.c.Client()
	defer client.Close()
	var id uint64
	w.c.WaitFor("an answer of etcd", time.Minute, func() string {
		ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
		defer cancel()
		r, err := client.Get(ctx, prefix)
		if err != nil {
			return err.Error()
		}
		id = r.Header.ClusterId
		return ""
	})
	return id
}

// content reads what was restored, as it was before anybody could write to it.
func (w *world) content(revision int64) map[string]stored {
	w.t.Helper()
	client := w.c.Client()
	defer client.Close()
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	r, err := client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(revision))
	must(w.t, err)
	got := map[string]stored{}
	for _, kv := range r.Kvs {
		got[string(kv.Key)] = stored{string(kv.Value), kv.ModRevision}
	}
	return got
}

// pause lets time pass while clients work and things stay broken: what is measured here is what happens in a time.
func (w *world) pause(d time.Duration) {
	select {
	case <-w.t.Context().Done():
	case <-time.After(d):
	}
}

// load waits until clients have been answered for a while.
func (w *world) load() {
	w.t.Helper()
	from := len(w.h.copy())
	w.c.WaitFor("some load", time.Minute, func() string {
		if n := len(w.h.copy()) - from; n < 300 {
			return fmt.Sprintf("%d requests", n)
		}
		return ""
	})
}
