package manager

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// lastTold is an etcd that says up to which revision clients were told.
type lastTold struct {
	etcdserverpb.UnimplementedKVServer
	revision int64
}

func (s *lastTold) Range(context.Context, *etcdserverpb.RangeRequest) (*etcdserverpb.RangeResponse, error) {
	return &etcdserverpb.RangeResponse{Header: &etcdserverpb.ResponseHeader{ClusterId: 1, Revision: s.revision}}, nil
}

// serve starts the etcd and returns its URL.
func (s *lastTold) serve(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	server := grpc.NewServer()
	etcdserverpb.RegisterKVServer(server, s)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return "http://" + l.Addr().String()
}

// latest is a leader with a restore to the latest state, from a store that has everything up to revision 100.
func latest(t *testing.T, o catalog.RestoreOptions, change func(*catalog.Operation)) *leadership {
	t.Helper()
	l := leads(t, blobtest.NewMemory())
	c := l.m.cfg.Catalog
	at := time.Now().UTC().Truncate(time.Second).Add(-time.Minute)
	name := catalog.NewBackupName(at, nil)
	digest := catalog.Digest{Size: 1, SHA256: strings.Repeat("0", 64)}
	_, err := c.PutBackupData(t.Context(), name, catalog.DataFile, strings.NewReader("x"))
	must(t, err)
	must(t, c.PutManifest(t.Context(), &catalog.Manifest{Backup: name, ClusterName: "test", ClusterID: 1, EtcdVersion: "3.6.0", Revision: 100,
		RevisionAtMost: 100, Raw: digest, Stored: digest, Compression: catalog.CompressionGzip, Started: at, Finished: at}))
	must(t, c.CommitBackup(t.Context(), name, catalog.BackupInfo{EtcdVersion: "3.6.0", Time: at}))
	o.Latest = true
	op := catalog.Operation{ID: "2026-01-29T02:02:03Z-000000", Kind: catalog.KindRestore, State: catalog.StateProving, Backup: name,
		Options: o, OldToken: "tok", Term: 4}
	if change != nil {
		change(&op)
	}
	version, err := c.PutOperation(t.Context(), op, "")
	must(t, err)
	l.operations.set(&op, version, false)
	return l
}

// aimed carries out the step and checks how it ended: at revision 100, or waiting for what these words say.
func aimed(t *testing.T, l *leadership, words ...string) {
	t.Helper()
	must(t, l.operations.step(t.Context(), l.restorer.aim(t.Context())))
	stored, _, err := l.m.cfg.Catalog.Operation(t.Context(), l.operations.current().ID)
	must(t, err)
	if len(words) == 0 {
		if stored.Target == nil || stored.Target.Revision != 100 || stored.Waiting != "" {
			t.Errorf("it goes to %+v, and waits for %q", stored.Target, stored.Waiting)
		}
		return
	}
	if stored.Target != nil || l.restorer.replay() != nil {
		t.Errorf("it goes to %+v", stored.Target)
	}
	words = append(words, "It goes on by itself", "delete-command "+stored.ID, "recover --from-survivor",
		"restore-backup --latest --accept-loss")
	for _, w := range words {
		if !strings.Contains(stored.Waiting, w) {
			t.Errorf("what it waits for doesn't say %q: %q", w, stored.Waiting)
		}
	}
	if stored.State != catalog.StateProving || stored.Reason != "" {
		t.Errorf("it is %s: %s", stored.State, stored.Reason)
	}
}

// TestAimBehindWhatClientsWereTold: a restore to the latest state goes on only if the store has all that clients were told of, or the
// operator accepts that it hasn't. Else it waits, says what it lacks and which ways there are, and goes on once nothing is lacking.
func TestAimBehindWhatClientsWereTold(t *testing.T) {
	for told, behind := range map[int64]bool{99: false, 100: false, 101: true, 5000: true} {
		t.Run(fmt.Sprint(told), func(t *testing.T) {
			l := latest(t, catalog.RestoreOptions{}, nil)
			s := etcdThatTold(t, l, told)
			if !behind {
				aimed(t, l)
				return
			}
			aimed(t, l, fmt.Sprintf("clients were told of revision %d", told), "lead to revision 100", "it has everything up to revision 100")
			s.revision = 100 // as if the store had got the rest
			aimed(t, l)
		})
		t.Run(fmt.Sprint(told, " accepted"), func(t *testing.T) {
			l := latest(t, catalog.RestoreOptions{AcceptLoss: true}, nil)
			etcdThatTold(t, l, told)
			aimed(t, l)
		})
	}
}

func etcdThatTold(t *testing.T, l *leadership, revision int64) *lastTold {
	s := &lastTold{revision: revision}
	l.changes.serving = [][]string{{s.serve(t)}}
	return s
}

