package manager

import (
	"context"
	"errors"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// act carries out one action.
func (l *leadership) act(ctx context.Context, o *model.Observation, spec *cluster.Spec, a model.Action) error {
	switch a.Fence() {
	case model.FenceWritten:
		if err := l.record.fence(ctx); err != nil {
			return err
		}
	case model.FenceCommit:
		if err := l.record.fenceCommit(ctx, l.operations.committing()); err != nil {
			return err
		}
	}
	switch a := a.(type) {
	case model.TakeTerm:
		return l.record.takeTerm(ctx)
	case model.CreateMarker:
		return l.marker.createMarker(ctx, spec, a.Token, a.Founders, a.Version)
	case model.ReplaceMarker:
		return l.marker.replaceMarker(ctx, spec, a.Token, a.Founders, a.Version)
	case model.MarkFormed:
		return l.marker.markFormed(ctx, spec, a)
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
			SetAside: &protosv1.SetAside{Token: string(a.Token), Reason: a.Reason, NeverServed: a.NeverServed}}})
	case model.TakeBackup:
		l.backups.start(ctx, spec, a)
		return nil
	case model.StopSuperseded:
		return l.ending.stop(ctx, o, spec, a)
	case model.ReportStopped:
		return l.ending.report(ctx, o, a)
	case model.PutBack:
		return l.putBacks.start(ctx, o, a)
	case model.AddLearner, model.Promote, model.UpdateMember, model.RemoveMember:
		return l.maintenance.changeMembers(ctx, o, a)
	case model.RestartMember, model.StopMember, model.ReleaseVolume, model.EnableDowngrade, model.CancelDowngrade, model.Compact, model.Defragment, model.Disarm, model.EndWrites:
		return l.maintenance.tend(ctx, o, a)
	}
	return l.restorer.act(ctx, o, spec, a)
}
