package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/blob/file"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// TestHealthyStore: nobody is asked while the own store can be read.
func TestHealthyStore(t *testing.T) {
	w := newWorld(t, 500)
	w.fetch()
	if calls := w.leader.store.Calls(); len(calls) != 0 {
		t.Errorf("the leader was asked: %v", calls)
	}
	w.checkSaid()
}

// TestBrokenFromTheStart reads a whole backup although the own store fails at once, in each way that may be this node's alone.
func TestBrokenFromTheStart(t *testing.T) {
	for what, fail := range map[string]func(op, key string) error{
		"out of reach": blobtest.Transient, "denied": denied, "not mounted": noMount, "something else": strange,
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, 300)
			w.primary.Add(blobtest.Fault{Err: fail("get", "store")})
			w.fetch()
			w.checkSaid("the leader, node b")
			if n := count(w.primary, "get"); n != 1 {
				t.Errorf("the own store was asked %d times; want 1, and then the leader first", n)
			}
			w.fetch()
			w.pass(hold + time.Second)
			w.fetch()
			if n := count(w.primary, "get"); n != 2 {
				t.Errorf("the own store was asked %d times; want another one when some time had passed", n)
			}
			w.checkSaid("the leader, node b")
			w.primary.Heal()
			w.pass(hold + time.Second)
			before := count(w.leader.store, "get")
			w.fetch()
			if n := count(w.leader.store, "get"); n != before {
				t.Error("the leader was asked although the own store was whole again")
			}
			w.checkSaid("the leader, node b", "can be read from here again")
		})
	}
}

// TestBreaksInTheMiddle: the own store fails while the data are read, for good.
func TestBreaksInTheMiddle(t *testing.T) {
	for what, fail := range map[string]func(op, key string) error{"out of reach": blobtest.Transient, "denied": denied,
		"something else": strange} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, 1000)
			isData := func(key string) bool { return key == dataKey }
			w.primary.Add(blobtest.Fault{Op: "get", Match: isData, Times: 1, BreakAfter: 700_000, Err: fail("get", dataKey)})
			w.primary.Add(blobtest.Fault{Op: "get", Match: isData, Err: fail("get", dataKey)})
			w.fetch()
			if n := count(w.leader.store, "get"); n != 1 {
				t.Errorf("the leader was asked %d times; want once, for the rest of the data", n)
			}
			w.checkSaid("the leader, node b")
		})
	}
}

// stopAt is a store whose Get calls stop once when a reader has taken that many bytes.
type stopAt struct {
	blob.Store
	bytes int64
	once  sync.Once
	stop  func()
}

func (s *stopAt) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	rc, info, err := s.Store.Get(ctx, key, r)
	return &stopReader{ReadCloser: rc, s: s, left: s.bytes}, info, err
}

type stopReader struct {
	io.ReadCloser
	s    *stopAt
	left int64
}

func (r *stopReader) Read(p []byte) (int, error) {
	if r.left -= int64(len(p)); r.left < 0 {
		r.s.once.Do(r.s.stop)
	}
	return r.ReadCloser.Read(p)
}

// TestLeaderGoesInTheMiddle: the leader dies while the backup is read through it. For a while nobody leads; then another one does.
func TestLeaderGoesInTheMiddle(t *testing.T) {
	w := newWorld(t, 1000)
	w.primary.Add(blobtest.Fault{Err: blobtest.Transient("get", "store")})
	second := w.manager("c", clusterName)
	var lookups atomic.Int32
	first := &manager{id: "b"}
	first.serve(t, clusterName, &stopAt{Store: w.files, bytes: 1_000_000, stop: func() {
		w.lead(nil, errNobody)
		lookups.Store(0)
		go first.server.Stop() // it waits for the handler that we are in
	}})
	w.lead(first, nil)
	inner := w.fallback.leader
	w.fallback.leader = func() (Leader, error) {
		l, err := inner()
		if err != nil && lookups.Add(1) == 3 {
			w.lead(second, nil)
		}
		return l, err
	}
	w.fetch()
	if n := count(second.store, "get"); n != 1 {
		t.Errorf("the next leader was asked %d times; want once, for the rest of the data", n)
	}
	w.checkSaid("the leader, node b")
}

