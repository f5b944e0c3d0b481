package s3_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/s3"
	"github.com/etcd-manager/etcd-manager/test/s3suite"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// TestIgnoredEncryption: versitygw takes the demand for encryption and stores in the clear. That is
// found out by the probe and by every put, and nothing is left behind.
func TestIgnoredEncryption(t *testing.T) {
	server := servers.StartVersityGW(t)
	const message = "ignores the required server-side encryption"
	for _, sse := range []string{"aws:kms", "AES256"} {
		s := s3suite.Connect(t, server, "main", func(c *s3.Config) { c.Write.SSE = sse })
		for what, size := range map[string]int{"small": 100, "large": s3.DefaultSingle + 1} {
			_, err := s.Put(t.Context(), what, bytes.NewReader(make([]byte, size)), blob.PutOptions{IfAbsent: true})
			if err == nil || !strings.Contains(err.Error(), message) || !strings.Contains(err.Error(), sse) ||
				errors.Is(err, blob.ErrTransient) {
				t.Errorf("%s: %v", what, err)
			}
			if _, err := s.Stat(t.Context(), what); !errors.Is(err, blob.ErrNotFound) {
				t.Errorf("%s: it was left: %v", what, err)
			}
		}
		r, err := blob.Probe(t.Context(), s, "node")
		if err == nil || !strings.Contains(err.Error(), message) || r.Write {
			t.Errorf("probe: %s, %v", r, err)
		}
		for e, err := range s.List(t.Context(), "", blob.ListOptions{}) {
			t.Errorf("left behind: %s, %v", e.Key, err)
		}
	}
}

func TestWriteOptions(t *testing.T) {
	for want, w := range map[string]s3.WriteOptions{
		"":                    {SSE: "aws:kms", KMSKeyID: "k", StorageClass: "STANDARD_IA", Tags: []string{"a=b", "c="}},
		"is not known":        {SSE: "rot13"},
		"needs the server":    {SSE: "AES256", KMSKeyID: "k"},
		"is not key=value":    {Tags: []string{"a"}},
		"is given twice":      {Tags: []string{"a=1", "a=2"}},
		"more than the 10":    {Tags: strings.Split(strings.Repeat("a=1 ", 10)+"a=1", " ")},
		"at most 128 and 256": {Tags: []string{strings.Repeat("k", 129) + "=v"}},
	} {
		_, err := s3.New(t.Context(), s3.Config{Bucket: "b", Write: w})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", w, err, want)
		}
	}
}
