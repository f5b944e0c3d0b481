package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// maintenance keeps a cluster that serves in shape, and remembers what that needs. Nothing of it is
// needed by another leader: what is under way is seen from the members themselves.
type maintenance struct {
	*shared
	nodes *nodes
	etcd  *etcdClients

	// failed are versions with which a member didn't get well. Only the loop touches them.
	failed []string

	mu sync.Mutex
	// compactedTo is the revision of the compaction since etcd last ran out of room.
	compactedTo int64
	compactedAt time.Time
	// rewritten are the nodes whose databases have been rewritten since then.
	rewritten []cluster.NodeID
	// rewriting is the node whose database is being rewritten.
	rewriting cluster.NodeID
	// failing is since when nodes fail to start a member.
	failing map[cluster.NodeID]time.Time
	// joins are the nodes that failed to join.
	joins map[cluster.NodeID]joinFailure
}

// observeLife fills in what this leadership remembers.
func (mt *maintenance) observe(o *model.Observation) {
	full := slices.ContainsFunc(o.Nodes, func(n cluster.NodeStatus) bool {
		return slices.ContainsFunc(n.Etcd.Alarms, func(a cluster.Alarm) bool { return a.Type == cluster.AlarmNoSpace })
	})
	answer := slices.ContainsFunc(o.Nodes, func(n cluster.NodeStatus) bool { return n.Etcd.Votes() })
	mt.mu.Lock()
	defer mt.mu.Unlock()
	if answer && !full {
		mt.compactedTo, mt.rewritten = 0, nil
	}
	o.StartFailing = map[cluster.NodeID]time.Duration{}
	for id, since := range mt.failing {
		o.StartFailing[id] = max(time.Since(since), 1)
	}
	o.JoinFailures = map[cluster.NodeID]model.JoinFailure{}
	for id, f := range mt.joins {
		o.JoinFailures[id] = model.JoinFailure{Times: f.times, For: time.Since(f.last), Why: f.why}
	}
	o.VersionsFailed, o.CompactedTo, o.CompactedAt, o.Rewritten = mt.failed, mt.compactedTo, mt.compactedAt, slices.Clone(mt.rewritten)
	for i := range o.Nodes {
		if o.Nodes[i].ID == mt.rewriting && o.Nodes[i].Busy == "" {
			o.Nodes[i].Busy = cluster.BusyDefragment // it was asked to, and its answer is older than that
		}
	}
}

// startAnew gives a node that has failed before its whole time again, when a member is added for it
// once more.
func (mt *maintenance) startAnew(id cluster.NodeID) {
	mt.mu.Lock()
	defer mt.mu.Unlock()
	if !mt.failing[id].IsZero() {
		mt.failing[id] = time.Now()
	}
}

// joinFailure is how often a node has failed to join, and when and why the last time.
type joinFailure struct {
	times int
	last  time.Time
	why   string
}

// noteJoin remembers that a node has failed to join. One that has joined begins anew.
func (mt *maintenance) noteJoin(id cluster.NodeID, failed bool, why string) {
	mt.mu.Lock()
	defer mt.mu.Unlock()
	if !failed {
		delete(mt.joins, id)
		return
	}
	if mt.joins == nil {
		mt.joins = map[cluster.NodeID]joinFailure{}
	}
	mt.joins[id] = joinFailure{times: mt.joins[id].times + 1, last: time.Now(), why: why}
}

// noteStart remembers since when a node fails to start a member.
func (mt *maintenance) noteStart(id cluster.NodeID, err error) {
	mt.mu.Lock()
	defer mt.mu.Unlock()
	switch {
	case err == nil:
		delete(mt.failing, id)
	case mt.failing == nil:
		mt.failing = map[cluster.NodeID]time.Time{id: time.Now()}
	case mt.failing[id].IsZero():
		mt.failing[id] = time.Now()
	}
}

// releaseWithin is how old the observation of healthy members may be when a node is told to give its volume up.
const releaseWithin = 5 * time.Second

// tend carries out what keeps a cluster that serves in shape.
func (mt *maintenance) tend(ctx context.Context, o *model.Observation, a model.Action) error {
	mt.nodes.changed = true
	switch a := a.(type) {
	case model.RestartMember:
		return mt.restartMember(ctx, o, a)
	case model.StopMember:
		return mt.nodes.quick(ctx, a.Node, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_StopMember{StopMember: &protosv1.StopMember{Reason: a.Reason}}})
	case model.ReleaseVolume:
		// The fence was written since the nodes were looked at, which takes as long as the store does.
		if age := time.Since(o.Now); age > releaseWithin {
			return fmt.Errorf("the nodes were looked at %s ago, and a volume is given up within %s only: it is decided again", age.Round(time.Millisecond), releaseWithin)
		}
		return mt.nodes.quick(ctx, a.Node, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_ReleaseVolume{
			ReleaseVolume: &protosv1.ReleaseVolume{Volume: a.Volume, Replacement: a.Replacement}}})
	case model.Defragment:
		mt.startDefragment(ctx, a.Node)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, quickAction)
	defer cancel()
	lead, _ := mt.etcd.speakers(o)
	if lead == nil {
		return errors.New("no healthy member to ask")
	}
	c, err := mt.etcd.dial(ctx, lead)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := mt.nodes.holdsLease(); err != nil {
		return err
	}
	switch a := a.(type) {
	case model.EnableDowngrade:
		return c.Downgrade(ctx, client.DowngradeEnable, a.Version)
	case model.CancelDowngrade:
		return c.Downgrade(ctx, client.DowngradeCancel, "")
	case model.Compact:
		if err := c.Compact(ctx, a.Revision, true); err != nil {
			return err
		}
		klog.Infof("compacted etcd's history up to revision %d", a.Revision)
		mt.mu.Lock()
		defer mt.mu.Unlock()
		mt.compactedTo, mt.compactedAt = a.Revision, time.Now()
		return nil
	case model.EndWrites:
		err := c.Raise(ctx, cluster.Alarm{Member: cluster.SupersededMember, Type: cluster.AlarmCorrupt})
		if err == nil {
			klog.Warningf("etcd takes no more writes: another cluster takes the place of this one")
		}
		return err
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
func (mt *maintenance) restartMember(ctx context.Context, o *model.Observation, a model.RestartMember) error {
	req := &protosv1.StartEtcd{State: wire.StateToProto(&a.State), Restart: true}
	if a.Settings != nil {
		req.Settings = &protosv1.Settings{Values: a.Settings}
	}
	if err := mt.nodes.quick(ctx, a.Node, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_StartEtcd{StartEtcd: req}}); err != nil {
		return err
	}
	if n := o.Node(a.Node); a.Why == model.RestartFallBack && n != nil && n.State != nil {
		mt.failed = append(mt.failed, n.State.EtcdVersion)
	}
	return nil
}

