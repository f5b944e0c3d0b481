package azure_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/azure"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/test/azuredouble"
)

// open opens a store on a double.
func open(t testing.TB, d *azuredouble.Double, prefix string, change func(*azure.Config)) *azure.Store {
	t.Helper()
	cfg := azure.Config{Account: d.Account, Container: d.Container, Prefix: prefix, Endpoint: d.Endpoint, Block: azure.MinBlock,
		Credentials: azure.Credentials{Key: d.Key}}
	if change != nil {
		change(&cfg)
	}
	s, err := azure.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestDouble holds the double to what every store has to do.
func TestDouble(t *testing.T) {
	for _, versioned := range []bool{false, true} {
		t.Run(fmt.Sprintf("versioned %v", versioned), func(t *testing.T) {
			d := azuredouble.Start(t)
			if versioned {
				d.KeepVersions()
			}
			var n atomic.Int64
			blobtest.Run(t, func(t *testing.T) blob.Store {
				return open(t, d, fmt.Sprintf("clusters/test-%d", n.Add(1)), nil)
			}, blobtest.Capabilities{PartSize: azure.MinBlock, PageSize: 5000})
		})
	}
}

func put(s blob.Store, t *testing.T, key string, data []byte, opts blob.PutOptions) (blob.Info, error) {
	t.Helper()
	return s.Put(t.Context(), key, io.MultiReader(bytes.NewReader(data)), opts)
}

func mustPut(s blob.Store, t *testing.T, key string, data []byte, opts blob.PutOptions) blob.Info {
	t.Helper()
	info, err := put(s, t, key, data, opts)
	if err != nil {
		t.Fatalf("Put %s: %v", key, err)
	}
	return info
}

func wantContent(s blob.Store, t *testing.T, key string, want []byte) {
	t.Helper()
	data, _, err := blob.ReadAll(t.Context(), s, key, 1<<30)
	if err != nil || !bytes.Equal(data, want) {
		t.Fatalf("%s has %d bytes (%v), want %d", key, len(data), err, len(want))
	}
}

// drop breaks the connection without an answer.
func drop(w http.ResponseWriter) {
	if conn, _, err := w.(http.Hijacker).Hijack(); err == nil {
		conn.Close()
	}
}

// commits tells whether a request makes a blob visible.
func commits(r *http.Request) bool {
	return r.Method == http.MethodPut && r.URL.Query().Get("comp") != "block"
}

// first applies fault to the first n requests that match.
func first(n int64, match func(*http.Request) bool, fault func(w http.ResponseWriter, r *http.Request, pass http.Handler)) (
	func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool, *atomic.Int64) {
	var seen atomic.Int64
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
		if !match(r) || seen.Add(1) > n {
			return false
		}
		fault(w, r, pass)
		return true
	}, &seen
}

func swallow(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	pass.ServeHTTP(httptest.NewRecorder(), r)
	drop(w)
}

// Answers to what makes a blob visible get lost: the mark tells that the blob is ours, small or large.
func TestLostAnswer(t *testing.T) {
	d := azuredouble.Start(t)
	s := open(t, d, "main", nil)
	for name, data := range map[string][]byte{"small": []byte("small"), "large": bytes.Repeat([]byte("large"), azure.MinBlock/2)} {
		for _, lost := range []int64{1, 4} { // of four attempts
			key := fmt.Sprintf("%s-%d", name, lost)
			answer, seen := first(lost, commits, swallow)
			d.Set(answer)
			one := mustPut(s, t, key, data, blob.PutOptions{IfAbsent: true})
			if seen.Load() < 2 {
				t.Error("no answer was lost")
			}
			next := append([]byte("next "), data...)
			answer, _ = first(lost, commits, swallow)
			d.Set(answer)
			two := mustPut(s, t, key, next, blob.PutOptions{IfVersion: one.Version})
			d.Set(nil)
			if stat, err := s.Stat(t.Context(), key); err != nil || stat.Version != two.Version {
				t.Errorf("Stat = %+v, %v; Put returned %+v", stat, err, two)
			}
			wantContent(s, t, key, next)
		}
		// Somebody else has stored the very same bytes, and our own request never came through.
		key := name + "-theirs"
		answer, _ := first(1, commits, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			d.Set(nil)
			mustPut(s, t, key, data, blob.PutOptions{IfAbsent: true})
			drop(w)
		})
		d.Set(answer)
		if _, err := put(s, t, key, data, blob.PutOptions{IfAbsent: true}); !errors.Is(err, blob.ErrPreconditionFailed) {
			t.Errorf("%s: another's blob is taken for ours: %v", key, err)
		}
	}
}

