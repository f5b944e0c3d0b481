package s3

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// server is one kind of S3 server.
type server struct {
	name  string
	start func(t testing.TB, opts ...servers.S3Option) *servers.S3
}

func allServers() []server {
	return []server{{"versitygw", servers.StartVersityGW}, {"minio", servers.StartMinIO}}
}

func TestConformance(t *testing.T) {
	for _, srv := range allServers() {
		for _, versioned := range []bool{false, true} {
			name, opts := srv.name, []servers.S3Option{servers.InMemory()}
			if versioned {
				name, opts = srv.name+", versioned", append(opts, servers.Versioned())
			}
			t.Run(name, func(t *testing.T) {
				s := srv.start(t, opts...)
				var n atomic.Int64
				blobtest.Run(t, func(t *testing.T) blob.Store {
					return connect(t, s, fmt.Sprintf("clusters/test-%d", n.Add(1)), nil)
				}, blobtest.Capabilities{PartSize: MinPartSize, PageSize: 1000, RepeatedVersion: true})
			})
		}
	}
}

// connect opens a store on a server. change, if not nil, changes the configuration.
func connect(t *testing.T, s *servers.S3, prefix string, change func(*Config)) *Store {
	t.Helper()
	cfg := Config{
		Bucket: s.Bucket, Prefix: prefix, Region: s.Region, Endpoint: s.Endpoint, PathStyle: true,
		AccessKeyID: s.AccessKeyID, SecretAccessKey: s.SecretAccessKey, CAFile: s.CAFile, PartSize: MinPartSize,
	}
	if change != nil {
		change(&cfg)
	}
	store, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return store
}
