package hosts

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// FuzzKept updates any hosts file beside any copy of an unfinished write. Lines outside of the block stay as they are.
func FuzzKept(f *testing.F) {
	dir := f.TempDir()
	file := File{Path: filepath.Join(dir, "hosts"), KeepDir: dir}
	add := func(now, old, want string) {
		data, err := json.Marshal(kept{Path: file.Path, Old: []byte(old), New: []byte(want)})
		testutil.Must(f, err)
		f.Add([]byte(now), data)
	}
	add("127.0.0.1 localhost\n", "127.0.0.1 localhost\n", "127.0.0.1 localhost\n10.0.0.1 a\n")
	add("127.0.0.1 localhost\n10.0", "127.0.0.1 localhost\n", "127.0.0.1 localhost\n10.0.0.1 a\n")
	f.Add([]byte(strings.Repeat("\x1b\n", 1000)), []byte("null"))
	f.Fuzz(func(t *testing.T, now, copied []byte) {
		testutil.Must(t, os.WriteFile(file.Path, now, 0o600))
		testutil.Must(t, os.WriteFile(file.keptPath(), copied, 0o600))
		var k kept
		finished := json.Unmarshal(copied, &k) == nil && k.Path == file.Path && mixture(now, k.Old, k.New)
		testutil.Untrusted(t, len(now)+len(copied), testutil.Usual, func() error {
			_, err := file.Update(t.Context(), "etcd", two())
			return err
		})
		got, err := os.ReadFile(file.Path)
		testutil.Must(t, err)
		first, _, _ := bytes.Cut(now, []byte("\n"))
		if ours := len(first) == 0 || first[0] == '#' || bytes.Contains(first, []byte("etcd-")); !finished && !ours && !bytes.Contains(got, first) {
			t.Errorf("%q is gone from %q", first, got)
		}
	})
}
