package operator

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// writes notes the keys of all writes, and lets something happen before one.
type writes struct {
	blob.Store
	keys   []string
	before func(key string)
}

func (s *writes) Put(ctx context.Context, key string, body io.Reader, o blob.PutOptions) (blob.Info, error) {
	if s.before != nil {
		s.before(key)
	}
	s.keys = append(s.keys, key)
	return s.Store.Put(ctx, key, body, o)
}

func isSpec(key string) bool { return strings.HasSuffix(key, "etcd-cluster-spec") }

// plan is a restore of the only backup, into another size.
func (b *bench) plan(c *Client, members int) *RestorePlan {
	b.t.Helper()
	p, err := c.PlanRestore(b.t.Context(), RestoreRequest{Backup: Latest, Spec: SpecChange{MemberCount: &members}})
	must(b.t, err)
	return p
}

// TestCommandBeforeSpec: the command is queued before the spec is written, so that a crash in
// between resizes no cluster that nobody restores.
func TestCommandBeforeSpec(t *testing.T) {
	b := newBench(t)
	b.backup(backup1, "main", 1234)
	w := &writes{Store: b.memory}
	b.store = w
	c := b.client()
	q, err := c.Restore(t.Context(), b.plan(c, 3))
	must(t, err)
	command := slices.IndexFunc(w.keys, func(k string) bool { return strings.Contains(k, q.Command.Name) })
	spec := slices.IndexFunc(w.keys, isSpec)
	if command < 0 || spec < 0 || command > spec {
		t.Errorf("written in this order: %q", w.keys)
	}
	if q.Spec.When != SpecWritten || q.Spec.Before != nil || q.Spec.After.MemberCount != 3 {
		t.Errorf("the effect is %+v", q.Spec)
	}
	// Where there is a spec already the managers write it, when the restore is done.
	w.keys = nil
	q, err = c.Restore(t.Context(), b.plan(c, 5))
	must(t, err)
	if slices.ContainsFunc(w.keys, isSpec) || !q.Command.Options.SetSpec || q.Spec.When != SpecWhenDone {
		t.Errorf("wrote %q; queued %+v, %+v", w.keys, q.Command, q.Spec)
	}
	if len(q.Others) != 1 {
		t.Errorf("beside it stand %+v", q.Others)
	}
}

// TestWithdrawnOnFailure: a restore whose spec can't be written doesn't stay in the queue; if it does, the error says so.
func TestWithdrawnOnFailure(t *testing.T) {
	b := newBench(t)
	b.backup(backup1, "main", 1234)
	f := blobtest.NewFaulty(b.memory)
	b.store = f
	c := b.client()
	f.Add(blobtest.Fault{Op: "put", Match: isSpec, Err: blobtest.Denied("put", "control/etcd-cluster-spec", "s3:PutObject")})
	_, err := c.Restore(t.Context(), b.plan(c, 5))
	var failed *SpecError
	if !errors.As(err, &failed) || failed.Withdraw != nil || !errors.Is(err, ErrDenied) {
		t.Errorf("%v", err)
	}
	if left := b.queued(); len(left) > 0 {
		t.Errorf("it stays queued: %+v", left)
	}
	f.Add(blobtest.Fault{Op: "purge", Err: blobtest.Transient("purge", "control/")})
	_, err = c.Restore(t.Context(), b.plan(c, 5))
	if !errors.As(err, &failed) || failed.Withdraw == nil {
		t.Errorf("%v", err)
	}
	if left := b.queued(); len(left) != 1 || left[0].Name != failed.Command {
		t.Errorf("queued: %+v, the error names %s", left, failed.Command)
	}
}

// TestAnswerLost: a command that the store has taken without saying so is queued once; if the store
// can't be asked, the error says that nothing is known.
func TestAnswerLost(t *testing.T) {
	for _, away := range []bool{false, true} {
		b := newBench(t)
		b.spec(3, "3.5.21")
		b.backup(backup1, "main", 1234)
		f := blobtest.NewFaulty(b.memory)
		b.store = f
		c := b.client()
		p, err := c.PlanRestore(t.Context(), RestoreRequest{Backup: backup1})
		must(t, err)
		f.Add(blobtest.Fault{Op: "put", After: true, Err: blobtest.Transient("put", "control/x")})
		if away {
			f.Add(blobtest.Fault{Op: "get", Match: func(key string) bool { return strings.HasSuffix(key, "_command.json") },
				Err: blobtest.Transient("get", "control/x")})
		}
		_, err = c.Restore(t.Context(), p)
		var uncertain *UncertainError
		if errors.As(err, &uncertain) != away || (err == nil) == away {
			t.Errorf("away %t: %v", away, err)
		}
		if n := len(b.queued()); n != 1 {
			t.Errorf("away %t: %d commands are queued", away, n)
		}
	}
}

