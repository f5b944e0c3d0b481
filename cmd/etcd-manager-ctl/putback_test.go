package main

import (
	"context"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// TestPutBackIsFollowed: a put-back is seen waiting, running, pausing and done, through the store alone, and can be ended.
func TestPutBackIsFollowed(t *testing.T) {
	w := newWorld(t)
	w.spec(3, "3.5.21")
	c, ctx := w.catalog(), context.Background()
	p := catalog.PutBack{Set: "s", Parts: 1, Entries: 10, ClusterID: 7, What: "namespace shop", At: "revision 41", Reason: "drill"}
	cmd, err := c.QueuePutBack(ctx, p)
	must(t, err)
	show := func(created int, waiting string) func() {
		return func() {
			must(t, c.PutPutBackProgress(ctx, cmd.Name, catalog.PutBackProgress{At: w.now, Node: "b", PutBackCounts: catalog.PutBackCounts{Created: created}, Waiting: waiting}))
		}
	}
	var ended string
	w.steps = []func(){
		show(3, ""), show(5, "restore x is queued"),
		func() {
			out, errOut, code := w.tell("delete-command", cmd.Name)
			if ended = out + errOut; code != exitOK {
				t.Errorf("delete-command: code %d\n%s", code, ended)
			}
		},
		func() {
			if got, err := c.Command(ctx, cmd.Name); err != nil || !got.PutBack.Canceled {
				t.Errorf("the leader isn't told to end it: %+v, %v", got.PutBack, err)
			}
			_, err := c.PutOperation(ctx, catalog.Operation{ID: cmd.Name, Kind: catalog.KindPutBack, State: catalog.StateDone,
				Command: cmd.Name, Created: w.now,
				Finished: w.now, Leader: "a", Term: 3, PutBack: &catalog.PutBackRecord{PutBack: p, PutBackCounts: catalog.PutBackCounts{Created: 9, Left: 1}}}, "")
			must(t, err)
			must(t, c.RemoveCommand(ctx, cmd.Name))
		},
	}
	out, errOut, code := w.tell("follow", cmd.Name)
	if code != exitOK {
		t.Fatalf("code %d: %s%s", code, out, errOut)
	}
	for _, want := range []string{"put-back of namespace shop as it was at revision 41", "for the leader to see it", "node b leads", "restore x is queued",
		"done: namespace shop: 9 created, 1 left alone", "undo-put-back " + cmd.Name} {
		if !strings.Contains(out, want) {
			t.Errorf("it doesn't say %q:\n%s", want, out)
		}
	}
	if !strings.Contains(ended, "the leader ends it where it is") {
		t.Errorf("delete-command says\n%s", ended)
	}
	if out, _, _ := w.tell("list-commands"); !strings.Contains(out, "namespace shop: 9 created, 1 left alone") {
		t.Errorf("list-commands:\n%s", out)
	}
	if out, errOut, _ := w.tell("describe-command", cmd.Name); !strings.Contains(out, "9 created, 1 left alone, of 10") || !strings.Contains(errOut, "can't be listed") {
		t.Errorf("describe-command:\n%s%s", out, errOut)
	}
	if _, errOut, code := w.tell("undo-restore"); code != exitNotFound {
		t.Errorf("undo-restore takes a put-back for a restore: code %d: %s", code, errOut)
	}
	if _, errOut, code := w.tell("undo-put-back", "--yes"); code != exitNotFound || !strings.Contains(errOut, "kept for 14 days") {
		t.Errorf("undo without what was written over: code %d: %s", code, errOut)
	}
	w.goodBackup("2026-02-01T11:00:00Z-000000", "test", 5, "periodic")
	if out, errOut, _ := w.tell("restore-backup", "2026-02-01T11:00:00Z-000000"); strings.Contains(out+errOut, cmd.Name) {
		t.Errorf("a restore is said to hold up a put-back that has ended:\n%s%s", out, errOut)
	}
}

// TestPutBackFlags: what makes no sense is refused, and says what to do.
func TestPutBackFlags(t *testing.T) {
	w := newWorld(t)
	w.spec(3, "3.5.21")
	for _, x := range []struct{ args, want string }{
		{"", "needs a key or a namespace"},
		{"/a --namespace=n", "not both"},
		{"--namespace=n --prefix", "--namespace takes none"},
		{"/a --rate=0", "1 to 10000"},
		{"/a --rate=100000", "1 to 10000"},
		{"/a --at-revision=3 --before=/b", "one point"},
		{"/a --at=nonsense", "nonsense"},
	} {
		if _, errOut, code := w.tell(append([]string{"put-back"}, strings.Fields(x.args)...)...); code != exitUsage || !strings.Contains(errOut, x.want) {
			t.Errorf("%s: code %d, %s; want %q", x.args, code, errOut, x.want)
		}
	}
	if _, errOut, code := w.tell("undo-put-back", "--yes"); code != exitNotFound || !strings.Contains(errOut, "no record of a put-back") {
		t.Errorf("nothing to undo: code %d: %s", code, errOut)
	}
}
