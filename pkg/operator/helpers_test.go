package operator

import (
	"context"
	"iter"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

const backup1 = "2026-01-30T01:02:03Z-000009"

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// bench is a store in memory with a clock that stands still, and no terminal anywhere.
type bench struct {
	// clusterID is of the backups that are written; 0 is none.
	clusterID uint64
	t         *testing.T
	memory    blob.Store
	// store is what the client sees.
	store blob.Store
	now   time.Time
}

func newBench(t *testing.T) *bench {
	m := blobtest.NewMemory()
	return &bench{t: t, memory: m, store: m, now: time.Date(2026, 2, 1, 12, 0, 0, 0, time.UTC)}
}

func (b *bench) clock() time.Time { return b.now }

// catalog sees the store as it is.
func (b *bench) catalog() *catalog.Catalog { return catalog.New(b.memory, catalog.WithClock(b.clock)) }

func (b *bench) client() *Client {
	b.t.Helper()
	c, err := Open(b.t.Context(), Config{Store: "mem://bucket/main", Now: b.clock, AllowEmpty: true,
		Open: func(context.Context, string) (blob.Store, error) { return b.store, nil }})
	must(b.t, err)
	return c
}

func (b *bench) spec(n int, version string) {
	b.t.Helper()
	_, err := b.catalog().CreateSpec(b.t.Context(), cluster.Spec{MemberCount: n, EtcdVersion: version})
	must(b.t, err)
}

// backup writes a backup with a manifest.
func (b *bench) backup(name, clusterName string, revision int64) {
	b.t.Helper()
	ctx := b.t.Context()
	_, err := b.memory.Put(ctx, name+"/etcd.backup.gz", strings.NewReader(strings.Repeat("x", 1500)), blob.PutOptions{})
	must(b.t, err)
	digest := catalog.Digest{Size: 1500, SHA256: strings.Repeat("0", 64)}
	must(b.t, b.catalog().PutManifest(ctx, &catalog.Manifest{Backup: name, ClusterName: clusterName, ClusterID: catalog.HexID(b.clusterID),
		EtcdVersion: "3.5.21", Revision: revision, Reason: "periodic",
		Compression: "gzip", Raw: digest, Stored: digest}))
	must(b.t, b.catalog().CommitBackup(ctx, name, catalog.BackupInfo{EtcdVersion: "3.5.21",
		Time: catalog.BackupTime(name), Spec: cluster.Spec{MemberCount: 3, EtcdVersion: "3.5.21"}}))
}

func (b *bench) queue(backup string) string {
	b.t.Helper()
	cmd, err := b.catalog().QueueRestore(b.t.Context(), backup, cluster.Spec{MemberCount: 3, EtcdVersion: "3.5.21"},
		catalog.RestoreOptions{})
	must(b.t, err)
	return cmd.Name
}

// record writes the record of an operation as a leader does, and returns its version.
func (b *bench) record(command string, state catalog.OperationState, version string, change func(*catalog.Operation)) string {
	b.t.Helper()
	op := catalog.Operation{ID: command, Command: command, Kind: catalog.KindRestore, Backup: backup1, State: state,
		Spec:    cluster.Spec{MemberCount: 3, EtcdVersion: "3.5.21"},
		Created: catalog.BackupTime(command).Add(time.Minute), StateSince: b.now, Leader: "b", Term: 7,
		NewToken: "newtoken", RevisionBefore: 5678}
	if state.Final() {
		op.Finished = op.Created.Add(time.Minute)
	}
	if state == catalog.StateDone {
		op.RevisionAfter, op.Outage = 1000005678, 4200*time.Millisecond
	}
	if change != nil {
		change(&op)
	}
	version, err := b.catalog().PutOperation(b.t.Context(), op, version)
	must(b.t, err)
	return version
}

// queued are the commands that stand in the queue.
func (b *bench) queued() []catalog.Command {
	b.t.Helper()
	cmds, problems, err := b.catalog().Commands(b.t.Context())
	must(b.t, err)
	if len(problems) > 0 {
		b.t.Fatalf("unreadable: %v", problems)
	}
	return cmds
}

// afterList lets something happen after the first listing was made.
type afterList struct {
	blob.Store
	then func()
}

func (s *afterList) List(ctx context.Context, prefix string, o blob.ListOptions) iter.Seq2[blob.Entry, error] {
	var rows []blob.Entry
	var failed error
	for e, err := range s.Store.List(ctx, prefix, o) {
		rows, failed = append(rows, e), err
	}
	if s.then != nil {
		s.then()
		s.then = nil
	}
	return func(yield func(blob.Entry, error) bool) {
		for _, e := range rows {
			if !yield(e, failed) {
				return
			}
		}
	}
}
