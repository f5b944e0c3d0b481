package backup

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/blob/file"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	name     = "2026-01-30T01:02:03Z-000009"
	dataKey  = name + "/etcd.backup.gz"
	metaKey  = name + "/_etcd_backup.meta"
	manifest = name + "/_etcd_manager_manifest.json"
)

var facts = Facts{ClusterName: "etcd", ClusterID: 1, MemberID: 2, Node: "a", EtcdVersion: "3.6.16", Spec: cluster.Spec{MemberCount: 3, EtcdVersion: "3.6.16"}, Revision: 42, Reason: "periodic"}

// snapshot makes what etcd sends: pages of half compressible data, and the SHA-256 over them.
func snapshot(pages int) []byte {
	r := rand.New(rand.NewPCG(7, uint64(pages)))
	db := make([]byte, 0, pages*4096+sha256.Size)
	for range pages * 4096 / 16 {
		v := r.Uint64()
		db = fmt.Appendf(db, "%08x\x00\x00\x00\x00key=", uint32(v))
	}
	sum := sha256.Sum256(db)
	return append(db, sum[:]...)
}

func stream(b []byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(b)) }

func write(t *testing.T, s blob.Store, raw []byte) *catalog.Manifest {
	t.Helper()
	m, err := NewWriter(catalog.New(s), Options{ToolVersion: "test", BlockSize: 64 << 10}).Write(context.Background(), name, facts, stream(raw), nil)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func names(t *testing.T, s blob.Store) []string {
	t.Helper()
	var out []string
	for e, err := range s.List(context.Background(), "", blob.ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e.Key)
	}
	return out
}

