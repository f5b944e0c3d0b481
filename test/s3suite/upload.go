package s3suite

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/s3"
)

// What fails leaves no parts behind, which would be paid for and never be seen.
func failedUploadIsAborted(t *testing.T, srv Server) {
	server := srv.Start(t)
	s := Connect(t, server, "main", nil)
	broken := errors.New("the source broke")
	half := func() io.Reader { return bytes.NewReader(make([]byte, 3*s3.MinPartSize)) }

	_, err := s.Put(t.Context(), "k", io.MultiReader(half(), failing{func() error { return broken }}), blob.PutOptions{})
	if !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err = s.Put(ctx, "k", io.MultiReader(half(), failing{func() error { cancel(); return nil }}, half()), blob.PutOptions{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	out, err := server.Client().ListMultipartUploads(t.Context(), &awss3.ListMultipartUploadsInput{Bucket: &server.Bucket})
	if err != nil {
		t.Fatal(err)
	}
	if len(out.Uploads) != 0 {
		t.Errorf("%d uploads are left open", len(out.Uploads))
	}
	if n := versions(t, server, ""); n != 0 {
		t.Errorf("%d objects are visible", n)
	}
}

// failing is a body that calls f and ends with its error.
type failing struct{ f func() error }

func (b failing) Read([]byte) (int, error) {
	if err := b.f(); err != nil {
		return 0, err
	}
	return 0, io.EOF
}

// The answer to the completion of an upload is lost: the object is there, so the put has succeeded.
func lostCompletion(t *testing.T, srv Server) {
	var lost atomic.Int64
	s := Proxy(t, srv.Start(t), func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		if r.Method == http.MethodPost && r.URL.Query().Has("uploadId") && lost.Add(1) == 1 {
			pass.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}
		pass.ServeHTTP(w, r)
	})
	data := bytes.Repeat([]byte("0123456789abcdef"), 2*s3.MinPartSize/16)
	info, err := s.Put(t.Context(), "large", bytes.NewReader(data), blob.PutOptions{IfAbsent: true})
	if err != nil || lost.Load() == 0 {
		t.Fatalf("Put = %+v, %v with %d answers lost", info, err, lost.Load())
	}
	if stat, err := s.Stat(t.Context(), "large"); err != nil || stat.Version != info.Version || stat.Size != int64(len(data)) {
		t.Errorf("Stat = %+v, %v; Put returned %+v", stat, err, info)
	}
}

// A byte that changes on the way is refused by the server, which checks the signed hash.
func damagedUploadIsRefused(t *testing.T, srv Server) {
	s := Proxy(t, srv.Start(t), func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		if r.Method == http.MethodPut {
			data, _ := io.ReadAll(r.Body)
			data[len(data)/2] ^= 1
			r.Body = io.NopCloser(bytes.NewReader(data))
		}
		pass.ServeHTTP(w, r)
	})
	for _, size := range []int{10, 2 * s3.MinPartSize} {
		if _, err := s.Put(t.Context(), "k", bytes.NewReader(make([]byte, size)), blob.PutOptions{}); !errors.Is(err, blob.ErrTransient) {
			t.Errorf("Put of %d bytes: %v", size, err)
		}
		if _, err := s.Stat(t.Context(), "k"); !errors.Is(err, blob.ErrNotFound) {
			t.Errorf("Stat: %v", err)
		}
	}
}
