package changelog

import (
	"context"
	"errors"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

const (
	// askAtOnce is how many leases are asked for in one go, askBeside how many of them at the same time.
	askAtOnce = 256
	askBeside = 16
	// askTimeout bounds one go. Changes don't wait for it.
	askTimeout = 5 * time.Second
	// The time between two goes grows from shortAskPause to longAskPause while nothing is learned.
	shortAskPause = 50 * time.Millisecond
	longAskPause  = 5 * time.Second
)

// asker asks one member for leases, beside the stream of changes.
type asker struct {
	book *leaseBook
	// answers brings those of the questions that are on their way; nil if none are.
	answers chan answers
	asked   []question
	// held are answers that need more changes to be seen.
	held  *answers
	pause time.Duration
	next  time.Time
}

type answers struct {
	// ttls has no entry for a question without an answer.
	ttls map[question]int64
	// revision is one that the cluster had no earlier than it answered.
	revision int64
	err      error
}

// ask sends questions, if it is time for some.
func (a *asker) ask(ctx context.Context, src Source) {
	if a.answers != nil || a.held != nil || len(a.book.wanted) == 0 || time.Now().Before(a.next) {
		return
	}
	questions := a.book.questions(askAtOnce)
	ch := make(chan answers, 1)
	a.answers, a.asked = ch, questions
	go func() { ch <- askAll(ctx, src, questions) }()
}

func askAll(ctx context.Context, src Source, questions []question) answers {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	all := answers{ttls: make(map[question]int64, len(questions))}
	var mu sync.Mutex
	var wg sync.WaitGroup
	queue := make(chan question, len(questions))
	for _, q := range questions {
		queue <- q
	}
	close(queue)
	for range min(askBeside, len(questions)) {
		wg.Go(func() {
			for q := range queue {
				ttl, err := src.LeaseTTL(ctx, q.id)
				mu.Lock()
				if err == nil {
					all.ttls[q] = ttl
				} else {
					all.err = err
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(all.ttls) > 0 {
		revision, _, err := src.Revision(ctx)
		if err != nil { // what was made until the answers came isn't known
			return answers{err: err}
		}
		all.revision = revision
	}
	return all
}

// take takes answers over. Those that didn't come are asked for again.
func (a *asker) take(x answers) {
	for _, q := range a.asked {
		if _, ok := x.ttls[q]; !ok {
			a.book.again(q)
		}
	}
	if x.err != nil && !errors.Is(x.err, context.Canceled) {
		klog.V(2).Infof("changes: leases: %v", x.err)
	}
	a.answers, a.asked, a.held = nil, nil, &x
}

// settle uses the answers once all changes up to last were seen that were made before them, and tells whether something was learned.
func (a *asker) settle(last int64) bool {
	x := a.held
	if x == nil || last < x.revision {
		return false
	}
	a.held = nil
	open := len(a.book.open)
	for q, ttl := range x.ttls {
		a.book.answer(q, ttl, last)
	}
	learned := len(a.book.open) < open
	if learned {
		a.pause = shortAskPause
	} else {
		a.pause = min(max(2*a.pause, shortAskPause), longAskPause)
	}
	a.next = time.Now().Add(a.pause)
	return learned
}

// end gives up: what has no answer is asked for again on the next connection.
func (a *asker) end() {
	for _, q := range a.asked {
		a.book.again(q)
	}
	if a.held != nil {
		for q := range a.held.ttls {
			a.book.again(q)
		}
	}
}
