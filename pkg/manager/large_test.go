package manager

import (
	"context"
	"flag"
	"fmt"
	"io"
	"iter"
	"path"
	"runtime"
	"sort"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan"
)

var largeStore = flag.Bool("large-store", false, "TestLargeStore with 100,000 backups, 50,000 segments, 150 ms a request; it takes minutes")

// longStore is a store with very many backups and segments, which are made up when they are asked for. Each request, and each page
// of a listing, takes a while.
type longStore struct {
	*blobtest.Memory
	backups, segments int
	newest            time.Time
	delay             time.Duration
	requests          atomic.Int64
}

const manifestName = "_etcd_manager_manifest.json"

// backupFiles are the names of a backup's files, sorted.
var backupFiles = [...]string{"_etcd_backup.meta", manifestName, catalog.DataFile}

const segmentsBelow = "changes/0000000000000001/"

// name is that of a backup; one was taken every minute.
func (s *longStore) name(i int) string {
	return s.newest.Add(-time.Duration(s.backups-1-i)*time.Minute).Format(time.RFC3339) + "-000000"
}

func (s *longStore) key(i int) string {
	if n := i / len(backupFiles); n < s.backups {
		return s.name(n) + "/" + backupFiles[i%len(backupFiles)]
	}
	n := int64(i - s.backups*len(backupFiles))
	name := catalog.SegmentName{First: n*10 + 1, Last: n*10 + 10, Ended: s.newest, Previous: catalog.NoSegment, Sum: catalog.NoSegment}
	return segmentsBelow + name.String()
}

func (s *longStore) wait(ctx context.Context, op, key string) error {
	s.requests.Add(1)
	select {
	case <-ctx.Done():
		return &blob.Error{Op: op, Key: key, Err: ctx.Err()}
	case <-time.After(s.delay):
		return nil
	}
}

func (s *longStore) Put(ctx context.Context, key string, body io.Reader, opts blob.PutOptions) (blob.Info, error) {
	if err := s.wait(ctx, "put", key); err != nil {
		return blob.Info{}, err
	}
	return s.Memory.Put(ctx, key, body, opts)
}

func (s *longStore) Stat(ctx context.Context, key string) (blob.Info, error) {
	if err := s.wait(ctx, "stat", key); err != nil {
		return blob.Info{}, err
	}
	return s.Memory.Stat(ctx, key)
}

func (s *longStore) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	if err := s.wait(ctx, "get", key); err != nil {
		return nil, blob.Info{}, err
	}
	name, file := path.Split(key)
	name = strings.TrimSuffix(name, "/")
	if at := catalog.BackupTime(name); file == manifestName && !at.IsZero() {
		made := blobtest.NewMemory()
		digest := catalog.Digest{Size: 1, SHA256: strings.Repeat("0", 64)}
		m := &catalog.Manifest{Backup: name, ClusterName: "test", ClusterID: 1, MemberID: 1, EtcdVersion: "3.6.0",
			Revision: s.revision(at), Raw: digest, Stored: digest, Compression: catalog.CompressionGzip,
			Reason: "periodic", Started: at, Finished: at, ToolVersion: "x"}
		if err := catalog.New(made).PutManifest(ctx, m); err != nil {
			return nil, blob.Info{}, err
		}
		return made.Get(ctx, key, r)
	}
	return s.Memory.Get(ctx, key, r)
}

// revision is that of the backup of a time.
func (s *longStore) revision(at time.Time) int64 {
	return int64(s.backups)*10 - int64(s.newest.Sub(at)/time.Minute)
}

