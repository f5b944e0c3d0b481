package operator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Promotion is a standby that becomes a cluster.
type Promotion = catalog.Promotion

const (
	// standbyFresh is how old what a standby says of itself may be.
	standbyFresh = 2 * time.Minute
	// standbyFar is how far a copy may be behind before the other cluster isn't ended for it.
	standbyFar = 5 * time.Minute
	// promotionPoll is how often it is looked how far a promotion is.
	promotionPoll = time.Second
)

// RefusedError says why a standby isn't promoted. Nothing was changed, unless Ended is set.
type RefusedError struct {
	// Why is a sentence.
	Why string
	// Forceable is true if Force goes on, and Ended if the other cluster was told to end.
	Forceable, Ended bool
	Err              error
}

func (e *RefusedError) Error() string {
	if e.Err != nil {
		return e.Why + ": " + e.Err.Error()
	}
	return e.Why
}

// Unwrap gives the cause.
func (e *RefusedError) Unwrap() error { return e.Err }

func refusedf(forceable bool, format string, a ...any) error {
	return &RefusedError{Why: fmt.Sprintf(format, a...), Forceable: forceable}
}

// PromoteRequest says how a standby is promoted.
type PromoteRequest struct {
	// Of is the other cluster's store; empty takes what the nodes of the standby follow.
	Of string
	// MemberCount is how many members the cluster gets; 0 means as many as the other one has.
	MemberCount int
	// Within bounds how long the managers of the other cluster are waited for.
	Within time.Duration
	// Force goes on though it isn't known that the other cluster has ended, or that nothing of it is missing. Of a promotion that was asked
	// for already it takes back the node that is chosen, if that has fallen silent, else what the copy must have.
	Force bool

	// nodes is how many follow the other cluster.
	nodes int
}

// size is an error if the nodes can't form a cluster of that size.
func (r *PromoteRequest) size(p *Promotion) error {
	if r.MemberCount > 0 {
		p.Spec.MemberCount = r.MemberCount
	}
	if err := catalog.ValidateSpec(p.Spec); err != nil {
		return &InvalidError{err}
	}
	if r.nodes < cluster.Quorum(p.Spec.MemberCount) {
		return refusedf(false, "a cluster of %d needs %d nodes to begin, and the standby has %d: start more of them, or give it a size with --member-count=%d",
			p.Spec.MemberCount, cluster.Quorum(p.Spec.MemberCount), r.nodes, cluster.MemberCountFor(r.nodes))
	}
	return nil
}

// Promote has a standby, whose own store this is, become a cluster. The other cluster is ended first (see Supersede), and its last
// revision is what the copy has to have. What it can't be sure of it refuses with a *RefusedError; with r.Force it goes on where that is
// possible. A promotion that was asked for already is returned with catalog.ErrConflict.
func (c *Client) Promote(ctx context.Context, r PromoteRequest) (Promotion, error) {
	p, err := c.standby(ctx, &r)
	switch {
	case errors.Is(err, catalog.ErrConflict) && r.Force && p.Of != "":
		return c.forcePromotion(ctx, r, p.Of)
	case err != nil:
		return p, err
	}
	if err := r.size(&p); err != nil {
		return p, err
	}
	config := c.config
	config.Store, config.AllowEmpty = r.Of, false
	old, err := Open(ctx, config)
	if err == nil {
		err = c.endOther(ctx, old, r, &p)
	} else {
		err = &RefusedError{Why: fmt.Sprintf("the store of the other cluster, %s, can't be used, so it isn't known whether it still serves", r.Of),
			Forceable: true, Err: err}
	}
	var no *RefusedError
	if errors.As(err, &no) && no.Forceable && r.Force {
		p.Revision, p.Incarnation, err = 0, "", nil
	}
	if err != nil {
		return p, err
	}
	ctx, cancel := c.limit(ctx)
	defer cancel()
	return c.catalog.PutPromotion(ctx, p)
}

