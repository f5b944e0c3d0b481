package blob_test

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
)

// TestReadOnly: what is there can be read, and nothing can be changed.
func TestReadOnly(t *testing.T) {
	ctx, m := t.Context(), blobtest.NewFaulty(blobtest.NewMemory())
	if _, err := m.Put(ctx, "a/b", strings.NewReader("x"), blob.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	s := blob.ReadOnly(m)
	before := len(m.Calls())
	_, perr := s.Put(ctx, "a/c", strings.NewReader("y"), blob.PutOptions{})
	n, derr := s.Purge(ctx, "a/", func(string) bool { return true })
	for _, err := range []error{perr, derr} {
		if !errors.Is(err, blob.ErrReadOnly) || !errors.Is(err, blob.ErrDenied) {
			t.Errorf("%v", err)
		}
	}
	if n != 0 || len(m.Calls()) != before {
		t.Errorf("%d objects went; %v", n, m.Calls()[before:])
	}
	r, _, err := s.Get(ctx, "a/b", blob.Range{})
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(r); err != nil || string(text) != "x" {
		t.Errorf("%q %v", text, err)
	}
	if _, err := s.Stat(ctx, "a/b"); err != nil {
		t.Error(err)
	}
	for e, err := range s.List(ctx, "", blob.ListOptions{}) {
		if err != nil || e.Key != "a/b" {
			t.Errorf("%+v %v", e, err)
		}
	}
}
