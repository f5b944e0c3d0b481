package catalog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Event is something that has happened to a cluster, for people. Events are only shown: no manager reads them, and none is written twice.
type Event struct {
	// At is by the clock of Node, which led with Term.
	At   time.Time      `json:"at"`
	Node cluster.NodeID `json:"node"`
	Term cluster.Term   `json:"term,omitempty"`
	Kind EventKind      `json:"kind"`
	// Subject is what the event is about: a command, a node, a kind of attention; may be empty. Phase says what became of it.
	Subject string     `json:"subject,omitempty"`
	Phase   EventPhase `json:"phase,omitempty"`
	// Text is a sentence for people.
	Text string `json:"text"`
	// Missed counts events before this one that could not be kept: there were too many, or the store was away for too long.
	Missed int `json:"missed,omitempty"`
}

// EventKind says what an event is about.
type EventKind string

// The kinds of events.
const (
	// EventLeader: a manager began or ended to lead.
	EventLeader EventKind = "leader"
	// EventDecision: the leader does something that no other kind tells of, and why.
	EventDecision EventKind = "decision"
	EventBackup   EventKind = "backup"
	EventRestore  EventKind = "restore"
	// EventPutBack: keys were put back.
	EventPutBack EventKind = "put-back"
	// EventAttention: a person is needed, or not any more.
	EventAttention EventKind = "attention"
)

// EventPhase says what became of what an event is about.
type EventPhase string

// The phases of events.
const (
	EventBegun  EventPhase = "begun"
	EventDone   EventPhase = "done"
	EventFailed EventPhase = "failed"
)

// Bounds of events.
const (
	// MaxEventsAtOnce is how many events one object has at most, and MaxEventText how long a text is, in bytes.
	MaxEventsAtOnce = 200
	MaxEventText    = 2000
	// EventHistory is for how long events are kept, and maxEventObjects how many objects of them.
	EventHistory    = 30 * 24 * time.Hour
	maxEventObjects = 5000
	// eventSpan is by how much the clock of one who follows may be ahead of the nodes'.
	eventSpan    = 2 * time.Hour
	eventsAtOnce = 8
)

const (
	eventsPrefix  = "events/"
	eventsVersion = 1
	eventsWay     = "delete the object; events are only shown"
	eventTime     = "2006-01-02T15:04:05.000000000Z"
)

type eventsJSON struct {
	Version int     `json:"version"`
	Events  []Event `json:"events"`
}

// PutEvents stores events of a node, oldest first, in an object of their own. at is the time of the attempt, by the clock that the events
// have: it is in the key, so that whoever looks for events from a time on needs no earlier key, however late they are stored. If the
// answer is lost and the events are written again, they are there twice; EventScan leaves that out.
func (c *Catalog) PutEvents(ctx context.Context, node cluster.NodeID, at time.Time, events []Event) error {
	if err := validName("node", string(node)); err != nil {
		return err
	}
	if len(events) == 0 || len(events) > MaxEventsAtOnce {
		return invalidf("%d events at once; they can be 1 to %d", len(events), MaxEventsAtOnce)
	}
	events = slices.Clone(events)
	for i := range events {
		events[i].Text = cluster.Shown(events[i].Text, MaxEventText)
		events[i].At = events[i].At.UTC()
	}
	data, err := encodeOwn(eventsJSON{Version: eventsVersion, Events: events})
	if err != nil {
		return err
	}
	key := eventsPrefix + at.UTC().Format(eventTime) + "-" + string(node) + ".json"
	_, err = c.writeOwn(ctx, key, data, blob.PutOptions{IfAbsent: true}, nil)
	return err
}

// EventScan reads events as they come. It is for one goroutine at a time.
type EventScan struct {
	c     *Catalog
	since time.Time
	// from is where the next listing begins.
	from time.Time
	// read are the objects that were read, with their stamps, and told the events in them, as far back as others may still come.
	read map[string]string
	told map[eventID]bool
}

type eventID struct {
	at   int64
	node cluster.NodeID
	text string
}

// ScanEvents makes a scan of the events from a time on.
func (c *Catalog) ScanEvents(since time.Time) *EventScan {
	return &EventScan{c: c, since: since, from: since, read: map[string]string{}, told: map[eventID]bool{}}
}