// TestNobodyLeads: the error is transient, and says so of both.
func TestNobodyLeads(t *testing.T) {
	w := newWorld(t, 1)
	w.primary.Add(blobtest.Fault{Err: denied("get", "store")})
	w.lead(nil, errNobody)
	_, _, err := w.fallback.Get(t.Context(), dataKey, blob.Range{})
	if !errors.Is(err, blob.ErrTransient) || errors.Is(err, blob.ErrDenied) {
		t.Errorf("got %v; want it to be transient", err)
	}
	for _, part := range []string{"s3:GetObject", errNobody.Error(), dataKey} {
		if !strings.Contains(fmt.Sprint(err), part) {
			t.Errorf("the error doesn't say %q: %v", part, err)
		}
	}
	w.checkSaid()
}

// TestBothFail holds the kind of the error to the kinds of both.
func TestBothFail(t *testing.T) {
	for _, c := range []struct {
		own, leaders error
		want         error
	}{
		{denied("get", "own"), denied("get", "leader's"), blob.ErrDenied},
		{denied("get", "own"), blobtest.Transient("get", "leader's"), blob.ErrTransient},
		{blobtest.Transient("get", "own"), denied("get", "leader's"), blob.ErrTransient},
		{blobtest.Transient("get", "own"), blobtest.Transient("get", "leader's"), blob.ErrTransient},
		{noMount("get", "own"), noMount("get", "leader's"), blob.ErrInvalid},
		{strange("get", "own"), strange("get", "leader's"), nil},
		{strange("get", "own"), denied("get", "leader's"), nil},
	} {
		w := newWorld(t, 1)
		w.primary.Add(blobtest.Fault{Err: c.own})
		w.leader.store.Add(blobtest.Fault{Err: c.leaders})
		_, _, err := w.fallback.Get(t.Context(), dataKey, blob.Range{})
		_, serr := w.fallback.Stat(t.Context(), dataKey)
		for _, err := range []error{err, serr} {
			var e *blob.Error
			if !errors.As(err, &e) || e.Kind != c.want {
				t.Errorf("%v and %v: got %v; want kind %v", c.own, c.leaders, err, c.want)
				continue
			}
			for _, sentinel := range []error{blob.ErrDenied, blob.ErrTransient, blob.ErrInvalid, blob.ErrNotFound} {
				if errors.Is(err, sentinel) != (sentinel == c.want) {
					t.Errorf("%v: errors.Is(%v) is wrong", err, sentinel)
				}
			}
			for _, part := range []string{"get own", "node b", "get leader's"} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("the error doesn't say %q: %v", part, err)
				}
			}
		}
		w.checkSaid()
	}
}