// TestConfigureKeepsTheOther: what somebody else writes between reading and writing is kept; if it never ends, that is an error.
func TestConfigureKeepsTheOther(t *testing.T) {
	b := newBench(t)
	b.spec(3, "3.5.21")
	w := &writes{Store: b.memory}
	b.store = w
	c := b.client()
	other := func(change func(*cluster.Spec)) {
		spec, version, err := b.catalog().Spec(context.Background())
		must(t, err)
		change(&spec)
		_, err = b.catalog().ReplaceSpec(context.Background(), spec, version)
		must(t, err)
	}
	w.before = func(key string) {
		if isSpec(key) {
			w.before = nil
			other(func(s *cluster.Spec) { s.MemberCount = 5 })
		}
	}
	version := "3.6.1"
	got, err := c.Configure(t.Context(), SpecChange{EtcdVersion: &version}, SettingsChange{})
	if err != nil || got.MemberCount != 5 || got.EtcdVersion != version {
		t.Errorf("%+v, %v", got, err)
	}
	n := 0
	w.before = func(key string) {
		if isSpec(key) {
			n++
			other(func(s *cluster.Spec) { s.MemberCount = 1 + 2*(n%4) })
		}
	}
	if _, err := c.Configure(t.Context(), SpecChange{EtcdVersion: new("3.6.2")}, SettingsChange{}); err == nil || n != configureAttempts {
		t.Errorf("after %d attempts: %v", n, err)
	}
	w.before = func(key string) {
		if strings.Contains(key, "settings") {
			w.before = nil
			must(t, b.catalog().PutSettings(context.Background(), cluster.Settings{"auto-compaction-retention": "1h"}, ""))
		}
	}
	got, err = c.Configure(t.Context(), SpecChange{}, SettingsChange{Set: []Setting{{"quota-backend-bytes", "8GiB"}}})
	if err != nil || len(got.Settings) != 2 {
		t.Errorf("settings %v, %v", got.Settings, err)
	}
}

// TestWhatAnUndoRestores: the old data dirs, which have everything; in their absence the backup that was made right before; else nothing.
func TestWhatAnUndoRestores(t *testing.T) {
	const safety, gone = "2026-02-01T10:00:30Z-000000", "2026-02-01T10:00:31Z-000000"
	const id = "2026-02-01T10:00:00Z-000000"
	for _, k := range []struct {
		token  cluster.Token
		backup string
		// revision is to what the changes after the backup lead; 0 if it has everything itself.
		revision int64
		source   *catalog.Source
		bring    string
		why      UndoRefusal
	}{
		{"old", safety, 0, &catalog.Source{Token: "old", OrBackup: safety}, "", ""},
		{"old", gone, 0, &catalog.Source{Token: "old"}, "", ""},
		{"old", "", 0, &catalog.Source{Token: "old"}, "", ""},
		{"", safety, 0, nil, safety, ""},
		{"", gone, 0, nil, "", UndoGone},
		{"", "", 0, nil, "", UndoFirst},
		{"old", safety, 5678, &catalog.Source{Token: "old", OrBackup: safety, OrRevision: 5678}, "", ""},
		{"", safety, 5678, nil, safety, ""},
		{"", gone, 5678, nil, safety, ""}, // another backup leads there too
		// The changes are gone.
		{"old", safety, 6000, &catalog.Source{Token: "old"}, "", ""},
		{"", safety, 6000, nil, "", UndoGone},
	} {
		b := newBench(t)
		b.spec(3, "3.5.21")
		b.clusterID = 77
		b.backup(safety, "main", 5678)
		must(t, b.catalog().CreateIncarnation(t.Context(), catalog.IncarnationRecord{ID: catalog.IncarnationOf(77), ClusterName: "main", ClusterID: 77}))
		b.record(id, catalog.StateDone, "", func(op *catalog.Operation) {
			op.OldToken, op.SafetyBackup = k.token, k.backup
			if k.revision > 0 {
				op.SafetyBackup, op.SafetyPoint = "", &catalog.SafetyPoint{Backup: k.backup, PointInTime: catalog.PointInTime{Incarnation: catalog.IncarnationOf(77), Revision: k.revision}}
			}
		})
		c := b.client()
		p, err := c.PlanUndo(t.Context(), UndoRequest{})
		var refused *UndoError
		if k.why != "" {
			if !errors.As(err, &refused) || refused.Why != k.why {
				t.Errorf("%+v: %v", k, err)
			}
			if _, err := c.Undo(t.Context(), p); err == nil || len(b.queued()) > 0 {
				t.Errorf("%+v: a plan that failed is queued: %v", k, err)
			}
			continue
		}
		must(t, err)
		_, err = c.Undo(t.Context(), p)
		must(t, err)
		q := b.queued()
		if len(q) != 1 || q[0].Backup != k.bring || (q[0].Source == nil) != (k.source == nil) || k.source != nil &&
			*q[0].Source != *k.source || q[0].Options.Reason != "undo of "+id || k.bring != "" && q[0].Options.ToRevision != k.revision {
			t.Errorf("%+v: queued %+v", k, q)
		}
	}
}

