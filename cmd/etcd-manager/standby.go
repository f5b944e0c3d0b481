package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/adopt"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/node"
	"github.com/etcd-manager/etcd-manager/pkg/notify"
	"github.com/etcd-manager/etcd-manager/pkg/standby"
	"github.com/etcd-manager/etcd-manager/pkg/status"
)

const (
	// standbyShown is how often a standby writes its status to its own store, standbyRequest how long it waits for the store.
	standbyShown   = 30 * time.Second
	standbyRequest = 15 * time.Second
	// standbyFree is how much of the disk a copy leaves free, in bytes.
	standbyFree = 1 << 30
	// standbyLook is how often at most new changes are looked for, unless they are stored more often.
	standbyLook = 2 * time.Second
	// standbyAlarm is after how long without changes a person is called for.
	standbyAlarm = 5 * time.Minute
)

// checkStandby refuses flags that don't go with --standby-of.
func (o *options) checkStandby() error {
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	if o.standbyOf == "" {
		return nil
	}
	if sameStore(o.standbyOf, o.backupStore) {
		bad("--standby-of=%s is also --backup-store: a standby has a store of its own, which must be empty", o.standbyOf)
	}
	if o.volumeProvider != "" {
		bad("--standby-of doesn't go with --volume-provider=%s: mount the volume, and give its path with --data-dir", o.volumeProvider)
	}
	if o.staticConfig != "" || o.dev {
		bad("--standby-of doesn't go with --static-config and --dev: a standby forms no cluster")
	}
	if o.changes == 0 {
		bad("--standby-of needs --change-log-interval: by it, a standby looks for new changes")
	}
	return errors.Join(errs...)
}

// sameStore tells whether two URLs name one store.
func sameStore(a, b string) bool {
	same := func(s string) string { return strings.TrimRight(strings.TrimPrefix(s, "file://"), "/") }
	return same(a) == same(b)
}

// lookEvery is how often new changes are looked for. They are stored every --change-log-interval: a copy that looked as seldom would
// be behind by twice that.
func (o *options) lookEvery() time.Duration { return max(o.changes/5, min(o.changes, standbyLook)) }

// standbyNode is a manager that follows another cluster. It has no agent, no peers and no leader: nothing in it can start an etcd.
type standbyNode struct {
	*daemon
	follower *standby.Follower
	// stopFollow ends the follower, and followed is closed when it has ended. Both are set while it runs.
	stopFollow context.CancelFunc
	followed   chan struct{}

	mu sync.Mutex
	// becoming says what is done about a promotion; empty if there is none.
	becoming string
	// away says why the own store can't be used; empty if it can.
	away string
}

// runStandby follows another cluster until ctx ends.
func runStandby(ctx context.Context, o *options) error {
	s := &standbyNode{daemon: &daemon{o: o, requests: newRequestCounter()}}
	if err := s.openStore(ctx); err != nil {
		return err
	}
	if err := s.openDataDir(ctx); err != nil {
		return err
	}
	if err := s.wasPromoted(ctx); err != nil {
		return err
	}
	if err := adopt.Check(o.dataDir, o.backupStore); err != nil {
		return err
	}
	if err := s.free(ctx); err != nil {
		return err
	}
	lock, err := node.Lock(o.dataDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if s.follower, err = s.newFollower(ctx); err != nil {
		return err
	}
	klog.Infof("etcd-manager %s: standby of %s, cluster %s, node %s, data dir %s, own store %s; no etcd runs here", build().Version, o.standbyOf,
		o.clusterName, s.id, o.dataDir, o.backupStore)
	return s.run(ctx)
}

// free refuses a node or a store that belongs to a cluster: two clusters must never come of it. A store that doesn't answer is asked
// again while
// it follows, which does no harm.
func (s *standbyNode) free(ctx context.Context) error {
	state := filepath.Join(s.o.dataDir, "state")
	if _, err := os.Lstat(state); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("--standby-of: this node belongs to a cluster already (%s); start it without --standby-of, "+
			"or, if its data aren't needed any more, give it an empty --data-dir", state)
	}
	if err := s.ownStore(ctx); errors.Is(err, errHasCluster) {
		return err
	}
	return nil
}

var errHasCluster = errors.New("this store has a cluster already")

// ownStore finds out whether the own store still has no cluster.
func (s *standbyNode) ownStore(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, standbyRequest)
	defer cancel()
	m, _, err := s.catalog.Marker(ctx)
	away := ""
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		err = nil
	case err == nil, errors.Is(err, cluster.ErrCorrupt), errors.Is(err, cluster.ErrFuture):
		if rec, perr := s.catalog.Promotion(ctx); perr == nil && rec.Backup != "" {
			return nil // it is of this standby, which is about to notice
		}
		err = fmt.Errorf("--standby-of: %s: %w (cluster %s); a standby needs a store of its own that is empty. "+
			"If this node is to run that cluster, start it without --standby-of", s.o.backupStore, errHasCluster, m.Token)
	default:
		away = err.Error()
		s.said.Warningf("own store", "the own store %s doesn't answer; following goes on: %v", s.o.backupStore, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = away
	return err
}

