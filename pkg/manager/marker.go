package manager

import (
	"context"
	"errors"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// marker is the object that says which cluster there is, as it was last read or written. Only the
// loop uses it.
type marker struct {
	*shared
	store *storeView

	stored  catalog.Marker
	version string // empty if there is none
	seen    model.Marker
}

func (mk *marker) newMarker(phase catalog.Phase, spec *cluster.Spec, token cluster.Token, founders []cluster.EtcdNode, version string) catalog.Marker {
	m := catalog.Marker{Time: time.Now(), Phase: phase, Token: token, Founders: founders, Spec: cluster.Spec{MemberCount: len(founders), EtcdVersion: version}, Term: mk.term, Leader: mk.m.cfg.Self}
	if spec != nil {
		m.Spec.MemberCount = spec.MemberCount
	}
	return m
}

func (mk *marker) createMarker(ctx context.Context, spec *cluster.Spec, token cluster.Token, founders []cluster.EtcdNode, version string) error {
	m := mk.newMarker(catalog.PhaseForming, spec, token, founders, version)
	return mk.writeNew(ctx, m)
}

// writeNew creates the marker, which isn't there.
func (mk *marker) writeNew(ctx context.Context, m catalog.Marker) error {
	ver, err := mk.m.cfg.Catalog.CreateMarker(ctx, m)
	if err != nil {
		return err
	}
	mk.setMarker(m, ver)
	return nil
}

func (mk *marker) replaceMarker(ctx context.Context, spec *cluster.Spec, token cluster.Token, founders []cluster.EtcdNode, version string) error {
	m := mk.newMarker(catalog.PhaseForming, spec, token, founders, version)
	ver, err := mk.m.cfg.Catalog.ReplaceMarker(ctx, m, mk.version)
	if err != nil {
		return err
	}
	mk.setMarker(m, ver)
	return nil
}

// markFormed ends forming. What the store answered is taken over at once, without reading it again.
func (mk *marker) markFormed(ctx context.Context, spec *cluster.Spec, a model.MarkFormed) error {
	if a.Create {
		m := mk.newMarker(catalog.PhaseFormed, spec, a.Token, a.Founders, a.Version)
		ver, err := mk.m.cfg.Catalog.CreateMarker(ctx, m)
		if err != nil {
			return err
		}
		mk.setMarker(m, ver)
		return nil
	}
	m := mk.stored
	m.Phase, m.Term, m.Leader = catalog.PhaseFormed, mk.term, mk.m.cfg.Self
	ver, err := mk.m.cfg.Catalog.ReplaceMarker(ctx, m, mk.version)
	if err != nil {
		return err
	}
	mk.setMarker(m, ver)
	klog.Infof("the etcd cluster %s is formed", m.Token)
	if mk.m.cfg.Created != nil {
		mk.m.cfg.Created()
	}
	return nil
}

func (mk *marker) setMarker(m catalog.Marker, ver string) {
	mk.stored, mk.version = m, ver
	mk.seen = model.Marker{Phase: model.MarkerPhase(m.Phase), Token: m.Token, Founders: m.Founders, Version: m.Spec.EtcdVersion}
}

// markAs creates or replaces the marker, and leaves its time as it was.
func (mk *marker) markAs(ctx context.Context, m catalog.Marker) error {
	if !mk.stored.Time.IsZero() {
		m.Time = mk.stored.Time
	}
	var ver string
	var err error
	if mk.version == "" {
		ver, err = mk.m.cfg.Catalog.CreateMarker(ctx, m)
	} else {
		ver, err = mk.m.cfg.Catalog.ReplaceMarker(ctx, m, mk.version)
	}
	if err != nil {
		return err
	}
	mk.setMarker(m, ver)
	return nil
}

// readMarker takes a marker that can't be read for one that says formed: it is there, so nothing
// may be formed. What was known of it stays.
func (mk *marker) readMarker(ctx context.Context) error {
	m, ver, err := mk.m.cfg.Catalog.Marker(ctx)
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		mk.stored, mk.version, mk.seen = catalog.Marker{}, "", model.Marker{}
	case err != nil && objectProblem(err):
		mk.store.note("marker", err)
		mk.version = ver
		if mk.seen.Phase == model.MarkerAbsent {
			mk.seen.Phase = model.MarkerFormed
		}
		return nil
	case err != nil:
		return err
	default:
		mk.stored, mk.version = m, ver
		mk.seen = model.Marker{Phase: model.MarkerPhase(m.Phase), Token: m.Token, Founders: m.Founders, Version: m.Spec.EtcdVersion}
	}
	mk.store.note("marker", nil)
	return nil
}
