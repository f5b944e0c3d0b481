package relay

import (
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// memory knows whether the own store could be read lately, and tells the operator once when that changes. It is safe for concurrent use.
type memory struct {
	hold time.Duration
	now  func() time.Time
	say  func(format string, args ...any)

	mu sync.Mutex
	// until is how long the leader is asked first.
	until time.Time
	// reason is why the own store couldn't be read last; nil if it could.
	reason error
	said   bool
}

// first returns whom to ask first.
func (m *memory) first() way {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.now().Before(m.until) {
		return relayed
	}
	return direct
}

// unreadable notes that the own store can't be read.
func (m *memory) unreadable(reason error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.until, m.reason = m.now().Add(m.hold), reason
}

// relayed notes that the leader has answered.
func (m *memory) relayed(leader cluster.NodeID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.said || m.reason == nil { // without a reason another read has just found the store in order
		return
	}
	m.said = true
	m.say("the backup store can't be read from here (%v); backups are read through the leader, node %s", m.reason, leader)
}

// readable notes that the own store has answered.
func (m *memory) readable() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.said {
		m.say("the backup store can be read from here again; backups are read from it directly")
	}
	m.until, m.reason, m.said = time.Time{}, nil, false
}

// forget notes that the leader couldn't help.
func (m *memory) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.until = time.Time{}
}

func logWarning(format string, args ...any) { klog.Warningf(format, args...) }
