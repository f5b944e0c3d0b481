package manager

import (
	"sync"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/repeat"
)

// shared is what all parts of a leadership have in common.
type shared struct {
	m    *Manager
	term cluster.Term
	said repeat.Limiter
	// wake holds one reason to look again, and wg what runs beside the loop and ends with it.
	wake chan struct{}
	wg   sync.WaitGroup
}

// poke has the loop look again soon.
func (s *shared) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