// startDefragment has a node rewrite its database beside the loop, which takes as long as it takes.
func (mt *maintenance) startDefragment(ctx context.Context, id cluster.NodeID) {
	mt.mu.Lock()
	defer mt.mu.Unlock()
	if mt.rewriting != "" {
		return
	}
	mt.rewriting = id
	mt.wg.Go(func() {
		_, err := mt.nodes.perform(ctx, id, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Defragment{Defragment: &protosv1.Defragment{}}}, mt.nodes.slowAction(), nil)
		if err != nil && ctx.Err() == nil {
			mt.said.Errorf("rewrite "+string(id), "the database of node %s could not be rewritten: %v", id, err)
			pause(ctx, 10*time.Second)
		}
		mt.mu.Lock()
		mt.rewriting = ""
		if err == nil && mt.compactedTo != 0 {
			mt.rewritten = append(mt.rewritten, id)
		}
		mt.mu.Unlock()
		mt.poke()
	})
}

// releaseSuperseded tells a node that is held that its cluster isn't superseded any more. Without that it doesn't start etcd, so that the
// leader of a version that doesn't know of superseded clusters can't have it started.
func (mt *maintenance) releaseSuperseded(ctx context.Context, n *cluster.NodeStatus) error {
	if n == nil || !n.Holding || n.Operation != string(cluster.SupersededOperation) {
		return nil
	}
	return mt.nodes.quick(ctx, n.ID, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Rollback{
		Rollback: &protosv1.Rollback{Operation: n.Operation}}})
}

func (mt *maintenance) startEtcd(ctx context.Context, o *model.Observation, a model.StartEtcd) error {
	if err := mt.releaseSuperseded(ctx, o.Node(a.Node)); err != nil {
		return err
	}
	req := &protosv1.StartEtcd{State: wire.StateToProto(&a.State), MayBeEmpty: a.MayBeEmpty, Restart: a.Restart}
	if a.MayBeEmpty && !a.State.NewCluster && o.Store.Error == "" && o.Store.SettingsError == "" { // what it had in an earlier membership may not be wanted any more
		req.Settings = &protosv1.Settings{Values: o.Store.Settings}
	}
	err := mt.nodes.quick(ctx, a.Node, &protosv1.PerformRequest{Action: &protosv1.PerformRequest_StartEtcd{StartEtcd: req}})
	mt.noteStart(a.Node, err)
	return err
}

// changeMembers carries out a change of the member list through a healthy member, the etcd leader's
// own if it is there.
func (mt *maintenance) changeMembers(ctx context.Context, o *model.Observation, a model.Action) error {
	ctx, cancel := context.WithTimeout(ctx, quickAction)
	defer cancel()
	lead, other := mt.etcd.speakers(o)
	if lead == nil {
		return errors.New("no healthy member to ask")
	}
	c, err := mt.etcd.dial(ctx, lead)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := mt.nodes.holdsLease(); err != nil {
		return err
	}
	mt.nodes.changed = true
	switch a := a.(type) {
	case model.AddLearner:
		m, err := c.AddLearner(ctx, a.PeerURLs)
		if err == nil {
			klog.Infof("added node %s as learner %s", a.Node, m.ID)
			mt.startAnew(a.Node)
		}
		return err
	case model.Promote:
		if err := c.Promote(ctx, a.Member); err != nil && !errors.Is(err, client.ErrNotCaughtUp) {
			return err
		} else if err != nil {
			pause(ctx, 500*time.Millisecond)
			return nil
		}
		mt.noteJoin(cluster.NodeID(a.Name), false, "")
		klog.Infof("member %s (%s) is a voter now", a.Name, a.Member)
		return nil
	case model.UpdateMember:
		return c.UpdatePeerURLs(ctx, a.Member, a.PeerURLs)
	case model.RemoveMember:
		if a.Member == lead.Etcd.MemberID && other != nil {
			if err := c.MoveLeader(ctx, other.Etcd.MemberID); err != nil {
				return err
			}
			if c, err = mt.etcd.dial(ctx, other); err != nil {
				return err
			}
			defer c.Close()
		}
		if err := c.Remove(ctx, a.Member); err != nil {
			return err
		}
		if a.Failed != "" {
			mt.noteJoin(a.Failed, true, a.Why)
		}
		klog.Infof("removed member %s (%s)", a.Name, a.Member)
		return nil
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (w *witness) pause(longest time.Duration) time.Duration {
	return min(witnessFirst<<min(w.fails-1, 10), longest)
}
