package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// RecoveryRequest says from whose data a new cluster is made.
type RecoveryRequest struct {
	// Node is a survivor; empty means the one with the newest data.
	Node    cluster.NodeID
	Spec    SpecChange
	Options RestoreOptions
}

// RecoveryPlan is what a recovery would do: the survivor's data are first copied into the store as
// an ordinary backup, which is then restored.
type RecoveryPlan struct {
	Request RecoveryRequest
	// Survivors are the data dirs that there are, as a leader saw them at Survivors.At.
	Survivors catalog.Survivors
	// Chosen is the one that is taken.
	Chosen catalog.Survivor
	// Spec is what it is made into.
	Spec cluster.Spec
	// Newest is the newest good backup, to compare with: nil if there is none, or if Undecided says why it isn't known.
	Newest    *changelog.Newest
	Undecided *UndecidedError
}

// NoSurvivorsError says that the managers have not reported a lost quorum. It is ErrNotFound.
type NoSurvivorsError struct {
	// Leader is who led last, and Age how long ago it said so; nil if nobody ever has, or if that can't be read.
	Leader *catalog.LeaderRecord
	Age    time.Duration
	// Members is how many the spec has, 0 if that isn't known; a majority of them must run a
	// manager, for only a leading one reports survivors.
	Members int
}

// Led tells that a manager leads, as far as the store knows.
func (e *NoSurvivorsError) Led() bool { return e.Leader != nil && e.Age < LeaderQuiet }

func (e *NoSurvivorsError) Error() string {
	return "the managers have not reported a lost quorum: as far as they know, the cluster has its quorum and needs no recovery"
}

// Unwrap gives ErrNotFound.
func (e *NoSurvivorsError) Unwrap() error { return ErrNotFound }

// SurvivorError says why no survivor could be chosen.
type SurvivorError struct {
	// Name is the one that was asked for; empty if the newest was.
	Name cluster.NodeID
	// Ambiguous is true if the survivors are of different clusters, whose data can't be compared. Else it is ErrNotFound.
	Ambiguous bool
}

func (e *SurvivorError) Error() string {
	switch {
	case e.Ambiguous:
		return "the survivors are of different clusters (different tokens), which can't be compared: choose one"
	case e.Name != "":
		return fmt.Sprintf("no survivor has the name %q; write it exactly as in the table", e.Name)
	}
	return "no node has data of the cluster: restore a backup"
}

// Unwrap gives ErrNotFound or an *InvalidError.
func (e *SurvivorError) Unwrap() error {
	if e.Ambiguous {
		return invalidf("no node is named")
	}
	return ErrNotFound
}

// PlanRecovery chooses a survivor of a lost quorum and compares it with the newest backup. It
// changes nothing. Where no quorum was lost it is a *NoSurvivorsError, and a *SurvivorError where
// none can be chosen.
func (c *Client) PlanRecovery(ctx context.Context, r RecoveryRequest) (*RecoveryPlan, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	p := &RecoveryPlan{Request: r}
	survivors, err := c.catalog.Survivors(ctx)
	if errors.Is(err, ErrNotFound) {
		return p, c.noSurvivors(ctx)
	}
	if err != nil {
		return p, err
	}
	spec, _, err := c.readSpec(ctx, r.Spec)
	if err != nil {
		return p, err
	}
	marker, _, err := c.catalog.Marker(ctx)
	if err != nil && !errors.Is(err, ErrNotFound) && !Unreadable(err) {
		return p, err
	}
	p.Survivors, p.Spec = survivors, spec
	if p.Chosen, err = pickSurvivor(survivors.Nodes, r.Node, marker.Token); err != nil {
		return p, err
	}
	l, err := c.catalog.Backups(ctx)
	if err != nil {
		return p, err
	}
	newest, err := c.archive.NewestGood(ctx, l, c.Now())
	switch {
	case errors.Is(err, ErrNotFound), errors.As(err, &p.Undecided):
	case err != nil:
		return p, err
	default:
		p.Newest = &newest
	}
	return p, nil
}

// Survivors lists the data dirs that survivors of a lost quorum have. Where no quorum was lost it is ErrNotFound.
func (c *Client) Survivors(ctx context.Context) (catalog.Survivors, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	return c.catalog.Survivors(ctx)
}

// Recover queues a recovery as planned.
func (c *Client) Recover(ctx context.Context, p *RecoveryPlan) (Queued, error) {
	if p.Chosen.Node == "" {
		return Queued{}, invalidf("the plan is incomplete: PlanRecovery has failed")
	}
	return c.enqueue(ctx, request{source: &catalog.Source{Node: p.Chosen.Node, Token: p.Chosen.Token},
		change: p.Request.Spec, options: p.Request.Options.stored()})
}

// noSurvivors explains why there is nothing to choose from.
func (c *Client) noSurvivors(ctx context.Context) error {
	e := &NoSurvivorsError{}
	l, _, err := c.catalog.Leader(ctx)
	if err != nil && !errors.Is(err, ErrNotFound) && !Unreadable(err) {
		return err
	}
	if err == nil {
		e.Leader, e.Age = &l, c.Now().Sub(l.Time)
	}
	if spec, _, err := c.catalog.Spec(ctx); err == nil {
		e.Members = spec.MemberCount
	}
	return e
}

// pickSurvivor takes the named one, or the one with the newest data (the highest raft term and
// index) among those of the cluster that the marker names. Terms and indexes of two clusters can't
// be compared, so if several are there and the marker helps no further, the operator has to choose.
func pickSurvivor(nodes []catalog.Survivor, name cluster.NodeID, current cluster.Token) (catalog.Survivor, error) {
	if name != "" {
		i := slices.IndexFunc(nodes, func(n catalog.Survivor) bool { return n.Node == name })
		if i < 0 {
			return catalog.Survivor{}, &SurvivorError{Name: name}
		}
		return nodes[i], nil
	}
	if len(nodes) == 0 {
		return catalog.Survivor{}, &SurvivorError{}
	}
	candidates := nodes
	if slices.ContainsFunc(nodes, func(n catalog.Survivor) bool { return n.Token != nodes[0].Token }) {
		candidates = slices.DeleteFunc(slices.Clone(nodes), func(n catalog.Survivor) bool { return n.Token != current })
	}
	if len(candidates) == 0 {
		return catalog.Survivor{}, &SurvivorError{Ambiguous: true}
	}
	return slices.MaxFunc(candidates, func(x, y catalog.Survivor) int {
		return cmp.Or(cmp.Compare(x.RaftTerm, y.RaftTerm), cmp.Compare(x.RaftIndex, y.RaftIndex), -cmp.Compare(x.Node, y.Node))
	}), nil
}
