package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// pick picks the etcd version that every one of the nodes can run. The second result says what is missing.
func (r *rules) pick(want string, nodes []*cluster.NodeStatus) (string, string) {
	if want == "" {
		want = r.p.DefaultVersion
	}
	w, err := cluster.ParseVersion(want)
	if err != nil {
		return "", err.Error()
	}
	if why := w.Unsafe(); why != "" && !w.Replaceable() {
		return "", fmt.Sprintf("etcd %s is refused: %s", want, why)
	}
	var common []string
	for i, n := range nodes {
		if i == 0 {
			common = slices.Clone(n.Versions)
			continue
		}
		common = slices.DeleteFunc(common, func(v string) bool { return !slices.Contains(n.Versions, v) })
	}
	if v := cluster.NearestVersion(want, common); v != "" {
		return v, ""
	}
	for _, n := range nodes {
		if cluster.NearestVersion(want, n.Versions) == "" {
			return "", fmt.Sprintf("node %s has no etcd %d.%d (it has %s); install it under /opt/etcd-v%s", n.ID,
				w.Major, w.Minor, join(n.Versions, func(s string) string { return s }, ", "), want)
		}
	}
	return "", fmt.Sprintf("no patch version of etcd %d.%d is on all of the nodes; install %s under /opt/etcd-v%s on each",
		w.Major, w.Minor, want, want)
}

// badSpec says what is wrong with the wanted cluster, or "".
func (r *rules) badSpec() string {
	switch {
	case r.o.Store.SpecError != "":
		return r.o.Store.SpecError
	case r.spec == nil:
		return "nobody has said how many members are wanted; run: " + r.sizeCommand()
	case !cluster.ValidMemberCount(r.spec.MemberCount):
		return fmt.Sprintf("the spec asks for %d members; only 1, 3, 5, 7 or 9 are formed; run: %s", r.spec.MemberCount, r.sizeCommand())
	case r.spec.EtcdVersion != "":
		v, err := cluster.ParseVersion(r.spec.EtcdVersion)
		if err != nil {
			return "the spec's etcd version: " + err.Error()
		}
		if why := v.Unsafe(); why != "" && !v.Replaceable() {
			return fmt.Sprintf("the spec asks for etcd %s: %s", r.spec.EtcdVersion, why)
		}
	}
	return ""
}

// founders picks the nodes of a new cluster: the preferred first, then by id. With fewer than wanted it waits, then takes a majority.
func (r *rules) founders(count int, prefer func(*cluster.NodeStatus) bool) ([]*cluster.NodeStatus, string) {
	var list []*cluster.NodeStatus
	for i := range r.o.Nodes {
		if r.o.Nodes[i].StateError == "" {
			list = append(list, &r.o.Nodes[i])
		}
	}
	slices.SortStableFunc(list, func(a, b *cluster.NodeStatus) int {
		pa, pb := prefer(a), prefer(b)
		switch {
		case pa && !pb:
			return -1
		case pb && !pa:
			return 1
		}
		return 0
	})
	if len(list) >= count {
		return list[:count], ""
	}
	seen := join(list, func(n *cluster.NodeStatus) string { return string(n.ID) }, ", ")
	if len(list) < cluster.Quorum(count) {
		return nil, fmt.Sprintf("%d of %d masters are here (%s), at least %d are needed", len(list), count, seen, cluster.Quorum(count))
	}
	if r.o.SettledFor < r.p.FormGrace {
		return nil, fmt.Sprintf("%d of %d masters are here (%s); the others have %s more", len(list), count, seen,
			round(r.p.FormGrace-r.o.SettledFor))
	}
	return list, ""
}

