package manager

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

var largeStore = flag.Bool("large-store", false, "TestLargeStore with 100,000 backups, 50,000 segments, 150 ms a request; it takes minutes")

// longStore is a store with very many backups and segments.
type longStore struct {
	*blobtest.Long
	backups, segments int
	newest            time.Time
}

func newLongStore(backups, segments int, delay time.Duration) *longStore {
	newest := time.Now().UTC().Truncate(time.Second).Add(-time.Minute)
	s := &longStore{&blobtest.Long{Memory: blobtest.NewMemory(), Modified: newest, Delay: delay}, backups, segments, newest}
	s.Count, s.Key, s.Body = backups*len(backupFiles)+segments, s.key, s.body
	return s
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

// body makes up manifests.
func (s *longStore) body(key string) []byte {
	name, file := path.Split(key)
	name = strings.TrimSuffix(name, "/")
	at := catalog.BackupTime(name)
	if file != manifestName || at.IsZero() {
		return nil
	}
	made := blobtest.NewMemory()
	digest := catalog.Digest{Size: 1, SHA256: strings.Repeat("0", 64)}
	m := &catalog.Manifest{Backup: name, ClusterName: "test", ClusterID: 1, MemberID: 1, EtcdVersion: "3.6.0",
		Revision: s.revision(at), Raw: digest, Stored: digest, Compression: catalog.CompressionGzip,
		Reason: "periodic", Started: at, Finished: at, ToolVersion: "x"}
	if err := catalog.New(made).PutManifest(context.Background(), m); err != nil {
		panic(err)
	}
	r, _, err := made.Get(context.Background(), key, blob.Range{})
	if err != nil {
		panic(err)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		panic(err)
	}
	return data
}

// revision is that of the backup of a time.
func (s *longStore) revision(at time.Time) int64 {
	return int64(s.backups)*10 - int64(s.newest.Sub(at)/time.Minute)
}

// TestLargeStore: however much is stored, a leader that follows another one obeys a queued restore within seconds, with few
// requests, in little memory.
func TestLargeStore(t *testing.T) {
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(64 << 20)) // as the manager has it
	// What a failover needs beside the store (an election, and that another leader counts as gone) takes three seconds.
	s := newLongStore(30_000, 1500, 10*time.Millisecond)
	if *largeStore {
		s = newLongStore(100_000, 50_000, 150*time.Millisecond)
	}
	fill(t, s.Memory)
	for i := range catalog.OperationHistory { // as many records as are kept
		op := catalog.Operation{ID: fmt.Sprintf("2026-01-28T01:02:03Z-%06d", i), Kind: catalog.KindRestore, State: catalog.StateDone, Term: 3}
		_, err := catalog.New(s.Memory).PutOperation(t.Context(), op, "")
		must(t, err)
	}
	peak := heap(t)
	l := leads(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	defer func() { cancel(); l.wg.Wait() }()
	begun := time.Now()
	must(t, l.m.readFirst(ctx))
	t.Logf("queue and spec were read first after %s and %d requests", time.Since(begun), s.Requests.Load())
	counted := make(chan struct{})
	l.wg.Go(func() { defer close(counted); l.backups.learn(ctx) })
	l.readStore(ctx)
	if l.store.away() || ready(l, 1, true) != "" {
		t.Fatalf("after %s: %+v", time.Since(begun), l.known())
	}
	command := l.known().Commands[0]
	op := model.Operation{ID: "2026-01-31T01:02:03Z-000000", Backup: command.Backup, Size: 3, Version: "3.6.0",
		Nodes: []cluster.EtcdNode{{Name: "a"}}, Token: "new", OldToken: "tok"}
	must(t, l.m.probe(ctx))
	must(t, l.record.takeTerm(ctx))
	must(t, l.restorer.beginRestore(ctx, &model.Observation{}, model.BeginRestore{Command: command.Name, Op: op}))
	took, requests := time.Since(begun), s.Requests.Load()
	t.Logf("the restore was begun after %s and %d requests, those of the counting among them", took, requests)
	if took > 7*time.Second || requests > 150 {
		t.Errorf("it took %s and %d requests", took, requests)
	}
	if want := s.revision(s.newest); l.operations.current().RevisionBefore < want {
		t.Errorf("the restore begins above revision %d, and the newest backup has %d", l.operations.current().RevisionBefore, want)
	}
	<-counted
	if l.retention.stored != s.backups || !l.backups.newestKnown || !l.backups.newest.Equal(s.newest) {
		t.Errorf("%d backups were counted, the newest of %s", l.retention.stored, l.backups.newest)
	}
	for what, do := range map[string]func() error{
		"retention": func() error { _, err := l.retention.thinOut(ctx); return err },
		"a look whether a proof is due": func() error {
			if _, err := l.proofs.verifyIfDue(ctx, time.Hour, true); err == nil || !strings.Contains(err.Error(), "postponed") {
				return fmt.Errorf("a backup was to be found that is proven when the cluster is at rest: %v", err)
			}
			return nil
		},
	} {
		begun, before := time.Now(), s.Requests.Load()
		must(t, do())
		requests := s.Requests.Load() - before
		t.Logf("%s took %s and %d requests", what, time.Since(begun), requests)
		if requests == 0 {
			t.Errorf("%s asked the store nothing", what)
		}
	}
	if most := peak(); most > 64<<20 {
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
		status, err := os.ReadFile("/proc/self/status")
		must(t, err)
		rss := regexp.MustCompile(`VmHWM:\s*(.*)`).FindSubmatch(status)
		t.Logf("the heap grew by %d MiB at most; the process had %s at most", (most-before)>>20, rss[1])
		return most - before
	}
}
