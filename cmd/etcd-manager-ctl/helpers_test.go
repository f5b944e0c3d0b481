package main

import (
	"context"
	"io"
	"iter"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func specOf(n int) cluster.Spec { return cluster.Spec{MemberCount: n} }

func (b broken) Get(context.Context, string, blob.Range) (io.ReadCloser, blob.Info, error) {
	return nil, blob.Info{}, b.err
}

func (b broken) List(context.Context, string, blob.ListOptions) iter.Seq2[blob.Entry, error] {
	return func(yield func(blob.Entry, error) bool) { yield(blob.Entry{}, b.err) }
}

// pause is the time between two looks: the next step happens in it.
func (w *world) pause(ctx context.Context) bool {
	if len(w.steps) == 0 {
		return false
	}
	w.steps[0]()
	w.steps = w.steps[1:]
	return ctx.Err() == nil
}

func (w *world) catalog() *catalog.Catalog {
	return catalog.New(w.store, catalog.WithClock(func() time.Time { return w.now }))
}

func (w *world) spec(n int, version string) {
	w.t.Helper()
	_, err := w.catalog().CreateSpec(context.Background(), cluster.Spec{MemberCount: n, EtcdVersion: version})
	must(w.t, err)
}

func (w *world) pass(d time.Duration) { w.now = w.now.Add(d) }

// goodBackup writes a backup with a manifest in full.
func (w *world) goodBackup(name, clusterName string, revision int64, reason string) {
	w.t.Helper()
	w.put(name+"/etcd.backup.gz", strings.Repeat("x", 1500))
	digest := catalog.Digest{Size: 1500, SHA256: strings.Repeat("0", 64)}
	c := w.catalog()
	must(w.t, c.PutManifest(context.Background(), &catalog.Manifest{Backup: name, ClusterName: clusterName,
		EtcdVersion: "3.5.21", Revision: revision, Reason: reason,
		Compression: "gzip", Raw: digest, Stored: digest}))
	must(w.t, c.CommitBackup(context.Background(), name,
		catalog.BackupInfo{EtcdVersion: "3.5.21", Time: catalog.BackupTime(name),
			Spec: cluster.Spec{MemberCount: 3, EtcdVersion: "3.5.21"}}))
}

func (w *world) queue(backup string, o catalog.RestoreOptions) string {
	w.t.Helper()
	cmd, err := w.catalog().QueueRestore(context.Background(), backup, cluster.Spec{MemberCount: 3, EtcdVersion: "3.5.21"}, o)
	must(w.t, err)
	return cmd.Name
}

// leader writes the record of one operation as pkg/manager does.
type leader struct {
	w       *world
	op      catalog.Operation
	version string
}

// begin is the first step of a leader: the record of what is going to be done.
func (w *world) begin(command string, first catalog.OperationState) *leader {
	w.t.Helper()
	cmd, err := w.catalog().Command(context.Background(), command)
	must(w.t, err)
	l := &leader{w: w, op: catalog.Operation{
		ID: command, Kind: catalog.KindRestore, State: first, Command: command, Backup: cmd.Backup, Source: cmd.Source,
		Options: cmd.Options, Spec: cmd.Spec,
		Members: []cluster.EtcdNode{{Name: "a"}, {Name: "b"}, {Name: "c"}}, NewToken: "newtoken", OldToken: "oldtoken",
		RevisionBefore: 5678,
		Created:        w.now, StateSince: w.now, Term: 7, Leader: "b", Instance: "i1",
	}}
	l.save()
	return l
}

func (l *leader) save() {
	l.w.t.Helper()
	version, err := l.w.catalog().PutOperation(context.Background(), l.op, l.version)
	must(l.w.t, err)
	l.version = version
}

// advance ends the present step.
func (l *leader) advance(to catalog.OperationState, reason string) {
	l.w.t.Helper()
	outcome := catalog.StepDone
	if reason != "" {
		outcome = catalog.StepFailed
	}
	op := &l.op
	op.Steps = append(op.Steps, catalog.Step{Name: string(op.State), Started: op.StateSince, Finished: l.w.now,
		Outcome: outcome, Detail: reason})
	op.State, op.StateSince, op.Reason, op.Progress = to, l.w.now, reason, nil
	if to.Final() {
		op.Finished = l.w.now
		must(l.w.t, l.w.catalog().RemoveCommand(context.Background(), op.Command))
	}
	if to == catalog.StateDone {
		op.RevisionAfter = op.StagedRevision
	}
	l.save()
}

func (l *leader) progress(p map[cluster.NodeID]catalog.Progress) {
	l.w.t.Helper()
	l.op.Progress = p
	l.save()
}

// ended writes the record of an operation that is over.
func (w *world) ended(command, backup string, state catalog.OperationState, change func(*catalog.Operation)) {
	w.t.Helper()
	op := catalog.Operation{ID: command, Command: command, Kind: catalog.KindRestore, Backup: backup, State: state,
		Spec:     cluster.Spec{MemberCount: 3, EtcdVersion: "3.5.21"},
		Created:  catalog.BackupTime(command).Add(time.Minute),
		Finished: catalog.BackupTime(command).Add(2 * time.Minute), Leader: "b", Term: 7, NewToken: "newtoken", RevisionBefore: 5678}
	if state == catalog.StateDone {
		op.RevisionAfter, op.Outage = 1000005678, 4200*time.Millisecond
	}
	if change != nil {
		change(&op)
	}
	_, err := w.catalog().PutOperation(context.Background(), op, "")
	must(w.t, err)
}

// formed writes the marker of a cluster that was created.
func (w *world) formed() {
	w.t.Helper()
	_, err := w.catalog().CreateMarker(context.Background(),
		catalog.Marker{Time: catalog.BackupTime("2026-01-01T00:00:00Z-000000"), Phase: catalog.PhaseFormed,
			Token: "token", Spec: cluster.Spec{MemberCount: 3}})
	must(w.t, err)
}

func openFile(t testing.TB, dir string) blob.Store {
	t.Helper()
	s, err := connect.Open(t.Context(), dir, func(string) string { return "" })
	must(t, err)
	return s
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
