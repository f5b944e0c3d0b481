package blob_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
)

func TestDecoratorsConform(t *testing.T) {
	for name, wrap := range map[string]func(blob.Store) blob.Store{
		"retry": func(s blob.Store) blob.Store { return blob.Retry(s, blob.RetryPolicy{}) },
		"timeouts": func(s blob.Store) blob.Store {
			return blob.WithTimeouts(s, blob.Timeouts{Small: time.Minute, Idle: time.Minute, Purge: time.Minute})
		},
		"detach":  func(s blob.Store) blob.Store { return blob.Detach(&stubborn{Store: s}) },
		"observe": func(s blob.Store) blob.Store { return blob.Observe(s, func(blob.Event) {}) },
		"faulty":  func(s blob.Store) blob.Store { return blobtest.NewFaulty(s) },
	} {
		t.Run(name, func(t *testing.T) {
			blobtest.Run(t, func(*testing.T) blob.Store { return wrap(blobtest.NewMemory()) }, blobtest.Capabilities{})
		})
	}
}

func put(t *testing.T, s blob.Store, key, content string) {
	t.Helper()
	if _, err := s.Put(context.Background(), key, strings.NewReader(content), blob.PutOptions{}); err != nil {
		t.Fatal(err)
	}
}

func content(t *testing.T, s blob.Store, key string) string {
	t.Helper()
	data, _, err := blob.ReadAll(context.Background(), s, key, 1<<20)
	if err != nil {
		t.Fatalf("read %s: %v", key, err)
	}
	return string(data)
}

// retryCase runs f in virtual time with a store that is wrapped by faults and then by Retry without jitter.
func retryCase(t *testing.T, f func(t *testing.T, s blob.Store, faults *blobtest.Faulty)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		faults := blobtest.NewFaulty(blobtest.NewMemory())
		f(t, blob.Retry(faults, blob.RetryPolicy{Attempts: 4, Base: time.Second, Max: 3 * time.Second,
			Rand: func() float64 { return 0.5 }}), faults)
	})
}

func count(faults *blobtest.Faulty, op string) int {
	n := 0
	for _, c := range faults.Calls() {
		if c.Op == op {
			n++
		}
	}
	return n
}

func TestRetryPauses(t *testing.T) {
	retryCase(t, func(t *testing.T, s blob.Store, faults *blobtest.Faulty) {
		faults.Add(blobtest.Fault{Op: "stat", Err: blobtest.Transient("stat", "k")})
		start := time.Now()
		_, err := s.Stat(t.Context(), "k")
		if !errors.Is(err, blob.ErrTransient) || count(faults, "stat") != 4 {
			t.Errorf("after %d attempts: %v", count(faults, "stat"), err)
		}
		if d := time.Since(start); d != 6*time.Second { // 1 + 2 + 3.
			t.Errorf("the attempts took %s", d)
		}
	})
}

func TestRetryOnlyTransient(t *testing.T) {
	retryCase(t, func(t *testing.T, s blob.Store, faults *blobtest.Faulty) {
		for _, fault := range []error{blobtest.Denied("stat", "k", "s3:GetObject"),
			&blob.Error{Op: "stat", Key: "k", Kind: blob.ErrNotFound}, errors.New("unknown")} {
			faults.Heal()
			faults.Add(blobtest.Fault{Op: "stat", Err: fault})
			before := count(faults, "stat")
			if _, err := s.Stat(t.Context(), "k"); !errors.Is(err, fault) || count(faults, "stat") != before+1 {
				t.Errorf("%v was tried %d times: %v", fault, count(faults, "stat")-before, err)
			}
		}
	})
}

