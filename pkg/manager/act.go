package manager

import (
	"context"
	"errors"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// act carries out one action.
func (l *leadership) act(ctx context.Context, o *model.Observation, spec *cluster.Spec, a model.Action) error {
	switch a.Fence() {
	case model.FenceWritten:
		if err := l.fence(ctx); err != nil {
			return err
		}
	case model.FenceCommit:
		if err := l.fenceCommit(ctx); err != nil {
			return err
		}
	}
	switch a := a.(type) {
	case model.TakeTerm:
		return l.takeTerm(ctx)
	case model.CreateMarker:
		return l.createMarker(ctx, spec, a.Token, a.Founders, a.Version)
	case model.ReplaceMarker:
		return l.replaceMarker(ctx, spec, a.Token, a.Founders, a.Version)
	case model.MarkFormed:
		return l.markFormed(ctx, spec, a)
	case model.StartEtcd:
		return l.maintenance.startEtcd(ctx, o, a)
	case model.StartAll:
		// One after the other: each waits until it answers its peers, so that none waits for another one's open but silent port.
		var errs []error
		for _, s := range a.Starts {
			errs = append(errs, l.maintenance.startEtcd(ctx, o, s))
		}
		return errors.Join(errs...)
	case model.SetAside:
		return l.nodes.quick(ctx, a.Node, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_SetAside{
			SetAside: &protosv1.SetAside{Token: string(a.Token), Reason: a.Reason}}})
	case model.TakeBackup:
		l.backups.start(ctx, spec, a)
		return nil
	case model.AddLearner, model.Promote, model.UpdateMember, model.RemoveMember:
		return l.maintenance.changeMembers(ctx, o, a)
	case model.RestartMember, model.StopMember, model.ReleaseVolume, model.EnableDowngrade, model.CancelDowngrade, model.Compact, model.Defragment, model.Disarm:
		return l.maintenance.tend(ctx, o, a)
	}
	return l.actRestore(ctx, o, spec, a)
}

// takeTerm writes the term into the store.
func (l *leadership) takeTerm(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, quickAction)
	defer cancel()
	take := l.m.cfg.Catalog.TakeTerm
	if fences, _ := l.m.probed(); !fences {
		take = l.m.cfg.Catalog.TakeTermUnfenced
	}
	h, err := take(ctx, l.term, l.m.cfg.Self, l.m.cfg.Instance)
	if err != nil {
		return err
	}
	l.hold, l.beat, l.wrote = h, time.Now(), true
	l.store.Holder = model.Holder{Term: l.term, Node: l.m.cfg.Self}
	return nil
}

func (l *leadership) newMarker(phase catalog.Phase, spec *cluster.Spec, token cluster.Token, founders []cluster.EtcdNode, version string) catalog.Marker {
	m := catalog.Marker{Time: time.Now(), Phase: phase, Token: token, Founders: founders, Spec: cluster.Spec{MemberCount: len(founders), EtcdVersion: version}, Term: l.term, Leader: l.m.cfg.Self}
	if spec != nil {
		m.Spec.MemberCount = spec.MemberCount
	}
	return m
}

func (l *leadership) createMarker(ctx context.Context, spec *cluster.Spec, token cluster.Token, founders []cluster.EtcdNode, version string) error {
	m := l.newMarker(catalog.PhaseForming, spec, token, founders, version)
	ver, err := l.m.cfg.Catalog.CreateMarker(ctx, m)
	if err != nil {
		return err
	}
	l.setMarker(m, ver)
	return nil
}

func (l *leadership) replaceMarker(ctx context.Context, spec *cluster.Spec, token cluster.Token, founders []cluster.EtcdNode, version string) error {
	m := l.newMarker(catalog.PhaseForming, spec, token, founders, version)
	ver, err := l.m.cfg.Catalog.ReplaceMarker(ctx, m, l.store.markerVer)
	if err != nil {
		return err
	}
	l.setMarker(m, ver)
	return nil
}

// markFormed ends forming. What the store answered is taken over at once, without reading it again.
func (l *leadership) markFormed(ctx context.Context, spec *cluster.Spec, a model.MarkFormed) error {
	if a.Create {
		m := l.newMarker(catalog.PhaseFormed, spec, a.Token, a.Founders, a.Version)
		ver, err := l.m.cfg.Catalog.CreateMarker(ctx, m)
		if err != nil {
			return err
		}
		l.setMarker(m, ver)
		return nil
	}
	m := l.store.marker
	m.Phase, m.Term, m.Leader = catalog.PhaseFormed, l.term, l.m.cfg.Self
	ver, err := l.m.cfg.Catalog.ReplaceMarker(ctx, m, l.store.markerVer)
	if err != nil {
		return err
	}
	l.setMarker(m, ver)
	klog.Infof("the etcd cluster %s is formed", m.Token)
	if l.m.cfg.Created != nil {
		l.m.cfg.Created()
	}
	return nil
}

func (l *leadership) setMarker(m catalog.Marker, ver string) {
	l.store.marker, l.store.markerVer = m, ver
	l.store.Marker = model.Marker{Phase: model.MarkerPhase(m.Phase), Token: m.Token, Founders: m.Founders, Version: m.Spec.EtcdVersion}
}
