package plan

import (
	"fmt"
	"slices"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// backup starts the periodic backup. It goes on beside everything else, so it never holds up healing.
func (r *rules) backup() (Decision, bool) {
	s := r.o.Store
	if !r.v.serving || r.o.BackupRunning != "" || s.Error != "" || !s.NewestBackupKnown || r.o.Now.Before(r.o.BackupRetryAt) {
		return none, false
	}
	if s.Marker.Phase == model.MarkerForming {
		return none, false
	}
	if r.o.Restored {
		return r.backupNow("after-restore", "a restored cluster begins with a backup of its own")
	}
	if r.o.BackupWanted != "" && !s.NewestBackup.IsZero() {
		return r.backupNow("changes", r.o.BackupWanted)
	}
	if len(s.CreateBackups) > 0 {
		return r.backupOnDemand(s.CreateBackups[0])
	}
	age := r.o.Now.Sub(s.NewestBackup)
	if !s.NewestBackup.IsZero() && age < r.p.BackupInterval && age > -r.p.BackupInterval {
		return none, false
	}
	if r.o.Now.Sub(r.o.BackupBegunAt) < r.p.BackupInterval {
		return none, false // one that is dated in the future stays the newest, whatever is taken after it
	}
	why := fmt.Sprintf("the newest backup is %s old, the interval is %s", round(age), r.p.BackupInterval)
	if s.NewestBackup.IsZero() {
		why = "there is no backup yet"
	} else if age < 0 {
		why = fmt.Sprintf("the newest backup is dated %s in the future", round(-age))
	}
	return r.backupNow("periodic", why)
}

// backupOnDemand takes the backup that an operator has asked for, whatever the interval.
func (r *rules) backupOnDemand(c model.CreateBackup) (Decision, bool) {
	n := r.backupNode()
	if n == nil {
		return none, false
	}
	return do(model.TakeBackup{Node: n.ID, Reason: "on-demand", Command: c.Name}, "command %s asks for a backup", c.Name)
}

func (r *rules) backupNow(reason, why string) (Decision, bool) {
	n := r.backupNode()
	if n == nil {
		return none, false
	}
	return do(model.TakeBackup{Node: n.ID, Reason: reason}, "%s", why)
}

// backupNode is the healthy follower with the lowest id, or the etcd leader if there is no other. Learners don't serve snapshots. A node
// on which a backup has failed lately is only taken if there is no other: it may be cut off from the store.
func (r *rules) backupNode() *cluster.NodeStatus {
	var best *cluster.NodeStatus
	worth := func(n *cluster.NodeStatus) int {
		w := 0
		if !slices.Contains(r.o.BackupFailed, n.ID) {
			w += 2
		}
		if !n.Etcd.Denied {
			w += 4
		}
		if n.Etcd.MemberID != n.Etcd.LeaderID {
			w++
		}
		return w
	}
	for _, n := range r.v.nodes {
		if !n.Etcd.Votes() || n.Etcd.Quarantined || r.accused(n.Etcd.MemberID) || n.Busy == cluster.BusyDefragment {
			continue
		}
		if best == nil || worth(n) > worth(best) {
			best = n
		}
	}
	return best
}