// Blocks break off, are refused by a busy server, or lose their answers.
func TestBlocksGoOn(t *testing.T) {
	d := azuredouble.Start(t)
	s := open(t, d, "main", nil)
	data := bytes.Repeat([]byte("0123456789abcdef"), 5*azure.MinBlock/16+10)
	isBlock := func(r *http.Request) bool { return r.URL.Query().Get("comp") == "block" }
	for name, fault := range map[string]func(w http.ResponseWriter, r *http.Request, pass http.Handler){
		"busy": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("X-Ms-Error-Code", "ServerBusy")
			w.WriteHeader(http.StatusServiceUnavailable)
		},
		"broken off": func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			_, _ = io.CopyN(io.Discard, r.Body, 100)
			drop(w)
		},
		"answer lost": swallow,
	} {
		t.Run(name, func(t *testing.T) {
			answer, seen := first(3, isBlock, fault)
			d.Set(answer)
			mustPut(s, t, name, data, blob.PutOptions{IfAbsent: true})
			if seen.Load() < 9 { // three more than there are blocks
				t.Errorf("%d requests", seen.Load())
			}
			wantContent(s, t, name, data)
		})
	}
}

// Another writer's blob takes our blocks with it. The service may say that before it looks at the condition.
func TestOvertaken(t *testing.T) {
	d := azuredouble.Start(t)
	s := open(t, d, "main", nil)
	data := bytes.Repeat([]byte("x"), 2*azure.MinBlock)
	for _, opts := range []blob.PutOptions{{}, {IfAbsent: true}} {
		key := fmt.Sprintf("overtaken-%v", opts.IfAbsent)
		answer, _ := first(1, func(r *http.Request) bool { return r.URL.Query().Get("comp") == "blocklist" },
			func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
				d.Set(nil)
				mustPut(s, t, key, []byte("theirs"), blob.PutOptions{})
				r.Header.Del("If-None-Match")
				r.Header.Del("Authorization")
				r.URL.RawQuery += "&" + d.SAS
				pass.ServeHTTP(w, r)
			})
		d.Set(answer)
		want := blob.ErrTransient
		if opts.IfAbsent {
			want = blob.ErrPreconditionFailed
		}
		if _, err := put(s, t, key, data, opts); !errors.Is(err, want) {
			t.Errorf("%s: Put = %v", key, err)
		}
		wantContent(s, t, key, []byte("theirs"))
	}
}

// The service throttles: what can be sent again is, and the probe is patient.
func TestThrottled(t *testing.T) {
	d := azuredouble.Start(t)
	s := open(t, d, "main", nil)
	var n atomic.Int64
	d.Set(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
		if n.Add(1)%2 == 0 {
			return false
		}
		w.Header().Set("X-Ms-Error-Code", "ServerBusy")
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	r, err := blob.Probe(t.Context(), blob.WithTimeouts(s, blob.Timeouts{}), "node-a")
	if err != nil || !r.Fenced() {
		t.Errorf("Probe = %s, %v", r, err)
	}
}

// A bit that changes on its way is noticed in both directions.
func TestDamage(t *testing.T) {
	d := azuredouble.Start(t)
	s := open(t, d, "main", nil)
	large := bytes.Repeat([]byte("b"), 3*azure.MinBlock)
	for key, data := range map[string][]byte{"small": []byte("abbbbc"), "large": large} {
		d.Set(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return true // the put was given up, for another block that was refused
			}
			r.Body = io.NopCloser(bytes.NewReader(bytes.Replace(body, []byte("bbbb"), []byte("bcbb"), 1)))
			return false
		})
		ctx := t.Context()
		bounded := blob.WithTimeouts(s, blob.Timeouts{Small: 5 * time.Second, Idle: 5 * time.Second})
		if info, err := bounded.Put(ctx, key, bytes.NewReader(data), blob.PutOptions{IfAbsent: true}); !errors.Is(err, blob.ErrTransient) {
			t.Errorf("%s: a damaged put: %+v, %v", key, info, err)
		}
		d.Set(nil)
		if _, err := s.Stat(ctx, key); !errors.Is(err, blob.ErrNotFound) {
			t.Errorf("%s: a damaged blob is there: %v", key, err)
		}
	}
	mustPut(s, t, "k", large, blob.PutOptions{})
	d.Set(func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
		rec := httptest.NewRecorder()
		pass.ServeHTTP(rec, r)
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(bytes.Replace(rec.Body.Bytes(), []byte("bbbb"), []byte("bcbb"), 1))
		return true
	})
	if _, _, err := blob.ReadAll(t.Context(), s, "k", 1<<30); err == nil || !strings.Contains(err.Error(), "the object is damaged") {
		t.Errorf("a damaged read: %v", err)
	}
}

