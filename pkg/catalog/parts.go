package catalog

import (
	"context"
	"strings"
	"sync"
	"time"
)

// A listing of a hundred thousand backups takes hundreds of requests, one after the other. Where each takes long, the rest is listed
// in parts side by side. Names are dated, so a part is a span of time; who is done with one takes half of the longest that is left.

const (
	// partsProbe is how many keys are listed before it is known how slow the store is, and partsSlow how long they take if it is.
	partsProbe = 2000
	partsSlow  = 100 * time.Millisecond
	// partsAtOnce bounds the requests at the same time, maxParts how often a part is divided, partsSpan how short it may be.
	partsAtOnce = 16
	maxParts    = 256
	partsSpan   = 2 * time.Hour
)

// parts is a listing in several parts.
type parts struct {
	c     *Catalog
	slow  time.Duration
	begun time.Time
	keys  int
	wg    sync.WaitGroup
	// stop ends all parts when one fails.
	stop context.CancelFunc
	// cut, if not nil, makes the list shorter after each addition.
	cut func(*BackupList)

	mu   sync.Mutex
	list *BackupList
	open []*part
	made int
	err  error
}

// part is one span of a listing: what comes behind at, and does not lie behind until, which is empty for the end.
type part struct {
	at, until string
}

// listBackups lists all backups, in no order. slow is how long a store takes for its first keys that is worth asking in parts.
func (c *Catalog) listBackups(ctx context.Context, slow time.Duration, cut func(*BackupList)) (BackupList, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	p := &parts{c: c, list: &BackupList{}, slow: slow, stop: stop, cut: cut}
	first := &part{}
	p.open = append(p.open, first)
	p.run(ctx, first)
	p.wg.Wait()
	if p.err != nil {
		return BackupList{}, p.err
	}
	return *p.list, nil
}

// run lists a part to its end.
func (p *parts) run(ctx context.Context, a *part) {
	s := p.c.ScanBackups(p.addBackup, p.addLeftover)
	s.after = a.at
	err := s.run(ctx, func(key string) bool { return p.passed(ctx, a, key) })
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, o := range p.open {
		if o == a {
			p.open = append(p.open[:i], p.open[i+1:]...)
			break
		}
	}
	if err != nil && p.err == nil {
		p.err = err
		p.stop()
	}
}

// passed notes how far a part has come, and tells whether that is behind its end. Nobody takes what was passed.
func (p *parts) passed(ctx context.Context, a *part, key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a.until != "" && key > a.until {
		return true
	}
	a.at = key
	switch p.keys++; p.keys {
	case 1:
		p.begun = time.Now()
	case partsProbe:
		if time.Since(p.begun) >= p.slow {
			for range partsAtOnce - 1 {
				p.wg.Go(func() { p.help(ctx) })
			}
		}
	}
	return false
}

// help lists halves of what is left as long as there are any.
func (p *parts) help(ctx context.Context) {
	for ctx.Err() == nil {
		a := p.take(time.Now())
		if a == nil {
			return
		}
		p.run(ctx, a)
	}
}

// take makes a part of the second half of the longest that is left; nil if none is long enough. Its beginning names a second, which
// sorts before all backups of that second and between the files of none.
func (p *parts) take(now time.Time) *part {
	p.mu.Lock()
	defer p.mu.Unlock()
	var longest *part
	var from time.Time
	span := partsSpan
	for _, o := range p.open {
		begin, end := keyTime(o.at), now
		if o.until != "" {
			end = keyTime(o.until)
		}
		if d := end.Sub(begin); !begin.IsZero() && d > span {
			longest, from, span = o, begin, d
		}
	}
	if longest == nil || p.made >= maxParts {
		return nil
	}
	p.made++
	middle := from.Add(span / 2).UTC().Format(time.RFC3339)
	a := &part{at: middle, until: longest.until}
	longest.until = middle
	p.open = append(p.open, a)
	return a
}

// keyTime is the time that a key begins with; zero if it tells none.
func keyTime(key string) time.Time {
	name, _, _ := strings.Cut(key, "/")
	return BackupTime(name)
}

func (p *parts) addBackup(b Backup) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.list.addBackup(b)
	if p.cut != nil {
		p.cut(p.list)
	}
}

func (p *parts) addLeftover(b Leftover) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.list.addLeftover(b)
	if p.cut != nil {
		p.cut(p.list)
	}
}
