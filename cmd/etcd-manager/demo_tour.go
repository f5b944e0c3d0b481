package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

// tourGuide walks through what can go wrong.
type tourGuide struct {
	d        *demo
	etcd     *clientv3.Client
	operator *operator.Client
}

// tourPatience is how long one thing of the tour may take on a slow machine.
const tourPatience = 3 * time.Minute

// tour returns nil at its end, and when ctx ends.
func (d *demo) tour(ctx context.Context) error {
	t := &tourGuide{d: d}
	var err error
	if t.etcd, err = d.client(); err != nil {
		return err
	}
	defer t.etcd.Close()
	if t.operator, err = operator.Open(ctx, operator.Config{Store: d.store(), Env: os.Getenv, AllowEmpty: true}); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{t.begin, t.killed, t.deleted, t.restored} {
		if err := step(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("the tour can't go on: %w; the logs are %s", err, filepath.Join(d.dir, "node-*.log"))
		}
	}
	d.caption.set("That was the tour. All of it works the same on three real machines:", "docs/quickstart.md.")
	return t.pause(ctx, 4*time.Second)
}

// say shows what happens, below the view.
func (t *tourGuide) say(lines ...string) { t.d.caption.set(lines...) }

// pause gives a reader time. It is no condition for anything.
func (t *tourGuide) pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// until waits for a condition.
func (t *tourGuide) until(ctx context.Context, what string, done func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, tourPatience)
	defer cancel()
	for !done() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
	return nil
}

func (t *tourGuide) healthy(ctx context.Context, n *demoNode) bool {
	v, err := fetchStatus(ctx, fmt.Sprintf("http://127.0.0.1:%d/status.json", n.client+4))
	return err == nil && v.Etcd.Healthy && !v.Etcd.Quarantined
}

func (t *tourGuide) begin(ctx context.Context) error {
	t.say("Three managers have found each other. They form an etcd cluster, exactly once.")
	for _, n := range t.d.nodes {
		if err := t.until(ctx, "etcd of master "+n.name, func() bool { return t.healthy(ctx, n) }); err != nil {
			return err
		}
	}
	t.say("The cluster serves. The demo writes a key every second. Each change is in the",
		"store a few seconds later: watch how the time grows that can be restored.")
	if err := t.until(ctx, "the first changes in the store", func() bool {
		r, err := t.operator.Health(ctx, operator.HealthOptions{})
		return err == nil && r.Window != nil && r.Window.Until.Sub(r.Window.From) > 8*time.Second
	}); err != nil {
		return err
	}
	return t.pause(ctx, 2*time.Second)
}

