// Package s3suite holds an S3 server to what pkg/blob/s3 makes of it. Each server that is tried has a test package of its own
// that runs the suite, so that a package needs the build of only one. It is for tests only.
package s3suite

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/blob/s3"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// Server is one kind of S3 server.
type Server struct {
	// Start starts it.
	Start func(t testing.TB, opts ...servers.S3Option) *servers.S3
	// Fill makes many small objects quickly. The keys are whole, not below a store's prefix.
	Fill func(t *testing.T, s *servers.S3, keys []string)
	// PurgeOptions are those of the server on which thousands of objects are purged.
	PurgeOptions []servers.S3Option
	// BelowObject is what a put below the key of another object ends with, nil where the server can do it.
	BelowObject error
}

// Run runs all tests that every server has to pass.
func Run(t *testing.T, srv Server) {
	for _, tt := range []struct {
		name string
		run  func(*testing.T, Server)
	}{
		{"conformance", func(t *testing.T, srv Server) { conformance(t, srv) }},
		{"conformance, versioned", func(t *testing.T, srv Server) { conformance(t, srv, servers.Versioned()) }},
		{"purge is batched", purgeIsBatched},
		{"purge versions", purgeVersions},
		{"failed upload is aborted", failedUploadIsAborted},
		{"lost completion", lostCompletion},
		{"damaged upload is refused", damagedUploadIsRefused},
		{"private CA", privateCA},
		{"wrong bucket and credentials", wrongBucketAndCredentials},
		{"object below object", objectBelowObject},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, srv) })
	}
}

func conformance(t *testing.T, srv Server, opts ...servers.S3Option) {
	s := srv.Start(t, append(opts, servers.InMemory())...)
	var n atomic.Int64
	blobtest.Run(t, func(t *testing.T) blob.Store {
		return Connect(t, s, fmt.Sprintf("clusters/test-%d", n.Add(1)), nil)
	}, blobtest.Capabilities{PartSize: s3.MinPartSize, PageSize: 1000, RepeatedVersion: true})
}

// Connect opens a store on a server. change, if not nil, changes the configuration.
func Connect(t *testing.T, s *servers.S3, prefix string, change func(*s3.Config)) *s3.Store {
	t.Helper()
	cfg := s3.Config{
		Bucket: s.Bucket, Prefix: prefix, Region: s.Region, Endpoint: s.Endpoint, PathStyle: true,
		AccessKeyID: s.AccessKeyID, SecretAccessKey: s.SecretAccessKey, CAFile: s.CAFile, PartSize: s3.MinPartSize,
	}
	if change != nil {
		change(&cfg)
	}
	store, err := s3.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// Proxy stands between the store and a real server, and may answer itself.
func Proxy(t *testing.T, srv *servers.S3, intercept func(w http.ResponseWriter, r *http.Request, pass http.Handler)) *s3.Store {
	t.Helper()
	front := servers.Front(t, srv, intercept)
	return Connect(t, srv, "main", func(c *s3.Config) { c.Endpoint = front })
}
