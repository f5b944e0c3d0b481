package node

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
)

// Why etcd is stopped decides how long it gets.
type stopMode int

const (
	// stopServing: others go on serving, so leadership is moved away and etcd gets all the time that was configured.
	stopServing stopMode = iota
	// stopHard: nobody serves afterwards, or nobody was served before. Everything acknowledged is on disk, and an etcd that leads would wait
	// for its request timeout, several seconds, to hand over to members that stop as well.
	stopHard
	// stopAtOnce: every moment that it serves does harm.
	stopAtOnce
)

// hardGrace is what an etcd gets to end that nobody waits for.
const hardGrace = 300 * time.Millisecond

// stopLocked stops etcd: SIGTERM, then SIGKILL. procMu is held.
func (sv *supervisor) stopLocked(ctx context.Context, why string, mode stopMode) error {
	sv.mu.Lock()
	p, c, as, members := sv.proc, sv.client, sv.procAs, sv.health.Members
	sv.mu.Unlock()
	if p == nil {
		return nil
	}
	grace := sv.disk.stopGrace()
	if mode == stopHard || as.Quarantined {
		grace = hardGrace
	}
	if mode == stopAtOnce {
		grace = time.Millisecond
	}
	if mode == stopServing && c != nil {
		moveLeader(ctx, c)
	}
	klog.Infof("stopping etcd (pid %d): %s", p.PID(), why)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go cutShort(ctx, cancel, p, sv.cfg.Self.Name, members)
	exit, err := p.Stop(ctx, grace)
	if err != nil {
		return fmt.Errorf("stop etcd: %w", err)
	}
	klog.V(2).Infof("etcd (pid %d) %s", p.PID(), exit)
	sv.gone(p, "stopped: "+why)
	return nil
}

// cutShort ends the wait for an etcd that can only be waiting for members which are gone: when all masters stop at once, the etcd leader
// would try to hand over until its requests time out.
func cutShort(ctx context.Context, cut func(), p *process.Process, self string, members []cluster.Member) {
	const patience = 1500 * time.Millisecond
	var others []string
	for _, m := range members {
		if m.Name != self && !m.Learner {
			others = append(others, m.PeerURLs...)
		}
	}
	if len(others) == 0 {
		return
	}
	for wait := patience; ; wait = 300 * time.Millisecond {
		select {
		case <-ctx.Done():
			return
		case <-p.Done():
			return
		case <-time.After(wait):
		}
		if !slices.ContainsFunc(others, answers) {
			klog.V(2).Infof("no other member answers, so etcd has nobody to hand over to; it is ended")
			cut()
			return
		}
	}
}

// answers tells whether something listens at a URL.
func answers(s string) bool {
	u, err := url.Parse(s)
	if err != nil {
		return false
	}
	c, err := net.DialTimeout("tcp", u.Host, 300*time.Millisecond)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

// gone forgets a process that has ended.
func (sv *supervisor) gone(p *process.Process, why string) {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	if sv.proc != p {
		return
	}
	if sv.client != nil {
		sv.client.Close()
	}
	sv.proc, sv.procAs, sv.client, sv.lastExit, sv.exitReason = nil, nil, nil, why, ""
	sv.health = cluster.EtcdStatus{Error: why}
	if sv.badSince.IsZero() {
		sv.badSince = time.Now()
	}
	sv.changes.note()
}

// moveLeader hands etcd's leadership to another voter, so that clients don't wait for an election.
func moveLeader(ctx context.Context, c *client.Client) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	st, err := c.Status(ctx)
	if err != nil || st.Leader != st.MemberID {
		return
	}
	members, err := c.Members(ctx, false)
	if err != nil {
		return
	}
	for _, m := range members {
		if m.ID == st.MemberID || m.Learner || m.Name == "" {
			continue
		}
		try, stop := context.WithTimeout(ctx, time.Second)
		err := c.MoveLeader(try, m.ID)
		stop()
		if err == nil {
			klog.Infof("etcd's leadership moved to %s before this one stops", m.Name)
			return
		}
		klog.V(2).Infof("etcd's leadership could not be moved to %s: %v", m.Name, err)
	}
}
