package operator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Superseded says that another cluster has taken the place of this one.
type Superseded = catalog.Superseded

// managersQuiet is for how long the managers must have written nothing to count as stopped. A leader writes once a minute.
const managersQuiet = 3 * time.Minute

// ServesError says that the managers of a cluster still run, as far as can be told.
type ServesError struct {
	Store string
	Node  cluster.NodeID
	Age   time.Duration
}

func (e *ServesError) Error() string {
	return fmt.Sprintf("the cluster in %s may still run: its leader, node %s, wrote to the store %s ago; nothing was written",
		e.Store, e.Node, e.Age.Round(time.Second))
}

// NoClusterError says that no cluster was ever formed for a store.
type NoClusterError struct{ Store string }

func (e *NoClusterError) Error() string {
	return fmt.Sprintf("no cluster was formed for %s: nothing was written; is this the store of the old cluster?", e.Store)
}

// Supersede records that another cluster, named by, has taken the place of this one: from then on a manager that starts with this store
// doesn't start etcd. What runs goes on. A store that is a copy is a *CopyError. Unless force is set it is a *ServesError while the
// managers seem to run. A record that is there already is returned with catalog.ErrConflict.
func (c *Client) Supersede(ctx context.Context, by string, force bool) (Superseded, error) {
	if err := c.managed(ctx); err != nil {
		return Superseded{}, err
	}
	ctx, cancel := c.limit(ctx)
	defer cancel()
	l, err := c.catalog.ControlListing(ctx)
	switch {
	case err != nil:
		return Superseded{}, err
	case !l.Marker.Exists():
		return Superseded{}, &NoClusterError{c.Store()}
	case l.Superseded.Exists():
		s, err := c.catalog.Superseded(ctx)
		if err == nil {
			err = catalog.ErrConflict
		}
		return s, err
	}
	if age := c.Now().Sub(l.Leader.Modified); l.Leader.Exists() && !force && age < managersQuiet {
		r, _, err := c.catalog.Leader(ctx)
		if err != nil && !Unreadable(err) {
			return Superseded{}, err
		}
		return Superseded{}, &ServesError{c.Store(), r.Node, max(age, 0)}
	}
	return c.catalog.PutSuperseded(ctx, by)
}

// UndoSupersede removes the record of Supersede, and returns what it said; ErrNotFound if there is none. One that can't be read is removed,
// too.
func (c *Client) UndoSupersede(ctx context.Context) (Superseded, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	s, err := c.catalog.Superseded(ctx)
	if err != nil && !Unreadable(err) || errors.Is(err, ErrNotFound) {
		return s, err
	}
	return s, c.catalog.RemoveSuperseded(ctx)
}
