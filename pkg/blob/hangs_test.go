package blob_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
)

// slowStore answers what it is asked after a time that depends on the operation. The pieces of a put show progress where it is told to.
type slowStore struct {
	blob.Store
	put, stat time.Duration
	pieces    int
	// hide has an operation that was ended not say by what.
	hide bool
}

func (s *slowStore) Put(ctx context.Context, key string, body io.Reader, opts blob.PutOptions) (blob.Info, error) {
	for range max(s.pieces, 1) {
		if err := s.wait(ctx, s.put/time.Duration(max(s.pieces, 1))); err != nil {
			return blob.Info{}, err
		}
		if s.pieces > 0 {
			blob.Progressed(ctx)
		}
	}
	return s.Store.Put(ctx, key, body, opts)
}

func (s *slowStore) Stat(ctx context.Context, key string) (blob.Info, error) {
	if err := s.wait(ctx, s.stat); err != nil {
		return blob.Info{}, err
	}
	return s.Store.Stat(ctx, key)
}

func (s *slowStore) wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		if s.hide {
			return errors.New("it was canceled")
		}
		return ctx.Err()
	}
}

// onlyReader hides that a body can seek, so that it counts as large.
type onlyReader struct{ io.Reader }

// TestHangs: an operation without progress is named while it hangs, whatever else is answered; and what is slow and goes on isn't.
func TestHangs(t *testing.T) {
	large := func() io.Reader { return onlyReader{strings.NewReader("x")} }
	small := func() io.Reader { return strings.NewReader("x") }
	for name, tc := range map[string]struct {
		store *slowStore
		body  func() io.Reader
		// at is when it is looked, want what is said then.
		at   time.Duration
		want string
	}{
		"a large put, early": {&slowStore{put: time.Hour}, large, 29 * time.Second, ""},
		"a large put": {&slowStore{put: time.Hour}, large, 31 * time.Second,
			"put k has been without an answer for 31s"},
		"a large put, long before its end": {&slowStore{put: time.Hour}, large, 9 * time.Minute,
			"put k has been without an answer for 9m0s"},
		"a large put that was given up": {&slowStore{put: time.Hour}, large, 630 * time.Second, "without an answer for 10m30s"},
		"a minute after that":           {&slowStore{put: time.Hour}, large, 11 * time.Minute, ""},
		"a small put that was given up": {&slowStore{put: time.Hour}, small, 40 * time.Second,
			"put k has been without an answer for 40s"},
		"a minute after it was given up": {&slowStore{put: time.Hour}, small, 90 * time.Second, ""},
		"a slow put that goes on":        {&slowStore{put: 5 * time.Minute, pieces: 20}, large, 2 * time.Minute, ""},
		"a put that has ended":           {&slowStore{put: 5 * time.Minute}, large, 6 * time.Minute, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tc.store.Store = blobtest.NewMemory()
				s, hangs := blob.WatchHangs(blob.WithTimeouts(tc.store, blob.Timeouts{}))
				ctx, cancel := context.WithCancel(t.Context())
				go func() { _, _ = s.Put(ctx, "k", tc.body(), blob.PutOptions{}) }()
				for range int(tc.at / time.Second) { // reads are answered all the time
					time.Sleep(time.Second)
					_, _ = s.Stat(ctx, "other")
				}
				if got := hangs.Problem(); tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
					t.Errorf("%q, want %q", got, tc.want)
				}
				cancel()
				synctest.Wait()
				time.Sleep(time.Hour)
			})
		})
	}
}

// TestHangsEnds: what is said ends with the next answer to the same, be it a refusal; an operation that was called off says nothing.
func TestHangsEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := &slowStore{Store: blobtest.NewMemory(), put: time.Hour, stat: time.Hour}
		s, hangs := blob.WatchHangs(blob.WithTimeouts(inner, blob.Timeouts{}))
		put := func(opts blob.PutOptions) { _, _ = s.Put(t.Context(), "k", strings.NewReader("x"), opts) }
		said := func(want string) {
			t.Helper()
			if got := hangs.Problem(); (got != "") != (want != "") || !strings.Contains(got, want) {
				t.Errorf("%q, want %q", got, want)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		_, _ = s.Stat(ctx, "k") // its caller has less patience than the store
		cancel()
		said("")
		ctx, cancel = context.WithTimeout(t.Context(), 25*time.Second)
		_, _ = s.Stat(ctx, "k")
		cancel()
		said("stat k")
		inner.stat, inner.put = 0, 0
		put(blob.PutOptions{})
		_, _ = s.Stat(t.Context(), "another")
		said("stat k") // a write, and what else is read, say nothing of it
		_, _ = s.Stat(t.Context(), "k")
		said("")
		inner.put = time.Hour
		put(blob.PutOptions{})
		put(blob.PutOptions{}) // tried again at once: it is one and the same
		said("put k has been without an answer for 1m0s")
		inner.put = 0
		put(blob.PutOptions{IfVersion: "another"}) // a refusal is an answer
		said("")
		inner.put = time.Hour
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(20*time.Second, cancel)
		_, _ = s.Put(ctx, "k", strings.NewReader("x"), blob.PutOptions{})
		time.Sleep(time.Minute)
		said("")
		// A caller with its own patience, whose error hides why.
		inner.hide = true
		ctx, cancel = context.WithTimeout(t.Context(), 45*time.Second)
		_, _ = s.Put(ctx, "k", onlyReader{strings.NewReader("x")}, blob.PutOptions{})
		cancel()
		said("put k")
		inner.put = 0
		put(blob.PutOptions{})
		said("")
		// Nor is a listing that was answered with an error, about which the caller thinks.
		refused := errors.New("access denied")
		f := blobtest.NewFaulty(blobtest.NewMemory())
		f.Add(blobtest.Fault{Op: "list", Err: refused})
		listed, listHangs := blob.WatchHangs(f)
		for _, err := range listed.List(t.Context(), "", blob.ListOptions{}) {
			if !errors.Is(err, refused) {
				t.Fatalf("list: %v", err)
			}
			time.Sleep(time.Hour)
			if p := listHangs.Problem(); p != "" {
				t.Errorf("a listing that was refused an hour ago: %q", p)
			}
		}
		// A reader whose caller takes its time isn't a store that hangs.
		rc, _, err := s.Get(t.Context(), "k", blob.Range{})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		said("")
		_ = rc.Close()
	})
}
