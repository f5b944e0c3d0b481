package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// TestNeverEmptyAgain kills a learner during its first start and takes its data dir away: an id that has started never
// starts on an empty dir, not by itself, not for a new manager and not for a leader that still takes it for a new member.
func TestNeverEmptyAgain(t *testing.T) {
	testutil.Long(t)
	for name, moment := range map[string]func(n *node) bool{
		"as soon as it runs":        func(n *node) bool { return n.etcdPID() != 0 },
		"when it has made its data": func(n *node) bool { return n.l.hasMember("T1") && n.etcdPID() != 0 },
		"when it has a database": func(n *node) bool {
			return exists(filepath.Join(n.l.memberDir("T1"), "snap", "db")) && n.etcdPID() != 0
		},
		"when it follows the cluster": func(n *node) bool { return n.status().Etcd.Healthy },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := newNode(t, "a"), newNode(t, "b")
			found("T1", a)
			id, err := a.client().AddLearner(a.ctx(), b.s.Self.PeerURLs)
			must(t, err)
			s := b.state("T1", a, b)
			go func() { _, _, _ = b.try(startAction(s)) }() // it may be killed meanwhile
			eventually(t, name, func() bool { return moment(b) })
			gone := b.loseData("T1")
			b.restart()
			for range 2 {
				b.refused(startAction(s), "is gone although etcd has run on it")
				if st := b.status(); st.Etcd.Running || exists(b.l.memberDir("T1")) {
					t.Fatalf("it runs again without the data %s: %+v", gone, st.Etcd)
				}
			}
			// As another member it starts anew.
			must(t, a.client().Remove(a.ctx(), id.ID))
			b.do(asideAction("T1"))
			_, err = a.client().AddLearner(a.ctx(), b.s.Self.PeerURLs)
			must(t, err)
			b.do(startAction(s))
			b.healthy()
		})
	}
}

// loseData crashes manager and etcd, and moves the data dir away.
func (n *node) loseData(token cluster.Token) string {
	n.t.Helper()
	n.crash()
	n.killEtcd()
	to := filepath.Join(n.t.TempDir(), "lost")
	if err := os.Rename(n.l.data(token), to); err != nil && !strings.Contains(err.Error(), "no such file") {
		n.t.Fatal(err)
	}
	n.start()
	return to
}

// TestKilledBeforeItsData goes on with a first start that was cut before etcd had made anything.
func TestKilledBeforeItsData(t *testing.T) {
	n := newNode(t, "a")
	s := n.state("T1", n)
	s.NewCluster = true
	n.crash()
	must(t, os.MkdirAll(n.l.data("T1"), 0o700))
	must(t, writeState(n.l.state(), s))
	n.journalled(func(j *journal) { j.MayBeEmpty, j.Begun = "T1", "T1" })
	n.start()
	n.do(&protosv1.PerformRequest{Action: &protosv1.PerformRequest_StartEtcd{StartEtcd: &protosv1.StartEtcd{State: wire.StateToProto(s), MayBeEmpty: true}}})
	n.healthy()
	eventually(t, "the permission to start empty is over", func() bool {
		j, err := readJournal(n.l.journal(), n.s.Cluster)
		return err == nil && j.MayBeEmpty == ""
	})
}

// TestDirectoriesAreNoData: what etcd makes before it may begin a log says nothing of what it knows, and a log that can't be looked at counts.
func TestDirectoriesAreNoData(t *testing.T) {
	l := layout(t.TempDir())
	look := func(want bool, when string) {
		t.Helper()
		if l.hasMember("T1") != want {
			t.Errorf("%s: has data %t, want %t", when, !want, want)
		}
	}
	look(false, "nothing there")
	must(t, os.MkdirAll(filepath.Join(l.memberDir("T1"), "snap"), 0o700))
	look(false, "etcd has ended before it began a log")
	must(t, os.MkdirAll(l.logDir("T1"), 0o700))
	must(t, os.WriteFile(filepath.Join(l.logDir("T1"), "0.tmp"), nil, 0o600))
	look(false, "a log that isn't ready")
	makeLog(t, l, "T1")
	look(true, "a log")
	must(t, os.RemoveAll(l.logDir("T1")))
	must(t, os.Symlink(l.logDir("T1"), l.logDir("T1")))
	look(true, "a directory that can't be read")
}