// TestUndoChoice: the newest that was done, or the one that is named; nothing while another one waits or runs.
func TestUndoChoice(t *testing.T) {
	const first, second, failed = "2026-02-01T08:00:00Z-000000", "2026-02-01T09:00:00Z-000000", "2026-02-01T10:00:00Z-000000"
	b := newBench(t)
	b.spec(3, "3.5.21")
	c := b.client()
	refusal := func(name string) UndoRefusal {
		_, err := c.PlanUndo(t.Context(), UndoRequest{Operation: name})
		var e *UndoError
		errors.As(err, &e)
		if e == nil {
			return ""
		}
		return e.Why
	}
	if why := refusal(""); why != UndoNothing {
		t.Errorf("of an empty history: %q", why)
	}
	token := func(op *catalog.Operation) { op.OldToken = "old" }
	b.record(first, catalog.StateDone, "", token)
	b.record(second, catalog.StateDone, "", token)
	b.record(failed, catalog.StateFailed, "", nil)
	p, err := c.PlanUndo(t.Context(), UndoRequest{})
	if err != nil || p.Operation.ID != second || len(p.Later) != 0 || len(p.EndedSince) != 1 {
		t.Errorf("the newest: %+v, %v", p, err)
	}
	p, err = c.PlanUndo(t.Context(), UndoRequest{Operation: first})
	if err != nil || p.Operation.ID != first || len(p.Later) != 1 || p.Later[0].ID != second {
		t.Errorf("the first: %+v, %v", p, err)
	}
	waiting := b.queue(backup1)
	for name, want := range map[string]UndoRefusal{"": UndoWaiting, waiting: UndoNotBegun, failed: UndoNotDone,
		"nobody": UndoUnknown, first: ""} {
		if why := refusal(name); why != want {
			t.Errorf("%q while one waits: %q, want %q", name, why, want)
		}
	}
	b.record(waiting, catalog.StateStaging, "", nil)
	for name, want := range map[string]UndoRefusal{"": UndoRunning, waiting: UndoNotEnded, first: ""} {
		if why := refusal(name); why != want {
			t.Errorf("%q while one runs: %q, want %q", name, why, want)
		}
	}
}

// TestForeignBackup: another cluster's backup is refused before anything is queued, unless it is asked for.
func TestForeignBackup(t *testing.T) {
	b := newBench(t)
	b.spec(3, "3.5.21")
	const foreign = "2026-01-30T04:00:00Z-000000"
	b.backup(foreign, "events", 3)
	c := b.client()
	if _, err := c.PlanRestore(t.Context(), RestoreRequest{Backup: foreign}); err != nil {
		t.Errorf("the only one of its kind tells nothing: %v", err)
	}
	b.backup("2026-01-30T02:00:00Z-000000", "", 2) // imported: it names none
	b.backup("2026-01-30T01:00:00Z-000000", "main", 1)
	p, err := c.PlanRestore(t.Context(), RestoreRequest{Backup: foreign})
	var e *ForeignBackupError
	if !errors.As(err, &e) || e.Cluster != "events" || e.Others != "main" || p.Backup != nil {
		t.Errorf("%v, %+v", err, p)
	}
	if _, err := c.Restore(t.Context(), p); err == nil || len(b.queued()) > 0 {
		t.Errorf("a plan that failed is queued: %v", err)
	}
	if _, err := c.PlanRestore(t.Context(), RestoreRequest{Backup: foreign, Options: RestoreOptions{ForceForeign: true}}); err != nil {
		t.Error(err)
	}
	if _, err := c.PlanRestore(t.Context(), RestoreRequest{Backup: "2026-01-30T02:00:00Z-000000"}); err != nil {
		t.Errorf("one that names no cluster: %v", err)
	}
}

