package manager

import (
	"context"
	"sync"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/prune"
	"github.com/etcd-manager/etcd-manager/pkg/storecopy"
)

// StoreCopy is a second store to which the leader copies what a restore needs.
type StoreCopy struct {
	// Catalog is the copy, Name its URL.
	Catalog *catalog.Catalog
	Name    string
	// Retention says how long the copy keeps what it has, Rate how many bytes per second are read for it at most; 0 means no bound.
	Retention prune.Policy
	Rate      int64
}

// copies has the store copied while this node leads. Only the loop uses it.
type copies struct {
	*shared
	begun bool
}

// keep begins to copy once this leadership may write. It goes on then whatever becomes of the first store, until the leadership ends.
func (cs *copies) keep(ctx context.Context, mayWrite bool) {
	if cs.begun || !mayWrite || len(cs.m.cfg.Copies) == 0 {
		return
	}
	cs.begun = true
	var list []*storecopy.Copier
	for _, x := range cs.m.cfg.Copies {
		c, err := storecopy.New(storecopy.Config{From: cs.m.cfg.Catalog, FromName: cs.m.cfg.StoreName, To: x.Catalog, ToName: x.Name,
			ClusterName: cs.m.cfg.ClusterName, Node: cs.m.cfg.Self, Term: cs.term, Retention: x.Retention, Rate: x.Rate})
		if err != nil {
			klog.Errorf("nothing is copied to %s: %v", x.Name, err)
			continue
		}
		list = append(list, c)
	}
	cs.m.copiers.set(list)
	for _, c := range list {
		cs.wg.Go(func() {
			defer cs.m.copiers.set(nil)
			_ = c.Run(ctx) // it returns when the leadership ends, and never fails
		})
	}
}

// copiers are those of the leadership of the moment. All methods may be called concurrently.
type copiers struct {
	mu   sync.Mutex
	list []*storecopy.Copier
}

func (cs *copiers) set(list []*storecopy.Copier) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.list = list
}

func (cs *copiers) all() []*storecopy.Copier {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	return cs.list
}

// segment gives a segment to all copies.
func (cs *copiers) segment(i catalog.Incarnation, name catalog.SegmentName, data []byte) {
	for _, c := range cs.all() {
		c.Segment(i, name, data)
	}
}

// poke says that the store has something new.
func (cs *copiers) poke() {
	for _, c := range cs.all() {
		c.Poke()
	}
}

// reports are how the copies do, while this node leads.
func (cs *copiers) reports(copies []StoreCopy) []catalog.CopyReport {
	var list []catalog.CopyReport
	for _, c := range cs.all() {
		list = append(list, c.Status())
	}
	if list == nil { // this leadership may not write yet, but no series is missing
		for _, c := range copies {
			list = append(list, catalog.CopyReport{Name: c.Name})
		}
	}
	return list
}
