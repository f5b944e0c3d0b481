package catalog

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

func TestEvents(t *testing.T) {
	now := time.Date(2026, 2, 1, 12, 0, 0, 5, time.UTC)
	store := blobtest.NewMemory()
	c := New(store, WithClock(func() time.Time { return now }))
	put := func(node string, texts ...string) {
		t.Helper()
		var list []Event
		for i, text := range texts {
			list = append(list, Event{At: now.Add(time.Duration(i) * time.Second), Node: cluster.NodeID(node),
				Kind: EventDecision, Text: text})
		}
		must(t, c.PutEvents(t.Context(), cluster.NodeID(node), list[len(list)-1].At, list))
	}
	scan := c.ScanEvents(now.Add(-time.Hour))
	next := func() string {
		t.Helper()
		list, problems, err := scan.Next(t.Context())
		must(t, err)
		var out []string
		for _, e := range list {
			out = append(out, e.Text)
		}
		for _, p := range problems {
			out = append(out, p.Error())
		}
		return strings.Join(out, ", ")
	}
	put("a", "one", "two")
	now = now.Add(500 * time.Millisecond)
	put("b", "between")
	if got := next(); got != "one, between, two" {
		t.Errorf("first: %q", got)
	}
	if got := next(); got != "" {
		t.Errorf("told twice: %q", got)
	}
	// The answer was lost, and another event came meanwhile: another object, with more.
	now = now.Add(-500 * time.Millisecond)
	put("a", "one", "two", "three")
	if got := next(); got != "three" {
		t.Errorf("an object that was written again: %q", got)
	}
	now = now.Add(25 * time.Hour)
	put("c", strings.Repeat("long ", 1000), "bell \a")
	if got := next(); len(got) > MaxEventText+30 || !strings.HasSuffix(got, `…, bell \a`) {
		t.Errorf("a day later: %q", got)
	}
	// A day without a store: what happened then is found, though another was first.
	at := now
	now = now.Add(24 * time.Hour)
	must(t, c.PutEvents(t.Context(), "d", now, []Event{{At: at, Node: "d", Text: "early"}, {At: now, Node: "d", Text: "now"}}))
	if got := next(); got != "early, now" {
		t.Errorf("after a day without a store: %q", got)
	}
	if got, _, err := c.ScanEvents(now.Add(-time.Hour)).Next(t.Context()); err != nil || len(got) != 1 || got[0].Text != "now" {
		t.Errorf("the last hour: %v, %v", got, err)
	}
	if got, _, err := c.ScanEvents(now).Next(t.Context()); err != nil || len(got) != 1 {
		t.Errorf("from the time of an event on: %v, %v", got, err)
	}
	if len(scan.told) != 1 || len(scan.read) != 1 {
		t.Errorf("%d events and %d objects are remembered", len(scan.told), len(scan.read))
	}
	if got, _, err := c.ScanEvents(time.Time{}).Next(t.Context()); err != nil || len(got) != 8 {
		t.Errorf("all of them: %d, %v", len(got), err)
	}

	damaged := eventsPrefix + now.Format(eventTime) + "-x.json"
	for _, body := range []string{"{", `{"version":99}`, `{"version":1,"events":[` + strings.Repeat(`{"text":""},`, MaxEventsAtOnce) + `{"text":""}]}`} {
		_, err := store.Put(t.Context(), damaged, strings.NewReader(body), blob.PutOptions{})
		must(t, err)
		_, problems, err := c.ScanEvents(now.Add(-time.Hour)).Next(t.Context())
		must(t, err)
		if len(problems) != 1 || !errors.Is(problems[0], cluster.ErrCorrupt) && !errors.Is(problems[0], cluster.ErrFuture) {
			t.Errorf("%.20s: problems %v", body, problems)
		}
	}
	for what, err := range map[string]error{
		"no event":        c.PutEvents(t.Context(), "a", now, nil),
		"too many events": c.PutEvents(t.Context(), "a", now, make([]Event, MaxEventsAtOnce+1)),
		"a bad node":      c.PutEvents(t.Context(), "a/b", now, make([]Event, 1)),
	} {
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestPruneEvents: what is old goes, and the oldest of too many; what isn't ours stays.
func TestPruneEvents(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	store := blobtest.NewMemory()
	c := New(store)
	for i := range maxEventObjects + 300 {
		key := fmt.Sprintf("%s%s-a.json", eventsPrefix, begin.Add(time.Duration(i)*time.Minute).Format(eventTime))
		_, err := store.Put(t.Context(), key, strings.NewReader("{}"), blob.PutOptions{})
		must(t, err)
	}
	_, err := store.Put(t.Context(), eventsPrefix+"0-notes.txt", strings.NewReader("mine"), blob.PutOptions{})
	must(t, err)
	prune := func(at time.Time, want int) {
		t.Helper()
		if n, err := c.PruneEvents(t.Context(), at); err != nil || n != want {
			t.Errorf("%d objects went, %v; want %d", n, err, want)
		}
	}
	prune(begin.Add(24*time.Hour), 300)
	prune(begin.Add(24*time.Hour), 0)
	prune(begin.Add(EventHistory+310*time.Minute), 10)
	prune(begin.Add(2*EventHistory), maxEventObjects-10)
	prune(begin.Add(2*EventHistory), 0)
	if _, err := store.Stat(t.Context(), eventsPrefix+"0-notes.txt"); err != nil {
		t.Error(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
