package catalog

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// VolumeRecord is what a node says of its data volume: the operator's tool sees only the store and the cloud, not the node.
type VolumeRecord struct {
	Node cluster.NodeID `json:"node"`
	// Volume is the provider's id, Instance the machine's.
	Volume   string `json:"volume"`
	Instance string `json:"instance"`
	// Serving is true if the node's etcd is a healthy voter with its data on this volume.
	Serving bool `json:"serving"`
	// Waiting says why a volume that is to be replaced isn't given up yet; empty if none is.
	Waiting string `json:"waiting,omitempty"`
	// At is when it was written, by the node's clock. It is written when something changes.
	At time.Time `json:"at"`
}

const (
	volumesPrefix  = "volumes/"
	volumesVersion = 1
	volumesWay     = "delete the object; the node writes it again"
)

type volumeJSON struct {
	Version int `json:"version"`
	VolumeRecord
}

// PutVolume replaces what a node says of its volume.
func (c *Catalog) PutVolume(ctx context.Context, r VolumeRecord) error {
	if err := validName("node", string(r.Node)); err != nil {
		return err
	}
	data, err := encodeOwn(volumeJSON{Version: volumesVersion, VolumeRecord: r})
	if err != nil {
		return err
	}
	_, err = c.write(ctx, volumesPrefix+string(r.Node), data, blob.PutOptions{})
	return err
}

// Volumes reads what the nodes say of their volumes. Records that can't be read are left out and named in the error.
func (c *Catalog) Volumes(ctx context.Context) (map[cluster.NodeID]VolumeRecord, error) {
	found := map[cluster.NodeID]VolumeRecord{}
	var keys []string
	for e, err := range c.store.List(ctx, volumesPrefix, blob.ListOptions{}) {
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", volumesPrefix, err)
		}
		if validName("node", strings.TrimPrefix(e.Key, volumesPrefix)) == nil {
			keys = append(keys, e.Key)
		}
	}
	var errs []error
	for _, key := range keys {
		data, _, err := c.read(ctx, key, volumesWay)
		var j volumeJSON
		if err == nil {
			err = decodeOwn(key, volumesWay, data, volumesVersion, &j)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found[cluster.NodeID(strings.TrimPrefix(key, volumesPrefix))] = j.VolumeRecord
	}
	return found, errors.Join(errs...)
}

// Turn says which node may be without its data while its volume is replaced. There is one at a
// time: two of three members without data would be a lost quorum.
type Turn struct {
	Node   cluster.NodeID `json:"node"`
	Volume string         `json:"volume"`
	// Since is by the node's clock.
	Since time.Time `json:"since"`
}

const (
	turnKey     = volumesPrefix + "turn/holder.json"
	turnVersion = 1
	turnWay     = "make sure that every member serves, then delete the object"
)

type turnJSON struct {
	Version int `json:"version"`
	Turn
}

// TakeTurn succeeds if nobody has the turn, or this node has it already. An error that wraps ErrConflict names who has it.
func (c *Catalog) TakeTurn(ctx context.Context, t Turn) error {
	data, err := encodeOwn(turnJSON{Version: turnVersion, Turn: t})
	if err != nil {
		return err
	}
	_, err = c.write(ctx, turnKey, data, blob.PutOptions{IfAbsent: true})
	if !errors.Is(err, ErrConflict) {
		return err
	}
	have, readErr := c.turn(ctx)
	switch {
	case readErr != nil:
		return readErr
	case have.Node == t.Node:
		return nil
	}
	return fmt.Errorf("node %s holds the lease: its volume %s is being replaced since %s (if that node is gone for good, %s: %s): %w",
		have.Node, have.Volume, have.Since.Format(time.RFC3339), turnWay, turnKey, ErrConflict)
}

// EndTurn is for when the node serves again. Ending what another node has, or nobody, changes nothing.
func (c *Catalog) EndTurn(ctx context.Context, node cluster.NodeID) error {
	have, err := c.turn(ctx)
	if errors.Is(err, ErrNotFound) || err == nil && have.Node != node {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := c.remove(ctx, turnKey, func(key string) bool { return key == turnKey }); err != nil {
		return fmt.Errorf("remove %s: %w", turnKey, err)
	}
	return nil
}

func (c *Catalog) turn(ctx context.Context) (Turn, error) {
	data, _, err := c.read(ctx, turnKey, turnWay)
	if err != nil {
		return Turn{}, err
	}
	var j turnJSON
	if err := decodeOwn(turnKey, turnWay, data, turnVersion, &j); err != nil {
		return Turn{}, err
	}
	return j.Turn, nil
}