// newFollower opens the other cluster's store, for reading only.
func (s *standbyNode) newFollower(ctx context.Context) (*standby.Follower, error) {
	o := s.o
	getenv := func(k string) string { return o.env[k] }
	store, err := connect.Open(ctx, o.standbyOf, getenv, connect.OnRequest(s.requests.add))
	if err != nil {
		return nil, fmt.Errorf("--standby-of: %w", err)
	}
	keys, err := s.openKeys()
	if err != nil {
		return nil, err
	}
	store = blob.ReadOnly(blob.Retry(blob.WithTimeouts(blob.Detach(store), blob.Timeouts{}), blob.RetryPolicy{}))
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own executable: %w", err)
	}
	f, err := standby.New(standby.Config{Catalog: catalog.New(store, keys), Store: o.standbyOf, Executable: exe, Interval: o.lookEvery(),
		Dir: filepath.Join(o.dataDir, "etcd-manager", "standby"), Compare: o.verify, KeepFree: standbyFree})
	if err != nil {
		return nil, fmt.Errorf("--standby-of: %w", err)
	}
	return f, nil
}

// run follows, and says how far it is.
func (s *standbyNode) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	fctx, stop := context.WithCancel(ctx)
	defer stop()
	s.stopFollow, s.followed = stop, make(chan struct{})
	follow := func(ctx context.Context) error {
		err := s.follower.Run(fctx)
		close(s.followed)
		if err == nil {
			<-ctx.Done() // also when it was ended for a promotion, which goes on
		}
		return err
	}
	parts := []func(context.Context) error{follow, s.keepShown, s.keepPromotion,
		func(ctx context.Context) error { return reload(ctx, s.o, nil) }}
	if s.o.metricsPort != 0 {
		parts = append(parts, s.servePages)
	}
	s.o.systemd.runs(func() notify.Health { return notify.Health{Status: status.Line(s.view())} })
	errs := make(chan error, len(parts))
	for _, part := range parts {
		go func() {
			errs <- part(ctx)
			cancel() // one that ends takes the others along
		}()
	}
	var all []error
	for range parts {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// endFollowing ends the follower, so that nothing changes the copy any more.
func (s *standbyNode) endFollowing() {
	if s.stopFollow != nil {
		s.stopFollow()
		<-s.followed
	}
}

// keepShown writes the status to the own store, and ends with an error if a cluster has come there.
func (s *standbyNode) keepShown(ctx context.Context) error {
	for wait := time.Second; ; wait = standbyShown {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		if err := s.ownStore(ctx); errors.Is(err, errHasCluster) {
			return err
		} else if err != nil {
			continue
		}
		if err := s.put(ctx); err != nil && ctx.Err() == nil {
			s.said.Warningf("show", "the status of this standby isn't shown in %s: %v", s.o.backupStore, err)
		}
	}
}

func (s *standbyNode) put(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, standbyRequest)
	defer cancel()
	total, free := diskOf(s.o.dataDir)
	r := s.follower.Report()
	return s.catalog.PutStatus(ctx, catalog.Status{
		At: time.Now().UTC().Truncate(time.Second), ClusterName: s.o.clusterName, Node: s.id, Manager: build().Version,
		Doing: s.doing(r.Of), Attention: s.attention(r), Standby: &r,
		Nodes: []catalog.NodeReport{{Node: s.id, Manager: build().Version, Role: catalog.RoleNone, DiskFree: free, DiskTotal: total}},
	})
}

// attention calls for a person when nothing has come for a while, or what came was wrong.
func (s *standbyNode) attention(r catalog.StandbyReport) []cluster.Attention {
	if r.Error == "" || time.Since(r.Since) < standbyAlarm {
		return nil
	}
	return []cluster.Attention{{Kind: cluster.AttentionOther, Node: s.id, Since: r.Since,
		Text:      fmt.Sprintf("The copy of %s gets no changes: %s", r.Of, r.Error),
		NoCommand: "remove the cause that the message names; then following continues automatically"}}
}

func (s *standbyNode) view() status.View {
	r := s.follower.Report()
	v := status.View{ClusterName: s.o.clusterName, Node: s.id, Version: build().Version,
		Doing: s.doing(r.Of), Attention: s.attention(r), StoreRequests: s.requests.snapshot(), Standby: status.NewStandby(r, time.Now())}
	v.Disk.TotalBytes, v.Disk.FreeBytes = diskOf(s.o.dataDir)
	s.mu.Lock()
	defer s.mu.Unlock()
	v.StoreError = s.away
	return v
}

func (s *standbyNode) servePages(ctx context.Context) error { return s.servePage(ctx, s.view) }

// diskOf is the size and the free space of a directory's file system, in bytes; zero if it isn't known.
func diskOf(dir string) (total, free int64) {
	var f syscall.Statfs_t
	if syscall.Statfs(dir, &f) != nil {
		return 0, 0
	}
	return int64(f.Blocks) * int64(f.Bsize), int64(f.Bavail) * int64(f.Bsize) //nolint:unconvert // the types differ between systems
}
