package plan

import (
	"fmt"
	"slices"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// undoSupersede takes back that a cluster is superseded.
const undoSupersede = ctl + "undo-supersede"

// superseded ends a cluster whose place another one takes: its writes first, so that what is stored of them is all there ever was, then
// its etcd. Only a restore that has stopped the old cluster is carried to its end before. As long as the record is there nothing else
// is done. When the operator has taken it back, etcd may take writes again.
func (r *rules) superseded() (Decision, bool) {
	s, ended := r.o.Store, r.writesEnded()
	begun := ended || slices.ContainsFunc(r.o.Nodes, heldSuperseded)
	switch {
	case s.Operation != nil && (s.Superseded == nil || committing(s.Operation.State)):
		return none, false
	case s.Error != "" && (begun || s.Superseded != nil):
		return needs(cluster.Attention{Kind: cluster.AttentionStore},
			"this cluster was superseded when the store was read last; nothing is done until it can be read again: %s", figure{s.Error})
	case s.SupersededError != "" && begun:
		return needs(cluster.Attention{Kind: cluster.AttentionObject, Command: undoSupersede},
			"etcd was stopped, or takes no writes, and it can't be read whether this cluster is superseded: %s", s.SupersededError)
	case s.Superseded != nil:
		return r.endCluster(s.Superseded, ended)
	}
	if list, _ := r.writers(); !ended || len(list) == 0 || !r.canChange() || s.Error != "" {
		return none, false
	}
	return do(model.Disarm{Alarm: cluster.Alarm{Member: cluster.SupersededMember, Type: cluster.AlarmCorrupt}},
		"this cluster isn't superseded any more, so etcd takes writes again")
}

// endCluster names the next step to the end of a cluster that is superseded.
func (r *rules) endCluster(s *model.Superseded, ended bool) (Decision, bool) {
	var running, unreported []cluster.NodeID
	var stopped []string
	for _, n := range r.o.Nodes {
		switch {
		case n.State == nil && !n.Etcd.Running:
		case n.Etcd.Running || !n.Holding:
			running = append(running, n.ID)
		default:
			stopped = append(stopped, string(n.ID))
			if !slices.Contains(s.Reported, n.ID) {
				unreported = append(unreported, n.ID)
			}
		}
	}
	by := cluster.Shown(s.By, 100)
	if i := slices.IndexFunc(r.o.Nodes, func(n cluster.NodeStatus) bool {
		return n.State != nil && n.State.Token != r.v.token && n.Etcd.Votes()
	}); i >= 0 {
		return needs(cluster.Attention{Kind: cluster.AttentionClusters, Node: r.o.Nodes[i].ID},
			"this cluster is superseded by %q, and node %s serves another one (token %s) than that of this store (token %s), so nothing is stopped; a person has to stop it",
			by, r.o.Nodes[i].ID, r.o.Nodes[i].State.Token, r.v.token)
	}
	switch {
	case len(running) > 0 && r.v.serving && !ended && r.triedInVain(model.EndWrites{}) < model.WriteTries:
		return do(model.EndWrites{}, "this cluster is superseded by %q, so etcd takes no more writes", by)
	case len(running) > 0:
		stop := model.StopSuperseded{Nodes: running}
		stop.Unstored = !r.v.serving || r.triedInVain(stop) >= model.WriteTries
		return do(stop, "this cluster is superseded by %q, so etcd is stopped on %s", by, ids(running))
	case len(unreported) > 0:
		return do(model.ReportStopped{Nodes: unreported}, "this cluster is superseded by %q, and etcd is stopped on %s", by, ids(unreported))
	}
	words := "no etcd is here"
	if len(stopped) > 0 {
		words = "etcd is stopped on " + strings.Join(stopped, ", ")
	}
	words = fmt.Sprintf("this cluster is superseded by %q; %s%s; if that is wrong: %s", by, words, r.silentWords(), undoSupersede)
	return Decision{Why: words, Key: words}, true
}

// silentWords names the nodes that don't answer.
func (r *rules) silentWords() string {
	if len(r.o.Missing) == 0 {
		return ""
	}
	return "; no answer from " + join(r.o.Missing, func(m model.MissingNode) string { return string(m.ID) }, ", ")
}

// heldSuperseded tells whether a node's etcd is held because its cluster was superseded.
func heldSuperseded(n cluster.NodeStatus) bool {
	return n.Holding && n.Operation == string(cluster.SupersededOperation)
}

// triedInVain is how often an action was tried in vain.
func (r *rules) triedInVain(a model.Action) int { return r.o.Postponed[model.Subject(a)].Times }

// writesEnded tells whether etcd refuses all changes because its cluster is superseded.
func (r *rules) writesEnded() bool {
	return slices.ContainsFunc(r.v.nodes, func(n *cluster.NodeStatus) bool {
		return n.Etcd.Healthy && slices.Contains(n.Etcd.Alarms,
			cluster.Alarm{Member: cluster.SupersededMember, Type: cluster.AlarmCorrupt})
	})
}
