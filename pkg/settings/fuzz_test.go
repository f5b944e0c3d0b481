package settings

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// FuzzEnvFile: what a file of the environment holds is secret, so no error repeats anything of it.
func FuzzEnvFile(f *testing.F) {
	path := filepath.Join(f.TempDir(), "env")
	f.Add([]byte("# credentials\nAWS_ACCESS_KEY_ID=AKIA\nAWS_SECRET_ACCESS_KEY=x=y\n"))
	f.Add([]byte("AWS_SECRET_ACCESS_KEY: hunter2\n"))
	f.Add([]byte("=\x1b\n"))
	f.Add([]byte(strings.Repeat("x", 100_000)))
	f.Fuzz(func(t *testing.T, data []byte) {
		testutil.Must(t, os.WriteFile(path, data, 0o600))
		testutil.Untrusted(t, len(data), testutil.Usual, func() error {
			vars, err := ReadEnv(path)
			for k := range vars {
				if k == "" {
					t.Error("a variable without a name")
				}
			}
			if err != nil {
				for _, word := range strings.Fields(string(data)) {
					if len(word) > 12 && strings.Contains(err.Error(), word) {
						t.Errorf("the error repeats what stands in the file: %v", err)
					}
				}
			}
			return err
		})
	})
}
