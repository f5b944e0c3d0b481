package attention

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// object writes an object of the store as somebody else would.
func (s *scene) object(key, text string) {
	s.t.Helper()
	_, err := s.c.Store.Put(s.t.Context(), key, strings.NewReader(text), blob.PutOptions{})
	must(s.t, err)
}

// quick has the leader look at the store each second, so that nothing is waited for longer than needed.
func quick(more ...string) []string {
	return append([]string{"--queue-poll-interval=1s", "--member-unhealthy-deadline=10s"}, more...)
}

// TestOne has a cluster of one through all that can be caused there.
func TestOne(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	s := &scene{t: t, c: harness.New(t, harness.Options{Nodes: 1, NoSpec: true, Args: quick()})}
	s.a().Start()
	s.play(oneRows())
	s.c.WaitFor("a node that serves to be ready", time.Minute, func() string { // etcd has just been started with other settings
		if code, body := page(t, s.c, s.a(), "/readyz"); code != 200 {
			return fmt.Sprint(code, " ", body)
		}
		return ""
	})
}

// oneRows are played one after the other in a cluster of one.
func oneRows() []row {
	const unreadable = "20260101000000-x"
	return []row{{
		kind: cluster.AttentionForming, what: "nobody said how many members are wanted",
		text:    []string{"nobody has said how many members are wanted"},
		cause:   func(*scene) {},
		command: "configure-cluster --member-count=3", with: []string{"=3", "=1"},
	}, {
		kind: cluster.AttentionClusters, what: "the marker names another cluster", text: []string{"marker names cluster OTHER"},
		cause: func(s *scene) {
			s.c.WaitHealthy(1)
			s.c.WaitBackups(1)
			m, version, err := s.c.Catalog.Marker(s.t.Context())
			must(s.t, err)
			m.Token = "OTHER"
			_, err = s.c.Catalog.ReplaceMarker(s.t.Context(), m, version)
			must(s.t, err)
		},
		command: "confirm-cluster …",
	}, {
		kind: cluster.AttentionObject, what: "a queued command can't be read", text: []string{"queued command can't be read", unreadable},
		cause:   func(s *scene) { s.object("control/"+unreadable+"/_command.json", "{") },
		command: "delete-command " + unreadable,
	}, {
		kind: cluster.AttentionObject, what: "the marker can't be read", text: []string{"control/etcd-cluster-created"},
		cause: func(s *scene) {
			const marker = "control/etcd-cluster-created"
			was, err := os.ReadFile(filepath.Join(s.c.StoreURL, marker))
			must(s.t, err)
			s.object(marker, "{")
			s.back = func() { s.object(marker, string(was)) }
		},
		none: "repair or delete the object", mend: (*scene).bringBack,
	}, {
		kind: cluster.AttentionSettings, what: "the settings can't be read", text: []string{"the settings in the store can't be used"},
		cause: func(s *scene) {
			s.ctl("configure-cluster", "--set=snapshot-count=20000")
			const settings = "control/etcd-cluster-settings.json"
			s.object(settings, "{")
			s.back = func() { must(s.t, os.Remove(filepath.Join(s.c.StoreURL, settings))) }
		},
		none: "delete the object that the message names", mend: (*scene).bringBack,
	}, {
		kind: cluster.AttentionVersion, what: "the wanted version isn't on the node", text: []string{"has no etcd 3.5", "install"},
		cause:   func(s *scene) { s.ctl("configure-cluster", "--etcd-version=3.5.35") },
		command: "configure-cluster --etcd-version=VERSION", with: []string{"VERSION", "3.6.16"},
	}, {
		kind: cluster.AttentionRestore, what: "a restore wants more members than masters are here",
		text:    []string{"waits until enough masters are in reach"},
		cause:   func(s *scene) { s.ctl("restore-backup", "latest", "--member-count=3", "--now") },
		command: "delete-command …",
	}, {
		kind: cluster.AttentionNoLeader, what: "three members are wanted, and there is one master", node: "a",
		text: []string{"1 of 1 known managers answer, 2 are needed",
			"3 members are wanted, and etcd has 1 member and serves", "start 1 more manager"},
		cause:   func(s *scene) { s.ctl("configure-cluster", "--member-count=3") },
		command: "configure-cluster --member-count=1",
	}, {
		kind: cluster.AttentionData, what: "the only master comes back with an empty disk",
		text: []string{"the one master here doesn't have its data"},
		cause: func(s *scene) {
			s.a().KillWhole()
			s.a().Wipe(true)
			s.a().Start()
		},
		command: "restore-backup NAME --now", with: []string{"NAME --now", "latest --now --wait"},
	}, {
		kind: cluster.AttentionCorrupt, what: "the only member is accused (alarm CORRUPT)",
		text: []string{"alarm CORRUPT on", "0 of 1 voters"},
		cause: func(s *scene) {
			s.c.WaitHealthy(1)
			s.ctl("create-backup", "--wait") // the restored cluster may have none yet
			s.accuse()
		},
		command: "restore-backup NAME --now", with: []string{"NAME --now", "latest --now --wait"},
	}, {
		kind: cluster.AttentionOther, what: "etcd has users, and the manager isn't one of them", node: "a",
		text: []string{"etcd has users", "etcd-manager-client-a"},
		cause: func(s *scene) {
			s.c.WaitHealthy(1)
			for _, line := range []string{"user add root:secret", "user grant-role root root", "auth enable"} {
				s.etcdctl(strings.Fields(line)...)
			}
			s.root = "root:secret"
			s.undo = func() {
				s.etcdctl("auth", "disable")
				s.root = ""
			}
		},
		command: "etcdctl user add etcd-manager-client-NODE --no-password && etcdctl user grant-role etcd-manager-client-NODE root",
	}, {
		kind: cluster.AttentionDatabase, what: "the database comes near its quota",
		text: []string{"of a quota of 16 MiB", "raise the quota before etcd refuses writes"},
		cause: func(s *scene) {
			s.ctl("configure-cluster", "--set=quota-backend-bytes=16MiB")
			s.quota(16 << 20)
			for i := range 54 {
				s.c.Put(fmt.Sprintf("/big/%d", i), noise(256<<10))
			}
		},
		command: "configure-cluster --set=quota-backend-bytes=4GiB",
	}}
}

