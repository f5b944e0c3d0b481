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

// What makes a database worth to be rewritten.
const (
	// defragLeast is the smallest database that is looked at.
	defragLeast = 16 << 20
	// defragUrgent is the part of a database that has to be free inside when there is no room left.
	defragUrgent = 0.1
	// roomLeft is the part of the quota below which a database has to be before the alarm is taken back.
	roomLeft = 0.95
	// compactAgain is how long a compaction that made too little room is left at that.
	compactAgain = time.Minute
)

// alarms are those of a kind that any healthy member knows of, by member.
func (r *rules) alarms(t cluster.AlarmType) []cluster.MemberID {
	var list []cluster.MemberID
	for _, n := range r.v.nodes {
		for _, a := range n.Etcd.Alarms {
			if n.Etcd.Healthy && a.Type == t && a.Member != cluster.SupersededMember && !slices.Contains(list, a.Member) {
				list = append(list, a.Member)
			}
		}
	}
	slices.Sort(list)
	return list
}

// accused tells whether etcd says that a member's data are corrupt.
func (r *rules) accused(id cluster.MemberID) bool {
	return slices.Contains(r.alarms(cluster.AlarmCorrupt), id)
}

// corrupt replaces a member whose data etcd has found to differ from those of all others. etcd
// refuses writes everywhere then, but every member goes on answering reads, so the wrong one is
// stopped first. It doesn't wait for a backup: until the alarm is taken back nobody can write.
func (r *rules) corrupt() (Decision, bool) {
	accused := r.alarms(cluster.AlarmCorrupt)
	if len(accused) == 0 || !r.v.serving || r.denied() != nil { // nothing is removed on what one can't be asked about
		return none, false
	}
	var in []cluster.Member
	for _, m := range r.v.members {
		if slices.Contains(accused, m.ID) {
			in = append(in, m)
		}
	}
	voters, clean := 0, 0
	for _, m := range r.v.members {
		if m.Learner {
			continue
		}
		voters++
		if r.v.healthy(m) && !slices.Contains(accused, m.ID) {
			clean++
		}
	}
	switch {
	case slices.Contains(accused, 0): // etcd's word for that
		return needs(cluster.Attention{Command: restoreCommand},
			"etcd has found that data differ between members and can't tell whose are wrong (alarm CORRUPT of no member); "+
				"clients are not served; find the right data (etcdctl endpoint hashkv --cluster), "+
				"empty the data dirs of the other members and take the alarm back (etcdctl alarm disarm), or restore: "+restoreCommand)
	case len(in) == 0 && r.canChange():
		a := cluster.Alarm{Member: accused[0], Type: cluster.AlarmCorrupt}
		return do(model.Disarm{Alarm: a}, "the member %s, whose data were corrupt, is gone", accused[0])
	case len(in) > 0 && r.canChange() && clean >= cluster.Quorum(voters) && !r.o.missing(in[0].Name).Foreign:
		if n := r.v.node(r.o, in[0]); n != nil && n.State != nil && n.State.Token == r.v.token && n.Etcd.Running &&
			n.Etcd.MemberID == in[0].ID {
			return do(model.StopMember{Node: n.ID, Reason: "its data are corrupt"},
				"etcd has found that the data of member %s differ from those of all others (alarm CORRUPT), so nobody may read from it any more",
				label(in[0]))
		}
		return do(model.RemoveMember{Member: in[0].ID, Name: in[0].Name},
			"etcd has found that the data of member %s differ from those of all others (alarm CORRUPT), so it is replaced", label(in[0]))
	}
	return needs(cluster.Attention{Command: restoreCommand},
		"etcd has found corrupt data (alarm CORRUPT on %s), and only %d of %d voters are healthy and not accused, "+
			"which is no quorum, so it can't be told whose data are right; clients are not served; "+
			"find the right data (etcdctl endpoint hashkv --cluster), or restore: "+restoreCommand,
		join(accused, func(m cluster.MemberID) string { return m.String() }, ", "), clean, voters)
}

// free is the part of a database that holds nothing.
func free(n *cluster.NodeStatus) float64 {
	if n.Etcd.DBSize <= 0 || n.Etcd.DBSizeInUse <= 0 {
		return 0
	}
	return 1 - float64(n.Etcd.DBSizeInUse)/float64(n.Etcd.DBSize)
}

func mib(n int64) figure { return figure{fmt.Sprintf("%d MiB", n>>20)} }

// full says that etcd has run out of room.
const full = "etcd's database has reached its quota, so it refuses writes (alarm NOSPACE)"

// makeRoom is noSpace before anything is done about members: a member that is down or catches up must not keep clients from writing.
func (r *rules) makeRoom() (Decision, bool) {
	if r.denied() != nil {
		return none, false
	}
	d, ok := r.noSpace()
	return d, ok && d.Do != nil
}

// writers are the healthy voters that are open to clients, the etcd leader last, and the first of them whose database is being rewritten.
func (r *rules) writers() (list []runner, rewritten *cluster.NodeStatus) {
	for _, m := range r.v.members {
		n := r.v.node(r.o, m)
		switch {
		case n == nil || m.Learner || n.State == nil || n.State.Token != r.v.token || n.Holding || isQuarantined(n):
		case n.Busy == cluster.BusyDefragment:
			rewritten = cmp.Or(rewritten, n)
		case n.Etcd.Votes() && n.Etcd.MemberID == m.ID:
			list = append(list, runner{member: m, node: n})
		}
	}
	slices.SortStableFunc(list, func(a, b runner) int { return r.worth(a.member) - r.worth(b.member) })
	return list, rewritten
}

