package plan

import (
	"errors"
	"fmt"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// dumbOrder are the minor versions of etcd, oldest first.
const dumbOrder = "3.4. 3.5. 3.6. 3.7. "

// dumbApart is how many minor versions b is newer than a; 99 if one of them isn't known.
func dumbApart(a, b string) int {
	i, j := -1, -1
	for at, prefix := range strings.Fields(dumbOrder) {
		if strings.HasPrefix(a, prefix) {
			i = at
		}
		if strings.HasPrefix(b, prefix) {
			j = at
		}
	}
	if i < 0 || j < 0 {
		return 99
	}
	return j - i
}

// dumbTend says why a member must not be restarted, or its database not be touched, or etcd not be told so.
func dumbTend(o *model.Observation, a model.Action) error {
	tokens := map[cluster.Token]bool{}
	for _, n := range o.Nodes {
		if n.State != nil && n.Etcd.Healthy && !n.Etcd.Learner && !n.Etcd.Quarantined {
			tokens[n.State.Token] = true
		}
	}
	if x, ok := a.(model.RestartMember); ok && len(tokens) == 0 && (o.Store.Operation == nil || o.Store.Operation.State.Ended()) {
		for _, n := range o.Nodes { // who is alone and serves nobody may be started otherwise
			if n.ID == x.Node && n.State != nil && len(n.State.Nodes) == 1 && n.State.Nodes[0].Name == string(x.Node) &&
				!n.Etcd.Healthy && x.State.EtcdVersion == n.State.EtcdVersion {
				return dumbRestartMember(o, x, nil, 0)
			}
		}
	}
	if len(tokens) != 1 {
		return fmt.Errorf("%d clusters serve", len(tokens))
	}
	var up []cluster.NodeStatus // the healthy ones of the one that serves
	for _, n := range o.Nodes {
		if n.State != nil && tokens[n.State.Token] && n.Etcd.Healthy {
			up = append(up, n)
		}
	}
	// By what any of them believes, how many members are there that aren't healthy?
	absent := func(but cluster.NodeID) int {
		worst := 0
		for _, n := range up {
			count := 0
			for _, m := range n.Etcd.Members {
				here := m.Name == string(but)
				for _, x := range up {
					here = here || x.Etcd.MemberID == m.ID && !m.Learner
				}
				if !here {
					count++
				}
			}
			worst = max(worst, count)
		}
		return worst
	}
	switch x := a.(type) {
	case model.RestartMember:
		return dumbRestartMember(o, x, up, absent(x.Node))
	case model.StopMember:
		accused, clean, all := false, map[cluster.MemberID]bool{}, map[cluster.MemberID]bool{}
		for _, n := range up {
			clean[n.Etcd.MemberID] = true
			for _, m := range n.Etcd.Members {
				all[m.ID] = all[m.ID] || !m.Learner
			}
		}
		for _, n := range up {
			for _, al := range n.Etcd.Alarms {
				if al.Type == "CORRUPT" {
					delete(clean, al.Member)
				}
				for _, x := range o.Nodes {
					accused = accused || al.Type == "CORRUPT" && x.ID == a.(model.StopMember).Node && x.Etcd.MemberID == al.Member
				}
			}
		}
		left, voters := 0, 0
		for id, votes := range all {
			if votes {
				voters++
				if clean[id] {
					left++
				}
			}
		}
		if !accused || 2*left <= voters {
			return errors.New("stops what isn't known to be wrong, or too many")
		}
	case model.ReleaseVolume:
		ready, wanted := false, 3
		for _, n := range up {
			ready = ready || n.ID == x.Node && n.Release != nil && n.Release.Volume == x.Volume && n.Release.Replacement == x.Replacement
			wanted = max(wanted, n.State.DesiredSize)
			if n.Busy != "" || n.Holding || n.Operation != "" || n.Etcd.Quarantined || n.Etcd.Learner {
				return errors.New("empties a node while something is done on another one, or was never finished")
			}
		}
		if o.Store.Spec != nil {
			wanted = max(wanted, o.Store.Spec.MemberCount)
		}
		if !ready || len(up) < wanted || absent("") > 0 {
			return errors.New("empties a node that didn't ask for it, or while another member is lacking")
		}
	case model.EnableDowngrade:
		for _, n := range up {
			if dumbApart(x.Version, n.Etcd.Version) != 1 || strings.HasPrefix(n.Etcd.Version, "3.5.") ||
				strings.HasPrefix(n.Etcd.Version, "3.4.") {
				return errors.New("a downgrade that etcd can't do")
			}
		}
		if absent("") > 0 {
			return errors.New("a downgrade while a member is away")
		}
	case model.Defragment:
		full, votes, voters := false, 0, 0
		for _, n := range up {
			for _, al := range n.Etcd.Alarms {
				full = full || al.Type == "NOSPACE"
			}
			if n.Busy == "defragment" && n.ID != x.Node {
				return errors.New("rewrites two databases at once")
			}
			if !n.Etcd.Learner {
				votes++
			}
			list := 0
			for _, m := range n.Etcd.Members {
				if !m.Learner {
					list++
				}
			}
			voters = max(voters, list)
		}
		if full && 2*votes <= voters {
			return errors.New("rewrites a database where there is no quorum")
		}
		if !full && (absent("") > 0 || len(up) == 2) {
			return errors.New("stops a member while another one is away, or one of two")
		}
	case model.Compact:
		full := false
		for _, n := range up {
			for _, al := range n.Etcd.Alarms {
				full = full || al.Type == "NOSPACE"
			}
			if x.Revision > n.Etcd.Revision && !n.Etcd.Learner {
				return errors.New("drops the present")
			}
		}
		if !full {
			return errors.New("drops history for nothing")
		}
	case model.Disarm:
		for _, n := range up {
			for _, m := range n.Etcd.Members {
				if x.Alarm.Type == "CORRUPT" && m.ID == x.Alarm.Member && m.ID != 0 {
					return errors.New("lets clients read what is corrupt")
				}
			}
		}
	}
	return nil
}

func dumbRestartMember(o *model.Observation, a model.RestartMember, up []cluster.NodeStatus, absent int) error {
	var n cluster.NodeStatus
	for _, x := range o.Nodes {
		if x.ID == a.Node {
			n = x
		}
	}
	installed := false
	for _, v := range n.Versions {
		installed = installed || v == a.State.EtcdVersion
	}
	switch {
	case n.State == nil || n.State.Token != a.State.Token || n.Holding || !n.DataPresent:
		return errors.New("restarts what isn't there, is held, or is another cluster's")
	case !installed:
		return errors.New("runs what isn't installed")
	case n.Etcd.Healthy && (absent > 0 || len(up) == 2):
		return errors.New("restarts one of two, or while another one is away")
	case a.State.Quarantined || a.State.NewCluster:
		return errors.New("shuts clients out")
	}
	if down := dumbApart(a.State.EtcdVersion, n.Etcd.Version); down > 0 && down != 99 && n.Etcd.Healthy {
		stays := false
		for _, x := range up {
			stays = stays || x.ID != n.ID && dumbApart(x.Etcd.Version, a.State.EtcdVersion) >= 0 ||
				dumbApart(x.Etcd.DowngradeTarget, a.State.EtcdVersion) == 0
		}
		if !stays {
			return errors.New("goes down though the cluster may go up at any moment")
		}
	}
	for _, x := range up {
		if a.State.EtcdVersion == n.Etcd.Version && n.Etcd.Healthy {
			break
		}
		if d := dumbApart(a.State.EtcdVersion, x.Etcd.Version); d < -1 || d > 1 {
			return fmt.Errorf("%s beside %s", a.State.EtcdVersion, x.Etcd.Version)
		}
		if d := dumbApart(a.State.EtcdVersion, x.Etcd.ClusterVersion); d != 99 && (d > 0 || d < -1) {
			return fmt.Errorf("%s in a cluster of version %s", a.State.EtcdVersion, x.Etcd.ClusterVersion)
		}
		if strings.HasPrefix(a.State.EtcdVersion, "3.6.") &&
			(strings.HasPrefix(x.Etcd.Version, "3.5.2") && x.Etcd.Version < "3.5.26" || strings.HasPrefix(x.Etcd.Version, "3.5.1")) {
			return fmt.Errorf("%s beside %s", a.State.EtcdVersion, x.Etcd.Version)
		}
	}
	return nil
}

// dumbSuperseded: of a cluster that is superseded nothing is left to do but its end, which nobody decides but the operator.
func dumbSuperseded(o *model.Observation, a model.Action) error {
	stopping := o.Store.Operation != nil && map[model.OperationState]bool{model.OpStopping: true, model.OpSwitching: true,
		model.OpVerifying: true, model.OpReverting: true}[o.Store.Operation.State]
	var ended, served bool
	for _, n := range o.Nodes {
		served = served || n.State != nil && n.Etcd.Healthy && !n.Etcd.Learner && (n.Etcd.LeaderID != 0 || n.Etcd.Denied)
		for _, x := range n.Etcd.Alarms {
			ended = ended || x.Member == cluster.SupersededMember
		}
	}
	over := false
	switch x := a.(type) {
	case model.TakeTerm:
		return nil
	case model.EndWrites:
		over = true
		if !served {
			return errors.New("ends writes that nobody can write")
		}
	case model.StopSuperseded:
		over = true
		if served && !ended && o.Postponed["end-writes"].Times < 3 {
			return errors.New("stops what still takes writes")
		}
	case model.ReportStopped:
		over = true
		for _, id := range x.Nodes {
			for _, n := range o.Nodes {
				if n.ID == id && (n.Etcd.Running || !n.Holding) {
					return errors.New("says of what runs that it is stopped")
				}
			}
		}
	case model.Disarm:
		if x.Alarm.Member == cluster.SupersededMember && (o.Store.Superseded != nil || o.Store.SupersededError != "") {
			return errors.New("lets clients write to what is superseded")
		}
	}
	switch {
	case over && (o.Store.Superseded == nil || stopping):
		return errors.New("ends a cluster that nobody calls superseded, or in the middle of a restore")
	case !over && o.Store.Superseded != nil && !stopping:
		return errors.New("does something else with a cluster that is superseded")
	}
	return nil
}
