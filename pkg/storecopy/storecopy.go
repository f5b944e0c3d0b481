// Package storecopy keeps a copy of a cluster's backup store in a second store: backups, changes, and what else a restore needs.
//
// The leader runs a Copier for each copy. It gets new changes from memory, at the moment at which they go to the first store, so the copy
// goes on while the first store is away. Everything else it reads from the first store, of which it compares little often and all rarely.
// It must never make the copy show what isn't there: the meta file of a backup is written last, and every byte is checked on its way. It
// never deletes anything from the first store, and from the copy only by the copy's own retention.
package storecopy

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/prune"
	"github.com/etcd-manager/etcd-manager/pkg/repeat"
)

// Config is what a Copier needs.
type Config struct {
	// From is the first store, To the copy. FromName and ToName are their URLs.
	From, To         *catalog.Catalog
	FromName, ToName string
	ClusterName      string
	// Node and Term are the leadership that copies.
	Node cluster.NodeID
	Term cluster.Term
	// Retention says how long the copy keeps what it has.
	Retention prune.Policy
	// Rate bounds what is read of the first store for the copy, in bytes per second; 0 means no bound.
	Rate int64
	// Look is how often the newest part of both stores is compared, Compare how often all of them (defaults: 10 min, 24 h).
	Look, Compare time.Duration
	// Now is the clock (default time.Now).
	Now func() time.Time
}

const (
	defaultLook    = 10 * time.Minute
	defaultCompare = 24 * time.Hour
	// pruneEvery is how often retention looks at the copy.
	pruneEvery = time.Hour
	// firstRetry and lastRetry bound the pause after a failure.
	firstRetry = time.Second
	lastRetry  = 2 * time.Minute
	// held bounds the changes that wait in memory for the copy: bytes and segments. What doesn't fit is read from the first store later.
	heldBytes, heldSegments = 12 << 20, 512
	// takenOver is how long a leadership with a higher term counts that has written the copy's record: terms begin again in a new cluster.
	takenOver = time.Hour
	// stillCopied is how long a record counts that another store's leader has written: one that copies writes it with each look.
	stillCopied = 15 * time.Minute
	// overlap is how far before the last comparison the next look begins.
	overlap = 2 * time.Hour
	// recordedBad bounds the bad objects in the copy's record, and lastWhole the pause after a whole comparison that failed.
	recordedBad = 64
	lastWhole   = time.Hour
)

// Errors that only an operator can end.
var (
	// ErrNotACopy: the place has something else.
	ErrNotACopy = errors.New("it isn't a copy of this cluster's store")
	// ErrInUse: the copy was put into use as a store of its own.
	ErrInUse = errors.New("it was put into use as a store of its own")
	// ErrGone: a copy was there, and nothing is.
	ErrGone = errors.New("the copy that was there is gone")
	// ErrTaken: a leadership with a higher term copies.
	ErrTaken = errors.New("a leadership with a higher term copies to it")
)

// Status is what a Copier says of itself.
type Status = catalog.CopyReport

// Copier copies one store to another during one leadership. Run owns its goroutines; all other methods may be called concurrently.
type Copier struct {
	cfg    Config
	pruner *prune.Pruner
	limit  *limiter
	said   repeat.Limiter
	poked  chan struct{}

	mu     sync.Mutex
	status Status
	// problems are what fails at present, by what was done: changes, or the rest.
	problems map[string]string
	queue    queue
	// behind is true if the copy may lack changes that this leadership has seen, and drops counts those that didn't fit into the queue.
	behind bool
	drops  int
	missed bool // some were dropped since the last look
	// open is true while the copy is this leadership's to write.
	open bool

	// What follows is only touched by the goroutine of the passes. version is that of the record, empty before it was read.
	record  catalog.CopyRecord
	version string
	copied  map[string]bool // backups that were copied during the whole comparison under way
	begun   time.Time
	// store is which first store this is; empty as long as that isn't known.
	store string
	// again is when a whole comparison is tried again that has failed so often.
	again      time.Time
	fails      int
	looked     time.Time
	pruned     time.Time
	operations map[string]bool
	// bad are objects of the first store that can't be copied because they are damaged, and why. They are tried again with the next
	// whole comparison.
	bad map[string]string
	// later are backups that could not be copied though both stores answer. Each waits for an attempt of its own. vain counts those of
	// the pass under way.
	later refusals
	vain  int
	// inherited is true as long as bad has backups of an earlier leadership, which this one hasn't tried.
	inherited bool
	// seen is the version of the copy's record that was read last.
	seen sighting
}