// accuse raises etcd's alarm CORRUPT for the first node's member, as etcd does by itself when its data differ from those of the others.
func (s *scene) accuse() {
	s.t.Helper()
	client := s.c.Client()
	list, err := client.MemberList(s.t.Context())
	must(s.t, err)
	_, err = pb.NewMaintenanceClient(client.ActiveConnection()).Alarm(s.t.Context(), &pb.AlarmRequest{
		Action: pb.AlarmRequest_ACTIVATE, MemberID: list.Members[0].ID, Alarm: pb.AlarmType_CORRUPT})
	must(s.t, err)
}

// bringBack undoes what a row has caused.
func (s *scene) bringBack() { s.back() }

// noise is text that can't be compressed.
func noise(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte('a' + rand.IntN(26))
	}
	return string(b)
}

// quota waits until etcd runs with a quota.
func (s *scene) quota(bytes int64) {
	s.t.Helper()
	s.c.WaitFor(fmt.Sprintf("a quota of %d", bytes), time.Minute, func() string {
		v, err := s.a().Status(s.t.Context())
		if err != nil {
			return err.Error()
		}
		if !v.Etcd.Healthy || v.Etcd.DBQuota != bytes {
			return fmt.Sprintf("healthy %t, %d; %s", v.Etcd.Healthy, v.Etcd.DBQuota, v.Doing)
		}
		return ""
	})
}

// TestFailedFirst has a restore fail where no cluster was ever created: nothing is formed in its stead until it is withdrawn.
func TestFailedFirst(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	s := &scene{t: t, c: harness.New(t, harness.Options{Nodes: 1, Args: quick()})}
	s.play(formingRows())
	s.c.WaitHealthy(1)
}

// formingRows are played before there is a cluster.
func formingRows() []row {
	return []row{{
		kind: cluster.AttentionForming, what: "a restore failed where no cluster was ever created",
		text: []string{"a restore was asked for and failed", "delete-command 2"},
		cause: func(s *scene) {
			const name = "2026-01-01T00:00:00Z-000001"
			s.object(name+"/"+catalog.DataFile, "this is no backup")
			s.object(name+"/_etcd_backup.meta", `{"etcdVersion":"3.6.16","timestamp":"1767225600000000000","clusterSpec":{"memberCount":1,"etcdVersion":"3.6.16"}}`)
			_, err := s.c.Catalog.QueueRestore(s.t.Context(), name, cluster.Spec{MemberCount: 1, EtcdVersion: "3.6.16"},
				catalog.RestoreOptions{Now: true})
			must(s.t, err)
			s.a().Start()
		},
		command: "delete-command …",
	}}
}