// What a policy protects is reported as locked, with its time, and the rest goes with all its versions.
func TestPurgeProtected(t *testing.T) {
	d := azuredouble.Start(t)
	d.KeepVersions()
	s := open(t, d, "main", nil)
	for _, key := range []string{"a", "b", "c"} {
		mustPut(s, t, key, []byte("old"), blob.PutOptions{})
		mustPut(s, t, key, []byte("new"), blob.PutOptions{})
	}
	d.Protect("main/b", time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))
	n, err := s.Purge(t.Context(), "", func(string) bool { return true })
	locked, rest := blob.SplitLocked(err)
	if n != 2 || len(rest) != 0 || len(locked) != 1 || len(locked[0].Keys) != 1 || locked[0].Keys[0] != "b" ||
		locked[0].Until.Year() != 2030 {
		t.Errorf("Purge = %d, %v", n, err)
	}
	if versions, _ := d.Stored(); versions != 2 {
		t.Errorf("%d versions are left, want the two of b", versions)
	}
	_, err = put(s, t, "b", []byte("x"), blob.PutOptions{})
	if !errors.Is(err, blob.ErrDenied) || !strings.Contains(err.Error(), "immutability policy") {
		t.Errorf("Put of a protected blob = %v", err)
	}
}

// An account that can't keep versions refuses to list them.
func TestPurgeWithoutVersions(t *testing.T) {
	d := azuredouble.Start(t)
	s := open(t, d, "main", nil)
	mustPut(s, t, "a", []byte("x"), blob.PutOptions{})
	d.Set(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.URL.Query().Get("include") != "versions" {
			return false
		}
		w.Header().Set("X-Ms-Error-Code", "InvalidQueryParameterValue")
		w.WriteHeader(http.StatusBadRequest)
		return true
	})
	if n, err := s.Purge(t.Context(), "", func(string) bool { return true }); n != 1 || err != nil {
		t.Errorf("Purge = %d, %v", n, err)
	}
}

// A snapshot of any size fits into the same memory.
func TestPutMemory(t *testing.T) {
	size := int64(256 << 20)
	// The double would keep the blob in this machine's memory; this server takes it in and forgets it.
	var sum atomic.Value
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if v := r.Header.Get("X-Ms-Blob-Content-Md5"); v != "" {
			sum.Store(v)
		}
		w.Header().Set("Etag", `"0x1"`)
		w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		if r.Method == http.MethodHead {
			w.Header().Set("Content-Length", fmt.Sprint(size))
			w.Header().Set("Content-Md5", sum.Load().(string))
			return
		}
		w.WriteHeader(http.StatusCreated)
	}))
	defer srv.Close()
	s, err := azure.New(azure.Config{Account: "abc", Container: "abc", Endpoint: srv.URL, Credentials: azure.Credentials{SAS: "sig=x"}})
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	peak, left := uint64(0), size
	body := readFunc(func(p []byte) (int, error) {
		if left == 0 {
			return 0, io.EOF
		}
		if left%(4<<20) == 0 {
			runtime.ReadMemStats(&now)
			peak = max(peak, now.HeapInuse)
		}
		k := min(int64(len(p)), left, 1<<20)
		left -= k
		return int(k), nil
	})
	info, err := s.Put(t.Context(), "large", body, blob.PutOptions{})
	if err != nil || info.Size != size {
		t.Fatalf("Put = %+v, %v", info, err)
	}
	grown := int64(peak) - int64(before.HeapInuse)
	t.Logf("the heap grew by %d MiB while %d MiB were streamed", grown>>20, size>>20)
	if grown > 48<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

type readFunc func(p []byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }
