package manager

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

const (
	// statusEvery is how often a status is written that says nothing new, statusSoon how soon after another one that does.
	statusEvery = time.Minute
	statusSoon  = 10 * time.Second
	// statusGrace is for how long no leader may show anything before a node does: elections and starts are shorter.
	statusGrace = 45 * time.Second
	// shownFor is how long what a leader has stored counts as shown.
	shownFor = 3 * time.Minute
	// statusLook is how often a node looks whether it has to show something, statusTimeout how long it waits for the store.
	statusLook    = 5 * time.Second
	statusTimeout = 15 * time.Second
)

// shownStatus shows in the store what the leader knows: it goes with the heartbeat of the leader record, which is written every minute
// anyway, and earlier when there is news. Only the loop uses it.
type shownStatus struct {
	*shared
	store      *storeView
	record     *leaderRecord
	operations *operations

	key   string
	tried time.Time
	// operation is the one that was under way when this was last looked at.
	operation string
}

// show hands what is known to the leader record. A failure is harmless.
func (ss *shownStatus) show(ctx context.Context) {
	if ss.record.hold == nil {
		return
	}
	s := ss.m.status(nil)
	data, err := catalog.EncodeStatus(s)
	if err != nil {
		ss.said.Warningf("status", "what the leader knows isn't shown in the store: %v", err)
		return
	}
	ss.record.hold.Show(data)
	op := ss.operations.current()
	key := statusKey(s)
	// Who waits for an operation asks for the status at its end.
	over := ss.operation != "" && s.Operation == ""
	ss.operation = s.Operation
	if key == ss.key || time.Since(ss.tried) < statusSoon && !over || ss.store.away() || op != nil && op.State.Committing() {
		return
	}
	ss.key, ss.tried = key, time.Now()
	ss.record.beatNow(ctx)
}

// shows tells whether this process, as the leader, has stored what it knows.
func (m *Manager) shows() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.report.Leading && !m.shownAt.IsZero() && time.Since(m.shownAt) < shownFor
}

func (m *Manager) setShown(at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shownAt = at
}

// keepStatus writes what this node knows into an object of its own while no leader shows anything, and removes it afterwards.
func (m *Manager) keepStatus(ctx context.Context) {
	var needed, wrote time.Time
	key := ""
	stands := true // from another life of this process, for all it knows
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(statusLook):
		}
		if m.shownByLeader() {
			needed = time.Time{}
			if stands {
				stands = m.withinStatusTime(ctx, func(ctx context.Context) error { return m.cfg.Catalog.RemoveStatus(ctx, m.cfg.Self) }) != nil &&
					!wrote.IsZero() // what another life has left is tried once
				key = ""
			}
			continue
		}
		if needed.IsZero() {
			needed = time.Now()
		}
		if time.Since(needed) < statusGrace || time.Since(wrote) < statusSoon {
			continue
		}
		node := m.cfg.Node(ctx)
		s := m.status(&node)
		if k := statusKey(s); k != key || time.Since(wrote) >= statusEvery {
			key, wrote, stands = k, time.Now(), true
			if err := m.withinStatusTime(ctx, func(ctx context.Context) error { return m.cfg.Catalog.PutStatus(ctx, s) }); err != nil {
				klog.V(2).Infof("show the status of this node in the store: %v", err)
			}
		}
	}
}

func (m *Manager) withinStatusTime(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	return f(ctx)
}

// shownByLeader tells whether a leader, this one or another, has what it knows in the store. One of an older version never has.
func (m *Manager) shownByLeader() bool {
	if m.shows() {
		return true
	}
	leader, term := m.cfg.Peers.Leader()
	told, age := m.told()
	return leader != "" && leader != m.cfg.Self && told != nil && told.Node == leader && told.Term == term && age < summaryAge && told.Shown
}

// Status is what this manager knows at this moment, for a page. A manager that doesn't lead asks its own etcd, for a quarter of a second at
// most; the store is never asked.
func (m *Manager) Status(ctx context.Context) catalog.Status {
	if s := m.status(nil); s.Leading {
		return s
	}
	node := m.cfg.Node(ctx)
	return m.status(&node)
}

