package s3_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/s3"
	"github.com/etcd-manager/etcd-manager/test/s3suite"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// TestVersityGW holds versitygw to what every server has to pass. MinIO has a package of its own, test/minio.
func TestVersityGW(t *testing.T) {
	s3suite.Run(t, s3suite.Server{Start: servers.StartVersityGW, Fill: fillFiles, BelowObject: blob.ErrInvalid})
}

// fillFiles makes objects of versitygw, which are files, without a request for each.
func fillFiles(t *testing.T, srv *servers.S3, keys []string) {
	t.Helper()
	for _, key := range keys {
		path := filepath.Join(srv.DataDir, srv.Bucket, key)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// A snapshot of any size must fit into the same memory.
func TestPutMemory(t *testing.T) {
	server := servers.StartVersityGW(t)
	s := s3suite.Connect(t, server, "main", func(c *s3.Config) { c.PartSize = 0 })
	const size = 256 << 20
	runtime.GC()
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	peak := uint64(0)
	body := &sampled{left: size, sample: func() {
		runtime.ReadMemStats(&now)
		peak = max(peak, now.HeapInuse)
	}}
	info, err := s.Put(t.Context(), "large", body, blob.PutOptions{})
	if err != nil || info.Size != size {
		t.Fatalf("Put = %+v, %v", info, err)
	}
	grown := int64(peak) - int64(before.HeapInuse)
	t.Logf("the heap grew by %d MiB while %d MiB were streamed", grown>>20, size>>20)
	if grown > 40<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

// sampled is a body that takes a sample at every MiB.
type sampled struct {
	left, next int64
	sample     func()
}

func (s *sampled) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), s.left)
	for i := range p[:n] {
		p[i] = byte(s.left >> 10)
	}
	s.left -= n
	if s.next -= n; s.next <= 0 {
		s.sample()
		s.next = 1 << 20
	}
	return int(n), nil
}

func TestServerAway(t *testing.T) {
	server := servers.StartVersityGW(t)
	s := s3suite.Connect(t, server, "main", nil)
	if _, err := s.Put(t.Context(), "k", strings.NewReader("x"), blob.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	server.Pause()
	bounded := blob.WithTimeouts(s, blob.Timeouts{Small: 300 * time.Millisecond})
	if _, err := bounded.Stat(t.Context(), "k"); !errors.Is(err, blob.ErrTransient) {
		t.Errorf("paused: %v", err)
	}
	server.Resume()
	if _, err := s.Stat(t.Context(), "k"); err != nil {
		t.Errorf("resumed: %v", err)
	}
	server.Stop()
	if _, err := s.Stat(t.Context(), "k"); !errors.Is(err, blob.ErrTransient) || errors.Is(err, blob.ErrNotFound) {
		t.Errorf("stopped: %v", err)
	}
	server.Start()
	if _, err := s.Stat(t.Context(), "k"); err != nil {
		t.Errorf("started again: %v", err)
	}
}
