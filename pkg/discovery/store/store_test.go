package store

import (
	"context"
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// records keeps records in memory.
type records struct {
	all map[cluster.NodeID][]string
	bad cluster.NodeID // can't be read
	err error          // the store is away
}

func (r *records) PutEndpoints(_ context.Context, id cluster.NodeID, endpoints []string) error {
	if r.err != nil {
		return r.err
	}
	r.all[id] = endpoints
	return nil
}

func (r *records) Endpoints(context.Context) (map[cluster.NodeID][]string, error) {
	if r.err != nil {
		return nil, r.err
	}
	found := maps.Clone(r.all)
	if r.bad != "" {
		delete(found, r.bad)
		return found, cluster.ErrCorrupt
	}
	return found, nil
}

func TestSource(t *testing.T) {
	r := &records{all: map[cluster.NodeID][]string{}}
	a, b := New("a", r), New("b", r)
	for s, e := range map[*Source]string{a: "10.0.0.1:8000", b: "10.0.0.2:8000"} {
		if err := s.Publish(t.Context(), []string{e}); err != nil {
			t.Fatal(err)
		}
	}
	found, err := a.Find(t.Context())
	if err != nil || len(found) != 2 || !slices.Equal(found["b"], []string{"10.0.0.2:8000"}) {
		t.Fatalf("found %v, %v", found, err)
	}
	found["b"][0] = "spoiled"

	// A record that can't be read now counts as it was; the error is passed on.
	r.bad = "b"
	found, err = a.Find(t.Context())
	if !errors.Is(err, cluster.ErrCorrupt) || !slices.Equal(found["b"], []string{"10.0.0.2:8000"}) || found["a"] == nil {
		t.Errorf("found %v, %v", found, err)
	}

	// One that is gone is gone.
	r.bad = ""
	delete(r.all, "b")
	if found, err = a.Find(t.Context()); err != nil || found["b"] != nil {
		t.Errorf("found %v, %v", found, err)
	}

	r.err = errors.New("away")
	if found, err = a.Find(t.Context()); found != nil || !errors.Is(err, r.err) {
		t.Errorf("found %v, %v", found, err)
	}
	if err := a.Publish(t.Context(), nil); !errors.Is(err, r.err) {
		t.Errorf("publish: %v", err)
	}
}
