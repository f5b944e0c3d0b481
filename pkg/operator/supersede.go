package operator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Superseded says that another cluster has taken the place of this one.
type Superseded = catalog.Superseded

// Stopping says how far the managers are with the end of a cluster that is superseded.
type Stopping = catalog.Ended

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

// SupersedeOptions say what may be superseded.
type SupersedeOptions struct {
	// Live says that the managers may run: then they stop their etcd. Else they must have been stopped, as far as can be told.
	Live bool
}

// Supersede records that another cluster, named by, has taken the place of this one: managers that run stop their etcd, and one that starts
// with this store doesn't start it. A store that is a copy is a *CopyError. Unless o.Live is set it is a *ServesError while the managers
// seem to run. A record that is there already is returned with catalog.ErrConflict.
func (c *Client) Supersede(ctx context.Context, by string, o SupersedeOptions) (Superseded, error) {
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
	if age := c.Now().Sub(l.Leader.Modified); l.Leader.Exists() && !o.Live && age < managersQuiet {
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

// endedPoll is how often the store is asked how far the end of a cluster is.
const endedPoll = time.Second

// SilentError says that the managers of a superseded cluster haven't said that it has ended.
type SilentError struct {
	Store  string
	Within time.Duration
	// Stopped are the nodes that are, Missing the members that aren't known to be; both are empty if nobody has said anything.
	Stopped []cluster.NodeID
	Missing []string
}

func (e *SilentError) Error() string {
	words := "no manager has answered"
	switch {
	case len(e.Missing) > 0:
		words = fmt.Sprintf("no answer from %s", strings.Join(e.Missing, ", "))
	case len(e.Stopped) > 0:
		words = fmt.Sprintf("only %v answered, and it isn't known which members there are", e.Stopped)
	}
	return fmt.Sprintf("it isn't known whether the cluster in %s still serves: %s within %s", e.Store, words, e.Within)
}

// Ended reads how far the end of a cluster is that s supersedes. It is empty if the managers haven't said anything yet.
func (c *Client) Ended(ctx context.Context, s Superseded) (Stopping, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	e, err := c.catalog.Ended(ctx)
	if errors.Is(err, ErrNotFound) || err == nil && !e.Of.Equal(s.Time) {
		return Stopping{}, nil
	}
	return e, err
}

// AwaitEnded waits until all members have said that their etcd is stopped, and returns what they say. If a quorum of them has by the end of
// within, nothing can be written any more, and that is enough; fewer are a *SilentError. A store that doesn't answer is asked again. tell
// is called with what is new; it may be nil.
func (c *Client) AwaitEnded(ctx context.Context, s Superseded, within time.Duration, tell func(Stopping)) (Stopping, error) {
	tick := time.NewTicker(endedPoll)
	defer tick.Stop()
	var last Stopping
	for end := time.Now().Add(within); ; {
		e, err := c.Ended(ctx, s)
		if err == nil {
			if tell != nil && (e.Revision != last.Revision || len(e.Stopped) != len(last.Stopped)) {
				tell(e)
			}
			last = e
		}
		switch {
		case err == nil && len(e.Members) > 0 && len(e.Missing()) == 0:
			return e, nil
		case time.Now().Before(end):
		case err != nil:
			return last, err
		case last.Complete():
			return last, nil
		default:
			return last, &SilentError{Store: c.Store(), Within: within, Missing: last.Missing(),
				Stopped: slices.Sorted(maps.Keys(last.Stopped))}
		}
		select {
		case <-ctx.Done():
			return last, ctx.Err()
		case <-tick.C:
		}
	}
}