// TestWithdraw: what has stopped nothing yet is withdrawn, everything later is kept.
func TestWithdraw(t *testing.T) {
	for _, k := range []struct {
		state catalog.OperationState
		kept  bool
	}{
		{"", false}, {catalog.StateSalvaging, false}, {catalog.StateProving, false}, {catalog.StateStaging, false},
		{catalog.StateSaving, false},
		{catalog.StateStopping, true}, {catalog.StateSwitching, true}, {catalog.StateVerifying, true}, {catalog.StateReverting, true},
	} {
		b := newBench(t)
		b.spec(3, "3.5.21")
		name := b.queue(backup1)
		if k.state != "" {
			b.record(name, k.state, "", nil)
		}
		w, err := b.client().Withdraw(t.Context(), backup1)
		must(t, err)
		if (len(w.Kept) == 1) != k.kept || (len(w.Removed) == 1) == k.kept || (len(b.queued()) == 1) != k.kept {
			t.Errorf("%q: %+v, queued %+v", k.state, w, b.queued())
		}
	}
	var none *NoCommandError
	if _, err := newBench(t).client().Withdraw(t.Context(), "nobody"); !errors.As(err, &none) || !none.Queue {
		t.Errorf("%v", err)
	}
}

// TestWithdrawTooLate: the managers begin to stop etcd in the very moment of the withdrawal.
func TestWithdrawTooLate(t *testing.T) {
	b := newBench(t)
	b.spec(3, "3.5.21")
	name := b.queue(backup1)
	version := b.record(name, catalog.StateSaving, "", nil)
	b.store = onPurge{b.memory, func() { b.record(name, catalog.StateStopping, version, nil) }}
	w, err := b.client().Withdraw(t.Context(), name)
	if err != nil || len(w.Removed) != 1 || w.Removed[0].TooLate != catalog.StateStopping {
		t.Errorf("%+v, %v", w, err)
	}
}

// onPurge lets something happen right before the store deletes.
type onPurge struct {
	blob.Store
	before func()
}

func (s onPurge) Purge(ctx context.Context, prefix string, match func(string) bool) (int, error) {
	s.before()
	return s.Store.Purge(ctx, prefix, match)
}

// TestRecoverNamesItsSurvivor: what is queued is the data dir of the survivor that the plan has shown, and the spec is written at once.
func TestRecoverNamesItsSurvivor(t *testing.T) {
	b := newBench(t)
	b.spec(3, "3.5.21")
	c := b.client()
	var none *NoSurvivorsError
	if p, err := c.PlanRecovery(t.Context(), RecoveryRequest{}); !errors.As(err, &none) || none.Members != 3 {
		t.Errorf("%v", err)
	} else if _, err := c.Recover(t.Context(), p); err == nil || len(b.queued()) > 0 {
		t.Errorf("a plan that failed is queued: %v", err)
	}
	must(t, b.catalog().PutSurvivors(t.Context(), catalog.Survivors{At: b.now,
		Nodes: []catalog.Survivor{survivor("a", "tok", 1300, 4, 2000), survivor("b", "tok", 1290, 5, 1990)}}))
	p, err := c.PlanRecovery(t.Context(), RecoveryRequest{Spec: SpecChange{MemberCount: new(1)}, Options: RestoreOptions{Now: true}})
	must(t, err)
	q, err := c.Recover(t.Context(), p)
	must(t, err)
	if cmd := b.queued(); len(cmd) != 1 || cmd[0].Source == nil ||
		*cmd[0].Source != (catalog.Source{Node: "b", Token: "tok"}) || q.Spec.When != SpecWritten {
		t.Errorf("queued %+v, %+v", cmd, q.Spec)
	}
}

