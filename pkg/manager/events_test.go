package manager

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// eventStore notes what is stored, and fails as long as it is away.
type eventStore struct {
	mu     sync.Mutex
	away   bool
	tries  int
	stored []string
	begun  time.Time
	meanTo func()
}

func (s *eventStore) put(_ context.Context, _ cluster.NodeID, _ time.Time, events []catalog.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tries++
	if s.meanTo != nil {
		s.meanTo()
	}
	if s.away {
		return errors.New("the store is away")
	}
	var texts []string
	for _, e := range events {
		if e.Missed > 0 {
			texts = append(texts, fmt.Sprintf("(%d missed)", e.Missed))
		}
		texts = append(texts, e.Text)
	}
	s.stored = append(s.stored, time.Since(s.begun).Truncate(time.Second).String()+" "+strings.Join(texts, " "))
	return nil
}

// look reads or changes what the event log uses, too.
func (s *eventStore) look(l *eventLog, f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}

// watchEvents runs an event log within a bubble of synctest.
func watchEvents(t *testing.T) (*eventLog, *eventStore, func()) {
	s := &eventStore{begun: time.Now()}
	l := newEventLog(Config{Self: "a"})
	l.put = s.put
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); l.run(ctx) }()
	return l, s, func() { cancel(); <-done }
}

func text(s string) catalog.Event { return catalog.Event{Kind: catalog.EventDecision, Text: s} }

// after lets time pass; within a bubble that takes none.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// TestEventsTogether: what somebody may wait for is stored within seconds, with what came before; what nobody waits for within an hour;
// and what is left when the manager ends.
func TestEventsTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s, end := watchEvents(t)
		l.add(text("routine"), false)
		after(10 * time.Minute)
		l.add(text("one"), true)
		after(time.Second)
		l.add(text("two"), true)
		after(time.Minute)
		l.add(text("more routine"), false)
		after(61 * time.Minute)
		l.add(text("last"), false)
		after(0)
		end()
		want := "10m10s routine one two, 1h11m1s more routine, 1h12m1s last"
		if got := strings.Join(s.stored, ", "); got != want {
			t.Errorf("stored %s; want %s", got, want)
		}
	})
}

// TestEventsWithoutStore: while the store is away, tries get rare and memory stays bounded; afterwards the newest events are stored once,
// with how many were missed.
func TestEventsWithoutStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s, end := watchEvents(t)
		defer end()
		s.look(l, func() { s.away = true })
		for i := range 3 * eventsHeld {
			l.add(text(fmt.Sprint(i)), true)
			after(time.Minute)
		}
		s.look(l, func() {
			if len(l.waiting) != eventsHeld || s.tries > 3*eventsHeld/10+20 || s.tries < 20 {
				t.Errorf("%d events wait, after %d tries in %d minutes", len(l.waiting), s.tries, 3*eventsHeld)
			}
			s.away = false
		})
		for i := range 11 { // news don't put the next try off
			l.add(text(fmt.Sprint("new", i)), true)
			after(time.Minute)
		}
		s.look(l, func() {
			if len(s.stored) < 1 || !strings.Contains(s.stored[0], " missed) ") || l.missed != 0 ||
				!strings.HasSuffix(s.stored[len(s.stored)-1], " new10") || len(l.waiting) != 0 {
				t.Errorf("stored %.60q…, %d wait, %d missed", s.stored, len(l.waiting), l.missed)
			}
		})
	})
}

// TestEventsMeanwhile: what comes while others are stored is stored the next time, and none twice, even if there are very many.
func TestEventsMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s, end := watchEvents(t)
		defer end()
		s.look(l, func() {
			s.meanTo = func() {
				s.meanTo = nil
				for i := range eventsHeld + 5 {
					l.add(text(fmt.Sprint("m", i)), true)
				}
			}
		})
		l.add(text("first"), true)
		after(time.Minute)
		s.look(l, func() {
			if len(s.stored) != 2 || s.stored[0] != "10s first" || !strings.HasPrefix(s.stored[1], "20s (5 missed) m5 ") {
				t.Errorf("stored %.200q", s.stored)
			}
		})
	})
}

// TestEventsAreBounded: a cluster that has news all the time writes no more than an object a minute.
func TestEventsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s, end := watchEvents(t)
		defer end()
		for i := range 2 * 3600 {
			l.add(text(fmt.Sprint(i)), true)
			after(time.Second)
		}
		s.look(l, func() {
			if n := len(s.stored); n < eventsHour || n > 2*eventsHour+1 {
				t.Errorf("%d objects in two hours", n)
			}
		})
	})
}

