package minio

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/test/s3suite"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// TestMinIO holds MinIO to what every server has to pass.
func TestMinIO(t *testing.T) {
	testutil.Long(t)
	s3suite.Run(t, s3suite.Server{Start: servers.StartMinIO, Fill: fillArchive, PurgeOptions: []servers.S3Option{servers.Versioned()}})
}

// fillArchive makes objects by one archive, which MinIO unpacks.
func fillArchive(t *testing.T, srv *servers.S3, keys []string) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, key := range keys {
		err := w.WriteHeader(&tar.Header{Name: key, Size: 1, Mode: 0o644})
		if err == nil {
			_, err = w.Write([]byte("x"))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := srv.Client().PutObject(context.Background(), &awss3.PutObjectInput{
		Bucket: &srv.Bucket, Key: aws.String("all.tar"), Body: bytes.NewReader(b.Bytes()),
		Metadata: map[string]string{"Snowball-Auto-Extract": "true"},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Some servers compare an ETag together with its quotes, and so never find it equal.
func TestUnquotedETag(t *testing.T) {
	s := s3suite.Proxy(t, servers.StartMinIO(t), func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		if strings.HasPrefix(r.Header.Get("If-Match"), `"`) {
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(http.StatusPreconditionFailed)
			fmt.Fprint(w, "<Error><Code>PreconditionFailed</Code></Error>")
			return
		}
		pass.ServeHTTP(w, r)
	})
	put := func(content, version string) (blob.Info, error) {
		return s.Put(t.Context(), "k", strings.NewReader(content), blob.PutOptions{IfVersion: version})
	}
	first, err := put("first", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err = put("second", first.Version); err != nil {
		t.Errorf("put with the right version: %v", err)
	}
	if _, err = put("third", first.Version); !errors.Is(err, blob.ErrPreconditionFailed) {
		t.Errorf("put with a stale version: %v", err)
	}
	if r, err := blob.Probe(t.Context(), s, "node"); err != nil || !r.Fenced() {
		t.Errorf("Probe = %s, %v", r, err)
	}
}
