package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// PeerRecord is where a node says that its manager is found.
type PeerRecord struct {
	Info *protosv1.PeerInfo
	// Stamp changes when the record does; it is only to be compared.
	Stamp string
	// Modified is by the store's clock.
	Modified time.Time
}

// PeerLife is how long a record of a node counts that isn't written again. Managers write theirs several times a day.
const PeerLife = 48 * time.Hour

// LivingPeers splits records into those that count and those of nodes that haven't written theirs
// for long, by the store's own clock alone: the age of a record is how much older it is than the
// newest one.
func LivingPeers(records []PeerRecord) (living, gone []PeerRecord) {
	var newest time.Time
	for _, r := range records {
		if r.Modified.After(newest) {
			newest = r.Modified
		}
	}
	for _, r := range records {
		if newest.Sub(r.Modified) > PeerLife {
			gone = append(gone, r)
			continue
		}
		living = append(living, r)
	}
	return living, gone
}

// PutPeer publishes where a node is found, replacing what it said before.
func (c *Catalog) PutPeer(ctx context.Context, info *protosv1.PeerInfo) error {
	if err := validName("node", info.GetNodeId()); err != nil {
		return err
	}
	data, err := marshalShared(info)
	if err != nil {
		return err
	}
	_, err = c.write(ctx, discoveryPrefix+info.GetNodeId(), data, blob.PutOptions{})
	return err
}

// Peers lists who has published itself: one list request, and one read for each record that isn't in known with the same stamp.
// Pass what the call before returned, or nil. Records that can't be read are reported and left out.
func (c *Catalog) Peers(ctx context.Context, known []PeerRecord) ([]PeerRecord, []Problem, error) {
	before := make(map[string]PeerRecord, len(known))
	for _, r := range known {
		before[r.Info.GetNodeId()] = r
	}
	var records []PeerRecord
	var problems []Problem
	for e, err := range c.store.List(ctx, discoveryPrefix, blob.ListOptions{}) {
		if err != nil {
			return nil, nil, fmt.Errorf("list %s: %w", discoveryPrefix, err)
		}
		node := strings.TrimPrefix(e.Key, discoveryPrefix)
		if validName("node", node) != nil {
			continue
		}
		if r, ok := before[node]; ok && r.Stamp == stamp(e.Info) {
			r.Modified = e.Modified
			records = append(records, r)
			continue
		}
		info, err := c.peer(ctx, node)
		switch {
		case errors.Is(err, ErrNotFound):
		case unreadable(err):
			problems = append(problems, Problem{Name: node, Object: e.Key, Err: err})
		case err != nil:
			return nil, nil, err
		default:
			records = append(records, PeerRecord{Info: info, Stamp: stamp(e.Info), Modified: e.Modified})
		}
	}
	return records, problems, nil
}

// PeerModified is when a node last published itself, by the store's clock; ErrNotFound if it never did.
func (c *Catalog) PeerModified(ctx context.Context, node cluster.NodeID) (time.Time, error) {
	if err := validName("node", string(node)); err != nil {
		return time.Time{}, err
	}
	info, err := c.store.Stat(ctx, discoveryPrefix+string(node))
	if err != nil {
		return time.Time{}, fmt.Errorf("read %s: %w", discoveryPrefix+string(node), err)
	}
	return info.Modified, nil
}

func (c *Catalog) peer(ctx context.Context, node string) (*protosv1.PeerInfo, error) {
	key := discoveryPrefix + node
	way := "it is written again when the manager of node " + node + " starts; delete it if that node is gone"
	data, _, err := c.read(ctx, key, way)
	if err != nil {
		return nil, err
	}
	info := &protosv1.PeerInfo{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(bytes.TrimSpace(data), info); err != nil {
		return nil, corrupt(key, way, err)
	}
	if info.GetNodeId() != node {
		return nil, corrupt(key, way, fmt.Errorf("it names node %q", info.GetNodeId()))
	}
	return info, nil
}

// RemovePeer deletes the record of a node that is gone for good. Removing one that is gone is a success.
func (c *Catalog) RemovePeer(ctx context.Context, node cluster.NodeID) error {
	if err := validName("node", string(node)); err != nil {
		return err
	}
	key := discoveryPrefix + string(node)
	if _, err := c.remove(ctx, key, func(k string) bool { return k == key }); err != nil {
		return fmt.Errorf("remove %s: %w", key, err)
	}
	return nil
}
