package main

import (
	"cmp"
	"context"
	"errors"
	"net/url"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
)

const (
	// beatInterval is how often the record in the store is written anew.
	beatInterval = 10 * time.Second
	// recordAgain is how long it takes until changes are recorded anew when another etcd cluster answers.
	recordAgain = time.Second
	// releaseTimeout bounds the last word to the store.
	releaseTimeout = 3 * time.Second
)

var errNotLeading = errors.New("etcd has another leader now")

// acting is the time in which this instance is the one that acts. Its context ends with it,
// whatever ends it, and its goroutines with the context.
type acting struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	hold   *catalog.Hold // nil if the store fences nothing
	term   cluster.Term
	wg     sync.WaitGroup
	once   sync.Once // of recording
}

// begin lets this instance act.
func (s *sidecar) begin(ctx context.Context, hold *catalog.Hold, status client.Status) {
	a := &acting{hold: hold, term: cluster.Term(status.RaftTerm)}
	if hold != nil {
		a.term = hold.Record().Term
	}
	a.ctx, a.cancel = context.WithCancelCause(ctx)
	s.acting = a
	s.show(func(v *shown) { v.acting, v.term, v.leader = true, a.term, s.fence.node })
	klog.Infof("this instance acts for cluster %s now (term %d), beside member %s", s.o.clusterName, a.term, status.MemberID)
	if hold != nil {
		a.wg.Go(func() { s.beat(a) })
	}
	if s.o.verify > 0 {
		a.wg.Go(func() { s.proveBackups(a.ctx) })
	}
}

// rest ends the acting and waits until what was begun has ended: changes that came are stored by then, or wait on the disk.
func (s *sidecar) rest(why error) {
	a := s.acting
	if a == nil {
		return
	}
	a.cancel(why)
	a.wg.Wait()
	s.acting = nil
	s.show(func(v *shown) { v.acting, v.recorder = false, nil })
	if why = context.Cause(a.ctx); !errors.Is(why, context.Canceled) {
		klog.Infof("this instance no longer acts for cluster %s: %v", s.o.clusterName, why)
	}
	if a.hold != nil && !errors.Is(why, catalog.ErrFenced) {
		s.fence.release(a.ctx, a.hold)
	}
}

// beat shows the others that this instance lives, and finds out when another one has taken over.
func (s *sidecar) beat(a *acting) {
	t := time.NewTicker(s.beatEvery)
	defer t.Stop()
	for {
		select {
		case <-a.ctx.Done():
			return
		case <-t.C:
		}
		err := a.hold.Heartbeat(a.ctx)
		if errors.Is(err, catalog.ErrFenced) {
			a.cancel(err)
			s.poke()
			return
		}
		if err != nil && a.ctx.Err() == nil {
			klog.Warningf("this instance can't update its record in the store, so another one may take over: %v", err)
		}
	}
}

// keepChanges begins to record what changes, once.
func (s *sidecar) keepChanges(a *acting) {
	if s.o.changes <= 0 {
		return
	}
	a.once.Do(func() { a.wg.Go(func() { s.record(a) }) })
}

// record keeps the changes as long as this instance acts. Where another etcd cluster answers, as after a restore, that one's are kept.
func (s *sidecar) record(a *acting) {
	for a.ctx.Err() == nil {
		rec, err := changelog.NewRecorder(changelog.Config{
			ClusterName: s.o.clusterName, Node: s.fence.node, Term: a.term, Unfenced: a.hold == nil,
			ToolVersion: s.toolVersion, Catalog: s.catalog,
			Members: func() []changelog.Dialer {
				var list []changelog.Dialer
				for _, url := range s.o.clientURLs {
					list = append(list, func(context.Context) (changelog.Source, error) { return s.dialStream(url) })
				}
				return list
			},
			Dir: s.dir("changes"), Interval: s.o.changes, Gap: s.want, Now: s.now,
		})
		if err != nil {
			klog.Errorf("changes are not kept: %v", err)
			return
		}
		s.show(func(v *shown) { v.recorder = rec })
		if err := rec.Run(a.ctx); err != nil {
			klog.Infof("recording of changes starts again: %v", err)
		}
		select {
		case <-a.ctx.Done():
		case <-time.After(recordAgain):
		}
	}
}

// dir is one of this cluster's own: sidecars of several clusters may share a data dir.
func (s *sidecar) dir(name string) string {
	return filepath.Join(s.o.dataDir, "etcd-backup-"+url.PathEscape(s.o.clusterName), name)
}

// want has a full backup taken at once.
func (s *sidecar) want(reason string) {
	s.mu.Lock()
	s.wanted = reason
	s.mu.Unlock()
	s.poke()
}

// takeWanted returns why a backup is wanted, and forgets it.
func (s *sidecar) takeWanted() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	reason := s.wanted
	s.wanted = ""
	return reason
}

// wantAgain remembers what a backup that failed was wanted for, if nothing newer is.
func (s *sidecar) wantAgain(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wanted = cmp.Or(s.wanted, reason)
}

// poke has the next turn begin at once.
func (s *sidecar) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
