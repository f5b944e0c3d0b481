package node

import (
	"sync"
	"time"
)

// told is what a leader has last sent of what it knows.
type told struct {
	summary []byte
	term    uint64
	at      time.Time
}

const (
	// summaryMost bounds what is kept of a leader's summary.
	summaryMost = 128 << 10
	// summaryHeld is how long a summary of a higher term keeps out those of lower ones.
	summaryHeld = time.Minute
)

// summaries keeps the last one. It may be used concurrently.
type summaries struct {
	mu   sync.Mutex
	last told
}

// note keeps what a leader knows of the cluster, for the status page. It changes nothing else.
func (s *summaries) note(summary []byte, term uint64) {
	if len(summary) == 0 || len(summary) > summaryMost {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if term < s.last.term && time.Since(s.last.at) < summaryHeld {
		return
	}
	s.last = told{summary: summary, term: term, at: time.Now()}
}

// Summary is what a leader has last told this node of the cluster, and when; nil if none has.
func (a *Agent) Summary() ([]byte, time.Time) {
	s := &a.summaries
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last.summary, s.last.at
}
