package manager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil/logtest"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// everyAction is one of each kind. TestEveryActionIsThere holds it to the code.
func everyAction() []model.Action {
	op := model.Operation{ID: "r1"}
	return []model.Action{
		model.TakeTerm{}, model.CreateMarker{}, model.ReplaceMarker{}, model.StartEtcd{Node: "a"}, model.StartAll{
			Starts: []model.StartEtcd{{Node: "a"}}},
		model.MarkFormed{}, model.TakeBackup{Node: "a", Reason: "periodic"}, model.AddLearner{Node: "a"}, model.Promote{Member: 1},
		model.UpdateMember{Member: 1},
		model.RemoveMember{Member: 1}, model.RestartMember{Node: "a"}, model.StopMember{Node: "a"}, model.ReleaseVolume{Node: "a"},
		model.EnableDowngrade{}, model.CancelDowngrade{},
		model.Compact{}, model.Defragment{Node: "a"}, model.Disarm{}, model.SetAside{Node: "a"}, model.BeginRestore{Command: "r1", Op: op},
		model.SalvageData{Op: op}, model.ProveBackup{Op: op}, model.StageBackup{Op: op}, model.SafetyBackup{Op: op},
		model.StopAll{Op: op}, model.SwitchAll{Op: op},
		model.HaltAll{Op: op}, model.VerifyAll{Op: op}, model.RollbackAll{Op: op},
		model.Advance{Op: op, To: model.OpStaging}, model.FinishRestore{Op: op},
		model.FailCommand{Command: "r1"}, model.PutBack{Node: "a", Command: "p1"},
		model.EndWrites{}, model.StopSuperseded{Nodes: []cluster.NodeID{"a"}}, model.ReportStopped{Nodes: []cluster.NodeID{"a"}},
	}
}

func TestEveryActionIsThere(t *testing.T) {
	src, err := os.ReadFile("../plan/model/subject.go")
	if err != nil {
		t.Fatal(err)
	}
	here := map[string]bool{}
	for _, a := range everyAction() {
		here[reflect.TypeOf(a).Name()] = true
	}
	found := regexp.MustCompile(`(?m)^func \((?:\w+ )?(\w+)\) subject\(\)`).FindAllSubmatch(src, -1)
	if len(found) < 30 {
		t.Fatalf("only %d kinds of actions are found", len(found))
	}
	for _, m := range found {
		if !here[string(m[1])] {
			t.Errorf("action %s is in no test of what failing actions cost", m[1])
		}
	}
}

// spin runs the part of the loop that decides when something is tried: each attempt wakes the loop at once, as a node that has
// changed does.
func spin(l *leadership, a model.Action, why func() string, long time.Duration) {
	var wg sync.WaitGroup
	ctx, cancel := context.WithTimeout(context.Background(), long)
	defer cancel()
	wg.Go(func() {
		for ctx.Err() == nil {
			l.poke()
			time.Sleep(20 * time.Millisecond)
		}
	})
	for n := 0; ctx.Err() == nil && n < 100_000; n++ { // far more looks than there can be, so that a loop that spins ends
		o := &model.Observation{Now: time.Now(), Postponed: l.tries.postponed(time.Now())}
		d := plan.Postpone(o, plan.Decision{Do: a, Why: why(), Key: "the same"})
		l.log.say(d)
		wait := tickWaiting
		if d.Do != nil {
			wait = l.carryOut(ctx, o, nil, d)
		}
		if wait == 0 {
			time.Sleep(time.Microsecond) // what it takes to look
			continue
		}
		l.waitFor(ctx, nil, wait)
	}
	wg.Wait()
}

// TestFailingActions: no action that fails, or that succeeds and changes nothing, is tried or logged more often than is bearable, though
// everything wakes the loop all the time and no two errors read the same.
func TestFailingActions(t *testing.T) {
	for _, a := range everyAction() {
		for _, fails := range []bool{true, false} {
			name := fmt.Sprintf("%T", a)
			t.Run(fmt.Sprintf("%s/fails=%t", strings.TrimPrefix(name, "model."), fails), func(t *testing.T) {
				tries := 0
				lines := logtest.Lines(t, func() {
					synctest.Test(t, func(t *testing.T) {
						l := newLeadership(&Manager{}, 7)
						l.do = func(context.Context, *model.Observation, *cluster.Spec, model.Action) error {
							tries++
							l.poke()
							if fails {
								return fmt.Errorf("attempt %d was refused after %s", tries, time.Duration(tries)*time.Millisecond)
							}
							return nil
						}
						spin(l, a, func() string { return fmt.Sprintf("it is due for %d reasons", tries) }, time.Minute)
					})
				})
				if tries < 3 || tries > 20 {
					t.Errorf("tried %d times in a minute", tries)
				}
				if len(lines) > 10 || len(lines) == 0 {
					t.Errorf("%d lines in a minute:\n%s", len(lines), strings.Join(lines, "\n"))
				}
			})
		}
	}
}

// TestTurns: decisions that take turns, as those of a step that fails again and again, are not news each time.
func TestTurns(t *testing.T) {
	lines := logtest.Lines(t, func() {
		synctest.Test(t, func(t *testing.T) {
			l := newLeadership(&Manager{}, 7)
			for range 60 {
				l.log.say(plan.Decision{Why: "one", Key: "one"})
				l.log.say(plan.Decision{Why: "two", Key: "two"})
				time.Sleep(time.Second)
			}
		})
	})
	if len(lines) > 10 || len(lines) < 2 {
		t.Errorf("%d lines in a minute:\n%s", len(lines), strings.Join(lines, "\n"))
	}
}

