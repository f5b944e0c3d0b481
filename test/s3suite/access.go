package s3suite

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/s3"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

func privateCA(t *testing.T, srv Server) {
	server := srv.Start(t, servers.TLS())
	s := Connect(t, server, "main", nil)
	if r, err := blob.Probe(t.Context(), s, "node"); err != nil || !r.Fenced() {
		t.Errorf("Probe = %s, %v", r, err)
	}
	large := make([]byte, 2*s3.MinPartSize)
	if _, err := s.Put(t.Context(), "large", bytes.NewReader(large), blob.PutOptions{}); err != nil {
		t.Errorf("Put: %v", err)
	}
	s = Connect(t, server, "main", func(c *s3.Config) { c.CAFile = "" })
	_, err := s.Stat(t.Context(), "k")
	if !errors.Is(err, blob.ErrInvalid) || !strings.Contains(err.Error(), "AWS_CA_BUNDLE") {
		t.Errorf("without the CA: %v", err)
	}
}

func wrongBucketAndCredentials(t *testing.T, srv Server) {
	server := srv.Start(t)
	each := func(s *s3.Store) map[string]error {
		errs := map[string]error{}
		_, errs["put"] = s.Put(t.Context(), "k", strings.NewReader("x"), blob.PutOptions{})
		_, errs["conditional put"] = s.Put(t.Context(), "k", strings.NewReader("x"),
			blob.PutOptions{IfVersion: "0123456789abcdef0123456789abcdef"})
		_, errs["stat"] = s.Stat(t.Context(), "k")
		_, _, errs["get"] = s.Get(t.Context(), "k", blob.Range{})
		_, errs["purge"] = s.Purge(t.Context(), "k", func(string) bool { return true })
		for _, err := range s.List(t.Context(), "", blob.ListOptions{}) {
			errs["list"] = err
		}
		return errs
	}
	for op, err := range each(Connect(t, server, "main", func(c *s3.Config) { c.Bucket = "elsewhere" })) {
		if !errors.Is(err, blob.ErrInvalid) || errors.Is(err, blob.ErrNotFound) ||
			!strings.Contains(fmt.Sprint(err), `bucket "elsewhere" does not exist`) {
			t.Errorf("%s in a missing bucket: %v", op, err)
		}
	}
	for op, err := range each(Connect(t, server, "main", func(c *s3.Config) { c.SecretAccessKey = "wrong-secret" })) {
		var be *blob.Error
		if !errors.Is(err, blob.ErrDenied) || !errors.As(err, &be) || be.Action != "valid credentials" {
			t.Errorf("%s with a wrong secret: %v", op, err)
		}
		if strings.Contains(fmt.Sprint(err), "wrong-secret") {
			t.Errorf("%s shows the secret: %v", op, err)
		}
	}
}

// An object below another one is where servers on a file system differ: what they can't do they must say, and not lose anything.
func objectBelowObject(t *testing.T, srv Server) {
	s := Connect(t, srv.Start(t), "main", nil)
	if _, err := s.Put(t.Context(), "a", strings.NewReader("above"), blob.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err := s.Put(t.Context(), "a/b", strings.NewReader("below"), blob.PutOptions{})
	if !errors.Is(err, srv.BelowObject) {
		t.Errorf("Put: %v, want %v", err, srv.BelowObject)
	}
	if data, _, err := blob.ReadAll(t.Context(), s, "a", 10); string(data) != "above" || err != nil {
		t.Errorf("the object above is %q, %v", data, err)
	}
}
