package peer

import (
	"context"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

const (
	// sourceTimeout bounds one call of a source.
	sourceTimeout = 10 * time.Second
	// followerShare is how many times longer a manager waits that follows a leader: the leader tells it whom it has found.
	followerShare = 10
)

// poll asks a source again and again, and publishes the own endpoints in it.
func (p *Peers) poll(ctx context.Context, s Source) {
	var published []string // by us, as far as we know
	var publishedAt time.Time
	var trouble string
	backoff := p.cfg.PollFast
	for {
		p.mu.Lock()
		own, republish := slices.Clone(p.self.Endpoints), p.publishCh
		p.mu.Unlock()

		err := error(nil)
		if r, ok := s.(refresher); ok && time.Since(publishedAt) >= r.Refresh() {
			published = nil
		}
		if !slices.Equal(published, own) {
			if err = p.call(ctx, func(ctx context.Context) error { return s.Publish(ctx, own) }); err == nil {
				published, publishedAt = own, time.Now()
			}
		}
		var found map[cluster.NodeID][]string
		findErr := p.call(ctx, func(ctx context.Context) (err error) {
			found, err = s.Find(ctx)
			return err
		})
		if ctx.Err() != nil {
			return
		}
		p.found(s.Name(), found, findErr == nil)
		if findErr == nil && !slices.Equal(found[p.cfg.Self.ID], own) {
			published = nil // someone has removed or replaced it
		}
		if err == nil {
			err = findErr
		}
		trouble = p.logSource(s, err, trouble)

		var again bool
		if backoff, again = p.waitPoll(ctx, s, backoff, republish); !again {
			return
		}
	}
}

func (p *Peers) call(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, sourceTimeout)
	defer cancel()
	return f(ctx)
}

// logSource logs an error when it appears or changes, and when it is gone.
func (p *Peers) logSource(s Source, err error, before string) string {
	var now string
	if err != nil {
		now = err.Error()
	}
	switch {
	case now == before:
	case now == "":
		p.said.Infof("works "+s.Name(), "Discovery from %s works again", s.Name())
	default: // the text may be another one each time
		p.said.Warningf("discovery "+s.Name(), "Discovery from %s: %s (managers that are known already stay connected; it is tried again)", s.Name(), now)
	}
	return now
}

// waitPoll returns when the source is to be polled again, with the next backoff, or with false when the context has ended.
func (p *Peers) waitPoll(ctx context.Context, s Source, backoff time.Duration, republish <-chan struct{}) (time.Duration, bool) {
	polled := time.Now()
	spread := float64(p.rand.jitter(time.Hour)) / float64(time.Hour) // the same for the whole wait
	next := min(backoff*3/2, p.cfg.PollSlow)
	for {
		changed := p.Changed()
		delay := p.pollDelay(s, backoff)
		if complete, _ := p.complete(); complete {
			backoff, next = p.cfg.PollFast, p.cfg.PollFast // for when one is lost
		}
		timer := time.NewTimer(time.Until(polled.Add(time.Duration(float64(delay) * spread))))
		select {
		case <-ctx.Done():
			timer.Stop()
			return 0, false
		case <-republish:
			timer.Stop()
			return next, true
		case <-timer.C:
			return next, true
		case <-changed:
			timer.Stop()
		}
	}
}

// pollDelay returns the time between two polls of the source as things stand.
func (p *Peers) pollDelay(s Source, backoff time.Duration) time.Duration {
	if i, ok := s.(intervaler); ok {
		return i.Interval()
	}
	complete, leader := p.complete()
	switch {
	case !complete:
		return backoff
	case leader != "" && leader != p.cfg.Self.ID:
		return followerShare * p.cfg.PollSlow
	default:
		return p.cfg.PollSlow
	}
}

// complete tells whether as many managers as wanted are connected, and who leads.
func (p *Peers) complete() (bool, cluster.NodeID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	count := 1
	for _, n := range p.nodes {
		if n.connected {
			count++
		}
	}
	return p.wanted > 0 && count >= p.wanted, p.leader
}

// found takes in what a source has found. If all is true, nodes that aren't named aren't there.
func (p *Peers) found(source string, found map[cluster.NodeID][]string, all bool) {
	changed := false
	p.mu.Lock()
	for id, endpoints := range found {
		endpoints = slices.DeleteFunc(slices.Clone(endpoints), func(e string) bool {
			err := checkEndpoint(e)
			if err != nil {
				klog.V(2).Infof("Discovery from %s: node %s: %v", source, id, err)
			}
			return err != nil
		})
		if id == p.cfg.Self.ID {
			p.probe(endpoints)
			continue
		}
		if id == "" || len(endpoints) == 0 {
			continue
		}
		n, fresh := p.ensure(id)
		if n == nil {
			continue
		}
		if slices.Equal(n.found[source], endpoints) {
			continue
		}
		n.found[source] = endpoints
		n.link.setEndpoints(n.endpoints(p.view.infos[id]))
		if fresh {
			changed = true
			p.startLink(n.link)
		}
	}
	for id, n := range p.nodes {
		if _, ok := found[id]; ok || !all || n.found[source] == nil {
			continue
		}
		delete(n.found, source)
		if i, heard := p.view.infos[id]; heard && (!i.gone() || n.connected) || len(n.found) > 0 {
			n.link.setEndpoints(n.endpoints(p.view.infos[id]))
			continue
		}
		delete(p.nodes, id)
		n.link.close()
		changed = true
	}
	if changed {
		p.notify()
	}
	p.mu.Unlock()
	if changed {
		p.electorate()
	}
}

// probe finds out whether another process answers as our node at endpoints that aren't ours as far as we know. mu is held.
func (p *Peers) probe(endpoints []string) {
	for _, e := range endpoints {
		if p.probed[e] || slices.Contains(p.self.Endpoints, e) {
			continue
		}
		l, err := newLink(p, p.cfg.Self.ID, []string{e})
		if err != nil {
			p.said.Warningf("link to "+e, "%v", err)
			return
		}
		p.probed[e] = true
		ok := p.spawn(func(ctx context.Context) {
			defer l.close()
			instance, err := l.hello(ctx)
			if err == nil && instance == p.cfg.Instance {
				return // an address of our own
			}
			if err == nil {
				p.selfRival(instance)
			}
			p.mu.Lock()
			delete(p.probed, e) // it may be different the next time
			p.mu.Unlock()
		})
		if !ok {
			delete(p.probed, e)
			l.close()
		}
	}
}
