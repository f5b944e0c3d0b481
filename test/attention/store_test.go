package attention

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/test/harness"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// front is a real S3 server behind something that may behave as worse ones do.
type front struct {
	srv *servers.S3
	// away answers nothing but 503, full refuses backups alone, forgetful takes conditional puts whatever their condition.
	away, full, forgetful atomic.Bool
	// hangs says which requests get no answer; nil is none.
	hangs atomic.Pointer[func(*http.Request) bool]
	// waiting is how many requests hang.
	waiting atomic.Int64
}

// hang has the front not answer some requests until it is told otherwise; what hangs then goes on.
func (f *front) hang(which func(*http.Request) bool) { f.hangs.Store(&which) }
func (f *front) goOn()                               { f.hangs.Store(nil) }
func (f *front) hanging() int64                      { return f.waiting.Load() }

func (f *front) wait(r *http.Request) {
	if which := f.hangs.Load(); which == nil || !(*which)(r) {
		return
	}
	f.waiting.Add(1)
	defer f.waiting.Add(-1)
	for which := f.hangs.Load(); which != nil && (*which)(r); which = f.hangs.Load() {
		select {
		case <-r.Context().Done():
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (f *front) serve(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	f.wait(r)
	switch {
	case f.away.Load(), f.full.Load() && r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/"+catalog.DataFile):
		http.Error(w, "busy", http.StatusServiceUnavailable)
	case f.forgetful.Load() && r.Method == http.MethodPut && (r.Header.Get("If-None-Match") != "" || r.Header.Get("If-Match") != ""):
		f.forget(w, r, pass)
	default:
		pass.ServeHTTP(w, r)
	}
}

// forget stores what a condition has refused.
func (f *front) forget(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	answer := httptest.NewRecorder()
	pass.ServeHTTP(answer, r)
	if answer.Code != http.StatusPreconditionFailed && answer.Code != http.StatusNotFound {
		for k, v := range answer.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes())
		return
	}
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	sum := r.Header.Get("X-Amz-Checksum-Sha256")
	out, err := f.srv.Client().PutObject(r.Context(),
		&awss3.PutObjectInput{Bucket: &bucket, Key: &key, Body: bytes.NewReader(body), ChecksumSHA256: &sum})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("ETag", *out.ETag)
	w.Header().Set("X-Amz-Checksum-Sha256", sum)
}

// TestStore has the store of a cluster of one fail in ways of its own.
func TestStore(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	s := behindFront(t)
	s.play(storeRows())
}

// behindFront is a cluster of one with a backup, whose store is behind a front.
func behindFront(t *testing.T) *scene {
	t.Helper()
	f := &front{srv: servers.StartVersityGW(t, servers.InMemory())}
	env := map[string]string{"S3_ENDPOINT": servers.Front(t, f.srv, f.serve), "S3_REGION": f.srv.Region,
		"S3_ACCESS_KEY_ID": f.srv.AccessKeyID, "S3_SECRET_ACCESS_KEY": f.srv.SecretAccessKey}
	t.Cleanup(f.goOn)
	s := &scene{t: t, store: f, c: harness.Start(t,
		harness.Options{Nodes: 1, StoreURL: f.srv.URL("test/backups/etcd/main"), StoreEnv: env, Args: quick()})}
	s.c.WaitBackups(1)
	return s
}

// storeRows are played in a cluster of one whose store is behind a front.
func storeRows() []row {
	return []row{{
		kind: cluster.AttentionBackup, what: "backups fail while the store answers", text: []string{"The last 3 backups failed", "503"},
		cause: func(s *scene) {
			s.store.full.Store(true)
			s.ctl("create-backup")
		},
		none: "remove the cause that the message names", mend: func(s *scene) { s.store.full.Store(false) },
	}, {
		kind: cluster.AttentionStore, what: "the store answers nothing but 503", node: "a", text: []string{"503"},
		cause: func(s *scene) { s.store.away.Store(true) },
		none:  "repair the store", mend: func(s *scene) { s.store.away.Store(false) },
	}, {
		kind: cluster.AttentionUnfenced, what: "the store ignores conditional puts, and another one is used",
		text: []string{"conditional puts"},
		cause: func(s *scene) {
			s.store.forgetful.Store(true)
			s.again()
		},
		none: "use a store that honors conditional puts", mend: func(s *scene) {
			s.store.forgetful.Store(false)
			s.again()
		},
	}, {
		kind: cluster.AttentionUnfenced, what: "the store ignores conditional puts, and that is allowed",
		text: []string{"conditional puts"},
		cause: func(s *scene) {
			s.store.forgetful.Store(true)
			s.again()
		},
		none: "--allow-unfenced-store", mend: func(s *scene) {
			s.a().Args = []string{"--allow-unfenced-store"}
			s.again()
		},
	}}
}

// again starts the first node's manager again: what a store can do is found out at start. Its etcd goes on.
func (s *scene) again() {
	s.a().Kill()
	s.a().Start()
}

// TestDirectory has the directory that is the store of a cluster of one go away.
func TestDirectory(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	s := &scene{t: t, c: harness.Start(t, harness.Options{Nodes: 1, Args: quick()})}
	s.c.WaitBackups(1)
	s.play(directoryRows())
}

// directoryRows are played in a cluster of one whose store is a directory.
func directoryRows() []row {
	return []row{{
		kind: cluster.AttentionStore, what: "the store's directory is gone, and something else has its name", node: "a",
		text: []string{"not a directory"},
		cause: func(s *scene) {
			aside := s.c.StoreURL + ".aside"
			must(s.t, os.Rename(s.c.StoreURL, aside))
			must(s.t, os.WriteFile(s.c.StoreURL, nil, 0o600))
			s.back = func() {
				must(s.t, os.Remove(s.c.StoreURL))
				must(s.t, os.Rename(aside, s.c.StoreURL))
			}
		},
		none: "repair the store", mend: (*scene).bringBack,
	}}
}
