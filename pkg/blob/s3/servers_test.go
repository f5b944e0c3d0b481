package s3

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// requests counts requests by operation.
type requests struct {
	mu sync.Mutex
	m  map[string]int
}

func (r *requests) add(op string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.m == nil {
		r.m = map[string]int{}
	}
	r.m[op]++
}

// take returns the sum and the counts so far, and starts anew.
func (r *requests) take() (int, map[string]int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, c := range r.m {
		n += c
	}
	m := r.m
	r.m = nil
	return n, m
}

// Retention must not cost a request for every backup.
func TestPurgeIsBatched(t *testing.T) {
	for _, tt := range []struct {
		server
		opts []servers.S3Option
		fill func(*testing.T, *servers.S3, []string)
	}{
		{server{"versitygw", servers.StartVersityGW}, nil, fillFiles},
		{server{"minio, versioned", servers.StartMinIO}, []servers.S3Option{servers.Versioned()}, fillArchive},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := tt.start(t, append(tt.opts, servers.InMemory())...)
			var count requests
			s := connect(t, srv, "main", func(c *Config) { c.OnRequest = count.add })
			const backups, keep = 2000, 245
			tt.fill(t, srv, backupObjects("main/", backups))

			count.take()
			var names []string
			for e, err := range s.List(t.Context(), "", blob.ListOptions{}) {
				if err != nil {
					t.Fatal(err)
				}
				if name, ok := strings.CutSuffix(e.Key, "/_etcd_backup.meta"); ok {
					names = append(names, name)
				}
			}
			if len(names) != backups {
				t.Fatalf("%d backups are listed", len(names))
			}
			n, err := s.Purge(t.Context(), "", func(key string) bool {
				name, _, _ := strings.Cut(key, "/")
				i, found := slices.BinarySearch(names, name)
				return found && i%8 != 0 || i >= keep*8
			})
			if n != (backups-keep)*3 || err != nil {
				t.Errorf("Purge = %d, %v; want %d", n, err, (backups-keep)*3)
			}
			sum, byOp := count.take()
			t.Logf("%d requests: %v", sum, byOp)
			if sum > 20 {
				t.Errorf("%d requests, more than 20: %v", sum, byOp)
			}
			left := 0
			for _, err := range s.List(t.Context(), "", blob.ListOptions{}) {
				if err != nil {
					t.Fatal(err)
				}
				left++
			}
			if left != keep*3 {
				t.Errorf("%d objects are left, want %d", left, keep*3)
			}
			if v := versions(t, srv, "main/"); v != keep*3 {
				t.Errorf("%d versions and delete markers are left, want %d", v, keep*3)
			}
		})
	}
}

