package storecopy

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// waiting is a segment that waits in memory for the copy.
type waiting struct {
	incarnation catalog.Incarnation
	name        catalog.SegmentName
	data        []byte
}

// queue holds segments in their order, within bounds. The Copier's lock guards it.
type queue struct {
	items []waiting
	bytes int
	wake  chan struct{}
}

// add takes one, and drops the oldest if they become too many; dropped is true then.
func (q *queue) add(w waiting) (dropped bool) {
	q.items = append(q.items, w)
	for q.bytes += len(w.data); len(q.items) > 0 && (q.bytes > heldBytes || len(q.items) > heldSegments); dropped = true {
		q.drop()
	}
	q.poke()
	return dropped
}

// poke has the goroutine that empties it look again.
func (q *queue) poke() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *queue) drop() {
	q.bytes -= len(q.items[0].data)
	q.items[0] = waiting{}
	q.items = q.items[1:]
}

// next is the oldest; ok is false if there is none, or nothing may be written to the copy.
func (c *Copier) next() (w waiting, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue.items) == 0 || !c.open {
		return waiting{}, false
	}
	return c.queue.items[0], true
}

// stored notes that the copy has a segment.
func (c *Copier) stored(w waiting) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue.items) > 0 && c.queue.items[0].name == w.name && c.queue.items[0].incarnation == w.incarnation {
		c.queue.drop() // else it was dropped meanwhile
	}
	c.status.Objects++
	c.status.Bytes += int64(len(w.data))
	if !c.behind {
		c.has(w.name)
	}
	if c.missed && len(c.queue.items) == 0 { // it accepts changes again, so what was dropped is looked for
		c.Poke()
	}
}

// has notes up to where the copy has everything. mu is held.
func (c *Copier) has(n catalog.SegmentName) {
	c.status.Archived = max(c.status.Archived, n.Last)
	if n.Ended.After(c.status.Until) {
		c.status.Until = n.Ended
	}
}

// putTimeout bounds one attempt to store a segment; large ones get more.
const putTimeout = time.Minute

// deliver stores the segments that come from memory, one after the other, while the copy is this leadership's.
func (c *Copier) deliver(ctx context.Context) {
	delay := time.Duration(0)
	for ctx.Err() == nil {
		w, ok := c.next()
		if !ok {
			select {
			case <-ctx.Done():
			case <-c.queue.wake:
			}
			continue
		}
		pctx, cancel := context.WithTimeout(ctx, putTimeout+time.Duration(len(w.data)>>20)*time.Second)
		err := c.cfg.To.PutSegment(pctx, w.incarnation, w.name, w.data)
		cancel()
		if ctx.Err() != nil {
			return
		}
		c.note("changes", err)
		if err == nil {
			c.stored(w)
			delay = 0
			continue
		}
		delay = min(max(firstRetry, 2*delay), lastRetry)
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
	}
}

// limiter bounds bytes per second over all that goes through it. The zero rate bounds nothing.
type limiter struct {
	rate int64

	mu   sync.Mutex
	free time.Time
}

func newLimiter(rate int64) *limiter { return &limiter{rate: rate} }

// wait returns when n more bytes may go.
func (l *limiter) wait(ctx context.Context, n int) error {
	if l.rate <= 0 || n <= 0 {
		return nil
	}
	l.mu.Lock()
	now := time.Now()
	if l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(float64(n) / float64(l.rate) * float64(time.Second)))
	pause := l.free.Sub(now)
	l.mu.Unlock()
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// slow is a reader at the limiter's rate. It counts what went through.
type slow struct {
	ctx context.Context
	r   io.Reader
	l   *limiter
	n   *int64
}

// slowPiece bounds one read in bytes, so that a low rate still makes progress every moment.
const slowPiece = 64 << 10

func (s *slow) Read(p []byte) (int, error) {
	if s.l.rate > 0 && len(p) > slowPiece {
		p = p[:slowPiece]
	}
	n, err := s.r.Read(p)
	*s.n += int64(n)
	if werr := s.l.wait(s.ctx, n); werr != nil {
		return n, werr
	}
	return n, err
}
