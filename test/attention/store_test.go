package attention

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

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
}

func (f *front) serve(w http.ResponseWriter, r *http.Request, pass http.Handler) {
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
	out, err := f.srv.Client().PutObject(r.Context(), &awss3.PutObjectInput{Bucket: &bucket, Key: &key, Body: bytes.NewReader(body), ChecksumSHA256: &sum})
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
	f := &front{srv: servers.StartVersityGW(t, servers.InMemory())}
	env := map[string]string{"S3_ENDPOINT": servers.Front(t, f.srv, f.serve), "S3_REGION": f.srv.Region,
		"S3_ACCESS_KEY_ID": f.srv.AccessKeyID, "S3_SECRET_ACCESS_KEY": f.srv.SecretAccessKey}
	s := &scene{t: t, store: f, c: harness.Start(t, harness.Options{Nodes: 1, StoreURL: f.srv.URL("test/backups/etcd/main"), StoreEnv: env, Args: quick()})}
	s.c.WaitBackups(1)
	s.play(storeRows())
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
	}}
}
