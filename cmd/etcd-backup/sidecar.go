package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	etcdclient "github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	"github.com/etcd-manager/etcd-manager/pkg/prune"
	"github.com/etcd-manager/etcd-manager/pkg/repeat"
)

const (
	// statusTimeout bounds the question whether the local etcd leads.
	statusTimeout = 5 * time.Second
	// firstRetry and longestRetry bound the wait after a failure.
	firstRetry   = time.Second
	longestRetry = 5 * time.Minute
	// stallTimeout ends a backup that hasn't moved for so long.
	stallTimeout = 5 * time.Minute
)

var errStalled = errors.New("no byte has moved for " + stallTimeout.String())

// sidecar backs up one etcd member. Only the goroutine of run touches it, but for what mu guards.
type sidecar struct {
	o           options
	toolVersion string
	catalog     *catalog.Catalog
	writer      *backup.Writer
	dialStream  func(url string) (*etcdclient.Client, error)
	client      *etcdclient.Client   // the one of clients that is used
	clients     []*etcdclient.Client // one for each client URL
	now         func() time.Time
	pruner      *prune.Pruner
	fence       *fence
	beatEvery   time.Duration
	wake        chan struct{}

	// acting is nil while this instance isn't the one that acts.
	acting *acting
	// begun is true after the first backup, or after the first look that found that somebody else is to make it.
	begun    bool
	failures int
	failed   repeat.Limiter
	said     string
	// taken is when this instance took its last backup; it is only compared with later readings of the same clock.
	taken time.Time

	mu sync.Mutex
	// turned is when the loop, or a backup that is under way, last made progress; zero before run.
	turned time.Time
	// wanted says why a full backup is needed at once.
	wanted string
	shown  shown
}

// newSidecar prepares everything and talks to nobody.
func newSidecar(o options, store blob.Store, c *catalog.Catalog, toolVersion string) (*sidecar, error) {
	conf, err := o.files.config(o.clientURLs...)
	if err != nil {
		return nil, err
	}
	clients, err := o.dial(conf)
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "etcd-backup" // only a label
	}
	return &sidecar{
		o: o, toolVersion: toolVersion, catalog: c,
		writer: backup.NewWriter(c, backup.Options{ToolVersion: toolVersion, Compression: o.compression}),
		dialStream: func(url string) (*etcdclient.Client, error) {
			return new(etcdclient.Streams).DialAs([]string{url}, conf, o.etcdUser())
		},
		client: clients[0], clients: clients, now: time.Now, pruner: prune.New(c, o.retention), beatEvery: beatInterval,
		wake:  make(chan struct{}, 1),
		fence: &fence{catalog: c, store: store, node: cluster.NodeID(host), patience: instancePatience},
	}, nil
}

// close ends what run, or a single step, has begun.
func (s *sidecar) close() error {
	s.rest(context.Canceled)
	return closeAll(s.clients)
}

// run works until the context ends, which is no error. Whatever fails is tried again.
func (s *sidecar) run(ctx context.Context) error {
	klog.Infof("backing up etcd %s of cluster %s to %s every %s, if no other instance does", strings.Join(s.o.clientURLs, ","),
		s.o.clusterName, s.o.store, s.o.interval)
	defer func() { s.rest(context.Canceled) }()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	unserved := make(chan error, 1)
	if s.o.metricsPort != 0 {
		wg.Go(func() {
			if err := s.serveStatus(ctx); err != nil {
				unserved <- err
				cancel()
			}
		})
	}
	for {
		s.progress()
		wait := s.step(ctx)
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			select {
			case err := <-unserved:
				return err
			default:
			}
			klog.Info("asked to stop: stopping")
			return nil
		case <-s.wake:
			t.Stop()
		case <-s.o.hangups:
			t.Stop()
			s.readAgain()
		case <-t.C:
		}
	}
}