// forcePromotion has a promotion go on that waits for what is lost: the node that was chosen, which counts as lost once it has said nothing
// for a while, or the last changes of the other cluster, if its store can't be read any more. One that needs nothing of that goes on by
// itself and is returned with catalog.ErrConflict.
func (c *Client) forcePromotion(ctx context.Context, r PromoteRequest, of string) (Promotion, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	config := c.config
	config.Store, config.AllowEmpty = of, false
	_, lost := Open(ctx, config)
	statuses, err := c.catalog.Statuses(ctx)
	if err != nil {
		return Promotion{}, err
	}
	return c.catalog.ChangePromotion(ctx, func(x *Promotion) error {
		for _, o := range statuses {
			if age := c.Now().Sub(o.Modified); o.Name == string(x.Chosen) && x.Backup == "" && age <= standbyFresh {
				return refusedf(false, "node %s is chosen, and has written to the store %s ago: if it can't go on, stop its manager, and ask again after %s",
					x.Chosen, max(age, 0).Round(time.Second), standbyFresh)
			}
		}
		switch {
		case x.Backup != "", x.Chosen == "" && x.Revision == 0 && r.MemberCount == 0:
			return catalog.ErrConflict
		case x.Chosen != "":
			delete(x.Copies, x.Chosen)
			x.Chosen, x.Problem = "", ""
		case lost != nil:
			x.Revision, x.Incarnation = 0, ""
		case r.MemberCount == 0:
			return catalog.ErrConflict // the copies still get the changes that they lack
		}
		if r.MemberCount > 0 {
			x.Spec.MemberCount = r.MemberCount
		}
		return catalog.ValidateSpec(x.Spec)
	})
}

// standby finds out what follows the other cluster with this store.
func (c *Client) standby(ctx context.Context, r *PromoteRequest) (Promotion, error) {
	if err := c.managed(ctx); err != nil {
		return Promotion{}, err
	}
	ctx, cancel := c.limit(ctx)
	defer cancel()
	l, err := c.catalog.ControlListing(ctx)
	switch {
	case err != nil:
		return Promotion{}, err
	case l.Promotion.Exists():
		p, err := c.catalog.Promotion(ctx)
		if err == nil {
			err = catalog.ErrConflict
		}
		return p, err
	case l.Marker.Exists():
		return Promotion{}, refusedf(false, "%s has a cluster already: it is no standby's own store", c.Store())
	case len(l.Commands) > 0:
		return Promotion{}, refusedf(false, "the command %s is queued in %s: the new cluster would begin with it; remove it (delete-command)",
			l.Commands[0].Name, c.Store())
	}
	statuses, err := c.catalog.Statuses(ctx)
	if err != nil {
		return Promotion{}, err
	}
	best := catalog.StandbyReport{}
	for _, o := range statuses {
		if c.Now().Sub(o.Modified) > standbyFresh {
			continue
		}
		s, err := c.catalog.Status(ctx, cluster.NodeID(o.Name))
		if err != nil || s.Standby == nil {
			continue
		}
		of := s.Standby.Of
		switch {
		case r.Of == "":
			r.Of = of
		case strings.TrimRight(strings.TrimPrefix(r.Of, "file://"), "/") != strings.TrimRight(strings.TrimPrefix(of, "file://"), "/"):
			return Promotion{}, refusedf(false, "node %s follows %s, not %s", o.Name, cluster.Shown(of, 300), r.Of)
		}
		if r.nodes++; s.Standby.Revision >= best.Revision {
			best = *s.Standby
		}
	}
	switch behind := c.Now().Sub(best.Until); {
	case r.nodes == 0:
		return Promotion{}, refusedf(false, "no node of a standby has written to %s in the last %s: start it with --standby-of, and this as its --backup-store", c.Store(), standbyFresh)
	case best.Revision == 0:
		return Promotion{}, refusedf(false, "no node of the standby has a copy yet; status shows how far it is")
	case behind > standbyFar && !r.Force:
		return Promotion{}, refusedf(true, "the copy that is farthest is %s behind: the other cluster would be stopped for as long as the copy takes to catch up, or what is missing would be lost", behind.Round(time.Second))
	}
	return Promotion{Of: r.Of, Spec: cluster.Spec{MemberCount: cluster.MemberCountFor(r.nodes)}}, nil
}

