package cluster

import (
	"bytes"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// TestSecretsStayInTheManager gives a manager credentials, in its environment and in a file, and looks for them everywhere else: in the
// environment and the command line of its children, in its log, on its status port, and on its disk. What it writes nobody but its own
// user can read.
func TestSecretsStayInTheManager(t *testing.T) {
	testutil.Long(t)
	const inEnvironment, inFile = "hunter2-in-the-environment", "hunter3-in-a-file"
	file := filepath.Join(t.TempDir(), "env")
	testutil.Must(t, os.WriteFile(file, []byte("AWS_SESSION_TOKEN="+inFile+"\n"), 0o600))
	c := harness.New(t, harness.Options{Nodes: 1, Env: []string{"AWS_SECRET_ACCESS_KEY=" + inEnvironment, "S3_SECRET_ACCESS_KEY=" + inEnvironment},
		Args: []string{"--env-file=" + file, "-v=6"}})
	c.StartAll()
	c.WaitHealthy(1)
	n := c.Nodes[0]
	c.Put("key", "hunter4-in-etcd")
	c.WaitFor("a backup", time.Minute, func() string {
		if len(c.Backups()) == 0 {
			return "there is none"
		}
		return ""
	})
	secrets := []string{inEnvironment, inFile}
	look := func(where string, data []byte, more ...string) {
		for _, s := range append(more, secrets...) {
			if bytes.Contains(data, []byte(s)) {
				t.Errorf("%s holds %q", where, s)
			}
		}
	}
	read := func(path string) []byte {
		data, err := os.ReadFile(path)
		testutil.Must(t, err)
		return data
	}
	if !bytes.Contains(read(fmt.Sprintf("/proc/%d/environ", n.PID())), []byte(inEnvironment)) {
		t.Error("the manager itself has no secret: the test looks for nothing")
	}
	look("the manager's command line", read(fmt.Sprintf("/proc/%d/cmdline", n.PID())))
	look("etcd's environment", read(fmt.Sprintf("/proc/%d/environ", n.EtcdPID())))
	look("etcd's command line", read(fmt.Sprintf("/proc/%d/cmdline", n.EtcdPID())))
	look("the log", []byte(n.LogText()), "hunter4-in-etcd", "PRIVATE KEY")
	for _, path := range []string{"/", "/metrics", "/healthz", "/readyz?verbose", "/status", "/debug/pprof/cmdline"} {
		resp, err := http.Get(fmt.Sprintf("http://%s:%d%s", n.Address, c.Ports.Status, path))
		testutil.Must(t, err)
		var b bytes.Buffer
		_, err = b.ReadFrom(resp.Body)
		testutil.Must(t, err)
		resp.Body.Close()
		look("the status port at "+path, b.Bytes(), "hunter4-in-etcd", "PRIVATE KEY")
	}
	data, files := filepath.Join(c.Dir, "node-"+n.Name), 0
	testutil.Must(t, filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // etcd, or the manager, has removed it meanwhile
		}
		fi, err := d.Info()
		if err != nil {
			return nil
		}
		switch {
		case d.IsDir() && path != data && fi.Mode().Perm()&0o077 != 0:
			t.Errorf("directory %s has mode %s", path, fi.Mode())
		case d.Type().IsRegular() && fi.Size() < 1<<20:
			files++
			if content, err := os.ReadFile(path); err == nil {
				look(path, content)
				if strings.HasSuffix(path, ".key") && fi.Mode().Perm()&0o077 != 0 {
					t.Errorf("key %s has mode %s", path, fi.Mode())
				}
			}
		}
		return nil
	}))
	if files < 5 {
		t.Errorf("only %d files were looked at below %s", files, data)
	}
}
