package blob

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// FuzzKey: a key that is taken leads below the base, to one place.
func FuzzKey(f *testing.F) {
	f.Add("control/leader")
	f.Add("a/../../etc/passwd")
	f.Add("a//b\x00\\c")
	f.Add(strings.Repeat("x", 10_000))
	f.Add("\x1b[31m/\u009b")
	f.Fuzz(func(t *testing.T, key string) {
		testutil.Untrusted(t, len(key), testutil.Usual, func() error {
			err := CheckKey(key)
			if err == nil && filepath.Join("/base", key) != "/base/"+key {
				t.Errorf("%q leads to %s", key, filepath.Join("/base", key))
			}
			if err == nil && CheckPrefix(key) != nil {
				t.Errorf("%q is a key and no prefix: %v", key, CheckPrefix(key))
			}
			return err
		})
	})
}
