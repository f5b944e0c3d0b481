package changelog

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// Range says which changes a history is to have. What is zero doesn't bound it.
type Range struct {
	// Since and Until are moments, From and To revisions; all of them belong to the range.
	Since, Until time.Time
	From, To     int64
	// Match picks keys; nil takes all.
	Match func(key []byte) bool
}

// Event is one entry of a history: a change of a key, or a note on what lies between the events before and behind it.
type Event struct {
	Incarnation catalog.Incarnation
	Revision    int64
	// Time is when the change came. Since is zero unless it came late: then it was made at some time between the two.
	Time, Since time.Time
	Key         []byte
	Deleted     bool
	// CreateRevision, Version, Value and Lease are as in etcd, and zero of a deleted key.
	CreateRevision, Version int64
	Value                   []byte
	Lease                   int64
	// Note, if not empty, says in words that another incarnation of the cluster begins, that
	// changes are lacking, or up to where everything is known. Missing is true if changes are
	// lacking. There is no key then.
	Note    string
	Missing bool
}

const (
	// clockSlack is how much clocks of different nodes may differ where one is compared with the other.
	clockSlack = 2 * time.Minute
	moment     = "2006-01-02 15:04:05.000Z"
)

// History yields the changes of a range in their order, through all lives of the cluster. Where
// changes are lacking it says so with a note, and its last event is a note of up to where it is
// complete. It keeps a few segments in memory, however long the range. After an error the sequence
// ends.
func (a *Archive) History(ctx context.Context, r Range) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		h := history{a: a, r: r}
		queue := make(chan queued, ahead)
		go h.list(ctx, queue)
		for q := range queue {
			events, err := h.next(ctx, q)
			if err != nil {
				yield(Event{}, err)
				return
			}
			for _, e := range events {
				if !yield(e, nil) {
					return
				}
			}
		}
		if err := context.Cause(ctx); err != nil {
			yield(Event{}, err)
		}
	}
}

// history is one reading of the archive.
type history struct {
	a *Archive
	r Range
}

// queued is something that is going to be yielded: a segment that is being fetched, or a note.
// behind is the last revision of what came before, and known until when that was complete; 0 if
// nothing did.
type queued struct {
	segment catalog.Segment
	content chan fetched
	behind  int64
	known   time.Time
	note    *Event
	err     error
}

// list finds the segments in their order and has them fetched. It ends queue.
func (h *history) list(ctx context.Context, queue chan<- queued) {
	defer close(queue)
	send := func(q queued) bool {
		select {
		case queue <- q:
			return true
		case <-ctx.Done():
			return false
		}
	}
	lives, err := h.lives(ctx)
	if err != nil {
		send(queued{err: err})
		return
	}
	end := Event{Note: "no changes are kept"}
	first := true
	for i, l := range lives {
		began := false
		err := h.listLife(ctx, l, func(q queued) bool {
			if !began && !first {
				if !send(queued{note: &Event{Incarnation: l.id, Note: l.words(lives[:i])}}) {
					return false
				}
			}
			began, first = true, false
			return send(q)
		}, func(s catalog.Segment, complete bool) {
			if complete {
				end = Event{Incarnation: l.id, Revision: s.Last, Time: s.Ended}
				end.Note = fmt.Sprintf("everything is kept up to revision %d, at %s", s.Last, s.Ended.Format(moment))
			} else {
				end = Event{}
			}
		})
		if err != nil {
			send(queued{err: err})
			return
		}
	}
	if end.Note != "" {
		send(queued{note: &end})
	}
}

// life is an incarnation as a history needs it.
type life struct {
	id     catalog.Incarnation
	record catalog.IncarnationRecord
	// ended is when the next one began; zero if there is none, or that isn't known.
	ended time.Time
	// from is the revision from which on its segments are listed.
	from int64
}