// noSpace makes room where etcd has run out of it: it drops history, rewrites the databases, and
// takes the alarm back if that has helped. All members refuse writes then, so it doesn't wait for
// one that is down: a rewrite stops the reads of one member for a moment, no process.
func (r *rules) noSpace() (Decision, bool) {
	raised := r.alarms(cluster.AlarmNoSpace)
	if len(raised) == 0 || !r.canChange() {
		return none, false
	}
	if !r.mayRoll() && !r.untouched() {
		return alarm("%s; nothing is done about it while the store can't be reached or a restore is recorded", full)
	}
	list, rewritten := r.writers()
	switch {
	case rewritten != nil:
		return hold("%s; the database of node %s is rewritten", full, rewritten.ID)
	case len(list) == 0:
		return none, false
	}
	if why := disagree(list); why != "" {
		return alarm("%s; but %s", full, why)
	}
	revision := list[0].node.Etcd.Revision
	for _, x := range list {
		revision = min(revision, x.node.Etcd.Revision)
	}
	if r.o.CompactedTo == 0 {
		return r.changing(model.Compact{Revision: revision}, "%s; its history goes first", full)
	}
	for _, x := range list {
		e := x.node.Etcd
		switch {
		case r.untouched(): // the disks, and what the nodes do, belong to the restore
		case free(x.node) >= defragUrgent:
			return do(model.Defragment{Node: x.node.ID},
				"%s; %s of %s are free inside the database of node %s, which is rewritten", full,
				mib(e.DBSize-e.DBSizeInUse), mib(e.DBSize), x.node.ID)
		case tight(x.node) && !slices.Contains(r.o.Rewritten, x.node.ID):
			// etcd counts what a compaction has freed when it writes the next time, and nobody can write now.
			return do(model.Defragment{Node: x.node.ID},
				"%s; what is free inside the database of node %s (%s) shows when it is rewritten", full, x.node.ID, mib(e.DBSize))
		}
	}
	for _, x := range list {
		e := x.node.Etcd
		if tight(x.node) && r.untouched() {
			return hold("%s; its databases are rewritten when restore %s is over", full, r.o.Store.Operation.ID)
		} else if tight(x.node) && r.o.Store.SettingsError == "" && changedSettings(x.node, r.o.Store.Settings) != "" {
			return none, false // there may be a higher quota among what is to be set
		} else if tight(x.node) {
			// Deleting goes on without room, and what was deleted is history.
			if revision > r.o.CompactedTo && r.o.Now.Sub(r.o.CompactedAt) >= compactAgain {
				return r.changing(model.Compact{Revision: revision}, "%s; keys have been deleted since its history was dropped", full)
			}
			way, raise := "delete keys", raiseQuota(e.DBQuota)
			if raise != "" {
				way += ", or raise the quota: " + raise
			}
			return needs(cluster.Attention{Command: raise},
				"%s; history is dropped and the databases are rewritten, but the data themselves are %s on node %s, of a quota of %s; %s",
				full, mib(e.DBSize), x.node.ID, mib(e.DBQuota), way)
		}
	}
	for _, n := range r.v.nodes {
		if n.Etcd.Healthy && tight(n) {
			return hold("%s; node %s has %s of a quota of %s, and its database is rewritten once it is a voter", full,
				n.ID, mib(n.Etcd.DBSize), mib(n.Etcd.DBQuota))
		}
	}
	return do(model.Disarm{Alarm: cluster.Alarm{Member: raised[0], Type: cluster.AlarmNoSpace}},
		"there is room again: the largest database is %s; etcd may take writes", mib(largest(list)))
}

// tight tells whether a database is so near its quota that the alarm stays.
func tight(n *cluster.NodeStatus) bool {
	return n.Etcd.DBQuota > 0 && float64(n.Etcd.DBSize) >= roomLeft*float64(n.Etcd.DBQuota)
}

func largest(list []runner) int64 {
	var size int64
	for _, x := range list {
		size = max(size, x.node.Etcd.DBSize)
	}
	return size
}

// defragment rewrites the databases that have grown holes, one member at a time, the etcd leader last, and only at the hours for it.
func (r *rules) defragment() (Decision, bool) {
	if r.p.DefragThreshold <= 0 || !r.mayRoll() || !r.offPeak() {
		return none, false
	}
	list, why := r.runners()
	if why != "" || disagree(list) != "" || r.o.BackupRunning != "" || len(list) == 2 {
		return none, false
	}
	for _, x := range list {
		if e := x.node.Etcd; e.DBSize >= defragLeast && free(x.node) >= r.p.DefragThreshold {
			return do(model.Defragment{Node: x.node.ID},
				"%s of %s are free inside the database of node %s (%.0f%%, the threshold is %.0f%%)",
				mib(e.DBSize-e.DBSizeInUse), mib(e.DBSize), x.node.ID, 100*free(x.node), 100*r.p.DefragThreshold)
		}
	}
	return none, false
}

// offPeak tells whether this is an hour at which databases may be rewritten.
func (r *rules) offPeak() bool {
	from, until := r.p.DefragFrom, r.p.DefragUntil
	now := r.o.Now.UTC()
	at := now.Sub(now.Truncate(24 * time.Hour))
	switch {
	case from == until:
		return true
	case from < until:
		return at >= from && at < until
	}
	return at >= from || at < until
}

// roomWords warns of a database that comes near its quota, or is "".
func (r *rules) roomWords() string {
	var words []string
	for _, n := range r.v.nodes {
		if e := n.Etcd; e.Healthy && e.DBQuota > 0 && e.DBSizeInUse*10 >= e.DBQuota*8 {
			words = append(words, fmt.Sprintf("the data on node %s are %s of a quota of %s", n.ID, mib(e.DBSizeInUse), mib(e.DBQuota)))
		}
	}
	return strings.Join(words, ", ")
}
