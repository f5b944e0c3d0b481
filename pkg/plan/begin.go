package plan

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// command starts the newest queued restore that may start, and marks the older ones superseded.
func (r *rules) command() (Decision, bool) {
	s := r.o.Store
	if s.Error != "" {
		return none, false
	}
	var ready []model.Command
	for _, c := range s.Commands {
		if (c.Ready || r.v.token == "") && c.Name != r.tried {
			ready = append(ready, c)
		}
	}
	if len(ready) == 0 || r.v.serving && r.locked() {
		return none, false
	}
	if len(ready) > 1 {
		c, by := ready[0], ready[len(ready)-1]
		return do(model.FailCommand{Command: c.Name, Backup: c.Backup, Reason: "superseded by " + by.Name, SupersededBy: by.Name},
			"the restore of %s was queued before that of %s, which wins", c.What(), by.What())
	}
	if d, ok := r.free(); ok {
		return d, true
	}
	if r.o.BackupRunning != "" && r.v.serving {
		return hold("the restore of %s starts when the backup that is being taken (%s) is done", ready[0].What(), r.o.BackupRunning)
	}
	if i := slices.IndexFunc(r.o.Nodes, func(n cluster.NodeStatus) bool { return n.Busy == cluster.BusyReleasing }); i >= 0 {
		return hold("the restore of %s starts when node %s is back on its new volume, or has kept the old one", ready[0].What(), r.o.Nodes[i].ID)
	}
	return r.begin(ready[0])
}

// free ends what the last restore has left before the next one begins: a node that is held for one can't take part in another. Its
// etcd goes on, or, if the marker names another cluster, its data go where those of the others went.
func (r *rules) free() (Decision, bool) {
	if d, ok := r.held(); ok {
		return d, true
	}
	m := r.o.Store.Marker
	for _, n := range r.o.Nodes {
		if n.Holding && n.State != nil && r.o.Store.Operation == nil && m.Phase == model.MarkerFormed &&
			m.Token != "" && m.Token != n.State.Token {
			return do(model.SetAside{Node: n.ID, Token: n.State.Token, Reason: "replaced by a restore"},
				"node %s is still held for a restore that is over; its data are set aside before the next one begins", n.ID)
		}
	}
	return none, false
}

// refuse says why a command can never be carried out.
func refuse(c model.Command, why string) (Decision, bool) {
	return do(model.FailCommand{Command: c.Name, Backup: c.Backup, Reason: why}, "the restore of %s can't succeed: %s", c.What(), why)
}

// begin picks the nodes and the version for a restore, and the data dir for a recovery.
func (r *rules) begin(c model.Command) (Decision, bool) {
	spec := c.Spec
	if spec.MemberCount == 0 && r.spec != nil {
		spec.MemberCount = r.spec.MemberCount
	}
	if spec.EtcdVersion == "" {
		spec.EtcdVersion = r.wantedVersion()
	}
	if !cluster.ValidMemberCount(spec.MemberCount) {
		return refuse(c, fmt.Sprintf("it asks for %d members; only 1, 3, 5, 7 or 9 are formed", spec.MemberCount))
	}
	if c.Backup == "" && c.Source.Token == "" {
		return refuse(c, "it names neither a backup nor a data dir")
	}
	if r.v.serving && r.o.away(r.v.token, 0) {
		return none, false // what serves are members that couldn't be stopped from here
	}
	if d, ok := r.mayServeElsewhere(c); ok {
		return d, true
	}
	nodes, wait := r.founders(spec.MemberCount, func(n *cluster.NodeStatus) bool { return n.State != nil && n.State.Token == r.v.token })
	switch {
	case nodes == nil && r.v.serving:
		return none, false // what serves is looked after meanwhile
	case nodes == nil:
		return hold("waiting to restore %s: %s", c.What(), wait)
	}
	version, missing := r.pick(spec.EtcdVersion, nodes)
	if version == "" {
		return refuse(c, missing)
	}
	op := model.Operation{ID: c.Name, Backup: c.Backup, State: model.OpProving, Nodes: selves(nodes), Token: r.o.FreshToken,
		OldToken: r.v.token, Version: version, Size: spec.MemberCount}
	op.RevisionBefore = r.o.Store.HighestRevision
	for _, n := range r.o.Nodes {
		op.RevisionBefore = max(op.RevisionBefore, n.Etcd.Revision)
	}
	if c.Backup != "" {
		return do(model.BeginRestore{Command: c.Name, Op: op}, "the restore of %s was queued and may start; here: %s",
			c.What(), cluster.Count(len(nodes), "master"))
	}
	return r.beginSalvage(c, op)
}

