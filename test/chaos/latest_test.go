package chaos

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// latestWorld is a cluster on loopback with clients.
func latestWorld(t *testing.T) (*world, *clients) {
	t.Helper()
	t.Parallel() // it mostly waits
	c := harness.Start(t, harness.Options{Args: []string{"--change-log-interval=500ms", "--queue-poll-interval=300ms"}})
	w := &world{t: t, c: c, h: newHistory()}
	c.WaitBackups(1)
	w.eras = []era{{Cluster: w.cluster()}}
	cl := startClients(c, w.h, 1)
	t.Cleanup(cl.end)
	w.load()
	return w, cl
}

// judged ends the clients and fails the test for every violation.
func (w *world) judged(cl *clients) {
	w.t.Helper()
	cl.end()
	v := judge(w.h.copy(), w.eras)
	w.t.Logf("%d requests judged, %d acknowledged writes compared, %d violations", v.Judged, v.Writes, len(v.Violations))
	if v.Writes == 0 {
		w.t.Error("nothing was compared")
	}
	for _, x := range v.Violations {
		w.t.Error(x)
	}
}

var latestNow = []string{"restore-backup", "--latest", "--now"}

// TestLatestWhileAnEtcdHangs freezes the etcd of each node in turn, also the one that the changes
// are read from, and restores the latest state while the other two acknowledge writes.
func TestLatestWhileAnEtcdHangs(t *testing.T) {
	testutil.Long(t)
	w, cl := latestWorld(t)
	for _, n := range w.c.Nodes {
		pid := n.EtcdPID()
		signalEtcd(pid, syscall.SIGSTOP)
		w.load()
		promised := w.h.now()
		id := w.queue(latestNow)
		op := w.ended(id)
		signalEtcd(pid, syscall.SIGCONT)
		if op.State != catalog.StateDone {
			t.Fatalf("with the etcd of %s frozen it ended as %s: %s", n.Name, op.State, op.Reason)
		}
		if op.LeftOut < 1 || op.LeftOut > op.RevisionBefore-op.Target.Revision {
			t.Errorf("clients wrote meanwhile, and %d revisions are said to be left out: it went to %d, and clients had seen %d",
				op.LeftOut, op.Target.Revision, op.RevisionBefore)
		}
		w.c.WaitHealthy(3)
		w.note(op, "latest", promised)
		w.load()
	}
	w.judged(cl)
}

// TestLatestWaitsForAQuorum freezes two etcds: nobody can say any more what was acknowledged. The
// restore waits, says so and names the ways out, also under another leader that has never seen a
// quorum; once one answers it goes on by itself, and nothing is lost.
func TestLatestWaitsForAQuorum(t *testing.T) {
	testutil.Long(t)
	w, cl := latestWorld(t)
	lead := w.leader()
	first, second := follower(0)(w), follower(1)(w)
	promised := w.h.now()
	for _, n := range []*harness.Node{first, second} {
		pid := n.EtcdPID()
		signalEtcd(pid, syscall.SIGSTOP)
		defer signalEtcd(pid, syscall.SIGCONT)
	}
	id := w.queue(latestNow)
	w.waits(id, "it isn't certain that the store has everything", "recover --from-survivor", "--accept-loss")
	lead.Kill()
	w.c.WaitFor("another leader", 90*time.Second, func() string {
		if l := w.c.Leader(); l == nil || l == lead {
			return "none yet"
		}
		return ""
	})
	w.waits(id, "it isn't certain")
	lead.Start()
	signalEtcd(first.EtcdPID(), syscall.SIGCONT)
	op := w.ended(id)
	signalEtcd(second.EtcdPID(), syscall.SIGCONT)
	if op.State != catalog.StateDone || op.Waiting != "" {
		t.Fatalf("it ended as %s: %s %s", op.State, op.Reason, op.Waiting)
	}
	w.c.WaitHealthy(3)
	w.note(op, "latest", promised)
	w.load()
	w.judged(cl)
}

// TestLatestAcceptsLoss goes to what the store has while two etcds are gone for good, since the operator says so.
func TestLatestAcceptsLoss(t *testing.T) {
	testutil.Long(t)
	w, cl := latestWorld(t)
	first, second := follower(0)(w), follower(1)(w)
	for _, n := range []*harness.Node{first, second} {
		n.KillWhole()
		n.Wipe(true)
		n.Start()
	}
	waiting := w.queue(latestNow)
	w.waits(waiting, "it isn't certain")
	if out, errOut, code := w.c.Ctl("delete-command", waiting); code != 0 {
		t.Fatalf("delete-command: exit code %d\n%s%s", code, out, errOut)
	}
	w.ended(waiting)
	op := w.ended(w.queue(append(latestNow, "--accept-loss")))
	if op.State != catalog.StateDone {
		t.Fatalf("it ended as %s: %s", op.State, op.Reason)
	}
	w.c.WaitHealthy(3)
	w.note(op, "latest", 0)
	w.eras[len(w.eras)-1].Promised = 0 // nothing is promised beyond what was reached
	w.load()
	w.judged(cl)
}

// waits waits until a restore's record says that it waits, with these words; nothing may have been stopped.
func (w *world) waits(id string, words ...string) {
	w.t.Helper()
	w.c.WaitFor("restore "+id+" to wait", 2*time.Minute, func() string {
		ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
		defer cancel()
		op, _, err := w.c.Catalog.Operation(ctx, id)
		switch {
		case err != nil:
			return err.Error()
		case op.State.Final() || op.State.Committing():
			w.t.Fatalf("the restore is %s: %s", op.State, op.Reason)
		}
		for _, x := range words {
			if !strings.Contains(op.Waiting, x) {
				return "it is " + string(op.State) + ", waiting: " + op.Waiting
			}
		}
		return ""
	})
}