// TestNotFound: that there is no such object is never a reason to ask another, and passes through the relay.
func TestNotFound(t *testing.T) {
	w := newWorld(t, 1)
	elsewhere := blobtest.NewMemory()
	w.use(elsewhere)
	for _, key := range []string{dataKey, manifestKey} {
		_, _, err := w.store.Get(t.Context(), key, blob.Range{})
		_, serr := w.store.Stat(t.Context(), key)
		if !errors.Is(err, blob.ErrNotFound) || !errors.Is(serr, blob.ErrNotFound) {
			t.Errorf("got %v and %v; want what the own store says", err, serr)
		}
	}
	if calls := w.leader.store.Calls(); len(calls) != 0 {
		t.Errorf("the leader was asked: %v", calls)
	}

	w.use(w.primary)
	w.primary.Add(blobtest.Fault{Err: blobtest.Transient("get", "store")})
	const absent = "2026-01-30T01:02:03Z-000010/etcd.backup.gz"
	for range 2 { // the second time the leader is asked first, and the own store not at all
		_, _, err := w.store.Get(t.Context(), absent, blob.Range{})
		_, serr := w.store.Stat(t.Context(), absent)
		for _, err := range []error{err, serr} {
			if !errors.Is(err, blob.ErrNotFound) || errors.Is(err, blob.ErrTransient) {
				t.Errorf("got %v; want what the leader's store says", err)
			}
		}
	}
	if n := len(w.primary.Calls()); n != 1 {
		t.Errorf("the own store was asked %d times; want once", n)
	}
	// A backup of another tool has no manifest; that must be told from one that can't be read.
	if _, err := catalog.New(w.store).Manifest(t.Context(), "2026-01-30T01:02:03Z-000010"); !errors.Is(err, catalog.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

// TestKeysThatAreRefused: the server gives out nothing but files of backups, whoever asks.
func TestKeysThatAreRefused(t *testing.T) {
	w := newWorld(t, 1)
	client := protosv1.NewRelayServiceClient(w.leader.conn)
	get := func(cluster, key string) error {
		s, err := client.Get(t.Context(), &protosv1.RelayGetRequest{ClusterName: cluster, Key: key})
		must(t, err)
		_, err = s.Recv()
		return err
	}
	_, err := w.files.Put(t.Context(), "control/etcd-cluster-spec", strings.NewReader("{}"), blob.PutOptions{})
	must(t, err)
	for _, key := range []string{
		"control/etcd-cluster-spec", "control/etcd.backup.gz", "control/x/etcd.backup.gz", "discovery/etcd.backup.gz",
		"changes/etcd.backup.gz",
		name + "/other", name, name + "/", "a/b/etcd.backup.gz", "../etcd.backup.gz",
		name + "/../control/etcd-cluster-spec", "/etcd.backup.gz", "", "x\\y/etcd.backup.gz",
	} {
		_, serr := client.Stat(t.Context(), &protosv1.RelayStatRequest{ClusterName: clusterName, Key: key})
		for _, err := range []error{get(clusterName, key), serr} {
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("%q: got %v", key, err)
			}
		}
	}
	_, serr := client.Stat(t.Context(), &protosv1.RelayStatRequest{ClusterName: "other", Key: dataKey})
	for _, err := range []error{get("other", dataKey), serr} {
		if status.Code(err) != codes.FailedPrecondition {
			t.Errorf("a request for another cluster: got %v", err)
		}
	}
	if calls := w.leader.store.Calls(); len(calls) != 0 {
		t.Errorf("the store was asked: %v", calls)
	}
	must(t, get(clusterName, dataKey))
}

// TestOnlyReadingBackupsIsRelayed: everything else goes to the own store alone, with its errors.
func TestOnlyReadingBackupsIsRelayed(t *testing.T) {
	w := newWorld(t, 1)
	s, ctx := w.fallback, t.Context()
	w.primary.Add(blobtest.Fault{Err: blobtest.Transient("get", "store")})
	_, _, err := s.Get(ctx, "control/etcd-cluster-spec", blob.Range{})
	_, serr := s.Stat(ctx, "control/leader")
	_, perr := s.Put(ctx, name+"/_etcd_backup.meta", strings.NewReader("x"), blob.PutOptions{IfAbsent: true})
	_, derr := s.Purge(ctx, name, func(string) bool { return true })
	var lerr error
	for _, e := range s.List(ctx, name, blob.ListOptions{}) {
		lerr = e
	}
	for i, err := range []error{err, serr, perr, derr, lerr} {
		if !errors.Is(err, blob.ErrTransient) || strings.Contains(err.Error(), "node b") {
			t.Errorf("operation %d: got %v; want the own store's error", i, err)
		}
	}
	w.primary.Heal()
	info, err := s.Put(ctx, "2026-01-30T01:02:04Z-000000/etcd.backup.gz", strings.NewReader("x"), blob.PutOptions{})
	must(t, err)
	if info.Size != 1 || count(w.primary, "put") != 2 {
		t.Errorf("the put wasn't the own store's: %+v", info)
	}
	if calls := w.leader.store.Calls(); len(calls) != 0 {
		t.Errorf("the leader was asked: %v", calls)
	}
}

// TestTheLeaderItself asks nobody.
func TestTheLeaderItself(t *testing.T) {
	w := newWorld(t, 1)
	w.lead(nil, fmt.Errorf("look for the leader: %w", ErrSelf))
	w.fetch()
	w.primary.Add(blobtest.Fault{Err: denied("get", "store")})
	_, _, err := w.fallback.Get(t.Context(), dataKey, blob.Range{})
	if !errors.Is(err, blob.ErrDenied) {
		t.Errorf("got %v; want the own store's error", err)
	}
	// The same if it comes to lead between two looks.
	looks := 0
	w.fallback.leader = func() (Leader, error) {
		if looks++; looks == 1 {
			return Leader{}, errNobody
		}
		return w.lookup()
	}
	if _, err := w.fallback.Stat(t.Context(), dataKey); !errors.Is(err, blob.ErrDenied) || looks != 2 {
		t.Errorf("got %v after %d looks; want the own store's error", err, looks)
	}
	w.checkSaid()
}

// TestRanges compares what is read through the leader with what the store gives.
func TestRanges(t *testing.T) {
	w := newWorld(t, 300)
	w.primary.Add(blobtest.Fault{Err: blobtest.Transient("get", "store")})
	whole, want, err := all(t, w.files, dataKey, blob.Range{})
	must(t, err)
	size := int64(len(whole))
	if size < 2*chunk {
		t.Fatalf("the data have %d bytes only", size)
	}
	for _, r := range []blob.Range{{}, {Offset: 1}, {Length: 1}, {Offset: chunk - 1, Length: 2}, {Offset: size - 1},
		{Offset: 5, Length: chunk}, {Offset: 5, Length: 10 * size}} {
		n, err := blob.CheckRange(r, size)
		must(t, err)
		got, info, err := all(t, w.store, dataKey, r)
		must(t, err)
		if !bytes.Equal(got, whole[r.Offset:r.Offset+n]) || info != want {
			t.Errorf("%+v: %d bytes of %+v; want %d of %+v", r, len(got), info, n, want)
		}
	}
	if info, err := w.store.Stat(t.Context(), dataKey); err != nil || info != want {
		t.Errorf("Stat: %+v, %v; want %+v", info, err, want)
	}
	for _, r := range []blob.Range{{Offset: size}, {Offset: -1}, {Length: -1}} {
		if _, _, err := w.leader.get(t, r); !errors.Is(err, blob.ErrInvalid) {
			t.Errorf("%+v: got %v", r, err)
		}
	}
	_, err = w.files.Put(t.Context(), "empty/etcd.backup.gz", strings.NewReader(""), blob.PutOptions{})
	must(t, err)
	if got, info, err := all(t, w.store, "empty/etcd.backup.gz", blob.Range{}); err != nil || len(got) != 0 || info.Size != 0 {
		t.Errorf("an empty object: %d bytes, %+v, %v", len(got), info, err)
	}
}

func (m *manager) get(t *testing.T, r blob.Range) (io.ReadCloser, blob.Info, error) {
	return remote{leader: Leader{Node: m.id, Conn: m.conn}, clusterName: clusterName}.get(t.Context(), dataKey, r)
}

// TestCutShort: what the leader's store loses on the way is never taken for the end.
func TestCutShort(t *testing.T) {
	w := newWorld(t, 300)
	for what, fault := range map[string]blobtest.Fault{
		"ends early": {Truncate: chunk + 77},
		"breaks off": {BreakAfter: chunk + 77, Err: blobtest.Transient("get", "store")},
	} {
		w.leader.store.Heal()
		w.leader.store.Add(fault)
		rc, info, err := w.leader.get(t, blob.Range{})
		must(t, err)
		n, err := io.Copy(io.Discard, rc)
		if err == nil || n >= info.Size {
			t.Errorf("%s: %d of %d bytes and no error", what, n, info.Size)
		}
	}
	w.leader.store.Heal()
	w.leader.store.Add(blobtest.Fault{Times: 2, Truncate: chunk + 77})
	w.primary.Add(blobtest.Fault{Err: blobtest.Transient("get", "store")})
	w.fetch()
}

// TestHangingStore: a store that doesn't answer at all delays a restore by the patience, once.
func TestHangingStore(t *testing.T) {
	w := newWorld(t, 300)
	w.fallback.patience = 50 * time.Millisecond
	w.primary.Add(blobtest.Fault{Hang: make(chan struct{})})
	w.fetch()
	if n := len(w.primary.Calls()); n != 1 {
		t.Errorf("the own store was asked %d times; want once", n)
	}
	w.checkSaid("no answer within 50ms")
}

// TestSlowStore: a store that is merely slow is waited for if the leader can't help, and if the leader comes back meanwhile, it does help.
func TestSlowStore(t *testing.T) {
	w := newWorld(t, 300)
	w.fallback.patience = 20 * time.Millisecond
	lookups := make(chan struct{}, 1000)
	leader := w.leader
	w.lead(nil, errNobody)
	w.fallback.leader = func() (Leader, error) {
		select {
		case lookups <- struct{}{}:
		default:
		}
		return w.lookup()
	}
	answers := make(chan struct{})
	w.primary.Add(blobtest.Fault{Times: 1, Hang: answers})
	go func() {
		for range 4 {
			<-lookups
		}
		close(answers)
	}()
	_, err := w.fallback.Stat(t.Context(), dataKey)
	must(t, err)
	w.checkSaid()

	w.primary.Add(blobtest.Fault{Hang: make(chan struct{})})
	for len(lookups) > 0 {
		<-lookups
	}
	go func() {
		for range 4 {
			<-lookups
		}
		w.lead(leader, nil)
	}()
	_, err = w.fallback.Stat(t.Context(), dataKey)
	must(t, err)
	w.checkSaid("no answer")
}

// hangingBodies is a store whose bodies give a few bytes and then nothing until the context ends.
type hangingBodies struct{ blob.Store }

func (h hangingBodies) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	rc, info, err := h.Store.Get(ctx, key, r)
	if err == nil && strings.HasSuffix(key, catalog.DataFile) {
		rc = &hangingBody{ReadCloser: rc, ctx: ctx, left: 100_000}
	}
	return rc, info, err
}

