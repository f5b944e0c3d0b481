package catalog

import (
	"context"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// TestLostAnswers: a record is written, the answer is lost, and the writer, who knows the old version only, writes again what has
// changed since. That is no conflict. What somebody else wrote in between is one.
func TestLostAnswers(t *testing.T) {
	ctx := context.Background()
	op := Operation{ID: "2026-01-30T01:02:03Z-000000", Kind: KindRestore, State: StateProving, Term: 4, Leader: "a", Instance: "i"}
	marker := Marker{Phase: PhaseForming, Token: "tok", Founders: testNodes, Term: 4, Leader: "a"}
	another, rival := op, marker
	another.Term, rival.Leader = 5, "b"
	type attempt func(c *Catalog, version string) error
	for name, x := range map[string]struct {
		key                    string
		create, again, another attempt
	}{
		"operation": {
			"control/operations/" + op.ID + ".json",
			putOperation(op, StateProving),
			putOperation(op, StateStaging),
			putOperation(another, StateStaging),
		},
		"marker": {
			markerKey,
			putMarker(marker, PhaseForming),
			putMarker(marker, PhaseFormed),
			putMarker(rival, PhaseFormed),
		},
		"spec": {
			specKey,
			putSpec(3),
			putSpec(5),
			putSpec(1),
		},
		"settings": {
			settingsKey,
			putSettings("100"),
			putSettings("150"),
			putSettings("120"),
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := blobtest.NewMemory()
			f := blobtest.NewFaulty(m)
			now := newClock("2026-01-30T01:02:05Z")
			c := New(f, WithClock(now.now))
			if err := x.create(c, ""); err != nil {
				t.Fatal(err)
			}
			info, err := m.Stat(ctx, x.key)
			if err != nil {
				t.Fatal(err)
			}
			// The answer is lost, and the reading after it fails too: the store is away.
			lost := f.Add(blobtest.Fault{Op: "put", After: true, Err: blobtest.Transient("put", x.key)})
			away := f.Add(blobtest.Fault{Op: "get", Err: blobtest.Transient("get", x.key)})
			wantIs(t, x.again(c, info.Version), ErrTransient)
			lost()
			away()
			now.add(time.Minute)
			if err := x.again(c, info.Version); err != nil {
				t.Errorf("what this writer has stored itself is in its way: %v", err)
			}
			// One lost answer, while the store can be read.
			info, _ = m.Stat(ctx, x.key)
			f.Add(blobtest.Fault{Op: "put", After: true, Times: 1, Err: blobtest.Transient("put", x.key)})
			if err := x.again(c, info.Version); err != nil {
				t.Errorf("a lost answer wasn't recognized: %v", err)
			}
			info, _ = m.Stat(ctx, x.key)
			if err := x.another(c, info.Version); err != nil {
				t.Fatal(err)
			}
			wantIs(t, x.again(c, info.Version), ErrConflict)
		})
	}
}

func putOperation(op Operation, s OperationState) func(*Catalog, string) error {
	return func(c *Catalog, version string) error {
		op.State = s
		_, err := c.PutOperation(context.Background(), op, version)
		return err
	}
}

func putMarker(m Marker, p Phase) func(*Catalog, string) error {
	return func(c *Catalog, version string) error {
		m.Phase = p
		var err error
		if version == "" {
			_, err = c.CreateMarker(context.Background(), m)
		} else {
			_, err = c.ReplaceMarker(context.Background(), m, version)
		}
		return err
	}
}

func putSpec(n int) func(*Catalog, string) error {
	return func(c *Catalog, version string) error {
		var err error
		if version == "" {
			_, err = c.CreateSpec(context.Background(), cluster.Spec{MemberCount: n})
		} else {
			_, err = c.ReplaceSpec(context.Background(), cluster.Spec{MemberCount: n}, version)
		}
		return err
	}
}

func putSettings(interval string) func(*Catalog, string) error {
	return func(c *Catalog, version string) error {
		return c.PutSettings(context.Background(), cluster.Settings{"heartbeat-interval": interval}, version)
	}
}
