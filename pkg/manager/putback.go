package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	"github.com/etcd-manager/etcd-manager/pkg/putback"
)

const (
	// putBackShown is how often the progress of a put-back is written, and its command read again: the operator may end it.
	putBackShown = 2 * time.Second
	// putBackLongest is the longest pause before a put-back that has failed is tried again.
	putBackLongest = 30 * time.Second
)

// putBacks carries out what operators have asked to be put back, one at a time, beside the loop. Nothing of it is needed by another
// leader: where a put-back is stands in etcd and in the store.
type putBacks struct {
	*shared
	etcd      *etcdClients
	retention *retention

	mu sync.Mutex
	// running is the command that is being carried out, paused why it must not write now, and ended that the operator has ended it.
	running string
	paused  string
	ended   bool
	retryAt time.Time
	fails   int
	// progress is that of the running one.
	progress catalog.PutBackProgress
	// over are the commands that are done with, until the queue is read again.
	over map[string]bool
}

// pausedError says that a run has ended because something else comes first.
type pausedError string

func (e pausedError) Error() string { return string(e) }

// observe leaves out what is done with, and pauses a running put-back while a restore is queued or under way.
func (pb *putBacks) observe(o *model.Observation) {
	pb.mu.Lock()
	defer pb.mu.Unlock()
	o.Store.PutBacks = slices.DeleteFunc(slices.Clone(o.Store.PutBacks), func(p model.QueuedPutBack) bool { return pb.over[p.Name] })
	o.PutBackRunning, o.PutBackRetryAt = pb.running, pb.retryAt
	switch {
	case o.Store.Operation != nil:
		pb.paused = fmt.Sprintf("restore %s is under way", o.Store.Operation.ID)
	case len(o.Store.Commands) > 0:
		pb.paused = fmt.Sprintf("restore %s is queued: it would replace what is written now", o.Store.Commands[0].Name)
	default:
		pb.paused = ""
	}
}

// may is asked right before each transaction.
func (pb *putBacks) may() error {
	if !pb.m.cfg.Peers.Leads(pb.term) {
		return fmt.Errorf("the lease of term %d has ended: %w", pb.term, cluster.ErrLowerTerm)
	}
	pb.mu.Lock()
	defer pb.mu.Unlock()
	switch {
	case pb.ended:
		return putback.ErrCanceled
	case pb.paused != "":
		return pausedError(pb.paused)
	}
	return nil
}

// start carries a put-back out, from where it is.
func (pb *putBacks) start(ctx context.Context, o *model.Observation, a model.PutBack) error {
	n := o.Node(a.Node)
	if n == nil {
		return fmt.Errorf("node %s doesn't answer", a.Node)
	}
	status := *n
	pb.mu.Lock()
	defer pb.mu.Unlock()
	if pb.running != "" {
		return nil
	}
	pb.running, pb.ended = a.Command, false
	pb.wg.Go(func() { pb.run(ctx, &status, a.Command) })
	return nil
}

// run does one attempt, and says when the next one may come.
func (pb *putBacks) run(ctx context.Context, n *cluster.NodeStatus, name string) {
	err := pb.attempt(ctx, n, name)
	pb.mu.Lock()
	pb.running = ""
	var paused pausedError
	wait := time.Second
	switch {
	case err == nil:
		pb.fails, pb.retryAt = 0, time.Time{}
	case errors.As(err, &paused):
		pb.retryAt = time.Now().Add(wait)
	default:
		wait = min(wait<<min(pb.fails, 6), putBackLongest)
		pb.fails++
		pb.retryAt = time.Now().Add(wait)
	}
	pb.mu.Unlock()
	if err != nil && ctx.Err() == nil {
		pb.said.Warningf("put-back "+name, "put-back %s: %v; it goes on later (next attempt in %s at the earliest)", name, err, wait)
		pb.show(ctx, name, err.Error())
	}
	pb.poke()
}

// attempt goes on with a put-back to its end. An error means that another attempt goes on.
func (pb *putBacks) attempt(ctx context.Context, n *cluster.NodeStatus, name string) error {
	cmd, err := pb.m.cfg.Catalog.Command(ctx, name)
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		pb.close(name)
		return nil
	case err != nil:
		return err
	case cmd.PutBack == nil:
		return nil
	}
	if op, _, err := pb.m.cfg.Catalog.Operation(ctx, name); err == nil && op.State.Final() {
		return pb.remove(ctx, name) // recorded, and not removed from the queue yet
	} else if err != nil && !errors.Is(err, catalog.ErrNotFound) {
		return err
	}
	pb.resume(cmd.PutBack)
	dctx, cancel := context.WithTimeout(ctx, quickAction)
	c, err := pb.etcd.dial(dctx, n)
	cancel()
	if err != nil {
		return err
	}
	defer c.Close()
	klog.Infof("put-back %s: %s as it was at %s, %s, through node %s", name, cmd.PutBack.What, cmd.PutBack.At,
		cluster.Count(cmd.PutBack.Entries, "key"), n.ID)
	r := putback.Runner{Etcd: c.Raw(), Store: pb.m.cfg.Catalog, Name: name, Plan: *cmd.PutBack, May: pb.may, Show: pb.note}
	wctx, stop := context.WithCancel(ctx)
	var beside sync.WaitGroup
	beside.Go(func() { pb.watch(wctx, name) })
	counts, err := r.Run(ctx)
	stop()
	beside.Wait()
	pb.note(counts)
	done := fmt.Sprintf("%d of %s", counts.Done(), cluster.Count(cmd.PutBack.Entries, "key"))
	switch {
	case err == nil:
		return pb.end(ctx, cmd, counts, "")
	case errors.Is(err, putback.ErrCanceled):
		return pb.end(ctx, cmd, counts, "the operator has ended it after "+done)
	case errors.Is(err, putback.ErrRefused), objectProblem(err) && !errors.Is(err, catalog.ErrDenied):
		return pb.end(ctx, cmd, counts, fmt.Sprintf("%v; %s were done", err, done))
	}
	return err
}

