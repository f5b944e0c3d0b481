package manager

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/peer"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	"github.com/etcd-manager/etcd-manager/pkg/plan/safety"
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
	_, err = c.QueueRestore(ctx, "2026-01-30T01:02:03Z-000000", cluster.Spec{MemberCount: 3, EtcdVersion: "3.6.0"}, catalog.RestoreOptions{Now: true})
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

// TestOneBadObject: an object below control/ that can't be used, for whichever reason, is named. All else is read and obeyed, as far as it
// is safe without that object.
func TestOneBadObject(t *testing.T) {
	for object, x := range map[string]struct {
		key   string
		check func(l *leadership) string
	}{
		"marker": {"control/etcd-cluster-created", func(l *leadership) string {
			if l.known().Marker.Phase != model.MarkerFormed {
				return "a cluster may be formed"
			}
			return ready(l, true)
		}},
		"leader": {"control/leader", func(l *leadership) string {
			if !l.record.since.IsZero() {
				return "a leader that nobody knows counts as gone"
			}
			return ready(l, true)
		}},
		"operation": {"control/operations/2026-01-29T01:02:03Z-000000.json", func(l *leadership) string {
			return ready(l, false) // it may be a restore that is under way
		}},
	} {
		for kind, content := range map[string]string{"empty": "", "damaged": "{\"version\":1,", "newer": `{"version":99,"timestamp":1,"state":"x","phase":"x"}`, "too large": strings.Repeat("x", 2<<20)} {
			t.Run(object+" "+kind, func(t *testing.T) {
				m := blobtest.NewMemory()
				fill(t, m)
				_, err := m.Put(t.Context(), x.key, strings.NewReader(content), blob.PutOptions{})
				must(t, err)
				checkBad(t, m, x.key, x.check)
			})
		}
		t.Run(object+" denied", func(t *testing.T) {
			m := blobtest.NewMemory()
			fill(t, m)
			f := blobtest.NewFaulty(m)
			f.Add(blobtest.Fault{Op: "get", Match: func(k string) bool { return k == x.key }, Err: blobtest.Denied("get", x.key, "s3:GetObject")})
			checkBad(t, f, x.key, x.check)
		})
	}
}

func ready(l *leadership, want bool) string {
	s := l.known()
	if len(s.Commands) != 1 || s.Commands[0].Ready != want {
		return fmt.Sprintf("the commands are %+v; want one that is ready: %t", s.Commands, want)
	}
	return ""
}

func checkBad(t *testing.T, s blob.Store, key string, check func(*leadership) string) {
	t.Helper()
	l := leads(t, s)
	l.readStore(t.Context())
	v := l.known()
	if v.Error != "" || v.Spec == nil || v.Settings == nil {
		t.Fatalf("the store counts as away, or isn't read: %q, %+v", v.Error, v)
	}
	if said := strings.Join(v.ObjectErrors, "") + v.HolderError; !strings.Contains(said, key) {
		t.Errorf("the object isn't named: %q", said)
	}
	if wrong := check(l); wrong != "" {
		t.Error(wrong)
	}
	if why := safety.Check(&model.Observation{Self: "a", Term: 4, Store: v}, model.CreateMarker{}, model.Policy{}); why == nil {
		t.Error("a cluster may be formed")
	}
	// Once the object is right again nothing is left of it.
	inner := s
	if f, ok := s.(*blobtest.Faulty); ok {
		f.Heal()
		inner = f.Store
	}
	fresh := blobtest.NewMemory()
	fill(t, fresh)
	data, _, err := blob.ReadAll(t.Context(), fresh, key, 1<<20)
	must(t, err)
	_, err = inner.Put(t.Context(), key, strings.NewReader(string(data)), blob.PutOptions{})
	must(t, err)
	l.forceStore()
	l.readStore(t.Context())
	v = l.known()
	if len(v.ObjectErrors) != 0 || v.HolderError != "" || v.Error != "" || v.Marker.Token != "tok" || ready(l, true) != "" {
		t.Errorf("after the repair: %+v", v)
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
	if took := time.Since(begun); l.store.away() || ready(l, true) != "" || took > storeTimeout {
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
		_, err := c.PutOperation(t.Context(), catalog.Operation{ID: fmt.Sprintf("2026-01-29T01:02:03Z-%06d", i+1), Kind: catalog.KindBackup, State: state}, "")
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
