package node

import (
	"context"
	"errors"
	"math"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// running is an agent whose actions may begin; no etcd runs.
func running(t *testing.T, change func(*Config)) *Agent {
	t.Helper()
	cfg := testConfig(t.TempDir())
	if change != nil {
		change(&cfg)
	}
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	a.runCtx = ctx
	t.Cleanup(func() {
		cancel()
		a.waitTasks()
		a.lock.Close()
	})
	return a
}

func discard(term uint64, leader string) *protosv1.PerformRequest {
	return &protosv1.PerformRequest{Term: term, Leader: leader, Action: &protosv1.PerformRequest_Discard{Discard: &protosv1.Discard{Operation: "op"}}}
}

func look(a *Agent, term uint64, leader string) error {
	s := &service{agent: a}
	_, err := s.Observe(context.Background(), &protosv1.ObserveRequest{Term: term, Leader: leader})
	return err
}

// TestALookFencesLowerTerms: the leader of term 5 is held up. That of term 6, for which this node didn't vote, looks at it and acts elsewhere.
// What the first one sends then changes nothing, also after a restart of this manager.
func TestALookFencesLowerTerms(t *testing.T) {
	a := running(t, nil)
	if err := look(a, 5, "a"); err != nil {
		t.Fatal(err)
	}
	if err := look(a, 6, "b"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.begin(discard(5, "a")); !errors.Is(err, cluster.ErrLowerTerm) {
		t.Errorf("a request of term 5 after a look of term 6: %v", err)
	}
	if err := look(a, 5, "a"); status.Code(err) != codes.Aborted {
		t.Errorf("a look of term 5 after one of term 6: %v", err)
	}
	if err := look(a, 0, ""); err != nil {
		t.Errorf("somebody who leads nothing looks: %v", err)
	}
	j, err := readJournal(a.l.journal(), "test")
	if err != nil || j.Term != 6 || j.Leader != "b" {
		t.Errorf("the journal says term %d of %s, %v", j.Term, j.Leader, err)
	}
	if _, err := a.begin(discard(6, "b")); err != nil {
		t.Errorf("the leader that looked: %v", err)
	}
}

// TestALookOnAFullDisk: the node is seen, and refuses lower terms, although its journal can't be written.
func TestALookOnAFullDisk(t *testing.T) {
	a := running(t, nil)
	if err := os.RemoveAll(a.l.own()); err != nil {
		t.Fatal(err)
	}
	if err := look(a, 6, "b"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.begin(discard(5, "a")); !errors.Is(err, cluster.ErrLowerTerm) {
		t.Errorf("a request of term 5: %v", err)
	}
}

// TestVotesFenceLowerTerms: what the node has seen in elections counts as much as what it has obeyed, when a request comes and when its turn comes.
func TestVotesFenceLowerTerms(t *testing.T) {
	seen := make(chan cluster.Term, 1)
	seen <- 5
	a := running(t, func(c *Config) {
		c.Fence = func(term cluster.Term, _ cluster.NodeID) error {
			s := <-seen
			seen <- s
			if term < s {
				return cluster.ErrLowerTerm
			}
			return nil
		}
	})
	if _, err := a.begin(discard(4, "a")); !errors.Is(err, cluster.ErrLowerTerm) {
		t.Errorf("a request below the own vote: %v", err)
	}
	a.one <- struct{}{}
	queued, err := a.begin(discard(5, "a"))
	if err != nil {
		t.Fatal(err)
	}
	<-seen
	seen <- 6
	<-a.one
	<-queued.done
	if !errors.Is(queued.err, cluster.ErrLowerTerm) {
		t.Errorf("a request that waited while the node voted: %v", queued.err)
	}
}

// TestQueuedTasksOfALowerTerm: the same action of a higher term is not attached to one that would be refused in its turn.
func TestQueuedTasksOfALowerTerm(t *testing.T) {
	a := running(t, nil)
	a.one <- struct{}{}
	old, err := a.begin(discard(5, "a"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := a.begin(discard(5, "a"))
	if err != nil || again != old {
		t.Fatalf("the same request of the same term isn't attached: %v", err)
	}
	anew, err := a.begin(discard(6, "b"))
	if err != nil || anew == old {
		t.Fatalf("the request of term 6 is attached to the one of term 5 (%v)", err)
	}
	<-old.done
	if old.err == nil {
		t.Error("the action of term 5 was done")
	}
	<-a.one
	<-anew.done
	if anew.err != nil {
		t.Errorf("the action of term 6: %v", anew.err)
	}
	if len(a.tasks) != 0 {
		t.Errorf("%d tasks are left", len(a.tasks))
	}
}

// TestCorruptTermsDisableNobody: a term that no history reaches is refused, and the true leader still obeyed.
func TestCorruptTermsDisableNobody(t *testing.T) {
	a := running(t, nil)
	for _, term := range []uint64{math.MaxUint64, uint64(cluster.MaxTerm), cluster.MaxTermJump + 1} {
		if _, err := a.begin(discard(term, "x")); !errors.Is(err, cluster.ErrPermanent) {
			t.Errorf("a request of term %d: %v", term, err)
		}
		if err := look(a, term, "x"); err != nil {
			t.Errorf("a look of term %d: %v", term, err)
		}
	}
	if _, err := a.begin(discard(5, "a")); err != nil {
		t.Errorf("the leader of term 5 after that: %v", err)
	}
	// What an earlier version, or a bad disk, has left behind.
	j := a.records.j
	j.Term, j.Leader = math.MaxUint64, "x"
	if err := j.write(a.l.journal()); err != nil {
		t.Fatal(err)
	}
	if j, err := readJournal(a.l.journal(), "test"); err != nil || j.Term != 0 {
		t.Errorf("the journal's term is %d, %v", j.Term, err)
	}
	v := Votes(a.cfg.DataDir)
	if err := v.Save(Vote{Term: math.MaxUint64}); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Load(); !errors.Is(err, cluster.ErrCorrupt) || !strings.Contains(err.Error(), "delete the file") {
		t.Errorf("a vote in the last of all terms: %v", err)
	}
}
