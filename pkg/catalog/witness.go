package catalog

import (
	"context"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

type (
	// Posed is a question of one node to another, whether both have one store that fences between them, with what is kept for it in
	// the store; see package blob.
	Posed = blob.Posed
	// Question is what the other node gets.
	Question = blob.Question
	// Testimony is what it answers.
	Testimony = blob.Testimony
	// Finding is what that means.
	Finding = blob.Finding
)

// The findings.
const (
	OneStore   = blob.OneStore
	OtherStore = blob.OtherStore
	LocksApart = blob.LocksApart
	PutsApart  = blob.PutsApart
)

// Pose asks a question of this node's store.
func (c *Catalog) Pose(ctx context.Context, node cluster.NodeID) (*Posed, error) {
	return blob.Pose(ctx, c.store, string(node))
}

// Witness answers the question of another node.
func (c *Catalog) Witness(ctx context.Context, q Question) Testimony {
	return blob.Witness(ctx, c.store, q)
}
