package node

import "time"

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

// noteSummary keeps what a leader knows of the cluster, for the status page. It changes nothing else.
func (a *Agent) noteSummary(summary []byte, term uint64) {
	if len(summary) == 0 || len(summary) > summaryMost {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if term < a.summary.term && time.Since(a.summary.at) < summaryHeld {
		return
	}
	a.summary = told{summary: summary, term: term, at: time.Now()}
}

// Summary is what a leader has last told this node of the cluster, and when; nil if none has.
func (a *Agent) Summary() ([]byte, time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.summary.summary, a.summary.at
}
