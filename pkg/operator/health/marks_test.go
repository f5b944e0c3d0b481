package health

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// TestWithWord: what is told with what a manager says at this moment, with and without the store.
func TestWithWord(t *testing.T) {
	now := time.Date(2026, 2, 1, 12, 0, 0, 0, time.UTC)
	node := func(id cluster.NodeID, role string) catalog.NodeReport {
		return catalog.NodeReport{Node: id, Role: role, Running: true, Healthy: true}
	}
	leads := catalog.Status{Node: "a", Leading: true, Leader: "a", Term: 4, Wanted: 3,
		Nodes: []catalog.NodeReport{node("a", catalog.RoleLeader), node("b", catalog.RoleFollower), node("c", catalog.RoleFollower)}}
	follows := catalog.Status{Node: "b", Leader: "a", Term: 4, Wanted: 3, Nodes: []catalog.NodeReport{node("b", catalog.RoleFollower)}}
	alone := follows
	alone.Leader = ""
	called := alone
	called.Attention = []cluster.Attention{{Kind: cluster.AttentionNoLeader, Node: "b", Text: "no manager leads"}}
	blank := catalog.Status{Node: "d", Nodes: []catalog.NodeReport{{Node: "d", Role: catalog.RoleNone}}}
	stored := func(age time.Duration) Facts {
		return Facts{Spec: &cluster.Spec{MemberCount: 3}, Marker: &catalog.Marker{Phase: catalog.PhaseFormed}, BackupsRead: true,
			Leader: &catalog.LeaderRecord{Node: "a", Term: 4}, LeaderAt: now.Add(-age), Status: &leads,
			Backups: catalog.BackupList{Backups: []catalog.Backup{{Name: "x", Time: now.Add(-time.Minute)}}}}
	}
	for name, c := range map[string]struct {
		facts  Facts
		said   catalog.Status
		stored bool
		known  bool
		kinds  []string
	}{
		"the leader":                               {stored(time.Minute), leads, true, true, nil},
		"the leader, the store unread":             {Facts{}, leads, false, true, []string{KindBackupOld}},
		"another":                                  {stored(time.Minute), follows, true, true, nil},
		"another, the store away for long":         {stored(time.Hour), follows, true, true, nil},
		"another, the store unread":                {Facts{}, follows, false, true, nil},
		"a new manager, which looks for a leader":  {stored(time.Minute), alone, true, true, nil},
		"a manager that lacks a leader":            {stored(time.Minute), called, true, true, []string{"no-leader"}},
		"a manager without member or store":        {Facts{}, blank, false, false, nil},
		"a manager without member, the store read": {stored(time.Minute), blank, true, true, nil},
	} {
		f, known := c.facts.WithWord(c.said, now, c.stored)
		if known != c.known {
			t.Errorf("%s: known %v", name, known)
		}
		if !known {
			continue
		}
		var kinds []string
		for _, x := range Judge(f).Findings {
			kinds = append(kinds, x.Kind)
		}
		if !slices.Equal(kinds, c.kinds) {
			t.Errorf("%s: %q, not %q", name, kinds, c.kinds)
		}
	}
}

// TestMarks: each backup of the last day once, the oldest first, and no more than are drawn.
func TestMarks(t *testing.T) {
	now := time.Date(2026, 2, 1, 12, 0, 0, 0, time.UTC)
	at := func(name string, ago time.Duration) catalog.Backup {
		return catalog.Backup{Name: name, Time: now.Add(-ago)}
	}
	bad := at("c", time.Hour)
	bad.Disproven = true
	f := Facts{Now: now, Taken: []catalog.Backup{at("a", 25*time.Hour), at("b", 20*time.Hour), bad},
		Backups: catalog.BackupList{Backups: []catalog.Backup{bad, at("d", time.Minute), at("future", -time.Hour)}}}
	var got []string
	for _, m := range Marks(f) {
		got = append(got, fmt.Sprint(m.Name, m.Bad))
	}
	if want := []string{"bfalse", "ctrue", "dfalse"}; !slices.Equal(got, want) {
		t.Errorf("%q, not %q", got, want)
	}
	for i := range 3 * marksMost {
		f.Taken = append(f.Taken, at(fmt.Sprintf("m%05d", i), time.Duration(3*marksMost-i)*time.Second))
	}
	if n := len(Marks(f)); n != marksMost {
		t.Errorf("%d marks", n)
	}
}

// TestNoneHealthyInARestore: that no member is healthy needs a person, but not within the two minutes in which a restore explains it.
func TestNoneHealthyInARestore(t *testing.T) {
	now := time.Date(2026, 2, 1, 12, 0, 0, 0, time.UTC)
	op := func(since time.Duration) *catalog.Operation {
		at := now.Add(-since)
		return &catalog.Operation{ID: "x", Kind: catalog.KindRestore, StateSince: at, Created: at, Finished: at}
	}
	for name, c := range map[string]struct {
		running, ended *catalog.Operation
		want           Verdict
	}{
		"no restore":                   {nil, nil, NeedsYou},
		"a restore runs":               {op(time.Minute), nil, Degraded},
		"a restore hangs":              {op(time.Hour), nil, NeedsYou},
		"a restore has ended":          {nil, op(10 * time.Second), Degraded},
		"a restore has ended long ago": {nil, op(time.Hour), NeedsYou},
		"one that ends in the future":  {nil, op(-time.Hour), NeedsYou},
	} {
		status := &catalog.Status{Node: "a", Leading: true, Leader: "a", Wanted: 1,
			Nodes: []catalog.NodeReport{{Node: "a", Role: catalog.RoleMember}}}
		r := Judge(Facts{Now: now, Spec: &cluster.Spec{MemberCount: 1}, Marker: &catalog.Marker{Phase: catalog.PhaseFormed},
			BackupsRead: true, Leader: &catalog.LeaderRecord{Node: "a"}, LeaderAt: now, Status: status, Running: c.running, Ended: c.ended,
			Backups: catalog.BackupList{Backups: []catalog.Backup{{Name: "x", Time: now.Add(-time.Minute)}}}})
		i := slices.IndexFunc(r.Findings, func(f Finding) bool { return f.Kind == string(cluster.AttentionQuorum) })
		if i < 0 || r.Findings[i].Severity != c.want {
			t.Errorf("%s: %+v", name, r.Findings)
		}
	}
}
