package adopt

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

func FuzzRecord(f *testing.F) {
	dir := f.TempDir()
	testutil.Must(f, os.MkdirAll(filepath.Dir(recordPath(dir)), 0o700))
	f.Add([]byte(`{"version":1,"dataDir":"/d","done":true}`))
	f.Add([]byte("\x1b"))
	f.Fuzz(func(t *testing.T, data []byte) {
		testutil.Must(t, os.WriteFile(recordPath(dir), data, 0o600))
		testutil.Untrusted(t, len(data), testutil.Usual, func() error { return Check(dir, "file:///store") })
	})
}