// backupObjects are the keys of backups of three objects each.
func backupObjects(prefix string, backups int) []string {
	var keys []string
	first := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range backups {
		name := prefix + first.Add(time.Duration(i)*15*time.Minute).Format(time.RFC3339) + fmt.Sprintf("-%06d/", i)
		keys = append(keys, name+"etcd.backup.gz", name+"manifest.json", name+"_etcd_backup.meta")
	}
	return keys
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
		Bucket: &srv.Bucket, Key: aws.String("all.tar"), Body: bytes.NewReader(b.Bytes()), Metadata: map[string]string{"Snowball-Auto-Extract": "true"},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// versions counts versions and delete markers.
func versions(t *testing.T, srv *servers.S3, prefix string) int {
	t.Helper()
	n := 0
	in := &awss3.ListObjectVersionsInput{Bucket: &srv.Bucket, Prefix: &prefix}
	for {
		page, err := srv.Client().ListObjectVersions(context.Background(), in)
		if err != nil {
			t.Fatal(err)
		}
		n += len(page.Versions) + len(page.DeleteMarkers)
		if !aws.ToBool(page.IsTruncated) {
			return n
		}
		in.KeyMarker, in.VersionIdMarker = page.NextKeyMarker, page.NextVersionIdMarker
	}
}

// All versions go, and the marks of what others deleted.
func TestPurgeVersions(t *testing.T) {
	for _, srv := range allServers() {
		t.Run(srv.name, func(t *testing.T) {
			server := srv.start(t, servers.Versioned())
			s := connect(t, server, "main", nil)
			for _, key := range []string{"b1/data", "b1/meta", "b2/data"} {
				for i := range 3 {
					if _, err := s.Put(t.Context(), key, strings.NewReader(fmt.Sprint(i)), blob.PutOptions{}); err != nil {
						t.Fatal(err)
					}
				}
			}
			// Another tool deletes b1/meta and leaves a mark.
			if _, err := server.Client().DeleteObject(t.Context(), &awss3.DeleteObjectInput{Bucket: &server.Bucket, Key: aws.String("main/b1/meta")}); err != nil {
				t.Fatal(err)
			}
			if n := versions(t, server, "main/b1/"); n != 7 {
				t.Fatalf("the bucket keeps %d versions and marks, want 7", n)
			}
			if n, err := s.Purge(t.Context(), "b1/", func(string) bool { return true }); n != 2 || err != nil {
				t.Errorf("Purge = %d, %v; want 2", n, err)
			}
			if n := versions(t, server, "main/b1/"); n != 0 {
				t.Errorf("%d versions and marks are left", n)
			}
			if n := versions(t, server, "main/b2/"); n != 3 {
				t.Errorf("%d versions of another object are left, want 3", n)
			}
		})
	}
}

// What fails leaves no parts behind, which would be paid for and never be seen.
func TestFailedUploadIsAborted(t *testing.T) {
	for _, srv := range allServers() {
		t.Run(srv.name, func(t *testing.T) {
			server := srv.start(t)
			s := connect(t, server, "main", nil)
			broken := errors.New("the source broke")
			half := func() io.Reader { return bytes.NewReader(make([]byte, 3*MinPartSize)) }

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
		})
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

// A snapshot of any size must fit into the same memory.
func TestPutMemory(t *testing.T) {
	server := servers.StartVersityGW(t)
	s := connect(t, server, "main", func(c *Config) { c.PartSize = 0 })
	if buffers := s.partSize * (uploads + 1); buffers > 40<<20 {
		t.Errorf("a put needs %d bytes of buffers, more than 40 MiB", buffers)
	}
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
	if grown > 64<<20 {
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

func TestPrivateCA(t *testing.T) {
	for _, srv := range allServers() {
		t.Run(srv.name, func(t *testing.T) {
			server := srv.start(t, servers.TLS())
			s := connect(t, server, "main", nil)
			if r, err := blob.Probe(t.Context(), s, "node"); err != nil || !r.Fenced() {
				t.Errorf("Probe = %s, %v", r, err)
			}
			large := make([]byte, 2*MinPartSize)
			if _, err := s.Put(t.Context(), "large", bytes.NewReader(large), blob.PutOptions{}); err != nil {
				t.Errorf("Put: %v", err)
			}
			s = connect(t, server, "main", func(c *Config) { c.CAFile = "" })
			_, err := s.Stat(t.Context(), "k")
			if !errors.Is(err, blob.ErrInvalid) || !strings.Contains(err.Error(), "AWS_CA_BUNDLE") {
				t.Errorf("without the CA: %v", err)
			}
		})
	}
}

func TestWrongBucketAndCredentials(t *testing.T) {
	for _, srv := range allServers() {
		t.Run(srv.name, func(t *testing.T) {
			server := srv.start(t)
			each := func(s *Store) map[string]error {
				errs := map[string]error{}
				_, errs["put"] = s.Put(t.Context(), "k", strings.NewReader("x"), blob.PutOptions{})
				_, errs["conditional put"] = s.Put(t.Context(), "k", strings.NewReader("x"), blob.PutOptions{IfVersion: "0123456789abcdef0123456789abcdef"})
				_, errs["stat"] = s.Stat(t.Context(), "k")
				_, _, errs["get"] = s.Get(t.Context(), "k", blob.Range{})
				_, errs["purge"] = s.Purge(t.Context(), "k", func(string) bool { return true })
				for _, err := range s.List(t.Context(), "", blob.ListOptions{}) {
					errs["list"] = err
				}
				return errs
			}
			for op, err := range each(connect(t, server, "main", func(c *Config) { c.Bucket = "elsewhere" })) {
				if !errors.Is(err, blob.ErrInvalid) || errors.Is(err, blob.ErrNotFound) || !strings.Contains(fmt.Sprint(err), `bucket "elsewhere" does not exist`) {
					t.Errorf("%s in a missing bucket: %v", op, err)
				}
			}
			for op, err := range each(connect(t, server, "main", func(c *Config) { c.SecretAccessKey = "wrong-secret" })) {
				var be *blob.Error
				if !errors.Is(err, blob.ErrDenied) || !errors.As(err, &be) || be.Action != "valid credentials" {
					t.Errorf("%s with a wrong secret: %v", op, err)
				}
				if strings.Contains(fmt.Sprint(err), "wrong-secret") {
					t.Errorf("%s shows the secret: %v", op, err)
				}
			}
		})
	}
}

func TestServerAway(t *testing.T) {
	server := servers.StartVersityGW(t)
	s := connect(t, server, "main", nil)
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

// An object below another one is where servers on a file system differ: what they can't do they must say, and not lose anything.
func TestObjectBelowObject(t *testing.T) {
	for _, tt := range []struct {
		server
		want error
	}{
		{server{"versitygw", servers.StartVersityGW}, blob.ErrInvalid},
		{server{"minio", servers.StartMinIO}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := connect(t, tt.start(t), "main", nil)
			if _, err := s.Put(t.Context(), "a", strings.NewReader("above"), blob.PutOptions{}); err != nil {
				t.Fatal(err)
			}
			_, err := s.Put(t.Context(), "a/b", strings.NewReader("below"), blob.PutOptions{})
			if !errors.Is(err, tt.want) {
				t.Errorf("Put: %v, want %v", err, tt.want)
			}
			if data, _, err := blob.ReadAll(t.Context(), s, "a", 10); string(data) != "above" || err != nil {
				t.Errorf("the object above is %q, %v", data, err)
			}
		})
	}
}