func (s *longStore) List(ctx context.Context, prefix string, opts blob.ListOptions) iter.Seq2[blob.Entry, error] {
	return func(yield func(blob.Entry, error) bool) {
		n := 0
		page := func(e blob.Entry) bool {
			if n++; n%1000 == 0 {
				if err := s.wait(ctx, "list", prefix); err != nil {
					yield(blob.Entry{}, err)
					return false
				}
			}
			return yield(e, nil)
		}
		if err := s.wait(ctx, "list", prefix); err != nil {
			yield(blob.Entry{}, err)
			return
		}
		total := s.backups*len(backupFiles) + s.segments
		last := ""
		for i := sort.Search(total, func(i int) bool { return s.key(i) >= prefix && s.key(i) > opts.After }); i < total; i++ {
			e := blob.Entry{Info: blob.Info{Key: s.key(i), Size: 1, Version: "1", Modified: s.newest}}
			if !strings.HasPrefix(e.Key, prefix) {
				break
			}
			if j := strings.Index(e.Key[len(prefix):], "/"); j >= 0 && opts.Delimiter != "" {
				e = blob.Entry{Info: blob.Info{Key: e.Key[:len(prefix)+j+1]}, Prefix: true}
			}
			if e.Key == last || e.Key <= opts.After {
				continue
			}
			last = e.Key
			if !page(e) {
				return
			}
		}
		for e, err := range s.Memory.List(ctx, prefix, opts) { // all of these come behind
			if err != nil || !page(e) {
				return
			}
		}
	}
}

// TestLargeStore: however much is stored, a leader that follows another one obeys a queued restore within seconds, with few
// requests, in little memory.
func TestLargeStore(t *testing.T) {
	newest := time.Now().UTC().Truncate(time.Second).Add(-time.Minute)
	s := &longStore{Memory: blobtest.NewMemory(), backups: 30_000, segments: 1500, newest: newest}
	fill(t, s.Memory)
	for i := range catalog.OperationHistory { // as many records as are kept
		op := catalog.Operation{ID: fmt.Sprintf("2026-01-28T01:02:03Z-%06d", i), Kind: catalog.KindRestore, State: catalog.StateDone, Term: 3}
		_, err := catalog.New(s.Memory).PutOperation(t.Context(), op, "")
		must(t, err)
	}
	// What a failover needs beside the store (an election, and that another leader counts as gone) takes three seconds.
	s.delay = 10 * time.Millisecond
	if *largeStore {
		s.backups, s.segments, s.delay = 100_000, 50_000, 150*time.Millisecond
	}
	peak := heap(t)
	l := leads(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	defer func() { cancel(); l.wg.Wait() }()
	begun := time.Now()
	counted := make(chan struct{})
	l.wg.Go(func() { defer close(counted); l.learnBackups(ctx) })
	l.readStore(ctx)
	if l.store.Error != "" || ready(&l.store, true) != "" {
		t.Fatalf("after %s: %+v", time.Since(begun), l.store.Store)
	}
	command := l.store.Commands[0]
	op := plan.Operation{ID: "2026-01-31T01:02:03Z-000000", Backup: command.Backup, Size: 3, Version: "3.6.0",
		Nodes: []cluster.EtcdNode{{Name: "a"}}, Token: "new", OldToken: "tok"}
	l.m.fences = true
	must(t, l.takeTerm(ctx))
	must(t, l.beginRestore(ctx, &plan.Observation{}, plan.BeginRestore{Command: command.Name, Op: op}))
	took, requests := time.Since(begun), s.requests.Load()
	t.Logf("the restore was begun after %s and %d requests, those of the counting among them", took, requests)
	if took > 7*time.Second || requests > 150 {
		t.Errorf("it took %s and %d requests", took, requests)
	}
	if want := s.revision(s.newest); l.op.RevisionBefore < want {
		t.Errorf("the restore begins above revision %d, and the newest backup has %d", l.op.RevisionBefore, want)
	}
	<-counted
	if l.backups != s.backups || !l.newestKnown || !l.newest.Equal(s.newest) {
		t.Errorf("%d backups were counted, the newest of %s", l.backups, l.newest)
	}
	ex, err := l.pruner.Exempt(ctx)
	must(t, err)
	_, err = l.pruner.Plan(ctx, time.Now(), ex)
	must(t, err)
	if most := peak(); most > 100<<20 {
		t.Errorf("it took %d MiB of memory", most>>20)
	}
}

// heap samples how much memory is in use until its result is called, which tells how much it grew at most.
func heap(t *testing.T) (peak func() uint64) {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	before, most := m.HeapAlloc, m.HeapAlloc
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for tick := time.NewTicker(50 * time.Millisecond); ; {
			select {
			case <-stop:
				return
			case <-tick.C:
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapAlloc)
			}
		}
	}()
	return func() uint64 {
		close(stop)
		<-done
		t.Logf("the heap grew by %d MiB at most", (most-before)>>20)
		return most - before
	}
}
