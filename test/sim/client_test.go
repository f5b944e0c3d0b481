package sim

import (
	"context"
	"crypto/tls"
	"errors"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	"github.com/etcd-manager/etcd-manager/pkg/manager"
)

// member is a process's connection to the etcd of a machine. It keeps to what etcd refuses and what it lets pass.
type member struct {
	p  *proc
	to *node
}

var errUnhealthy = errors.New("etcdserver: no leader")

func (p *proc) dial(endpoints []string, _ *tls.Config) (manager.Member, error) {
	to := p.n.w.node(cluster.NodeID(hostOf(endpoints[0])))
	if to == nil {
		return nil, errGone
	}
	return &member{p, to}, nil
}

// ask asks the machine's own etcd.
func (m *member) ask(ctx context.Context, what string, f func(w *world, n *node) error) error {
	return m.p.call(ctx, m.to, what, func() error {
		w := m.to.w
		w.mu.Lock()
		defer w.mu.Unlock()
		if m.to.etcd == nil || !m.to.runs(m.to.etcd.token) {
			return errGone
		}
		return f(w, m.to)
	})
}

// change has etcd's leader change the member list.
func (m *member) change(ctx context.Context, what string,
	f func(w *world, r *raft, members []cluster.Member) ([]cluster.Member, error)) error {
	return m.ask(ctx, what, func(w *world, n *node) error {
		r := w.raft(n.etcd.token)
		if !w.healthy(n) {
			return errUnhealthy
		}
		next, err := f(w, r, slices.Clone(w.lead(r).disk.dirs[r.token].members()))
		if err != nil || next == nil {
			return err
		}
		if !w.propose(r, entry{members: next}) {
			return errUnhealthy
		}
		w.did["members: "+what]++
		w.log("%s of %s: %d members", what, w.name("T", string(r.token)), len(next))
		if w.lead(r) != nil {
			w.replicate(r)
		}
		w.changedAll(r.token)
		return nil
	})
}

func (m *member) IsMember(ctx context.Context, id cluster.MemberID) error {
	return m.ask(ctx, "is member", func(_ *world, n *node) error {
		if n.dir().member != id {
			return errors.New("another member answers")
		}
		return nil
	})
}

func (m *member) Status(ctx context.Context) (s client.Status, err error) {
	err = m.ask(ctx, "status", func(w *world, n *node) error {
		st := w.etcdStatus(n)
		s = client.Status{Version: st.Version, MemberID: st.MemberID, Leader: st.LeaderID, Revision: st.Revision, Learner: st.Learner}
		return nil
	})
	return s, err
}

func (m *member) AddLearner(ctx context.Context, urls []string) (added cluster.Member, err error) {
	err = m.change(ctx, "add", func(w *world, r *raft, members []cluster.Member) ([]cluster.Member, error) {
		for _, x := range members {
			if slices.Equal(x.PeerURLs, urls) {
				added = x
				return nil, nil
			}
			if x.Learner {
				return nil, errors.New("etcdserver: too many learner members in cluster")
			}
		}
		added = cluster.Member{ID: memberID(r.token, urls[0], w.count()), PeerURLs: urls, Learner: true}
		return append(members, added), nil
	})
	return added, err
}

func (m *member) Promote(ctx context.Context, id cluster.MemberID) error {
	return m.change(ctx, "promote", func(w *world, r *raft, members []cluster.Member) ([]cluster.Member, error) {
		x := memberOf(members, id)
		switch {
		case x == nil:
			return nil, client.ErrNoMember
		case !x.Learner:
			return nil, nil
		case r.match[id] == 0 || r.match[id] < r.commit*9/10:
			return nil, client.ErrNotCaughtUp
		}
		x.Learner = false
		if w.started(r, members) < cluster.Quorum(voters(members)) {
			return nil, errUnhealthy
		}
		return members, nil
	})
}

// started is how many voters run and are reached by the leader.
func (w *world) started(r *raft, members []cluster.Member) int {
	n := 0
	for _, x := range w.nodes {
		if x.runs(r.token) && w.both(w.lead(r), x) {
			if m := memberOf(members, x.dir().member); m != nil && !m.Learner {
				n++
			}
		}
	}
	return n
}

func (m *member) Remove(ctx context.Context, id cluster.MemberID) error {
	return m.change(ctx, "remove", func(w *world, r *raft, members []cluster.Member) ([]cluster.Member, error) {
		x := memberOf(members, id)
		if x == nil {
			return nil, nil
		}
		learner := x.Learner
		next := slices.DeleteFunc(slices.Clone(members), func(m cluster.Member) bool { return m.ID == id })
		if !learner && (voters(next) == 0 || w.started(r, next) < cluster.Quorum(voters(next))) {
			return nil, errors.New("etcdserver: re-configuration failed due to not enough started members")
		}
		if !learner {
			w.truth.removes(r, members, id)
		}
		return next, nil
	})
}

func (m *member) UpdatePeerURLs(ctx context.Context, id cluster.MemberID, urls []string) error {
	return m.change(ctx, "update", func(_ *world, _ *raft, members []cluster.Member) ([]cluster.Member, error) {
		x := memberOf(members, id)
		if x == nil {
			return nil, client.ErrNoMember
		}
		x.PeerURLs = urls
		return members, nil
	})
}

func (m *member) MoveLeader(ctx context.Context, to cluster.MemberID) error {
	return m.ask(ctx, "move leader", func(w *world, n *node) error {
		r := w.raft(n.etcd.token)
		l := w.lead(r)
		for _, x := range w.nodes {
			if l != nil && x.runs(r.token) && x.dir().member == to && w.healthy(x) {
				w.bringUp(r, l, x)
				r.term++
				r.leader, r.proc = x, x.etcd
				w.propose(r, entry{})
				return nil
			}
		}
		return errUnhealthy
	})
}

func (m *member) Downgrade(context.Context, client.DowngradeAction, string) error {
	return errors.New("not simulated")
}
func (m *member) Compact(context.Context, int64, bool) error  { return nil }
func (m *member) Raise(context.Context, cluster.Alarm) error  { return nil }
func (m *member) Disarm(context.Context, cluster.Alarm) error { return nil }
func (m *member) Raw() *clientv3.Client                       { return nil }
func (m *member) Close() error                                { return nil }

func (m *member) Revision(ctx context.Context) (revision int64, id uint64, err error) {
	err = m.ask(ctx, "revision", func(w *world, n *node) error {
		if !w.healthy(n) {
			return errUnhealthy
		}
		r := w.raft(n.etcd.token)
		revision, id = w.lead(r).disk.dirs[r.token].revision(), uint64(memberID(r.token, "", 0))
		return nil
	})
	return
}

func (m *member) WatchAll(context.Context, int64) (*client.Changes, error) {
	return nil, errors.New("not simulated")
}
func (m *member) LeaseTTL(context.Context, int64) (int64, error) {
	return 0, errors.New("not simulated")
}