// endOther ends the other cluster, and notes what it had last.
func (c *Client) endOther(ctx context.Context, old *Client, r PromoteRequest, p *Promotion) error {
	spec, serving, err := old.lastKnown(ctx)
	if err != nil {
		return &RefusedError{Why: fmt.Sprintf("the store of the other cluster, %s, can't be read, so it isn't known whether it still serves", r.Of),
			Forceable: true, Err: err}
	}
	if spec != nil {
		p.Spec = *spec
	}
	if err := r.size(p); err != nil {
		return err
	}
	s, err := old.Supersede(ctx, c.Store(), SupersedeOptions{Live: true})
	switch {
	case errors.Is(err, catalog.ErrConflict) && s.By == c.Store(): // an attempt before this one
	case errors.Is(err, catalog.ErrConflict) && s.By != "":
		return refusedf(false, "another standby has taken the place of the cluster in %s: it is superseded by %q", r.Of, cluster.Shown(s.By, 300))
	case err != nil:
		return &RefusedError{Why: fmt.Sprintf("the store of the other cluster, %s, can't be written, so that isn't told to end", r.Of), Forceable: true, Err: err}
	}
	e, err := old.AwaitEnded(ctx, s, r.Within, nil)
	switch {
	case err != nil && ctx.Err() != nil:
		return err
	case err != nil:
		return &RefusedError{Why: "the other cluster was told to end, and its managers don't say that it has", Forceable: true, Ended: true, Err: err}
	case e.Revision == 0 || e.Stored < e.Revision:
		return &RefusedError{Forceable: true, Ended: true, Why: fmt.Sprintf("the other cluster has ended at revision %d, and its archive is only known to have %d: "+
			"what is between may be lost", e.Revision, e.Stored)}
	}
	p.Revision, p.Incarnation = e.Revision, serving
	return nil
}

// lastKnown is what this store says of its cluster: its size, if it says one, and which incarnation serves.
func (c *Client) lastKnown(ctx context.Context) (*cluster.Spec, catalog.Incarnation, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	serving, err := c.catalog.Serving(ctx)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, "", err
	}
	spec, _, err := c.catalog.Spec(ctx)
	switch {
	case err == nil && catalog.ValidateSpec(spec) == nil:
		return &spec, serving.Incarnation, nil
	case err == nil || errors.Is(err, ErrNotFound) || Unreadable(err):
		return nil, serving.Incarnation, nil
	}
	return nil, "", err
}

// AwaitPromoted waits until the cluster that a standby becomes serves, and calls tell with what is new; that may be nil. It ends with the
// context, and with an error if the restore of the copy has failed.
func (c *Client) AwaitPromoted(ctx context.Context, tell func(Promotion)) (Promotion, error) {
	var last Promotion
	for {
		p, op, err := c.promoted(ctx)
		switch {
		case err != nil && Unreadable(err):
			return p, err
		case err == nil && (p.Chosen != last.Chosen || p.Backup != last.Backup || p.Problem != last.Problem) && tell != nil:
			tell(p)
		}
		last = p
		switch {
		case op == nil:
		case op.State == catalog.StateDone:
			return p, nil
		case op.State.Final():
			return p, fmt.Errorf("the restore of the copy ended as %s: %s", op.State, cluster.Shown(op.Reason, 500))
		}
		select {
		case <-ctx.Done():
			return p, ctx.Err()
		case <-time.After(promotionPoll):
		}
	}
}

// promoted reads how far a promotion is, and the restore of its copy; nil if that hasn't begun.
func (c *Client) promoted(ctx context.Context) (Promotion, *catalog.Operation, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	p, err := c.catalog.Promotion(ctx)
	if err != nil || p.Command == "" {
		return p, nil, err
	}
	op, _, err := c.catalog.Operation(ctx, p.Command)
	if errors.Is(err, ErrNotFound) {
		return p, nil, nil
	}
	return p, &op, err
}
