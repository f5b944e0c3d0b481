package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
)

// TestMembership grows a cluster from one to three over learners, hands leadership over and shrinks it again.
func TestMembership(t *testing.T) {
	pki := newPKI(t)
	ms := makeMembers(t, 3, builtin(t), "members", &pki, "::1")
	a, all := ms[0], ms[0].Cfg.InitialCluster
	a.Cfg.InitialCluster = all[:1]
	startAll(t, ms[:1])
	for i, m := range ms[1:] {
		var added cluster.Member
		var err error
		// etcd wants a member to be connected for some seconds before the next change.
		eventually(t, "a learner is added", func() bool {
			added, err = a.Client.AddLearner(ctxOf(t), m.Cfg.PeerURLs)
			if err != nil && !errors.Is(err, client.ErrUnhealthyCluster) {
				t.Fatal(err)
			}
			return err == nil
		})
		if !added.Learner || added.Name != "" {
			t.Errorf("added %+v", added)
		}
		if err := a.Client.Promote(ctxOf(t), added.ID); !errors.Is(err, client.ErrNotCaughtUp) {
			t.Errorf("promoted a learner that has never started: %v", err)
		}
		again, err := a.Client.AddLearner(ctxOf(t), m.Cfg.PeerURLs)
		if err != nil || again.ID != added.ID {
			t.Errorf("adding again: %+v %v", again, err)
		}
		m.Cfg.NewCluster, m.Cfg.InitialCluster = false, all[:i+2]
		m.Start(t)
		eventually(t, "the learner is healthy", m.Healthy)
		eventually(t, "the learner has caught up", func() bool {
			err := a.Client.Promote(ctxOf(t), added.ID)
			if err != nil && !errors.Is(err, client.ErrNotCaughtUp) {
				t.Fatal(err)
			}
			return err == nil
		})
		must(t, a.Client.Promote(ctxOf(t), added.ID)) // already done is success
		eventually(t, "the new voter serves", m.Healthy)
		if err := m.Client.IsMember(ctxOf(t), added.ID); err != nil {
			t.Errorf("the member itself: %v", err)
		}
		if err := a.Client.IsMember(ctxOf(t), added.ID); !errors.Is(err, client.ErrOtherMember) {
			t.Errorf("another member that answers under the same name: %v", err)
		}
	}
	list, err := ms[2].Client.Members(ctxOf(t), true)
	must(t, err)
	if len(list) != 3 || list[0].ID >= list[1].ID || list[0].Learner {
		t.Errorf("members %+v", list)
	}

	leader := a.ID(t)
	if err := ms[1].Client.MoveLeader(ctxOf(t), leader); !errors.Is(err, client.ErrNotLeader) {
		t.Errorf("a follower handed leadership over: %v", err)
	}
	must(t, a.Client.MoveLeader(ctxOf(t), ms[1].ID(t)))
	st, err := a.Client.Status(ctxOf(t))
	must(t, err)
	if st.Leader != ms[1].ID(t) {
		t.Errorf("leader is %s", st.Leader)
	}

	gone := ms[2].ID(t)
	must(t, a.Client.UpdatePeerURLs(ctxOf(t), gone, ms[2].Cfg.PeerURLs))
	eventually(t, "a member is removed", func() bool {
		err := a.Client.Remove(ctxOf(t), gone)
		if err != nil && !errors.Is(err, client.ErrUnhealthyCluster) {
			t.Fatal(err)
		}
		return err == nil
	})
	must(t, a.Client.Remove(ctxOf(t), gone)) // already gone is success
	if err := a.Client.Promote(ctxOf(t), gone); !errors.Is(err, client.ErrNoMember) {
		t.Errorf("promoted a member that is gone: %v", err)
	}
	select {
	case <-ms[2].Proc.Done():
	case <-time.After(20 * time.Second):
		t.Error("the removed member is still running")
	}

	// Without quorum: not healthy, with a reason, and in time.
	ms[1].Stop(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if h := a.Client.Health(ctx); h.Healthy || h.Reason == "" || h.Took > 2*time.Second {
		t.Errorf("health without quorum: %+v", h)
	}
}

func TestMaintenance(t *testing.T) {
	m := makeMembers(t, 1, builtin(t), "maint", nil, "127.0.0.1")[0]
	m.Cfg.QuotaBytes = 4 << 20
	startAll(t, []*testMember{m})
	c, raw := m.Client, m.Client.Raw()
	value := string(make([]byte, 100<<10))
	eventually(t, "out of space", func() bool {
		_, err := raw.Put(ctxOf(t), "k", value)
		return err != nil
	})
	h := c.Health(ctxOf(t))
	if !h.Healthy || len(h.Alarms) != 1 || h.Alarms[0].Type != cluster.AlarmNoSpace || h.Alarms[0].Member != m.ID(t) {
		t.Errorf("health without space: %+v", h)
	}
	st, err := c.Status(ctxOf(t))
	must(t, err)
	if st.Version != etcd.CompiledVersion || st.DBQuota != m.Cfg.QuotaBytes || st.StorageVersion == "" || len(st.Errors) == 0 {
		t.Errorf("status %+v", st)
	}
	must(t, c.Compact(ctxOf(t), st.Revision, true))
	must(t, c.Compact(ctxOf(t), st.Revision, true)) // already done is success
	if _, err := c.HashKV(ctxOf(t), 1); !errors.Is(err, client.ErrCompacted) {
		t.Errorf("hash of a compacted revision: %v", err)
	}
	if _, err := c.HashKV(ctxOf(t), st.Revision+100); !errors.Is(err, client.ErrFutureRevision) {
		t.Errorf("hash of a future revision: %v", err)
	}
	must(t, c.Defragment(ctxOf(t)))
	after, err := c.Status(ctxOf(t))
	must(t, err)
	if after.DBSize >= st.DBSize {
		t.Errorf("defragmentation: %d bytes, %d before", after.DBSize, st.DBSize)
	}
	must(t, c.Disarm(ctxOf(t), h.Alarms[0]))
	must(t, c.Disarm(ctxOf(t), h.Alarms[0])) // already done is success
	_, err = raw.Put(ctxOf(t), "k", "v")
	must(t, err)

	must(t, c.Downgrade(ctxOf(t), client.DowngradeValidate, "3.5.26"))
	if err := c.Downgrade(ctxOf(t), client.DowngradeValidate, "3.4.0"); err == nil {
		t.Error("a downgrade over two minor versions was found valid")
	}
	must(t, c.Downgrade(ctxOf(t), client.DowngradeEnable, "3.5"))
	must(t, c.Downgrade(ctxOf(t), client.DowngradeEnable, "3.5"))
	must(t, c.Downgrade(ctxOf(t), client.DowngradeCancel, ""))
	must(t, c.Downgrade(ctxOf(t), client.DowngradeCancel, ""))
}

func TestSnapshotOfADyingMemberIsNoSnapshot(t *testing.T) {
	m := startOne(t, "dying")
	value := string(make([]byte, 1<<20))
	for i := range 40 {
		_, err := m.Client.Raw().Put(ctxOf(t), fmt.Sprintf("k%d", i), value)
		must(t, err)
	}
	s, err := m.Client.Snapshot(ctxOf(t))
	must(t, err)
	defer s.Close()
	if _, err := io.CopyN(io.Discard, s, 1<<20); err != nil {
		t.Fatal(err)
	}
	must(t, m.Proc.Signal(9))
	<-m.Proc.Done()
	if n, err := io.Copy(io.Discard, s); err == nil {
		t.Errorf("read %d of %d bytes and was told that it is all", s.N(), s.Size)
	} else if s.N() >= s.Size {
		t.Errorf("read all %d bytes, but failed: %v", n, err)
	}
}
