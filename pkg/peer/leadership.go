package peer

import (
	"context"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// resignPatience is how long a leadership that is given up waits for its work to end before it is handed over.
const resignPatience = 500 * time.Millisecond

// leadership turns what the election says into calls of a function: one at a time, each with a context that ends when the
// leadership does. It is safe for concurrent use.
type leadership struct {
	work func(ctx context.Context, term cluster.Term)
	wake chan struct{}

	mu     sync.Mutex
	term   cluster.Term // led at the moment; 0 if none
	over   bool         // never again
	cancel context.CancelCauseFunc
	idle   chan struct{} // closed while no work runs
}

func newLeadership(work func(context.Context, cluster.Term)) *leadership {
	l := &leadership{work: work, wake: make(chan struct{}, 1), idle: make(chan struct{})}
	close(l.idle)
	return l
}

// grant says that the node leads in this term.
func (l *leadership) grant(term cluster.Term) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over || l.term == term {
		return
	}
	if l.cancel != nil {
		l.cancel(errLeaseLost)
	}
	l.term = term
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// revoke says that the node doesn't lead.
func (l *leadership) revoke(cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.term = 0
	if l.cancel != nil {
		l.cancel(cause)
	}
}

// end is revoke for good.
func (l *leadership) end(cause error) {
	l.mu.Lock()
	l.over = true
	l.mu.Unlock()
	l.revoke(cause)
}

// wait returns nil once no work runs, or the context's error.
func (l *leadership) wait(ctx context.Context) error {
	l.mu.Lock()
	idle := l.idle
	l.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run works until the context ends and the work has returned. Abdicate is called if work returns while the node still leads.
func (l *leadership) run(ctx context.Context, abdicate func(cluster.Term)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		}
		for l.once(ctx, abdicate) {
		}
	}
}

// once does the work of the present leadership, if there is one.
func (l *leadership) once(ctx context.Context, abdicate func(cluster.Term)) bool {
	l.mu.Lock()
	term := l.term
	if term == 0 || ctx.Err() != nil {
		l.mu.Unlock()
		return false
	}
	work, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := make(chan struct{})
	l.cancel, l.idle = cancel, idle
	l.mu.Unlock()

	klog.Infof("This node leads, in term %d", term)
	l.work(work, term)
	early := work.Err() == nil
	if early {
		abdicate(term)
	} else {
		klog.Infof("This node doesn't lead any more (term %d): %v", term, context.Cause(work))
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	l.cancel = nil
	close(idle)
	if early && l.term == term {
		l.term = 0 // the election couldn't take it back: it isn't driven any more
	}
	return l.term != 0
}
