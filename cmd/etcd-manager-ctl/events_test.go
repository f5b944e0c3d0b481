package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

func TestEvents(t *testing.T) {
	w := newWorld(t)
	w.backup("2026-02-01T11:45:00Z-000001", true)
	w.do("events")
	c := catalog.New(w.store)
	put := func(ago time.Duration, node cluster.NodeID, events ...catalog.Event) {
		for i := range events {
			events[i].At, events[i].Node = w.now.Add(-ago+time.Duration(i)*time.Second), node
		}
		must(t, c.PutEvents(t.Context(), node, events[len(events)-1].At, events))
	}
	put(30*time.Hour, "a", catalog.Event{Kind: catalog.EventLeader, Phase: catalog.EventBegun, Text: "node a leads the cluster, term 1"})
	put(10*time.Minute, "b", catalog.Event{Kind: catalog.EventLeader, Phase: catalog.EventBegun, Text: "node b leads the cluster, term 2"},
		catalog.Event{Kind: catalog.EventAttention, Subject: "quorum b", Phase: catalog.EventBegun, Text: "two lines\nof text", Missed: 3},
		catalog.Event{Kind: "a kind of a\x1b[31m newer version", Text: "what"})
	put(5*time.Minute, "a", catalog.Event{Kind: catalog.EventBackup, Subject: "x", Phase: catalog.EventDone, Text: "backup x was taken"})
	w.put("events/2026-02-01T11:58:00.000000000Z-c.json", "{")
	w.do("events")
	w.do("events", "--since=2d", "--kind=leader")
	w.do("events", "--kind=backup", "-o", "json")
	w.do("events", "--kind=restore", "-o", "yaml")
	w.do("events", "--kind=leeder")
	w.do("events", "--follow", "-o", "yaml")
	w.steps = []func(){
		func() {
			put(time.Minute, "b", catalog.Event{Kind: catalog.EventRestore, Phase: catalog.EventBegun, Text: "a restore begins"})
		},
		func() {},
	}
	w.do("events", "--follow", "--since=6m")
	w.golden("events")

	w.steps = nil
	_, out, _ := w.exec("--backup-store=mem://x", "events", "--follow", "-o", "json")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	var e catalog.Event
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &e); err != nil || len(lines) != 5 || e.Text != "a restore begins" {
		t.Errorf("one event a line: %v: %q", err, out)
	}
}
