package manager

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// ending ends a cluster whose place another one takes. How far it is stands in etcd, in the nodes' journals and in the store, so any leader
// goes on with it. Only the loop uses it.
type ending struct {
	*shared
	tries   attempts
	nodes   *nodes
	store   *storeView
	changes *changes
	backups *backups

	// record and ended are what was last read, by the stamps of their objects; problem says why the record can't be used.
	record       catalog.Superseded
	ended        catalog.Ended
	stamp, known string
	problem      string
}

// read reads the two objects if the listing shows other ones than before.
func (e *ending) read(ctx context.Context, list catalog.ControlListing) error {
	if err := e.readRecord(ctx, list.Superseded); err != nil {
		return err
	}
	switch {
	case e.stamp == "" || !list.Ended.Exists():
		e.ended, e.known = catalog.Ended{}, ""
		return nil
	case e.known == list.Ended.Stamp:
		return nil
	}
	got, err := e.m.cfg.Catalog.Ended(ctx)
	switch {
	case errors.Is(err, catalog.ErrNotFound), err != nil && objectProblem(err):
		got = catalog.Ended{} // it is written again
	case err != nil:
		return err
	}
	e.ended, e.known = got, list.Ended.Stamp
	return nil
}

func (e *ending) readRecord(ctx context.Context, obj catalog.Object) error {
	if obj.Stamp == e.stamp && e.problem == "" {
		return nil
	}
	var got catalog.Superseded
	var err error
	if obj.Exists() {
		got, err = e.m.cfg.Catalog.Superseded(ctx)
	}
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		err, obj = nil, catalog.Object{}
	case err != nil && !objectProblem(err):
		return err
	}
	if obj.Stamp != e.stamp { // what went wrong under an earlier record says nothing of this one
		e.tries.forget(model.EndWrites{}, model.StopSuperseded{}, model.StopSuperseded{Unstored: true})
	}
	e.store.note("superseded", err)
	e.record, e.stamp, e.problem = got, obj.Stamp, ""
	if err != nil {
		e.problem = err.Error()
	}
	return nil
}

// observe fills in whether the cluster is superseded.
func (e *ending) observe(s *model.Store) {
	s.SupersededError = e.problem
	if e.stamp == "" || e.problem != "" {
		return
	}
	s.Superseded = &model.Superseded{By: e.record.By}
	if e.ended.Of.Equal(e.record.Time) {
		s.Superseded.Reported = slices.Sorted(maps.Keys(e.ended.Stopped))
	}
}

// storeWithin bounds how long the last changes may take to be stored, when nobody is served any more.
const storeWithin = 20 * time.Second

// storeRest brings what the archive lacks into the store. It returns the last revision.
func (e *ending) storeRest(ctx context.Context, o *model.Observation, spec *cluster.Spec) (int64, error) {
	token, _ := servingURLs(o, e.m.cfg.Peers.Addresses)
	fctx, cancel := context.WithTimeout(ctx, storeWithin)
	defer cancel()
	revision, err := e.changes.flush(fctx, token)
	if err != nil {
		return 0, fmt.Errorf("store the last changes: %w", err)
	}
	if e.m.cfg.Changes.Interval > 0 {
		return revision, nil
	}
	for _, n := range o.Nodes {
		if n.Etcd.Votes() {
			if _, err := e.backups.take(ctx, spec, n.ID, "superseded"); err != nil {
				return 0, fmt.Errorf("back the last state up: %w", err)
			}
			break
		}
	}
	return revision, nil
}

// stop stores the last changes and stops etcd on the nodes. What the archive has is written down before, for a next leader.
func (e *ending) stop(ctx context.Context, o *model.Observation, spec *cluster.Spec, a model.StopSuperseded) error {
	var stored int64
	if !a.Unstored {
		var err error
		if stored, err = e.storeRest(ctx, o, spec); err != nil {
			return err
		}
	}
	revision := stored
	members := map[string]bool{}
	for _, n := range o.Nodes {
		revision = max(revision, n.Etcd.Revision)
		if n.State == nil {
			continue
		}
		for _, m := range n.State.Nodes {
			members[m.Name] = true
		}
		for _, m := range n.Etcd.Members {
			if m.Name != "" && !m.Learner {
				members[m.Name] = true
			}
		}
	}
	err := e.note(ctx, func(x *catalog.Ended) {
		x.Revision, x.Stored = max(x.Revision, revision), max(x.Stored, stored)
		if x.Members == nil {
			x.Members = slices.Sorted(maps.Keys(members))
		}
	})
	if err != nil {
		return err
	}
	klog.Warningf("this cluster is superseded by %q: etcd is stopped on %v at revision %d; the archive is complete up to revision %d",
		cluster.Shown(e.record.By, 100), a.Nodes, revision, stored)
	return each(a.Nodes, func(id cluster.NodeID) error {
		return e.nodes.urgent(ctx, id, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Stop{
			Stop: &protosv1.Stop{Operation: string(cluster.SupersededOperation)}}})
	})
}

// report writes into the store that etcd is stopped on the nodes.
func (e *ending) report(ctx context.Context, o *model.Observation, a model.ReportStopped) error {
	return e.note(ctx, func(x *catalog.Ended) {
		for _, id := range a.Nodes {
			if n := o.Node(id); n != nil {
				x.Stopped[id] = catalog.StoppedNode{Time: time.Now().UTC(), Member: catalog.HexID(n.Etcd.MemberID), Revision: n.Etcd.Revision}
			}
		}
	})
}

// note changes what the store says of the end.
func (e *ending) note(ctx context.Context, change func(*catalog.Ended)) error {
	ctx, cancel := context.WithTimeout(ctx, quickAction)
	defer cancel()
	var last catalog.Ended
	err := e.m.cfg.Catalog.NoteEnded(ctx, e.record.Time, func(x *catalog.Ended) {
		x.Term, x.Leader = e.term, e.m.cfg.Self
		change(x)
		last = *x
	})
	if err == nil {
		e.ended = last
	}
	return err
}