type hangingBody struct {
	io.ReadCloser
	ctx  context.Context
	left int
}

func (h *hangingBody) Read(p []byte) (int, error) {
	if h.left == 0 {
		<-h.ctx.Done()
		return 0, h.ctx.Err()
	}
	n, err := h.ReadCloser.Read(p[:min(len(p), h.left)])
	h.left -= n
	return n, err
}

// TestHangsInTheMiddle: bytes that stop coming are a failure too, of the own store and of the leader's.
func TestHangsInTheMiddle(t *testing.T) {
	w := newWorld(t, 300)
	w.use(hangingBodies{w.files})
	w.fallback.stall = 100 * time.Millisecond
	w.fetch()
	w.checkSaid(errStalled.Error())

	w = newWorld(t, 300)
	stuck := &manager{id: "c"}
	stuck.serve(t, clusterName, hangingBodies{w.files})
	w.fallback.stall = 100 * time.Millisecond
	rc, _, err := w.fallback.Get(t.Context(), dataKey, blob.Range{})
	must(t, err)
	rc.Close()
	w.primary.Add(blobtest.Fault{Err: blobtest.Transient("get", "store")})
	healthy := w.leader
	w.lead(stuck, nil)
	rc, _, err = w.fallback.Get(t.Context(), dataKey, blob.Range{})
	must(t, err)
	defer rc.Close()
	if _, err := io.Copy(io.Discard, rc); !errors.Is(err, blob.ErrTransient) {
		t.Errorf("got %v", err)
	}
	w.lead(healthy, nil)
	w.fetch()
}

