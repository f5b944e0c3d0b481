package blobtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// timeout bounds one operation of the suite.
const timeout = time.Minute

type suite struct {
	*testing.T
	store blob.Store
	caps  Capabilities
}

// reader hides everything but Read, so that the store can't learn the length.
type reader struct{ io.Reader }

// pattern returns n bytes that only seed determines.
func pattern(n int64, seed uint64) []byte {
	b := make([]byte, n)
	var key [32]byte
	copy(key[:], strconv.FormatUint(seed, 10))
	_, _ = rand.NewChaCha8(key).Read(b) // Never fails.
	return b
}

func (s *suite) put(key string, data []byte, opts blob.PutOptions) (blob.Info, error) {
	ctx, cancel := context.WithTimeout(s.Context(), timeout)
	defer cancel()
	return s.store.Put(ctx, key, reader{bytes.NewReader(data)}, opts)
}

func (s *suite) mustPut(key string, data []byte, opts blob.PutOptions) blob.Info {
	s.Helper()
	info, err := s.put(key, data, opts)
	if err != nil {
		s.Fatalf("Put(%q, %d bytes, %+v): %v", key, len(data), opts, err)
	}
	if info.Key != key || info.Size != int64(len(data)) || info.Version == "" || info.Modified.IsZero() {
		s.Fatalf("Put(%q, %d bytes) = %+v", key, len(data), info)
	}
	return info
}

func (s *suite) get(key string, r blob.Range) ([]byte, blob.Info, error) {
	ctx, cancel := context.WithTimeout(s.Context(), timeout)
	defer cancel()
	rc, info, err := s.store.Get(ctx, key, r)
	if err != nil {
		return nil, info, err
	}
	defer rc.Close()
	data, err := io.ReadAll(rc)
	return data, info, err
}

func (s *suite) wantContent(key string, want []byte) {
	s.Helper()
	data, info, err := s.get(key, blob.Range{})
	if err != nil {
		s.Fatalf("Get(%q): %v", key, err)
	}
	if !bytes.Equal(data, want) {
		s.Fatalf("Get(%q) returned %d bytes with SHA-256 %x, want %d with %x", key, len(data), sha256.Sum256(data),
			len(want), sha256.Sum256(want))
	}
	if info.Key != key || info.Size != int64(len(want)) || info.Version == "" {
		s.Fatalf("Get(%q) described it as %+v", key, info)
	}
}

func (s *suite) wantError(what string, err, want error) {
	s.Helper()
	if !errors.Is(err, want) {
		s.Fatalf("%s: error %v, want %v", what, err, want)
	}
	var be *blob.Error
	if !errors.As(err, &be) || be.Op == "" || be.Key == "" {
		s.Fatalf("%s: error %#v is not a filled *blob.Error", what, err)
	}
}

func (s *suite) wantAbsent(key string) {
	s.Helper()
	_, err := s.store.Stat(s.Context(), key)
	s.wantError("Stat "+key, err, blob.ErrNotFound)
	if keys := s.keys("", blob.ListOptions{}); slices.Contains(keys, key) {
		s.Fatalf("List shows %v", keys)
	}
}

func (s *suite) keys(prefix string, opts blob.ListOptions) []string {
	s.Helper()
	keys := []string{}
	for e, err := range s.store.List(s.Context(), prefix, opts) {
		if err != nil {
			s.Fatalf("List(%q, %+v): %v", prefix, opts, err)
		}
		if e.Prefix != strings.HasSuffix(e.Key, "/") || e.Prefix && (e.Size != 0 || e.Version != "" || !e.Modified.IsZero()) {
			s.Fatalf("List(%q, %+v) yields %+v", prefix, opts, e)
		}
		keys = append(keys, e.Key)
	}
	return keys
}
