package catalog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Serving says which incarnation serves: what "the newest" means without a question to etcd. Whoever keeps the changes
// or takes the backups of a cluster writes it, when it is another one than the record says.
type Serving struct {
	Incarnation Incarnation `json:"incarnation"`
	ClusterName string      `json:"clusterName,omitempty"`
	ClusterID   HexID       `json:"clusterId"`
	// Token is the cluster's; empty if who wrote it runs no etcd of its own. While the marker names
	// another token the record is of an earlier cluster.
	Token cluster.Token `json:"token,omitempty"`
	// Revision is the newest one when the record was written.
	Revision int64 `json:"revision"`
	// Term and Node are the leadership that wrote it; Term is 0 in a store that fences nothing.
	// Time is by that node's clock, and only shown.
	Term cluster.Term   `json:"term"`
	Node cluster.NodeID `json:"node,omitempty"`
	Time time.Time      `json:"timestamp"`
}

const (
	servingKey     = controlPrefix + "serving.json"
	servingVersion = 1
	servingWay     = "delete the object; it is written again by the managers while the cluster serves"
	// servingAttempts bounds how often a lost race is run again.
	servingAttempts = 4
)

type servingJSON struct {
	Version int `json:"version"`
	Serving
}

// Serving reads which incarnation serves; ErrNotFound if nobody ever wrote it.
func (c *Catalog) Serving(ctx context.Context) (Serving, error) {
	s, _, err := c.serving(ctx)
	return s, err
}

func (c *Catalog) serving(ctx context.Context) (Serving, string, error) {
	data, info, err := c.read(ctx, servingKey, servingWay)
	if err != nil {
		return Serving{}, info.Version, err
	}
	var j servingJSON
	if err := decodeOwn(servingKey, servingWay, data, servingVersion, &j); err != nil {
		return Serving{}, info.Version, err
	}
	if validName("incarnation", string(j.Incarnation)) != nil {
		return Serving{}, info.Version, corrupt(servingKey, servingWay, errors.New("it names no incarnation"))
	}
	return j.Serving, info.Version, nil
}

// PutServing records which incarnation serves. A record that says so already stays as it is, and so does one of a
// higher term: that is ErrFenced. A record that cannot be read is replaced, since it says nothing.
func (c *Catalog) PutServing(ctx context.Context, s Serving) error {
	if err := validName("incarnation", string(s.Incarnation)); err != nil {
		return err
	}
	s.Time = c.now().UTC()
	data, err := encodeOwn(servingJSON{Version: servingVersion, Serving: s})
	if err != nil {
		return err
	}
	for range servingAttempts {
		have, version, err := c.serving(ctx)
		opts := blob.PutOptions{IfAbsent: true}
		switch {
		case errors.Is(err, ErrNotFound):
		case errors.Is(err, cluster.ErrFuture):
			return err
		case err != nil && !errors.Is(err, cluster.ErrCorrupt):
			return err
		case err == nil && s.Term != 0 && have.Term > s.Term:
			return fmt.Errorf("write %s: term %d of node %s has written it: %w", servingKey, have.Term, have.Node, ErrFenced)
		case err == nil && have.Incarnation == s.Incarnation && (have.Token == s.Token || s.Token == ""):
			return nil
		default:
			if opts, err = ifVersion(servingKey, version); err != nil {
				return err
			}
		}
		if _, err = c.write(ctx, servingKey, data, opts); err == nil || !errors.Is(err, ErrConflict) {
			return err
		}
	}
	return fmt.Errorf("write %s: lost %d races: %w", servingKey, servingAttempts, ErrTransient)
}
