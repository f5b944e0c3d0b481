package catalog

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

func TestSpec(t *testing.T) {
	onStores(t, func(t *testing.T, s blob.Store) {
		ctx, c := context.Background(), New(s)
		_, _, err := c.Spec(ctx)
		wantIs(t, err, ErrNotFound)
		spec := cluster.Spec{MemberCount: 3, EtcdVersion: "3.5.21"}
		if _, err := c.CreateSpec(ctx, spec); err != nil {
			t.Fatal(err)
		}
		golden(t, "etcd-cluster-spec", get(t, s, "control/etcd-cluster-spec"))
		_, err = c.CreateSpec(ctx, cluster.Spec{MemberCount: 1})
		wantIs(t, err, ErrConflict)
		got, version, err := c.Spec(ctx)
		if err != nil || got != spec {
			t.Fatalf("got %v, %v", got, err)
		}
		spec.MemberCount = 5
		next, err := c.ReplaceSpec(ctx, spec, version)
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.ReplaceSpec(ctx, cluster.Spec{MemberCount: 1}, version)
		wantIs(t, err, ErrConflict)
		if _, err = c.ReplaceSpec(ctx, spec, next); err != nil {
			t.Fatal(err)
		}
		_, err = c.ReplaceSpec(ctx, spec, "")
		wantIs(t, err, ErrInvalid)
	})
}

func TestSpecAsOthersWriteIt(t *testing.T) {
	for content, want := range map[string]cluster.Spec{
		`{"memberCount":3,"etcdVersion":"3.5.21"}`:             {MemberCount: 3, EtcdVersion: "3.5.21"},
		`{"memberCount":"3"}`:                                  {MemberCount: 3},
		"{\n  \"memberCount\": 1\n}\n":                         {MemberCount: 1},
		`{"member_count":5,"etcd_version":"v3.4.3","new":{}}`:  {MemberCount: 5, EtcdVersion: "3.4.3"},
		`{"memberCount":0,"etcdVersion":""}`:                   {},
		`{"memberCount":3,"etcdVersion":"3.5.21","x":[1,"y"]}`: {MemberCount: 3, EtcdVersion: "3.5.21"},
	} {
		s := blobtest.NewMemory()
		put(t, s, "control/etcd-cluster-spec", content)
		if got, _, err := New(s).Spec(context.Background()); err != nil || got != want {
			t.Errorf("%s: got %v, %v; want %v", content, got, err, want)
		}
	}
	for _, content := range []string{"", " \n", "null", "3", "{", `{"memberCount":"three"}`, `{"memberCount":3}x`, "\x00\x01", `[]`} {
		s := blobtest.NewMemory()
		put(t, s, "control/etcd-cluster-spec", content)
		_, _, err := New(s).Spec(context.Background())
		wantObject(t, err, "control/etcd-cluster-spec", cluster.ErrCorrupt)
	}
	s := blobtest.NewMemory()
	put(t, s, "control/etcd-cluster-spec", string(make([]byte, maxObject+1)))
	_, _, err := New(s).Spec(context.Background())
	wantObject(t, err, "control/etcd-cluster-spec", cluster.ErrCorrupt)
	_, _, err = New(failing{s}).Spec(context.Background())
	wantIs(t, err, ErrTransient)
	if errors.Is(err, ErrNotFound) || errors.Is(err, cluster.ErrCorrupt) {
		t.Fatalf("%v is more than unavailable", err)
	}
}

func TestValidateSpec(t *testing.T) {
	for _, n := range []int{1, 3, 5, 7, 9} {
		if err := ValidateSpec(cluster.Spec{MemberCount: n, EtcdVersion: "3.6.16"}); err != nil {
			t.Error(err)
		}
	}
	for _, n := range []int{-1, 0, 2, 4, 10, 100} {
		wantIs(t, ValidateSpec(cluster.Spec{MemberCount: n}), ErrInvalid)
	}
	for _, v := range []string{"3", "3.6", "latest", "3.6.16 ", "3.6.x"} {
		wantIs(t, ValidateSpec(cluster.Spec{MemberCount: 3, EtcdVersion: v}), ErrInvalid)
	}
}