// beginSalvage begins a recovery: a backup is made of a data dir first.
func (r *rules) beginSalvage(c model.Command, op model.Operation) (Decision, bool) {
	id, missing := c.Source.Node, cluster.NodeID("")
	if id == "" {
		id, missing = r.newestTrash(c.Source.Token), r.o.recentlyMissing(stepDeadline)
	} else if miss := r.o.missing(string(id)); r.o.Node(id) == nil && (miss.For < stepDeadline || c.Source.OrBackup == "") {
		missing = id
	}
	n := r.o.Node(id)
	switch {
	case missing != "" && r.v.serving:
		return none, false // what serves is looked after meanwhile
	case missing != "":
		d, ok := hold("the restore of %s waits for node %s, which doesn't answer", c.What(), missing)
		d.Waits, d.Alarm = false, r.o.missing(string(missing)).For > stepDeadline
		return d, ok
	case (n == nil || where(n, c.Source.Token) == nowhere) && c.Source.OrBackup != "":
		op.Backup = c.Source.OrBackup
		return do(model.BeginRestore{Command: c.Name, Op: op}, "%s can't be found; %s is restored in its stead",
			c.Source.What(), c.Source.Instead())
	case n == nil:
		return refuse(c, fmt.Sprintf("no node here has a data dir of cluster %s in its trash can", c.Source.Token))
	case where(n, c.Source.Token) == nowhere:
		return refuse(c, fmt.Sprintf("node %s doesn't have a data dir of cluster %s", id, c.Source.Token))
	case where(n, c.Source.Token) == current && lookAt(r.o, c.Source.Token).serving:
		return refuse(c, hasQuorum)
	}
	if few := r.fewDirs(c); few != "" && r.v.serving {
		return none, false // what serves is looked after meanwhile; Attentions tells
	} else if few != "" {
		return needs(fewAttention(c), "%s", few)
	}
	op.State, op.Source = model.OpSalvaging, c.Source
	op.Source.Node = id
	return do(model.BeginRestore{Command: c.Name, Op: op}, "the restore of %s was queued and may start; here: %s",
		op.What(), cluster.Count(len(op.Nodes), "master"))
}

// fewDirs says why a command waits for more of a replaced cluster's data dirs; "" if it doesn't.
// What its clients were told last may be in any majority of them, so fewer than that are not
// enough.
func (r *rules) fewDirs(c model.Command) string {
	if c.Source.Token == "" || c.Source.Node != "" || c.AcceptLoss {
		return ""
	}
	members, here := 0, 0
	for _, n := range r.o.Nodes {
		if i := slices.IndexFunc(n.Trash, func(e cluster.TrashEntry) bool { return e.Token == c.Source.Token && e.Members > 0 }); i >= 0 {
			members, here = max(members, n.Trash[i].Members), here+1
		}
	}
	if here >= cluster.Quorum(members) || members == 0 {
		return ""
	}
	or := ""
	switch {
	case c.Source.OrRevision > 0:
		or = fmt.Sprintf("restore what the store had right before it was stopped (restore-backup %s --to-revision=%d), or ", c.Source.OrBackup, c.Source.OrRevision)
	case c.Source.OrBackup != "":
		or = fmt.Sprintf("restore backup %s, which was made right before it was stopped, or ", c.Source.OrBackup)
	}
	return fmt.Sprintf("the restore of %s waits and has stopped nothing: only %d of the %d old data dirs are here, and what clients were told last may be in the others; "+
		"bring their nodes back; if they are lost, withdraw it (delete-command %s) and %srepeat undo-restore with --accept-loss",
		c.What(), here, members, c.Name, or)
}

// hasQuorum is why nothing is salvaged from a data dir on which a cluster runs.
const hasQuorum = "the cluster has a quorum; take a backup instead"

type place int

const (
	nowhere place = iota
	current       // the node's data dir of today
	trash         // set aside
)

// where tells where a node has the data dir of a cluster.
func where(n *cluster.NodeStatus, t cluster.Token) place {
	switch {
	case n.State != nil && n.State.Token == t && n.DataPresent:
		return current
	case slices.ContainsFunc(n.Trash, func(e cluster.TrashEntry) bool { return e.Token == t }):
		return trash
	}
	return nowhere
}

// newestTrash is the node whose trash can has the newest data of a cluster by raft's own order, or "". A node that has the cluster
// as its current one is another case.
func (r *rules) newestTrash(t cluster.Token) cluster.NodeID {
	var id cluster.NodeID
	var best cluster.TrashEntry
	for _, n := range r.o.Nodes {
		if where(&n, t) != trash {
			continue
		}
		for _, e := range n.Trash {
			newer := cmp.Or(cmp.Compare(e.RaftTerm, best.RaftTerm), cmp.Compare(e.RaftIndex, best.RaftIndex)) > 0
			if e.Token == t && (id == "" || newer) {
				id, best = n.ID, e
			}
		}
	}
	return id
}
