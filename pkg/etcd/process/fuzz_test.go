package process

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

func FuzzPIDFile(f *testing.F) {
	path := filepath.Join(f.TempDir(), "etcd.pid")
	f.Add([]byte(`{"pid":4242,"startTicks":17,"bootID":"5c9c"}`))
	f.Add([]byte(`{"pid":-1,"startTicks":1}`))
	f.Add([]byte(`{"pid":"` + strings.Repeat("\x1b", 5000) + `"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		testutil.Untrusted(t, len(data), testutil.Usual, func() error {
			info, err := readPIDFile(path)
			if err == nil && (info.PID <= 1 || info.StartTicks == 0) {
				t.Errorf("%+v", info)
			}
			return err
		})
	})
}

// FuzzReason reads what an etcd has said before it ended: any bytes become one short line.
func FuzzReason(f *testing.F) {
	f.Add([]byte(`{"level":"fatal","msg":"discovery failed","error":"member count is unequal"}` + "\nusage:\n"))
	f.Add([]byte("panic: runtime error\n\ngoroutine 1\n"))
	f.Add([]byte(strings.Repeat("\x1b[31m", 5000)))
	f.Fuzz(func(t *testing.T, said []byte) {
		testutil.Untrusted(t, len(said), testutil.Usual, func() error {
			reason := reasonOf(said)
			if len(reason) > 1000 || strings.ContainsAny(reason, "\n\r\x1b\x00") {
				t.Errorf("%d bytes: %.300q", len(reason), reason)
			}
			return nil
		})
		testutil.Untrusted(t, len(said), testutil.Usual, func() error {
			_, err := readVersion("/opt/etcd", string(said), nil, nil)
			return err
		})
	})
}

// FuzzCommandLine looks for a data dir in the command line of any process.
func FuzzCommandLine(f *testing.F) {
	f.Add("etcd\x00--data-dir=/var/lib/etcd")
	f.Add("etcd\x00--data-dir\x00/var/lib/etcd")
	f.Add("--data-dir")
	f.Fuzz(func(t *testing.T, line string) {
		testutil.Untrusted(t, len(line), testutil.Usual, func() error {
			if namesDataDir(strings.Split(line, "\x00"), "/var/lib/etcd") && !strings.Contains(line, "data-dir") {
				t.Errorf("%q", line)
			}
			return nil
		})
	})
}
