package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// shut has a member's client URLs closed, which the leader opens by having the node start etcd
// anew.
func shut(s *cluster.NodeStatus) { s.State.Quarantined, s.Etcd.Quarantined = true, true }

// TestOnceABackOff: an action that fails is tried once each time that it is due, though every node
// wakes the loop all the while. When it succeeds the loop rests.
func TestOnceABackOff(t *testing.T) {
	inWorld(t, func(w *world) {
		w.backUp(time.Minute)
		w.wakeEvery = 50 * time.Millisecond
		w.change("b", shut)
		w.set(func(context.Context, request) error { return status.Error(codes.Unavailable, "no") })
		w.lead(4)
		w.after(time.Minute)
		tries := w.requests("start_etcd")
		if n := len(tries); n < 8 || n > 14 {
			t.Errorf("it was tried %d times in a minute", n)
		}
		want := attemptFirst
		for i := 1; i < len(tries); i++ {
			if gap := tries[i].at.Sub(tries[i-1].at); gap < want || tries[i].node != "b" {
				t.Errorf("attempt %d came %s after the one before, on node %s; want %s", i, gap, tries[i].node, want)
			}
			want = min(2*want, attemptLongest)
		}
		w.set(nil)
		w.until("the member is open", func() (open bool) {
			w.change("b", func(s *cluster.NodeStatus) { open = !s.Etcd.Quarantined })
			return open
		})
		before := len(w.requests(""))
		w.after(time.Minute)
		if after := w.whats(); len(after) > before {
			t.Errorf("nothing is left to do, and the nodes were asked %v", after[before:])
		}
	})
}

// TestALowerTermEndsIt: once a node obeys another leader, this one steps down and asks nothing
// more.
func TestALowerTermEndsIt(t *testing.T) {
	inWorld(t, func(w *world) {
		w.backUp(time.Minute)
		w.change("b", shut)
		w.set(func(context.Context, request) error {
			return status.Error(codes.Aborted, "the node obeys term 5 of node c")
		})
		w.lead(4)
		w.ends()
		if !slices.Equal(w.exceeded, []cluster.Term{4}) {
			t.Errorf("it gave up the terms %v", w.exceeded)
		}
		w.after(time.Minute)
		if asked := w.whats(); len(asked) != 1 {
			t.Errorf("after it had been refused it asked %v", asked)
		}
	})
}

// TestTheStoreFences: a term that another leader has written between this one's observation and its
// step ends it before any node is asked, and a restore isn't begun.
func TestTheStoreFences(t *testing.T) {
	inWorld(t, func(w *world) {
		w.lead(4)
		w.until("the term is in the store", func() bool {
			r, _, err := w.catalog.Leader(t.Context())
			return err == nil && r.Term == 4
		})
		w.until("the first backup is there", func() bool { return len(w.requests("take_backup")) == 1 })
		w.after(time.Second)
		// The queue is read, and the rival writes before the step is fenced.
		w.queue(w.backUp(time.Minute))
		written := false
		w.store.set(func(op, key string) (error, bool) {
			if op == "put" && strings.HasSuffix(key, "control/leader") && !written {
				written = true
				_, err := catalog.New(w.store.Store).TakeTerm(t.Context(), 7, "c", "x")
				must(t, err)
			}
			return nil, false
		})
		w.ends()
		if !written || !slices.Equal(w.exceeded, []cluster.Term{7}) {
			t.Errorf("the rival has written: %t; it steps down from what knows terms %v", written, w.exceeded)
		}
		ops, _, err := w.catalog.Operations(t.Context())
		if err != nil || len(ops) > 0 || len(w.requests("prove")) > 0 {
			t.Errorf("a restore was begun in spite of the other leader: %v, %v; the nodes were asked %v", ops, err, w.whats())
		}
	})
}

// queue queues a restore and returns its command.
func (w *world) queue(backup string) catalog.Command {
	w.t.Helper()
	c, err := w.catalog.QueueRestore(w.t.Context(), backup, cluster.Spec{MemberCount: 3, EtcdVersion: "3.6.0"}, catalog.RestoreOptions{Now: true})
	must(w.t, err)
	return c
}

