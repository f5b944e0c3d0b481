package envelope

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"filippo.io/age"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// The key of the fuzz targets; it protects nothing.
const (
	fuzzIdentity  = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX"
	fuzzRecipient = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"
)

// FuzzOpen opens any bytes as something sealed, with a key of age and with a key service that unwraps everything to the same key.
func FuzzOpen(f *testing.F) {
	path := filepath.Join(f.TempDir(), "key")
	testutil.Must(f, os.WriteFile(path, []byte(fuzzIdentity+"\n"), 0o600))
	o, err := NewOpener(Config{KMS: fakeKMS{}}, []string{path})
	testutil.Must(f, err)
	s, err := NewSealer(Config{}, []string{"age:" + fuzzRecipient})
	testutil.Must(f, err)
	good, err := SealBytes(context.Background(), s, []byte("content"), "here")
	testutil.Must(f, err)
	f.Add(good)
	f.Add([]byte("age-encryption.org/v1\n-> " + kmsStanza + " a =aA =aGVyZQ\nAAAA\n--- AAAA\n"))
	f.Add([]byte("age-encryption.org/v1\n-> \x1b[31m x\n"))
	// A chunk of age is 64 KiB.
	most := testutil.Cost{Fixed: 2 << 20, PerByte: 200}
	f.Fuzz(func(t *testing.T, sealed []byte) {
		testutil.Untrusted(t, len(sealed), most, func() error {
			plain, err := OpenBytes(t.Context(), o, sealed, "here")
			if err == nil && !bytes.Equal(sealed, good) && len(plain) > len(sealed) {
				t.Errorf("%d bytes became %d", len(sealed), len(plain))
			}
			return err
		})
	})
}

// FuzzStanza takes the part of a head apart that holds the key of a key service.
func FuzzStanza(f *testing.F) {
	f.Add("=aA", "=aGVyZQ", []byte("\x00\x04wrap0123456789abcdef"))
	f.Add("=aA", "=aGVyZQ", []byte("\xff\xff"))
	f.Fuzz(func(t *testing.T, cluster, binding string, body []byte) {
		testutil.Untrusted(t, len(body)+len(cluster)+len(binding), testutil.Usual, func() error {
			_, wrapped, sealed, err := parseStanza(&age.Stanza{Type: kmsStanza, Args: []string{"key", cluster, binding}, Body: body}, "here")
			if err == nil && (len(wrapped) == 0 || len(sealed) < nonceSize) {
				t.Errorf("wrapped %x, sealed %x", wrapped, sealed)
			}
			return err
		})
	})
}

// FuzzKeyFile reads files of recipients and of keys. What a file of keys holds must never be in an error.
func FuzzKeyFile(f *testing.F) {
	path := filepath.Join(f.TempDir(), "file")
	f.Add([]byte("# a comment\n" + fuzzRecipient + "\n"))
	f.Add([]byte(fuzzIdentity + "\n"))
	f.Add([]byte(fuzzIdentity[:40] + "\n"))
	f.Add([]byte("AGE-PLUGIN-\x1b\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		testutil.Must(t, os.WriteFile(path, data, 0o600))
		testutil.Untrusted(t, len(data), testutil.Cost{Fixed: 2 << 20, PerByte: 2000}, func() error {
			_, err := NewSealer(Config{}, []string{"age:" + path})
			return err
		})
		testutil.Untrusted(t, len(data), testutil.Cost{Fixed: 2 << 20, PerByte: 2000}, func() error {
			_, err := NewOpener(Config{}, []string{path})
			if err == nil {
				return nil
			}
			for _, line := range bytes.Fields(data) {
				if len(line) > 20 && bytes.Contains([]byte(err.Error()), line) {
					t.Errorf("the error repeats a line of the file of keys: %v", err)
				}
			}
			return err
		})
	})
}
