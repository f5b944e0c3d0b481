package node

import (
	"context"
	"errors"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/datadir"
)

// How often etcd is asked how it is: often while it comes up, seldom once it is well. The leader asks anew before it acts.
const (
	probeStarting = 50 * time.Millisecond
	probeWell     = 10 * time.Second
	probeTimeout  = 2 * time.Second
)

// watchHealth looks at etcd until ctx ends and wakes the leader when something changed.
func (sv *supervisor) watchHealth(ctx context.Context) {
	for {
		sv.probe(ctx, 0)
		changed, _ := sv.changes.next()
		sv.mu.Lock()
		sv.looked = time.Now()
		wait := probeWell
		if sv.proc != nil && (!sv.health.Healthy || sv.health.Learner) {
			switch bad := time.Since(sv.badSince); {
			case bad < 10*time.Second:
				wait = probeStarting
			case bad < time.Minute:
				wait = 500 * time.Millisecond
			default:
				wait = 2 * time.Second
			}
		}
		sv.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-changed: // a process was started or ended
		case <-time.After(wait):
		}
	}
}

// probe asks etcd for its status unless the last answer is younger than fresh.
func (sv *supervisor) probe(ctx context.Context, fresh time.Duration) {
	sv.probeMu.Lock()
	defer sv.probeMu.Unlock()
	sv.mu.Lock()
	c, p, young := sv.client, sv.proc, time.Since(sv.probed) < fresh
	sv.mu.Unlock()
	if c == nil || young {
		return
	}
	sv.records.noteData()
	s := ask(ctx, c)
	if ctx.Err() != nil {
		return
	}
	if s.Denied && s.Revision == 0 {
		s.Revision = sv.revisionOnDisk(ctx)
	}
	sv.mu.Lock()
	same := sv.proc == p
	sv.mu.Unlock()
	if same && s.Healthy {
		sv.records.noteServes() // before the leader hears of it; mu is never held for it
	}
	sv.mu.Lock()
	defer sv.mu.Unlock()
	if sv.proc != p {
		return
	}
	if sv.answeredAt.IsZero() && (s.MemberID != 0 || s.Denied) {
		sv.answeredAt = time.Now()
	}
	before := sv.health
	sv.health, sv.probed = s, time.Now()
	switch {
	case s.Healthy:
		if !before.Healthy && !s.Denied {
			sv.said.Infof("healthy", "etcd is healthy (member %s, revision %d, version %s)", s.MemberID, s.Revision, s.Version)
		}
		sv.badSince, sv.restarts = time.Time{}, 0
		sv.peeked = peeked{} // etcd goes on from here: what is read of it now says nothing of a later time
	case sv.badSince.IsZero():
		sv.badSince = time.Now()
		sv.said.Warningf("unhealthy", "etcd is not healthy: %s", s.Error)
	}
	if s.Denied && !before.Denied {
		sv.said.Warningf("denied", "etcd refuses the manager: %s", s.Error)
	}
	if s.Healthy != before.Healthy || s.Denied != before.Denied || s.LeaderID != before.LeaderID || s.MemberID != before.MemberID || s.Learner != before.Learner ||
		s.Version != before.Version || s.ClusterVersion != before.ClusterVersion || s.StorageVersion != before.StorageVersion || s.DowngradeTarget != before.DowngradeTarget ||
		!slices.Equal(s.Alarms, before.Alarms) || !slices.EqualFunc(s.Members, before.Members, sameMember) || s.Learner && s.AppliedIndex != before.AppliedIndex {
		sv.changes.note()
	}
}

func sameMember(a, b cluster.Member) bool {
	return a.ID == b.ID && a.Name == b.Name && a.Learner == b.Learner && slices.Equal(a.PeerURLs, b.PeerURLs)
}

// peeked is what was read from the data of an etcd that isn't healthy, and when.
type peeked struct {
	token cluster.Token
	at    time.Time
	found datadir.Newest
}

// When the data are looked at in place of etcd, and how often.
const (
	peekAfter = 5 * time.Second
	peekEvery = 10 * time.Second
)

// watchData reads from the data what an etcd without a quorum doesn't tell: which of several survivors is the newest. Nothing waits for
// it, since a log takes minutes to read from a slow disk.
func (sv *supervisor) watchData(ctx context.Context) {
	for sleep(ctx, time.Second) {
		token := sv.duePeek()
		if token == "" || !sv.l.hasMember(token) {
			continue
		}
		p, err := datadir.ReadNewest(ctx, sv.l.data(token))
		if err != nil {
			klog.V(2).Infof("look at the data of cluster %s: %v", token, err)
		}
		sv.mu.Lock()
		sv.peeked = peeked{token, time.Now(), p}
		sv.mu.Unlock()
	}
}

