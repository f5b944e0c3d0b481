package minio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/s3"
	"github.com/etcd-manager/etcd-manager/test/s3suite"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// TestServerSideEncryption: what is demanded stands with each object, small and large, created and replaced.
func TestServerSideEncryption(t *testing.T) {
	testutil.Long(t)
	server := servers.StartMinIO(t)
	for _, w := range []s3.WriteOptions{
		{SSE: "aws:kms", KMSKeyID: "test-key", Tags: []string{"team=etcd", "with space=a+b/c"}},
		{SSE: "AES256"},
		{StorageClass: "REDUCED_REDUNDANCY"},
	} {
		t.Run(fmt.Sprint(w), func(t *testing.T) {
			s := s3suite.Connect(t, server, "main", func(c *s3.Config) { c.Write = w })
			if r, err := blob.Probe(t.Context(), s, "node"); err != nil || !r.Fenced() {
				t.Fatalf("probe: %s, %v", r, err)
			}
			for key, size := range map[string]int{"small": 100, "large": 2*s3.DefaultSingle + 1} {
				data := bytes.Repeat([]byte("x"), size)
				info, err := s.Put(t.Context(), key, bytes.NewReader(data), blob.PutOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if _, err = s.Put(t.Context(), key, bytes.NewReader(data), blob.PutOptions{IfVersion: info.Version}); err != nil {
					t.Fatal(err)
				}
				rc, _, err := s.Get(t.Context(), key, blob.Range{})
				if err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(rc); err != nil || !bytes.Equal(got, data) {
					t.Errorf("%s: %d bytes, %v", key, len(got), err)
				}
				rc.Close()
				holds(t, server, "main/"+key, w)
			}
		})
	}
}

// holds asks the server itself.
func holds(t *testing.T, server *servers.S3, key string, w s3.WriteOptions) {
	t.Helper()
	head, err := server.Client().HeadObject(context.Background(), &awss3.HeadObjectInput{Bucket: &server.Bucket, Key: &key})
	if err != nil {
		t.Fatal(err)
	}
	if string(head.ServerSideEncryption) != w.SSE || string(head.StorageClass) != w.StorageClass {
		t.Errorf("%s is encrypted by %q, of class %q; want %+v", key, head.ServerSideEncryption, head.StorageClass, w)
	}
	if w.KMSKeyID != "" && (head.SSEKMSKeyId == nil || !strings.HasSuffix(*head.SSEKMSKeyId, w.KMSKeyID)) {
		t.Errorf("%s: by key %v, want %s", key, head.SSEKMSKeyId, w.KMSKeyID)
	}
	tags, err := server.Client().GetObjectTagging(context.Background(), &awss3.GetObjectTaggingInput{Bucket: &server.Bucket, Key: &key})
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, tag := range tags.TagSet {
		have = append(have, *tag.Key+"="+*tag.Value)
	}
	if fmt.Sprint(have) != fmt.Sprint(w.Tags) {
		t.Errorf("%s: tags %v, want %v", key, have, w.Tags)
	}
}

// TestUnknownKMSKey: a key that the server doesn't have is named as the reason, before a byte is stored.
func TestUnknownKMSKey(t *testing.T) {
	s := s3suite.Connect(t, servers.StartMinIO(t), "main",
		func(c *s3.Config) { c.Write = s3.WriteOptions{SSE: "aws:kms", KMSKeyID: "no-such-key"} })
	for _, size := range []int{100, s3.DefaultSingle + 1} {
		_, err := s.Put(t.Context(), "x", bytes.NewReader(make([]byte, size)), blob.PutOptions{})
		if err == nil || !strings.Contains(strings.ToLower(err.Error()), "key") {
			t.Errorf("put of %d bytes: %v", size, err)
		}
		if _, err := s.Stat(t.Context(), "x"); !errors.Is(err, blob.ErrNotFound) {
			t.Errorf("left: %v", err)
		}
	}
}