// TestAttempts: a success ends what failures have cost, and one action's failures don't hold up another one.
func TestAttempts(t *testing.T) {
	now := time.Now()
	tries := attempts{}
	a, b := model.StartEtcd{Node: "a"}, model.StartEtcd{Node: "b"}
	var last time.Duration
	for i := range 20 {
		wait := tries.failed(a, errors.New("no"), now)
		if wait < last || wait > attemptLongest {
			t.Errorf("failure %d waits %s after %s", i, wait, last)
		}
		last = wait
		now = now.Add(wait)
	}
	if last != attemptLongest {
		t.Errorf("the longest wait is %s", last)
	}
	tries.failed(a, errors.New("no"), now)
	if p := tries.postponed(now); len(p) != 1 || p[model.Subject(b)].For != 0 || p[model.Subject(a)].Error != "no" {
		t.Errorf("postponed: %v", p)
	}
	tries.done(a, now)
	if p := tries.postponed(now); len(p) != 0 {
		t.Errorf("postponed after a success: %v", p)
	}
	for i := range 1000 {
		tries.failed(model.StartEtcd{Node: cluster.NodeID(fmt.Sprint(i))}, errors.New("no"), now)
	}
	if len(tries) > attemptsKept {
		t.Errorf("%d attempts are remembered", len(tries))
	}
}

// TestStoringInVain: the last changes of a superseded cluster can't be stored, as where puts are denied. The order is the real one: each
// attempt fails and has its wait, and nothing but the wait is between two of them. Then etcd is stopped without.
func TestStoringInVain(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	self := cluster.EtcdNode{Name: "a", PeerURLs: []string{"https://a:2380"}, ClientURLs: []string{"https://a:4001"}, TLS: true}
	members := []cluster.Member{{ID: 10, Name: "a", PeerURLs: self.PeerURLs, ClientURLs: self.ClientURLs}}
	node := cluster.NodeStatus{ID: "a", Instance: "a-1", Self: self, Versions: []string{"3.6.16"}, DataPresent: true,
		State: &cluster.EtcdState{Token: "T1", DesiredSize: 1, EtcdVersion: "3.6.16", Nodes: []cluster.EtcdNode{self}},
		Etcd: cluster.EtcdStatus{Running: true, Healthy: true, Version: "3.6.16", MemberID: 10, LeaderID: 10, Revision: 7, Members: members,
			Alarms: []cluster.Alarm{{Member: cluster.SupersededMember, Type: cluster.AlarmCorrupt}}}}
	tries := attempts{}
	var did []string
	for range 20 {
		o := &model.Observation{Self: "a", Term: 7, FreshToken: "NEW", Now: now, Nodes: []cluster.NodeStatus{node}, SettledFor: time.Hour,
			Postponed: tries.postponed(now), Store: model.Store{Fences: true, Holder: model.Holder{Term: 7, Mine: true},
				Marker: model.Marker{Phase: model.MarkerFormed, Token: "T1"}, Superseded: &model.Superseded{By: "elsewhere"}}}
		d := plan.Next(o, &cluster.Spec{MemberCount: 1, EtcdVersion: "3.6.16"}, model.DefaultPolicy("3.6.16"))
		if d.Do == nil {
			now = now.Add(max(d.After, time.Millisecond))
			continue
		}
		did = append(did, d.Do.String())
		if a, ok := d.Do.(model.StopSuperseded); ok && a.Unstored {
			break
		}
		tries.failed(d.Do, errors.New("store the last changes: access denied"), now)
		now = now.Add(attemptLongest) // the loop looks again after the wait
	}
	want := "stop-superseded nodes=a, stop-superseded nodes=a, stop-superseded nodes=a, stop-superseded nodes=a unstored"
	if got := strings.Join(did, ", "); got != want {
		t.Errorf("done: %s\nwant: %s", got, want)
	}
	now = now.Add(attemptForgotten + time.Second)
	if p := tries.postponed(now); len(p) != 0 {
		t.Errorf("remembered for ever: %v", p)
	}
}

// TestAnotherSupersedeIsTriedAnew: what could not be stored for an earlier record, which was taken back, counts nothing for a later one.
// Else etcd would be stopped without its last changes, though they can be stored now.
func TestAnotherSupersedeIsTriedAnew(t *testing.T) {
	l := leads(t, blobtest.NewMemory())
	c := l.m.cfg.Catalog
	read := func() {
		t.Helper()
		list, err := c.ControlListing(t.Context())
		must(t, err)
		must(t, l.ending.read(t.Context(), list))
	}
	_, err := c.PutSuperseded(t.Context(), "elsewhere")
	must(t, err)
	read()
	for _, a := range []model.Action{model.EndWrites{}, model.StopSuperseded{}} {
		for range 3 {
			l.tries.failed(a, errors.New("denied"), time.Now())
		}
	}
	read()
	if p := l.tries.postponed(time.Now()); len(p) != 2 {
		t.Fatalf("the same record: %v", p)
	}
	must(t, c.RemoveSuperseded(t.Context()))
	_, err = c.PutSuperseded(t.Context(), "elsewhere")
	must(t, err)
	read()
	if p := l.tries.postponed(time.Now()); len(p) != 0 {
		t.Errorf("another record: %v", p)
	}
}