// duePeek is the token of the cluster whose data are to be looked at; empty if none are. An etcd that still reads its database isn't
// disturbed: it needs the disk, and tells more when it has done so.
func (sv *supervisor) duePeek() cluster.Token {
	s := sv.records.current()
	seen := sv.disk.last()
	sv.mu.Lock()
	defer sv.mu.Unlock()
	switch p := sv.peeked; {
	case s == nil, sv.health.Healthy, time.Since(sv.badSince) <= peekAfter:
	case p.token == s.Token && time.Since(p.at) <= peekEvery:
	case sv.proc != nil && sv.answeredAt.IsZero() && seen.reading(sv.proc.PID()):
	default:
		return s.Token
	}
	return ""
}

// withPeeked fills in what etcd itself doesn't tell. mu is held.
func (sv *supervisor) withPeeked(s *cluster.EtcdStatus, state *cluster.EtcdState) {
	p := sv.peeked
	if s.Healthy || state == nil || p.token != state.Token || p.found.Index == 0 {
		return
	}
	s.LogWritten = p.found.Written
	s.Revision = max(s.Revision, p.found.Revision)
	if s.RaftTerm < p.found.Term || s.RaftTerm == p.found.Term && s.RaftIndex < p.found.Index {
		s.RaftTerm, s.RaftIndex = p.found.Term, p.found.Index
	}
}

// ask gets status and member list. Healthy means that a linearizable read was answered; a learner can't, so a leader is enough.
func ask(ctx context.Context, c *client.Client) cluster.EtcdStatus {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	st, err := c.Status(ctx)
	if errors.Is(err, client.ErrDenied) {
		if s := askDenied(ctx, c); s.Error != "" {
			return s
		}
		st, err = c.Status(ctx) // it has just begun to permit
	}
	if err != nil {
		return cluster.EtcdStatus{Error: "etcd doesn't answer: " + err.Error()}
	}
	s := cluster.EtcdStatus{
		Version: st.Version, MemberID: st.MemberID, LeaderID: st.Leader, Learner: st.Learner, Revision: st.Revision,
		RaftTerm: st.RaftTerm, RaftIndex: st.RaftIndex, AppliedIndex: st.AppliedIndex, DBSize: st.DBSize, DBSizeInUse: st.DBSizeInUse,
		DBQuota: st.DBQuota, StorageVersion: st.StorageVersion, DowngradeTarget: st.DowngradeTarget,
	}
	if st.Learner {
		s.Healthy = st.Leader != 0
		s.Members, _ = c.Members(ctx, false)
		return s
	}
	if st.Leader == 0 {
		s.Error = "etcd has no leader"
		s.Members, _ = c.Members(ctx, false)
		return s
	}
	members, err := c.Members(ctx, true)
	denial := err
	if err == nil { // versions differ in what they tell to everybody
		denial = c.Permitted(ctx)
	}
	if errors.Is(denial, client.ErrDenied) {
		s.Healthy, s.Denied, s.Error, s.Members = true, true, denial.Error(), members
		return s
	}
	if err != nil {
		s.Error = "etcd doesn't answer a linearizable request: " + err.Error()
		again, stop := context.WithTimeout(context.WithoutCancel(ctx), 500*time.Millisecond)
		defer stop()
		s.Members, _ = c.Members(again, false)
		return s
	}
	s.Healthy, s.Members = true, members
	// What follows is for changes of the version and for the room that is left; those wait if it can't be had.
	s.ClusterVersion, _ = c.ClusterVersion(ctx)
	s.Alarms, _ = c.Alarms(ctx)
	return s
}

// askDenied tells an etcd that refuses even its status from one without a quorum. Without an error it permits by now.
func askDenied(ctx context.Context, c *client.Client) cluster.EtcdStatus {
	err := c.Permitted(ctx)
	switch {
	case errors.Is(err, client.ErrDenied):
		return cluster.EtcdStatus{Healthy: true, Denied: true, Error: err.Error()}
	case errors.Is(err, client.ErrUnsupported): // only a learner says that, whose leader isn't known
		return cluster.EtcdStatus{Learner: true, Denied: true, Error: "etcd is a learner, has users (auth enable) and refuses the manager"}
	case err != nil:
		return cluster.EtcdStatus{Error: "etcd doesn't answer a linearizable request: " + err.Error()}
	}
	return cluster.EtcdStatus{}
}

// revisionOnDisk is read where etcd doesn't tell it; a restore has to go above.
func (sv *supervisor) revisionOnDisk(ctx context.Context) int64 {
	s := sv.records.current()
	if s == nil {
		return 0
	}
	revision, err := datadir.NewestRevision(ctx, sv.l.data(s.Token))
	if err != nil {
		klog.V(2).Infof("read the revision of cluster %s from its data: %v", s.Token, err)
	}
	return revision
}