func TestMarker(t *testing.T) {
	onStores(t, func(t *testing.T, s blob.Store) {
		ctx, c := context.Background(), New(s, WithClock(newClock("2026-01-30T01:02:03.000000004Z").now))
		_, _, err := c.Marker(ctx)
		wantIs(t, err, ErrNotFound)
		m := Marker{Phase: PhaseForming, Token: "tok", Founders: testNodes,
			Spec: cluster.Spec{MemberCount: 3, EtcdVersion: "3.6.16"}, Term: 7, Leader: "a"}
		version, err := c.CreateMarker(ctx, m)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "etcd-cluster-created", get(t, s, "control/etcd-cluster-created")+"\n")
		rival := m
		rival.Leader, rival.Term = "b", 8
		_, err = c.CreateMarker(ctx, rival)
		wantIs(t, err, ErrConflict)
		got, readVersion, err := c.Marker(ctx)
		m.Time = time.Date(2026, 1, 30, 1, 2, 3, 4, time.UTC)
		if err != nil || !reflect.DeepEqual(got, m) || readVersion != version {
			t.Fatalf("got %+v version %q, %v; want %+v version %q", got, readVersion, err, m, version)
		}
		got.Phase = PhaseFormed
		if _, err := c.ReplaceMarker(ctx, got, version); err != nil {
			t.Fatal(err)
		}
		_, err = c.ReplaceMarker(ctx, m, version)
		wantIs(t, err, ErrConflict)
		if got, _, err = c.Marker(ctx); err != nil || got.Phase != PhaseFormed {
			t.Fatalf("got %+v, %v", got, err)
		}
		_, err = c.ReplaceMarker(ctx, Marker{}, version)
		wantIs(t, err, ErrInvalid)
	})
}

func TestMarkerAsOthersWriteIt(t *testing.T) {
	for _, content := range []string{`{"timestamp":1516000000000000000}`, `{"timestamp":"1516000000000000000"}`,
		`{"timestamp":1516000000000000000,"by":"x"}`, `{"timestamp":1.516e18}`, `{}`} {
		s := blobtest.NewMemory()
		put(t, s, markerKey, content)
		m, version, err := New(s).Marker(context.Background())
		if err != nil || m.Phase != PhaseFormed || version == "" {
			t.Errorf("%s: got %+v, %v", content, m, err)
		}
		if content != `{}` && m.Time.UnixNano() != 1516000000000000000 {
			t.Errorf("%s: time %s", content, m.Time)
		}
	}
	for _, content := range []string{"", "null", "true", "[]", `"x"`, "{", `{"timestamp":"yesterday"}`,
		`{"timestamp":1,"version":1,"phase":"forming"}`} {
		s := blobtest.NewMemory()
		put(t, s, markerKey, content)
		_, _, err := New(s).Marker(context.Background())
		wantObject(t, err, markerKey, cluster.ErrCorrupt)
	}
	for _, content := range []string{`{"timestamp":1,"version":2}`, `{"timestamp":1,"version":1,"phase":"merging"}`} {
		s := blobtest.NewMemory()
		put(t, s, markerKey, content)
		_, _, err := New(s).Marker(context.Background())
		wantObject(t, err, markerKey, cluster.ErrFuture)
	}
}

func TestTakeTerm(t *testing.T) {
	onStores(t, func(t *testing.T, s blob.Store) {
		for _, fenced := range []bool{true, false} {
			if _, err := s.Purge(context.Background(), leaderKey, func(string) bool { return true }); err != nil {
				t.Fatal(err)
			}
			ctx, now := context.Background(), newClock("2026-01-30T01:02:03Z")
			c := New(s, WithClock(now.now))
			take := c.TakeTerm
			if !fenced {
				take = c.TakeTermUnfenced
			}
			a, err := take(ctx, 3, "a", "a1")
			if err != nil {
				t.Fatal(err)
			}
			if a.Fenced() != fenced {
				t.Fatalf("fenced %v", a.Fenced())
			}
			golden(t, "leader", get(t, s, leaderKey))
			again, err := take(ctx, 3, "a", "a1")
			if err != nil || again.Record().Term != 3 {
				t.Fatalf("taking it twice: %v", err)
			}
			for _, rival := range []struct {
				term     cluster.Term
				node     cluster.NodeID
				instance string
			}{{3, "a", "a2"}, {3, "b", "a1"}, {2, "a", "a1"}, {1, "c", "c1"}} {
				_, err := take(ctx, rival.term, rival.node, rival.instance)
				var f *FencedError
				if !errors.As(err, &f) || !errors.Is(err, ErrFenced) || f.Stored.Term != 3 || f.Stored.Node != "a" ||
					f.Stored.Instance != "a1" {
					t.Fatalf("%+v: got %v", rival, err)
				}
			}
			now.add(time.Minute)
			if err := a.Heartbeat(ctx); err != nil {
				t.Fatal(err)
			}
			// Another hold of the same leadership has written in between, as an answer that was lost would have.
			if err := again.Heartbeat(ctx); err != nil {
				t.Fatal(err)
			}
			if r, _, err := c.Leader(ctx); err != nil || !r.Time.Equal(now.now()) {
				t.Fatalf("after heartbeat %+v, %v", r, err)
			}
			if _, err := take(ctx, 4, "b", "b1"); err != nil {
				t.Fatal(err)
			}
			wantIs(t, a.Heartbeat(ctx), ErrFenced)
			if r, _, err := c.Leader(ctx); err != nil || r.Node != "b" {
				t.Fatalf("a lost leader wrote: %+v, %v", r, err)
			}
			_, err = take(ctx, 0, "a", "a1")
			wantIs(t, err, ErrInvalid)
		}
	})
}