// TestCancel: who gives up gets his own error at once, and neither side keeps anything.
func TestCancel(t *testing.T) {
	w := newWorld(t, 1000)
	w.primary.Add(blobtest.Fault{Err: blobtest.Transient("get", "store")})
	w.leader.store.Add(blobtest.Fault{Op: "stat", Hang: make(chan struct{})})
	ctx, cancel := context.WithCancel(t.Context())
	rc, _, err := w.store.Get(ctx, dataKey, blob.Range{})
	must(t, err)
	_, err = io.ReadFull(rc, make([]byte, 1000))
	must(t, err)
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := w.store.Stat(ctx, dataKey); !errors.Is(err, context.Canceled) || errors.Is(err, blob.ErrTransient) {
		t.Errorf("a Stat that hangs: got %v", err)
	}
	if _, err := io.Copy(io.Discard, rc); !errors.Is(err, context.Canceled) || errors.Is(err, blob.ErrTransient) {
		t.Errorf("reading: got %v", err)
	}
	rc.Close()
	if _, _, err := w.store.Get(ctx, dataKey, blob.Range{}); !errors.Is(err, context.Canceled) {
		t.Errorf("a Get when all is over: got %v", err)
	}
	w.fetch() // the leader is still asked first and well
}

// TestStreamsAreLimited: one more than the server takes is told to come back, and a closed reader makes room.
func TestStreamsAreLimited(t *testing.T) {
	w := newWorld(t, 1000)
	w.primary.Add(blobtest.Fault{Err: blobtest.Transient("get", "store")})
	var open []io.Closer
	for range maxStreams {
		rc, _, err := w.fallback.Get(t.Context(), dataKey, blob.Range{})
		must(t, err)
		open = append(open, rc)
	}
	_, _, err := w.fallback.Get(t.Context(), dataKey, blob.Range{})
	if !errors.Is(err, blob.ErrTransient) || !strings.Contains(err.Error(), "try again") {
		t.Errorf("one stream too many: got %v", err)
	}
	for _, rc := range open {
		rc.Close()
	}
	w.fetch()
}

