package safety

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// fewestMembers is the smallest cluster in which one member may be without its data: two that are left are a majority of three.
const fewestMembers = 3

// MayRelease tells whether the cluster can do without the data of a node that is ready to give its volume up. Nil means that it may; an
// error says what is waited for. Every member has to be a healthy voter, and there have to be as many as are wanted, so that a majority
// still has all data while this one is filled again.
func MayRelease(o *model.Observation, id cluster.NodeID) error {
	n := o.Node(id)
	switch op := unfinished(o); {
	case n == nil:
		return fmt.Errorf("node %s doesn't answer the leader", id)
	case n.Release == nil:
		return fmt.Errorf("node %s isn't ready to give its volume up", id)
	case op != nil:
		return fmt.Errorf("a restore is running (%s)", op.ID)
	}
	members := authority(o)
	if members == nil {
		return errors.New("no healthy member with a leader tells the member list, or two clusters do")
	}
	wanted := fewestMembers
	if n.State != nil {
		wanted = max(wanted, n.State.DesiredSize)
	}
	if s := o.Store.Spec; s != nil {
		wanted = max(wanted, s.MemberCount)
	}
	if len(members) < wanted {
		return fmt.Errorf("there are %d members, and %d are needed, because this one has no data while it is rebuilt (at least %d, and all that are wanted)",
			len(members), wanted, fewestMembers)
	}
	var errs []error
	own := false
	for _, m := range members {
		own = own || m.Name == string(id)
		if err := sparesAnother(o, m); err != nil {
			errs = append(errs, fmt.Errorf("member %s (%s): %w", m.Name, m.ID, err))
		}
	}
	if !own {
		errs = append(errs, fmt.Errorf("node %s has no member of the cluster that serves", id))
	}
	return errors.Join(errs...)
}

// sparesAnother: a member is a healthy voter, its node is here, and nothing is done there that may stop it.
func sparesAnother(o *model.Observation, m cluster.Member) error {
	n := o.Node(cluster.NodeID(m.Name))
	switch {
	case m.Learner || m.Name == "":
		return errors.New("it is no voter yet")
	case n == nil:
		return errors.New("its manager doesn't answer the leader")
	case n.State == nil || n.State.Token != servingToken(o) || n.Etcd.MemberID != m.ID:
		return errors.New("its node doesn't have its data")
	case n.Holding || n.Operation != "":
		return fmt.Errorf("a restore is under way on its node (%s)", n.Operation)
	case n.Busy != "":
		return fmt.Errorf("its node is busy with %s", n.Busy)
	case !healthyMember(o, m) || !ofQuorum(*n):
		return fmt.Errorf("it isn't a healthy voter: %s", cmp.Or(n.Etcd.Error, "its etcd doesn't say why"))
	case n.Etcd.Quarantined:
		return errors.New("clients can't reach it yet")
	case calledCorrupt(o, m.ID):
		return errors.New("it has the alarm CORRUPT")
	}
	return nil
}

// checkRelease: a node gives up what it has named itself, and only what the cluster can do without.
func checkRelease(o *model.Observation, a model.ReleaseVolume) error {
	if err := MayRelease(o, a.Node); err != nil {
		return err
	}
	if r := o.Node(a.Node).Release; r.Volume != a.Volume || r.Replacement != a.Replacement {
		return fmt.Errorf("node %s is ready to give volume %s up for %s, not %s for %s", a.Node, r.Volume,
			r.Replacement, a.Volume, a.Replacement)
	}
	return nil
}
