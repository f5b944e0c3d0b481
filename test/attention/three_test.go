package attention

import (
	"fmt"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// TestThree has a cluster of three through what takes more than one member.
func TestThree(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	s := &scene{t: t, c: harness.Start(t, harness.Options{Args: quick()})}
	s.c.WaitBackups(1)
	s.play(threeRows())
	s.c.WaitHealthy(3)
}

// threeRows are played one after the other in a cluster of three.
func threeRows() []row {
	return []row{{
		kind: cluster.AttentionMember, what: "more members are wanted than masters are here",
		text:    []string{"5 wanted, but no further master is here"},
		cause:   func(s *scene) { s.ctl("configure-cluster", "--member-count=5") },
		command: "configure-cluster --member-count=3",
	}, {
		kind: cluster.AttentionNoLeader, what: "seven members are wanted, and there are three masters", node: "a",
		text: []string{"3 of 3 known managers answer, 4 are needed",
			"7 members are wanted, and etcd has 3 members and serves", "start 1 more manager"},
		cause:   func(s *scene) { s.ctl("configure-cluster", "--member-count=7") },
		command: "configure-cluster --member-count=3",
	}, {
		kind: cluster.AttentionRestore, what: "a restore is undone, and two of the three old data dirs are gone",
		text: []string{"only 1 of the 3 old data dirs are here", "has stopped nothing"},
		cause: func(s *scene) {
			s.c.Put("/k", "v")
			s.ctl("restore-backup", "latest", "--now", "--wait")
			s.c.WaitHealthy(3)
			for _, n := range s.c.Nodes[1:] {
				n.Kill()
				n.EmptyTrash()
				n.Start() // what is in a trash can is looked at when a manager starts, and then now and then
			}
			s.c.WaitHealthy(3)
			s.ctl("undo-restore", "--now", "--yes")
		},
		command: "delete-command …",
	}, {
		kind: cluster.AttentionMember, what: "a member was added by somebody else and never started",
		text: []string{"was added by someone else and has never started"},
		cause: func(s *scene) {
			url := fmt.Sprintf("https://%s:%d", s.unused(), s.c.Ports.Peer)
			s.c.WaitFor("the member added", time.Minute, func() string { // etcd refuses it within 5 s of a member's start
				if _, err := s.c.Client().MemberAdd(s.t.Context(), []string{url}); err != nil {
					return err.Error()
				}
				return ""
			})
		},
		command: "etcdctl member remove …",
	}, {
		kind: cluster.AttentionMember, what: "a master comes back with an empty disk, and its etcd ends at each start",
		node: "c", text: []string{"2 of 3 members", "node c has failed to join"},
		cause: func(s *scene) {
			c := s.c.Node("c")
			c.KillWhole()
			c.Wipe(true)
			c.Env = append(c.Env, "ETCD_LISTEN_METRICS_URLS=http://203.0.113.1:8081") // no address of this machine
			c.Start()
			s.back = func() {
				c.KillWhole()
				c.Env = nil
				c.Start()
			}
		},
		none: "repair the node", mend: (*scene).bringBack,
	}, {
		kind: cluster.AttentionData, what: "all three masters come back with empty disks",
		text: []string{"none of the 3 masters here has", "data"},
		cause: func(s *scene) {
			for _, n := range s.c.Nodes {
				n.KillWhole()
				n.Wipe(true)
			}
			s.c.StartAll()
		},
		command: "restore-backup NAME --now", with: []string{"NAME --now", "latest --now --wait"},
	}}
}

// unused is an address that no node has.
func (s *scene) unused() string { return s.a().Address[:len(s.a().Address)-1] + "77" }
