package kube

import (
	"context"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// lateEtcd tells of one renewal, and of its lease only when the watch is over.
type lateEtcd struct {
	clientv3.Watcher
	clientv3.Lease
	over <-chan struct{}
}

func (e *lateEtcd) Watch(ctx context.Context, key string, _ ...clientv3.OpOption) clientv3.WatchChan {
	e.over = ctx.Done()
	events := make(chan clientv3.WatchResponse, 1)
	events <- clientv3.WatchResponse{Events: []*clientv3.Event{{Type: mvccpb.PUT,
		Kv: &mvccpb.KeyValue{Key: []byte(key + "192.0.2.1"), Lease: 7, ModRevision: 9}}}}
	return events
}

func (e *lateEtcd) TimeToLive(ctx context.Context, _ clientv3.LeaseID,
	_ ...clientv3.LeaseOption) (*clientv3.LeaseTimeToLiveResponse, error) {
	<-e.over
	return &clientv3.LeaseTimeToLiveResponse{TTL: 15}, ctx.Err()
}

// TestRenewedInTheLastMoment: the lease of an entry that is renewed while the watch ends is read all the same.
func TestRenewedInTheLastMoment(t *testing.T) {
	e := &lateEtcd{}
	m := &Masterleases{Client: &clientv3.Client{Watcher: e, Lease: e}, Watch: 20 * time.Millisecond}
	got, err := m.watchRenewals(t.Context(), []Masterlease{{key: MasterleasesPrefix + "192.0.2.1", Address: "192.0.2.1"}}, 2)
	if err != nil || len(got) != 1 || !got[0].Renewed || got[0].Stale || got[0].TTL != 15 {
		t.Errorf("%+v, %v", got, err)
	}
}

func (e *lateEtcd) Close() error { return nil }
