// Package store finds the other managers through the backup store: each node publishes a record there and reads the others'.
//
// It needs no more than the store, which every node reaches anyway, so it is how managers find each other unless they are told otherwise.
package store

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Records is where the records are kept. All methods may be called concurrently, and any number of times.
type Records interface {
	// PutEndpoints stores where (host:port) a node's manager is found, replacing what was there.
	PutEndpoints(ctx context.Context, id cluster.NodeID, endpoints []string) error
	// Endpoints returns the records of all nodes. Records that can't be read are left out and named in the error, so that
	// records and an error can come together; no records and an error mean that nothing is known of any node. It should
	// cost one request plus one for each record that has changed since the last call.
	Endpoints(ctx context.Context) (map[cluster.NodeID][]string, error)
}

// Source publishes and finds records. It may be used concurrently.
type Source struct {
	self    cluster.NodeID
	records Records

	mu   sync.Mutex
	last map[cluster.NodeID][]string
}

// New returns a source that publishes as self. It does nothing yet.
func New(self cluster.NodeID, records Records) *Source {
	return &Source{self: self, records: records}
}

// Name returns "store".
func (s *Source) Name() string { return "store" }

// Refresh is how often the own record is written again, so that it doesn't count as one of a node that is gone.
func (s *Source) Refresh() time.Duration { return 6 * time.Hour }

// Publish writes the own record.
func (s *Source) Publish(ctx context.Context, endpoints []string) error {
	if err := s.records.PutEndpoints(ctx, s.self, endpoints); err != nil {
		return fmt.Errorf("publish discovery record of %s: %w", s.self, err)
	}
	return nil
}

// Find reads the records, the own one too. A record that can't be read at the moment counts as it was read last.
func (s *Source) Find(ctx context.Context) (map[cluster.NodeID][]string, error) {
	found, err := s.records.Endpoints(ctx)
	if err != nil {
		err = fmt.Errorf("read discovery records: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		if found == nil {
			return nil, err
		}
		merged := maps.Clone(s.last)
		if merged == nil {
			merged = map[cluster.NodeID][]string{}
		}
		maps.Copy(merged, found)
		found = merged
	}
	s.last = found
	return clone(found), err
}

func clone(m map[cluster.NodeID][]string) map[cluster.NodeID][]string {
	c := make(map[cluster.NodeID][]string, len(m))
	for id, endpoints := range m {
		c[id] = slices.Clone(endpoints)
	}
	return c
}