func selves(nodes []*cluster.NodeStatus) []cluster.EtcdNode {
	list := make([]cluster.EtcdNode, len(nodes))
	for i, n := range nodes {
		list[i] = n.Self.Clone()
	}
	slices.SortFunc(list, func(a, b cluster.EtcdNode) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// form creates the marker of a new cluster, if none was ever created and nothing queued is to be restored instead.
func (r *rules) form() (Decision, bool) {
	if r.v.token != "" || r.o.Store.Marker.Phase != model.MarkerAbsent {
		return none, false
	}
	if e := r.o.Store.Error; e != "" {
		return needs(cluster.Attention{Kind: cluster.AttentionStore},
			"the store can't be read, so it isn't known whether a cluster was created before; nothing is formed: %s", figure{e})
	}
	if !r.p.MayCreate {
		return hold("no node has an etcd cluster; with a static configuration one is only created when the file please-create-new-cluster exists in the data dir")
	}
	if e := r.badSpec(); e != "" {
		return needs(r.specAttention(cluster.AttentionForming), "no cluster can be formed: %s", e)
	}
	if e := r.o.Store.ObjectErrors; len(e) > 0 {
		return needs(cluster.Attention{Kind: cluster.AttentionObject},
			"an object in the store can't be used, so nothing is formed: %s", e[0])
	}
	if len(r.o.Store.CommandErrors) > 0 {
		return needs(cluster.Attention{Kind: cluster.AttentionObject, Command: deleteCommand(r.o.Store.CommandErrors[0])},
			"a queued command can't be read (%s); it may be a restore, so nothing is formed; repair or delete it",
			r.o.Store.CommandErrors[0])
	}
	if c := r.o.Store.Commands; len(c) > 0 {
		return needs(cluster.Attention{Command: deleteCommand(c[0].Name)},
			"the restore of %s is queued but has ended already; nothing is formed before its command is gone: %s",
			c[0].What(), deleteCommand(c[0].Name))
	}
	if f := r.o.Store.FailedRestores; len(f) > 0 {
		return needs(cluster.Attention{Command: deleteCommand(f[0])},
			"a restore was asked for and failed (%s), so no empty cluster is formed in its stead; queue another restore, or delete the failed command: %s", f[0], deleteCommand(f[0]))
	}
	for _, m := range r.o.Missing {
		if m.Foreign {
			return alarm("node %s runs other software on the managers' port, which may have or form a cluster of its own; nothing is formed beside it", m.ID)
		}
	}
	nodes, wait := r.founders(r.spec.MemberCount, func(*cluster.NodeStatus) bool { return false })
	if nodes == nil {
		return hold("waiting to form a cluster: %s", wait)
	}
	version, missing := r.pick(r.spec.EtcdVersion, nodes)
	if version == "" {
		return alarm("no cluster can be formed: %s", missing)
	}
	return do(model.CreateMarker{Token: r.o.FreshToken, Founders: selves(nodes), Version: version},
		"no cluster was ever created for this store and %d of %s here", len(nodes), are(r.spec.MemberCount, "master"))
}

// roll says how the founders of a cluster that is being formed are.
type roll struct {
	all, healthy int
	// blank are founders without a state file. Each of them has never begun, or has lost its disk; nobody can tell which.
	blank []*cluster.NodeStatus
	// waited is how long the one of the founders with data that was well last hasn't been well.
	waited time.Duration
	// away don't answer, stuck don't get well, broken can't say what they have.
	away, stuck, broken []string
}

// lacks says who of the founders can't go on, and why.
func (f *roll) lacks() string {
	var words []string
	if len(f.away) > 0 {
		words = append(words, "no answer from "+strings.Join(f.away, ", "))
	}
	if len(f.blank) > 0 {
		words = append(words, "no data on "+join(f.blank, func(n *cluster.NodeStatus) string { return string(n.ID) }, ", "))
	}
	return strings.Join(append(words, f.stuck...), "; ")
}

// complete tells whether a majority of the founders is well, and all others have had their time.
func (f *roll) complete(settled bool) bool {
	gone := len(f.away) + len(f.stuck) + len(f.broken)
	return f.healthy >= cluster.Quorum(f.all) && f.healthy+gone+len(f.blank) == f.all && (settled || gone == 0)
}

// over tells whether those founders that can still go on are too few.
func (f *roll) over() bool {
	left := f.all - len(f.away) - len(f.blank)
	return left < cluster.Quorum(f.all) || len(f.blank) > 0 && left-len(f.stuck) < cluster.Quorum(f.all)
}

// call looks at the founders. The second result is what has to be done before anything else.
func (r *rules) call() (*roll, Decision, bool) {
	m := r.o.Store.Marker
	f := &roll{all: len(m.Founders), waited: r.p.FormGrace}
	for _, x := range m.Founders {
		n := r.o.Node(cluster.NodeID(x.Name))
		if n != nil && n.State != nil && n.State.Token == m.Token {
			f.waited = min(f.waited, n.Etcd.UnhealthyFor)
		}
		switch {
		case n == nil:
			f.away = append(f.away, x.Name)
		case n.StateError != "":
			f.broken = append(f.broken, fmt.Sprintf("%s: %s", x.Name, n.StateError))
		case n.State == nil:
			f.blank = append(f.blank, n)
		case n.State.Token != m.Token && !givenUp(n):
			d, ok := needs(cluster.Attention{Kind: cluster.AttentionClusters, Node: n.ID},
				"founder %s belongs to another cluster (token %s); it is not touched; move its data dir away or delete control/etcd-cluster-created", n.ID, n.State.Token)
			return f, d, ok
		case n.State.Token != m.Token:
			d, ok := do(model.SetAside{Node: n.ID, Token: n.State.Token, Reason: "an attempt to form that was given up", NeverServed: true},
				"node %s has data of an attempt to form that was given up", n.ID)
			return f, d, ok
		case n.Etcd.Votes():
			f.healthy++
		case n.Etcd.UnhealthyFor >= r.p.MemberDeadline:
			f.stuck = append(f.stuck, fmt.Sprintf("%s: %s", x.Name, cmp.Or(n.Etcd.Error, "not healthy")))
		}
	}
	return f, none, false
}

// forming goes on with a cluster whose marker exists but which no client was let into yet.
//
// The founders' member ids follow from the marker. A founder that has lost its disk has forgotten what it has acknowledged and whom it has
// voted for, so it must not come back under its id. It looks like one that has never begun. So founders are only started together,
// before any of them has begun. Whoever has no data then is left out: the others form without it, or forming starts over with new ids.
func (r *rules) forming() (Decision, bool) {
	m := r.o.Store.Marker
	if m.Phase != model.MarkerForming || r.o.Store.Error != "" {
		return none, false
	}
	if f := r.o.Store.FailedRestores; len(f) > 0 && r.v.token == "" {
		return needs(cluster.Attention{Command: deleteCommand(f[0])},
			"a restore was asked for and failed (%s), so no empty cluster is formed in its stead; queue another restore, or delete the failed command: %s", f[0], deleteCommand(f[0]))
	}
	f, d, first := r.call()
	switch {
	case first:
		return d, true
	case len(f.blank) == f.all:
		return do(model.StartAll{Starts: founding(&m, f.blank)}, "cluster %s is being formed and %d of its founders have no etcd yet",
			m.Token, f.all)
	case f.complete(r.o.SettledFor >= r.p.FormGrace):
		return do(model.MarkFormed{Token: m.Token}, "%d of %d founders are healthy", f.healthy, f.all)
	case f.over() && !r.v.open:
		return r.startOver(f)
	}
	words := fmt.Sprintf("cluster %s is being formed: %d of %d founders are healthy", m.Token, f.healthy, f.all)
	if lacks := (&roll{away: f.away, blank: f.blank}).lacks(); lacks != "" {
		words += "; " + lacks
	}
	if sick := slices.Concat(f.stuck, f.broken); len(sick) > 0 {
		return alarm("%s; %s", words, strings.Join(sick, ", "))
	}
	return hold("%s", words)
}

// founding are the first starts of founders.
func founding(m *model.Marker, nodes []*cluster.NodeStatus) []model.StartEtcd {
	var starts []model.StartEtcd
	for _, n := range nodes {
		starts = append(starts, model.StartEtcd{Node: n.ID, MayBeEmpty: true, State: cluster.EtcdState{NewCluster: true, Quarantined: true,
			Token: m.Token, Nodes: m.Founders, DesiredSize: len(m.Founders), EtcdVersion: m.Version}})
	}
	return starts
}

// givenUp tells whether a node's data are of an attempt to form into which no client was ever let.
func givenUp(n *cluster.NodeStatus) bool { return n.State.NewCluster && n.State.Quarantined }

// startOver forms with other founders when too few of the first ones are left. No client was ever let in, so nothing can be lost.
func (r *rules) startOver(f *roll) (Decision, bool) {
	m := r.o.Store.Marker
	if len(f.away) > 0 && r.o.SettledFor < r.p.FormGrace {
		return hold("cluster %s is being formed; %s", m.Token, f.lacks())
	}
	// What keeps the others from starting, such as a full disk, may do so again: each time costs the founder that did start a new log.
	if f.waited < r.p.FormGrace {
		return hold("cluster %s is being formed, but too few of its founders can go on (%s); forming starts over in %s", m.Token, f.lacks(),
			round(r.p.FormGrace-f.waited))
	}
	if e := r.badSpec(); e != "" {
		return needs(r.specAttention(cluster.AttentionForming), "forming can't start over: %s", e)
	}
	for _, n := range r.o.Nodes {
		if n.State != nil && !givenUp(&n) {
			return needs(cluster.Attention{Kind: cluster.AttentionClusters, Node: n.ID},
				"forming can't start over: node %s belongs to another cluster (token %s); it is not touched; move its data dir away",
				n.ID, n.State.Token)
		}
	}
	nodes, wait := r.founders(r.spec.MemberCount, func(*cluster.NodeStatus) bool { return false })
	if nodes == nil {
		return hold("too few founders of cluster %s are left to form it, and no other masters: %s", m.Token, wait)
	}
	version, missing := r.pick(r.spec.EtcdVersion, nodes)
	if version == "" {
		return alarm("forming can't start over: %s", missing)
	}
	return do(model.ReplaceMarker{Token: r.o.FreshToken, Founders: selves(nodes), Version: version},
		"too few founders of cluster %s, which has never served, can go on (%s); forming starts over with those that are here", m.Token, f.lacks())
}