// New returns a Copier. It starts nothing.
func New(cfg Config) (*Copier, error) {
	if cfg.From == nil || cfg.To == nil || cfg.FromName == "" || cfg.ToName == "" || cfg.ClusterName == "" {
		return nil, errors.New("copy of the store: both stores, their names and the cluster's are needed")
	}
	if cfg.Look <= 0 {
		cfg.Look = defaultLook
	}
	if cfg.Compare <= 0 {
		cfg.Compare = defaultCompare
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Copier{cfg: cfg, pruner: prune.New(cfg.To, cfg.Retention), limit: newLimiter(cfg.Rate), poked: make(chan struct{}, 1),
		status: Status{Name: cfg.ToName}, problems: map[string]string{}, queue: queue{wake: make(chan struct{}, 1)}, behind: true,
		operations: map[string]bool{}, bad: map[string]string{}, later: refusals{}, copied: map[string]bool{}}, nil
}

// Status returns how the copy does.
func (c *Copier) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

// Poke says that there is something new in the first store: a backup, or the result of a verification.
func (c *Copier) Poke() {
	select {
	case c.poked <- struct{}{}:
	default:
	}
}

// Segment takes a segment that is on its way to the first store. It never blocks. The data must not be changed afterwards.
func (c *Copier) Segment(i catalog.Incarnation, name catalog.SegmentName, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.queue.add(waiting{i, name, data}) {
		c.behind, c.missed = true, true
		c.drops++
	}
}

// Run copies until ctx ends, and returns then.
func (c *Copier) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { c.deliver(ctx) })
	c.passes(ctx)
	wg.Wait()
	return nil
}

// passes compares and copies again and again.
func (c *Copier) passes(ctx context.Context) {
	c.begun = c.cfg.Now()
	delay := time.Duration(0)
	for {
		err := c.work(ctx)
		if ctx.Err() != nil {
			return
		}
		problem := err
		if err == nil {
			problem = c.later.lacks(c.bad)
		}
		c.note("stores", problem)
		wait := c.later.pause(c.cfg.Look, c.cfg.Now())
		if err != nil {
			delay = min(max(firstRetry, 2*delay), lastRetry)
			wait = delay
		} else {
			delay = 0
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-c.pokedUnless(err):
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// due tells whether a span has gone by since a moment. A clock that was put back doesn't make it longer.
func due(now, last time.Time, span time.Duration) bool {
	d := now.Sub(last)
	return d >= span || d < 0
}

// waits tells whether a moment is still to come. One that is farther away than it can have been set isn't waited for: that clock was
// ahead.
func waits(now, until time.Time, longest time.Duration) bool {
	d := until.Sub(now)
	return d > 0 && d <= longest
}

// pokedUnless ends the pause early, but not the one after a failure.
func (c *Copier) pokedUnless(err error) <-chan struct{} {
	if err != nil {
		return nil
	}
	return c.poked
}

// work does what is due. What only concerns single backups is no error: lacks tells it.
func (c *Copier) work(ctx context.Context) error {
	c.vain = 0
	if err := c.claim(ctx); err != nil {
		return err
	}
	now := c.cfg.Now()
	var vain error // the copy's store takes no more backups: the rest is done first
	if (now.Sub(c.record.Compared) >= c.cfg.Compare || now.Before(c.record.Compared)) && !waits(now, c.again, lastWhole) {
		if err := c.compareAll(ctx); err != nil {
			// It lists all of both stores: meanwhile only what is new is compared.
			c.again = now.Add(min(firstRetry<<min(c.fails, 20), lastWhole))
			c.fails++
			if !refused(err) {
				return err
			}
			vain = err
		} else {
			c.again, c.fails = time.Time{}, 0
		}
	}
	if err := c.look(ctx); refused(err) {
		vain = cmp.Or(vain, err)
	} else if err != nil {
		return err
	}
	if due(now, c.pruned, pruneEvery) {
		more, err := c.prune(ctx)
		if err != nil {
			return err
		}
		if !more {
			c.pruned = now
		}
	}
	return vain
}

// prune lets the copy's own retention remove what it doesn't keep, within the bounds of one run. It returns whether there is more.
func (c *Copier) prune(ctx context.Context) (more bool, err error) {
	ex, err := c.pruner.Exempt(ctx)
	if err != nil {
		return false, err
	}
	r, err := c.pruner.Run(ctx, c.cfg.Now(), ex)
	if err != nil {
		return false, err
	}
	c.mu.Lock()
	c.status.Backups, c.status.Held = r.Stored, r.Hold()
	c.mu.Unlock()
	_, err = c.cfg.To.PruneOperations(ctx, catalog.OperationHistory)
	return r.More && r.RetryAt.IsZero(), err
}

// note keeps what fails, of the changes or of the rest, and says it.
func (c *Copier) note(what string, err error) {
	c.mu.Lock()
	if err == nil {
		delete(c.problems, what)
	} else {
		c.problems[what] = cluster.Shown(err.Error(), 500)
	}
	text := c.problems["stores"]
	if text == "" {
		text = c.problems["changes"]
	}
	if c.status.Error = text; text == "" {
		c.status.Since = time.Time{}
	} else if c.status.Since.IsZero() {
		c.status.Since = c.cfg.Now().UTC()
	}
	c.mu.Unlock()
	if err != nil {
		c.said.Warningf("copy "+what, "copy of the store in %s: %v", c.cfg.ToName, err)
	}
}

// count counts what was copied.
func (c *Copier) count(objects, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Objects += objects
	c.status.Bytes += bytes
}