// step does what is due and returns how long to wait for the next.
func (s *sidecar) step(ctx context.Context) time.Duration {
	wait, err := s.turn(ctx)
	if err == nil {
		s.failures = 0
		s.show(func(v *shown) { v.failure = "" })
		return wait
	}
	if ctx.Err() != nil {
		return 0
	}
	if a := s.acting; a != nil && a.ctx.Err() != nil { // that is why it failed; the next turn says so
		return 0
	}
	s.failures++
	wait = min(firstRetry<<min(s.failures-1, 16), wait, s.o.interval)
	s.failed.Errorf("backup", "backup of cluster %s failed %s in a row, next attempt in %s: %v", s.o.clusterName,
		cluster.Times(s.failures), wait, err)
	s.show(func(v *shown) { v.failure = err.Error() })
	return wait
}

// turn looks who is to act, and does what is due. With an error it returns the longest time to wait before the next attempt.
func (s *sidecar) turn(ctx context.Context) (time.Duration, error) {
	look := min(s.beatEvery, s.o.interval)
	if a := s.acting; a != nil && a.ctx.Err() != nil {
		s.rest(nil)
	}
	status, err := s.choose(ctx)
	seen := s.etcdShown(ctx, status, err)
	s.show(func(v *shown) { v.etcd = seen })
	if err != nil {
		return look, err
	}
	r, err := s.assume(ctx, status)
	s.show(func(v *shown) { v.store = "" })
	if err != nil {
		s.show(func(v *shown) { v.store = err.Error() })
		return look, err
	}
	if r == standsBy {
		s.begun = true
		return look, nil
	}
	if s.acting != nil {
		ctx = s.acting.ctx
	}
	return s.work(ctx, status, look)
}

// assume makes this instance the one that acts, or no longer, as it is to be.
func (s *sidecar) assume(ctx context.Context, status etcdclient.Status) (role, error) {
	leads := status.Leader == status.MemberID
	if a := s.acting; a != nil {
		if a.hold != nil || leads {
			return acts, nil // until another one takes over: it is the one beside the etcd leader, if there is one
		}
		s.rest(errNotLeading)
	}
	r, hold, why, err := standsBy, (*catalog.Hold)(nil), "a learner can't act", error(nil)
	if !status.Learner {
		r, hold, why, err = s.fence.claim(ctx, status.MemberID, leads, s.now())
	}
	if err != nil {
		return standsBy, err
	}
	if why != s.said {
		s.said = why
		if why != "" {
			klog.Infof("not acting beside member %s: %s", status.MemberID, why)
		}
	}
	s.show(func(v *shown) { v.doing = why })
	if r == acts {
		s.begin(ctx, hold, status)
	}
	return r, nil
}

// work does what is due for one who may. Changes are recorded behind a backup: where there is none at all, it is taken first.
func (s *sidecar) work(ctx context.Context, status etcdclient.Status, look time.Duration) (time.Duration, error) {
	list, err := s.catalog.BackupWindow(ctx, "", 1000, s.now(), 1)
	if err != nil {
		s.show(func(v *shown) { v.store = err.Error() })
		return longestRetry, err
	}
	newest, some := list.NewestSound(s.now())
	s.show(func(v *shown) { v.newest, v.backups = newest.TakenBy(s.now()), list.Count })
	if a := s.acting; a != nil {
		if some {
			s.keepChanges(a)
		} else {
			defer s.keepChanges(a)
		}
	}
	reason := s.takeWanted()
	if reason == "" && some && s.begun {
		// Whoever led before may have made it: the interval counts from there. One that is dated in the future doesn't count.
		if age := s.now().Sub(newest.TakenBy(s.now())); age < s.o.interval {
			return min(s.o.interval-age, look), nil
		}
	}
	// What this instance has made counts by its own watch, whatever its name says.
	if left := s.o.interval - s.now().Sub(s.taken); reason == "" && !s.taken.IsZero() && left > 0 {
		return min(left, look), nil
	}
	name, err := s.catalog.NextBackupName(ctx, s.now())
	if err != nil {
		return longestRetry, err
	}
	if err := s.backup(ctx, name, status, cmp.Or(reason, "periodic")); err != nil {
		s.wantAgain(reason)
		return longestRetry, err
	}
	s.begun, s.taken = true, s.now()
	s.show(func(v *shown) { v.newest, v.backups = s.now(), len(list.Backups)+1 })
	if err := s.retain(ctx); err != nil {
		// The backup stands; what is too much goes after the next one.
		klog.Errorf("old backups could not be removed, next attempt in %s: %v", s.o.interval, err)
	}
	return look, nil
}

