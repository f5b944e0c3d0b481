package catalog

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// TestTurn: of many that want to be without their data at once, one is let; it keeps its turn over restarts until it ends it itself.
func TestTurn(t *testing.T) {
	c := New(blobtest.NewMemory())
	var wg sync.WaitGroup
	var taken atomic.Int32
	var holder atomic.Value
	for _, node := range []cluster.NodeID{"a", "b", "c", "d", "e"} {
		wg.Go(func() {
			if err := c.TakeTurn(t.Context(), Turn{Node: node, Volume: "vol-" + string(node), Since: time.Now()}); err == nil {
				taken.Add(1)
				holder.Store(node)
			} else if !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "holds the lease") {
				t.Errorf("%s: %v", node, err)
			}
		})
	}
	wg.Wait()
	if taken.Load() != 1 {
		t.Fatalf("%d nodes have the turn", taken.Load())
	}
	own := holder.Load().(cluster.NodeID)
	if err := c.TakeTurn(t.Context(), Turn{Node: own}); err != nil {
		t.Errorf("again: %v", err)
	}
	if err := c.EndTurn(t.Context(), "x"); err != nil {
		t.Error(err)
	}
	if err := c.TakeTurn(t.Context(), Turn{Node: "x"}); !errors.Is(err, ErrConflict) {
		t.Errorf("another after somebody else ended a turn that wasn't its own: %v", err)
	}
	for range 2 {
		if err := c.EndTurn(t.Context(), own); err != nil {
			t.Error(err)
		}
	}
	if err := c.TakeTurn(t.Context(), Turn{Node: "x"}); err != nil {
		t.Errorf("another after the end: %v", err)
	}
}

// TestVolumeRecords: what nodes say of their volumes is no backup and no turn.
func TestVolumeRecords(t *testing.T) {
	c := New(blobtest.NewMemory())
	r := VolumeRecord{Node: "etcd-a", Volume: "vol-1", Instance: "i-1", Serving: true, At: time.Unix(1770000000, 0).UTC()}
	if err := c.PutVolume(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if err := c.TakeTurn(t.Context(), Turn{Node: "etcd-a"}); err != nil {
		t.Fatal(err)
	}
	found, err := c.Volumes(t.Context())
	if err != nil || len(found) != 1 || found["etcd-a"] != r {
		t.Errorf("found %v, %v", found, err)
	}
	if err := c.PutVolume(t.Context(), VolumeRecord{Node: "a/b"}); err == nil {
		t.Error("a node with a slash was taken")
	}
}
