package s3suite

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/s3"
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
func purgeIsBatched(t *testing.T, srv Server) {
	server := srv.Start(t, append(slices.Clone(srv.PurgeOptions), servers.InMemory())...)
	var count requests
	s := Connect(t, server, "main", func(c *s3.Config) { c.OnRequest = count.add })
	const backups, keep = 2000, 245
	srv.Fill(t, server, backupObjects("main/", backups))

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
	if v := versions(t, server, "main/"); v != keep*3 {
		t.Errorf("%d versions and delete markers are left, want %d", v, keep*3)
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
func purgeVersions(t *testing.T, srv Server) {
	server := srv.Start(t, servers.Versioned())
	s := Connect(t, server, "main", nil)
	for _, key := range []string{"b1/data", "b1/meta", "b2/data"} {
		for i := range 3 {
			if _, err := s.Put(t.Context(), key, strings.NewReader(fmt.Sprint(i)), blob.PutOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Another tool deletes b1/meta and leaves a mark.
	if _, err := server.Client().DeleteObject(t.Context(),
		&awss3.DeleteObjectInput{Bucket: &server.Bucket, Key: aws.String("main/b1/meta")}); err != nil {
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
}
