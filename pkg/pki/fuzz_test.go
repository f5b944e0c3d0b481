package pki

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// FuzzAuthority reads any bytes as the certificates and as the key of a CA. An error never repeats the key.
func FuzzAuthority(f *testing.F) {
	dir := f.TempDir()
	testutil.Must(f, CreateCAs(dir, time.Now()))
	names, err := filepath.Glob(filepath.Join(dir, "*.crt"))
	if err != nil || len(names) == 0 {
		f.Fatalf("no CA: %v", err)
	}
	cert, err := os.ReadFile(names[0])
	testutil.Must(f, err)
	key, err := os.ReadFile(names[0][:len(names[0])-4] + ".key")
	testutil.Must(f, err)
	f.Add(cert, key)
	f.Add(bytes.Repeat(cert, 3), key[:len(key)/2])
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), []byte("-----BEGIN \x1b-----\nAAAA\n-----END \x1b-----\n"))
	f.Fuzz(func(t *testing.T, cert, key []byte) {
		testutil.Untrusted(t, len(cert)+len(key), testutil.Cost{Fixed: 4 << 20, PerByte: 500}, func() error {
			a, err := parseAuthority("ca.crt", cert, "ca.key", key, time.Now())
			if err == nil && a == nil || err != nil && !errors.Is(err, ErrAuthority) {
				t.Errorf("%v, %v", a, err)
			}
			return err
		})
	})
}
