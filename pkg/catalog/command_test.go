package catalog

import (
	"context"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

var testSpec = cluster.Spec{MemberCount: 3, EtcdVersion: "3.5.21"}

const testBackup = "2026-01-30T01:02:03Z-000009"

func TestCommand(t *testing.T) {
	onStores(t, func(t *testing.T, s blob.Store) {
		ctx, now := context.Background(), newClock("2018-01-15T07:06:40Z")
		c := New(s, WithClock(now.now))
		first, err := c.QueueRestore(ctx, testBackup, testSpec, RestoreOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if first.Name != "2018-01-15T07:06:40Z-000000" {
			t.Fatalf("name %q", first.Name)
		}
		golden(t, "_command.json", get(t, s, "control/"+first.Name+"/_command.json"))
		options := RestoreOptions{Now: true, KeepMasterleases: true, DropPrefixes: []string{"/x/"}, Reason: "drill", ToTime: now.now()}
		second, err := c.QueueRestore(ctx, testBackup, testSpec, options)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "_options.json", get(t, s, "control/"+second.Name+"/_options.json"))
		if strings.Contains(get(t, s, "control/"+second.Name+"/_command.json"), "now") {
			t.Fatal("own fields in the shared file")
		}
		cmds, problems, err := c.Commands(ctx)
		if err != nil || len(problems) != 0 || len(cmds) != 2 {
			t.Fatalf("got %v, %v, %v", cmds, problems, err)
		}
		if !reflect.DeepEqual(cmds[1].Options, options) || !cmds[0].Options.IsZero() || cmds[0].Name != first.Name ||
			cmds[0].Spec != testSpec || cmds[0].Backup != testBackup || cmds[0].Stamp == "" {
			t.Fatalf("got %+v", cmds)
		}
		if err := c.RemoveCommand(ctx, second.Name); err != nil {
			t.Fatal(err)
		}
		if err := c.RemoveCommand(ctx, second.Name); err != nil {
			t.Fatalf("removing twice: %v", err)
		}
		_, err = c.Command(ctx, second.Name)
		wantIs(t, err, ErrNotFound)
		if got := keys(t, s); len(got) != 1 {
			t.Fatalf("left: %v", got)
		}
		wantIs(t, c.RemoveCommand(ctx, "operations"), ErrInvalid)
		wantIs(t, c.RemoveCommand(ctx, "../x"), ErrInvalid)
		wantIs(t, c.RemoveCommand(ctx, ""), ErrInvalid)
		_, err = c.QueueRestore(ctx, "a/b", testSpec, RestoreOptions{})
		wantIs(t, err, ErrInvalid)
	})
}

func TestCommandsInOneSecond(t *testing.T) {
	onStores(t, func(t *testing.T, s blob.Store) {
		now := newClock("2026-01-30T01:02:03Z")
		const writers, each = 8, 4
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				c := New(s, WithClock(now.now))
				for i := range each {
					options := RestoreOptions{}
					if w%2 == 0 {
						options.Reason = fmt.Sprintf("%d-%d", w, i)
					}
					if _, err := c.QueueRestore(context.Background(), fmt.Sprintf("b-%d-%d", w, i), testSpec, options); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		cmds, problems, err := New(s).Commands(context.Background())
		if err != nil || len(problems) != 0 || len(cmds) != writers*each {
			t.Fatalf("%d commands, %v, %v", len(cmds), problems, err)
		}
		seen := map[string]bool{}
		for _, cmd := range cmds {
			seen[cmd.Backup] = true
			var w, i int
			if _, err := fmt.Sscanf(cmd.Backup, "b-%d-%d", &w, &i); err != nil {
				t.Fatal(err)
			}
			want := ""
			if w%2 == 0 {
				want = fmt.Sprintf("%d-%d", w, i)
			}
			if cmd.Options.Reason != want {
				t.Errorf("command %s for %s has options %+v, want reason %q", cmd.Name, cmd.Backup, cmd.Options, want)
			}
		}
		if len(seen) != writers*each {
			t.Fatalf("%d different commands", len(seen))
		}
	})
}

// ignoring is a store that ignores conditions, as some do.
type ignoring struct{ blob.Store }

func (s ignoring) Put(ctx context.Context, key string, body io.Reader, o blob.PutOptions) (blob.Info, error) {
	return s.Store.Put(ctx, key, body, blob.PutOptions{})
}

func TestCommandNamesWithoutConditions(t *testing.T) {
	s := ignoring{blobtest.NewMemory()}
	c := New(s, WithClock(newClock("2026-01-30T01:02:03Z").now))
	for range 3 {
		if _, err := c.QueueRestore(context.Background(), testBackup, testSpec, RestoreOptions{Now: true}); err != nil {
			t.Fatal(err)
		}
	}
	if cmds, _, err := c.Commands(context.Background()); err != nil || len(cmds) != 3 {
		t.Fatalf("got %v, %v", cmds, err)
	}
}

func TestCommandsOfOthers(t *testing.T) {
	ctx, s := context.Background(), blobtest.NewMemory()
	c := New(s)
	put(t, s, "control/etcd-cluster-spec", `{"memberCount":3}`)
	put(t, s, "control/2026-01-30T01:02:03Z-000000/_command.json",
		`{"timestamp":"1516000000000000002","restoreBackup":{"clusterSpec":{"memberCount":3,"etcdVersion":"3.5.21"},"backup":"x"}}`)
	put(t, s, "control/2026-01-30T01:02:04Z-000000/_command.json",
		`{"timestamp":1516000000000000001,"restoreBackup":{"clusterSpec":{"memberCount":1},"backup":"y","unknown":1}}`)
	put(t, s, "control/broken/_command.json", "")
	put(t, s, "control/cut/_command.json", `{"timestamp":"15160000`)
	put(t, s, "control/other-kind/_command.json", `{"timestamp":"1","doSomething":{}}`)
	put(t, s, "control/newer/_command.json", `{"timestamp":"5","restoreBackup":{"clusterSpec":{"memberCount":1},"backup":"z"}}`)
	put(t, s, "control/newer/_options.json", `{"version":2,"for":{"timestamp":5,"backup":"z"},"now":true}`)
	put(t, s, "control/foreign-options/_command.json", `{"timestamp":"6","restoreBackup":{"clusterSpec":{"memberCount":1},"backup":"z"}}`)
	put(t, s, "control/foreign-options/_options.json", `{"version":1,"for":{"timestamp":5,"backup":"z"},"now":true}`)
	put(t, s, "control/lonely-options/_options.json", `{"version":1,"for":{"timestamp":5,"backup":"z"},"now":true}`)
	put(t, s, "control/future-kind/_create.json", `{}`)
	cmds, problems, err := c.Commands(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var names, bad []string
	for _, cmd := range cmds {
		names = append(names, cmd.Backup)
		if !cmd.Options.IsZero() {
			t.Errorf("%s took options that are not its own: %+v", cmd.Name, cmd.Options)
		}
	}
	for _, p := range problems {
		bad = append(bad, p.Name)
		if p.Err == nil || !strings.Contains(p.Err.Error(), "delete-command "+p.Name) && !strings.Contains(p.Err.Error(), "newer") {
			t.Errorf("problem %+v says no way out", p)
		}
	}
	// "z" is of 1970, so the oldest; y is older than x although its name is younger.
	if !slices.Equal(names, []string{"z", "y", "x"}) {
		t.Errorf("commands %v", names)
	}
	if !slices.Equal(bad, []string{"broken", "cut", "newer", "other-kind"}) {
		t.Errorf("problems %v", bad)
	}
	l, err := c.ControlListing(ctx)
	if err != nil || !slices.Equal(l.Unknown, []string{"control/future-kind/_create.json"}) {
		t.Errorf("unknown %v, %v", l.Unknown, err)
	}
	if _, _, err := New(failing{s}).Commands(ctx); err == nil {
		t.Error("a store that can't be reached gave an empty queue")
	}
}

func TestControlListing(t *testing.T) {
	onStores(t, func(t *testing.T, s blob.Store) {
		ctx, count := context.Background(), &counting{Store: s}
		c := New(count)
		l, err := c.ControlListing(ctx)
		if err != nil || l.Spec.Exists() || l.Marker.Exists() || l.Leader.Exists() {
			t.Fatalf("empty: %+v, %v", l, err)
		}
		version, err := c.CreateSpec(ctx, testSpec)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.CreateMarker(ctx, Marker{Phase: PhaseFormed}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.TakeTerm(ctx, 1, "a", "1"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.QueueRestore(ctx, testBackup, testSpec, RestoreOptions{Now: true}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.PutOperation(ctx, Operation{ID: "op1", Kind: KindRestore, State: StateProving}, ""); err != nil {
			t.Fatal(err)
		}
		*count = counting{Store: s}
		if l, err = c.ControlListing(ctx); err != nil {
			t.Fatal(err)
		}
		if count.lists != 1 || count.gets != 0 {
			t.Fatalf("%d lists and %d gets", count.lists, count.gets)
		}
		if !l.Spec.Exists() || !l.Marker.Exists() || !l.Leader.Exists() || len(l.Commands) != 1 ||
			len(l.Operations) != 1 || l.Operations[0].Name != "op1" || len(l.Unknown) != 0 {
			t.Fatalf("got %+v", l)
		}
		if again, err := c.ControlListing(ctx); err != nil || !reflect.DeepEqual(again, l) {
			t.Fatalf("nothing changed, but %+v became %+v (%v)", l, again, err)
		}
		if _, err := c.ReplaceSpec(ctx, cluster.Spec{MemberCount: 5, EtcdVersion: "3.5.21"}, version); err != nil {
			t.Fatal(err)
		}
		if again, err := c.ControlListing(ctx); err != nil || again.Spec.Stamp == l.Spec.Stamp || again.Marker.Stamp != l.Marker.Stamp {
			t.Fatalf("the spec changed, but %+v became %+v (%v)", l, again, err)
		}
	})
}

func TestOperation(t *testing.T) {
	onStores(t, func(t *testing.T, s blob.Store) {
		ctx, now := context.Background(), newClock("2026-01-30T01:02:05Z")
		c := New(s, WithClock(now.now))
		at := now.now()
		op := Operation{ID: "2026-01-30T01:02:03Z-000000", Kind: KindRestore, State: StateStaging,
			Command: "2026-01-30T01:02:03Z-000000", Backup: testBackup,
			Options: RestoreOptions{Now: true}, Spec: testSpec, Members: testNodes, NewToken: "new", OldToken: "old",
			Term: 4, Leader: "a", Instance: "i",
			RevisionBefore: 100, RevisionAfter: 1000000100, BumpRevision: 1000000000, Created: at, Outage: 1500 * time.Millisecond,
			Steps: []Step{{Name: "prove", Node: "a", Started: at, Finished: at.Add(time.Second), Outcome: StepDone, Detail: "42 keys"},
				{Name: "stage", Node: "b", Started: at}},
			Progress: map[cluster.NodeID]Progress{"b": {Phase: "fetch", Done: 5, Total: 10}}}
		version, err := c.PutOperation(ctx, op, "")
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "operation.json", get(t, s, "control/operations/"+op.ID+".json"))
		rival := op
		rival.Term, rival.Leader = 5, "b"
		_, err = c.PutOperation(ctx, rival, "")
		wantIs(t, err, ErrConflict)
		got, readVersion, err := c.Operation(ctx, op.ID)
		op.Updated = at
		if err != nil || !reflect.DeepEqual(got, op) || readVersion != version {
			t.Fatalf("got %+v, %v; want %+v", got, err, op)
		}
		op.State, op.Reason = StateFailed, "no"
		if _, err := c.PutOperation(ctx, op, version); err != nil {
			t.Fatal(err)
		}
		op.State = StateProving // the same leadership, but the operation has ended
		_, err = c.PutOperation(ctx, op, version)
		wantIs(t, err, ErrConflict)
		_, err = c.PutOperation(ctx, Operation{ID: "x", State: "strange"}, "")
		wantIs(t, err, ErrInvalid)
		put(t, s, "control/operations/empty.json", "")
		put(t, s, "control/operations/future.json", `{"version":9,"id":"future"}`)
		put(t, s, "control/operations/other.json", `{"version":1,"id":"renamed","state":"done"}`)
		put(t, s, "control/operations/strange.json", `{"version":1,"id":"strange","state":"dancing"}`)
		ops, problems, err := c.Operations(ctx)
		if err != nil || len(ops) != 1 || len(problems) != 4 {
			t.Fatalf("got %v, %v, %v", ops, problems, err)
		}
	})
}

func TestPruneOperations(t *testing.T) {
	ctx, s := context.Background(), blobtest.NewMemory()
	now := newClock("2026-01-30T01:02:03Z")
	c := New(s, WithClock(now.now))
	for i := range 10 {
		state := StateDone
		if i == 1 {
			state = StateStaging
		}
		if _, err := c.PutOperation(ctx, Operation{ID: fmt.Sprintf("op%d", i), State: state, Created: now.now()}, ""); err != nil {
			t.Fatal(err)
		}
		now.add(time.Second)
	}
	if n, err := c.PruneOperations(ctx, 10); err != nil || n != 0 {
		t.Fatal(n, err)
	}
	if n, err := c.PruneOperations(ctx, 4); err != nil || n != 5 {
		t.Fatal(n, err)
	}
	ops, _, err := c.Operations(ctx)
	var ids []string
	for _, op := range ops {
		ids = append(ids, op.ID)
	}
	if err != nil || !slices.Equal(ids, []string{"op1", "op6", "op7", "op8", "op9"}) {
		t.Fatalf("kept %v, %v", ids, err)
	}
}

// TestRecoveryWithChanges: a recovery that may need changes is refused by managers that don't know them;
// one that needs none is understood by all.
func TestRecoveryWithChanges(t *testing.T) {
	c := New(blobtest.NewMemory())
	for revision, version := range map[int64]string{0: `"version": 1,`, 77: `"version": 2,`} {
		source := Source{Token: "old", OrBackup: "b", OrRevision: revision}
		cmd, err := c.QueueRecover(t.Context(), source, testSpec, RestoreOptions{})
		if err != nil {
			t.Fatal(err)
		}
		data, _, err := c.read(t.Context(), controlPrefix+cmd.Name+"/"+recoverFile, "")
		if err != nil || !strings.Contains(string(data), version) {
			t.Errorf("to revision %d: %s, %v; want %s", revision, data, err, version)
		}
		got, err := c.recovery(t.Context(), cmd.Name, "")
		if err != nil || *got.Source != source {
			t.Errorf("to revision %d: %+v, %v", revision, got.Source, err)
		}
	}
}