// TestOldManager: a leader without the service doesn't make it worse.
func TestOldManager(t *testing.T) {
	w := newWorld(t, 1)
	old := &manager{id: "old"}
	old.serve(t, clusterName, nil)
	w.lead(old, nil)
	w.primary.Add(blobtest.Fault{Err: denied("get", "store")})
	if _, err := w.fallback.Stat(t.Context(), dataKey); !errors.Is(err, blob.ErrTransient) || !strings.Contains(err.Error(), "node old") {
		t.Errorf("got %v", err)
	}
}

// TestConstantMemory reads an object through the leader that is larger than what both sides together may hold.
func TestConstantMemory(t *testing.T) {
	const size, allowed = 256 << 20, 48 << 20
	dir := t.TempDir()
	files, err := file.New(dir)
	must(t, err)
	must(t, os.MkdirAll(filepath.Join(dir, name), 0o755))
	f, err := os.Create(filepath.Join(dir, name, catalog.DataFile))
	must(t, err)
	must(t, f.Truncate(size))
	must(t, f.Close())
	w := newWorld(t, 1)
	m := &manager{id: cluster.NodeID("b")}
	m.serve(t, clusterName, files)
	w.lead(m, nil)
	w.primary.Add(blobtest.Fault{Err: blobtest.Transient("get", "store")})
	rc, _, err := w.store.Get(t.Context(), dataKey, blob.Range{})
	must(t, err)
	defer rc.Close()
	runtime.GC()
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	var read int64
	var most uint64
	for buf := make([]byte, 64<<10); ; {
		n, err := rc.Read(buf)
		if read += int64(n); err == io.EOF {
			break
		}
		must(t, err)
		if read%(16<<20) < int64(n) {
			runtime.ReadMemStats(&now)
			most = max(most, now.HeapAlloc)
		}
	}
	if read != size {
		t.Fatalf("%d bytes; want %d", read, size)
	}
	if most > before.HeapAlloc+allowed {
		t.Errorf("reading took %d MiB of memory", (most-before.HeapAlloc)>>20)
	}
	t.Logf("at most %d MiB beyond the %d MiB before", (int64(most)-int64(before.HeapAlloc))>>20, before.HeapAlloc>>20)
}

// deaf is a store whose Get takes no notice of its context, as a file system that hangs: it comes back when it is let.
type deaf struct {
	blob.Store
	let, closed chan struct{}
}

func (d *deaf) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	<-d.let
	rc, info, err := d.Store.Get(context.WithoutCancel(ctx), key, r)
	return &closeTold{ReadCloser: rc, closed: d.closed}, info, err
}

type closeTold struct {
	io.ReadCloser
	closed chan struct{}
}

func (c *closeTold) Close() error {
	close(c.closed)
	return c.ReadCloser.Close()
}

// TestTheLateAnswerIsClosed: what the slower way opens after all isn't left open.
func TestTheLateAnswerIsClosed(t *testing.T) {
	w := newWorld(t, 1)
	d := &deaf{Store: w.files, let: make(chan struct{}), closed: make(chan struct{})}
	w.use(d)
	w.fallback.patience = 20 * time.Millisecond
	if _, _, err := all(t, w.fallback, dataKey, blob.Range{}); err != nil {
		t.Fatal(err)
	}
	close(d.let)
	select {
	case <-d.closed:
	case <-time.After(20 * time.Second):
		t.Error("the file that was opened late is still open")
	}
}

// TestCancelOfBoth: the caller's own end is never taken for a failure of store and leader, whichever is noticed first.
func TestCancelOfBoth(t *testing.T) {
	w := newWorld(t, 1)
	w.fallback.patience = time.Millisecond
	w.primary.Add(blobtest.Fault{Hang: make(chan struct{})})
	w.leader.store.Add(blobtest.Fault{Hang: make(chan struct{})})
	for range 50 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		_, err := w.fallback.Stat(ctx, dataKey)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
	}
	w.checkSaid()
}