// status is what this manager knows, from memory alone. own is how this node is; nil for a leader, which has seen all nodes.
func (m *Manager) status(own *cluster.NodeStatus) catalog.Status {
	r, o := m.Report(), m.Outlook()
	leader, term := m.cfg.Peers.Leader()
	s := catalog.Status{
		At: time.Now().UTC().Truncate(time.Second), ClusterName: m.cfg.ClusterName, Node: m.cfg.Self, Manager: m.cfg.Changes.ToolVersion,
		Leading: o.Leading, Leader: leader, Term: term, Doing: o.Doing, Since: o.Since.UTC().Truncate(time.Second), Attention: o.Attention,
		Wanted: o.Wanted, StoreError: o.StoreError,
		Backups: &catalog.BackupReport{Newest: o.NewestBackup.UTC(), Stored: o.Backups,
			IntervalSeconds: int64(m.cfg.tuned().BackupInterval.Seconds()), VerifySeconds: int64(m.cfg.VerifyInterval.Seconds()),
			Error: o.BackupError, Denied: o.PruneDenied},
	}
	if p := o.Proof; p.Backup != "" || p.Postponed != "" {
		s.Proof = &catalog.ProofReport{Backup: p.Backup, At: p.At.UTC(), Bad: p.Bad, ChainProblem: p.ChainProblem, Postponed: p.Postponed}
	}
	if c := o.Changes; c != nil {
		s.Changes = &catalog.ChangesReport{Incarnation: c.Incarnation, Seen: c.Seen, Archived: c.Archived, Until: c.Until.UTC(),
			SpilledBytes: c.Spilled, Gaps: c.Gaps, LastGap: c.LastGap, Error: c.Error}
	}
	s.Copies = o.Copies
	switch {
	case o.Leading:
		for _, n := range r.Nodes {
			s.Nodes = append(s.Nodes, nodeReport(n))
		}
		for _, n := range r.Missing {
			x := catalog.MissingNode{Node: n.ID, Seconds: int64(n.For.Seconds())}
			if n.Foreign {
				x.Problem = "other software answers there"
			}
			s.Missing = append(s.Missing, x)
		}
		if r.Operation != nil {
			s.Operation = r.Operation.ID
		}
	case own != nil:
		s.Nodes = append(s.Nodes, nodeReport(*own))
		for _, p := range m.cfg.Peers.Peers() {
			if !p.Connected {
				s.Missing = append(s.Missing, catalog.MissingNode{Node: p.ID, Problem: p.Problem})
			}
		}
	}
	return s
}

// nodeReport is what is shown of a node.
func nodeReport(n cluster.NodeStatus) catalog.NodeReport {
	e := n.Etcd
	r := catalog.NodeReport{
		Node: n.ID, Manager: n.Manager, Role: catalog.RoleNone, Version: e.Version, Running: e.Running, Healthy: e.Healthy,
		Quarantined: e.Quarantined, Error: e.Error, Busy: n.Busy, Revision: e.Revision, RaftIndex: e.RaftIndex,
		DBSize: e.DBSize, DBInUse: e.DBSizeInUse, DBQuota: e.DBQuota, DiskFree: n.DiskFree, DiskTotal: n.DiskTotal, Endings: n.Endings,
	}
	if !e.Healthy {
		r.UnhealthySeconds = int64(e.UnhealthyFor.Seconds())
	}
	if n.StateError != "" {
		r.Error = n.StateError
	}
	if e.MemberID != 0 {
		r.Member = e.MemberID.String()
	}
	switch {
	case n.State == nil && n.StateError == "":
	case e.Learner:
		r.Role = catalog.RoleLearner
	case !e.Votes() || e.MemberID == 0:
		r.Role = catalog.RoleMember
	case e.MemberID == e.LeaderID:
		r.Role = catalog.RoleLeader
	default:
		r.Role = catalog.RoleFollower
	}
	for _, a := range e.Alarms {
		if a.Member == e.MemberID {
			r.Alarms = append(r.Alarms, string(a.Type))
		}
	}
	return r
}

// statusKey changes when there is news: what changes all the time, or counts up, is left out of it.
func statusKey(s catalog.Status) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v %s %d %s %t", s.Leading, s.Leader, s.Term, s.Operation, s.StoreError == "")
	for _, a := range s.Attention {
		fmt.Fprintf(&b, " %s/%s", a.Kind, a.Node)
	}
	for _, n := range s.Nodes {
		fmt.Fprintf(&b, " %s %s %s %t %v", n.Node, n.Role, n.Version, n.Healthy, n.Alarms)
	}
	silent := map[cluster.NodeID]bool{}
	for _, n := range s.Missing {
		silent[n.Node] = true
	}
	fmt.Fprintf(&b, " missing %v", slices.Sorted(maps.Keys(silent)))
	if s.Backups != nil {
		fmt.Fprintf(&b, " backup %d failing %t", s.Backups.Newest.Unix(), s.Backups.Error != "")
	}
	if s.Proof != nil {
		fmt.Fprintf(&b, " bad %t", s.Proof.Bad != "")
	}
	if s.Changes != nil {
		fmt.Fprintf(&b, " gaps %d failing %t", s.Changes.Gaps, s.Changes.Error != "")
	}
	for _, c := range s.Copies {
		fmt.Fprintf(&b, " copy %d %t %t", c.NewestBackup.Unix(), c.Compared.IsZero(), c.Error != "")
	}
	return b.String()
}