// words say where a life came from.
func (l life) words(before []life) string {
	s := "another incarnation of the cluster begins"
	if o := l.record.Origin; o != nil {
		s = "a restore replaced the cluster"
		if o.Operation != "" {
			s += " (" + o.Operation + ")"
		}
		if o.Backup != "" {
			s += fmt.Sprintf(": of backup %s", o.Backup)
		}
		if o.Reached > 0 {
			s += fmt.Sprintf(", with the changes up to revision %d", o.Reached)
		}
	} else if n := len(before); n > 0 && before[n-1].record.ClusterID == l.record.ClusterID && l.record.ClusterID != 0 {
		s = "the same cluster came back with older data"
	}
	if !l.record.Began.IsZero() {
		s += fmt.Sprintf("; its changes are kept since %s, after revision %d", l.record.Began.UTC().Format(moment), l.record.Revision)
	}
	return s
}

// lives are the incarnations that can have something of the range.
func (h *history) lives(ctx context.Context) ([]life, error) {
	records, _, err := h.a.Catalog.Incarnations(ctx)
	if err != nil {
		return nil, err
	}
	var list []life
	for i, r := range records {
		switch {
		case !h.r.Since.IsZero() && i+1 < len(records) && !records[i+1].Began.IsZero() &&
			records[i+1].Began.Before(h.r.Since.Add(-clockSlack)):
			continue
		case !h.r.Until.IsZero() && r.Began.After(h.r.Until.Add(clockSlack)):
			continue
		}
		l := life{id: r.ID, record: r, from: h.r.From}
		if i+1 < len(records) {
			l.ended = records[i+1].Began
		}
		if !h.r.Since.IsZero() && r.Began.Before(h.r.Since) {
			at, err := h.a.revisionBefore(ctx, r.ID, h.r.Since.Add(-clockSlack))
			if err != nil {
				return nil, err
			}
			l.from = max(l.from, at)
		}
		list = append(list, l)
	}
	return list, nil
}

// revisionBefore is a revision of an incarnation that was reached before a moment, as the backups
// tell; 0 if they don't. Segments needn't be listed for it.
func (a *Archive) revisionBefore(ctx context.Context, id catalog.Incarnation, t time.Time) (int64, error) {
	list, err := a.Catalog.BackupsUntil(ctx, t, candidatesAsked, withManifest)
	if err != nil {
		return 0, err
	}
	for _, b := range slices.Backward(list) {
		m, err := a.Catalog.Manifest(ctx, b.Name)
		switch {
		case err == nil && catalog.IncarnationOf(uint64(m.ClusterID)) == id:
			return m.Revision, nil
		case err == nil: // of another life: from before this one, or dated by a clock that was wrong
		case !unreadable(err) && !errors.Is(err, catalog.ErrNotFound):
			return 0, err
		}
	}
	return 0, nil
}

// listLife lists one incarnation. Side by side stand segments of two writers that worked at the
// same time; both are right, so each revision is taken from the first that has it.
func (h *history) listLife(ctx context.Context, l life, send func(queued) bool, reached func(s catalog.Segment, complete bool)) error {
	var behind int64
	var known time.Time
	for s, err := range h.a.Catalog.Segments(ctx, l.id, l.from) {
		switch {
		case err != nil:
			return err
		case h.r.To > 0 && s.First > h.r.To, !h.r.Until.IsZero() && known.After(h.r.Until.Add(clockSlack)):
			reached(s, false)
			return nil
		case s.Last <= behind || s.Last < s.First: // nothing new, but for the time
			if s.Last == behind && s.Ended.After(known) {
				known = s.Ended
				reached(s, true)
			}
			continue
		}
		if (h.r.Since.IsZero() || !s.Ended.Before(h.r.Since)) && s.Last >= h.r.From {
			q := queued{segment: s, content: make(chan fetched, 1), behind: behind, known: known}
			if !send(q) {
				return nil
			}
			go func() {
				content, err := h.a.read(ctx, s)
				q.content <- fetched{content, err}
			}()
		}
		behind, known = s.Last, s.Ended
		reached(s, true)
	}
	return nil
}