func object(t *testing.T, s blob.Store, key string) []byte {
	t.Helper()
	data, _, err := blob.ReadAll(context.Background(), s, key, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestRoundTrip(t *testing.T) {
	files, err := file.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for kind, s := range map[string]blob.Store{"memory": blobtest.NewMemory(), "file": files} {
		for _, pages := range []int{1, 3, 1500} {
			t.Run(fmt.Sprintf("%s/%d", kind, pages), func(t *testing.T) {
				c, raw := catalog.New(s), snapshot(pages)
				defer c.DeleteBackups(context.Background(), name)
				var wrote, fetched []Progress
				m, err := NewWriter(c, Options{ToolVersion: "test"}).Write(context.Background(), name, facts, stream(raw), func(p Progress) { wrote = append(wrote, p) })
				if err != nil {
					t.Fatal(err)
				}
				z, err := gzip.NewReader(bytes.NewReader(object(t, s, dataKey)))
				if err != nil {
					t.Fatal(err)
				}
				if plain, err := io.ReadAll(z); err != nil || !bytes.Equal(plain, raw) || z.ModTime.IsZero() {
					t.Fatalf("the standard gzip reads %d bytes, %v, mod time %s", len(plain), err, z.ModTime)
				}
				if m.Raw.SHA256 != fmt.Sprintf("%x", sha256.Sum256(raw)) || m.Stored.SHA256 != fmt.Sprintf("%x", sha256.Sum256(object(t, s, dataKey))) {
					t.Fatalf("manifest %+v", m)
				}
				l, err := c.Backups(context.Background())
				if err != nil || len(l.Backups) != 1 || !l.Backups[0].HasManifest || l.Backups[0].Size != m.Stored.Size {
					t.Fatalf("listed %+v, %v", l, err)
				}
				var b bytes.Buffer
				res, err := Fetch(context.Background(), c, name, &b, func(p Progress) { fetched = append(fetched, p) })
				if err != nil || !bytes.Equal(b.Bytes(), raw) || res.Raw != m.Raw || res.Stored != m.Stored || res.Manifest == nil || res.Info.Spec != facts.Spec {
					t.Fatalf("fetched %d bytes, %+v, %v", b.Len(), res, err)
				}
				if last := wrote[len(wrote)-1]; last.Done != int64(len(raw)) {
					t.Errorf("progress of writing ends with %+v", last)
				}
				if last := fetched[len(fetched)-1]; last.Done != m.Stored.Size || last.Total != m.Stored.Size {
					t.Errorf("progress of fetching ends with %+v", last)
				}
			})
		}
	}
}

func TestFetchFile(t *testing.T) {
	s, raw := blobtest.NewMemory(), snapshot(50)
	write(t, s, raw)
	dir := t.TempDir()
	path := filepath.Join(dir, "snapshot.db")
	if err := os.WriteFile(path+".tmp", []byte("left from a crash, and longer"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := FetchFile(context.Background(), catalog.New(s), name, path, FileOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, raw) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	// A symlink that lies where it writes costs what it leads to nothing.
	victim := filepath.Join(t.TempDir(), "victim")
	if err := errors.Join(os.WriteFile(victim, []byte("precious"), 0o600), os.Symlink(victim, path+".tmp")); err != nil {
		t.Fatal(err)
	}
	if _, err := FetchFile(context.Background(), catalog.New(s), name, path, FileOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(victim); err != nil || string(got) != "precious" {
		t.Fatalf("the file behind a symlink holds %d bytes now, %v", len(got), err)
	}
	s.Corrupt(dataKey, func(b []byte) []byte { return b[:len(b)-9] })
	if _, err := FetchFile(context.Background(), catalog.New(s), name, filepath.Join(dir, "bad.db"), FileOptions{}); !errors.Is(err, ErrTruncated) {
		t.Fatalf("got %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("left behind: %v, %v", entries, err)
	}
	_, err = FetchFile(context.Background(), catalog.New(s), name, filepath.Join(dir, "no", "such", "dir"), FileOptions{})
	if err == nil || errors.Is(err, cluster.ErrPermanent) {
		t.Fatalf("a destination that can't be written says something of the backup: %v", err)
	}
}

// TestNoRoom: what a disk can't take isn't the backup's fault, and with a manifest nothing is read in vain.
func TestNoRoom(t *testing.T) {
	s, raw := blobtest.NewMemory(), snapshot(50)
	write(t, s, raw)
	dir := t.TempDir()
	for _, withManifest := range []bool{true, false} {
		if !withManifest {
			purge(t, s, manifest)
		}
		var seen int64
		_, err := FetchFile(context.Background(), catalog.New(s), name, filepath.Join(dir, "snapshot.db"), FileOptions{
			KeepFree: 1 << 60, Progress: func(p Progress) { seen = max(seen, p.Done) },
		})
		var bad *Error
		if !errors.Is(err, syscall.ENOSPC) || !errors.Is(err, cluster.ErrPermanent) || errors.As(err, &bad) || !strings.Contains(err.Error(), "MiB are free") && !strings.Contains(err.Error(), "MiB that are free") {
			t.Errorf("manifest %t: got %v", withManifest, err)
		}
		if withManifest && seen > 0 {
			t.Errorf("%d bytes were read", seen)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
			t.Errorf("left behind: %v, %v", entries, err)
		}
	}
}

// TestBadSnapshot checks that a stream that isn't whole and right never becomes a backup, and leaves nothing.
func TestBadSnapshot(t *testing.T) {
	raw := snapshot(300)
	flip := bytes.Clone(raw)
	flip[len(flip)/2] ^= 4
	broken := errors.New("connection reset")
	for what, c := range map[string]struct {
		in   io.Reader
		want error
	}{
		"empty":                 {bytes.NewReader(nil), ErrTruncated},
		"checksum only":         {bytes.NewReader(raw[len(raw)-32:]), ErrTruncated},
		"without its end":       {bytes.NewReader(raw[:len(raw)-1]), ErrTruncated},
		"without checksum":      {bytes.NewReader(raw[:len(raw)-32]), cluster.ErrCorrupt},
		"ends after a page":     {bytes.NewReader(raw[:4096*200]), cluster.ErrCorrupt},
		"ends within a page":    {bytes.NewReader(raw[:4096*200+77]), ErrTruncated},
		"flipped bit":           {bytes.NewReader(flip), cluster.ErrCorrupt},
		"breaks off":            {io.MultiReader(bytes.NewReader(raw[:100000]), errorReader{broken}), broken},
		"breaks off at the end": {io.MultiReader(bytes.NewReader(raw), errorReader{broken}), broken},
		"unexpected end":        {io.MultiReader(bytes.NewReader(raw[:100000]), errorReader{io.ErrUnexpectedEOF}), io.ErrUnexpectedEOF},
	} {
		t.Run(what, func(t *testing.T) {
			s := blobtest.NewMemory()
			_, err := NewWriter(catalog.New(s), Options{BlockSize: 64 << 10}).Write(context.Background(), name, facts, io.NopCloser(c.in), nil)
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if left := names(t, s); len(left) != 0 {
				t.Errorf("left %v", left)
			}
		})
	}
}

type errorReader struct{ err error }

func (e errorReader) Read([]byte) (int, error) { return 0, e.err }

// faulty is a store that fails puts whose key has the suffix.
type faulty struct {
	blob.Store
	suffix string
	err    error
	// after is how much of the body it takes before; done makes it store all the same, as if only the answer was lost.
	after int64
	done  bool
	// short makes Stat tell a size that is too small.
	short bool
}

func (f *faulty) Put(ctx context.Context, key string, body io.Reader, o blob.PutOptions) (blob.Info, error) {
	if f.suffix == "" || !strings.HasSuffix(key, f.suffix) {
		return f.Store.Put(ctx, key, body, o)
	}
	if f.done {
		if _, err := f.Store.Put(ctx, key, body, o); err != nil {
			return blob.Info{}, err
		}
	}
	_, _ = io.CopyN(io.Discard, body, f.after)
	return blob.Info{}, f.err
}

func (f *faulty) Stat(ctx context.Context, key string) (blob.Info, error) {
	i, err := f.Store.Stat(ctx, key)
	if f.short {
		i.Size--
	}
	return i, err
}

func TestStoreFails(t *testing.T) {
	full := &blob.Error{Op: "put", Key: "x", Err: errors.New("disk full")}
	conflict := &blob.Error{Op: "put", Key: "x", Kind: blob.ErrPreconditionFailed}
	for what, c := range map[string]struct {
		f    faulty
		want error
		ok   bool
	}{
		"data at once":            {faulty{suffix: ".gz", err: full}, full, false},
		"data in between":         {faulty{suffix: ".gz", err: full, after: 50000}, full, false},
		"data, after storing it":  {faulty{suffix: ".gz", err: full, done: true}, full, false},
		"manifest":                {faulty{suffix: "manifest.json", err: full}, full, false},
		"meta":                    {faulty{suffix: ".meta", err: full}, full, false},
		"size":                    {faulty{short: true}, nil, false},
		"manifest's answer lost":  {faulty{suffix: "manifest.json", err: conflict, done: true}, nil, true},
		"meta's answer lost":      {faulty{suffix: ".meta", err: conflict, done: true}, nil, true},
		"meta after it was there": {faulty{suffix: ".meta", err: full, done: true}, full, false},
	} {
		t.Run(what, func(t *testing.T) {
			mem := blobtest.NewMemory()
			c.f.Store = mem
			_, err := NewWriter(catalog.New(&c.f), Options{BlockSize: 64 << 10}).Write(context.Background(), name, facts, stream(snapshot(600)), nil)
			if (err == nil) != c.ok || c.want != nil && !errors.Is(err, c.want) {
				t.Fatalf("got %v", err)
			}
			want := 0
			switch {
			case c.ok:
				want = 3
			case strings.HasPrefix(what, "data, after"): // whose it is can't be told; it is no backup, and goes a day later
				want = 1
			}
			if left := names(t, mem); len(left) != want {
				t.Errorf("left %v", left)
			}
		})
	}
}

func TestNameInUse(t *testing.T) {
	s, raw := blobtest.NewMemory(), snapshot(10)
	m := write(t, s, raw)
	_, err := NewWriter(catalog.New(s), Options{}).Write(context.Background(), name, facts, stream(snapshot(20)), nil)
	if !errors.Is(err, catalog.ErrConflict) {
		t.Fatalf("got %v", err)
	}
	if res, err := Fetch(context.Background(), catalog.New(s), name, io.Discard, nil); err != nil || res.Raw != m.Raw {
		t.Fatalf("the backup that was there is harmed: %v", err)
	}
}

// endless is a snapshot that never ends until it is closed.
type endless struct {
	started chan struct{}
	once    sync.Once
	closed  chan struct{}
}

func (e *endless) Read(p []byte) (int, error) {
	e.once.Do(func() { close(e.started) })
	<-e.closed
	return 0, errors.New("closed")
}

func (e *endless) Close() error { close(e.closed); return nil }

func TestBusyAndCanceled(t *testing.T) {
	s := blobtest.NewMemory()
	w := NewWriter(catalog.New(s), Options{})
	ctx, cancel := context.WithCancel(context.Background())
	slow := &endless{started: make(chan struct{}), closed: make(chan struct{})}
	// Memory reads the body to its end, so only the context ends it, through the body.
	stop := context.AfterFunc(ctx, func() { slow.Close() })
	defer stop()
	result := make(chan error, 1)
	go func() {
		_, err := w.Write(ctx, name, facts, struct {
			io.Reader
			io.Closer
		}{slow, io.NopCloser(nil)}, nil)
		result <- err
	}()
	<-slow.started
	if _, err := w.Write(context.Background(), name, facts, stream(snapshot(1)), nil); !errors.Is(err, ErrBusy) {
		t.Fatalf("got %v", err)
	}
	cancel()
	if err := <-result; err == nil {
		t.Fatal("a canceled backup succeeded")
	}
	if left := names(t, s); len(left) != 0 {
		t.Errorf("left %v", left)
	}
	if _, err := w.Write(context.Background(), name, facts, stream(snapshot(1)), nil); err != nil {
		t.Fatalf("after that: %v", err)
	}
}

func TestStoreGivesUpOnSlowSnapshot(t *testing.T) {
	f := &faulty{Store: blobtest.NewMemory(), suffix: ".gz", err: errors.New("timed out")}
	slow := &endless{started: make(chan struct{}), closed: make(chan struct{})}
	if _, err := NewWriter(catalog.New(f), Options{}).Write(context.Background(), name, facts, slow, nil); !errors.Is(err, f.err) {
		t.Fatalf("got %v", err)
	}
}

// TestBadBackup damages a stored backup in every way and wants each found, by kind, with a backup of ours and one of
// another tool (without a manifest).
func TestBadBackup(t *testing.T) {
	raw := snapshot(40)
	for _, own := range []bool{true, false} {
		fresh := func() *blobtest.Memory {
			s := blobtest.NewMemory()
			write(t, s, raw)
			if !own {
				purge(t, s, manifest)
			}
			return s
		}
		verify := func(s blob.Store) error {
			res, err := Fetch(context.Background(), catalog.New(s), name, io.Discard, nil)
			if err == nil && (res.Manifest != nil) != own {
				t.Fatalf("manifest %v", res.Manifest)
			}
			return err
		}
		if err := verify(fresh()); err != nil {
			t.Fatal(err)
		}
		size := len(object(t, fresh(), dataKey))
		for i := range 12 {
			cut := size * i / 12
			s := fresh()
			s.Corrupt(dataKey, func(b []byte) []byte { return b[:cut] })
			wantBad(t, fmt.Sprintf("own %v cut at %d of %d", own, cut, size), verify(s), ErrTruncated)
		}
		r := rand.New(rand.NewPCG(3, 4))
		for range 60 {
			// The first ten bytes are a header in which not every bit has a meaning: gzip -t doesn't mind either.
			at, bit := 10+r.IntN(size-10), byte(1)<<r.IntN(8)
			s := fresh()
			s.Corrupt(dataKey, func(b []byte) []byte { b = bytes.Clone(b); b[at] ^= bit; return b })
			err := verify(s)
			if err == nil || !errors.Is(err, cluster.ErrPermanent) || !errors.Is(err, cluster.ErrCorrupt) && !errors.Is(err, ErrTruncated) {
				t.Errorf("own %v: bit %d of byte %d flipped: got %v", own, bit, at, err)
			}
		}
		s := fresh()
		s.Corrupt(dataKey, func(b []byte) []byte { return append(bytes.Clone(b), "garbage"...) })
		if err := verify(s); !errors.Is(err, cluster.ErrPermanent) {
			t.Errorf("trailing garbage: got %v", err)
		}
		s = fresh()
		s.Corrupt(dataKey, func(b []byte) []byte { return zip(raw[:len(raw)-32]) })
		if err := verify(s); !errors.Is(err, cluster.ErrPermanent) {
			t.Errorf("a plain database: got %v", err)
		}
		s = fresh()
		purge(t, s, dataKey)
		wantBad(t, "no data", verify(s), ErrMissing)
		s = fresh()
		purge(t, s, metaKey)
		wantBad(t, "no meta", verify(s), ErrMissing)
		s = fresh()
		s.Corrupt(metaKey, func([]byte) []byte { return nil })
		wantBad(t, "empty meta", verify(s), cluster.ErrCorrupt)
	}
	s := blobtest.NewMemory()
	write(t, s, raw)
	s.Corrupt(manifest, func(b []byte) []byte { return []byte(strings.Replace(string(b), `"version": 1`, `"version": 99`, 1)) })
	_, err := Fetch(context.Background(), catalog.New(s), name, io.Discard, nil)
	wantBad(t, "manifest of the future", err, cluster.ErrFuture)
	s.Corrupt(manifest, func([]byte) []byte { return []byte("{") })
	_, err = Fetch(context.Background(), catalog.New(s), name, io.Discard, nil)
	wantBad(t, "broken manifest", err, cluster.ErrCorrupt)
	// A right backup in the place of another one.
	s = blobtest.NewMemory()
	write(t, s, raw)
	s.Corrupt(dataKey, func([]byte) []byte { return zip(snapshot(40)[:40]) })
	_, err = Fetch(context.Background(), catalog.New(s), name, io.Discard, nil)
	if !errors.Is(err, cluster.ErrPermanent) {
		t.Fatalf("swapped data: %v", err)
	}
}

func zip(b []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, _ = z.Write(b)
	_ = z.Close()
	return out.Bytes()
}

func purge(t *testing.T, s blob.Store, key string) {
	t.Helper()
	if n, err := s.Purge(context.Background(), key, func(k string) bool { return k == key }); err != nil || n != 1 {
		t.Fatal(n, err)
	}
}

func wantBad(t *testing.T, what string, err, kind error) {
	t.Helper()
	var bad *Error
	if !errors.As(err, &bad) || !errors.Is(err, kind) || !errors.Is(err, cluster.ErrPermanent) || !strings.Contains(err.Error(), name) {
		t.Errorf("%s: got %v, want %v", what, err, kind)
	}
}

// flaky is a store whose downloads break off after some bytes, a given number of times.
type flaky struct {
	blob.Store
	mu     sync.Mutex
	breaks int
	every  int64
	offs   []int64
	refuse error
}

func (f *flaky) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	rc, info, err := f.Store.Get(ctx, key, r)
	if err != nil || !strings.HasSuffix(key, ".gz") {
		return rc, info, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.offs = append(f.offs, r.Offset)
	if f.breaks == 0 {
		return rc, info, nil
	}
	f.breaks--
	if f.refuse != nil {
		return nil, blob.Info{}, f.refuse
	}
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.LimitReader(rc, f.every), errorReader{io.ErrUnexpectedEOF}), rc}, info, nil
}

func (f *flaky) List(ctx context.Context, p string, o blob.ListOptions) iter.Seq2[blob.Entry, error] {
	return f.Store.List(ctx, p, o)
}

func fetchFast(t *testing.T, s blob.Store) (*bytes.Buffer, error) {
	t.Helper()
	var b bytes.Buffer
	src := newResumingReader(context.Background(), catalog.New(s), name, catalog.DataFile)
	src.pause = func(context.Context, int) error { return nil }
	defer src.Close()
	if err := src.open(); err != nil {
		return nil, err
	}
	var res Result
	err := decode(context.Background(), catalog.New(s), name, src, &b, &res)
	return &b, err
}

func TestResume(t *testing.T) {
	mem, raw := blobtest.NewMemory(), snapshot(500)
	write(t, mem, raw)
	f := &flaky{Store: mem, breaks: 25, every: 5000}
	b, err := fetchFast(t, f)
	if err != nil || !bytes.Equal(b.Bytes(), raw) {
		t.Fatalf("%v", err)
	}
	if len(f.offs) != 26 || f.offs[25] != 125000 {
		t.Fatalf("went on at %v", f.offs)
	}
	// No byte in between: given up, and not called corrupt.
	f = &flaky{Store: mem, breaks: 1 << 30, every: 0}
	if _, err = fetchFast(t, f); err == nil || errors.Is(err, cluster.ErrPermanent) || len(f.offs) != maxFailures+1 {
		t.Fatalf("after %d attempts: %v", len(f.offs), err)
	}
	f = &flaky{Store: mem, breaks: 3, refuse: &blob.Error{Op: "get", Kind: blob.ErrTransient}}
	if b, err = fetchFast(t, f); err != nil || !bytes.Equal(b.Bytes(), raw) {
		t.Fatal(err)
	}
	f = &flaky{Store: mem, breaks: 3, refuse: &blob.Error{Op: "get", Kind: blob.ErrDenied}}
	if _, err = fetchFast(t, f); !errors.Is(err, catalog.ErrDenied) || errors.Is(err, cluster.ErrPermanent) || len(f.offs) != 1 {
		t.Fatalf("after %d attempts: %v", len(f.offs), err)
	}
}

func TestCanceledFetch(t *testing.T) {
	mem := blobtest.NewMemory()
	write(t, mem, snapshot(500))
	ctx, cancel := context.WithCancel(context.Background())
	f := &flaky{Store: mem, breaks: 1 << 30, every: 10}
	done := make(chan error, 1)
	go func() {
		_, err := Fetch(ctx, catalog.New(f), name, io.Discard, nil)
		done <- err
	}()
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) || errors.Is(err, cluster.ErrPermanent) {
			t.Fatalf("got %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it goes on")
	}
}

// pages generates a large snapshot without holding it.
type pages struct {
	left int
	sum  []byte
	page []byte
	hash interface {
		io.Writer
		Sum([]byte) []byte
	}
	r *rand.Rand
}

func (p *pages) Read(b []byte) (int, error) {
	if p.left == 0 {
		if p.sum == nil {
			p.sum = p.hash.Sum(nil)
		}
		n := copy(b, p.sum)
		p.sum = p.sum[n:]
		if n == 0 {
			return 0, io.EOF
		}
		return n, nil
	}
	p.left--
	for i := 0; i < 2048; i += 8 {
		v := p.r.Uint64()
		copy(p.page[i:], []byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24), byte(v >> 32), byte(v >> 40), byte(v >> 48), byte(v >> 56)})
	}
	_, _ = p.hash.Write(p.page)
	return copy(b, p.page), nil
}

// sink is a store that throws the data away, so that its memory doesn't count.
type sink struct {
	blob.Store
	size int64
}

func (s *sink) Put(ctx context.Context, key string, body io.Reader, o blob.PutOptions) (blob.Info, error) {
	if !strings.HasSuffix(key, ".gz") {
		return s.Store.Put(ctx, key, body, o)
	}
	n, err := io.Copy(io.Discard, body)
	s.size = n
	return blob.Info{Key: key, Size: n}, err
}

func (s *sink) Stat(context.Context, string) (blob.Info, error) { return blob.Info{Size: s.size}, nil }

func TestMemoryIsBounded(t *testing.T) {
	var peak uint64
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	src := &pages{left: 16 << 10, page: make([]byte, 4096), hash: sha256.New(), r: rand.New(rand.NewPCG(1, 1))}
	_, err := NewWriter(catalog.New(&sink{Store: blobtest.NewMemory()}), Options{}).Write(context.Background(), name, facts, io.NopCloser(src), func(Progress) {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		peak = max(peak, m.HeapInuse+m.StackInuse)
	})
	if err != nil {
		t.Fatal(err)
	}
	used := int64(peak) - int64(before.HeapInuse+before.StackInuse)
	t.Logf("peak %.1f MiB above idle", float64(used)/(1<<20))
	if used > 40<<20 {
		t.Errorf("%d bytes of memory", used)
	}
}

// TestOneNameTwoWriters: of two who take one name in the same second the one that comes second removes its own files and nothing else.
func TestOneNameTwoWriters(t *testing.T) {
	raw := snapshot(50)
	for what, first := range map[string]func(t *testing.T, s blob.Store){
		"this project's": func(t *testing.T, s blob.Store) { write(t, s, raw) },
		"another tool's": func(t *testing.T, s blob.Store) {
			write(t, s, raw)
			purge(t, s, manifest)
		},
		"one that is still being written": func(t *testing.T, s blob.Store) {
			write(t, s, raw)
			purge(t, s, metaKey)
		},
	} {
		t.Run(what, func(t *testing.T) {
			s := blobtest.NewMemory()
			first(t, s)
			before := names(t, s)
			// The names of the data differ, so that nothing conflicts before the manifest or the meta file.
			other := facts
			other.Spec.MemberCount = 1
			_, err := NewWriter(catalog.New(s), Options{Compression: catalog.CompressionZstd}).Write(context.Background(), name, other, stream(snapshot(60)), nil)
			if err == nil {
				t.Fatal("two backups of one name")
			}
			if after := names(t, s); !slices.Equal(before, after) {
				t.Errorf("before %v, after %v", before, after)
			}
		})
	}
}

// TestBomb has a backup whose data decompress to far more than its manifest says: that is found out before it fills a disk, and the file is named.
func TestBomb(t *testing.T) {
	s := blobtest.NewMemory()
	raw := snapshot(4)
	m := write(t, s, raw)
	bomb := zip(make([]byte, 64<<20))
	sum := sha256.Sum256(bomb)
	text := string(object(t, s, manifest))
	text = strings.ReplaceAll(text, m.Stored.SHA256, hex.EncodeToString(sum[:]))
	text = strings.ReplaceAll(text, fmt.Sprintf(`"size":%d`, m.Stored.Size), fmt.Sprintf(`"size":%d`, len(bomb)))
	text = strings.ReplaceAll(text, fmt.Sprintf(`"size": %d`, m.Stored.Size), fmt.Sprintf(`"size": %d`, len(bomb)))
	for key, b := range map[string][]byte{dataKey: bomb, manifest: []byte(text)} {
		if _, err := s.Put(context.Background(), key, bytes.NewReader(b), blob.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	var out counting
	_, err := Fetch(context.Background(), catalog.New(s), name, &out, nil)
	if !errors.Is(err, cluster.ErrCorrupt) || !strings.Contains(err.Error(), "more bytes than the manifest says") || !strings.Contains(err.Error(), "etcd.backup.gz") {
		t.Error(err)
	}
	if int64(out) > m.Raw.Size {
		t.Errorf("%d bytes were written", out)
	}
}

type counting int64

func (c *counting) Write(p []byte) (int, error) {
	*c += counting(len(p))
	return len(p), nil
}
