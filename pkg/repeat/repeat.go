// Package repeat bounds how often a message that comes again is logged.
//
// A loop that fails says so at once, and then more and more rarely, with the number of times in between. Whoever logs gives a key
// that says what the message is about. The text never decides: it may hold times, ports and counters. The package must never
// hold back the first message of a key.
package repeat

import (
	"fmt"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

const (
	// first is the shortest time between two messages of a key; it doubles with each up to longest.
	first   = 10 * time.Second
	longest = 5 * time.Minute
	// maxKeys bounds the memory. The key that was silent for the longest time makes room.
	maxKeys = 256
)

// Limiter decides which messages are logged. The zero value is ready; it may be used concurrently.
type Limiter struct {
	mu   sync.Mutex
	seen map[string]*entry
}

type entry struct {
	said, last time.Time
	gap        time.Duration
	skipped    int
}

// Allow tells whether a message of this key is due, and how many were left out since the last one.
func (l *Limiter) Allow(key string) (skipped int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	e := l.seen[key]
	if e == nil {
		l.add(key, now)
		return 0, true
	}
	quiet := now.Sub(e.last)
	e.last = now
	switch {
	case quiet >= 2*e.gap: // it had stopped, and is news again
		e.gap = first
	case now.Sub(e.said) < e.gap:
		e.skipped++
		return 0, false
	default:
		e.gap = min(2*e.gap, longest)
	}
	skipped, e.skipped, e.said = e.skipped, 0, now
	return skipped, true
}

func (l *Limiter) add(key string, now time.Time) {
	if l.seen == nil {
		l.seen = map[string]*entry{}
	}
	if len(l.seen) >= maxKeys {
		oldest := ""
		for k, e := range l.seen {
			if oldest == "" || e.last.Before(l.seen[oldest].last) {
				oldest = k
			}
		}
		delete(l.seen, oldest)
	}
	l.seen[key] = &entry{said: now, last: now, gap: first}
}

// Infof logs if a message of this key is due.
func (l *Limiter) Infof(key, format string, args ...any) {
	if n, ok := l.Allow(key); ok {
		klog.InfofDepth(1, "%s%s", fmt.Sprintf(format, args...), again(n))
	}
}

// Warningf logs if a message of this key is due.
func (l *Limiter) Warningf(key, format string, args ...any) {
	if n, ok := l.Allow(key); ok {
		klog.WarningfDepth(1, "%s%s", fmt.Sprintf(format, args...), again(n))
	}
}

// Errorf logs if a message of this key is due.
func (l *Limiter) Errorf(key, format string, args ...any) {
	if n, ok := l.Allow(key); ok {
		klog.ErrorfDepth(1, "%s%s", fmt.Sprintf(format, args...), again(n))
	}
}

func again(n int) string {
	switch n {
	case 0:
		return ""
	case 1:
		return " (and once before, not logged)"
	}
	return fmt.Sprintf(" (and %d times before, not logged)", n)
}
