package gcs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/blob/gcs"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// open opens a store on a server.
func open(t testing.TB, srv *servers.GCS, prefix string, change func(*gcs.Config)) *gcs.Store {
	t.Helper()
	cfg := gcs.Config{Bucket: srv.Bucket, Prefix: prefix, Emulator: srv.Endpoint, Chunk: gcs.MinChunk}
	if change != nil {
		change(&cfg)
	}
	s, err := gcs.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestFakeGCSServer holds fake-gcs-server to what every store has to do.
func TestFakeGCSServer(t *testing.T) {
	for _, versioned := range []bool{false, true} {
		t.Run(fmt.Sprintf("versioned %v", versioned), func(t *testing.T) {
			srv := servers.StartGCS(t, versioned)
			var n atomic.Int64
			blobtest.Run(t, func(t *testing.T) blob.Store {
				return open(t, srv, fmt.Sprintf("clusters/test-%d", n.Add(1)), nil)
			}, blobtest.Capabilities{PartSize: gcs.MinChunk, PageSize: 1000})
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

// swallow has the server do what it is asked for, and keeps its answer.
func swallow(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	pass.ServeHTTP(httptest.NewRecorder(), r)
	drop(w)
}

// isStore tells whether a request stores a small object.
func isStore(r *http.Request) bool { return r.URL.Query().Get("uploadType") == "multipart" }

// The answer to a conditional put is lost: the mark tells that the object is ours.
func TestLostAnswer(t *testing.T) {
	srv := servers.StartGCS(t, false)
	s := open(t, srv, "main", nil)
	lose := func(n int64) *atomic.Int64 {
		var seen atomic.Int64
		srv.Set(func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
			if !isStore(r) || seen.Add(1) > n {
				return false
			}
			swallow(w, r, pass)
			return true
		})
		return &seen
	}
	for _, lost := range []int64{1, 3} { // of three attempts
		key := fmt.Sprintf("lost-%d", lost)
		seen := lose(lost)
		first := mustPut(s, t, key, []byte("mine"), blob.PutOptions{IfAbsent: true})
		if seen.Load() < 2 {
			t.Errorf("no answer was lost")
		}
		lose(lost)
		second := mustPut(s, t, key, []byte("next"), blob.PutOptions{IfVersion: first.Version})
		srv.Set(nil)
		if stat, err := s.Stat(t.Context(), key); err != nil || stat.Version != second.Version {
			t.Errorf("Stat = %+v, %v; Put returned %+v", stat, err, second)
		}
		wantContent(s, t, key, []byte("next"))
	}
	// Somebody else has stored the very same bytes, and our own request never came through.
	var seen atomic.Int64
	srv.Set(func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
		if !isStore(r) || seen.Add(1) > 1 {
			return false
		}
		mustPut(s, t, "theirs", []byte("same"), blob.PutOptions{IfAbsent: true})
		drop(w)
		return true
	})
	if _, err := put(s, t, "theirs", []byte("same"), blob.PutOptions{IfAbsent: true}); !errors.Is(err, blob.ErrPreconditionFailed) {
		t.Errorf("another's object is taken for ours: %v", err)
	}
}

// The API takes one write a second of a name: the probe, which writes one name four times, waits for it.
func TestOneWriteASecond(t *testing.T) {
	srv := servers.StartGCS(t, false)
	s := open(t, srv, "main", nil)
	var mu sync.Mutex
	last := map[string]time.Time{}
	refused := 0
	srv.Set(func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
		if !isStore(r) {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		name := r.URL.Query().Get("name")
		if time.Since(last[name]) < time.Second {
			refused++
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusTooManyRequests)
			fmt.Fprintf(w, `{"error": {"code": 429, "message": "The object %s exceeded the rate limit for object mutation operations.",
				"errors": [{"reason": "rateLimitExceeded"}]}}`, name)
			return true
		}
		rec := httptest.NewRecorder()
		pass.ServeHTTP(rec, r)
		if rec.Code == http.StatusOK {
			last[name] = time.Now()
		}
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes())
		return true
	})
	r, err := blob.Probe(t.Context(), blob.WithTimeouts(s, blob.Timeouts{}), "node-a")
	if err != nil || !r.Fenced() {
		t.Errorf("Probe = %s, %v", r, err)
	}
	if refused == 0 {
		t.Error("no write was refused")
	}
}

// A bit that changes on its way is noticed in both directions.
func TestDamage(t *testing.T) {
	srv := servers.StartGCS(t, false)
	s := open(t, srv, "main", nil)
	large := bytes.Repeat([]byte("b"), 3*gcs.MinChunk)
	for key, data := range map[string][]byte{"small": []byte("abbbbc"), "large": large} {
		srv.Set(func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			r.Body = io.NopCloser(bytes.NewReader(bytes.Replace(body, []byte("bbbb"), []byte("bcbb"), 1)))
			return false
		})
		if info, err := put(s, t, key, data, blob.PutOptions{IfAbsent: true}); err == nil {
			t.Errorf("%s: a damaged put succeeded: %+v", key, info)
		}
		srv.Set(nil)
		if _, err := s.Stat(t.Context(), key); !errors.Is(err, blob.ErrNotFound) {
			t.Errorf("%s: a damaged object is there: %v", key, err)
		}
	}
	mustPut(s, t, "k", large, blob.PutOptions{})
	srv.Set(func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
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

// A snapshot of any size fits into the same memory.
func TestPutMemory(t *testing.T) {
	var n atomic.Int64
	// The real server of these tests would keep the object in this machine's memory; this one takes an upload in and forgets it.
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			w.Header().Set("Location", "http://"+r.Host+"/session")
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		span, total, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Content-Range"), "bytes "), "/")
		if total == "*" {
			_, to, _ := strings.Cut(span, "-")
			w.Header().Set("Range", "bytes=0-"+to)
			w.WriteHeader(http.StatusPermanentRedirect)
			return
		}
		n.Add(1)
		fmt.Fprintf(w, `{"name": "k", "size": %q, "generation": "1", "timeCreated": "2026-11-30T12:00:00Z"}`, total)
	}))
	defer srv.Close()
	s, err := gcs.New(gcs.Config{Bucket: "b", Emulator: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	const size = 256 << 20
	runtime.GC()
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	peak, left := uint64(0), int64(size)
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
	if err != nil || info.Size != size || n.Load() != 1 {
		t.Fatalf("Put = %+v, %v", info, err)
	}
	grown := int64(peak) - int64(before.HeapInuse)
	t.Logf("the heap grew by %d MiB while %d MiB were streamed", grown>>20, size>>20)
	if grown > 40<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

type readFunc func(p []byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

// What a retention policy protects is reported as locked, with its time; what the server is too busy for is tried again.
func TestPurgeProtected(t *testing.T) {
	srv := servers.StartGCS(t, true)
	s := open(t, srv, "main", nil)
	for _, key := range []string{"a", "b", "c"} {
		mustPut(s, t, key, []byte("old"), blob.PutOptions{})
		mustPut(s, t, key, []byte("new"), blob.PutOptions{})
	}
	var busy atomic.Bool
	srv.Set(func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
		if r.URL.Query().Get("versions") == "true" {
			rec := httptest.NewRecorder()
			pass.ServeHTTP(rec, r)
			fmt.Fprint(w, strings.ReplaceAll(rec.Body.String(), `"name":"main/b"`,
				`"name":"main/b","retentionExpirationTime":"2030-01-02T03:04:05Z"`))
			return true
		}
		if !strings.HasPrefix(r.URL.Path, "/batch/") {
			return false
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		answerBatch(w, string(body), func(name string) (int, string) {
			switch {
			case name == "main/b":
				return http.StatusForbidden, `{"error": {"message": "Object 'backups/main/b' is subject to bucket's retention policy",
					"errors": [{"reason": "retentionPolicyNotMet"}]}}`
			case name == "main/c" && !busy.Swap(true):
				return http.StatusServiceUnavailable, ""
			}
			return http.StatusNoContent, ""
		})
		return true
	})
	n, err := s.Purge(t.Context(), "", func(string) bool { return true })
	locked, rest := blob.SplitLocked(err)
	if n != 2 || len(rest) != 0 || len(locked) != 1 || len(locked[0].Keys) != 1 || locked[0].Keys[0] != "b" ||
		locked[0].Until.Year() != 2030 {
		t.Errorf("Purge = %d, %v", n, err)
	}
}

// answerBatch answers a batch of deletes as the API does, in another order than that of the calls.
func answerBatch(w http.ResponseWriter, batch string, status func(name string) (int, string)) {
	var answers []string
	for i, part := range strings.Split(batch, "DELETE ")[1:] {
		line, _, _ := strings.Cut(part, " ")
		name, _, _ := strings.Cut(line[strings.Index(line, "/o/")+3:], "?")
		name, _ = url.PathUnescape(name)
		code, body := status(name)
		answers = append(answers, fmt.Sprintf("--x\r\nContent-Type: application/http\r\nContent-ID: <response-%d>\r\n\r\n"+
			"HTTP/1.1 %d %s\r\nContent-Length: %d\r\nContent-Type: application/json\r\n\r\n%s\r\n", i, code,
			http.StatusText(code), len(body), body))
	}
	w.Header().Set("Content-Type", "multipart/mixed; boundary=x")
	for i := range answers {
		fmt.Fprint(w, answers[len(answers)-1-i])
	}
	fmt.Fprint(w, "--x--\r\n")
}
