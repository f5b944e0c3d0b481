package safety

import (
	"errors"
	"fmt"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// halfway: a restore has begun to stop the old cluster.
func halfway(o *model.Observation) bool {
	op := unfinished(o)
	return op != nil && (op.State == model.OpStopping || op.State == model.OpSwitching || op.State == model.OpVerifying ||
		op.State == model.OpReverting)
}

// checkOver: nothing is started, changed or restored in a cluster that is superseded; nothing but its end, and that of a restore which has
// begun to stop it.
func checkOver(o *model.Observation, a model.Action) error {
	start, ok := a.(model.StartEtcd)
	n := o.Node(start.Node)
	if ok && n != nil && n.Holding && n.Operation == string(cluster.SupersededOperation) && o.Store.SupersededError != "" {
		return fmt.Errorf("it isn't known whether the cluster of node %s is superseded", n.ID)
	}
	if o.Store.Superseded == nil || halfway(o) {
		return nil
	}
	switch a.(type) {
	case model.TakeTerm, model.EndWrites, model.StopSuperseded, model.ReportStopped:
		return nil
	}
	return fmt.Errorf("%s in a cluster that is superseded by %q", a, cluster.Shown(o.Store.Superseded.By, 100))
}

// checkWord: only the operator ends a cluster, and never in the middle of a restore.
func checkWord(o *model.Observation) error {
	switch {
	case o.Store.Superseded == nil:
		return errors.New("nobody says that this cluster is superseded")
	case halfway(o):
		return fmt.Errorf("restore %s is under way", o.Store.Operation.ID)
	}
	return nil
}

// checkEndWrites: writes are ended where they can be told of by all: in the one cluster that serves.
func checkEndWrites(o *model.Observation) error {
	if err := checkWord(o); err != nil {
		return err
	}
	if servingToken(o) == "" {
		return errors.New("no one cluster serves")
	}
	return nil
}

// checkStopSuperseded: while a quorum serves, its writes are ended before it is stopped, or that was tried in vain.
func checkStopSuperseded(o *model.Observation, a model.StopSuperseded) error {
	if err := checkWord(o); err != nil {
		return err
	}
	open, vain := false, o.Postponed[model.Subject(model.EndWrites{})].Times >= model.WriteTries
	for _, n := range o.Nodes {
		ended := false
		for _, x := range n.Etcd.Alarms {
			ended = ended || x.Type == cluster.AlarmCorrupt && x.Member == cluster.SupersededMember
		}
		if ended {
			open = false
			break
		}
		open = open || ofQuorum(n)
	}
	if open && !vain {
		return errors.New("etcd still takes writes")
	}
	for _, id := range a.Nodes {
		if o.Node(id) == nil {
			return fmt.Errorf("node %s doesn't answer", id)
		}
	}
	return nil
}

// checkReported: nothing is said to be stopped that may run, or may be started.
func checkReported(o *model.Observation, a model.ReportStopped) error {
	if err := checkWord(o); err != nil {
		return err
	}
	for _, id := range a.Nodes {
		if n := o.Node(id); n == nil || n.Etcd.Running || !n.Holding {
			return fmt.Errorf("etcd of node %s isn't stopped", id)
		}
	}
	return nil
}
