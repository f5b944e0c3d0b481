package manager

import (
	"context"
	"errors"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// life is what a leadership remembers of the cluster's upkeep. Nothing of it is needed by another leader: what is under way is seen from the
// members themselves.
type life struct {
	// failed are versions with which a member didn't get well.
	failed []string
	// compactedTo is the revision of the compaction since etcd last ran out of room.
	compactedTo int64
	compactedAt time.Time
	// rewritten are the nodes whose databases have been rewritten since then. All three are guarded by the leadership's mu.
	rewritten []cluster.NodeID
	// rewriting is the node whose database is being rewritten, guarded by the leadership's mu.
	rewriting cluster.NodeID
	// failing is since when nodes fail to start a member, guarded by the leadership's mu.
	failing map[cluster.NodeID]time.Time
	// joins are the nodes that failed to join, guarded by the leadership's mu.
	joins map[cluster.NodeID]joinFailure
	// reached says whether nodes that may join can be reached by the members.
	reached map[cluster.NodeID]reached
}

// readSettings reads what the operator has chosen of etcd's settings.
func (l *leadership) readSettings(ctx context.Context, obj catalog.Object) error {
	s := &l.store
	if !obj.Exists() {
		s.Settings, s.SettingsError = nil, ""
		return nil
	}
	got, _, err := l.m.cfg.Catalog.Settings(ctx)
	var bad *catalog.ObjectError
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		s.Settings, s.SettingsError = nil, ""
	case errors.As(err, &bad):
		s.Settings, s.SettingsError = nil, err.Error()
	case err != nil:
		return err
	default:
		s.Settings, s.SettingsError = got, ""
	}
	return nil
}

// observeLife fills in what this leadership remembers.
func (l *leadership) observeLife(o *model.Observation) {
	full := slices.ContainsFunc(o.Nodes, func(n cluster.NodeStatus) bool {
		return slices.ContainsFunc(n.Etcd.Alarms, func(a cluster.Alarm) bool { return a.Type == cluster.AlarmNoSpace })
	})
	answer := slices.ContainsFunc(o.Nodes, func(n cluster.NodeStatus) bool { return n.Etcd.Votes() })
	l.mu.Lock()
	defer l.mu.Unlock()
	if answer && !full {
		l.tending.compactedTo, l.tending.rewritten = 0, nil
	}
	o.StartFailing = map[cluster.NodeID]time.Duration{}
	for id, since := range l.tending.failing {
		o.StartFailing[id] = max(time.Since(since), 1)
	}
	o.JoinFailures = map[cluster.NodeID]model.JoinFailure{}
	for id, f := range l.tending.joins {
		o.JoinFailures[id] = model.JoinFailure{Times: f.times, For: time.Since(f.last), Why: f.why}
	}
	o.VersionsFailed, o.CompactedTo, o.CompactedAt, o.Rewritten = l.tending.failed, l.tending.compactedTo, l.tending.compactedAt, slices.Clone(l.tending.rewritten)
	for i := range o.Nodes {
		if o.Nodes[i].ID == l.tending.rewriting && o.Nodes[i].Busy == "" {
			o.Nodes[i].Busy = cluster.BusyDefragment // it was asked to, and its answer is older than that
		}
	}
}

// startAnew gives a node that has failed before its whole time again, when a member is added for it once more.
func (l *leadership) startAnew(id cluster.NodeID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.tending.failing[id].IsZero() {
		l.tending.failing[id] = time.Now()
	}
}

// joinFailure is how often a node has failed to join, and when and why the last time.
type joinFailure struct {
	times int
	last  time.Time
	why   string
}

// noteJoin remembers that a node has failed to join. One that has joined begins anew.
func (l *leadership) noteJoin(id cluster.NodeID, failed bool, why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !failed {
		delete(l.tending.joins, id)
		return
	}
	if l.tending.joins == nil {
		l.tending.joins = map[cluster.NodeID]joinFailure{}
	}
	l.tending.joins[id] = joinFailure{times: l.tending.joins[id].times + 1, last: time.Now(), why: why}
}

// noteStart remembers since when a node fails to start a member.
func (l *leadership) noteStart(id cluster.NodeID, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		delete(l.tending.failing, id)
	case l.tending.failing == nil:
		l.tending.failing = map[cluster.NodeID]time.Time{id: time.Now()}
	case l.tending.failing[id].IsZero():
		l.tending.failing[id] = time.Now()
	}
}

// tend carries out what keeps a cluster that serves in shape.
func (l *leadership) tend(ctx context.Context, o *model.Observation, a model.Action) error {
	l.changed = true
	switch a := a.(type) {
	case model.RestartMember:
		return l.restartMember(ctx, o, a)
	case model.StopMember:
		return l.quick(ctx, a.Node, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_StopMember{StopMember: &protosv1.StopMember{Reason: a.Reason}}})
	case model.Defragment:
		l.startDefragment(ctx, a.Node)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, quickAction)
	defer cancel()
	lead, _ := l.speakers(o)
	if lead == nil {
		return errors.New("no healthy member to ask")
	}
	c, err := l.dial(ctx, lead)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := l.holdsLease(); err != nil {
		return err
	}
	switch a := a.(type) {
	case model.EnableDowngrade:
		return c.Downgrade(ctx, etcd.DowngradeEnable, a.Version)
	case model.CancelDowngrade:
		return c.Downgrade(ctx, etcd.DowngradeCancel, "")
	case model.Compact:
		if err := c.Compact(ctx, a.Revision, true); err != nil {
			return err
		}
		klog.Infof("compacted etcd's history up to revision %d", a.Revision)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.tending.compactedTo, l.tending.compactedAt = a.Revision, time.Now()
		return nil
	case model.Disarm:
		if err := c.Disarm(ctx, a.Alarm); err != nil {
			return err
		}
		klog.Infof("took back etcd's alarm %s of member %s", a.Alarm.Type, a.Alarm.Member)
		return nil
	}
	return nil
}

// restartMember has a node restart its etcd in another version or with other settings.
func (l *leadership) restartMember(ctx context.Context, o *model.Observation, a model.RestartMember) error {
	req := &protosv1.StartEtcd{State: wire.StateToProto(&a.State), Restart: true}
	if a.Settings != nil {
		req.Settings = &protosv1.Settings{Values: a.Settings}
	}
	if err := l.quick(ctx, a.Node, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_StartEtcd{StartEtcd: req}}); err != nil {
		return err
	}
	if n := o.Node(a.Node); a.Why == model.RestartFallBack && n != nil && n.State != nil {
		l.tending.failed = append(l.tending.failed, n.State.EtcdVersion)
	}
	return nil
}

// startDefragment has a node rewrite its database beside the loop, which takes as long as it takes.
func (l *leadership) startDefragment(ctx context.Context, id cluster.NodeID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tending.rewriting != "" {
		return
	}
	l.tending.rewriting = id
	l.wg.Go(func() {
		_, err := l.perform(ctx, id, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Defragment{Defragment: &protosv1.Defragment{}}}, l.slowAction(), nil)
		if err != nil && ctx.Err() == nil {
			l.said.Errorf("rewrite "+string(id), "the database of node %s could not be rewritten: %v", id, err)
			pause(ctx, 10*time.Second)
		}
		l.mu.Lock()
		l.tending.rewriting = ""
		if err == nil && l.tending.compactedTo != 0 {
			l.tending.rewritten = append(l.tending.rewritten, id)
		}
		l.mu.Unlock()
		l.poke()
	})
}