// operation is the only record there is, nil if there is none.
func (w *world) operation() *catalog.Operation {
	w.t.Helper()
	ops, _, err := w.catalog.Operations(w.t.Context())
	must(w.t, err)
	switch len(ops) {
	case 0:
		return nil
	case 1:
		return &ops[0]
	}
	w.t.Fatalf("there are %d records of one restore", len(ops))
	return nil
}

func (w *world) commands() int {
	l, err := w.catalog.ControlListing(w.t.Context())
	must(w.t, err)
	return len(l.Commands)
}

// TestACommandBecomesAnOperation: a queued restore has its record in the store before the first
// node is asked to do anything for it, and each step has its state there when it begins. In the end
// the command is gone, the marker names the new cluster, and each node was stopped once.
func TestACommandBecomesAnOperation(t *testing.T) {
	inWorld(t, func(w *world) {
		command := w.queue(w.backUp(time.Minute))
		states := map[string]catalog.OperationState{"prove": catalog.StateProving, "stage": catalog.StateStaging,
			"take_backup": catalog.StateSaving, "stop": catalog.StateStopping, "switch": catalog.StateSwitching,
			"verify": catalog.StateVerifying}
		w.set(func(_ context.Context, r request) error {
			want, ok := states[r.what]
			op := w.operation()
			if !ok || r.what == "take_backup" && op != nil && op.State.Final() {
				return nil // the one after a restore
			}
			if op == nil || op.State != want || op.ID != command.Name || op.Term != 4 {
				t.Errorf("node %s is asked to %s, and the record is %+v", r.node, r.what, op)
			}
			return nil
		})
		w.lead(4)
		w.restored(command)
		for what, want := range map[string]int{"prove": 3, "stage": 3, "take_backup": 1, "stop": 3, "switch": 3, "verify": 3} {
			if n := len(w.requests(what)); n != want && what != "take_backup" || n < want {
				t.Errorf("the nodes were asked %d times to %s; want %d", n, what, want)
			}
		}
	})
}

// restored waits for the end of a restore, and looks whether the books are closed.
func (w *world) restored(command catalog.Command) {
	w.t.Helper()
	w.until("the restore is done", func() bool {
		op := w.operation()
		return op != nil && op.State.Final() && w.commands() == 0
	})
	op := w.operation()
	m, _, err := w.catalog.Marker(w.t.Context())
	if err != nil || op.State != catalog.StateDone || m.Token != op.NewToken || m.Phase != catalog.PhaseFormed {
		w.t.Errorf("the operation is %s (%s), for cluster %s; the marker is %+v, %v", op.State, op.Reason, op.NewToken, m, err)
	}
	w.until("nothing is left on the nodes", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, s := range w.nodes {
			if s.Operation != "" || s.State.Token != op.NewToken {
				return false
			}
		}
		return true
	})
}

// TestDiesAtEachWrite kills the leader at each of its writes to the store while it restores, before
// the write takes place and after. Whoever leads next ends the restore, and it happens once: there
// is one record, and nothing more is stopped.
func TestDiesAtEachWrite(t *testing.T) {
	for _, done := range []bool{false, true} {
		died := true
		for n := 1; died; n++ {
			var at string
			died = t.Run(fmt.Sprintf("write %d, done %t", n, done), func(t *testing.T) {
				inWorld(t, func(w *world) { at = diesAt(w, n, done) })
			}) && at != ""
			if n < 12 && !died {
				t.Fatalf("a restore has more writes than %d", n)
			}
		}
	}
}

