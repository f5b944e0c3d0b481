package manager

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// shown is what the leader has in the store; nil if nothing.
func (w *world) shown() *catalog.Status {
	_, s, problem, err := w.catalog.LeaderStatus(w.t.Context())
	if errors.Is(err, catalog.ErrNotFound) {
		return nil
	}
	must(w.t, err)
	must(w.t, problem)
	return s
}

// TestLeaderShowsWhatItKnows: what the leader knows goes with its heartbeat, once a minute, and earlier when there is news.
func TestLeaderShowsWhatItKnows(t *testing.T) {
	inWorld(t, func(w *world) {
		w.backUp(time.Minute)
		var writes atomic.Int64
		w.store.set(func(op, key string) (error, bool) {
			if op == "put" && key == "control/leader" {
				writes.Add(1)
			}
			return nil, false
		})
		w.lead(4)
		w.until("a status", func() bool { s := w.shown(); return s != nil && len(s.Nodes) == 3 && !s.Backups.Newest.IsZero() })
		s := w.shown()
		if s.Node != "a" || !s.Leading || s.Term != 4 || s.Wanted != 3 ||
			s.Nodes[0].Role != catalog.RoleLeader || s.Nodes[1].Role != catalog.RoleFollower ||
			s.Nodes[1].Revision != 100 || s.Nodes[2].DiskFree != 1<<40 || s.Backups.IntervalSeconds == 0 {
			w.t.Errorf("shown is %+v", s)
		}
		w.after(time.Minute)
		writes.Store(0)
		w.after(5 * time.Minute)
		if n := writes.Load(); n < 4 || n > 6 {
			w.t.Errorf("%d writes in five minutes without news", n)
		}
		began := time.Now()
		w.change("c", func(s *cluster.NodeStatus) { s.Etcd.Healthy, s.Etcd.Error = false, "it is gone" })
		w.until("the news", func() bool { s := w.shown(); return !s.Nodes[2].Healthy && s.Nodes[2].Error == "it is gone" })
		if d := time.Since(began); d > 45*time.Second {
			w.t.Errorf("the news took %s", d)
		}
		// What changes to and fro isn't written each time.
		writes.Store(0)
		for i := range 60 {
			w.change("c", func(s *cluster.NodeStatus) { s.Etcd.Healthy = i%2 == 0 })
			w.after(time.Second)
		}
		if n := writes.Load(); n > 7 {
			w.t.Errorf("%d writes in a minute", n)
		}
	})
}

// TestShowingCostsNoRequest counts what an idle leader asks of the store: what it shows goes with the heartbeat that was there before.
func TestShowingCostsNoRequest(t *testing.T) {
	inWorld(t, func(w *world) {
		w.backUp(time.Minute)
		w.lead(4)
		w.until("a status", func() bool { s := w.shown(); return s != nil && !s.Backups.Newest.IsZero() })
		w.after(2 * time.Minute)
		var mu sync.Mutex
		counts := map[string]int{}
		w.store.set(func(op, key string) (error, bool) {
			mu.Lock()
			defer mu.Unlock()
			counts[op+" "+key]++
			return nil, false
		})
		w.after(10 * time.Minute)
		mu.Lock()
		defer mu.Unlock()
		if lists, puts := counts["list control/"], counts["put control/leader"]; lists < 18 || lists > 21 || puts < 8 || puts > 11 || len(counts) != 2 {
			w.t.Errorf("in ten minutes: %v", counts)
		}
	})
}

// TestNodeShowsWithoutLeader: a node shows what it sees while no leader does, and takes it back afterwards.
func TestNodeShowsWithoutLeader(t *testing.T) {
	inWorld(t, func(w *world) {
		w.backUp(time.Minute)
		ctx, end := context.WithCancel(w.t.Context())
		defer end()
		w.lead(4)
		w.stop()
		m := w.manager
		m.cfg.Node = func(context.Context) cluster.NodeStatus {
			w.mu.Lock()
			defer w.mu.Unlock()
			return *w.nodes["a"]
		}
		var writes atomic.Int64
		w.store.set(func(op, key string) (error, bool) {
			if op == "put" && key == "control/status/a.json" {
				writes.Add(1)
			}
			return nil, false
		})
		done := make(chan struct{})
		go func() { defer close(done); m.keepStatus(ctx) }()
		defer func() { end(); <-done }()
		w.until("the node's status", func() bool { _, err := w.catalog.Status(ctx, "a"); return err == nil })
		s, err := w.catalog.Status(ctx, "a")
		must(w.t, err)
		if s.Leading || len(s.Nodes) != 1 || s.Nodes[0].Version != "3.6.0" {
			w.t.Errorf("it shows %+v", s)
		}
		writes.Store(0)
		w.after(5 * time.Minute)
		if n := writes.Load(); n < 4 || n > 6 {
			w.t.Errorf("%d writes in five minutes without news", n)
		}
		l, err := w.catalog.ControlListing(ctx)
		must(w.t, err)
		if len(l.Statuses) != 1 || l.Statuses[0].Name != "a" || len(l.Unknown) > 0 {
			w.t.Errorf("listed are %+v", l)
		}
		m.mu.Lock()
		m.report.Leading, m.shownAt = true, time.Now().Add(time.Minute)
		m.mu.Unlock()
		w.until("the status is taken back", func() bool { _, err := w.catalog.Status(ctx, "a"); return errors.Is(err, catalog.ErrNotFound) })
	})
}

// TestDamagedStatusStopsNothing: whatever stands in place of a status, the leader record fences as before.
func TestDamagedStatusStopsNothing(t *testing.T) {
	inWorld(t, func(w *world) {
		w.backUp(time.Minute)
		for _, status := range []string{`"text"`, `[1]`, `{"version":99}`, `{"version":1,"nodes":"x"}`, `7`} {
			put(w, "control/leader", `{"version":1,"term":3,"node":"b","instance":"x","timestamp":"2026-01-01T00:00:00Z","status":`+status+`}`)
			if _, s, problem, err := w.catalog.LeaderStatus(w.t.Context()); err != nil || s != nil || problem == nil {
				w.t.Errorf("%s: %v, %v, %v", status, s, problem, err)
			}
		}
		put(w, "control/status/b.json", "damaged")
		w.lead(5)
		w.until("a status", func() bool { s := w.shown(); return s != nil && s.Term == 5 })
		if o := w.manager.Outlook(); len(o.Attention) > 0 {
			w.t.Errorf("a person is called: %v", o.Attention)
		}
	})
}

// TestStatusesOfNodesThatAreGone: what a node has left in the store goes when the record of the node does.
func TestStatusesOfNodesThatAreGone(t *testing.T) {
	inWorld(t, func(w *world) {
		must(w.t, w.catalog.PutStatus(w.t.Context(), catalog.Status{Node: "old"}))
		w.after(50 * time.Hour)
		put(w, "discovery/a", `{"nodeId":"a"}`)
		must(w.t, w.catalog.PutStatus(w.t.Context(), catalog.Status{Node: "b"}))
		w.lead(4)
		l := newLeadership(w.manager, 4)
		must(w.t, l.cleaner.removeGone(w.t.Context()))
		list, err := w.catalog.Statuses(w.t.Context())
		must(w.t, err)
		if len(list) != 1 || list[0].Name != "b" {
			w.t.Errorf("there are %+v", list)
		}
	})
}

func put(w *world, key, text string) {
	w.t.Helper()
	_, err := w.store.Put(w.t.Context(), key, strings.NewReader(text), blob.PutOptions{})
	must(w.t, err)
}
