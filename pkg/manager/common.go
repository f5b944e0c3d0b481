package manager

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/etcd-manager/etcd-manager/pkg/changelog"
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
	// force is true if the store is to be read again, due or not.
	force atomic.Bool
}

// turn is held by one at a time, for as long as requests to the store take. Unlike a mutex it isn't waited for any longer than ctx lasts.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

// take returns ctx's error if ctx ends first; then give must not be called.
func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (t turn) give() { <-t }

// poke has the loop look again soon.
func (s *shared) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// forceStore has the store read again with the next look.
func (s *shared) forceStore() { s.force.Store(true) }

func (s *shared) archive() *changelog.Archive {
	return &changelog.Archive{Catalog: s.m.cfg.Catalog}
}
