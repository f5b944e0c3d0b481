package blob_test

import (
	"context"
	"errors"
	"io"
	"iter"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
)

// stubborn is a store that waits for its gate whatever becomes of a context, as a system call does.
type stubborn struct {
	blob.Store
	gate chan struct{}
}

func (s *stubborn) Uninterruptible() {}
func (s *stubborn) String() string   { return "file:///frozen" }

func (s *stubborn) wait() {
	if s.gate != nil {
		<-s.gate
	}
}

func (s *stubborn) Put(ctx context.Context, key string, body io.Reader, opts blob.PutOptions) (blob.Info, error) {
	s.wait()
	return s.Store.Put(ctx, key, body, opts)
}

func (s *stubborn) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	s.wait()
	return s.Store.Get(ctx, key, r)
}

func (s *stubborn) Stat(ctx context.Context, key string) (blob.Info, error) {
	s.wait()
	return s.Store.Stat(ctx, key)
}

func (s *stubborn) List(ctx context.Context, prefix string, opts blob.ListOptions) iter.Seq2[blob.Entry, error] {
	s.wait()
	return s.Store.List(ctx, prefix, opts)
}

func (s *stubborn) Purge(ctx context.Context, prefix string, match func(string) bool) (int, error) {
	s.wait()
	return s.Store.Purge(ctx, prefix, match)
}

// watched is a body that must not be read once it was taken back.
type watched struct {
	io.Reader
	t    *testing.T
	back bool
}

func (w *watched) Read(p []byte) (int, error) {
	if w.back {
		w.t.Error("the body was read after the put had returned")
	}
	return w.Reader.Read(p)
}

// operations are all that a store does, each of which is to fail.
func operations(t *testing.T, s blob.Store) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"put": func(ctx context.Context) error {
			body := &watched{Reader: strings.NewReader("late"), t: t}
			_, err := s.Put(ctx, "late", body, blob.PutOptions{})
			body.back = true
			return err
		},
		"get":  func(ctx context.Context) error { _, _, err := s.Get(ctx, "k", blob.Range{}); return err },
		"stat": func(ctx context.Context) error { _, err := s.Stat(ctx, "k"); return err },
		"list": func(ctx context.Context) error {
			for _, err := range s.List(ctx, "", blob.ListOptions{}) {
				return err
			}
			return nil
		},
		"purge": func(ctx context.Context) error {
			_, err := s.Purge(ctx, "", func(string) bool { t.Error("asked after the purge had returned"); return true })
			return err
		},
	}
}

// TestDetach: every operation of a store that hangs ends with its time, and one that is called off
// at once; what was given up has no effect later.
func TestDetach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := blobtest.NewMemory()
		put(t, mem, "k", "x")
		inner := &stubborn{mem, make(chan struct{})}
		s := blob.WithTimeouts(blob.Detach(inner), blob.Timeouts{})
		for name, do := range operations(t, s) {
			start := time.Now()
			err := do(t.Context())
			if !errors.Is(err, blob.ErrTransient) || !strings.Contains(err.Error(), "file:///frozen") ||
				!strings.Contains(err.Error(), "hangs") {
				t.Errorf("%s: %v", name, err)
			}
			if took := time.Since(start); took > 11*time.Minute {
				t.Errorf("%s took %s", name, took)
			}
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			start = time.Now()
			if err := do(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, blob.ErrTransient) || time.Since(start) > 2*time.Second {
				t.Errorf("%s, called off, took %s: %v", name, time.Since(start), err)
			}
		}
		close(inner.gate)
		synctest.Wait()
		if _, err := mem.Stat(t.Context(), "late"); !errors.Is(err, blob.ErrNotFound) {
			t.Errorf("a put that was given up has taken place: %v", err)
		}
		if got := content(t, s, "k"); got != "x" {
			t.Errorf("k is %q afterwards", got)
		}
	})
}

// TestDetachBounds: only so many operations hang at once, and once they end there is room again.
func TestDetachBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := blobtest.NewMemory()
		put(t, mem, "k", "x")
		inner := &stubborn{mem, make(chan struct{})}
		s := blob.WithTimeouts(blob.Detach(inner), blob.Timeouts{})
		slow := 0
		for range 40 {
			start := time.Now()
			if _, err := s.Stat(t.Context(), "k"); !errors.Is(err, blob.ErrTransient) {
				t.Fatal(err)
			}
			if time.Since(start) > 0 {
				slow++
			}
		}
		if slow != 16 {
			t.Errorf("%d operations hang", slow)
		}
		close(inner.gate)
		synctest.Wait()
		if _, err := s.Stat(t.Context(), "k"); err != nil {
			t.Errorf("after it went on: %v", err)
		}
	})
}

// hangingReader is one whose bytes come late.
type hangingReader struct {
	io.ReadCloser
	gate   chan struct{}
	closed *bool
}

func (r hangingReader) Read(p []byte) (int, error) {
	<-r.gate
	return copy(p, "late"), nil
}

func (r hangingReader) Close() error {
	*r.closed = true
	return r.ReadCloser.Close()
}

type hangingReads struct {
	stubborn
	readGate chan struct{}
	closed   bool
}

func (s *hangingReads) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	rc, info, err := s.Store.Get(ctx, key, r)
	return hangingReader{rc, s.readGate, &s.closed}, info, err
}

// TestDetachReader: a read that hangs ends with its time, leaves the caller's buffer alone, and the file is closed when it ends.
func TestDetachReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := &hangingReads{stubborn: stubborn{Store: blobtest.NewMemory()}, readGate: make(chan struct{})}
		put(t, inner, "k", "x")
		s := blob.WithTimeouts(blob.Detach(inner), blob.Timeouts{Idle: time.Minute})
		rc, _, err := s.Get(t.Context(), "k", blob.Range{})
		if err != nil {
			t.Fatal(err)
		}
		buf := []byte("mine")
		if _, err := rc.Read(buf); !errors.Is(err, blob.ErrTransient) {
			t.Errorf("read: %v", err)
		}
		if err := rc.Close(); err != nil || inner.closed {
			t.Errorf("closed %t while it is read: %v", inner.closed, err)
		}
		close(inner.readGate)
		synctest.Wait()
		if string(buf) != "mine" || !inner.closed {
			t.Errorf("the buffer is %q, closed %t", buf, inner.closed)
		}
	})
}
