package main

import (
	"context"
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/internal/testutil/etcdtest"
	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
)

// live is a world with an etcd whose changes are kept.
type live struct {
	*world
	etcd     *etcdtest.Member
	recorder *changelog.Recorder
}

// newLive starts an etcd and keeps its changes until the test ends.
func newLive(t *testing.T) *live {
	t.Helper()
	l := &live{world: newWorld(t), etcd: etcdtest.StartOne(t, "live")}
	l.now = time.Now().Add(time.Hour) // points are never in the future
	l.spec(1, etcd.CompiledVersion)
	r, err := changelog.NewRecorder(changelog.Config{
		ClusterName: "main", Node: "a", Term: 1, Catalog: catalog.New(l.store), Interval: 50 * time.Millisecond, SegmentBytes: 32 << 10,
		Members: func() []changelog.Dialer {
			return []changelog.Dialer{func(context.Context) (changelog.Source, error) {
				return new(client.Streams).Dial([]string{l.etcd.Cfg.ClientURLs[0]}, nil)
			}}
		},
		Gap: func(string) {},
	})
	must(t, err)
	l.recorder = r
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	})
	testutil.Eventually(t, "changes are kept", func() bool { return r.Status().Incarnation != "" })
	return l
}

func (l *live) write(key, value string, opts ...clientv3.OpOption) int64 {
	l.t.Helper()
	r, err := l.etcd.Client.Raw().Put(l.t.Context(), key, value, opts...)
	must(l.t, err)
	return r.Header.Revision
}

func (l *live) remove(key string, opts ...clientv3.OpOption) int64 {
	l.t.Helper()
	r, err := l.etcd.Client.Raw().Delete(l.t.Context(), key, opts...)
	must(l.t, err)
	return r.Header.Revision
}

// kept waits until the store has all changes, and returns the newest revision and what etcd's HashKV says of it.
func (l *live) kept() etcd.HashKV {
	l.t.Helper()
	st, err := l.etcd.Client.Status(l.t.Context())
	must(l.t, err)
	testutil.Eventually(l.t, fmt.Sprintf("revision %d is kept", st.Revision),
		func() bool { return l.recorder.Status().Archived >= st.Revision })
	h, err := l.etcd.Client.HashKV(l.t.Context(), st.Revision)
	must(l.t, err)
	return h
}

// back takes a backup as a manager does, and returns its name.
func (l *live) back() string {
	l.t.Helper()
	ctx := l.t.Context()
	asked := time.Now()
	st, err := l.etcd.Client.Status(ctx)
	must(l.t, err)
	snap, err := l.etcd.Client.Snapshot(ctx)
	must(l.t, err)
	c := catalog.New(l.store)
	list, err := c.Backups(ctx)
	must(l.t, err)
	m, err := backup.NewWriter(c, backup.Options{}).Write(ctx, catalog.NewBackupName(time.Now(), list.Names()), backup.Facts{
		ClusterName: "main", ClusterID: st.ClusterID, MemberID: st.MemberID, EtcdVersion: st.Version,
		Spec:     cluster.Spec{MemberCount: 1, EtcdVersion: etcd.CompiledVersion},
		Revision: st.Revision, RevisionAtMost: st.Revision, RevisionAt: asked, Reason: "test",
	}, snap.Unverified(), nil)
	must(l.t, err)
	return m.Backup
}
