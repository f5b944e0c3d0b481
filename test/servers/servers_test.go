package servers

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// buildAllVar makes TestVersions build what no other test has needed so far.
const buildAllVar = "ETCD_MANAGER_TEST_BUILD_ALL"

// TestVersions checks that every program is what its name says.
func TestVersions(t *testing.T) {
	for name, want := range map[string]string{
		"etcd-3.4": "etcd Version: 3.4.", "etcd-3.5": "etcd Version: 3.5.35", "etcd-3.5-old": "etcd Version: 3.5.21",
		"etcd-3.6": "etcd Version: 3.6.16", "etcd-3.7": "etcd Version: 3.7.3",
		"etcdctl-3.5": "etcdctl version: 3.5.35", "etcdutl-3.5": "etcdutl version: 3.5.35",
		"etcdctl-3.6": "etcdctl version: 3.6.16", "etcdutl-3.6": "etcdutl version: 3.6.16",
		"versitygw": "Version  :", "minio": "minio version",
	} {
		t.Run(name, func(t *testing.T) {
			if tl, ok := tools()[name]; ok && os.Getenv(buildAllVar) == "" {
				if _, path, err := locate(name, tl); err != nil || !isFile(path) {
					t.Skipf("it has not been built yet (%v); %s=1 builds it", err, buildAllVar)
				}
			}
			arg := "version"
			if strings.HasPrefix(name, "etcd-") || name == "versitygw" || name == "minio" {
				arg = "--version"
			}
			out, err := exec.Command(Binary(t, name), arg).CombinedOutput()
			if err != nil || !strings.Contains(string(out), want) {
				t.Errorf("%s %s = %s, %v; want %q", name, arg, out, err, want)
			}
		})
	}
}

// TestOneBuildAtATime checks that a build waits for another one, and no longer than it may.
func TestOneBuildAtATime(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	unlock, err := lockBase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := lockBase(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("beside another build: %v", err)
	}
	got := make(chan error, 1)
	go func() {
		again, err := lockBase(t.Context())
		if err == nil {
			again()
		}
		got <- err
	}()
	unlock()
	if err := <-got; err != nil {
		t.Errorf("after the other build: %v", err)
	}
}