func TestRetryPut(t *testing.T) {
	retryCase(t, func(t *testing.T, s blob.Store, faults *blobtest.Faulty) {
		faults.Add(blobtest.Fault{Op: "put", Times: 2, Err: blobtest.Transient("put", "k"), After: true})
		body := strings.NewReader("skipped, content")
		if _, err := body.Seek(9, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Put(t.Context(), "k", body, blob.PutOptions{}); err != nil {
			t.Fatal(err)
		}
		if got := content(t, s, "k"); got != "content" {
			t.Errorf("stored %q", got)
		}
		faults.Add(blobtest.Fault{Op: "put", Times: 1, Err: blobtest.Transient("put", "k")})
		if _, err := s.Put(t.Context(), "k", io.MultiReader(strings.NewReader("x")), blob.PutOptions{}); !errors.Is(err,
			blob.ErrTransient) {
			t.Errorf("a body that can't be rewound was tried again: %v", err)
		}
	})
}

// A conditional put whose answer is lost has succeeded, and its second attempt must not report the opposite.
func TestRetryLostAnswer(t *testing.T) {
	retryCase(t, func(t *testing.T, s blob.Store, faults *blobtest.Faulty) {
		lost := blobtest.Fault{Op: "put", Times: 1, Err: blobtest.Transient("put", "k"), After: true}
		faults.Add(lost)
		info, err := s.Put(t.Context(), "k", strings.NewReader("mine"), blob.PutOptions{IfAbsent: true})
		if err != nil {
			t.Fatalf("create: %v", err)
		}
		faults.Add(lost)
		if _, err := s.Put(t.Context(), "k", strings.NewReader("mine 2"), blob.PutOptions{IfVersion: info.Version}); err != nil {
			t.Fatalf("replace: %v", err)
		}
		if got := content(t, s, "k"); got != "mine 2" {
			t.Errorf("stored %q", got)
		}
	})
}

// The same failure, but somebody else was faster: that must be told.
func TestRetryLostRace(t *testing.T) {
	retryCase(t, func(t *testing.T, s blob.Store, faults *blobtest.Faulty) {
		put(t, faults.Store, "k", "theirs")
		faults.Add(blobtest.Fault{Op: "put", Times: 1, Err: blobtest.Transient("put", "k")})
		_, err := s.Put(t.Context(), "k", strings.NewReader("mine"), blob.PutOptions{IfAbsent: true})
		if !errors.Is(err, blob.ErrPreconditionFailed) {
			t.Errorf("error %v", err)
		}
		put(t, faults.Store, "k", "mine, and more")
		faults.Add(blobtest.Fault{Op: "put", Times: 1, Err: blobtest.Transient("put", "k")})
		_, err = s.Put(t.Context(), "k", strings.NewReader("mine"), blob.PutOptions{IfAbsent: true})
		if !errors.Is(err, blob.ErrPreconditionFailed) {
			t.Errorf("error %v", err)
		}
	})
}

func TestRetryGetResumes(t *testing.T) {
	retryCase(t, func(t *testing.T, s blob.Store, faults *blobtest.Faulty) {
		put(t, s, "k", "0123456789abcdef")
		faults.Add(blobtest.Fault{Op: "get", Times: 3, Err: blobtest.Transient("get", "k"), BreakAfter: 5})
		if got := content(t, s, "k"); got != "0123456789abcdef" {
			t.Errorf("read %q", got)
		}
		if n := count(faults, "get"); n != 4 {
			t.Errorf("%d gets", n)
		}
	})
}

func TestRetryGetNoticesReplacement(t *testing.T) {
	retryCase(t, func(t *testing.T, s blob.Store, faults *blobtest.Faulty) {
		put(t, s, "k", "0123456789abcdef")
		faults.Add(blobtest.Fault{Op: "get", Times: 1, Err: blobtest.Transient("get", "k"), BreakAfter: 5})
		rc, _, err := s.Get(t.Context(), "k", blob.Range{})
		if err != nil {
			t.Fatal(err)
		}
		defer rc.Close()
		put(t, s, "k", "another content!")
		if data, err := io.ReadAll(rc); err == nil || !strings.Contains(err.Error(), "replaced while it was read") {
			t.Errorf("read %q, %v", data, err)
		}
	})
}

func TestRetryList(t *testing.T) {
	retryCase(t, func(t *testing.T, s blob.Store, faults *blobtest.Faulty) {
		for _, key := range []string{"a/1", "b", "c/1", "d", "e"} {
			put(t, s, key, "x")
		}
		faults.Add(blobtest.Fault{Op: "list", Times: 4, Err: blobtest.Transient("list", ""), AfterEntries: 1})
		var got []string
		for e, err := range s.List(t.Context(), "", blob.ListOptions{Delimiter: "/"}) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, e.Key)
		}
		if want := []string{"a/", "b", "c/", "d", "e"}; !slices.Equal(got, want) {
			t.Errorf("List = %q, want %q", got, want)
		}
	})
}

func TestRetryPurge(t *testing.T) {
	retryCase(t, func(t *testing.T, s blob.Store, faults *blobtest.Faulty) {
		put(t, s, "k", "x")
		faults.Add(blobtest.Fault{Op: "purge", Times: 1, Err: blobtest.Transient("purge", ""), After: true})
		if n, err := s.Purge(t.Context(), "", func(string) bool { return true }); n != 1 || err != nil {
			t.Errorf("Purge = %d, %v", n, err)
		}
	})
}

func TestRetryEndsWithContext(t *testing.T) {
	retryCase(t, func(t *testing.T, s blob.Store, faults *blobtest.Faulty) {
		faults.Add(blobtest.Fault{Err: blobtest.Transient("any", "k")})
		ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
		defer cancel()
		start := time.Now()
		if _, err := s.Stat(ctx, "k"); !errors.Is(err, blob.ErrTransient) {
			t.Errorf("error %v", err)
		}
		if d := time.Since(start); d != time.Second {
			t.Errorf("it took %s, although the second pause could not be waited for", d)
		}
	})
}

func TestTimeouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		faults := blobtest.NewFaulty(blobtest.NewMemory())
		s := blob.WithTimeouts(faults, blob.Timeouts{Small: time.Second, Idle: 10 * time.Second, Purge: time.Minute})
		put(t, s, "k", "content")
		faults.Add(blobtest.Fault{Hang: make(chan struct{})})
		check := func(what string, want time.Duration, f func() error) {
			t.Helper()
			start := time.Now()
			if err := f(); !errors.Is(err, blob.ErrTransient) {
				t.Errorf("%s: %v", what, err)
			}
			if d := time.Since(start); d != want {
				t.Errorf("%s took %s, want %s", what, d, want)
			}
		}
		ctx := t.Context()
		check("stat", time.Second, func() error { _, err := s.Stat(ctx, "k"); return err })
		check("get", time.Second, func() error { _, _, err := s.Get(ctx, "k", blob.Range{}); return err })
		check("small put", time.Second, func() error { _, err := s.Put(ctx, "k", strings.NewReader("x"), blob.PutOptions{}); return err })
		check("stream", 10*time.Second, func() error { _, err := s.Put(ctx, "k", io.MultiReader(), blob.PutOptions{}); return err })
		check("large put", 10*time.Second, func() error {
			_, err := s.Put(ctx, "k", bytes.NewReader(make([]byte, 2<<20)), blob.PutOptions{})
			return err
		})
		check("purge", time.Minute, func() error { _, err := s.Purge(ctx, "", func(string) bool { return true }); return err })
		check("list", time.Second, func() error {
			var last error
			for _, err := range s.List(ctx, "", blob.ListOptions{}) {
				last = err
			}
			return last
		})
		faults.Heal()
		// A source that is slow is not the store's fault, nor is a reader that takes its time.
		slow := io.MultiReader(strings.NewReader("a"), sleeper{time.Hour}, strings.NewReader("b"))
		if _, err := s.Put(ctx, "slow", slow, blob.PutOptions{}); err != nil {
			t.Errorf("put of a slow source: %v", err)
		}
		rc, _, err := s.Get(ctx, "slow", blob.Range{})
		if err != nil {
			t.Fatal(err)
		}
		defer rc.Close()
		time.Sleep(time.Hour)
		if data, err := io.ReadAll(rc); string(data) != "ab" || err != nil {
			t.Errorf("read %q, %v", data, err)
		}
		canceled, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := s.Stat(canceled, "k"); !errors.Is(err, context.Canceled) || errors.Is(err, blob.ErrTransient) {
			t.Errorf("the caller's own end is blamed on the store: %v", err)
		}
	})
}

func TestTimeoutsDefaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		faults := blobtest.NewFaulty(blobtest.NewMemory())
		s := blob.WithTimeouts(faults, blob.Timeouts{})
		faults.Add(blobtest.Fault{Hang: make(chan struct{})})
		start := time.Now()
		if _, err := s.Stat(t.Context(), "k"); !errors.Is(err, blob.ErrTransient) || time.Since(start) != 30*time.Second {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
		s = blob.WithTimeouts(faults, blob.Timeouts{Small: -1})
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if _, err := s.Stat(ctx, "k"); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, blob.ErrTransient) {
			t.Errorf("without a bound: %v", err)
		}
	})
}

type sleeper struct{ d time.Duration }

func (s sleeper) Read([]byte) (int, error) {
	time.Sleep(s.d)
	return 0, io.EOF
}

func TestObserve(t *testing.T) {
	var mu sync.Mutex
	var events []blob.Event
	faults := blobtest.NewFaulty(blobtest.NewMemory())
	s := blob.Observe(faults, func(e blob.Event) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, e)
	})
	put(t, s, "k", "content")
	content(t, s, "k")
	_, _ = s.Stat(t.Context(), "absent")
	for range s.List(t.Context(), "", blob.ListOptions{}) {
	}
	_, _ = s.Purge(t.Context(), "k", func(string) bool { return true })
	want := []blob.Event{{Op: "put", Key: "k", Bytes: 7}, {Op: "get", Key: "k", Bytes: 7},
		{Op: "stat", Key: "absent", Err: blob.ErrNotFound}, {Op: "list"}, {Op: "purge", Key: "k"}}
	if len(events) != len(want) {
		t.Fatalf("%d events: %+v", len(events), events)
	}
	for i, e := range events {
		if w := want[i]; e.Op != w.Op || e.Key != w.Key || e.Bytes != w.Bytes || !errors.Is(e.Err, w.Err) || e.Duration < 0 {
			t.Errorf("event %d is %+v, want %+v", i, e, w)
		}
	}
}
