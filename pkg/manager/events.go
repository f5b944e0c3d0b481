package manager

import (
	"context"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	"github.com/etcd-manager/etcd-manager/pkg/repeat"
)

// How events are stored: together, so that an idle cluster costs no request of its own, and a busy one few.
const (
	// eventsSoon is how long an event waits for others, eventsLater one that nobody waits for.
	eventsSoon  = 10 * time.Second
	eventsLater = time.Hour
	// eventsHeld is how many are held while the store is away. eventsHour bounds how many objects are written in an hour.
	eventsHeld = catalog.MaxEventsAtOnce
	eventsHour = 60
	// eventsLast is what a manager that ends takes for its last ones.
	eventsLast = time.Second
)

// eventLog collects what has happened while this process led, and stores it. A nil one keeps nothing.
type eventLog struct {
	put  func(ctx context.Context, node cluster.NodeID, events []catalog.Event) error
	tell func(catalog.Event)
	node cluster.NodeID

	mu      sync.Mutex
	waiting []catalog.Event
	missed  int
	// due is when the oldest has to be stored; zero if nothing waits.
	due  time.Time
	news chan struct{}
	// attention is what a person was needed for when that was last told, with its text.
	attention map[attentionKey]string
}

func newEventLog(cfg Config) *eventLog {
	l := &eventLog{tell: cfg.Tell, node: cfg.Self, news: make(chan struct{}, 1), attention: map[attentionKey]string{}}
	if cfg.Catalog != nil {
		l.put = cfg.Catalog.PutEvents
	}
	return l
}

// add takes an event. soon says that somebody may wait for it.
func (l *eventLog) add(e catalog.Event, soon bool) {
	if l == nil {
		return
	}
	now := time.Now()
	e.At, e.Node = now, l.node
	l.mu.Lock()
	if len(l.waiting) >= eventsHeld {
		drop := len(l.waiting) - eventsHeld + 1
		for _, old := range l.waiting[:drop] {
			l.missed += 1 + old.Missed
		}
		l.waiting = append(l.waiting[:0], l.waiting[drop:]...)
	}
	l.waiting = append(l.waiting, e)
	wait := eventsLater
	if soon {
		wait = eventsSoon
	}
	if due := now.Add(wait); l.due.IsZero() || due.Before(l.due) {
		l.due = due
	}
	l.mu.Unlock()
	select {
	case l.news <- struct{}{}:
	default:
	}
	if l.tell != nil {
		l.tell(e)
	}
}

// run stores events until ctx ends, and then what is left.
func (l *eventLog) run(ctx context.Context) {
	written := []time.Time{}
	delay := time.Duration(0)
	var said repeat.Limiter
	for {
		l.mu.Lock()
		wait := eventsLater
		if !l.due.IsZero() {
			wait = max(time.Until(l.due), delay)
		}
		l.mu.Unlock()
		if len(written) >= eventsHour {
			wait = max(wait, time.Until(written[0].Add(time.Hour)))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), eventsLast)
			defer cancel()
			if err := l.store(last); err != nil {
				klog.V(2).Infof("the last events are not stored: %v", err)
			}
			return
		case <-l.news:
			timer.Stop()
			continue
		case <-timer.C:
		}
		if err := l.store(ctx); err != nil {
			delay = min(max(2*delay, eventsSoon), 10*time.Minute)
			if ctx.Err() == nil {
				said.Warningf("events", "events are not stored yet, next attempt in %s: %v", delay, err)
			}
			continue
		}
		delay = 0
		if written = append(written, time.Now()); len(written) > eventsHour {
			written = written[1:]
		}
	}
}

// store stores what waits. What comes meanwhile waits for the next time.
func (l *eventLog) store(ctx context.Context) error {
	l.mu.Lock()
	events, missed := append([]catalog.Event{}, l.waiting...), l.missed
	l.mu.Unlock()
	if len(events) == 0 {
		return nil
	}
	events[0].Missed += missed
	if err := l.put(ctx, l.node, events); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	// Some of these may have been dropped for newer ones meanwhile; they are stored, so they aren't missed.
	last := events[len(events)-1].At
	kept, gone := l.waiting[:0], 0
	for _, e := range l.waiting {
		if e.At.After(last) {
			kept = append(kept, e)
		} else {
			gone++
		}
	}
	l.missed = max(0, l.missed-missed-(len(events)-gone))
	l.waiting, l.due = kept, time.Time{}
	if len(kept) > 0 {
		l.due = time.Now().Add(eventsSoon)
	}
	return nil
}

// led tells that this process began or ended to lead.
func (l *eventLog) led(term cluster.Term, phase catalog.EventPhase, text string) {
	if l == nil {
		return
	}
	l.mu.Lock()
	l.attention = map[attentionKey]string{} // each leader tells anew
	l.mu.Unlock()
	l.add(catalog.Event{Kind: catalog.EventLeader, Term: term, Subject: string(l.node), Phase: phase, Text: text}, true)
}

// decided tells what the leader does and why, if no other event does.
func (l *eventLog) decided(term cluster.Term, d plan.Decision, text string) {
	switch d.Do.(type) {
	case nil, model.TakeBackup, model.BeginRestore, model.FinishRestore, model.PutBack, model.TakeTerm:
		return
	case model.Compact, model.Defragment: // as usual
		l.add(catalog.Event{Kind: catalog.EventDecision, Term: term, Subject: model.Subject(d.Do), Text: text}, false)
		return
	}
	l.add(catalog.Event{Kind: catalog.EventDecision, Term: term, Subject: model.Subject(d.Do), Text: text}, true)
}

// restore tells how a restore goes.
func (l *eventLog) restore(op *catalog.Operation, phase catalog.EventPhase, text string) {
	l.add(catalog.Event{Kind: catalog.EventRestore, Term: op.Term, Subject: op.ID, Phase: phase, Text: text}, true)
}

// attentions tells what a person is needed for since the last call, and what has ended.
func (l *eventLog) attentions(term cluster.Term, list []cluster.Attention) {
	if l == nil {
		return
	}
	now := map[attentionKey]string{}
	for _, a := range list {
		now[attentionKey{kind: a.Kind, node: a.Node}] = a.String()
	}
	l.mu.Lock()
	before := l.attention
	l.attention = now
	l.mu.Unlock()
	for k, text := range now {
		if _, old := before[k]; !old {
			l.add(catalog.Event{Kind: catalog.EventAttention, Term: term, Subject: k.String(), Phase: catalog.EventBegun, Text: text}, true)
		}
	}
	for k, text := range before {
		if _, still := now[k]; !still {
			l.add(catalog.Event{Kind: catalog.EventAttention, Term: term, Subject: k.String(), Phase: catalog.EventDone,
				Text: "over: " + text}, true)
		}
	}
}

func (k attentionKey) String() string {
	if k.node == "" {
		return string(k.kind)
	}
	return string(k.kind) + " " + string(k.node)
}
