package standby

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/internal/testutil/etcdtest"
	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/child"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
)

// TestMain makes the test binary what the manager is: an etcd, and able to work on databases in a process of its own.
func TestMain(m *testing.M) {
	if code, ok := child.Dispatch(os.Args[1:], process.EtcdCommand(), database.CheckCommand(), changelog.ReplayCommand()); ok {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// primary is a cluster of one with its store and what keeps its changes.
type primary struct {
	t       testing.TB
	etcd    *etcdtest.Member
	store   *blobtest.Faulty
	catalog *catalog.Catalog
	rec     *changelog.Recorder
	last    int64
}

func newPrimary(t testing.TB) *primary {
	t.Helper()
	p := &primary{t: t, etcd: etcdtest.StartOne(t, "t"), store: blobtest.NewFaulty(blobtest.NewMemory())}
	p.catalog = catalog.New(p.store)
	return p
}

// record keeps the changes until the function is called, or the test ends.
func (p *primary) record() (stop func()) {
	p.t.Helper()
	dial := func(context.Context) (changelog.Source, error) {
		return new(client.Streams).Dial(p.etcd.Cfg.ClientURLs, nil)
	}
	r, err := changelog.NewRecorder(changelog.Config{
		ClusterName: "test", Node: "a", Term: 1, Catalog: p.catalog, Interval: 200 * time.Millisecond,
		Members: func() []changelog.Dialer { return []changelog.Dialer{dial} }, Gap: func(string) {},
	})
	testutil.Must(p.t, err)
	ctx, cancel := context.WithCancel(p.t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	p.rec = r
	ended := false
	stop = func() {
		if !ended {
			ended = true
			cancel()
			<-done
		}
	}
	p.t.Cleanup(stop)
	return stop
}

func (p *primary) put(key, value string, opts ...clientv3.OpOption) {
	p.t.Helper()
	r, err := p.etcd.Client.Raw().Put(p.t.Context(), key, value, opts...)
	testutil.Must(p.t, err)
	p.last = r.Header.Revision
}

// write changes a few things: values, deletions, a lease, a transaction of many keys.
func (p *primary) write(round int) {
	p.t.Helper()
	ctx, c := p.t.Context(), p.etcd.Client.Raw()
	for i := range 20 {
		p.put(fmt.Sprintf("/k/%d/%d", round, i), fmt.Sprintf("value %d", i))
	}
	_, err := c.Delete(ctx, fmt.Sprintf("/k/%d/3", round))
	testutil.Must(p.t, err)
	l, err := c.Grant(ctx, int64(1000+round))
	testutil.Must(p.t, err)
	p.put(fmt.Sprintf("/leased/%d", round), "1", clientv3.WithLease(l.ID))
	var ops []clientv3.Op
	for i := range 100 {
		ops = append(ops, clientv3.OpPut(fmt.Sprintf("/many/%d/%d", round, i), "x"))
	}
	r, err := c.Txn(ctx).Then(ops...).Commit()
	testutil.Must(p.t, err)
	p.last = r.Header.Revision
}

// archived waits until the store has everything, leases too.
func (p *primary) archived() {
	p.t.Helper()
	testutil.Eventually(p.t, "everything is archived", func() bool { return p.rec.Status().Archived >= p.last })
	ctx, cancel := context.WithTimeout(p.t.Context(), 20*time.Second)
	defer cancel()
	_, err := p.rec.Flush(ctx)
	testutil.Must(p.t, err)
}

func (p *primary) backup() string {
	p.t.Helper()
	ctx := p.t.Context()
	asked := time.Now()
	st, err := p.etcd.Client.Status(ctx)
	testutil.Must(p.t, err)
	snap, err := p.etcd.Client.Snapshot(ctx)
	testutil.Must(p.t, err)
	l, err := p.catalog.Backups(ctx)
	testutil.Must(p.t, err)
	m, err := backup.NewWriter(p.catalog, backup.Options{}).Write(ctx, catalog.NewBackupName(time.Now(), l.Names()), backup.Facts{
		ClusterName: "test", ClusterID: st.ClusterID, MemberID: st.MemberID, EtcdVersion: st.Version, Spec: cluster.Spec{MemberCount: 1},
		Revision: st.Revision, RevisionAtMost: st.Revision, RevisionAt: asked, Reason: "test",
	}, snap.Unverified(), nil)
	testutil.Must(p.t, err)
	return m.Backup
}

// copyOf is a follower under test.
type copyOf struct {
	*Follower
	t    testing.TB
	stop func()
}

func (p *primary) follow(dir string, change func(*Config)) *copyOf {
	p.t.Helper()
	cfg := Config{
		Catalog: catalog.New(blob.ReadOnly(p.store)), Store: "memory", Dir: dir, Executable: testutil.Self(p.t), Interval: 100 * time.Millisecond,
	}
	if change != nil {
		change(&cfg)
	}
	f, err := New(cfg)
	testutil.Must(p.t, err)
	ctx, cancel := context.WithCancel(p.t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	ended := false
	c := &copyOf{Follower: f, t: p.t}
	c.stop = func() {
		if !ended {
			ended = true
			cancel()
			if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
				p.t.Error(err)
			}
		}
	}
	p.t.Cleanup(c.stop)
	return c
}

func (c *copyOf) reaches(rev int64) {
	c.t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for c.Report().Revision < rev {
		if time.Now().After(deadline) {
			c.t.Fatalf("revision %d isn't reached: %+v", rev, c.Report())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// same compares the copy, which nobody follows any more, with the live etcd.
func (p *primary) same(dir string) {
	p.t.Helper()
	h, why, err := load(dir, "memory")
	if err != nil || h == nil {
		p.t.Fatalf("%s %v", why, err)
	}
	facts, err := database.Check(p.t.Context(), testutil.Self(p.t), filepath.Join(dir, h.File), database.CheckOptions{SkipHash: true})
	testutil.Must(p.t, err)
	if live := etcdtest.LiveHash(p.t, p.etcd, facts.Revision); facts.Revision != h.Revision || facts.Hash.Hash != live.Hash {
		p.t.Errorf("the copy has revision %d (noted: %d) and HashKV %d; etcd has HashKV %d "+
			"there", facts.Revision, h.Revision, facts.Hash.Hash, live.Hash)
	}
	path := filepath.Join(p.t.TempDir(), "live.db")
	etcdtest.Save(p.t, p.etcd, path)
	live, err := database.Check(p.t.Context(), testutil.Self(p.t), path, database.CheckOptions{})
	testutil.Must(p.t, err)
	if live.Revision == facts.Revision && live.Leased.Digest != facts.Leased.Digest {
		p.t.Errorf("leases differ: %+v in the copy, %+v in etcd", facts.Leased, live.Leased)
	}
}