func (s *sidecar) status(ctx context.Context) (etcdclient.Status, error) {
	return statusOf(ctx, s.client)
}

func statusOf(ctx context.Context, c *etcdclient.Client) (etcdclient.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	st, err := c.Status(ctx)
	if err == nil && st.Leader == 0 {
		err = fmt.Errorf("member %s knows no etcd leader", st.MemberID)
	}
	return st, err
}

// backup streams one snapshot into the store.
func (s *sidecar) backup(ctx context.Context, name string, status etcdclient.Status, reason string) error {
	spec, err := s.spec(ctx, status)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(stallTimeout, func() { cancel(errStalled) })
	defer watchdog.Stop()
	asked := s.now()
	if status, err = s.status(ctx); err != nil {
		return err
	}
	snapshot, err := s.client.Snapshot(ctx)
	if err != nil {
		return err
	}
	// The snapshot's revision is between this one and the one before. What it is exactly, is not to be had without opening it.
	after, err := s.status(ctx)
	if err != nil {
		return errors.Join(err, snapshot.Close())
	}
	facts := backup.Facts{ClusterName: s.o.clusterName, ClusterID: status.ClusterID, MemberID: status.MemberID, Node: s.fence.node,
		EtcdVersion: status.Version, Spec: spec, Revision: status.Revision, RevisionAtMost: after.Revision,
		RevisionAt: asked, Size: snapshot.Size, Reason: reason}
	m, err := s.writer.Write(ctx, name, facts, snapshot.Unverified(), func(backup.Progress) { watchdog.Reset(stallTimeout); s.progress() })
	if err != nil {
		return err
	}
	klog.Infof("backup %s (%s): revision %d, %d bytes stored as %d in %s", name, reason, m.Revision, m.Raw.Size,
		m.Stored.Size, m.Duration().Round(time.Millisecond))
	return nil
}

// spec is what the meta file says of the cluster: the spec in the store, else what runs.
func (s *sidecar) spec(ctx context.Context, status etcdclient.Status) (cluster.Spec, error) {
	spec, _, err := s.catalog.Spec(ctx)
	if err == nil {
		return spec, nil
	}
	if !errors.Is(err, catalog.ErrNotFound) && !errors.Is(err, cluster.ErrCorrupt) {
		return cluster.Spec{}, err
	}
	mctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	members, err := s.client.Members(mctx, false)
	if err != nil {
		return cluster.Spec{}, err
	}
	spec = cluster.Spec{EtcdVersion: status.Version}
	for _, m := range members {
		if !m.Learner {
			spec.MemberCount++
		}
	}
	return spec, nil
}

// retain removes what the policy gives up, within the bounds of one run. Why the store denies it is said once.
func (s *sidecar) retain(ctx context.Context) error {
	s.progress()
	ex, err := s.pruner.Exempt(ctx)
	if err != nil {
		return err
	}
	r, err := s.pruner.Run(ctx, s.now(), ex)
	if r.Backups+r.Objects+r.Segments > 0 {
		klog.Infof("removed %s (%s) and %s of changes", cluster.Count(r.Backups, "old backup"),
			cluster.Count(r.Objects, "object"), cluster.Count(r.Segments, "segment"))
	}
	s.show(func(v *shown) { v.denied = r.Hold() })
	if r.News || r.Refused > 0 {
		klog.Errorf("retention: %s", r.Hold())
	}
	return err
}