// TestFollowEvents follows a restore by events, over a silent store and to its end.
func TestFollowEvents(t *testing.T) {
	b := newBench(t)
	b.spec(3, "3.5.21")
	f := blobtest.NewFaulty(b.memory)
	b.store = f
	name := b.queue(backup1)
	version := ""
	steps := []func(){
		func() { version = b.record(name, catalog.StateProving, "", nil) },
		func() { f.Add(blobtest.Fault{Op: "list", Err: blobtest.Transient("list", "control/")}) },
		func() { b.now = b.now.Add(time.Minute) },
		func() {
			f.Heal()
			must(t, b.catalog().RemoveCommand(t.Context(), name))
			b.record(name, catalog.StateDone, version, func(op *catalog.Operation) {
				op.SafetyBackup = "s"
				op.Steps = []catalog.Step{{Name: string(catalog.StateSaving), Outcome: catalog.StepDone, Finished: b.now}}
			})
		},
	}
	var got []string
	for e, err := range b.client().Follow(t.Context(), name, FollowOptions{Pause: func(context.Context) bool {
		if len(steps) == 0 {
			return false
		}
		steps[0]()
		steps = steps[1:]
		return true
	}}) {
		must(t, err)
		switch e := e.(type) {
		case Looked:
		case Found:
			got = append(got, "found "+string(e.Command.State()))
		case Waiting:
			got = append(got, "waits for "+string(e.For))
		case Begun:
			got = append(got, "begun by "+string(e.Leader))
		case StateEntered:
			got = append(got, string(e.State))
		case StoreSilent:
			got = append(got, "silent")
		case StoreAnswers:
			got = append(got, "answers after "+e.After.String())
		case StepEnded:
			got = append(got, e.Step.Name+" "+e.Outcome)
		case SafetyBackup:
			got = append(got, "safety "+e.Backup)
		case Ended:
			got = append(got, "ended")
			must(t, e.Err())
		default:
			t.Errorf("%T", e)
		}
	}
	want := []string{"found waiting", "waits for restart", "begun by b", "proving", "silent", "answers after 1m0s",
		"saving done", "safety s", "ended"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestFollowGivesUp: after its patience, and when nobody wants to look any more.
func TestFollowGivesUp(t *testing.T) {
	b := newBench(t)
	b.spec(3, "3.5.21")
	name := b.queue(backup1)
	f := blobtest.NewFaulty(b.memory)
	b.store = f
	follow := func(o FollowOptions) *UnfollowedError {
		var last error
		for _, err := range b.client().Follow(t.Context(), name, o) {
			last = err
		}
		var e *UnfollowedError
		if !errors.As(last, &e) {
			t.Fatalf("it ends with %v", last)
		}
		return e
	}
	if e := follow(FollowOptions{Pause: func(context.Context) bool { return false }}); e.Silent != 0 || e.Operation != nil {
		t.Errorf("%+v", e)
	}
	f.Add(blobtest.Fault{Op: "list", Err: blobtest.Transient("list", "control/")})
	if e := follow(FollowOptions{Patience: 30 * time.Second,
		Pause: func(context.Context) bool { b.now = b.now.Add(10 * time.Second); return true }}); e.Silent != 30*time.Second ||
		!errors.Is(e, ErrTransient) {
		t.Errorf("%+v", e)
	}
}

// TestLookBetweenTwoStates: the record is written and the command removed right after the listing was made, which shows neither.
func TestLookBetweenTwoStates(t *testing.T) {
	b := newBench(t)
	b.spec(3, "3.5.21")
	look := func(name string, then func()) *Look {
		t.Helper()
		b.store = &afterList{b.memory, then}
		l, err := b.client().newWatch(name).look(t.Context())
		must(t, err)
		return l
	}
	name := b.queue("x")
	if l := look(name, func() {
		b.record(name, catalog.StateFailed, "", nil)
		must(t, b.catalog().RemoveCommand(context.Background(), name))
	}); l.Withdrawn || l.Command.Operation == nil || l.Command.Operation.State != catalog.StateFailed {
		t.Errorf("a failure is taken for %+v", l)
	}
	name = b.queue("y")
	if l := look(name, func() { must(t, b.catalog().RemoveCommand(context.Background(), name)) }); !l.Withdrawn {
		t.Errorf("a withdrawal is taken for %+v", l)
	}
}

// TestEmptyStore: a mistyped URL is found out before anything is queued there.
func TestEmptyStore(t *testing.T) {
	memory := map[string]blob.Store{}
	open := func(_ context.Context, url string) (blob.Store, error) {
		if memory[url] == nil {
			memory[url] = blobtest.NewMemory()
		}
		return memory[url], nil
	}
	var empty *EmptyStoreError
	if _, err := Open(t.Context(), Config{Store: "mem://b/mian", Open: open}); !errors.As(err, &empty) || !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
	if _, err := Open(t.Context(), Config{Store: "mem://b/mian", Open: open, AllowEmpty: true}); err != nil {
		t.Error(err)
	}
	var config *ConfigError
	if _, err := Open(t.Context(), Config{Store: "mem://b/x", Open: open, Identities: []string{"/no/such/file"}}); !errors.As(err,
		&config) || config.Field != FieldIdentities {
		t.Errorf("%v", err)
	}
}
