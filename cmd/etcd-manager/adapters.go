package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/election"
	"github.com/etcd-manager/etcd-manager/pkg/node"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

const (
	errAddrNotAvail = syscall.EADDRNOTAVAIL
	errAddrInUse    = syscall.EADDRINUSE
)

// voteStore keeps election's hard state in the node's vote file.
type voteStore struct{ file *node.VoteFile }

// Load reads what was promised.
func (v voteStore) Load() (election.Hard, error) {
	vote, err := v.file.Load()
	return election.Hard{Term: vote.Term, VotedFor: vote.For}, err
}

// Save makes a promise durable.
func (v voteStore) Save(h election.Hard) error {
	return v.file.Save(node.Vote{Term: h.Term, For: h.VotedFor})
}

// discoveryRecords keeps discovery's records in the catalog.
type discoveryRecords struct {
	catalog *catalog.Catalog
	// store is its URL.
	store string

	mu    sync.Mutex
	known []catalog.PeerRecord
}

// PutEndpoints publishes a node. On a copy, where no manager runs, it is an error: the managers that run there later would wait for it.
func (r *discoveryRecords) PutEndpoints(ctx context.Context, id cluster.NodeID, endpoints []string) error {
	if err := r.catalog.RefuseCopy(ctx, r.store); err != nil {
		return err
	}
	return r.catalog.PutPeer(ctx, &protosv1.PeerInfo{NodeId: string(id), Endpoints: endpoints})
}

// Endpoints reads what has changed.
func (r *discoveryRecords) Endpoints(ctx context.Context) (map[cluster.NodeID][]string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	records, problems, err := r.catalog.Peers(ctx, r.known)
	if err != nil {
		return nil, err
	}
	r.known = records
	found := map[cluster.NodeID][]string{}
	living, _ := catalog.LivingPeers(records)
	for _, p := range living {
		found[cluster.NodeID(p.Info.GetNodeId())] = p.Info.GetEndpoints()
	}
	var errs []error
	for _, p := range problems {
		errs = append(errs, fmt.Errorf("%s: %w", p.Object, p.Err))
	}
	return found, errors.Join(errs...)
}

// requestCounter counts requests to the store by operation.
type requestCounter struct {
	mu     sync.Mutex
	counts map[string]int64
}

func newRequestCounter() *requestCounter { return &requestCounter{counts: map[string]int64{}} }

func (c *requestCounter) add(op string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[op]++
}

// addCopy counts a request to a copy of the store.
func (c *requestCounter) addCopy(op string) { c.add("copy/" + op) }

func (c *requestCounter) snapshot() map[string]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := make(map[string]int64, len(c.counts))
	for k, v := range c.counts {
		m[k] = v
	}
	return m
}