// diesAt kills the leader at a write while it restores, and returns which one that was; empty if
// there were less.
func diesAt(w *world, n int, done bool) (at string) {
	command := w.queue(w.backUp(time.Minute))
	dead := make(chan struct{})
	writes := 0
	var mu sync.Mutex
	w.store.set(func(op, key string) (error, bool) {
		mu.Lock()
		defer mu.Unlock()
		if op != "put" && op != "purge" || !strings.HasPrefix(key, "control/") || strings.HasPrefix(key, "control/probe/") {
			return nil, false
		}
		if writes++; writes == n {
			at = op + " " + key
			w.Exceed(0)
			close(dead)
		}
		if writes >= n {
			return errors.New("the process is gone"), done && writes == n
		}
		return nil, false
	})
	w.lead(4)
	select {
	case <-dead:
		w.ends()
	case <-time.After(10 * time.Minute):
	}
	w.store.set(nil)
	w.lead(5)
	w.restored(command)
	before := len(w.requests("stop"))
	w.after(time.Minute)
	if n := len(w.requests("stop")) - before; n > 0 || w.operation().ID != command.Name {
		w.t.Errorf("it died at %s; after the restore %d nodes were stopped, and the record is %s", at, n, w.operation().ID)
	}
	w.t.Logf("it died at %s", at)
	return at
}

// TestLosesTheLeadInTheMiddle: a leader whose leadership ends while nodes are at a step asks
// nothing more of any node, whether it is told so or was held up and only its lease has ended. The
// next one goes on from there.
func TestLosesTheLeadInTheMiddle(t *testing.T) {
	for _, step := range []string{"prove", "stage", "take_backup", "stop", "switch", "verify"} {
		for _, told := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, told %t", step, told), func(t *testing.T) {
				inWorld(t, func(w *world) {
					command := w.queue(w.backUp(time.Minute))
					w.set(func(_ context.Context, r request) error {
						switch {
						case r.what != step:
						case told:
							w.Exceed(0)
						default:
							w.mu.Lock()
							w.leads = false
							w.mu.Unlock()
						}
						return nil
					})
					w.lead(4)
					w.ends()
					asked := w.requests("")
					if last := asked[len(asked)-1]; last.what != step {
						t.Errorf("it asked for %s after it had lost the lead at %s", last.what, step)
					}
					w.set(nil)
					w.after(time.Minute)
					if more := w.whats(); len(more) > len(asked) {
						t.Errorf("nobody leads, and the nodes were asked %v", more[len(asked):])
					}
					w.lead(5)
					w.restored(command)
				})
			})
		}
	}
}

// TestTheStoreIsAway: while the store is away what raft makes safe goes on, and nothing begins that
// the store has to know of. When it is back all goes on, and a backup that was due meanwhile is
// taken once.
func TestTheStoreIsAway(t *testing.T) {
	inWorld(t, func(w *world) {
		w.backUp(time.Minute)
		w.lead(4)
		w.after(time.Minute)
		w.store.set(func(op, key string) (error, bool) { return blobtest.Transient(op, key), false })
		w.change("b", shut)
		w.until("the store counts as away", func() bool { return w.manager.Report().StoreError != "" })
		w.until("the member is open", func() bool { return len(w.requests("start_etcd")) == 1 })
		w.after(30 * time.Minute)
		r := w.manager.Report()
		if !slices.ContainsFunc(r.Attention, func(a cluster.Attention) bool { return a.Kind == cluster.AttentionStore }) {
			t.Errorf("nobody is called: %v", r.Attention)
		}
		if asked := w.whats(); !slices.Equal(asked, []string{"b start_etcd"}) {
			t.Errorf("while the store is away the nodes were asked %v", asked)
		}
		w.store.set(nil)
		w.until("the backup that was due is taken", func() bool { return len(w.requests("take_backup")) > 0 })
		w.after(5 * time.Minute)
		if n := len(w.requests("take_backup")); n != 1 || w.manager.Report().StoreError != "" {
			t.Errorf("%d backups were taken; the report says %q", n, w.manager.Report().StoreError)
		}
	})
}