// Next reads what was stored since the last call: events, oldest first, and as problems what can't be read. Of very many objects only the
// newest are read. After an error the next call goes on. It takes a listing, and a request for each new object.
func (s *EventScan) Next(ctx context.Context) (events []Event, problems []error, err error) {
	after := ""
	if !s.from.IsZero() {
		after = eventsPrefix + s.from.UTC().Format(eventTime)
	}
	found, err := s.c.newestEvents(ctx, after, maxEventObjects)
	if err != nil {
		return nil, nil, err
	}
	objects := slices.DeleteFunc(found.newest, func(o Object) bool { return s.read[o.Name] == o.Stamp })
	lists, bad := make([][]Event, len(objects)), make([]error, len(objects))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(eventsAtOnce)
	for i, o := range objects {
		g.Go(func() error {
			list, err := s.c.eventsOf(gctx, o.Name)
			switch {
			case errors.Is(err, ErrNotFound): // retention has removed it meanwhile
			case errors.Is(err, cluster.ErrCorrupt), errors.Is(err, cluster.ErrFuture):
				bad[i] = err
			default:
				lists[i] = list
				return err
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	for _, o := range objects {
		s.read[o.Name] = o.Stamp
	}
	for _, e := range slices.Concat(lists...) {
		id := eventID{e.At.UnixNano(), e.Node, e.Text}
		if e.At.Before(s.since) || s.told[id] { // one whose answer was lost may be there twice
			continue
		}
		s.told[id] = true
		events = append(events, e)
	}
	slices.SortStableFunc(events, func(a, b Event) int { return a.At.Compare(b.At) })
	s.forget()
	return events, slices.DeleteFunc(bad, func(err error) bool { return err == nil }), nil
}

// forget lets the next listing begin behind what was read, but for objects that still come: clocks may differ by eventSpan.
func (s *EventScan) forget() {
	from := s.c.now().Add(-eventSpan)
	if !from.After(s.from) {
		return
	}
	s.from = from
	for id := range s.told {
		if id.at < from.UnixNano() {
			delete(s.told, id)
		}
	}
	for key := range s.read {
		if eventsTime(key).Before(from) {
			delete(s.read, key)
		}
	}
}

func (c *Catalog) eventsOf(ctx context.Context, key string) ([]Event, error) {
	data, _, err := c.read(ctx, key, eventsWay)
	if err != nil {
		return nil, err
	}
	return parseEvents(key, data)
}

func parseEvents(key string, data []byte) ([]Event, error) {
	var j eventsJSON
	if err := decodeOwn(key, eventsWay, data, eventsVersion, &j); err != nil {
		return nil, err
	}
	if len(j.Events) > MaxEventsAtOnce {
		return nil, corrupt(key, eventsWay, fmt.Errorf("it has %d events, more than %d", len(j.Events), MaxEventsAtOnce))
	}
	for i := range j.Events {
		j.Events[i].Text = cluster.Shown(j.Events[i].Text, MaxEventText)
	}
	return j.Events, nil
}

// PruneEvents removes events that are older than EventHistory, and the oldest if there are too many. It returns how many objects went.
func (c *Catalog) PruneEvents(ctx context.Context, now time.Time) (int, error) {
	keep := eventsPrefix + now.Add(-EventHistory).UTC().Format(eventTime)
	keys, err := c.newestEvents(ctx, "", maxEventObjects)
	if err != nil {
		return 0, err
	}
	if len(keys.newest) == maxEventObjects {
		keep = max(keep, keys.newest[0].Name)
	}
	if keys.first == "" || keys.first >= keep {
		return 0, nil
	}
	return c.store.Purge(ctx, eventsPrefix, func(key string) bool { return key < keep && !eventsTime(key).IsZero() })
}

// eventKeys are the first key of a listing, and the newest objects by key.
type eventKeys struct {
	first  string
	newest []Object
}

// newestEvents lists the keys behind one, and holds the last few.
func (c *Catalog) newestEvents(ctx context.Context, after string, few int) (k eventKeys, err error) {
	for e, err := range c.store.List(ctx, eventsPrefix, blob.ListOptions{After: after}) {
		if err != nil {
			return k, fmt.Errorf("list %s: %w", eventsPrefix, err)
		}
		if eventsTime(e.Key).IsZero() {
			continue
		}
		if k.first == "" {
			k.first = e.Key
		}
		if k.newest = append(k.newest, Object{Name: e.Key, Stamp: stamp(e.Info)}); len(k.newest) > 2*few {
			k.newest = slices.Delete(k.newest, 0, len(k.newest)-few)
		}
	}
	k.newest = k.newest[max(0, len(k.newest)-few):]
	return k, nil
}

// eventsTime is the time in the key of an object with events; zero if it is none.
func eventsTime(key string) time.Time {
	name, ok := strings.CutPrefix(key, eventsPrefix)
	if !ok || len(name) <= len(eventTime) || !strings.HasSuffix(name, ".json") {
		return time.Time{}
	}
	t, err := time.Parse(eventTime, name[:len(eventTime)])
	if err != nil {
		return time.Time{}
	}
	return t
}
