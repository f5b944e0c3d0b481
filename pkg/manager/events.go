package manager

import (
	"context"
	"maps"
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
	put  func(ctx context.Context, node cluster.NodeID, at time.Time, events []catalog.Event) error
	tell func(catalog.Event)
	node cluster.NodeID

	mu      sync.Mutex
	last    time.Time // of the last event; each is later than the one before
	waiting []catalog.Event
	missed  int
	// due is when the oldest has to be stored; zero if nothing waits.
	due  time.Time
	news chan struct{}
	// attention is what a person is needed for, as it was told.
	attention map[attentionKey]*toldAttention
	// before is what an earlier leader has told, as far as it is known here, and term the last one in which this process led.
	before map[attentionKey]*toldAttention
	term   cluster.Term
}

func newEventLog(cfg Config) *eventLog {
	l := &eventLog{tell: cfg.Tell, node: cfg.Self, news: make(chan struct{}, 1), attention: map[attentionKey]*toldAttention{},
		before: map[attentionKey]*toldAttention{}}
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
	e.Node, e.Text = l.node, cluster.Shown(e.Text, catalog.MaxEventText)
	l.mu.Lock()
	now := time.Now()
	if !now.After(l.last) {
		now = l.last.Add(1)
	}
	e.At, l.last = now, now
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
	if l.tell != nil {
		l.tell(e) // in this order; it never waits
	}
	l.mu.Unlock()
	select {
	case l.news <- struct{}{}:
	default:
	}
}

// run stores events until ctx ends, and then what is left.
func (l *eventLog) run(ctx context.Context) {
	written := []time.Time{}
	delay, notBefore := time.Duration(0), time.Time{}
	var said repeat.Limiter
	for {
		l.mu.Lock()
		wait := eventsLater
		if !l.due.IsZero() {
			wait = max(time.Until(l.due), time.Until(notBefore))
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
			notBefore = time.Now().Add(delay)
			if ctx.Err() == nil {
				said.Warningf("events", "events are not stored yet, next attempt in %s: %v", delay, err)
			}
			continue
		}
		delay, notBefore = 0, time.Time{}
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
	if err := l.put(ctx, l.node, time.Now(), events); err != nil {
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

// led tells that this process began or ended to lead. last is what this node heard last of a leader, nil if nothing: what that one has
// told, and holds no more, is told to be over by this one.
func (l *eventLog) led(term cluster.Term, phase catalog.EventPhase, text string, last *Summary) {
	if l == nil {
		return
	}
	l.mu.Lock()
	if phase == catalog.EventBegun {
		maps.Copy(l.before, l.attention)
		if last != nil && last.Term > l.term {
			clear(l.before)
			for _, a := range last.Attention {
				l.before[attentionKey{kind: a.Kind, node: a.Node}] = &toldAttention{text: a.String()}
			}
		}
		l.attention, l.term = map[attentionKey]*toldAttention{}, term // each leader tells anew
	}
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

// overAfter is for how long an attention must not be seen before it is told to be over: while something is done, only that is said.
const overAfter = 2 * time.Minute

// toldAttention is an attention that was told. gone is since when it isn't seen any more; zero while it is.
type toldAttention struct {
	text string
	gone time.Time
}

// attentions tells what a person is needed for since the last call, and what is over.
func (l *eventLog) attentions(term cluster.Term, list []cluster.Attention) {
	if l == nil {
		return
	}
	var news []catalog.Event
	note := func(k attentionKey, phase catalog.EventPhase, text string) {
		news = append(news, catalog.Event{Kind: catalog.EventAttention, Term: term, Subject: k.String(), Phase: phase, Text: text})
	}
	seen := map[attentionKey]bool{}
	l.mu.Lock()
	for _, a := range list {
		k := attentionKey{kind: a.Kind, node: a.Node}
		seen[k] = true
		if t := l.attention[k]; t != nil {
			t.gone = time.Time{}
			continue
		}
		l.attention[k] = &toldAttention{text: a.String()}
		delete(l.before, k)
		note(k, catalog.EventBegun, a.String())
	}
	for _, told := range []map[attentionKey]*toldAttention{l.before, l.attention} {
		for k, t := range told {
			switch {
			case seen[k]:
			case t.gone.IsZero():
				t.gone = time.Now()
			case time.Since(t.gone) >= overAfter:
				delete(told, k)
				note(k, catalog.EventDone, "over: "+t.text)
			}
		}
	}
	l.mu.Unlock()
	for _, e := range news {
		l.add(e, true)
	}
}

func (k attentionKey) String() string {
	if k.node == "" {
		return string(k.kind)
	}
	return string(k.kind) + " " + string(k.node)
}