// TestPeriodicBackups: a backup is taken when the newest one in the store is as old as the
// interval, whoever took that; never a second one while one is being taken. The next one is taken
// between an interval after it was begun and an interval after it has ended.
func TestPeriodicBackups(t *testing.T) {
	inWorld(t, func(w *world) {
		w.backUp(10 * time.Minute)
		w.set(func(context.Context, request) error {
			time.Sleep(3 * time.Minute)
			return nil
		})
		begun := time.Now()
		w.lead(4)
		w.after(2 * time.Minute)
		w.lead(5) // a change of leader neither takes one nor leaves one out
		w.after(time.Until(begun.Add(30 * time.Minute)))
		var at []time.Duration
		for _, r := range w.requests("") {
			if r.what != "take_backup" || r.node == "a" {
				t.Errorf("node %s was asked to %s", r.node, r.what)
			}
			at = append(at, r.at.Sub(begun).Round(time.Second))
		}
		const slack = 4 * time.Second
		if len(at) != 2 || at[0] < 5*time.Minute || at[0] > 5*time.Minute+slack || at[1]-at[0] < 15*time.Minute || at[1]-at[0] > 15*time.Minute+slack {
			t.Errorf("backups were begun after %v; want one after 5m and one after 20m: the interval counts from the beginning", at)
		}
	})
}

// TestABackupOnDemandIsRecorded: the record of a backup that an operator asked for is there before
// its command is removed. If that fails only that is tried again, and no second backup is taken.
func TestABackupOnDemandIsRecorded(t *testing.T) {
	inWorld(t, func(w *world) {
		w.backUp(time.Minute)
		command, err := w.catalog.QueueCreateBackup(t.Context(), catalog.CreateBackup{Pin: true, Reason: "before work"})
		must(t, err)
		removals := 0
		w.store.set(func(op, key string) (error, bool) {
			if op != "purge" || !strings.Contains(key, command.Name) {
				return nil, false
			}
			r := w.operation()
			if r == nil || r.Kind != catalog.KindBackup || r.State != catalog.StateDone || r.Backup == "" {
				t.Errorf("the command is removed, and the record is %+v", r)
			}
			if removals++; removals <= 2 {
				return blobtest.Transient(op, key), false
			}
			return nil, false
		})
		w.lead(4)
		w.until("the command is gone", func() bool { return w.commands() == 0 })
		w.after(2 * time.Minute)
		if n := len(w.requests("take_backup")); n != 1 || removals != 3 {
			t.Errorf("%d backups were taken, and the command was removed %d times", n, removals)
		}
		if _, err := w.catalog.Pin(t.Context(), w.operation().Backup); err != nil {
			t.Errorf("the backup isn't pinned: %v", err)
		}
	})
}

// TestNodesThatFindOtherLeases: one node could not read what a segment says of leases. The restore ends before anything is stopped, and
// names both. Where all have found the same it goes on, and a node whose manager is too old to look counts for nothing.
func TestNodesThatFindOtherLeases(t *testing.T) {
	for _, other := range []bool{false, true} {
		inWorld(t, func(w *world) {
			w.oldManagers = map[cluster.NodeID]bool{"a": true}
			w.unknownLeases = func(id cluster.NodeID) string {
				if id == "c" && other {
					return "2 leases is unknown"
				}
				return "1 leases is unknown"
			}
			command := w.queue(w.backUp(time.Minute))
			w.lead(4)
			if !other {
				w.restored(command)
				if op := w.operation(); op.UnknownLeases != "1 leases is unknown" || slices.Contains(op.LeasesToldBy, "a") {
					t.Errorf("the record says %q, told by %v", op.UnknownLeases, op.LeasesToldBy)
				}
				return
			}
			w.until("the restore has ended", func() bool {
				op := w.operation()
				return op != nil && op.State.Final()
			})
			op := w.operation()
			if op.State != catalog.StateFailed || !strings.Contains(op.Reason, "1 leases") || !strings.Contains(op.Reason, "2 leases") ||
				len(w.requests("stop")) > 0 {
				t.Errorf("it ended as %s: %s; the nodes were asked %v", op.State, op.Reason, w.whats())
			}
		})
	}
}
