package main

import (
	"context"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

func (w *world) survivors(nodes ...catalog.Survivor) {
	w.t.Helper()
	must(w.t, w.catalog().PutSurvivors(context.Background(), catalog.Survivors{At: w.now, Nodes: nodes}))
}

func survivor(node, token string, revision int64, term, index uint64) catalog.Survivor {
	return catalog.Survivor{Node: cluster.NodeID(node), Token: cluster.Token(token), Revision: revision,
		LastWrite: time.Date(2026, 2, 1, 11, 55, 0, 0, time.UTC), RaftTerm: term, RaftIndex: index, SizeBytes: 20 * mib,
		EtcdVersion: "3.5.21", Condition: "no leader for 5m"}
}

func TestRecover(t *testing.T) {
	w := newWorld(t)
	w.spec(3, "3.5.21")
	w.goodBackup(backup1, "main", 1234, "periodic")
	w.do("recover")
	w.do("recover", "--from-survivor", "b")
	w.survivors(survivor("a", "tok", 1300, 4, 2000), survivor("b", "tok", 1290, 5, 1990),
		catalog.Survivor{Node: "c", Token: "tok", RaftTerm: 5, RaftIndex: 1980, Condition: "etcd doesn't run"})
	w.pass(30 * time.Second)
	w.do("recover", "--from-survivor")
	w.answer = "a\n"
	w.do("recover", "--from-survivor") // the answer has to be the node that was chosen
	if c := w.lastCommand(); c.Name != "" {
		t.Fatalf("queued without an answer: %+v", c)
	}
	w.answer = "b\n"
	w.do("recover", "--from-survivor")
	if c := w.lastCommand(); c.Source == nil || *c.Source != (catalog.Source{Node: "b", Token: "tok"}) ||
		!c.Options.Now || c.Spec.MemberCount != 3 {
		t.Errorf("queued %+v", c)
	}
	w.answer = ""
	w.pass(time.Second)
	w.do("recover", "--from-survivor=c", "--yes", "--member-count=1", "--now=false")
	if c := w.lastCommand(); c.Source.Node != "c" || c.Options.Now || c.Spec.MemberCount != 1 {
		t.Errorf("queued %+v", c)
	}
	w.do("recover", "--from-survivor=x", "--yes")
	w.do("list-commands", "-o", "json")
	w.golden("recover")
}

func TestRecoverNoSurvivors(t *testing.T) {
	w := newWorld(t)
	w.put("control/of-a-newer-version", "x") // the store isn't empty
	w.do("recover", "--from-survivor")
	w.spec(5, "")
	ctx := context.Background()
	_, err := w.catalog().TakeTerm(ctx, 3, "a", "i")
	must(t, err)
	w.do("recover", "--from-survivor")
	w.pass(20 * time.Minute)
	w.do("recover", "--from-survivor")
	// An old list, an older survivor, and backups that tell less and less.
	w.survivors(survivor("a", "tok", 1000, 4, 2000))
	w.pass(15 * time.Minute)
	w.do("recover", "--from-survivor")
	w.backup(backup1, false)
	w.do("recover", "--from-survivor")
	w.goodBackup("2026-02-01T11:45:00Z-000000", "main", 1234, "periodic")
	w.do("recover", "--from-survivor")
	w.survivors(catalog.Survivor{Node: "a", Token: "tok", Condition: "etcd doesn't run"})
	w.do("recover", "--from-survivor")
	w.golden("survivors")
}
