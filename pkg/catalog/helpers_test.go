package catalog

import (
	"context"
	"errors"
	"flag"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/blob/file"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

var update = flag.Bool("update", false, "rewrite golden files")

// onStores runs a test on the store in memory and on the one in files.
func onStores(t *testing.T, test func(t *testing.T, s blob.Store)) {
	t.Run("memory", func(t *testing.T) { test(t, blobtest.NewMemory()) })
	t.Run("file", func(t *testing.T) {
		s, err := file.New(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		test(t, s)
	})
}

// clock is a wall clock that tests set.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock(s string) *clock {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		panic(err)
	}
	return &clock{t: t}
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func put(t *testing.T, s blob.Store, key, content string) {
	t.Helper()
	if _, err := s.Put(context.Background(), key, strings.NewReader(content), blob.PutOptions{}); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, s blob.Store, key string) string {
	t.Helper()
	r, _, err := s.Get(context.Background(), key, blob.Range{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func keys(t *testing.T, s blob.Store) []string {
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

// golden compares with testdata/<name>.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got:\n%s\nwant:\n%s", path, got, want)
	}
}

func wantIs(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("error %v, want one that is %q", err, target)
	}
}

// wantObject checks that the error names the object and offers a way out.
func wantObject(t *testing.T, err error, object string, kind error) {
	t.Helper()
	var o *ObjectError
	if !errors.As(err, &o) {
		t.Fatalf("error %v, want an ObjectError", err)
	}
	if o.Object != object || !errors.Is(err, kind) || o.Way == "" || !strings.Contains(err.Error(), object) {
		t.Fatalf("error %#v (%v), want one that names %s, is %q and offers a way out", o, err, object, kind)
	}
	if errors.Is(err, ErrNotFound) {
		t.Fatalf("error %v counts as not found", err)
	}
}

// counting counts requests as S3 would see them: a page of a listing is a thousand entries.
type counting struct {
	blob.Store
	mu                     sync.Mutex
	puts, gets, lists, del int
}

func (c *counting) count(n *int, by int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*n += by
}

func (c *counting) Put(ctx context.Context, key string, body io.Reader, o blob.PutOptions) (blob.Info, error) {
	c.count(&c.puts, 1)
	return c.Store.Put(ctx, key, body, o)
}

func (c *counting) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	c.count(&c.gets, 1)
	return c.Store.Get(ctx, key, r)
}

func (c *counting) Stat(ctx context.Context, key string) (blob.Info, error) {
	c.count(&c.gets, 1)
	return c.Store.Stat(ctx, key)
}

func (c *counting) List(ctx context.Context, prefix string, o blob.ListOptions) iter.Seq2[blob.Entry, error] {
	return func(yield func(blob.Entry, error) bool) {
		c.count(&c.lists, 1)
		n := 0
		for e, err := range c.Store.List(ctx, prefix, o) {
			if n > 0 && n%1000 == 0 {
				c.count(&c.lists, 1)
			}
			n++
			if !yield(e, err) {
				return
			}
		}
	}
}

func (c *counting) Purge(ctx context.Context, prefix string, match func(string) bool) (int, error) {
	seen, gone := 0, 0
	n, err := c.Store.Purge(ctx, prefix, func(key string) bool {
		seen++
		if !match(key) {
			return false
		}
		gone++
		return true
	})
	c.count(&c.lists, max(1, (seen+999)/1000))
	c.count(&c.del, (gone+999)/1000)
	return n, err
}

// failing lets the store fail as if it couldn't be reached.
type failing struct{ blob.Store }

func (failing) Get(context.Context, string, blob.Range) (io.ReadCloser, blob.Info, error) {
	return nil, blob.Info{}, &blob.Error{Op: "get", Key: "x", Kind: blob.ErrTransient}
}

var testNodes = []cluster.EtcdNode{
	{Name: "a", PeerURLs: []string{"https://a:2380"}, ClientURLs: []string{"https://a:4001"},
		QuarantinedClientURLs: []string{"https://a:8001"}, TLS: true},
	{Name: "b", PeerURLs: []string{"https://[::1]:2380"}, ClientURLs: []string{"https://b:4001"},
		QuarantinedClientURLs: []string{"https://b:8001"}, TLS: true},
}
