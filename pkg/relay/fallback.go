// Package relay lets a node whose way to the backup store is broken read backups through the leader.
//
// A restore has every node fetch the backup for itself. One node that can't reach the store,
// because of a route, a role or a mount that it alone lacks, must not be what makes the restore
// fail. [Server] gives out the files of backups from a manager's own store, and [Fallback] is the
// other end: a store that asks the leader where the own one fails.
//
// Only reading a backup is relayed: nothing is written this way, nothing below control/ is read,
// and no manager asks a third one. That an object doesn't exist is never concluded from a failure.
package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

const (
	// patience is how long the one that is asked first may take to open an object before the other is asked beside it.
	patience = 5 * time.Second
	// hold is how long the leader is asked first after the own store has failed.
	hold = 30 * time.Second
	// stall is how long a read may go on without a byte.
	stall = 30 * time.Second
)

// Leader is whom to read through.
type Leader struct {
	// Node is for messages.
	Node cluster.NodeID
	// Conn leads to its manager.
	Conn grpc.ClientConnInterface
}

// ErrSelf is what the function that looks for the leader returns (wrapped, if need be) on the leader itself: there is nobody else to ask.
var ErrSelf = errors.New("this node leads")

var (
	// errStalled ends a read that makes no progress, errBeaten one that the other way was faster than.
	errStalled = errors.New("no byte for too long")
	errBeaten  = errors.New("the other way was faster")
)

// Fallback returns a Store that reads the files of backups from primary or, where that fails,
// through the leader of the cluster. Everything else goes to primary alone.
//
// That primary says "not found" is final; any other failure has the leader asked, a denial too,
// since it may be this node alone that is denied. After a failure the leader is asked first for a
// while. If both fail the error names both; it is ErrTransient if one of them may do better later.
// Reading that breaks off in the middle is ErrTransient as well: blob.Retry around it goes on at
// the same byte by whichever way works then. The timeouts of primary should lie within it
// (blob.WithTimeouts), so that it fails at all.
//
// The function leader is called for every attempt, concurrently.
func Fallback(primary blob.Store, clusterName string, leader func() (Leader, error)) blob.Store {
	return newFallback(primary, clusterName, leader)
}

func newFallback(primary blob.Store, clusterName string, leader func() (Leader, error)) *fallback {
	return &fallback{
		Store: primary, clusterName: clusterName, leader: leader, patience: patience, stall: stall,
		memory: &memory{hold: hold, now: time.Now, say: logWarning},
	}
}

// fallback is made by Fallback. The Store that it embeds is the primary.
type fallback struct {
	blob.Store

	clusterName     string
	leader          func() (Leader, error)
	patience, stall time.Duration
	memory          *memory
}

// opened is what an attempt results in.
type opened struct {
	// body is nil for a Stat.
	body io.ReadCloser
	info blob.Info
	// leader is who was asked; empty for the primary.
	leader cluster.NodeID
}

// Get implements blob.Store.
func (f *fallback) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	if f.alone(key) {
		return f.Store.Get(ctx, key, r)
	}
	o, err := f.open(ctx, "get", key, [2]attempt{
		direct: func(ctx context.Context) (o opened, err error) {
			o.body, o.info, err = f.Store.Get(ctx, key, r)
			return o, err
		},
		relayed: f.through(func(ctx context.Context, m remote) (o opened, err error) {
			o.body, o.info, err = m.get(ctx, key, r)
			return o, err
		}),
	})
	return o.body, o.info, err
}

// Stat implements blob.Store.
func (f *fallback) Stat(ctx context.Context, key string) (blob.Info, error) {
	if f.alone(key) {
		return f.Store.Stat(ctx, key)
	}
	o, err := f.open(ctx, "stat", key, [2]attempt{
		direct: func(ctx context.Context) (o opened, err error) {
			o.info, err = f.Store.Stat(ctx, key)
			return o, err
		},
		relayed: f.through(func(ctx context.Context, m remote) (o opened, err error) {
			o.info, err = m.stat(ctx, key)
			return o, err
		}),
	})
	return o.info, err
}

// alone tells whether only the primary may be asked for a key.
func (f *fallback) alone(key string) bool {
	return !catalog.IsBackupFile(key) || f.leads()
}

// through makes an attempt of what is to be asked of the leader.
func (f *fallback) through(ask func(context.Context, remote) (opened, error)) attempt {
	return func(ctx context.Context) (opened, error) {
		l, err := f.leader()
		if err != nil {
			return opened{}, fmt.Errorf("through the leader: %w", err)
		}
		o, err := ask(ctx, remote{leader: l, clusterName: f.clusterName})
		o.leader = l.Node
		return o, err
	}
}

// open asks one way first and the other if that fails or takes long, and returns the first answer.
func (f *fallback) open(ctx context.Context, op, key string, ways [2]attempt) (opened, error) {
	r := newRace(ctx, f.stall, ways)
	defer r.end()
	tick := time.NewTicker(f.patience)
	defer tick.Stop()
	first := f.memory.first()
	r.start(first)
	for {
		select {
		case <-ctx.Done():
			return opened{}, &blob.Error{Op: op, Key: key, Err: ctx.Err()}
		case a := <-r.answers:
			if r.take(a) {
				f.learn(a, first, r.errs[direct])
				return f.deliver(a, key), a.err
			}
			if ctx.Err() != nil {
				continue // a failure that the caller has caused says nothing
			}
			if !r.startOther(a.way) && r.over() {
				f.memory.forget()
				return opened{}, bothFailed(op, key, r.errs)
			}
		case <-tick.C:
			// The leader is asked again and again while the primary hangs: another node may lead by now.
			r.start(direct)
			r.start(relayed)
		}
	}
}

// learn draws conclusions for the next read from who has answered, who was asked first, and how the primary has failed.
func (f *fallback) learn(a answer, first way, failure error) {
	switch {
	case a.way == direct:
		f.memory.readable()
		return
	case failure != nil:
		f.memory.unreadable(failure)
	case first == direct:
		f.memory.unreadable(fmt.Errorf("no answer within %s", f.patience))
	}
	f.memory.relayed(a.leader)
}

// deliver wraps an open body. The attempt's context lives as long as the body does.
func (f *fallback) deliver(a answer, key string) opened {
	if a.body == nil {
		a.cancel(nil)
		return a.opened
	}
	a.body = &body{f: f, key: key, a: a, rc: a.body}
	return a.opened
}

// bothFailed is the error when neither way has led to an answer. It hides the sentinels of both
// behind its own kind: a denial that only this node suffers must not pass for final while the
// leader may be back in a moment.
func bothFailed(op, key string, errs [2]error) error {
	if errors.Is(errs[relayed], ErrSelf) {
		return errs[direct]
	}
	through := errs[relayed]
	var be *blob.Error
	if errors.As(through, &be) {
		through = be.Err // what is around it says nothing more
	}
	e := &blob.Error{Op: op, Key: key, Err: fmt.Errorf("directly: %v; %v", errs[direct], through)}
	own, theirs := kind(errs[direct]), kind(errs[relayed])
	switch {
	case own == theirs:
		e.Kind = own
	case own == blob.ErrTransient, theirs == blob.ErrTransient:
		e.Kind = blob.ErrTransient
	}
	return e
}

// kind returns the sentinel of an error, nil if it has none. That no leader is known may pass.
func kind(err error) error {
	var be *blob.Error
	if !errors.As(err, &be) {
		return blob.ErrTransient
	}
	return be.Kind
}
