package gcs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/gcs"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// sessions does resumable uploads as Google documents them, in place of fake-gcs-server: that one appends whatever it gets, and takes a
// question for the end. What is complete goes to the server as one object, with the condition of the upload's beginning.
// Source: https://cloud.google.com/storage/docs/performing-resumable-uploads
type sessions struct {
	mu   sync.Mutex
	open map[string]*session
	// partly is how many bytes of a chunk that breaks off stay, in multiples of MinChunk.
	partly int
}

type session struct {
	query, description string
	data               []byte
	done               *httptest.ResponseRecorder
}

func (ss *sessions) serve(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
	if r.URL.Query().Get("uploadType") == "resumable" && r.Method == http.MethodPost {
		description, _ := io.ReadAll(r.Body)
		ss.mu.Lock()
		defer ss.mu.Unlock()
		id := strconv.Itoa(len(ss.open))
		ss.open[id] = &session{query: strings.Replace(r.URL.RawQuery, "resumable", "multipart", 1), description: string(description)}
		w.Header().Set("Location", "http://"+r.Host+"/session?id="+id)
		return true
	}
	if r.URL.Path != "/session" {
		return false
	}
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s := ss.open[r.URL.Query().Get("id")]
	if s == nil {
		http.NotFound(w, r)
		return true
	}
	if r.Method == http.MethodDelete {
		delete(ss.open, r.URL.Query().Get("id"))
		w.WriteHeader(499)
		return true
	}
	ss.chunk(s, w, r, pass)
	return true
}

func (ss *sessions) chunk(s *session, w http.ResponseWriter, r *http.Request, pass http.Handler) {
	span, total, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Content-Range"), "bytes "), "/")
	if span != "*" && s.done == nil {
		from, _, _ := strings.Cut(span, "-")
		if from != strconv.Itoa(len(s.data)) {
			http.Error(w, fmt.Sprintf("a chunk begins at %s, %d bytes are here", from, len(s.data)), http.StatusServiceUnavailable)
			return
		}
		data, err := io.ReadAll(r.Body)
		if err != nil {
			data = data[:min(len(data)/gcs.MinChunk, ss.partly)*gcs.MinChunk]
		}
		if s.data = append(s.data, data...); err != nil {
			drop(w)
			return
		}
	}
	if s.done == nil && total != strconv.Itoa(len(s.data)) {
		if len(s.data) > 0 {
			w.Header().Set("Range", fmt.Sprintf("bytes=0-%d", len(s.data)-1))
		}
		w.WriteHeader(http.StatusPermanentRedirect)
		return
	}
	if s.done == nil {
		s.done = httptest.NewRecorder()
		req := httptest.NewRequest(http.MethodPost, "/upload/storage/v1/b/backups/o?"+s.query, strings.NewReader(
			"--x\r\nContent-Type: application/json\r\n\r\n"+s.description+
				"\r\n--x\r\nContent-Type: text/plain\r\n\r\n"+string(s.data)+"\r\n--x--\r\n"))
		req.Host = r.Host
		req.Header.Set("Content-Type", "multipart/related; boundary=x")
		pass.ServeHTTP(s.done, req)
	}
	w.WriteHeader(s.done.Code)
	_, _ = w.Write(s.done.Body.Bytes())
}

func isChunk(r *http.Request) bool {
	return r.Method == http.MethodPut && !strings.HasPrefix(r.Header.Get("Content-Range"), "bytes */")
}

func isLast(r *http.Request) bool {
	return isChunk(r) && !strings.HasSuffix(r.Header.Get("Content-Range"), "/*")
}

// Chunks of an upload break off, arrive in part, or lose their answers.
func TestUploadGoesOn(t *testing.T) {
	const chunk = 4 * gcs.MinChunk
	data := bytes.Repeat([]byte("0123456789abcdef"), 3*chunk/16+100)
	srv := servers.StartGCS(t, false)
	for name, tt := range map[string]struct {
		partly int
		fault  func(w http.ResponseWriter, r *http.Request, serve http.Handler) bool
	}{
		"busy": {fault: func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			if isChunk(r) {
				http.Error(w, "try again", http.StatusServiceUnavailable)
			}
			return isChunk(r)
		}},
		"broken off":                     {fault: breakOff},
		"broken off, a part of it stays": {partly: 2, fault: breakOff},
		"answer of a chunk lost": {fault: func(w http.ResponseWriter, r *http.Request, serve http.Handler) bool {
			if isChunk(r) && !isLast(r) {
				swallow(w, r, serve)
				return true
			}
			return false
		}},
		"answer of the end lost": {fault: func(w http.ResponseWriter, r *http.Request, serve http.Handler) bool {
			if isLast(r) {
				swallow(w, r, serve)
			}
			return isLast(r)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, srv, "main", func(c *gcs.Config) { c.Chunk = chunk })
			ss := &sessions{open: map[string]*session{}, partly: tt.partly}
			var faults atomic.Int64
			srv.Set(func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
				serve := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { ss.serve(w, r, pass) })
				if faults.Load() < 2 && tt.fault(w, r, serve) {
					faults.Add(1)
					return true
				}
				return ss.serve(w, r, pass)
			})
			info := mustPut(s, t, name, data, blob.PutOptions{IfAbsent: true})
			if faults.Load() == 0 {
				t.Error("nothing failed")
			}
			if stat, err := s.Stat(t.Context(), name); err != nil || stat.Version != info.Version {
				t.Errorf("Stat = %+v, %v; Put returned %+v", stat, err, info)
			}
			wantContent(s, t, name, data)
		})
	}
}

// breakOff has the first half of a chunk arrive.
func breakOff(w http.ResponseWriter, r *http.Request, serve http.Handler) bool {
	if !isChunk(r) {
		return false
	}
	half, _ := io.ReadAll(io.LimitReader(r.Body, r.ContentLength*3/4))
	r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(half), failing{}))
	serve.ServeHTTP(w, r)
	return true
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// An upload that fails leaves no session behind.
func TestFailedUploadIsAborted(t *testing.T) {
	srv := servers.StartGCS(t, false)
	s := open(t, srv, "main", nil)
	ss := &sessions{open: map[string]*session{}}
	srv.Set(ss.serve)
	broken := errors.New("the source broke")
	_, err := s.Put(t.Context(), "k", io.MultiReader(bytes.NewReader(make([]byte, 3*gcs.MinChunk)), failingWith{broken}), blob.PutOptions{})
	if !errors.Is(err, broken) {
		t.Errorf("Put = %v", err)
	}
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if len(ss.open) != 0 {
		t.Errorf("%d uploads are left", len(ss.open))
	}
}

type failingWith struct{ err error }

func (f failingWith) Read([]byte) (int, error) { return 0, f.err }
