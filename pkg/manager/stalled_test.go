package manager

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// TestStalled: each loop is judged once it has begun, and a leader not while it carries out an action.
func TestStalled(t *testing.T) {
	const patience = time.Minute
	long := time.Now().Add(-2 * patience)
	for _, c := range []struct {
		name          string
		looked, round time.Time
		acting        bool
		want          string
	}{
		{name: "nothing has begun"},
		{name: "just now", looked: time.Now(), round: time.Now()},
		{name: "no look at itself", looked: long, want: "the manager's look at itself"},
		{name: "the leader doesn't come round", looked: time.Now(), round: long, want: "the leader's loop"},
		{name: "the leader acts", looked: time.Now(), round: long, acting: true},
	} {
		m := &Manager{looked: c.looked, round: c.round, acting: c.acting}
		if got := m.Stalled(patience); !strings.HasPrefix(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%s: %q; want %q", c.name, got, c.want)
		}
	}
}

// TestStalledAfterLeading: background work that doesn't end, as on a file store that hangs, doesn't have a follower killed.
func TestStalledAfterLeading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := New(Config{ClusterName: "test", Self: "a", Instance: "i", Peers: noPeers{}, Catalog: catalog.New(blobtest.NewMemory()),
			Policy: model.DefaultPolicy("3.6.0"), Probe: func(context.Context) (bool, error) { return true, nil }})
		must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		l := newLeadership(m, 4)
		hangs := make(chan struct{})
		l.wg.Go(func() { <-hangs })
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			l.run(ctx)
		}()
		synctest.Wait()
		m.mu.Lock()
		began := !m.round.IsZero()
		m.mu.Unlock()
		if !began {
			t.Error("the leader's loop never came round")
		}
		cancel()
		time.Sleep(time.Hour)
		select {
		case <-ended:
			t.Error("the leadership didn't wait for its background work")
		default:
		}
		if got := m.Stalled(time.Minute); got != "" {
			t.Errorf("%s, though this node doesn't lead any more", got)
		}
		close(hangs)
		<-ended
	})
}
