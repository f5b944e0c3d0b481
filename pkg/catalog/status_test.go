package catalog

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

func TestStatus(t *testing.T) {
	onStores(t, func(t *testing.T, s blob.Store) {
		c := New(s)
		ending := cluster.Ending{What: "CA x", At: time.Unix(1_800_000_000, 0).UTC()}
		want := Status{At: time.Unix(1_700_000_000, 0).UTC(), ClusterName: "test", Node: "a", Leader: "b", Term: 4,
			Doing: "3 of 3 members are healthy", Nodes: []NodeReport{{Node: "a", Role: RoleFollower, Endings: []cluster.Ending{ending}}}}
		if err := c.PutStatus(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		got, err := c.Status(t.Context(), "a")
		if err != nil || got.Nodes[0].Endings[0] != ending || got.Doing != want.Doing || !got.At.Equal(want.At) {
			t.Errorf("read %+v, %v", got, err)
		}
		for content, kind := range map[string]error{
			"": cluster.ErrCorrupt, "{": cluster.ErrCorrupt, `{"version":1,"node":"b"}`: cluster.ErrCorrupt, `{"version":1}`: cluster.ErrCorrupt,
			`{"version":2,"node":"a"}`: cluster.ErrFuture,
		} {
			put(t, s, "control/status/a.json", content)
			var bad *ObjectError
			if _, err := c.Status(t.Context(), "a"); !errors.Is(err, kind) || !errors.As(err, &bad) || bad.Way == "" {
				t.Errorf("%q: %v", content, err)
			}
		}
		if err := c.RemoveStatus(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Status(t.Context(), "a"); !errors.Is(err, ErrNotFound) {
			t.Errorf("after it was removed: %v", err)
		}
		if err := c.PutStatus(t.Context(), Status{Node: "../x"}); !errors.Is(err, ErrInvalid) {
			t.Errorf("a node that names another object: %v", err)
		}
	})
}

// TestStatusIsBounded: whatever a person is needed for, a status that is written each minute stays small.
func TestStatusIsBounded(t *testing.T) {
	s := Status{Node: "a"}
	for range 100 {
		s.Attention = append(s.Attention, cluster.Attention{Kind: cluster.AttentionOther, Text: strings.Repeat("x", 4000)})
	}
	data, err := EncodeStatus(s)
	if err != nil || len(data) > maxStatus || len(data) < maxStatus/2 {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	s.Doing = strings.Repeat("x", maxStatus)
	if _, err := EncodeStatus(s); !errors.Is(err, ErrInvalid) {
		t.Errorf("one that can't be made shorter: %v", err)
	}
}

// TestLeaderShowsStatus: what is shown goes with the heartbeat, and a record that was read by an older version is the same as ever.
func TestLeaderShowsStatus(t *testing.T) {
	onStores(t, func(t *testing.T, s blob.Store) {
		c := New(s)
		h, err := c.TakeTerm(t.Context(), 4, "a", "i")
		if err != nil {
			t.Fatal(err)
		}
		if _, st, problem, err := c.LeaderStatus(t.Context()); st != nil || problem != nil || err != nil {
			t.Errorf("before: %v, %v, %v", st, problem, err)
		}
		data, err := EncodeStatus(Status{Node: "a", Leading: true, Term: 4})
		if err != nil {
			t.Fatal(err)
		}
		h.Show(data)
		if err := h.Heartbeat(t.Context()); err != nil {
			t.Fatal(err)
		}
		r, st, problem, err := c.LeaderStatus(t.Context())
		if err != nil || problem != nil || st == nil || st.Term != 4 || r.Node != "a" || r.Term != 4 {
			t.Errorf("read %+v, %+v, %v, %v", r, st, problem, err)
		}
		if r, _, err := c.Leader(t.Context()); err != nil || r.Term != 4 {
			t.Errorf("the record is %+v, %v", r, err)
		}
		// The next leader takes it over as before.
		if _, err := c.TakeTerm(t.Context(), 5, "b", "j"); err != nil {
			t.Error(err)
		}
		if _, err := c.TakeTerm(t.Context(), 4, "a", "i"); !errors.Is(err, ErrFenced) {
			t.Errorf("a lower term: %v", err)
		}
	})
}
