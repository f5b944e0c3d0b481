package relay

import (
	"context"
	"errors"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// way is how an object is reached.
type way int

const (
	direct way = iota
	relayed
)

func (w way) other() way { return 1 - w }

// attempt opens an object one way. What it opens ends with its context.
type attempt func(ctx context.Context) (opened, error)

// answer is the end of an attempt.
type answer struct {
	opened
	way    way
	err    error
	ctx    context.Context
	cancel context.CancelCauseFunc
}

// final tells whether the answer settles the matter: the object, or the store's word that there is none.
func (a answer) final() bool { return a.err == nil || errors.Is(a.err, blob.ErrNotFound) }

func (a answer) drop() {
	if a.body != nil {
		_ = a.body.Close() // nobody has read from it
	}
	a.cancel(errBeaten)
}

// race runs attempts beside each other until one of them has an answer. It is used by one goroutine; end must be called.
type race struct {
	ctx     context.Context
	stall   time.Duration
	ways    [2]attempt
	answers chan answer
	settled chan struct{}
	// pending are the cancel functions of attempts that run.
	pending [2]context.CancelCauseFunc
	started [2]bool
	errs    [2]error
}

func newRace(ctx context.Context, stall time.Duration, ways [2]attempt) *race {
	return &race{ctx: ctx, stall: stall, ways: ways, answers: make(chan answer), settled: make(chan struct{})}
}

// start begins an attempt, unless one of the same way runs, or it is the direct one and has failed: the primary has its own patience.
func (r *race) start(w way) {
	if r.pending[w] != nil || w == direct && r.started[w] {
		return
	}
	ctx, cancel := context.WithCancelCause(r.ctx)
	r.pending[w], r.started[w] = cancel, true
	go func() {
		if w == relayed {
			t := time.AfterFunc(r.stall, func() { cancel(errStalled) })
			defer t.Stop()
		}
		a := answer{way: w, ctx: ctx, cancel: cancel}
		a.opened, a.err = r.ways[w](ctx)
		select {
		case r.answers <- a:
		case <-r.settled:
			a.drop()
		}
	}()
}

// take takes an answer in and tells whether it is final.
func (r *race) take(a answer) bool {
	r.pending[a.way] = nil
	if a.final() {
		return true
	}
	a.cancel(nil)
	r.errs[a.way] = a.err
	return false
}

// startOther starts the way that hasn't been tried yet and tells whether there was one.
func (r *race) startOther(w way) bool {
	if r.started[w.other()] {
		return false
	}
	r.start(w.other())
	return true
}

// over tells whether no attempt runs.
func (r *race) over() bool { return r.pending[direct] == nil && r.pending[relayed] == nil }

// end gives up what still runs.
func (r *race) end() {
	close(r.settled)
	for _, cancel := range r.pending {
		if cancel != nil {
			cancel(errBeaten)
		}
	}
}