// etcdPID is the process of a node's etcd, by the file that its manager writes.
func (d *demo) etcdPID(n *demoNode) (int, error) {
	data, err := os.ReadFile(filepath.Join(d.data(n), "etcd-manager", "etcd.pid"))
	if err != nil {
		return 0, err
	}
	var f struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal(data, &f); err != nil || f.PID <= 1 {
		return 0, fmt.Errorf("no process id in the pid file of master %s: %w", n.name, err)
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", f.PID))
	if err != nil || !strings.Contains(string(line), d.data(n)+"/") {
		return 0, fmt.Errorf("process %d is not etcd of master %s", f.PID, n.name)
	}
	return f.PID, nil
}

// follower is a member that isn't etcd's leader, so that the others serve without it.
func (t *tourGuide) follower(ctx context.Context) *demoNode {
	s := t.d.look(ctx, nil)
	for i, v := range s.nodes {
		if v != nil && !v.Leading && v.Etcd.Healthy && v.Etcd.MemberID != v.Etcd.LeaderID {
			return t.d.nodes[i]
		}
	}
	return t.d.nodes[len(t.d.nodes)-1]
}

func (t *tourGuide) killed(ctx context.Context) error {
	n := t.follower(ctx)
	pid, err := t.d.etcdPID(n)
	if err != nil {
		return err
	}
	t.say("1. A member is killed:", fmt.Sprintf("   kill -9 %d    (etcd of master %s)", pid, n.name))
	if err := t.pause(ctx, 3*time.Second); err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	begun := time.Now()
	if err := t.until(ctx, "another etcd process", func() bool {
		now, err := t.d.etcdPID(n)
		return err == nil && now != pid && t.healthy(ctx, n)
	}); err != nil {
		return err
	}
	t.say("1. A member was killed. Its manager started it again, and after "+time.Since(begun).Round(100*time.Millisecond).String()+" it was",
		"   healthy. The others served meanwhile. Nobody was called.")
	return t.pause(ctx, 6*time.Second)
}

const tourNamespace = "/registry/namespaces/shop"

// count is how many keys of the namespace there are.
func (t *tourGuide) count(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := t.etcd.Get(ctx, "/registry/deployments/shop/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return 0, err
	}
	n, err := t.etcd.Get(ctx, tourNamespace, clientv3.WithCountOnly())
	if err != nil {
		return 0, err
	}
	return r.Count + n.Count, nil
}

func (t *tourGuide) deleted(ctx context.Context) error {
	puts := []clientv3.Op{clientv3.OpPut(tourNamespace, "the namespace shop")}
	for i := range 9 {
		puts = append(puts, clientv3.OpPut(fmt.Sprintf("/registry/deployments/shop/web-%d", i), "a deployment"))
	}
	if _, err := t.etcd.Txn(ctx).Then(puts...).Commit(); err != nil {
		return err
	}
	t.say("2. Somebody has made the namespace shop, with nine deployments ...")
	if err := t.pause(ctx, 4*time.Second); err != nil {
		return err
	}
	r, err := t.etcd.Txn(ctx).Then(clientv3.OpDelete("/registry/deployments/shop/", clientv3.WithPrefix()),
		clientv3.OpDelete(tourNamespace)).Commit()
	if err != nil {
		return err
	}
	t.say("2. ... and somebody deletes it, by mistake. It is gone from etcd.")
	request := operator.PutBackRequest{Namespace: "shop", Reason: "the demo's tour"}
	var plan *operator.PutBackPlan
	if err := t.until(ctx, "the deletion in the store", func() bool {
		if plan, err = t.operator.PlanPutBack(ctx, request); err != nil {
			return false
		}
		return plan.Now.Revision >= r.Header.Revision && plan.Missing > 0
	}); err != nil {
		return err
	}
	t.say("2. Bring it back as it was in the second before, while everything serves:", "   etcd-manager-ctl put-back --namespace=shop",
		fmt.Sprintf("   %d keys are missing; the leader writes them", plan.Missing))
	queued, err := t.operator.PutBack(ctx, plan)
	if err != nil {
		return err
	}
	if err := t.follow(ctx, queued.Command.Name); err != nil {
		return err
	}
	n, err := t.count(ctx)
	if err != nil {
		return err
	}
	t.say("2. The namespace is back: " + fmt.Sprint(n) + " keys. Nothing was stopped, and nothing else went back.")
	return t.pause(ctx, 6*time.Second)
}

// follow waits until a command has ended, and fails unless it was done.
func (t *tourGuide) follow(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, tourPatience)
	defer cancel()
	for event, err := range t.operator.Follow(ctx, name, operator.FollowOptions{}) {
		if err != nil {
			return err
		}
		if end, ok := event.(operator.Ended); ok {
			return end.Err()
		}
	}
	return fmt.Errorf("following %s: %w", name, context.Cause(ctx))
}

const tourOrder = "/shop/orders/4711"

func (t *tourGuide) restored(ctx context.Context) error {
	list, err := t.operator.Backups(ctx)
	if err != nil {
		return err
	}
	if len(list.Backups) == 0 {
		return errors.New("there is no backup")
	}
	backup := list.Backups[len(list.Backups)-1].Name
	if _, err := t.etcd.Put(ctx, tourOrder, "paid"); err != nil {
		return err
	}
	plan, err := t.operator.PlanRestore(ctx, operator.RestoreRequest{Backup: backup, Options: operator.RestoreOptions{Now: true}})
	if err != nil {
		return err
	}
	t.say("3. An order comes in: "+tourOrder+" = paid. Then somebody restores an older backup:",
		"   etcd-manager-ctl restore-backup "+backup+" --now", "   Every node checks it and builds its data before anything is stopped.")
	queued, err := t.operator.Restore(ctx, plan)
	if err != nil {
		return err
	}
	if err := t.follow(ctx, queued.Command.Name); err != nil {
		return err
	}
	if err := t.sees(ctx, 0); err != nil {
		return err
	}
	t.say("3. It was the wrong backup: the order is gone. Undo the restore:", "   etcd-manager-ctl undo-restore --now")
	undo, err := t.operator.PlanUndo(ctx, operator.UndoRequest{Options: operator.RestoreOptions{Now: true}})
	if err != nil {
		return err
	}
	if queued, err = t.operator.Undo(ctx, undo); err != nil {
		return err
	}
	if err := t.follow(ctx, queued.Command.Name); err != nil {
		return err
	}
	if err := t.sees(ctx, 1); err != nil {
		return err
	}
	t.say("3. The order is back, and everything else up to the last write. Each restore can", "   be undone. An undo can be undone, too.")
	return t.pause(ctx, 6*time.Second)
}

// sees waits until etcd answers, and fails if the order isn't as it must be.
func (t *tourGuide) sees(ctx context.Context, want int64) error {
	var got int64
	err := t.until(ctx, "an answer of etcd", func() bool {
		get, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		r, err := t.etcd.Get(get, tourOrder)
		if err != nil {
			return false
		}
		got = r.Count
		return true
	})
	if err == nil && got != want {
		err = fmt.Errorf("%s is there %d times, and must be %d times", tourOrder, got, want)
	}
	return err
}