// resume begins with what is known of the progress.
func (pb *putBacks) resume(p *catalog.PutBack) {
	pb.mu.Lock()
	defer pb.mu.Unlock()
	pb.ended = p.Canceled
	pb.progress = catalog.PutBackProgress{Begun: time.Now().UTC()}
	if p.Progress != nil && !p.Progress.Begun.IsZero() {
		pb.progress.Begun = p.Progress.Begun
	}
}

// note remembers what was done, for the progress.
func (pb *putBacks) note(counts catalog.PutBackCounts) {
	pb.mu.Lock()
	defer pb.mu.Unlock()
	pb.progress.PutBackCounts = counts
}

// watch shows the progress, and looks whether the operator has ended it.
func (pb *putBacks) watch(ctx context.Context, name string) {
	tick := time.NewTicker(putBackShown)
	defer tick.Stop()
	for {
		pb.show(ctx, name, "")
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		cmd, err := pb.m.cfg.Catalog.Command(ctx, name)
		if errors.Is(err, catalog.ErrNotFound) || err == nil && cmd.PutBack != nil && cmd.PutBack.Canceled {
			pb.mu.Lock()
			pb.ended = true
			pb.mu.Unlock()
		}
	}
}

// show writes the progress beside the command. That it can't be shown doesn't hold it up.
func (pb *putBacks) show(ctx context.Context, name, waiting string) {
	pb.mu.Lock()
	p := pb.progress
	pb.mu.Unlock()
	p.At, p.Node, p.Term, p.Waiting = time.Now().UTC(), pb.m.cfg.Self, pb.term, waiting
	if _, err := pb.m.cfg.Catalog.Command(ctx, name); errors.Is(err, catalog.ErrNotFound) {
		return // nothing is left beside which it would be shown
	}
	if err := pb.m.cfg.Catalog.PutPutBackProgress(ctx, name, p); err != nil && ctx.Err() == nil {
		pb.said.Warningf("progress", "the progress of command %s can't be shown: %v", name, err)
	}
}

// end writes the record and removes the command, in this order: what a crash leaves undone is done again. With a reason it has failed.
func (pb *putBacks) end(ctx context.Context, cmd catalog.Command, counts catalog.PutBackCounts, reason string) error {
	now, state := time.Now(), catalog.StateDone
	if reason != "" {
		state = catalog.StateFailed
	}
	pb.mu.Lock()
	begun := pb.progress.Begun
	pb.mu.Unlock()
	p := *cmd.PutBack
	op := catalog.Operation{
		ID: cmd.Name, Kind: catalog.KindPutBack, State: state, Reason: reason, Command: cmd.Name,
		Options: catalog.RestoreOptions{Reason: p.Reason}, Created: begun, StateSince: now, Finished: now, Term: pb.term, Leader: pb.m.cfg.Self, Instance: pb.m.cfg.Instance,
		PutBack: &catalog.PutBackRecord{PutBack: p, PutBackCounts: counts},
	}
	if _, err := pb.m.cfg.Catalog.PutOperation(ctx, op, ""); err != nil && !errors.Is(err, catalog.ErrConflict) {
		return err
	}
	text := fmt.Sprintf("put-back %s: %s: %d created, %d replaced, %d removed, %d were so already, %d left alone %s", cmd.Name, state, counts.Created, counts.Replaced,
		counts.Removed, counts.Same, counts.Left, reason)
	klog.Infof("%s", text)
	phase := catalog.EventDone
	if state == catalog.StateFailed {
		phase = catalog.EventFailed
	}
	pb.m.events.add(catalog.Event{Kind: catalog.EventPutBack, Term: pb.term, Subject: cmd.Name, Phase: phase, Text: text}, true)
	return pb.remove(ctx, cmd.Name)
}

// remove takes a command whose record is written out of the queue.
func (pb *putBacks) remove(ctx context.Context, name string) error {
	if err := pb.m.cfg.Catalog.RemoveCommand(ctx, name); err != nil {
		return err
	}
	pb.retention.pruneHistory(ctx)
	pb.close(name)
	return nil
}

// close has the queue read again. Until then the command must not be taken a second time.
func (pb *putBacks) close(name string) {
	pb.forceStore()
	pb.mu.Lock()
	defer pb.mu.Unlock()
	pb.over[name] = true
}