func TestTakeTermRace(t *testing.T) {
	onStores(t, func(t *testing.T, s blob.Store) {
		c := New(s)
		for term := cluster.Term(1); term <= 5; term++ {
			var wg sync.WaitGroup
			var mu sync.Mutex
			winners := 0
			for _, node := range []cluster.NodeID{"a", "b", "c", "d", "e", "f"} {
				wg.Go(func() {
					_, err := c.TakeTerm(context.Background(), term, node, "1")
					mu.Lock()
					defer mu.Unlock()
					if err == nil {
						winners++
					} else if !errors.Is(err, ErrFenced) {
						t.Errorf("term %d node %s: %v", term, node, err)
					}
				})
			}
			wg.Wait()
			if winners != 1 {
				t.Fatalf("term %d has %d holders", term, winners)
			}
		}
	})
}

func TestLeaderUnreadable(t *testing.T) {
	for content, kind := range map[string]error{
		"": cluster.ErrCorrupt, "{}": cluster.ErrCorrupt, `{"version":1,"term":0,"node":"a"}`: cluster.ErrCorrupt,
		`{"version":2,"term":1,"node":"a"}`: cluster.ErrFuture, "garbage": cluster.ErrCorrupt,
	} {
		s := blobtest.NewMemory()
		put(t, s, leaderKey, content)
		_, err := New(s).TakeTerm(context.Background(), 9, "a", "1")
		wantObject(t, err, leaderKey, kind)
		if got := get(t, s, leaderKey); got != content {
			t.Fatalf("%q was overwritten by %q", content, got)
		}
	}
}

// TestLeaderOfACorruptTerm: a term that no history reaches fences nobody for good; the error says how to get out, and the object stays.
func TestLeaderOfACorruptTerm(t *testing.T) {
	for name, term := range map[string]cluster.Term{
		"the last of all": math.MaxUint64, "beyond all histories": cluster.MaxTerm + 1, "far from the managers'": 41 + cluster.MaxTermJump,
	} {
		t.Run(name, func(t *testing.T) {
			s := blobtest.NewMemory()
			content := fmt.Sprintf(`{"version":1,"term":%d,"node":"x","instance":"i","timestamp":"2026-01-30T01:02:03Z"}`, term)
			put(t, s, leaderKey, content)
			_, err := New(s).TakeTerm(t.Context(), 41, "a", "i1")
			wantObject(t, err, leaderKey, cluster.ErrCorrupt)
			if !strings.Contains(err.Error(), "delete the object") {
				t.Errorf("the error doesn't say what to do: %v", err)
			}
			if got := get(t, s, leaderKey); got != content {
				t.Errorf("the object was changed to %s", got)
			}
		})
	}
}

// TestLivingPeers: the age of a record is told by the store's own times alone; a store in which
// nobody has written for long has no old records.
func TestLivingPeers(t *testing.T) {
	at := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	record := func(id string, age time.Duration) PeerRecord {
		return PeerRecord{Info: &protosv1.PeerInfo{NodeId: id}, Modified: at.Add(-age)}
	}
	for name, c := range map[string]struct {
		records []PeerRecord
		living  int
	}{
		"one is long gone":        {[]PeerRecord{record("a", 0), record("b", PeerLife), record("c", PeerLife+time.Second)}, 2},
		"all were off for a year": {[]PeerRecord{record("a", 365*24*time.Hour), record("b", 365*24*time.Hour+time.Hour)}, 2},
		"none":                    {nil, 0},
	} {
		if living, gone := LivingPeers(c.records); len(living) != c.living || len(living)+len(gone) != len(c.records) {
			t.Errorf("%s: %d live, %d are gone", name, len(living), len(gone))
		}
	}
}
