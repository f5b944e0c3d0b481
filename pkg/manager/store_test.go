package manager

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/peer"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// noPeers is a manager that is alone.
type noPeers struct{}

func (noPeers) Peers() []peer.Peer { return nil }
func (noPeers) Conn(id cluster.NodeID) (grpc.ClientConnInterface, error) {
	return nil, fmt.Errorf("node %s isn't here", id)
}
func (noPeers) Leader() (cluster.NodeID, cluster.Term) { return "a", 4 }
func (noPeers) Leads(cluster.Term) bool                { return true }
func (noPeers) Changed() <-chan struct{}               { return nil }
func (noPeers) Addresses(cluster.NodeID) []string      { return nil }
func (noPeers) Forget(cluster.NodeID)                  {}
func (noPeers) Exceed(cluster.Term)                    {}
func (noPeers) SetWanted(int)                          {}

// leads makes a leadership that looks at a store.
func leads(t *testing.T, s blob.Store) *leadership {
	t.Helper()
	m, err := New(Config{ClusterName: "test", Self: "a", Instance: "i", Peers: noPeers{}, Catalog: catalog.New(s),
		Policy: model.DefaultPolicy("3.6.0"), Probe: func(context.Context) (bool, error) { return true, nil }})
	if err != nil {
		t.Fatal(err)
	}
	return newLeadership(m, 4)
}

// fill writes what a store of a cluster has below control/.
func fill(t *testing.T, s blob.Store) {
	t.Helper()
	ctx, c := t.Context(), catalog.New(s)
	_, err := c.CreateSpec(ctx, cluster.Spec{MemberCount: 3, EtcdVersion: "3.6.0"})
	must(t, err)
	_, err = c.CreateMarker(ctx, catalog.Marker{Phase: catalog.PhaseFormed, Token: "tok"})
	must(t, err)
	_, err = c.TakeTerm(ctx, 3, "b", "x")
	must(t, err)
	must(t, c.PutSettings(ctx, cluster.Settings{"heartbeat-interval": "100"}, ""))
	_, err = c.QueueRestore(ctx, "2026-01-30T01:02:03Z-000000", cluster.Spec{MemberCount: 3, EtcdVersion: "3.6.0"},
		catalog.RestoreOptions{Now: true})
	must(t, err)
	_, err = c.PutOperation(ctx, catalog.Operation{ID: "2026-01-29T01:02:03Z-000000", Kind: catalog.KindRestore, State: catalog.StateDone,
		Term: 3, Leader: "b", Instance: "x", RevisionAfter: 77}, "")
	must(t, err)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestNothingWaitsForTheList: listing the backups never ends, and everything that decisions need is there all the same.
func TestNothingWaitsForTheList(t *testing.T) {
	m := blobtest.NewMemory()
	fill(t, m)
	f := blobtest.NewFaulty(m)
	f.Add(blobtest.Fault{Op: "list", Match: func(prefix string) bool { return prefix == "" }, Hang: make(chan struct{})})
	l := leads(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	l.wg.Go(func() { l.backups.learn(ctx) })
	begun := time.Now()
	l.readStore(ctx)
	if took := time.Since(begun); l.store.away() || ready(l, 1, true) != "" || took > storeTimeout {
		t.Errorf("after %s: %+v", took, l.known())
	}
	cancel()
	l.wg.Wait()
	if l.backups.newestKnown {
		t.Error("the newest backup can't be known")
	}
}

// TestManyRecords: reading the records of operations takes longer than there is time; the next reading goes on, and the end is reached.
func TestManyRecords(t *testing.T) {
	m := blobtest.NewMemory()
	fill(t, m)
	c := catalog.New(m)
	for i := range 100 {
		state := catalog.StateDone
		if i == 50 {
			state = catalog.StateProving
		}
		_, err := c.PutOperation(t.Context(), catalog.Operation{ID: fmt.Sprintf("2026-01-29T01:02:03Z-%06d", i+1),
			Kind: catalog.KindBackup, State: state}, "")
		must(t, err)
	}
	f := blobtest.NewFaulty(m)
	l := leads(t, f)
	list, err := c.ControlListing(t.Context())
	must(t, err)
	tries := 0
	for l.operations.current() == nil {
		if tries++; tries > 20 {
			t.Fatal("it never comes to an end")
		}
		f.Heal()
		f.Add(blobtest.Fault{Op: "get", Skip: 20, Err: blobtest.Transient("get", "")})
		if err := l.operations.read(t.Context(), list); err == nil && l.operations.current() == nil {
			t.Fatal("the restore under way was not found")
		} else if err != nil && l.operations.current() != nil {
			t.Fatal("it goes on with a restore before it knows all records")
		}
	}
	if tries < 4 || l.operations.current().ID != "2026-01-29T01:02:03Z-000051" {
		t.Errorf("after %d readings it goes on with %s", tries, l.operations.current().ID)
	}
}

// TestQueueIsReadInTime: what wakes the loop shortly before the store is to be read doesn't put that off by another interval.
func TestQueueIsReadInTime(t *testing.T) {
	for _, k := range []struct{ since, least, most time.Duration }{
		{0, 29 * time.Second, 30 * time.Second},
		{27 * time.Second, 2 * time.Second, 3 * time.Second},
		{31 * time.Second, 1, time.Second},
		{-time.Hour, 30 * time.Second, 30 * time.Second},
	} {
		sv := &storeView{shared: &shared{m: &Manager{cfg: Config{Poll: 30 * time.Second}}}, readAt: time.Now().Add(-k.since)}
		if got := sv.dueIn(); got < k.least || got > k.most {
			t.Errorf("%s after it was read it is due in %s; want %s to %s", k.since, got, k.least, k.most)
		}
	}
}