// next makes the events of what was queued.
func (h *history) next(ctx context.Context, q queued) ([]Event, error) {
	switch {
	case q.err != nil:
		return nil, q.err
	case q.note != nil:
		return []Event{*q.note}, nil
	}
	var x fetched
	select {
	case x = <-q.content:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if x.err != nil {
		return nil, x.err
	}
	var events []Event
	if n := h.missing(q, x.content); n != nil {
		events = append(events, *n)
	}
	found, err := h.a.events(ctx, x.content, h.r, q.behind)
	return append(events, found...), err
}

// missing notes that changes before a segment aren't kept.
func (h *history) missing(q queued, c *Content) *Event {
	s := q.segment
	if s.First <= q.behind+1 || q.behind == 0 && (s.First <= max(h.r.From, 1) || !h.r.Since.IsZero() &&
		!time.UnixMilli(c.Header.GetStartedUnixMillis()).After(h.r.Since)) {
		return nil
	}
	n := &Event{Incarnation: s.Incarnation, Missing: true}
	switch {
	case q.behind == 0:
		n.Note = fmt.Sprintf("the changes before revision %d, at %s, aren't kept", s.First,
			time.UnixMilli(c.Header.GetStartedUnixMillis()).UTC().Format(moment))
	default:
		n.Note = fmt.Sprintf("the changes from revision %d to %d, after %s, are missing", q.behind+1, s.First-1, q.known.Format(moment))
	}
	if why := c.Header.GetBegins(); why != "" {
		n.Note += ": " + why
	} else if q.behind > 0 {
		n.Note += ": a segment is lost"
	}
	return n
}

// contents reads segments in the order in which they are given, and fetches ahead. After an error the sequence ends.
func (a *Archive) contents(ctx context.Context, segments []catalog.Segment) iter.Seq2[*Content, error] {
	return func(yield func(*Content, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		places := make([]chan fetched, len(segments))
		begin := func(i int) {
			if i >= len(segments) {
				return
			}
			place := make(chan fetched, 1)
			places[i] = place
			go func() {
				content, err := a.read(ctx, segments[i])
				place <- fetched{content, err}
			}()
		}
		for i := range ahead {
			begin(i)
		}
		for i := range segments {
			x := <-places[i]
			places[i] = nil
			begin(i + ahead)
			if !yield(x.content, x.err) || x.err != nil {
				return
			}
		}
	}
}

// events are the changes of a segment that belong to a range, behind a revision. All of it was found right.
func (a *Archive) events(ctx context.Context, c *Content, r Range, behind int64) ([]Event, error) {
	var events []Event
	timed := 0 // so many have their time
	err := c.Walk(ctx, a.Catalog.Opener(), func(e Entry) error {
		if e.Mark != nil {
			at, since := markTimes(e.Mark)
			for ; timed < len(events); timed++ {
				events[timed].Time, events[timed].Since = at, since
			}
		}
		t := e.Transaction
		if t == nil || t.GetRevision() <= behind || t.GetRevision() < r.From || r.To > 0 && t.GetRevision() > r.To {
			return nil
		}
		for _, x := range t.GetChanges() {
			if r.Match == nil || r.Match(x.GetKey()) {
				events = append(events, Event{
					Incarnation: c.Segment.Incarnation, Revision: t.GetRevision(), Key: x.GetKey(), Deleted: x.GetDeleted(),
					CreateRevision: x.GetCreateRevision(), Version: x.GetVersion(), Value: x.GetValue(), Lease: x.GetLease(),
				})
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(events, func(e Event) bool { return !r.holds(e) }), nil
}

// holds tells whether an event can have happened within the range's moments.
func (r Range) holds(e Event) bool {
	earliest := e.Time
	if !e.Since.IsZero() {
		earliest = e.Since
	}
	return (r.Since.IsZero() || !e.Time.Before(r.Since)) && (r.Until.IsZero() || !earliest.After(r.Until))
}

// HasPrefix picks the keys that begin with prefix.
func HasPrefix(prefix string) func(key []byte) bool {
	return func(key []byte) bool { return strings.HasPrefix(string(key), prefix) }
}