// TestEventKinds: which decisions are events, and that attentions are told once, also if something is done in between, and when they are over.
func TestEventKinds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		l := newEventLog(Config{Self: "a", Tell: func(e catalog.Event) {
			told = append(told, fmt.Sprintf("%s|%s|%s|%s", e.Kind, e.Phase, e.Subject, e.Text))
		}})
		l.decided(3, plan.Decision{}, "nothing")
		l.decided(3, plan.Decision{Do: model.TakeBackup{}}, "told by backups")
		l.decided(3, plan.Decision{Do: model.StopMember{Node: "b"}}, "a reason")
		lost := cluster.Attention{Kind: cluster.AttentionQuorum, Node: "b", Text: "gone", Command: "x"}
		l.attentions(3, []cluster.Attention{lost})
		lost.Text = "gone for longer"
		l.attentions(3, []cluster.Attention{lost})
		l.attentions(3, nil) // as while a backup is begun
		time.Sleep(time.Minute)
		l.attentions(3, nil)
		l.attentions(3, []cluster.Attention{lost})
		time.Sleep(time.Hour)
		l.attentions(3, nil)
		time.Sleep(overAfter)
		l.attentions(3, nil)
		l.attentions(3, []cluster.Attention{lost})
		l.led(4, catalog.EventBegun, "leads", nil) // another term tells anew
		l.attentions(4, []cluster.Attention{lost})
		subject := string(cluster.AttentionQuorum) + " b"
		want := []string{"decision||stop-member b|a reason", "attention|begun|" + subject + "|…gone [", "attention|done|" + subject + "|over: ",
			"attention|begun|" + subject + "|…longer", "leader|begun|a|leads", "attention|begun|" + subject + "|…longer"}
		if len(told) != len(want) {
			t.Fatalf("told %q", told)
		}
		for i, w := range want {
			begin, part, _ := strings.Cut(w, "…")
			if !strings.HasPrefix(told[i], begin) || !strings.Contains(told[i], part) {
				t.Errorf("event %d is %q; want %q", i, told[i], w)
			}
		}
	})
}

// TestAttentionNamesTheStore: what a person reads, in the log, in events and on pages, can be copied as it is.
func TestAttentionNamesTheStore(t *testing.T) {
	m := &Manager{cfg: Config{Self: "a", StoreName: "s3://b/main"}, attention: map[attentionKey]time.Time{}}
	list := m.noted(scopeLeader, []cluster.Attention{{Kind: cluster.AttentionQuorum, Text: "etcd has no quorum",
		Command: "etcd-manager-ctl --backup-store=URL recover --from-survivor"}})
	if len(list) != 1 || list[0].Command != "etcd-manager-ctl --backup-store=s3://b/main recover --from-survivor" {
		t.Errorf("%+v", list)
	}
	if got := m.sizeCommand(); got != "etcd-manager-ctl --backup-store=s3://b/main configure-cluster --member-count=3" {
		t.Errorf("%s", got)
	}
}

// TestOverUnderAnotherLeader: what one leader tells is told to be over by the next one, once, whoever that is; what still holds isn't.
func TestOverUnderAnotherLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		l := newEventLog(Config{Self: "b", Tell: func(e catalog.Event) {
			if e.Kind == catalog.EventAttention {
				told = append(told, fmt.Sprintf("%d %s %s", e.Term, e.Phase, e.Subject))
			}
		}})
		lost := cluster.Attention{Kind: cluster.AttentionQuorum, Text: "gone"}
		full := cluster.Attention{Kind: cluster.AttentionDisk, Node: "c", Text: "full"}
		old := cluster.Attention{Kind: cluster.AttentionVersion, Text: "long over"}
		look := func(term cluster.Term, list ...cluster.Attention) {
			for range 3 {
				l.attentions(term, list)
				time.Sleep(overAfter)
			}
		}
		l.led(4, catalog.EventBegun, "leads", &Summary{Term: 3, Attention: []cluster.Attention{lost, full}})
		look(4, full)
		l.led(4, catalog.EventDone, "leads no more", nil)
		l.led(6, catalog.EventBegun, "leads again, at once", &Summary{Term: 2, Attention: []cluster.Attention{old}})
		look(6)
		l.led(6, catalog.EventDone, "leads no more", nil)
		l.led(9, catalog.EventBegun, "leads again, after another", &Summary{Term: 8})
		look(9, lost)
		want := "4 begun disk-full c, 4 done quorum-lost, 6 done disk-full c, 9 begun quorum-lost"
		if got := strings.Join(told, ", "); got != want {
			t.Errorf("told %s; want %s", got, want)
		}
	})
}
