package node

import "sync"

// changes tells watchers that something has changed which the leader acts on. It calls nothing while it holds its lock, so it may be used under any
// other lock.
type changes struct {
	mu sync.Mutex
	n  uint64
	ch chan struct{}
}

func newChanges() *changes { return &changes{ch: make(chan struct{})} }

// next returns a channel that is closed at the next change, and the number of changes so far.
func (c *changes) next() (<-chan struct{}, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ch, c.n
}

// note says that something has changed.
func (c *changes) note() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	close(c.ch)
	c.ch = make(chan struct{})
}