// TestAimWithoutAnAnswer: where nobody can say what clients were told, it waits too, unless that is accepted. Where no cluster was, the
// store has all there is.
func TestAimWithoutAnAnswer(t *testing.T) {
	for name, x := range map[string]struct {
		options catalog.RestoreOptions
		change  func(*catalog.Operation)
		words   []string
	}{
		"no member answers":           {words: []string{"no member"}},
		"no member answers, accepted": {options: catalog.RestoreOptions{AcceptLoss: true}},
		"no cluster was here":         {change: func(op *catalog.Operation) { op.OldToken = "" }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := latest(t, x.options, x.change)
				begun := time.Now()
				aimed(t, l, x.words...)
				if took := time.Since(begun); took > flushTimeout {
					t.Errorf("the step took %s", took)
				}
			})
		})
	}
	t.Run("the recording of a replaced cluster hasn't ended", func(t *testing.T) {
		l := latest(t, catalog.RestoreOptions{}, nil)
		r, err := changelog.NewRecorder(changelog.Config{Catalog: l.m.cfg.Catalog, Dir: t.TempDir(), Interval: time.Second,
			Members: func() []changelog.Dialer { return nil }})
		must(t, err)
		l.changes.recording = &recording{token: "replaced", recorder: r}
		etcdThatTold(t, l, 100)
		aimed(t, l)
	})
	t.Run("nothing is recorded yet", func(t *testing.T) {
		l := latest(t, catalog.RestoreOptions{}, nil)
		l.m.cfg.Changes.Interval = time.Second
		etcdThatTold(t, l, 100)
		aimed(t, l, "the recording of changes hasn't begun yet")
	})
}

// TestReplayDoesNotGrow: what the nodes are told of a point is as small with very many segments as with none.
func TestReplayDoesNotGrow(t *testing.T) {
	const segments = 50_000
	name := func(i int) catalog.SegmentName {
		sum := func(i int) catalog.SegmentSum { return catalog.SegmentSum(fmt.Sprintf("%016x", i)) }
		return catalog.SegmentName{First: int64(i)*10 + 101, Last: int64(i)*10 + 110, Ended: time.UnixMilli(int64(i)),
			Previous: sum(i), Sum: sum(i + 1)}
	}
	s := &blobtest.Long{Memory: blobtest.NewMemory(), Count: segments, Body: func(string) []byte { return nil }}
	s.Key = func(i int) string { return "changes/0000000000000001/" + name(i).String() }
	l := leads(t, s)
	for _, n := range []int{0, 1, segments} {
		target := &catalog.PointInTime{Incarnation: catalog.IncarnationOf(1), BaseRevision: 100, Revision: int64(100 + n*10)}
		if n > 0 {
			target.Head = name(n - 1).String()
		}
		l.operations.set(&catalog.Operation{ID: "2026-01-29T02:02:03Z-000000", Target: target}, "1", false)
		r := l.restorer.replay()
		if len(r.GetSegments()) > 0 || proto.Size(r) > 200 || r.GetHead() != target.Head || r.GetRevision() != target.Revision {
			t.Errorf("%d segments: %d bytes, %d are named", n, proto.Size(r), len(r.GetSegments()))
		}
	}
}

// TestLeftOut: what the cluster that serves was seen to have beyond the newest revision that is restored; nothing of another incarnation,
// of another cluster's nodes, or beyond a point that was asked for.
func TestLeftOut(t *testing.T) {
	node := func(token cluster.Token, revision int64) cluster.NodeStatus {
		return cluster.NodeStatus{State: &cluster.EtcdState{Token: token}, Etcd: cluster.EtcdStatus{Revision: revision}}
	}
	nodes := []cluster.NodeStatus{node("old", 120), node("old", 0), node("other", 900), node("old", 117), {Etcd: cluster.EtcdStatus{Revision: 800}}}
	target := &catalog.PointInTime{Incarnation: "i", Revision: 100}
	for name, x := range map[string]struct {
		op   catalog.Operation
		want int64
	}{
		"latest":              {catalog.Operation{OldToken: "old", Target: target, Options: catalog.RestoreOptions{Latest: true}}, 20},
		"all is in it":        {catalog.Operation{OldToken: "old", Target: &catalog.PointInTime{Incarnation: "i", Revision: 130}, Options: catalog.RestoreOptions{Latest: true}}, 0},
		"another incarnation": {catalog.Operation{OldToken: "old", Target: &catalog.PointInTime{Incarnation: "h", Revision: 1}, Options: catalog.RestoreOptions{Latest: true}}, 0},
		"a point":             {catalog.Operation{OldToken: "old", Target: target, Options: catalog.RestoreOptions{ToRevision: 100}}, 0},
		"a backup":            {catalog.Operation{OldToken: "old"}, 0},
	} {
		if got := leftOut(&x.op, "i", nodes); got != x.want {
			t.Errorf("%s: %d, want %d", name, got, x.want)
		}
	}
}
