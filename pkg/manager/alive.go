package manager

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// askMembers finds out which members serve although their manager is silent: a manager that died leaves its etcd running.
func (ob *observer) askMembers(ctx context.Context, o *model.Observation) {
	defer ob.countAlive(o)
	if len(o.Missing) == 0 {
		return
	}
	speaker, _ := ob.etcd.speakers(o)
	if speaker == nil {
		return
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, m := range speaker.Etcd.Members {
		if m.Name == "" || len(m.ClientURLs) == 0 || !slices.ContainsFunc(o.Missing, func(x model.MissingNode) bool { return string(x.ID) == m.Name }) {
			continue
		}
		wg.Go(func() {
			c, err := ob.etcd.dialURLs(m.ClientURLs, ob.m.cfg.Peers.Addresses(cluster.NodeID(m.Name)), ob.etcd.one)
			if err != nil {
				return
			}
			defer c.Close()
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			if st, err := c.Status(ctx); err != nil || st.MemberID != m.ID {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			o.Alive = append(o.Alive, m.ID)
		})
	}
	wg.Wait()
	slices.Sort(o.Alive)
}

// countAlive remembers when members last served while their manager was silent: from then on it counts that they don't.
func (ob *observer) countAlive(o *model.Observation) {
	now := time.Now()
	missing := map[cluster.NodeID]bool{}
	speaker, _ := ob.etcd.speakers(o)
	for i := range o.Missing {
		x := &o.Missing[i]
		missing[x.ID] = true
		alive := speaker != nil && slices.ContainsFunc(speaker.Etcd.Members, func(m cluster.Member) bool {
			return m.Name == string(x.ID) && slices.Contains(o.Alive, m.ID)
		})
		if alive {
			ob.lastAlive[x.ID] = now
		} else if at, ok := ob.lastAlive[x.ID]; ok {
			x.EtcdFor = max(now.Sub(at), 1)
		}
	}
	for id := range ob.lastAlive {
		if !missing[id] {
			delete(ob.lastAlive, id)
		}
	}
}
